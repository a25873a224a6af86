//! What waits, and what happens when nodes do not answer.

use super::*;

/// Of a node that does not answer nothing seems to have ended, for a while.
#[tokio::test]
async fn a_silent_node_is_shown_as_such() {
    let fake = Fake::new(2);
    fake.start(1, 65_600, 1, 10);
    fake.start(2, 131_080, 1, 10);
    let tree = fake.tree(1);
    let ls = async |reader| {
        let listed = tree.ls(caller(reader), ProcTree::ROOT, 100).await;
        processes(listed.expect("listed"))
    };
    assert_eq!(ls(7).await, ["65600", "131080"]);
    fake.net.cut(NodeId(2));
    let begun = Instant::now();
    assert_eq!(ls(7).await, ["65600", "131080"]);
    let cat = async |reader, path| tree.cat(caller(reader), path).await;
    let stat = cat(7, "131080/stat").await.expect("as it was");
    assert!(
        stat.starts_with("131080 (sleep (1)) D 4325376 ") || stat.contains(") D "),
        "{stat}"
    );
    assert!(cat(7, "131080/cmdline").await.is_ok());
    // What was not known is not had, and the reader waits no second time for that.
    assert_eq!(cat(7, "131080/statm").await, Err(Errno(libc::EHOSTDOWN)));
    assert_eq!(cat(7, "131080/limits").await, Err(Errno(libc::EHOSTDOWN)));
    assert!(cat(7, "65600/stat").await.expect("read").contains(") S "));
    assert!(begun.elapsed() < PATIENCE_AND_MORE, "{:?}", begun.elapsed());
    assert_eq!(
        cat(7, "cluster/nodes").await.expect("read"),
        "1 up\n2 down\n"
    );
    // Who has not listed sees the same.
    let stat = cat(9, "131080/stat").await.expect("as it was");
    assert!(stat.starts_with("131080 (sleep (1)) D "), "{stat}");
    // One that was not there then may have begun since.
    let down = Err(Errno(libc::EHOSTDOWN));
    assert_eq!(tree.find(caller(9), "131081").await, down);
    // When it answers it is as it is.
    fake.net.heal(NodeId(2));
    fake.end(2, 131_080);
    fake.start(2, 131_090, 1, 10);
    let healed = Instant::now();
    while ls(8).await != ["65600", "131090"] {
        assert!(
            healed.elapsed() < Duration::from_secs(10),
            "not asked again"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn the_end_of_a_process_is_waited_for_on_its_node() {
    let fake = Fake::new(2);
    fake.start(2, 131_080, 1, 10);
    let tree = fake.tree(1);
    let file = tree.find(READER, "131080/wait").await.expect("there");
    let lie = |content| {
        *fake.node(2).spy.lie.lock().expect("free") = Some(ProcReply::Content(content));
    };
    lie(Err(libc::EAGAIN));
    let wait = tree.content_of(READER, file);
    let end = async {
        // It is asked again as long as the process lives.
        let mut asked = 0;
        while asked < 3 {
            asked += fake.asked(2).len();
            tokio::task::yield_now().await;
        }
        lie(Ok("exit 3\n".into()));
    };
    let (ended, ()) = tokio::join!(wait, end);
    assert_eq!(ended, Ok("exit 3\n".into()));
    for errno in [libc::ESRCH, libc::EACCES] {
        lie(Err(errno));
        assert_eq!(tree.content_of(READER, file).await, Err(Errno(errno)));
    }
}

#[tokio::test]
async fn events_come_to_those_who_wait() {
    let fake = Fake::new(1);
    let tree = fake.tree(1);
    tree.events().tell("before");
    let file = tree.find(READER, "cluster/events").await.expect("there");
    let opened = tree.open(READER, file, RDONLY).await.expect("opened");
    assert!(opened.nonseekable && opened.direct_io);
    let read = async |len| {
        let reply = tree.read(READER, file, opened.fh, 0, len, RDONLY);
        String::from_utf8(reply.await.expect("read").data.to_vec()).expect("text")
    };
    let (told, ()) = tokio::join!(read(1000), async { tree.events().tell("node 2 up") });
    assert!(told.ends_with(" node 2 up\n"), "{told}");
    tree.events().tell("node 2 down");
    let parts = read(5).await + &read(1000).await;
    assert!(parts.ends_with(" node 2 down\n"), "{parts}");
    let nothing = tokio::time::timeout(Duration::from_millis(20), read(1000)).await;
    assert!(nothing.is_err(), "{nothing:?}");
    tree.release(file, opened.fh).await;
}

#[tokio::test]
async fn groups_without_a_leader_can_be_named() {
    let fake = Fake::new(2);
    let tree = fake.tree(1);
    let file = tree.find(READER, "cluster/notepg").await.expect("there");
    *fake.node(2).spy.lie.lock().expect("free") = Some(ProcReply::Done(Ok(())));
    tree.echo(READER, "131080 TERM\n", file)
        .await
        .expect("sent");
    let expected = ProcRequest::SignalGroup {
        group: ClusterPid::parse(b"131080").expect("a pid"),
        birth: None,
        number: libc::SIGTERM,
        who: who(READER),
    };
    assert_eq!(fake.asked(2), [expected]);
    for (text, errno) in [
        ("131080", libc::EINVAL),
        ("TERM", libc::EINVAL),
        ("x TERM", libc::EINVAL),
        ("-5 TERM", libc::EINVAL),
        ("0 TERM", libc::EINVAL),
        ("131080 NONE", libc::EINVAL),
        ("131080  TERM", libc::EINVAL),
        ("99999999999 TERM", libc::EINVAL),
        ("7 TERM", libc::ESRCH),
        ("262144 TERM", libc::ESRCH),
    ] {
        assert_eq!(
            tree.echo(READER, text, file).await,
            Err(Errno(errno)),
            "{text}"
        );
    }
    assert_eq!(fake.asked(2), []);
}
