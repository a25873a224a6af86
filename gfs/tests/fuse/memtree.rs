//! A tree in memory that counts what it is asked and can be told to wait.

use async_trait::async_trait;
use bytes::Bytes;
use consistency::wire::meta::{Attr, FileKind, Name, NewNode, RenameMode, StatFs, XattrMode};
use consistency::{InodeNo, Timestamp, Version};
use gfs::error::Errno;
use gfs::tree::*;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::watch;

/// The one file whose number lies in the process tree.
pub const STREAM: InodeNo = InodeNo(PROC_BASE + 5);

#[derive(Default)]
pub struct MemTree {
    state: Mutex<State>,
    blocked: watch::Sender<HashSet<&'static str>>,
    /// Made for each GETATTR reply.
    pub hold: Mutex<Option<Box<dyn Fn() -> Hold + Send + Sync>>>,
}

#[derive(Default)]
struct State {
    nodes: HashMap<InodeNo, Node>,
    last: u64,
    /// How often each operation began, ended, and was dropped.
    began: HashMap<&'static str, usize>,
    ended: HashMap<&'static str, usize>,
    dropped: HashMap<&'static str, usize>,
    lookups: HashMap<InodeNo, u64>,
    open: i64,
    /// Locks that were set: by flock or not, kind, waiting or not.
    locks: Vec<(bool, i32, bool)>,
    direct_io: bool,
}

struct Node {
    attr: Attr,
    parent: InodeNo,
    names: BTreeMap<Name, InodeNo>,
    data: Vec<u8>,
    target: Bytes,
    xattrs: BTreeMap<Name, Bytes>,
}

fn node(ino: InodeNo, parent: InodeNo, kind: FileKind, mode: u32, caller: Caller) -> Node {
    let now = Timestamp {
        secs: 1_700_000_000,
        nanos: 5,
    };
    Node {
        attr: Attr {
            ino,
            kind,
            mode,
            nlink: if kind == FileKind::Dir { 2 } else { 1 },
            uid: caller.uid,
            gid: caller.gid,
            rdev: 0,
            size: 0,
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            version: Version(1),
        },
        parent,
        names: BTreeMap::new(),
        data: Vec::new(),
        target: Bytes::new(),
        xattrs: BTreeMap::new(),
    }
}

const NOBODY: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 0,
};

pub fn name(name: &str) -> Name {
    Name::new(name.to_owned()).expect("tests use good names")
}

impl State {
    fn node(&mut self, ino: InodeNo) -> Result<&mut Node, Errno> {
        self.nodes.get_mut(&ino).ok_or(Errno::ESTALE)
    }

    fn find(&mut self, parent: InodeNo, name: &Name) -> Result<InodeNo, Errno> {
        let found = self.node(parent)?.names.get(name).copied();
        found.ok_or(Errno::ENOENT)
    }

    fn entry(&mut self, ino: InodeNo) -> Result<EntryReply, Errno> {
        *self.lookups.entry(ino).or_default() += 1;
        Ok(EntryReply {
            attr: Some(self.node(ino)?.attr.clone()),
            ttl: CACHE,
            attr_ttl: NO_CACHE,
            hold: Hold::none(),
        })
    }

    fn add(&mut self, parent: InodeNo, name: &Name, node: Node) -> Result<InodeNo, Errno> {
        if self.find(parent, name).is_ok() {
            return Err(Errno(libc::EEXIST));
        }
        let ino = node.attr.ino;
        self.node(parent)?.names.insert(name.clone(), ino);
        self.nodes.insert(ino, node);
        Ok(ino)
    }

    fn put(&mut self, file: &str, content: &[u8]) -> InodeNo {
        let known = self.find(InodeNo::ROOT, &name(file));
        let ino = known.unwrap_or_else(|_| {
            let ino = self.next();
            let new = node(ino, InodeNo::ROOT, FileKind::File, 0o644, NOBODY);
            self.add(InodeNo::ROOT, &name(file), new)
                .expect("the name is free")
        });
        let node = self.node(ino).expect("just found");
        node.data = content.to_vec();
        node.attr.size = content.len() as u64;
        ino
    }

    fn next(&mut self) -> InodeNo {
        self.last += 1;
        InodeNo(self.last)
    }
}

/// Counts an operation that is dropped before its end.
struct Running<'a>(&'a MemTree, &'static str);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        *self.0.state().dropped.entry(self.1).or_default() += 1;
    }
}

impl MemTree {
    pub fn new() -> Arc<Self> {
        let tree = Self::default();
        {
            let mut state = tree.state();
            state.last = 1;
            let root = node(InodeNo::ROOT, InodeNo::ROOT, FileKind::Dir, 0o755, NOBODY);
            state.nodes.insert(InodeNo::ROOT, root);
            let mut stream = node(STREAM, InodeNo::ROOT, FileKind::File, 0o644, NOBODY);
            stream.attr.size = 1 << 20;
            state
                .add(InodeNo::ROOT, &name("stream"), stream)
                .expect("an empty tree has room");
        }
        Arc::new(tree)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Makes every `operation` wait until [`MemTree::unblock`].
    pub fn block(&self, operation: &'static str) {
        self.blocked.send_modify(|blocked| {
            blocked.insert(operation);
        });
    }

    pub fn unblock(&self, operation: &'static str) {
        self.blocked.send_modify(|blocked| {
            blocked.remove(operation);
        });
    }

    pub fn began(&self, operation: &str) -> usize {
        self.state().began.get(operation).copied().unwrap_or(0)
    }

    pub fn ended(&self, operation: &str) -> usize {
        self.state().ended.get(operation).copied().unwrap_or(0)
    }

    pub fn dropped(&self, operation: &str) -> usize {
        self.state().dropped.get(operation).copied().unwrap_or(0)
    }

    pub fn lookups(&self, ino: InodeNo) -> u64 {
        self.state().lookups.get(&ino).copied().unwrap_or(0)
    }

    /// Files that are open, as far as the tree knows.
    pub fn open_files(&self) -> i64 {
        self.state().open
    }

    /// Locks that were set or released: whether by flock(2), their kind, whether they wait.
    pub fn locks(&self) -> Vec<(bool, i32, bool)> {
        self.state().locks.clone()
    }

    /// Makes opens DIRECT_IO.
    pub fn direct_io(&self, on: bool) {
        self.state().direct_io = on;
    }

    /// Makes a file behind the kernel's back, as another node would.
    pub fn put(&self, file: &str, content: &[u8]) -> InodeNo {
        self.state().put(file, content)
    }

    /// Makes a file anew as [`Self::put`] does, unless a READ began since there were so many, all of them answered.
    pub fn put_unless_read(&self, file: &str, content: &[u8], reads: usize) -> bool {
        let mut state = self.state();
        let count = |counts: &HashMap<_, usize>| counts.get("read").copied().unwrap_or(0);
        let quiet = count(&state.began) == reads && count(&state.ended) == reads;
        if quiet {
            state.put(file, content);
        }
        quiet
    }

    async fn run<T>(
        &self,
        operation: &'static str,
        then: impl FnOnce(&mut State) -> Result<T, Errno> + Send,
    ) -> Result<T, Errno> {
        *self.state().began.entry(operation).or_default() += 1;
        let running = Running(self, operation);
        let mut blocked = self.blocked.subscribe();
        let free = blocked.wait_for(|blocked| !blocked.contains(operation));
        drop(free.await);
        std::mem::forget(running);
        let mut state = self.state();
        *state.ended.entry(operation).or_default() += 1;
        then(&mut state)
    }
}

#[async_trait]
impl Tree for MemTree {
    async fn lookup(&self, _: Caller, parent: InodeNo, name: &Name) -> Result<EntryReply, Errno> {
        self.run("lookup", |state| {
            assert_ne!(name.as_bytes(), b"panic", "asked for by a test");
            match state.find(parent, name) {
                Ok(ino) => state.entry(ino),
                // Names that begin so are absent without the right to remember it.
                Err(_) if name.as_bytes().starts_with(b"volatile") => Ok(EntryReply {
                    attr: None,
                    ttl: NO_CACHE,
                    attr_ttl: NO_CACHE,
                    hold: Hold::none(),
                }),
                Err(_) => Ok(EntryReply {
                    attr: None,
                    ttl: CACHE,
                    attr_ttl: NO_CACHE,
                    hold: Hold::none(),
                }),
            }
        })
        .await
    }

    fn forget(&self, ino: InodeNo, count: u64) {
        let mut state = self.state();
        let known = state.lookups.entry(ino).or_default();
        *known = known
            .checked_sub(count)
            .expect("no lookup is taken back twice");
    }

    async fn getattr(&self, _: Caller, ino: InodeNo, _: Option<u64>) -> Result<AttrReply, Errno> {
        let hold = self
            .hold
            .lock()
            .expect("no test panics under it")
            .as_ref()
            .map(|make| make());
        self.run("getattr", |state| {
            Ok(AttrReply {
                attr: state.node(ino)?.attr.clone(),
                ttl: CACHE,
                hold: hold.unwrap_or_default(),
            })
        })
        .await
    }

    async fn setattr(
        &self,
        _: Caller,
        ino: InodeNo,
        set: SetAttrRequest,
    ) -> Result<AttrReply, Errno> {
        self.run("setattr", |state| {
            let now = state.node(InodeNo::ROOT)?.attr.atime;
            let node = state.node(ino)?;
            let attr = &mut node.attr;
            attr.mode = set.mode.unwrap_or(attr.mode);
            attr.uid = set.uid.unwrap_or(attr.uid);
            attr.gid = set.gid.unwrap_or(attr.gid);
            if let Some(size) = set.size {
                node.data
                    .resize(usize::try_from(size).map_err(|_| Errno(libc::EFBIG))?, 0);
                attr.size = size;
            }
            let time = |time| match time {
                TimeOrNow::Now => now,
                TimeOrNow::At(at) => at,
            };
            attr.atime = set.atime.map_or(attr.atime, time);
            attr.mtime = set.mtime.map_or(attr.mtime, time);
            Ok(AttrReply {
                attr: attr.clone(),
                ttl: CACHE,
                hold: Hold::none(),
            })
        })
        .await
    }

    async fn readlink(&self, _: Caller, ino: InodeNo) -> Result<Bytes, Errno> {
        self.run("readlink", |state| Ok(state.node(ino)?.target.clone()))
            .await
    }

    async fn make(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: &Name,
        new: NewNode,
        mode: NewMode,
    ) -> Result<EntryReply, Errno> {
        self.run("make", |state| {
            let kind = match &new {
                NewNode::File => FileKind::File,
                NewNode::Dir => FileKind::Dir,
                NewNode::Symlink(_) => FileKind::Symlink,
                NewNode::Special { kind, .. } => *kind,
            };
            let mut node = node(state.next(), parent, kind, mode.masked(), caller);
            match new {
                NewNode::Symlink(target) => {
                    node.attr.size = target.len() as u64;
                    node.target = target;
                }
                NewNode::Special { rdev, .. } => node.attr.rdev = rdev,
                NewNode::File | NewNode::Dir => {}
            }
            let ino = state.add(parent, name, node)?;
            state.entry(ino)
        })
        .await
    }

    async fn create(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: &Name,
        mode: NewMode,
        _: OpenFlags,
    ) -> Result<(EntryReply, Opened), Errno> {
        self.run("create", |state| {
            let new = node(state.next(), parent, FileKind::File, mode.masked(), caller);
            let ino = state.add(parent, name, new)?;
            state.open += 1;
            let opened = Opened {
                fh: ino.0,
                keep_cache: true,
                direct_io: state.direct_io,
                ..Opened::default()
            };
            Ok((state.entry(ino)?, opened))
        })
        .await
    }

    async fn link(
        &self,
        _: Caller,
        ino: InodeNo,
        parent: InodeNo,
        name: &Name,
    ) -> Result<EntryReply, Errno> {
        self.run("link", |state| {
            state.node(parent)?.names.insert(name.clone(), ino);
            state.node(ino)?.attr.nlink += 1;
            state.entry(ino)
        })
        .await
    }

    async fn unlink(
        &self,
        _: Caller,
        parent: InodeNo,
        name: &Name,
        dir: bool,
    ) -> Result<(), Errno> {
        self.run("unlink", |state| {
            let ino = state.find(parent, name)?;
            let node = state.node(ino)?;
            match (node.attr.kind == FileKind::Dir, dir) {
                (true, false) => return Err(Errno(libc::EISDIR)),
                (false, true) => return Err(Errno::ENOTDIR),
                (true, true) if !node.names.is_empty() => return Err(Errno(libc::ENOTEMPTY)),
                _ => node.attr.nlink -= 1,
            }
            state.node(parent)?.names.remove(name);
            Ok(())
        })
        .await
    }

    async fn rename(
        &self,
        _: Caller,
        parent: InodeNo,
        name: &Name,
        new_parent: InodeNo,
        new_name: &Name,
        mode: RenameMode,
    ) -> Result<(), Errno> {
        self.run("rename", |state| {
            let ino = state.find(parent, name)?;
            let old = state.find(new_parent, new_name).ok();
            match (mode, old) {
                (RenameMode::NoReplace, Some(_)) => return Err(Errno(libc::EEXIST)),
                (RenameMode::Exchange, None) => return Err(Errno::ENOENT),
                (RenameMode::Exchange, Some(old)) => {
                    state.node(parent)?.names.insert(name.clone(), old);
                }
                _ => {
                    state.node(parent)?.names.remove(name);
                }
            }
            state.node(new_parent)?.names.insert(new_name.clone(), ino);
            Ok(())
        })
        .await
    }

    async fn open(&self, _: Caller, ino: InodeNo, _: OpenFlags) -> Result<Opened, Errno> {
        self.run("open", |state| {
            state.node(ino)?;
            state.open += 1;
            Ok(Opened {
                fh: ino.0,
                keep_cache: true,
                direct_io: state.direct_io || ino == STREAM,
                ..Opened::default()
            })
        })
        .await
    }

    async fn read(
        &self,
        _: Caller,
        ino: InodeNo,
        _: u64,
        offset: u64,
        size: u32,
        _: OpenFlags,
    ) -> Result<ReadReply, Errno> {
        self.run("read", |state| {
            let data = &state.node(ino)?.data;
            let from = data
                .len()
                .min(usize::try_from(offset).unwrap_or(usize::MAX));
            let to = data.len().min(from + size as usize);
            Ok(ReadReply {
                data: Bytes::copy_from_slice(&data[from..to]),
                grown: None,
                hold: Hold::none(),
            })
        })
        .await
    }

    async fn write(
        &self,
        _: Caller,
        ino: InodeNo,
        _: u64,
        offset: u64,
        bytes: Bytes,
        flags: OpenFlags,
        _: bool,
        _: bool,
    ) -> Result<u32, Errno> {
        self.run("write", |state| {
            let node = state.node(ino)?;
            let from = if flags.append() {
                node.data.len()
            } else {
                usize::try_from(offset).map_err(|_| Errno(libc::EFBIG))?
            };
            let to = from + bytes.len();
            if node.data.len() < to {
                node.data.resize(to, 0);
            }
            node.data[from..to].copy_from_slice(&bytes);
            node.attr.size = node.data.len() as u64;
            Ok(u32::try_from(bytes.len()).expect("a WRITE is below 4 GiB"))
        })
        .await
    }

    async fn flush(&self, _: Caller, _: InodeNo, _: u64, _: u64) -> Result<(), Errno> {
        self.run("flush", |_| Ok(())).await
    }

    async fn release(&self, _: InodeNo, _: u64) {
        let released = self.run("release", |state| {
            state.open -= 1;
            Ok(())
        });
        released.await.expect("a file can always be closed");
    }

    async fn fsync(&self, _: Caller, _: InodeNo, _: u64, _: bool) -> Result<(), Errno> {
        // A tree that does not know it.
        self.run("fsync", |_| Err(Errno::ENOSYS)).await
    }

    async fn readdir(
        &self,
        _: Caller,
        ino: InodeNo,
        after: u64,
        limit: usize,
        plus: bool,
    ) -> Result<ListReply, Errno> {
        self.run("readdir", |state| {
            let node = state.node(ino)?;
            if node.attr.kind != FileKind::Dir {
                return Err(Errno::ENOTDIR);
            }
            let (parent, names) = (node.parent, node.names.clone());
            let mut page = ListReply {
                parent: Some(parent),
                entries: Vec::new(),
            };
            let skip = usize::try_from(after.saturating_sub(2)).unwrap_or(usize::MAX);
            // More than asked for: what does not fit has to be given back.
            for (cookie, (name, ino)) in (3..).zip(names).skip(skip).take(limit + 3) {
                page.entries.push(ListEntry {
                    kind: state.node(ino)?.attr.kind,
                    entry: plus.then(|| state.entry(ino)).transpose()?,
                    name,
                    ino,
                    cookie,
                });
            }
            Ok(page)
        })
        .await
    }

    async fn statfs(&self, _: Caller, _: InodeNo) -> Result<StatFs, Errno> {
        Ok(StatFs {
            inodes_free: None,
            bytes_total: 8 << 30,
            bytes_free: 2 << 30,
            inodes: 7,
        })
    }

    async fn getxattr(&self, _: Caller, ino: InodeNo, name: &Name) -> Result<Bytes, Errno> {
        self.run("getxattr", |state| {
            let found = state.node(ino)?.xattrs.get(name).cloned();
            found.ok_or(Errno(libc::ENODATA))
        })
        .await
    }

    async fn listxattr(&self, _: Caller, ino: InodeNo) -> Result<Vec<Name>, Errno> {
        self.run("listxattr", |state| {
            Ok(state.node(ino)?.xattrs.keys().cloned().collect())
        })
        .await
    }

    async fn setxattr(
        &self,
        _: Caller,
        ino: InodeNo,
        name: &Name,
        value: Bytes,
        mode: XattrMode,
        _kill_sgid: bool,
    ) -> Result<(), Errno> {
        self.run("setxattr", |state| {
            let xattrs = &mut state.node(ino)?.xattrs;
            if mode == XattrMode::Create && xattrs.contains_key(name) {
                return Err(Errno(libc::EEXIST));
            }
            xattrs.insert(name.clone(), value);
            Ok(())
        })
        .await
    }

    async fn removexattr(&self, _: Caller, ino: InodeNo, name: &Name) -> Result<(), Errno> {
        self.run("removexattr", |state| {
            let removed = state.node(ino)?.xattrs.remove(name);
            removed.map(drop).ok_or(Errno(libc::ENODATA))
        })
        .await
    }

    async fn getlk(
        &self,
        _: Caller,
        _: InodeNo,
        _: u64,
        _: u64,
        lock: Lock,
    ) -> Result<Option<Lock>, Errno> {
        let in_the_way = Lock {
            start: 10,
            end: 19,
            kind: libc::F_WRLCK,
            pid: 1,
        };
        Ok((lock.start < 20).then_some(in_the_way))
    }

    async fn setlk(
        &self,
        _: Caller,
        _: InodeNo,
        _: u64,
        _: u64,
        lock: Lock,
        wait: bool,
        flock: bool,
    ) -> Result<(), Errno> {
        self.run("setlk", |state| {
            state.locks.push((flock, lock.kind, wait));
            Ok(())
        })
        .await
    }
}
