//! `/cluster/node<N>/dev`.
//!
//! Nothing is cached but the attributes of a lookup, for the GETATTR that comes with it ([`ATTR_AGE_MAX`]). A node
//! that does not answer is `EHOSTDOWN`. An open device is a session with its node ([`remote`]).
//!
//! Lock order: none; every table has a lock of its own and no two are held together.

mod inodes;
mod remote;

use crate::agent::DevAgent;
use crate::path::DevPath;
use crate::wire::session::{Access, Answer, Ask, FromOwner, How, ToOwner};
use crate::wire::{
    DevReply, DevRequest, GROUPS_MAX, IO_BYTES_MAX, Node, SESSIONS_SINCE, Seen, User,
};
use async_trait::async_trait;
use bytes::Bytes;
use consistency::wire::meta::{Attr, FileKind, Name};
use consistency::wire::{decode, encode};
use consistency::{InodeNo, NodeId, Timestamp, Version};
use gfs::error::Errno;
use gfs::net::{ServiceId, Transport, frames};
use gfs::tree::{
    AttrReply, CACHE, Caller, EntryReply, Hold, ListEntry, ListReply, NO_CACHE, OpenFlags, Opened,
    ReadReply, SetAttrRequest, Tree, Wake,
};
use inodes::{Inode, Inodes};
use remote::Remote;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long a node has to answer what is only a look at its directory.
pub const LOOK_DEADLINE: Duration = Duration::from_secs(2);
/// How long a node has to open a device.
pub const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// How long attributes that came with a lookup are served.
pub const ATTR_AGE_MAX: Duration = Duration::from_secs(1);
/// Upper limit of devices open at a time.
pub const OPEN_FILES_MAX: usize = 4096;
/// Upper limit of the pages of one listing (64 Ki names); what follows is not shown.
pub const PAGES_MAX: usize = 64;

/// Tells the device number: `c 1:3`.
const XATTR_DEVICE: &[u8] = b"user.glu.device";
/// Tells why a device cannot be opened.
const XATTR_WHY: &[u8] = b"user.glu.why";

/// The root of each tree.
const ROOT: Node = Node {
    kind: FileKind::Dir,
    mode: 0o755,
    nlink: 2,
    uid: 0,
    gid: 0,
    device: None,
    target: None,
    times: [Timestamp { secs: 0, nanos: 0 }; 3],
};

/// The devices of all nodes: a tree for each, see [`DevTree::root`].
#[derive(Debug)]
pub struct DevTree {
    transport: Arc<dyn Transport>,
    agent: Arc<DevAgent>,
    inodes: Inodes,
    open: Mutex<HashMap<u64, Arc<Remote>>>,
    next_fh: AtomicU64,
}

impl DevTree {
    /// Makes the trees of the nodes that `transport` reaches. `agent` is this node's own.
    #[must_use]
    pub fn new(transport: Arc<dyn Transport>, agent: Arc<DevAgent>) -> Self {
        Self {
            transport,
            agent,
            inodes: Inodes::default(),
            open: Mutex::default(),
            next_fh: AtomicU64::new(1),
        }
    }

    /// Returns the root directory of a node's devices.
    #[must_use]
    pub const fn root(owner: NodeId) -> InodeNo {
        inodes::root(owner)
    }

    async fn ask(
        &self,
        owner: NodeId,
        request: DevRequest,
        deadline: Duration,
    ) -> Result<DevReply, Errno> {
        let down = Errno(libc::EHOSTDOWN);
        let reply = if owner == self.agent.node() {
            let answer = self.agent.answer(owner, request);
            let answer = tokio::time::timeout(deadline, answer).await;
            answer.map_err(|_| Errno(libc::ETIMEDOUT))?
        } else {
            let body = encode(&request).into();
            let call = self
                .transport
                .call(owner, ServiceId::Device, body, deadline);
            let reply = call.await.map_err(|error| {
                tracing::debug!(%owner, %error, "cannot use a device");
                down
            })?;
            decode(&reply).map_err(|error| malformed(owner, &error.to_string()))?
        };
        match reply {
            // Only what the kernel takes for an error number is one.
            DevReply::Failed(errno @ 1..=4095) => Err(Errno(errno)),
            DevReply::Failed(other) => Err(malformed(owner, &format!("errno {other}"))),
            reply => Ok(reply),
        }
    }

    /// Tells whether a node knows sizes, reasons and sessions.
    fn has_sessions(&self, owner: NodeId) -> bool {
        self.transport.version_of(owner) >= Some(SESSIONS_SINCE)
    }

    async fn look(&self, owner: NodeId, path: DevPath) -> Result<Seen, Errno> {
        let request = if self.has_sessions(owner) {
            DevRequest::Look(path.clone())
        } else {
            DevRequest::Stat(path.clone())
        };
        match self.ask(owner, request, LOOK_DEADLINE).await? {
            DevReply::Seen(seen) => Ok(on_its_node(&path, seen)),
            DevReply::Node(node) => Ok(on_its_node(&path, Seen { node, size: 0 })),
            _ => Err(malformed(owner, "another answer than to Look")),
        }
    }

    async fn names(&self, owner: NodeId, dir: &DevPath) -> Result<Vec<(Name, Seen)>, Errno> {
        let mut all: Vec<(Name, Seen)> = Vec::new();
        let sizes = self.has_sessions(owner);
        for _ in 0..PAGES_MAX {
            let after = all.last().map(|(name, _)| name.clone());
            let (dir, last) = (dir.clone(), after.clone());
            let request = if sizes {
                DevRequest::Survey { dir, after: last }
            } else {
                DevRequest::List { dir, after: last }
            };
            let (entries, more) = match self.ask(owner, request, LOOK_DEADLINE).await? {
                DevReply::Survey { entries, more } => (entries, more),
                DevReply::Listing { entries, more } => {
                    let sized = |(name, node)| (name, Seen { node, size: 0 });
                    (entries.into_iter().map(sized).collect(), more)
                }
                _ => return Err(malformed(owner, "another answer than to Survey")),
            };
            let first = entries.first().map(|(name, _)| name);
            if first.is_some_and(|first| after.as_ref() >= Some(first)) {
                return Err(malformed(owner, "a listing that goes backwards"));
            }
            let empty = entries.is_empty();
            all.extend(entries);
            if empty || !more {
                return Ok(all);
            }
        }
        tracing::warn!(%owner, ?dir, "it has more names than are shown");
        Ok(all)
    }

    /// Tells why a device cannot be opened by the caller; `None` if it can, or is none.
    async fn why(&self, caller: Caller, ino: InodeNo) -> Result<Option<String>, Errno> {
        let Some(inode) = self.inodes.inode(ino) else {
            return Ok(None);
        };
        if !self.has_sessions(inode.owner) {
            let none = matches!(inode.seen.node.kind, FileKind::Dir | FileKind::Symlink);
            return Ok((!none).then(|| "its node runs an older glud, or is down".into()));
        }
        let request = DevRequest::Why {
            path: inode.path.clone(),
            who: user(caller),
        };
        match self.ask(inode.owner, request, LOOK_DEADLINE).await? {
            DevReply::Why(why) => Ok(why),
            _ => Err(malformed(inode.owner, "another answer than to Why")),
        }
    }

    /// Returns whose it is and where.
    fn place(&self, ino: InodeNo) -> Result<(NodeId, DevPath), Errno> {
        if let Some(owner) = inodes::owner_of_root(ino) {
            return Ok((owner, DevPath::default()));
        }
        let inode = self.inodes.inode(ino).ok_or(Errno::ESTALE)?;
        Ok((inode.owner, inode.path.clone()))
    }

    async fn attr(&self, inode: &Inode) -> Result<Attr, Errno> {
        if inode.asked.elapsed() < ATTR_AGE_MAX {
            return Ok(attr(inode.number, &inode.seen));
        }
        let now = self.look(inode.owner, inode.path.clone()).await?;
        let (then, node) = (&inode.seen.node, &now.node);
        if (node.kind, node.device) == (then.kind, then.device) {
            Ok(attr(inode.number, &now))
        } else {
            Err(Errno::ESTALE)
        }
    }

    fn entry(&self, owner: NodeId, path: DevPath, seen: Seen) -> EntryReply {
        let inode = self.inodes.look_up(owner, path, seen);
        EntryReply {
            attr: Some(attr(inode.number, &inode.seen)),
            ttl: NO_CACHE,
            attr_ttl: NO_CACHE,
            hold: Hold::none(),
        }
    }

    async fn open_device(
        &self,
        caller: Caller,
        ino: InodeNo,
        flags: OpenFlags,
    ) -> Result<Remote, Errno> {
        if inodes::owner_of_root(ino).is_some() {
            return Err(Errno(libc::EISDIR));
        }
        let inode = self.inodes.inode(ino).ok_or(Errno::ESTALE)?;
        let device = match inode.seen.node.kind {
            FileKind::Dir => return Err(Errno(libc::EISDIR)),
            FileKind::Symlink => return Err(Errno(libc::ELOOP)),
            FileKind::Char
            | FileKind::Block
            | FileKind::File
            | FileKind::Fifo
            | FileKind::Socket => inode.seen.node.device.ok_or(Errno::ENOTSUP)?,
        };
        let access = flags.0 & libc::O_ACCMODE;
        let first = ToOwner::Open {
            path: inode.path.clone(),
            device,
            who: user(caller),
            how: How {
                read: access != libc::O_WRONLY,
                write: access != libc::O_RDONLY,
                exclusive: flags.0 & libc::O_EXCL != 0,
                durable: flags.0 & libc::O_DSYNC != 0,
            },
        };
        let session = self.begin(inode.owner, first);
        tokio::time::timeout(OPEN_DEADLINE, session)
            .await
            .map_err(|_| Errno(libc::ETIMEDOUT))?
    }

    /// Begins a session.
    async fn begin(&self, owner: NodeId, first: ToOwner) -> Result<Remote, Errno> {
        let down = |error: &dyn std::fmt::Display| {
            tracing::debug!(%owner, %error, "cannot open a device");
            Errno(libc::EHOSTDOWN)
        };
        let stream = self.transport.open(owner, ServiceId::Device).await;
        let mut stream = stream.map_err(|error| down(&error))?;
        // An older node is known only now that there is a connection; it would end the stream.
        if !self.has_sessions(owner) {
            return Err(Errno::ENOTSUP);
        }
        let sent = frames::send(&mut stream.writer, &first).await;
        sent.map_err(|error| down(&error))?;
        let told = frames::receive(&mut stream.reader).await;
        match told.map_err(|error| down(&error))? {
            FromOwner::Opened(access) => Ok(Remote::new(owner, access, stream)),
            FromOwner::Refused(errno @ 1..=4095) => Err(Errno(errno)),
            _ => Err(malformed(owner, "another answer than to Open")),
        }
    }

    /// Has something done to an open device.
    async fn done(&self, fh: u64, what: Ask) -> Result<(), Errno> {
        let open = self.opened(fh)?;
        match open.other(what).await? {
            Answer::Done => Ok(()),
            _ => Err(open.malformed()),
        }
    }

    fn opened(&self, fh: u64) -> Result<Arc<Remote>, Errno> {
        let open = self.open.lock().expect("no holder panics");
        open.get(&fh).cloned().ok_or(Errno(libc::EBADF))
    }
}

#[async_trait]
impl Tree for DevTree {
    async fn lookup(&self, _: Caller, parent: InodeNo, name: &Name) -> Result<EntryReply, Errno> {
        let (owner, dir) = self.place(parent)?;
        let path = dir.join(name)?;
        match self.look(owner, path.clone()).await {
            Ok(seen) => Ok(self.entry(owner, path, seen)),
            Err(Errno::ENOENT) => Ok(EntryReply {
                attr: None,
                ttl: NO_CACHE,
                attr_ttl: NO_CACHE,
                hold: Hold::none(),
            }),
            Err(error) => Err(error),
        }
    }

    fn forget(&self, ino: InodeNo, count: u64) {
        self.inodes.forget(ino, count);
    }

    async fn getattr(&self, _: Caller, ino: InodeNo, _: Option<u64>) -> Result<AttrReply, Errno> {
        let (attr, ttl) = match inodes::owner_of_root(ino) {
            // Not the owner's: it is there whether the owner is up or down, and on the way to every device.
            Some(_) => (
                attr(
                    ino,
                    &Seen {
                        node: ROOT,
                        size: 0,
                    },
                ),
                CACHE,
            ),
            None => {
                let inode = self.inodes.inode(ino).ok_or(Errno::ESTALE)?;
                (self.attr(&inode).await?, NO_CACHE)
            }
        };
        Ok(AttrReply {
            attr,
            ttl,
            hold: Hold::none(),
        })
    }

    async fn setattr(
        &self,
        caller: Caller,
        ino: InodeNo,
        set: SetAttrRequest,
    ) -> Result<AttrReply, Errno> {
        // Opening with O_TRUNC changes nothing in a device; anything else would change the owner's directory.
        if set.size.is_none() || set.mode.is_some() || set.uid.is_some() || set.gid.is_some() {
            return Err(Errno::EPERM);
        }
        self.getattr(caller, ino, set.fh).await
    }

    async fn readlink(&self, _: Caller, ino: InodeNo) -> Result<Bytes, Errno> {
        let inode = self.inodes.inode(ino).ok_or(Errno::EINVAL)?;
        inode.seen.node.target.clone().ok_or(Errno::EINVAL)
    }

    async fn open(&self, caller: Caller, ino: InodeNo, flags: OpenFlags) -> Result<Opened, Errno> {
        let device = self.open_device(caller, ino, flags).await?;
        let stream = device.access() == Access::Stream;
        let fh = self.next_fh.fetch_add(1, Ordering::Relaxed);
        let mut open = self.open.lock().expect("no holder panics");
        if open.len() >= OPEN_FILES_MAX {
            return Err(Errno(libc::ENFILE));
        }
        open.insert(fh, Arc::new(device));
        Ok(Opened {
            fh,
            direct_io: true,
            stream,
            noflush: true,
            ..Opened::default()
        })
    }

    async fn read(
        &self,
        _: Caller,
        _: InodeNo,
        fh: u64,
        offset: u64,
        size: u32,
        flags: OpenFlags,
    ) -> Result<ReadReply, Errno> {
        let open = self.opened(fh)?;
        let wait = flags.0 & libc::O_NONBLOCK == 0;
        let data = open.read(offset, size.min(IO_BYTES_MAX), wait).await?;
        Ok(ReadReply {
            data,
            grown: None,
            hold: Hold::none(),
        })
    }

    async fn write(
        &self,
        _: Caller,
        _: InodeNo,
        fh: u64,
        offset: u64,
        mut data: Bytes,
        flags: OpenFlags,
        _: bool,
        _: bool,
    ) -> Result<u32, Errno> {
        let open = self.opened(fh)?;
        data.truncate(IO_BYTES_MAX as usize);
        let len = data.len() as u64;
        let wait = flags.0 & libc::O_NONBLOCK == 0;
        match open.other(Ask::Write { offset, data, wait }).await? {
            Answer::Count(taken) if taken <= len => {
                Ok(u32::try_from(taken).expect("no more than was given"))
            }
            _ => Err(open.malformed()),
        }
    }

    async fn fsync(&self, _: Caller, _: InodeNo, fh: u64, _: bool) -> Result<(), Errno> {
        self.done(fh, Ask::Sync).await
    }

    async fn fallocate(
        &self,
        _: Caller,
        _: InodeNo,
        fh: u64,
        offset: u64,
        len: u64,
        mode: i32,
    ) -> Result<(), Errno> {
        self.done(fh, Ask::Allocate { mode, offset, len }).await
    }

    async fn lseek(
        &self,
        _: Caller,
        _: InodeNo,
        fh: u64,
        offset: u64,
        whence: i32,
    ) -> Result<u64, Errno> {
        let open = self.opened(fh)?;
        match open.other(Ask::Seek { offset, whence }).await? {
            Answer::Count(position) => Ok(position),
            _ => Err(open.malformed()),
        }
    }

    async fn ioctl(
        &self,
        _: Caller,
        _: InodeNo,
        fh: u64,
        command: u32,
        input: Bytes,
        out_size: u32,
    ) -> Result<Bytes, Errno> {
        let open = self.opened(fh)?;
        match open.other(Ask::Control { command, input }).await? {
            Answer::Data(output) if output.len() <= out_size as usize => Ok(output),
            _ => Err(open.malformed()),
        }
    }

    async fn poll(&self, _: InodeNo, fh: u64, wake: Option<Wake>) -> Result<u32, Errno> {
        self.opened(fh)?.poll(wake).await
    }

    async fn release(&self, _: InodeNo, fh: u64) {
        self.open.lock().expect("no holder panics").remove(&fh);
    }

    async fn readdir(
        &self,
        _: Caller,
        ino: InodeNo,
        after: u64,
        limit: usize,
        plus: bool,
    ) -> Result<ListReply, Errno> {
        let (owner, dir) = self.place(ino)?;
        let mut names = self.names(owner, &dir).await?;
        // A cookie has to stay with its name while others come and go: it is made of the name alone.
        names.retain(|(name, _)| cookie(name) > after);
        names.sort_by_key(|(name, _)| cookie(name));
        names.truncate(limit.max(1));
        let enter = |(name, seen): (Name, Seen)| {
            let path = dir.join(&name)?;
            let kind = shown_kind(seen.node.kind);
            let number = inodes::number_for_listing(owner, &path);
            let seen = on_its_node(&path, seen);
            let entry = plus.then(|| self.entry(owner, path, seen));
            let made = entry.as_ref().and_then(|entry| entry.attr.as_ref());
            Ok(ListEntry {
                cookie: cookie(&name),
                ino: made.map_or(number, |attr| attr.ino),
                name,
                kind,
                entry,
            })
        };
        // What is too deep or long for a path cannot be named, so it is not shown.
        let entries = names.into_iter().map(enter);
        let entries = entries.filter_map(|entry: Result<_, Errno>| entry.ok());
        Ok(ListReply {
            // Deeper down the number depends on who has looked it up; that of the root's parent is known to who has
            // joined the trees.
            parent: (dir.depth() == 1).then(|| Self::root(owner)),
            entries: entries.collect(),
        })
    }

    async fn getxattr(&self, caller: Caller, ino: InodeNo, name: &Name) -> Result<Bytes, Errno> {
        let value = match name.as_bytes() {
            XATTR_DEVICE => self.inodes.inode(ino).and_then(|inode| device_of(&inode)),
            XATTR_WHY => self.why(caller, ino).await?,
            _ => None,
        };
        value.map(Bytes::from).ok_or(Errno(libc::ENODATA))
    }

    async fn listxattr(&self, caller: Caller, ino: InodeNo) -> Result<Vec<Name>, Errno> {
        let device = self.inodes.inode(ino).and_then(|inode| device_of(&inode));
        let why = self.why(caller, ino).await?;
        let names = [device.map(|_| XATTR_DEVICE), why.map(|_| XATTR_WHY)];
        let names = names.into_iter().flatten();
        names.map(|name| Ok(Name::new(name)?)).collect()
    }
}

/// Returns what an inode truly is, if it is shown as a file.
fn device_of(inode: &Inode) -> Option<String> {
    match inode.seen.node.kind {
        FileKind::Fifo => Some("p".into()),
        _ => inode.seen.node.device.map(|device| device.to_string()),
    }
}

/// Returns who asks, with the groups that FUSE does not tell: its thread waits for us and so is there. Of one in another
/// pid namespace they are not known, and do not count.
fn user(caller: Caller) -> User {
    let status = match caller.pid {
        0 => String::new(),
        pid => std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default(),
    };
    User {
        uid: caller.uid,
        gid: caller.gid,
        groups: groups_of(&status),
    }
}

/// Returns the supplementary groups from a thread's `status`.
fn groups_of(status: &str) -> Vec<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    let groups = line.unwrap_or_default().split_ascii_whitespace();
    let groups = groups.filter_map(|group| group.parse().ok());
    groups.take(GROUPS_MAX).collect()
}

/// Returns the type that is shown: what the kernel would not bring to us is a regular file.
const fn shown_kind(kind: FileKind) -> FileKind {
    match kind {
        FileKind::Dir | FileKind::Symlink | FileKind::Socket => kind,
        FileKind::File | FileKind::Fifo | FileKind::Char | FileKind::Block => FileKind::File,
    }
}

fn attr(ino: InodeNo, seen: &Seen) -> Attr {
    let node = &seen.node;
    let [atime, mtime, ctime] = node.times;
    Attr {
        ino,
        kind: shown_kind(node.kind),
        mode: node.mode & 0o7777,
        nlink: node.nlink,
        uid: node.uid,
        gid: node.gid,
        rdev: 0,
        size: match &node.target {
            Some(target) => target.len() as u64,
            None => seen.size,
        },
        blocks: 0,
        atime,
        mtime,
        ctime,
        btime: ctime,
        version: Version(1),
    }
}

/// Returns what is at `path` with the target of a link so that it stays on its node: absolute targets below `/dev`
/// become relative.
fn on_its_node(path: &DevPath, mut seen: Seen) -> Seen {
    let node = &mut seen.node;
    if let Some(below) = node
        .target
        .as_ref()
        .and_then(|target| target.strip_prefix(b"/dev/"))
    {
        let up = b"../".repeat(path.depth().saturating_sub(1));
        node.target = Some([&up, below].concat().into());
    }
    seen
}

/// Returns a name's position in a listing, 3 and more. Of names with the same one (one pair in 2^63) a listing may
/// miss one, when its pages meet just there.
fn cookie(name: &Name) -> u64 {
    (inodes::hash(name.as_bytes()) >> 1).max(3)
}

fn malformed(owner: NodeId, why: &str) -> Errno {
    tracing::warn!(%owner, why, "a node sent a malformed reply about its devices");
    Errno::EIO
}

#[cfg(test)]
mod tests;
