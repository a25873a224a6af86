use super::*;
use crate::cluster::{LONG_DEADLINE, PAGE_DEADLINE, PATIENCE};
use crate::wire::{MachineFile, ProcFile, ProcReply, ProcRequest, Record};
use consistency::wire::{decode, encode};
use gfs::net::mem::{MemNet, MemTransport};
use gfs::net::{Router, Service, ServiceId};
use gfs::tree::{READABLE, READY};
use std::sync::Mutex;
use std::time::Instant;
use tempfile::TempDir;

const READER: Caller = caller(65_600);
const RDONLY: OpenFlags = OpenFlags(libc::O_RDONLY);

const fn caller(pid: u32) -> Caller {
    Caller {
        uid: 1000,
        gid: 1000,
        pid,
    }
}

/// An agent that is watched.
struct Spy {
    agent: Arc<ProcAgent>,
    asked: Mutex<Vec<ProcRequest>>,
    lie: Mutex<Option<ProcReply>>,
    /// How long it takes to tell its processes.
    slow: Mutex<Duration>,
}

#[async_trait]
impl Service for Spy {
    async fn call(&self, from: NodeId, body: Bytes) -> Option<Bytes> {
        let request: ProcRequest = decode(&body).expect("a request");
        let slow = matches!(request, ProcRequest::Snapshot { .. });
        let reads = matches!(request, ProcRequest::Read { .. });
        self.asked.lock().expect("free").push(request);
        if slow {
            let slow = *self.slow.lock().expect("free");
            tokio::time::sleep(slow).await;
        }
        let lie = self.lie.lock().expect("free").clone();
        match lie.filter(|lie| !(reads && matches!(lie, ProcReply::Done(_)))) {
            Some(lie) => Some(encode(&lie).into()),
            None => self.agent.call(from, body).await,
        }
    }
}

/// A node whose revision does not know of moves.
struct OldJobs;

#[async_trait]
impl Service for OldJobs {
    async fn call(&self, _from: NodeId, _body: Bytes) -> Option<Bytes> {
        None
    }
}

struct Node {
    proc: TempDir,
    spy: Arc<Spy>,
    transport: Arc<MemTransport>,
    _router: Arc<Router>,
}

struct Fake {
    net: MemNet,
    nodes: Vec<Node>,
}

impl Fake {
    /// Nodes 1 to `count` with an empty process table each.
    fn new(count: u16) -> Self {
        Self::hiding(count, None)
    }

    /// The same whose procfs hides processes, but for a group.
    fn hiding(count: u16, hidden: Option<u32>) -> Self {
        let net = MemNet::default();
        let node = |id| {
            // In memory if there is a place: thousands of files are written.
            let proc = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
            let proc = proc.expect("a directory");
            let write = |name: &str, text: &str| {
                std::fs::write(proc.path().join(name), text).expect("written");
            };
            write("loadavg", "0.0 0.0 0.0 3/90 1\n");
            let agent = ProcAgent::new(NodeId(id), proc.path())
                .with_metrics(Box::new(move || format!("of {id}")))
                .hiding(hidden);
            let agent = Arc::new(agent);
            let spy = Arc::new(Spy {
                agent,
                asked: Mutex::default(),
                lie: Mutex::default(),
                slow: Mutex::default(),
            });
            let (transport, router) = net.join(NodeId(id));
            router.register(ServiceId::Process, Arc::<Spy>::clone(&spy));
            router.register(ServiceId::Job, Arc::new(OldJobs));
            Node {
                proc,
                spy,
                transport,
                _router: router,
            }
        };
        let nodes = (1..=count).map(node).collect();
        Self { net, nodes }
    }

    fn node(&self, id: u16) -> &Node {
        &self.nodes[usize::from(id) - 1]
    }

    /// Starts a process.
    fn start(&self, node: u16, pid: i32, ppid: i32, born: u64) {
        let dir = self.node(node).proc.path().join(pid.to_string());
        std::fs::create_dir_all(&dir).expect("made");
        let write =
            |name: &str, text: String| std::fs::write(dir.join(name), text).expect("written");
        let zeros = ["0"; 13].join(" ");
        let stat = format!("{pid} (sleep (1)) S {ppid} {pid} {pid} 0 -1 {zeros} {born} 0 0\n");
        write("stat", stat);
        let status = format!(
            "Name:\tsleep\nTgid:\t{pid}\nPid:\t{pid}\nPPid:\t{ppid}\nUid:\t0\t1000\t0\t0\nGid:\t0\t1001\t0\t0\n"
        );
        write("status", status);
        write("cmdline", format!("sleep\0{pid}\0"));
    }

    fn end(&self, node: u16, pid: i32) {
        let dir = self.node(node).proc.path().join(pid.to_string());
        std::fs::remove_dir_all(dir).expect("removed");
    }

    /// Returns a tree with snapshots that last as long as any test.
    fn tree(&self, node: u16) -> ProcTree {
        self.tree_with(node, Duration::from_secs(600))
    }

    fn tree_with(&self, node: u16, snapshot_age: Duration) -> ProcTree {
        let node = self.node(node);
        ProcTree::with_snapshot_age(
            Arc::<MemTransport>::clone(&node.transport),
            Arc::clone(&node.spy.agent),
            snapshot_age,
        )
    }

    /// Returns what a node has been asked over the network since the last look, but for its uptime, which it is asked
    /// once a boot.
    fn asked(&self, node: u16) -> Vec<ProcRequest> {
        let mut asked = std::mem::take(&mut *self.node(node).spy.asked.lock().expect("free"));
        asked.retain(|request| *request != ProcRequest::Machine(MachineFile::Uptime));
        asked
    }

    /// Says how long a node has been up.
    fn up_for(&self, node: u16, seconds: u32) {
        let path = self.node(node).proc.path().join("uptime");
        std::fs::write(path, format!("{seconds}.00 0.00\n")).expect("written");
    }
}

impl ProcTree {
    async fn find(&self, caller: Caller, path: &str) -> Result<InodeNo, Errno> {
        let mut ino = Self::ROOT;
        for name in path.split('/') {
            let name = Name::new(name.to_owned())?;
            let entry = self.lookup(caller, ino, &name).await?;
            ino = entry.attr.ok_or(Errno::ENOENT)?.ino;
        }
        Ok(ino)
    }

    async fn content_of(&self, caller: Caller, ino: InodeNo) -> Result<String, Errno> {
        let opened = self.open(caller, ino, RDONLY).await?;
        assert!(opened.direct_io);
        let mut content = Vec::new();
        loop {
            let at = content.len() as u64;
            let reply = self.read(caller, ino, opened.fh, at, 100, RDONLY).await?;
            if reply.data.is_empty() {
                break;
            }
            content.extend_from_slice(&reply.data);
        }
        self.release(ino, opened.fh).await;
        Ok(String::from_utf8(content).expect("text"))
    }

    async fn cat(&self, caller: Caller, path: &str) -> Result<String, Errno> {
        let ino = self.find(caller, path).await?;
        self.content_of(caller, ino).await
    }

    /// Lists page by page.
    async fn ls(&self, caller: Caller, ino: InodeNo, limit: usize) -> Result<Vec<String>, Errno> {
        let (mut names, mut after) = (Vec::new(), 0);
        loop {
            let page = self.readdir(caller, ino, after, limit, true).await?;
            let Some(last) = page.entries.last() else {
                return Ok(names);
            };
            assert!(last.cookie > after && page.entries.len() <= limit);
            after = last.cookie;
            for entry in page.entries {
                let known = entry.entry.expect("asked for").attr.expect("there");
                assert_eq!((known.ino, known.kind), (entry.ino, entry.kind));
                self.forget(entry.ino, 1);
                names.push(String::from_utf8(entry.name.as_bytes().into()).expect("text"));
            }
        }
    }
}

/// Returns the names of processes in a listing of the root.
fn processes(names: Vec<String>) -> Vec<String> {
    let number = |name: &String| name.parse::<u32>().is_ok();
    names.into_iter().filter(number).collect()
}

#[tokio::test]
async fn the_root_lists_the_processes_of_all_nodes() {
    let fake = Fake::new(3);
    fake.start(1, 65_600, 1, 10);
    fake.start(1, 1, 0, 1);
    fake.start(2, 131_072, 1, 10);
    fake.start(3, 1, 0, 1);
    let tree = fake.tree(1);
    for limit in [1, 2, 1000] {
        assert_eq!(
            tree.ls(READER, ProcTree::ROOT, limit)
                .await
                .map(processes)
                .expect("listed"),
            ["65600", "131072", "4194305", "12582913"]
        );
    }
    assert_eq!(tree.known.len(), 0);
}

#[tokio::test]
async fn files_of_a_process() {
    let fake = Fake::new(2);
    fake.start(2, 131_080, 7, 10);
    let tree = fake.tree(1);
    let cat = async |name| {
        tree.cat(READER, &format!("131080/{name}"))
            .await
            .expect("read")
    };
    assert_eq!(cat("where").await, "2\n");
    assert_eq!(cat("comm").await, "sleep (1)\n");
    assert_eq!(cat("cmdline").await, "sleep\x00131080\x00");
    // 7 is older than the daemon.
    assert!(
        cat("stat")
            .await
            .starts_with("131080 (sleep (1)) S 8388615 131080 131080 0 -1 ")
    );
    let status = cat("status").await;
    assert!(
        status.contains("\nPid:\t131080\nPPid:\t8388615\n"),
        "{status}"
    );
    let dir = tree.find(READER, "131080").await.expect("there");
    let names = tree.ls(READER, dir, 2).await.expect("listed");
    assert!(names.starts_with(&["where".into(), "stat".into()]));
    assert!(names.contains(&"task".into()) && !names.contains(&"ns/mnt".into()));
    let attr = tree.getattr(READER, dir, None).await.expect("known").attr;
    assert_eq!(
        (attr.kind, attr.mode, attr.uid, attr.gid),
        (FileKind::Dir, 0o555, 1000, 1001)
    );
    let file = tree.find(READER, "131080/stat").await.expect("there");
    let attr = tree.getattr(READER, file, None).await.expect("known").attr;
    assert_eq!(
        (attr.kind, attr.mode, attr.uid, attr.size),
        (FileKind::File, 0o444, 1000, 0)
    );
}

#[tokio::test]
async fn nothing_can_be_written_and_no_name_is_invented() {
    let fake = Fake::new(1);
    fake.start(1, 65_600, 1, 10);
    let tree = fake.tree(1);
    let file = tree.find(READER, "65600/stat").await.expect("there");
    for flags in [libc::O_WRONLY, libc::O_RDWR] {
        let opened = tree.open(READER, file, OpenFlags(flags)).await;
        assert_eq!(opened.expect_err("refused"), Errno::EACCES);
    }
    for path in [
        "1",
        "065600",
        "65601",
        "4259904",
        "9999999999",
        "x",
        "65600/ns/none",
        "65600/task/65601",
        "65600/fd/01",
        "sys/kernel/x",
        "cluster/x",
        "cluster/node2",
    ] {
        assert_eq!(tree.find(READER, path).await, Err(Errno::ENOENT), "{path}");
    }
    assert_eq!(tree.find(READER, "65600/stat/x").await, Err(Errno::ENOTDIR));
    let stale = tree.getattr(READER, InodeNo(7), None).await;
    assert_eq!(stale.expect_err("not ours"), Errno::ESTALE);
}

impl ProcTree {
    async fn echo(&self, caller: Caller, text: &str, ino: InodeNo) -> Result<(), Errno> {
        let flags = OpenFlags(libc::O_WRONLY);
        let truncated = SetAttrRequest {
            size: Some(0),
            ..SetAttrRequest::default()
        };
        self.setattr(caller, ino, truncated).await?;
        let fh = self.open(caller, ino, flags).await?.fh;
        let data = Bytes::copy_from_slice(text.as_bytes());
        let written = self.write(caller, ino, fh, 0, data, flags, false, false);
        assert_eq!(written.await? as usize, text.len());
        self.release(ino, fh).await;
        Ok(())
    }
}

#[tokio::test]
async fn orders_reach_the_node_of_the_process() {
    let fake = Fake::new(2);
    fake.start(2, 131_080, 1, 10);
    let tree = fake.tree(1);
    let pid = ClusterPid::parse(b"131080").expect("a pid");
    let who = Who {
        uid: READER.uid,
        gid: READER.gid,
    };
    let signal = |number| {
        move |birth| ProcRequest::Signal {
            pid,
            birth,
            number,
            who,
        }
    };
    let check =
        async |name: &str, text: &str, expected: &dyn Fn(crate::wire::Birth) -> ProcRequest| {
            let file = tree.find(READER, &format!("131080/{name}")).await;
            let file = file.expect("there");
            let attr = tree.getattr(READER, file, None).await.expect("known").attr;
            assert_eq!(attr.mode, 0o222);
            assert_eq!(tree.content_of(READER, file).await, Err(Errno::EACCES));
            fake.asked(2);
            let answers = [Ok(()), Err(libc::EPERM), Err(libc::ESRCH)];
            for answer in answers {
                let lie = Some(ProcReply::Done(answer));
                *fake.node(2).spy.lie.lock().expect("free") = lie;
                let said = tree.echo(READER, text, file).await;
                assert_eq!(said, answer.map_err(Errno));
            }
            *fake.node(2).spy.lie.lock().expect("free") = None;
            let identity = fake.node(2).spy.agent.answer(ProcRequest::Identify(pid));
            let ProcReply::Identity(Some(identity)) = identity.await else {
                panic!("it lives");
            };
            assert_eq!(fake.asked(2), [(); 3].map(|()| expected(identity.birth)));
        };
    check("note", "TERM\n", &signal(15)).await;
    check("note", "0", &signal(0)).await;
    check("ctl", "stop", &signal(libc::SIGSTOP)).await;
    check("ctl", "start\n", &signal(libc::SIGCONT)).await;
    check("ctl", "kill", &signal(libc::SIGKILL)).await;
    check("notepg", "HUP", &|birth| ProcRequest::SignalGroup {
        group: pid,
        birth: Some(birth),
        number: libc::SIGHUP,
        who,
    })
    .await;
}

#[tokio::test]
async fn what_is_no_order_is_refused_at_once() {
    let fake = Fake::new(2);
    fake.start(2, 131_080, 1, 10);
    let tree = fake.tree(1);
    let long = "9".repeat(4096);
    for (name, text, expected) in [
        ("note", "", libc::EINVAL),
        ("note", "TERM KILL", libc::EINVAL),
        ("note", "-9", libc::EINVAL),
        ("note", "65", libc::EINVAL),
        ("note", &long, libc::EINVAL),
        ("notepg", "\0", libc::EINVAL),
        ("ctl", "", libc::EINVAL),
        ("ctl", "KILL", libc::EINVAL),
        ("ctl", "kill now", libc::EINVAL),
        ("ctl", "close 3", libc::EOPNOTSUPP),
    ] {
        let file = tree.find(READER, &format!("131080/{name}")).await;
        let file = file.expect("there");
        fake.asked(2);
        let said = tree.echo(READER, text, file).await;
        assert_eq!(said, Err(Errno(expected)), "{name} {text:?}");
        assert_eq!(fake.asked(2), []);
    }
    let file = tree.find(READER, "131080/note").await.expect("there");
    fake.net.cut(NodeId(2));
    let down = Err(Errno(libc::EHOSTDOWN));
    assert_eq!(tree.echo(READER, "TERM", file).await, down);
}

#[tokio::test]
async fn self_is_the_caller_whoever_caches_the_link() {
    let fake = Fake::new(1);
    fake.start(1, 65_600, 1, 10);
    fake.start(1, 3, 1, 10);
    let tree = fake.tree(1);
    let link = async |pid| tree.find(caller(pid), "self").await;
    let first = link(65_600).await.expect("there");
    let other = link(3).await.expect("there");
    assert_ne!(first, other);
    // Asked by the wrong one on purpose: the answer belongs to the inode.
    assert_eq!(
        tree.readlink(caller(3), first).await.expect("a link"),
        "65600"
    );
    assert_eq!(
        tree.readlink(READER, other).await.expect("a link"),
        "4194307"
    );
    assert_eq!(link(0).await, Err(Errno::ENOENT));
    assert_eq!(link(99).await, Err(Errno::ENOENT));
}

#[tokio::test]
async fn a_pid_given_out_again_is_another_process() {
    let fake = Fake::new(2);
    fake.start(2, 131_080, 1, 10);
    let tree = fake.tree(1);
    let dir = tree.find(READER, "131080").await.expect("there");
    let files = [
        tree.find(READER, "131080/stat").await.expect("there"),
        tree.find(READER, "131080/where").await.expect("there"),
    ];
    let opened = tree.open(READER, files[0], RDONLY).await.expect("opened");
    fake.end(2, 131_080);
    let check = async || {
        for file in files {
            assert_eq!(tree.content_of(READER, file).await, Err(Errno::ESRCH));
        }
        assert_eq!(tree.ls(READER, dir, 10).await, Err(Errno::ENOENT));
    };
    check().await;
    fake.start(2, 131_080, 1, 5000);
    check().await;
    let again = tree.find(READER, "131080").await.expect("there");
    assert_ne!(again, dir);
    assert_eq!(tree.cat(READER, "131080/where").await.expect("read"), "2\n");
    // Nor is what was open: it was that process.
    let reply = tree.read(READER, files[0], opened.fh, 0, 4096, RDONLY);
    assert_eq!(reply.await.expect_err("it has ended"), Errno::ESRCH);
}

/// A descriptor of its directory stands for it in `glush`.
#[tokio::test]
async fn a_process_keeps_its_inode_under_another_owner() {
    let fake = Fake::new(2);
    fake.start(2, 131_080, 1, 10);
    let tree = fake.tree(1);
    let owner = async || {
        tree.ls(READER, ProcTree::ROOT, 100).await.expect("listed");
        let ino = tree.find(READER, "131080").await.expect("there");
        let attr = tree.getattr(READER, ino, None).await.expect("there").attr;
        (ino, attr.uid)
    };
    let before = owner().await;
    let status = fake.node(2).proc.path().join("131080/status");
    let text = std::fs::read_to_string(&status).expect("read");
    let text = text.replace("Uid:\t0\t1000", "Uid:\t0\t77");
    std::fs::write(&status, text).expect("written");
    assert_eq!(before.1, 1000);
    assert_eq!(owner().await, (before.0, 77));
    // Who may read a file only as its owner is not kept waiting for long when he becomes that.
    for (file, ttl) in [
        ("", 1),
        ("/environ", 1),
        ("/io", 1),
        ("/stat", 10),
        ("/note", 10),
    ] {
        let ino = tree.find(READER, &format!("131080{file}")).await;
        let attr = tree.getattr(READER, ino.expect("there"), None).await;
        let kept = attr.expect("there").ttl;
        assert_eq!(kept, Duration::from_secs(ttl), "{file}");
    }
}

#[tokio::test]
async fn a_process_is_seen_and_missed_at_once() {
    let fake = Fake::new(2);
    let tree = fake.tree(1);
    assert_eq!(tree.find(READER, "131080").await, Err(Errno::ENOENT));
    fake.start(2, 131_080, 1, 10);
    tree.find(READER, "131080").await.expect("there");
    fake.end(2, 131_080);
    assert_eq!(tree.find(READER, "131080").await, Err(Errno::ENOENT));
    // One that has just listed finds what is younger than its snapshot, too.
    tree.ls(READER, ProcTree::ROOT, 100).await.expect("listed");
    fake.start(2, 131_081, 1, 10);
    tree.find(READER, "131081").await.expect("there");
    fake.end(2, 131_081);
    let again = tree.ls(READER, ProcTree::ROOT, 100).await.expect("listed");
    assert!(!again.contains(&"131081".into()));
}

#[tokio::test]
async fn thousands_of_processes_cost_one_round() {
    let fake = Fake::new(2);
    for pid in 0..2000 {
        fake.start(2, 131_072 + pid, 1, 10);
    }
    let tree = fake.tree(1);
    let names = tree.ls(READER, ProcTree::ROOT, 5000).await.expect("listed");
    assert_eq!(processes(names).len(), 2000);
    for pid in (131_072..133_072).step_by(100) {
        for file in ["where", "stat", "status", "cmdline", "comm"] {
            tree.cat(READER, &format!("{pid}/{file}"))
                .await
                .expect("read");
        }
    }
    let mut asked = fake.asked(2);
    assert!(asked.contains(&ProcRequest::Load));
    // Once more for each second that it takes.
    asked.retain(|request| *request != ProcRequest::Load);
    assert_eq!(asked, [ProcRequest::Snapshot { after: None }]);
    // Another reader has no part in that.
    tree.cat(caller(77), "131072/stat").await.expect("read");
    assert_eq!(fake.asked(2).len(), 2);
}

#[tokio::test]
async fn a_node_that_is_slow_is_waited_for_as_long_as_it_lives() {
    let fake = Fake::new(2);
    fake.start(2, 131_080, 1, 10);
    let tree = fake.tree(1);
    *fake.node(2).spy.slow.lock().expect("free") = LONG_DEADLINE + PATIENCE;
    let names = tree.ls(READER, ProcTree::ROOT, 100).await.expect("listed");
    assert_eq!(processes(names), ["131080"]);
    // One that falls silent meanwhile is not.
    *fake.node(2).spy.slow.lock().expect("free") = PAGE_DEADLINE;
    fake.asked(2);
    let cut = async {
        while !fake.asked(2).contains(&ProcRequest::Load) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(PATIENCE / 4).await;
        fake.net.cut(NodeId(2));
    };
    let begun = Instant::now();
    let (names, ()) = tokio::join!(tree.ls(READER, ProcTree::ROOT, 100), cut);
    assert!(begun.elapsed() < PAGE_DEADLINE / 2, "{:?}", begun.elapsed());
    let known = tree.cat(READER, "131080/stat").await.expect("known");
    assert!(known.contains(") D "), "{known}");
    assert_eq!(processes(names.expect("listed")), ["131080"]);
}

#[tokio::test]
async fn a_snapshot_is_not_served_when_it_is_old() {
    let fake = Fake::new(2);
    fake.start(2, 131_080, 1, 10);
    let tree = fake.tree_with(1, Duration::ZERO);
    tree.ls(READER, ProcTree::ROOT, 100).await.expect("listed");
    fake.asked(2);
    tree.cat(READER, "131080/stat").await.expect("read");
    let asked = fake.asked(2);
    assert!(
        matches!(
            asked[..],
            [ProcRequest::Identify(_), ProcRequest::Read { .. }]
        ),
        "{asked:?}"
    );
}

#[tokio::test]
async fn long_command_lines_come_in_pages_or_alone() {
    let fake = Fake::new(2);
    let cmdline = async |pid: i32, len: usize| {
        fake.start(2, pid, 1, 10);
        let path = fake
            .node(2)
            .proc
            .path()
            .join(pid.to_string())
            .join("cmdline");
        std::fs::write(path, "x".repeat(len)).expect("written");
    };
    for pid in 131_072..131_072 + 300 {
        cmdline(pid, 16 << 10).await;
    }
    cmdline(131_071 + 301, (16 << 10) + 1).await;
    let tree = fake.tree(1);
    let names = tree.ls(READER, ProcTree::ROOT, 5000).await.expect("listed");
    assert_eq!(processes(names).len(), 301);
    assert_eq!(fake.asked(2).len(), 3, "a load and two pages");
    let long = tree.cat(READER, "131372/cmdline").await.expect("read");
    assert_eq!(long.len(), (16 << 10) + 1);
    assert_eq!(fake.asked(2).len(), 1);
}

#[tokio::test]
async fn a_node_that_is_down_is_told_so_and_stands_for_its_processes() {
    let fake = Fake::new(3);
    fake.start(2, 131_080, 1, 10);
    fake.start(3, 196_700, 1, 10);
    let tree = fake.tree(1);
    let lost = tree.find(READER, "196700/stat").await.expect("there");
    fake.net.cut(NodeId(3));
    let begun = Instant::now();
    let names = tree
        .ls(caller(9), ProcTree::ROOT, 100)
        .await
        .expect("listed");
    assert!(begun.elapsed() < PATIENCE_AND_MORE, "{:?}", begun.elapsed());
    assert_eq!(processes(names), ["131080", "16777215"]);
    let down = Errno(libc::EHOSTDOWN);
    // It may live.
    assert_eq!(tree.find(READER, "196700").await, Err(down));
    for reader in [caller(9), READER] {
        let stand_in = async |file| tree.cat(reader, &format!("16777215/{file}")).await;
        let stat = stand_in("stat").await.expect("read");
        assert!(
            stat.starts_with("16777215 (node3-silent) D 0 0 0 0 -1 0 "),
            "{stat}"
        );
        assert_eq!(stat.split_whitespace().count(), 52, "{stat}");
        let status = stand_in("status").await.expect("read");
        assert!(
            status.contains("\nState:\tD (its node does not answer)\n"),
            "{status}"
        );
        assert_eq!(stand_in("cmdline").await.expect("read"), "");
        for file in ["statm", "where", "environ"] {
            assert_eq!(stand_in(file).await, Err(down), "{file}");
        }
    }
    assert_eq!(tree.content_of(READER, lost).await, Err(down));
    let cat = async |path| tree.cat(READER, path).await;
    assert_eq!(
        cat("cluster/nodes").await.expect("read"),
        "1 up\n2 up\n3 down\n"
    );
    assert_eq!(cat("cluster/node3/state").await.expect("read"), "down\n");
    assert_eq!(cat("cluster/node2/state").await.expect("read"), "up\n");
    assert_eq!(cat("cluster/node3/load").await, Err(down));
    let drain = Box::new(|| [NodeId(2), NodeId(3)].into());
    let drains = fake.tree(1).with_draining(drain);
    let states = drains.cat(READER, "cluster/nodes").await.expect("read");
    assert_eq!(states, "1 up\n2 drain\n3 down\n");
    let state = drains.cat(READER, "cluster/node2/state").await;
    assert_eq!(state.expect("read"), "drain\n");
    assert_eq!(cat("cluster/node3/metrics").await, Err(down));
    assert_eq!(cat("cluster/node2/metrics").await.expect("read"), "of 2");
    let load = cat("cluster/node2/load").await.expect("read");
    assert!(
        load.trim_end().parse::<u64>().expect("a number") > 0,
        "{load}"
    );
    fake.net.heal(NodeId(3));
    assert!(tree.content_of(READER, lost).await.is_ok());
    assert_eq!(
        cat("cluster/nodes").await.expect("read"),
        "1 up\n2 up\n3 up\n"
    );
}

#[tokio::test]
async fn events_wake_who_polls_them() {
    let fake = Fake::new(1);
    fake.start(1, 65_600, 1, 10);
    let tree = fake.tree(1);
    let open = async |path| {
        let ino = tree.find(READER, path).await.expect("there");
        let opened = tree.open(READER, ino, RDONLY).await.expect("opened");
        (ino, opened.fh)
    };
    let (stat, fh) = open("65600/stat").await;
    assert_eq!(tree.poll(stat, fh, None).await, Ok(READY));
    let (events, fh) = open("cluster/events").await;
    let (sender, mut woken) = tokio::sync::mpsc::unbounded_channel();
    let wake = || {
        let sender = sender.clone();
        Some(Wake::new(move || {
            let _gone = sender.send(());
        }))
    };
    assert_eq!(tree.poll(events, fh, None).await, Ok(0));
    // Two who wait for one open file are woken by one.
    assert_eq!(tree.poll(events, fh, wake()).await, Ok(0));
    assert_eq!(tree.poll(events, fh, wake()).await, Ok(0));
    tree.events().tell("node 1 up");
    woken.recv().await.expect("woken");
    assert_eq!(tree.poll(events, fh, wake()).await, Ok(READABLE));
    let flags = OpenFlags(libc::O_NONBLOCK);
    let read = async |size| tree.read(READER, events, fh, 0, size, flags).await;
    read(3).await.expect("a part of it");
    assert_eq!(tree.poll(events, fh, wake()).await, Ok(READABLE));
    read(100).await.expect("the rest");
    assert_eq!(read(100).await.map(drop), Err(Errno(libc::EAGAIN)));
    // Anew, until it is closed.
    assert_eq!(tree.poll(events, fh, wake()).await, Ok(0));
    tree.events().tell("node 1 down");
    woken.recv().await.expect("woken again");
    read(100).await.expect("a line");
    assert_eq!(tree.poll(events, fh, wake()).await, Ok(0));
    tree.release(events, fh).await;
    drop(sender);
    assert_eq!(woken.recv().await, None, "nobody is left who would wake");
}

#[tokio::test]
async fn starts_are_counted_from_the_boot_of_the_first_node() {
    let fake = Fake::new(3);
    fake.up_for(1, 1000);
    fake.up_for(2, 400);
    // Node 3 does not say.
    let pids = [(1, 65_600), (2, 131_080), (3, 196_700)];
    for (node, pid) in pids {
        fake.start(node, pid, 1, 5000);
    }
    let tree = fake.tree(1);
    for (pid, expected) in [(65_600, 5000), (131_080, 65_000), (196_700, 5000)] {
        let stat = tree.cat(READER, &format!("{pid}/stat")).await;
        let stat = stat.expect("read");
        let start = crate::text::start_ticks(stat.as_bytes());
        assert_eq!(start, Some(expected), "{stat}");
    }
    // In a listing, too; and nobody is asked again.
    let uptime = ProcRequest::Machine(MachineFile::Uptime);
    let asked = |node| {
        let asked = fake.node(node).spy.asked.lock().expect("free");
        asked.iter().filter(|request| **request == uptime).count()
    };
    let before = asked(2);
    tree.ls(READER, ProcTree::ROOT, 100).await.expect("listed");
    let stat = tree.cat(READER, "131080/stat").await.expect("read");
    assert_eq!(crate::text::start_ticks(stat.as_bytes()), Some(65_000));
    assert_eq!(asked(2), before);
}

const PATIENCE_AND_MORE: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_node_speaks_for_its_own_processes_only() {
    let fake = Fake::new(2);
    fake.start(1, 65_600, 1, 10);
    let tree = fake.tree(1);
    let lie = |reply| *fake.node(2).spy.lie.lock().expect("free") = Some(reply);
    let pid = ClusterPid::parse(b"65600").expect("a pid");
    let identity = Identity {
        pid,
        birth: crate::wire::Birth(10),
        uid: 0,
        gid: 0,
        hidden: None,
    };
    let record = Record {
        identity,
        stat: Bytes::new(),
        status: Bytes::new(),
        cmdline: None,
    };
    for reply in [
        ProcReply::Snapshot {
            records: vec![record],
            more: true,
        },
        ProcReply::Identity(Some(identity)),
        ProcReply::Failed,
    ] {
        lie(reply);
        let names = tree.ls(READER, ProcTree::ROOT, 100).await.expect("listed");
        // What it says is no answer.
        assert_eq!(processes(names), ["65600", "12582911"]);
        assert!(tree.find(READER, "131080").await.is_err());
        assert!(
            tree.cat(READER, "65600/stat")
                .await
                .expect("read")
                .starts_with("65600 ")
        );
    }
}

#[tokio::test]
async fn a_process_whose_memory_cannot_be_read_holds_nobody_up() {
    let fake = Fake::new(2);
    fake.start(2, 131_080, 1, 10);
    fake.start(2, 131_081, 1, 10);
    // Opening a pipe waits for its writer, as reading memory waits for a page.
    let cmdline = fake.node(2).proc.path().join("131080/cmdline");
    std::fs::remove_file(&cmdline).expect("removed");
    nix::unistd::mkfifo(&cmdline, nix::sys::stat::Mode::S_IRWXU).expect("made");
    let tree = fake.tree(1);
    for _ in 0..3 {
        let names = tree.ls(READER, ProcTree::ROOT, 100).await.expect("listed");
        assert_eq!(processes(names), ["131080", "131081"]);
        let cat = async |path| tree.cat(READER, path).await;
        assert!(cat("131080/stat").await.is_ok());
        assert_eq!(
            cat("131081/cmdline").await.expect("read"),
            "sleep\x00131081\x00"
        );
        assert_eq!(cat("131080/cmdline").await, Err(Errno::EIO));
    }
    // Now the page comes.
    let writer = std::fs::File::options()
        .write(true)
        .open(&cmdline)
        .expect("a reader waits");
    drop(writer);
    std::fs::remove_file(&cmdline).expect("removed");
    std::fs::write(&cmdline, "late").expect("written");
    let begun = Instant::now();
    while tree.cat(caller(7), "131080/cmdline").await != Ok("late".into()) {
        assert!(begun.elapsed() < Duration::from_secs(10), "still stuck");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_is_no_request_is_refused() {
    let fake = Fake::new(1);
    let agent = &fake.node(1).spy.agent;
    for body in [&b""[..], &[9], &[1, 1], &[3, 0]] {
        let reply = agent.call(NodeId(2), Bytes::copy_from_slice(body)).await;
        assert_eq!(reply, None, "{body:?}");
    }
    // A process of another node is nobody here.
    let other = ClusterPid::parse(b"131080").expect("a pid");
    fake.start(1, 131_080, 1, 10);
    let reply = agent.answer(ProcRequest::Identify(other)).await;
    assert_eq!(reply, ProcReply::Identity(None));
}

#[tokio::test]
async fn readers_at_once_share_scans() {
    let fake = Fake::new(1);
    fake.start(1, 65_600, 1, 10);
    let agent = &fake.node(1).spy.agent;
    let (a, b, c) = tokio::join!(agent.processes(), agent.processes(), agent.processes());
    let [a, b, c] = [a, b, c].map(|records| records.expect("read"));
    // The first scan may or may not have begun after the others came, the second one has.
    assert!(Arc::ptr_eq(&b, &c) || Arc::ptr_eq(&a, &b));
    let later = agent.processes().await.expect("read");
    assert!(!Arc::ptr_eq(&c, &later));
}

#[tokio::test]
async fn the_real_procfs() {
    let agent = ProcAgent::new(NodeId(1), "/proc");
    let own = agent
        .process_of(std::process::id())
        .await
        .expect("this process");
    let records = agent.processes().await.expect("read");
    let begun = Instant::now();
    let records_again = agent.processes().await.expect("read");
    println!(
        "{} processes read in {:?}",
        records_again.len(),
        begun.elapsed()
    );
    let record = records.iter().find(|record| record.identity.pid == own);
    let record = record.expect("listed");
    let again = agent.answer(ProcRequest::Identify(own)).await;
    assert_eq!(again, ProcReply::Identity(Some(record.identity)));
    let stat = String::from_utf8(record.stat.to_vec()).expect("text");
    assert!(stat.starts_with(&format!("{own} (")), "{stat}");
    let status = String::from_utf8(record.status.to_vec()).expect("text");
    assert!(status.contains(&format!("\nPid:\t{own}\n")), "{status}");
}

mod files;
mod kernel;
mod waits;
