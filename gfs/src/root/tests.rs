use super::*;
use crate::tree::{FileAt, Hold, NO_CACHE, NewMode, OpenFlags, Opened, ReadReply};
use async_trait::async_trait;
use consistency::wire::meta::{NewNode, RenameMode};
use std::sync::Mutex;

const CALLER: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 1,
};

/// A tree that knows every name and tells what it was asked.
struct Fake {
    label: &'static str,
    log: Arc<Mutex<Vec<String>>>,
    /// Names in its root.
    names: Vec<&'static str>,
}

impl Fake {
    fn asked(&self, what: String) {
        let mut log = self.log.lock().expect("no test panics under it");
        log.push(format!("{} {what}", self.label));
    }

    fn attr(ino: InodeNo) -> Attr {
        Attr {
            ino,
            kind: FileKind::Dir,
            mode: 0o755,
            nlink: 2,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            blocks: 0,
            atime: Timestamp::default(),
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            btime: Timestamp::default(),
            version: Version(1),
        }
    }

    fn entry(ino: InodeNo) -> EntryReply {
        EntryReply {
            attr: Some(Self::attr(ino)),
            ttl: NO_CACHE,
            attr_ttl: NO_CACHE,
            hold: Hold::none(),
        }
    }
}

#[async_trait]
impl Tree for Fake {
    async fn lookup(&self, _: Caller, parent: InodeNo, name: &Name) -> Result<EntryReply, Errno> {
        self.asked(format!("lookup {name:?}"));
        Ok(Self::entry(InodeNo(parent.0 + 100)))
    }

    fn forget(&self, ino: InodeNo, count: u64) {
        self.asked(format!("forget {} {count}", ino.0 & 0xffff));
    }

    async fn getattr(&self, _: Caller, ino: InodeNo, _: Option<u64>) -> Result<AttrReply, Errno> {
        Ok(AttrReply {
            attr: Self::attr(ino),
            ttl: NO_CACHE,
            hold: Hold::none(),
        })
    }

    async fn make(
        &self,
        _: Caller,
        _: InodeNo,
        name: &Name,
        _: NewNode,
        _: NewMode,
    ) -> Result<EntryReply, Errno> {
        self.asked(format!("make {name:?}"));
        Ok(Self::entry(InodeNo(200)))
    }

    async fn unlink(&self, _: Caller, _: InodeNo, name: &Name, _: bool) -> Result<(), Errno> {
        self.asked(format!("unlink {name:?}"));
        Ok(())
    }

    async fn rename(
        &self,
        _: Caller,
        _: InodeNo,
        name: &Name,
        _: InodeNo,
        new_name: &Name,
        _: RenameMode,
    ) -> Result<(), Errno> {
        self.asked(format!("rename {name:?} {new_name:?}"));
        Ok(())
    }

    async fn link(
        &self,
        _: Caller,
        _: InodeNo,
        _: InodeNo,
        name: &Name,
    ) -> Result<EntryReply, Errno> {
        self.asked(format!("link {name:?}"));
        Ok(Self::entry(InodeNo(200)))
    }

    async fn open(&self, _: Caller, _: InodeNo, _: OpenFlags) -> Result<Opened, Errno> {
        self.asked("open".to_owned());
        Ok(Opened::default())
    }

    async fn read(
        &self,
        _: Caller,
        _: InodeNo,
        _: u64,
        _: u64,
        _: u32,
        _: OpenFlags,
    ) -> Result<ReadReply, Errno> {
        Err(Errno::EIO)
    }

    async fn readdir(
        &self,
        _: Caller,
        ino: InodeNo,
        after: u64,
        limit: usize,
        plus: bool,
    ) -> Result<ListReply, Errno> {
        let skip = usize::try_from(after.saturating_sub(2)).expect("a small cookie");
        let entries = (3..).zip(&self.names).skip(skip).take(limit);
        Ok(ListReply {
            parent: Some(ino),
            entries: entries
                .map(|(cookie, listed)| ListEntry {
                    name: name(listed),
                    ino: InodeNo(cookie),
                    kind: FileKind::File,
                    cookie,
                    entry: plus.then(|| Self::entry(InodeNo(cookie))),
                })
                .collect(),
        })
    }
}

fn name(name: &str) -> Name {
    Name::new(name.to_owned()).expect("tests use good names")
}

fn dev_root(node: NodeId) -> InodeNo {
    InodeNo(DEV_BASE | u64::from(node.0) << 40)
}

/// A root with files `a`, `proc`, `b`, `node2`, `c`, a process tree, and nodes 2 and 10 with devices.
fn root() -> (Root, Arc<Mutex<Vec<String>>>) {
    let log = Arc::new(Mutex::new(Vec::new()));
    let tree = |label, names: &[&'static str]| {
        Arc::new(Fake {
            label,
            log: Arc::clone(&log),
            names: names.to_vec(),
        })
    };
    let root = Root::new(tree("files", &["a", "proc", "b", "node2", "c"]))
        .with(name("proc"), tree("proc", &["1"]), InodeNo(PROC_BASE))
        .with_nodes(|| vec![NodeId(10), NodeId(2)])
        .with_per_node(name("dev"), tree("dev", &["null"]), dev_root);
    (root, log)
}

/// Waits for a future on this thread.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().build().expect("a runtime");
    runtime.block_on(future)
}

/// What the files are asked for the rights of a node.
fn rights(node: &str) -> [String; 6] {
    [
        "files lookup \".glu\"".into(),
        "files lookup \"nodes\"".into(),
        "files forget 101 1".into(),
        format!("files lookup {node:?}"),
        "files forget 201 1".into(),
        "files forget 301 1".into(),
    ]
}

/// Runs an operation and returns what the trees were asked.
fn asked<T>(run: impl AsyncFnOnce(&Root) -> T) -> (T, Vec<String>) {
    let (root, log) = root();
    let result = block_on(run(&root));
    let log = std::mem::take(&mut *log.lock().expect("no test panics under it"));
    (result, log)
}

fn found(entry: Result<EntryReply, Errno>) -> Result<u64, Errno> {
    entry.map(|entry| entry.attr.map_or(0, |attr| attr.ino.0))
}

#[test]
fn names_lead_to_their_trees() {
    let check = |parent: u64, wanted: &str, expected: Result<u64, Errno>, tree: &[String]| {
        let (result, log) =
            asked(async |root| found(root.lookup(CALLER, InodeNo(parent), &name(wanted)).await));
        assert_eq!(result, expected, "{wanted}");
        assert_eq!(log, tree, "{wanted}");
    };
    let dev2 = dev_root(NodeId(2)).0;
    check(1, "a", Ok(101), &["files lookup \"a\"".into()]);
    check(1, "proc", Ok(PROC_BASE), &[]);
    check(1, "node2", Ok(JOINT_BASE + 2), &rights("node2"));
    check(1, "node10", Ok(JOINT_BASE + 10), &rights("node10"));
    check(JOINT_BASE + 2, "dev", Ok(dev2), &[]);
    check(JOINT_BASE + 2, "other", Err(Errno::ENOENT), &[]);
    // Reserved, but nobody is there.
    check(1, "node3", Err(Errno::ENOENT), &[]);
    // Not reserved.
    for free in ["node", "node0", "node02", "node10000", "nodeX", "node+2"] {
        let ask = format!("files lookup {free:?}");
        check(1, free, Ok(101), &[ask]);
    }
    // Reserved in the root alone.
    check(50, "proc", Ok(150), &["files lookup \"proc\"".into()]);
    check(
        PROC_BASE,
        "proc",
        Ok(PROC_BASE + 100),
        &["proc lookup \"proc\"".into()],
    );
    check(dev2, "x", Ok(dev2 + 100), &["dev lookup \"x\"".into()]);
    // Numbers that no tree has.
    check(7 << 60, "x", Err(Errno::ESTALE), &[]);
}

#[test]
fn lookups_go_back_to_who_counted_them() {
    let (_, log) = asked(async |root| {
        let dev = dev_root(NodeId(2));
        let joint = InodeNo(JOINT_BASE + 2);
        drop(root.lookup(CALLER, joint, &name("dev")).await);
        for ino in [InodeNo(PROC_BASE), dev, joint] {
            root.forget(ino, 1);
        }
        root.forget(InodeNo(5), 2);
        root.forget(InodeNo(PROC_BASE + 6), 3);
        root.forget(InodeNo(dev.0 + 7), 4);
    });
    assert_eq!(
        log,
        ["files forget 5 2", "proc forget 6 3", "dev forget 7 4"]
    );
}

#[test]
fn reserved_names_can_neither_be_made_nor_taken() {
    let check = |wanted: &str, make: i32, take: i32| {
        let wanted = name(wanted);
        let ((made, taken, moved, replaced), log) = asked(async |root| {
            let free = name("free");
            let top = InodeNo::ROOT;
            let replace = RenameMode::Replace;
            (
                root.make(CALLER, top, &wanted, NewNode::Dir, NewMode::exactly(0o755))
                    .await
                    .map(drop),
                root.unlink(CALLER, top, &wanted, true).await,
                root.rename(CALLER, top, &wanted, top, &free, replace).await,
                root.rename(CALLER, top, &free, top, &wanted, replace).await,
            )
        });
        assert_eq!(made, Err(Errno(make)), "make {wanted:?}");
        assert_eq!(taken, Err(Errno(take)), "unlink {wanted:?}");
        assert_eq!(moved, Err(Errno(take)), "rename {wanted:?}");
        assert!(replaced.is_err(), "rename to {wanted:?}");
        assert!(log.is_empty(), "{log:?}");
    };
    check("proc", libc::EEXIST, libc::EBUSY);
    check("node2", libc::EEXIST, libc::EBUSY);
    check("node3", libc::EPERM, libc::ENOENT);
}

#[test]
fn nothing_is_linked_moved_or_shared_from_tree_to_tree() {
    let ((linked, moved, copied, inside), log) = asked(async |root| {
        let (proc, x, replace) = (InodeNo(PROC_BASE), name("x"), RenameMode::Replace);
        let top = InodeNo::ROOT;
        let at = |ino| FileAt {
            ino,
            handle: 1,
            offset: 0,
        };
        (
            root.link(CALLER, InodeNo(9), proc, &x).await.map(drop),
            root.rename(CALLER, top, &x, proc, &x, replace).await,
            root.copy_file_range(CALLER, at(proc), at(InodeNo(9)), 1)
                .await,
            root.rename(CALLER, top, &x, InodeNo(9), &x, replace).await,
        )
    });
    assert_eq!(linked, Err(Errno::EXDEV));
    assert_eq!(moved, Err(Errno::EXDEV));
    assert_eq!(copied, Err(Errno::EXDEV));
    assert_eq!(inside, Ok(()));
    assert_eq!(log, ["files rename \"x\" \"x\""]);
}

#[test]
fn joints_cannot_be_changed() {
    let ((made, opened), log) = asked(async |root| {
        let joint = InodeNo(JOINT_BASE + 2);
        let x = name("x");
        let made = root.make(CALLER, joint, &x, NewNode::Dir, NewMode::exactly(0o755));
        (
            made.await.map(drop),
            root.open(CALLER, joint, OpenFlags(0)).await.map(drop),
        )
    });
    assert_eq!((made, opened), (Err(Errno::EPERM), Err(Errno::EPERM)));
    assert!(log.is_empty());
}

/// Lists a directory in pages of `limit` names.
async fn list(root: &Root, ino: InodeNo, limit: usize) -> (Vec<String>, Option<InodeNo>) {
    let (mut names, mut after) = (Vec::new(), 0);
    loop {
        let page = root
            .readdir(CALLER, ino, after, limit, true)
            .await
            .expect("a directory");
        let Some(last) = page.entries.last() else {
            return (names, page.parent);
        };
        assert!(last.cookie > after, "cookies go up");
        assert!(page.entries.len() <= limit, "a page has its limit");
        after = last.cookie;
        let text = |entry: &ListEntry| String::from_utf8_lossy(entry.name.as_bytes()).into_owned();
        names.extend(page.entries.iter().map(text));
    }
}

#[test]
fn listings_show_what_is_there_in_pages_of_any_size() {
    for limit in [1, 2, 3, 100] {
        let ((top, node, proc), mut log) = asked(async |root| {
            (
                list(root, InodeNo::ROOT, limit).await,
                list(root, InodeNo(JOINT_BASE + 2), limit).await,
                list(root, InodeNo(PROC_BASE), limit).await,
            )
        });
        let expected = ["a", "b", "c", "proc", "node2", "node10"].map(str::to_owned);
        assert_eq!(top.0, expected, "limit {limit}");
        assert_eq!(node, (vec!["dev".to_owned()], Some(InodeNo::ROOT)));
        assert_eq!(proc, (vec!["1".to_owned()], Some(InodeNo::ROOT)));
        // Hidden files go back to the files, as often as they were listed.
        log.dedup();
        assert_eq!(log, ["files forget 4 1", "files forget 6 1"]);
    }
}

#[test]
fn a_branch_lies_in_its_joint() {
    let ((_, parent), _) = asked(async |root| {
        let joint = InodeNo(JOINT_BASE + 10);
        drop(root.lookup(CALLER, joint, &name("dev")).await);
        list(root, dev_root(NodeId(10)), 9).await
    });
    assert_eq!(parent, Some(InodeNo(JOINT_BASE + 10)));
}

#[test]
#[should_panic(expected = "reserved once")]
fn a_name_is_given_once() {
    let (root, log) = root();
    let tree = Fake {
        label: "again",
        log,
        names: Vec::new(),
    };
    drop(root.with(name("proc"), Arc::new(tree), InodeNo(PROC_BASE)));
}
