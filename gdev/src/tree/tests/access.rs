//! Reads, writes, and what is refused.

use super::*;

#[tokio::test]
async fn reads() {
    let fake = Fake::new();
    for owner in [1, 2] {
        let read = async |name, size| {
            let fh = fake.open(USER, owner, name, RDONLY).await.expect("opened");
            let data = fake.read(fh, size).await.expect("read");
            fake.tree.release(DevTree::root(NodeId(1)), fh).await;
            assert_eq!(fake.read(fh, 1).await, Err(Errno(libc::EBADF)));
            data
        };
        assert_eq!(read("null", 100).await, "");
        assert_eq!(read("zero", 1 << 20).await, vec![0; 1 << 20]);
        assert_eq!(read("zero", 2 << 20).await.len(), 1 << 20);
        assert_eq!(read("full", 10).await, vec![0; 10]);
        let random = [read("urandom", 4096).await, read("random", 4096).await];
        assert!(random.iter().all(|data| data.len() == 4096) && random[0] != random[1]);
    }
}

#[tokio::test]
async fn writes() {
    let fake = Fake::new();
    assert_eq!(fake.write(USER, "null", 1 << 20).await, Ok(1 << 20));
    assert_eq!(
        fake.write(USER, "null", (1 << 20) + 5).await,
        Ok(1 << 20),
        "the rest comes again"
    );
    assert_eq!(fake.write(USER, "zero", 5).await, Ok(5));
    assert_eq!(fake.write(USER, "random", 5).await, Ok(5));
    assert_eq!(fake.write(USER, "full", 5).await, Err(Errno(libc::ENOSPC)));
    // Its mode lets root only.
    assert_eq!(fake.write(USER, "kmsg", 5).await, Err(Errno::EACCES));
    let null = fake.find(2, "null").await.expect("there").ino;
    let truncate = SetAttrRequest {
        size: Some(0),
        ..SetAttrRequest::default()
    };
    assert!(fake.tree.setattr(USER, null, truncate).await.is_ok());
    let chmod = SetAttrRequest {
        mode: Some(0),
        ..SetAttrRequest::default()
    };
    let refused = fake.tree.setattr(ROOT_USER, null, chmod).await;
    assert_eq!(refused.expect_err("it is the owner's"), Errno::EPERM);
}

#[tokio::test]
async fn the_log_is_read_record_by_record() {
    let fake = Fake::new();
    let opened = fake.open(ROOT_USER, 2, "kmsg", RDONLY).await;
    if let Err(error) = std::fs::File::open("/dev/kmsg") {
        // Where nobody may read the log, nobody may read it from afar.
        assert_eq!(opened.err().map(|errno| errno.0), error.raw_os_error());
        return;
    }
    let fh = opened.expect("opened");
    let root = DevTree::root(NodeId(1));
    let flags = OpenFlags(RDONLY | libc::O_NONBLOCK);
    let read = async |offset, size| {
        let read = fake.tree.read(USER, root, fh, offset, size, flags);
        read.await.map(|reply| reply.data)
    };
    let first = read(0, 8192).await.expect("a record");
    let text = String::from_utf8_lossy(&first).into_owned();
    let head = text.split(';').next().expect("a head");
    assert!(head.matches(',').count() >= 3, "{text}");
    // At the beginning again; but a record that does not fit is not read.
    let mut position = first.len() as u64;
    assert_ne!(read(position, 8192).await, Ok(first.clone()));
    assert_eq!(read(0, 1).await, Err(Errno::EINVAL));
    assert_eq!(read(0, 8192).await.map(|again| again == first), Ok(true));
    for _ in 0..10_000_000 {
        match read(position, 8192).await {
            Ok(record) => position += record.len() as u64,
            Err(Errno(libc::EAGAIN)) => return,
            // Its writers have overtaken us.
            Err(Errno(libc::EPIPE)) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
    panic!("the log never ends");
}

#[tokio::test]
async fn a_node_that_is_down_is_told_so() {
    let fake = Fake::new();
    let fh = fake.open(USER, 2, "zero", RDONLY).await.expect("opened");
    fake.net.cut(NodeId(2));
    let down = Errno(libc::EHOSTDOWN);
    assert_eq!(fake.find(2, "null").await, Err(down));
    let root = DevTree::root(NodeId(2));
    let listed = fake.tree.readdir(USER, root, 0, 10, true).await;
    assert_eq!(listed.expect_err("nobody answers"), down);
    assert!(fake.tree.getattr(USER, root, None).await.is_ok());
    assert!(fake.find(1, "null").await.is_ok());
    fake.net.heal(NodeId(2));
    assert_eq!(fake.read(fh, 1).await.expect("read"), vec![0]);
}

#[tokio::test]
async fn hostile_requests_are_refused() {
    let agent = DevAgent::new(NodeId(1), "/dev", Rules::default());
    for body in [
        &b""[..],
        b"\0\x02..",
        b"\0\x0b/etc/passwd",
        b"\0\x09null/../x",
        b"\x63",
    ] {
        let reply = agent.call(NodeId(2), Bytes::copy_from_slice(body)).await;
        assert_eq!(reply, None, "{body:?}");
    }
    let path = |path: &'static str| DevPath::try_from(Bytes::from(path)).expect("a path");
    let device = |minor| Device {
        block: false,
        major: 1,
        minor,
    };
    let read = async |name, minor, size| {
        let request = DevRequest::Read {
            path: path(name),
            device: device(minor),
            who: Who { uid: 0, gid: 0 },
            size,
        };
        agent.answer(NodeId(2), request).await
    };
    assert_eq!(read("zero", 5, 1).await, DevReply::Data(vec![0].into()));
    assert_eq!(
        read("zero", 5, (1 << 20) + 1).await,
        DevReply::Failed(libc::EINVAL)
    );
    // Another device than the one that is there.
    assert_eq!(read("zero", 3, 1).await, DevReply::Failed(libc::ESTALE));
    // Links are not followed, be it to a device.
    assert_eq!(read("fd/0", 3, 1).await, DevReply::Failed(libc::ENOENT));
    assert_eq!(read("stdin", 3, 1).await, DevReply::Failed(libc::ESTALE));
}
