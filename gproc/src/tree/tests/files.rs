//! What files show, and to whom.

use super::*;
use consistency::wire::meta::FileKind;
use std::os::unix::fs::symlink;

const ROOT: Caller = Caller {
    uid: 0,
    ..caller(65_600)
};

impl Fake {
    fn write(&self, node: u16, path: &str, text: &str) {
        let path = self.node(node).proc.path().join(path);
        std::fs::create_dir_all(path.parent().expect("below")).expect("made");
        std::fs::write(path, text).expect("written");
    }

    fn link(&self, node: u16, path: &str, target: &str) {
        let path = self.node(node).proc.path().join(path);
        std::fs::create_dir_all(path.parent().expect("below")).expect("made");
        symlink(target, path).expect("linked");
    }
}

impl ProcTree {
    async fn target_of(&self, caller: Caller, path: &str) -> Result<Bytes, Errno> {
        let ino = self.find(caller, path).await?;
        self.readlink(caller, ino).await
    }

    async fn names_in(&self, caller: Caller, path: &str) -> Result<Vec<String>, Errno> {
        let ino = self.find(caller, path).await?;
        self.ls(caller, ino, 3).await
    }
}

fn with_threads_and_descriptors() -> Fake {
    let fake = Fake::new(2);
    fake.start(2, 131_080, 7, 10);
    fake.start(2, 131_081, 7, 10);
    for thread in [131_080, 131_085] {
        fake.write(
            2,
            &format!("131080/task/{thread}/stat"),
            &format!("{thread} (a) S 7 7 7 0 -1 1\n"),
        );
        fake.link(2, &format!("131080/task/{thread}/ns/uts"), "uts:[9]");
    }
    fake.link(2, "131080/fd/0", "/dev/null");
    fake.link(2, "131080/fd/17", "socket:[5]");
    fake.write(2, "131080/fdinfo/17", "pos:\t0\n");
    fake.link(2, "131080/exe", "/bin/true");
    fake.link(2, "131080/ns/uts", "uts:[9]");
    fake.write(2, "131080/environ", "A=1\0");
    fake.write(2, "131080/wchan", "do_wait");
    fake
}

#[tokio::test]
async fn threads_and_descriptors() {
    let fake = with_threads_and_descriptors();
    let tree = fake.tree(1);
    let ls = async |path| tree.names_in(ROOT, path).await.expect("listed");
    assert_eq!(ls("131080/task").await, ["131080", "131085"]);
    assert_eq!(ls("131080/fd").await, ["0", "17"]);
    assert_eq!(ls("131080/fdinfo").await, ["0", "17"]);
    assert!(ls("131080/ns").await.contains(&"uts".into()));
    let thread = ls("131080/task/131085").await;
    assert!(thread.contains(&"stat".into()) && thread.contains(&"fd".into()));
    for none in ["task", "note", "where", "lock"] {
        assert!(!thread.contains(&none.into()), "{none}");
        let path = format!("131080/task/131085/{none}");
        assert_eq!(tree.find(ROOT, &path).await, Err(Errno::ENOENT));
    }
    let stat = tree
        .cat(ROOT, "131080/task/131085/stat")
        .await
        .expect("read");
    assert_eq!(stat, "131085 (a) S 8388615 8388615 8388615 0 -1 1\n");
    let info = tree.cat(ROOT, "131080/fdinfo/17").await.expect("read");
    assert_eq!(info, "pos:\t0\n");
    for (path, target) in [
        ("131080/fd/0", "/dev/null"),
        ("131080/fd/17", "socket:[5]"),
        ("131080/exe", "/bin/true"),
        ("131080/ns/uts", "uts:[9]"),
        ("131080/task/131085/ns/uts", "uts:[9]"),
    ] {
        assert_eq!(tree.target_of(ROOT, path).await.expect("a link"), target);
        let link = tree.find(ROOT, path).await.expect("there");
        let attr = tree.getattr(ROOT, link, None).await.expect("known").attr;
        assert_eq!((attr.kind, attr.uid), (FileKind::Symlink, 1000));
    }
    for none in [
        "131080/fd/1",
        "131080/fd/017",
        "131080/fd/x",
        "131080/task/131086",
        "131080/task/7",
    ] {
        assert_eq!(tree.find(ROOT, none).await, Err(Errno::ENOENT), "{none}");
    }
    // A process that has no such link, as a thread of the kernel has no program.
    assert_eq!(tree.target_of(ROOT, "131081/exe").await, Err(Errno::ENOENT));
    let link = tree.find(ROOT, "131080/exe").await.expect("there");
    let dir = tree.find(ROOT, "131080/fd").await.expect("there");
    fake.end(2, 131_080);
    assert_eq!(tree.readlink(ROOT, link).await, Err(Errno::ESRCH));
    assert_eq!(tree.ls(ROOT, dir, 9).await, Err(Errno::ENOENT));
}

#[tokio::test]
async fn what_the_kernel_forgets_takes_no_room() {
    let fake = with_threads_and_descriptors();
    let tree = fake.tree(1);
    for path in ["131080/fd/17", "131080/task/131085/stat"] {
        let mut ino = ProcTree::ROOT;
        let mut seen = Vec::new();
        for name in path.split('/') {
            let name = Name::new(name.to_owned()).expect("a name");
            let entry = tree.lookup(ROOT, ino, &name).await.expect("found");
            ino = entry.attr.expect("there").ino;
            seen.push(ino);
        }
        assert_eq!(
            tree.getattr(ROOT, ino, None).await.expect("known").attr.ino,
            ino
        );
        for ino in seen {
            tree.forget(ino, 1);
        }
        let stale = tree.getattr(ROOT, ino, None).await;
        assert_eq!(stale.expect_err("forgotten"), Errno::ESTALE);
    }
    assert_eq!((tree.known.len(), tree.deep.len()), (0, 0));
}

/// What is of nobody but those who may trace the process stays so, on whatever node they are.
#[tokio::test]
async fn strangers_see_what_procfs_shows_them() {
    let fake = with_threads_and_descriptors();
    let tree = fake.tree(1);
    let stranger = READER;
    for path in ["131080/exe", "131080/ns/uts"] {
        assert_eq!(
            tree.target_of(stranger, path).await,
            Err(Errno::EACCES),
            "{path}"
        );
    }
    for path in ["131080/fd", "131080/fdinfo"] {
        assert_eq!(
            tree.names_in(stranger, path).await,
            Err(Errno::EACCES),
            "{path}"
        );
    }
    assert_eq!(tree.find(stranger, "131080/fd/0").await, Err(Errno::EACCES));
    let environ = tree.find(stranger, "131080/environ").await.expect("there");
    let opened = tree.open(stranger, environ, RDONLY).await;
    assert_eq!(opened.expect_err("refused"), Errno::EACCES);
    let cat = async |caller, path| tree.cat(caller, path).await.expect("read");
    assert_eq!(cat(stranger, "131080/wchan").await, "0");
    assert_eq!(cat(ROOT, "131080/wchan").await, "do_wait");
    assert_eq!(cat(ROOT, "131080/environ").await, "A=1\0");
    assert_eq!(
        tree.names_in(stranger, "131080/task")
            .await
            .expect("listed")
            .len(),
        2
    );
    // So it is with the column of a reader who goes through all processes.
    tree.ls(stranger, ProcTree::ROOT, 1000)
        .await
        .expect("listed");
    for _ in 0..3 {
        assert_eq!(cat(stranger, "131080/wchan").await, "0");
        assert_eq!(
            tree.target_of(stranger, "131080/exe").await,
            Err(Errno::EACCES)
        );
    }
}

/// Where procfs is mounted with hidepid, other nodes hide what the node itself hides.
#[tokio::test]
async fn hidden_processes_are_hidden_everywhere() {
    let fake = Fake::hiding(2, Some(77));
    fake.start(2, 131_080, 7, 10);
    let tree = fake.tree(1);
    for (uid, gid, shown) in [
        (0, 5, true),
        (1000, 1001, true),
        (5, 77, true),
        (1000, 5, false),
        (5, 1001, false),
    ] {
        let pid = 9;
        let caller = Caller { uid, gid, pid };
        for _ in ["before", "after it has listed"] {
            let found = tree.find(caller, "131080").await;
            assert_eq!(found.is_ok(), shown, "{uid} {gid}: {found:?}");
            let listed = tree.ls(caller, ProcTree::ROOT, 100).await.expect("listed");
            assert_eq!(processes(listed).len(), usize::from(shown), "{uid} {gid}");
        }
    }
}

#[tokio::test]
async fn a_file_read_of_many_processes_is_asked_for_once() {
    let fake = Fake::new(2);
    for pid in 131_072..131_172 {
        fake.start(2, pid, 1, 10);
        fake.write(2, &format!("{pid}/statm"), &format!("{pid}\n"));
    }
    let tree = fake.tree(1);
    tree.ls(ROOT, ProcTree::ROOT, 1000).await.expect("listed");
    fake.asked(2);
    for pid in 131_072..131_172 {
        let statm = tree.cat(ROOT, &format!("{pid}/statm")).await.expect("read");
        assert_eq!(statm, format!("{pid}\n"));
    }
    let asked = fake.asked(2);
    assert!(
        matches!(
            asked[..],
            [
                ProcRequest::Read {
                    file: ProcFile::Statm,
                    ..
                },
                ProcRequest::Column {
                    file: ProcFile::Statm,
                    ..
                },
            ]
        ),
        "{asked:?}"
    );
}

#[tokio::test]
async fn long_columns_come_in_pages() {
    let fake = Fake::new(2);
    let environ = |pid: i32| {
        // The last one is too long for a column.
        let len = if pid == 131_271 { 100_000 } else { 60_000 };
        format!("{pid}{}", "x".repeat(len))
    };
    for pid in 131_072..131_272 {
        fake.start(2, pid, 1, 10);
        fake.write(2, &format!("{pid}/environ"), &environ(pid));
    }
    let tree = fake.tree(1);
    tree.ls(ROOT, ProcTree::ROOT, 1000).await.expect("listed");
    fake.asked(2);
    for pid in 131_072..131_272 {
        let read = tree
            .cat(ROOT, &format!("{pid}/environ"))
            .await
            .expect("read");
        assert!(read == environ(pid), "{pid}");
    }
    let asked = fake.asked(2);
    let columns = |request: &&ProcRequest| matches!(request, ProcRequest::Column { .. });
    let pages = asked.iter().filter(columns).count();
    // 12 MB in pages of 4 MiB.
    assert_eq!(pages, 3, "{asked:?}");
    // The first one, and what was left out: what is too long, and what a busy machine took for stuck.
    let alone = asked.len() - pages;
    assert!((2..20).contains(&alone), "{asked:?}");
}

#[tokio::test]
async fn the_cluster_is_one_machine() {
    let fake = Fake::new(3);
    for node in 1..=3 {
        fake.write(
            node,
            "stat",
            &format!("cpu  {node} 0 0\ncpu0 {node} 0 0\nctxt 1\nbtime 5\n"),
        );
        fake.write(node, "net/dev", "a\nb\n eth0: 1\n");
        fake.write(node, "sys/kernel/pid_max", "4194304\n");
        fake.write(node, "sys/kernel/hostname", &format!("node{node}\n"));
    }
    let tree = fake.tree(2);
    let cat = async |path| tree.cat(READER, path).await.expect("read");
    assert_eq!(
        cat("stat").await,
        "cpu  6 0 0\ncpu0 1 0 0\ncpu1 2 0 0\ncpu2 3 0 0\nctxt 3\nbtime 5\n"
    );
    assert_eq!(cat("loadavg").await, "0.00 0.00 0.00 9/270 1\n");
    assert_eq!(
        cat("net/dev").await,
        "a\nb\nnode1.eth0: 1\nnode2.eth0: 1\nnode3.eth0: 1\n"
    );
    assert_eq!(cat("sys/kernel/pid_max").await, "16777216\n");
    assert_eq!(cat("sys/kernel/hostname").await, "node2\n");
    assert_eq!(
        tree.target_of(READER, "mounts").await.expect("a link"),
        "self/mounts"
    );
    let names = tree.names_in(READER, "sys/kernel").await.expect("listed");
    assert!(names.contains(&"random".into()) && names.contains(&"pid_max".into()));
    let down = Instant::now();
    fake.net.cut(NodeId(3));
    assert_eq!(
        cat("stat").await,
        "cpu  3 0 0\ncpu0 1 0 0\ncpu1 2 0 0\nctxt 2\nbtime 5\n"
    );
    assert!(down.elapsed() < PATIENCE_AND_MORE);
}

/// `top` keeps its files open and reads them again from the beginning.
#[tokio::test]
async fn a_file_read_again_is_as_of_now() {
    let fake = Fake::new(1);
    fake.write(1, "uptime", "1.00 2.00\n");
    let tree = fake.tree(1);
    let file = tree.find(READER, "uptime").await.expect("there");
    let fh = tree.open(READER, file, RDONLY).await.expect("opened").fh;
    let read = async |from, len| {
        let reply = tree
            .read(READER, file, fh, from, len, RDONLY)
            .await
            .expect("read");
        String::from_utf8(reply.data.to_vec()).expect("text")
    };
    assert_eq!(read(0, 3).await, "1.0");
    fake.write(1, "uptime", "9.00 8.00\n");
    assert_eq!(read(3, 100).await, "0 2.00\n");
    assert_eq!(read(0, 100).await, "9.00 8.00\n");
    assert_eq!(read(10, 100).await, "");
}

#[tokio::test]
async fn a_nodes_own_view_has_the_numbers_of_its_kernel() {
    let fake = Fake::new(2);
    fake.start(1, 65_600, 1, 10);
    fake.start(2, 131_080, 7, 10);
    fake.start(2, 7, 0, 1);
    fake.write(2, "7/task/7/stat", "7 (a) S 0 7 7 0 -1 1\n");
    for node in 1..=2 {
        fake.write(node, "uptime", &format!("{node}.00 2.00\n"));
    }
    let tree = fake.tree(1);
    let root = ProcTree::own_root(NodeId(2));
    let names = tree.ls(READER, root, 4).await.expect("listed");
    assert_eq!(processes(names.clone()), ["131080", "7"]);
    assert!(names.contains(&"uptime".into()) && !names.contains(&"self".into()));
    let find = async |path: &str| {
        let mut ino = root;
        for name in path.split('/') {
            let name = Name::new(name.to_owned())?;
            ino = tree
                .lookup(READER, ino, &name)
                .await?
                .attr
                .ok_or(Errno::ENOENT)?
                .ino;
        }
        Ok(ino)
    };
    let cat = async |path| tree.content_of(READER, find(path).await?).await;
    assert!(
        cat("131080/stat")
            .await
            .expect("read")
            .starts_with("131080 (sleep (1)) S 7 131080 ")
    );
    assert!(
        cat("7/status")
            .await
            .expect("read")
            .contains("\nPid:\t7\nPPid:\t0\n")
    );
    assert!(
        cat("7/task/7/stat")
            .await
            .expect("read")
            .starts_with("7 (a) S 0 7 7 ")
    );
    assert_eq!(cat("uptime").await, Ok("2.00 2.00\n".into()));
    for none in ["65600", "8388615", "cluster", "self", "08"] {
        assert_eq!(find(none).await, Err(Errno::ENOENT), "{none}");
    }
    // Both views of a process are directories of their own, since a directory has one place.
    let elsewhere = tree.find(READER, "8388615").await.expect("there");
    assert_ne!(find("7").await, Ok(elsewhere));
    // On the node itself there is a way to itself.
    let own = ProcTree::own_root(NodeId(1));
    for (name, target) in [("self", "65600"), ("thread-self", "65600/task/65600")] {
        let name = Name::new(name.as_bytes()).expect("a name");
        let link = tree.lookup(READER, own, &name).await.expect("found").attr;
        let link = link.expect("there").ino;
        assert_eq!(tree.readlink(READER, link).await.expect("a link"), target);
    }
}

#[tokio::test]
async fn locks_are_kept_and_nothing_moves() {
    let fake = Fake::new(2);
    fake.start(2, 131_080, 1, 10);
    let tree = fake.tree(1);
    let file = async |name| {
        tree.find(READER, &format!("131080/{name}"))
            .await
            .expect("there")
    };
    let cat = async |name| {
        tree.content_of(READER, file(name).await)
            .await
            .expect("read")
    };
    let owner = Caller { uid: 0, ..READER };
    let unlocked = [
        ("lock", "0\n"),
        ("loadlevel", "1\n"),
        ("cantmove", "old_node\n"),
    ];
    let locked = [
        ("lock", "1\n"),
        ("loadlevel", "0\n"),
        ("cantmove", "old_node\nuser_lock\n"),
    ];
    for (name, on, off) in [("lock", "1\n", "0"), ("loadlevel", "0", "1\n")] {
        for (name, content) in unlocked {
            assert_eq!(cat(name).await, content);
        }
        let stranger = tree.echo(READER, on, file(name).await).await;
        assert_eq!(stranger, Err(Errno::EPERM));
        tree.echo(owner, on, file(name).await)
            .await
            .expect("locked");
        for (name, content) in locked {
            assert_eq!(cat(name).await, content);
        }
        tree.echo(owner, off, file(name).await)
            .await
            .expect("unlocked");
    }
    // A lock is of one process, not of its number.
    tree.echo(owner, "1", file("lock").await)
        .await
        .expect("locked");
    fake.end(2, 131_080);
    fake.start(2, 131_080, 1, 5000);
    assert_eq!(cat("lock").await, "0\n");
    for (name, content) in [("from", "2\n"), ("where", "2\n"), ("nmigs", "0\n")] {
        assert_eq!(cat(name).await, content);
    }
    let goto = file("goto").await;
    let go = async |answer, text| {
        *fake.node(2).spy.lie.lock().expect("free") = Some(ProcReply::Done(answer));
        tree.echo(READER, text, goto).await.map_err(|errno| errno.0)
    };
    for (text, answer) in [
        ("2", Ok(())),
        ("0", Ok(())),
        ("1", Err(libc::EOPNOTSUPP)),
        ("-1", Err(libc::EOPNOTSUPP)),
        ("3", Err(libc::ENXIO)),
        ("70000", Err(libc::ENXIO)),
    ] {
        assert_eq!(go(Ok(()), text).await, answer, "{text}");
    }
    for errno in [libc::EPERM, libc::ESRCH] {
        assert_eq!(go(Err(errno), "1").await, Err(errno));
    }
}

#[tokio::test]
async fn files_of_nodes() {
    let fake = Fake::new(2);
    fake.write(2, "meminfo", "MemTotal: 1000 kB\nMemAvailable: 600 kB\n");
    let tree = fake.tree(1);
    let cat = async |name: &str| tree.cat(READER, &format!("cluster/node2/{name}")).await;
    for (name, content) in [
        ("tmem", "1024000\n"),
        ("mem", "614400\n"),
        ("state", "up\n"),
        ("block", "0\n"),
        ("in_use", "0\n"),
        ("loadlevel", "0\n"),
    ] {
        assert_eq!(cat(name).await.expect("read"), content, "{name}");
    }
    for name in ["speed", "cpus", "load", "util"] {
        cat(name)
            .await
            .expect("read")
            .trim_end()
            .parse::<u64>()
            .expect("a number");
    }
    for (name, on) in [
        // Nobody keeps these here.
        ("loadlevel", Err(libc::EOPNOTSUPP)),
        ("block", Err(libc::EOPNOTSUPP)),
        ("stay", Err(libc::EOPNOTSUPP)),
        // Nobody is away.
        ("bring", Ok(())),
        ("expel", Ok(())),
    ] {
        let file = tree
            .find(READER, &format!("cluster/node2/{name}"))
            .await
            .expect("there");
        for (text, answer) in [
            ("0\n", Ok(())),
            ("1", on),
            ("", Err(libc::EINVAL)),
            ("yes", Err(libc::EINVAL)),
        ] {
            let written = tree.echo(ROOT, text, file).await;
            assert_eq!(written, answer.map_err(Errno), "{name} {text:?}");
        }
    }
    assert_eq!(
        tree.cat(READER, "cluster/loadlevellist")
            .await
            .expect("read"),
        ""
    );
    let list = tree.find(READER, "cluster/loadlevellist").await;
    let list = list.expect("there");
    for (text, answer) in [
        ("bin/make", libc::EINVAL),
        ("a\0b", libc::EINVAL),
        ("make\n", libc::EOPNOTSUPP),
    ] {
        let written = tree.echo(ROOT, text, list).await;
        assert_eq!(written, Err(Errno(answer)), "{text:?}");
    }
}
