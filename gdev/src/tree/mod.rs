//! `/cluster/node<N>/dev`.
//!
//! Nothing is cached but the attributes of a lookup, for the GETATTR that comes with it ([`ATTR_AGE_MAX`]). A node
//! that does not answer is `EHOSTDOWN`.
//!
//! Lock order: none; every table has a lock of its own and no two are held together.

mod inodes;

use crate::agent::DevAgent;
use crate::carried;
use crate::path::DevPath;
use crate::wire::{DevReply, DevRequest, Device, IO_BYTES_MAX, Node, Opening, Who};
use async_trait::async_trait;
use bytes::Bytes;
use consistency::wire::meta::{Attr, FileKind, Name};
use consistency::wire::{decode, encode};
use consistency::{InodeNo, NodeId, Timestamp, Version};
use gfs::error::Errno;
use gfs::net::{ServiceId, Transport};
use gfs::tree::{
    AttrReply, CACHE, Caller, EntryReply, Hold, ListEntry, ListReply, NO_CACHE, OpenFlags, Opened,
    ReadReply, SetAttrRequest, Tree,
};
use inodes::{Inode, Inodes};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long a node has to answer what is only a look at its directory.
pub const LOOK_DEADLINE: Duration = Duration::from_secs(2);
/// How long a node has to open, read or write a device.
pub const IO_DEADLINE: Duration = Duration::from_secs(10);
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
    open: Mutex<HashMap<u64, Arc<Open>>>,
    next_fh: AtomicU64,
}

/// A device that somebody has open.
#[derive(Debug)]
struct Open {
    owner: NodeId,
    path: DevPath,
    device: Device,
    /// Who opened it, whoever uses it now.
    who: Who,
    /// What is left to read, if it came with the open, last record first.
    records: Option<Mutex<Vec<Bytes>>>,
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
            let answer = tokio::time::timeout(deadline, self.agent.answer(request)).await;
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

    async fn stat(&self, owner: NodeId, path: DevPath) -> Result<Node, Errno> {
        let request = DevRequest::Stat(path.clone());
        match self.ask(owner, request, LOOK_DEADLINE).await? {
            DevReply::Node(node) => Ok(on_its_node(&path, node)),
            _ => Err(malformed(owner, "another answer than to Stat")),
        }
    }

    async fn names(&self, owner: NodeId, dir: &DevPath) -> Result<Vec<(Name, Node)>, Errno> {
        let mut all: Vec<(Name, Node)> = Vec::new();
        for _ in 0..PAGES_MAX {
            let after = all.last().map(|(name, _)| name.clone());
            let request = DevRequest::List {
                dir: dir.clone(),
                after: after.clone(),
            };
            let reply = self.ask(owner, request, LOOK_DEADLINE).await?;
            let DevReply::Listing { entries, more } = reply else {
                return Err(malformed(owner, "another answer than to List"));
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
            return Ok(attr(inode.number, &inode.node));
        }
        let now = self.stat(inode.owner, inode.path.clone()).await?;
        if (now.kind, now.device) == (inode.node.kind, inode.node.device) {
            Ok(attr(inode.number, &now))
        } else {
            Err(Errno::ESTALE)
        }
    }

    fn entry(&self, owner: NodeId, path: DevPath, node: Node) -> EntryReply {
        let inode = self.inodes.look_up(owner, path, node);
        EntryReply {
            attr: Some(attr(inode.number, &inode.node)),
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
    ) -> Result<Open, Errno> {
        if inodes::owner_of_root(ino).is_some() {
            return Err(Errno(libc::EISDIR));
        }
        let inode = self.inodes.inode(ino).ok_or(Errno::ESTALE)?;
        let device = match inode.node.kind {
            FileKind::Dir => return Err(Errno(libc::EISDIR)),
            FileKind::Symlink => return Err(Errno(libc::ELOOP)),
            FileKind::Char
            | FileKind::Block
            | FileKind::File
            | FileKind::Fifo
            | FileKind::Socket => inode.node.device.ok_or(Errno::ENOTSUP)?,
        };
        if carried::carried(device).is_none() {
            return Err(Errno::ENOTSUP);
        }
        let who = Who {
            uid: caller.uid,
            gid: caller.gid,
        };
        let access = flags.0 & libc::O_ACCMODE;
        let request = DevRequest::Open {
            path: inode.path.clone(),
            device,
            who,
            read: access != libc::O_WRONLY,
            write: access != libc::O_RDONLY,
        };
        let reply = self.ask(inode.owner, request, IO_DEADLINE).await?;
        let DevReply::Opened(opening) = reply else {
            return Err(malformed(inode.owner, "another answer than to Open"));
        };
        Ok(Open {
            owner: inode.owner,
            path: inode.path.clone(),
            device,
            who,
            records: match opening {
                Opening::Live => None,
                Opening::Records(mut records) => {
                    records.reverse();
                    Some(Mutex::new(records))
                }
            },
        })
    }

    fn opened(&self, fh: u64) -> Result<Arc<Open>, Errno> {
        let open = self.open.lock().expect("no holder panics");
        open.get(&fh).cloned().ok_or(Errno(libc::EBADF))
    }
}

#[async_trait]
impl Tree for DevTree {
    async fn lookup(&self, _: Caller, parent: InodeNo, name: &Name) -> Result<EntryReply, Errno> {
        let (owner, dir) = self.place(parent)?;
        let path = dir.join(name)?;
        match self.stat(owner, path.clone()).await {
            Ok(node) => Ok(self.entry(owner, path, node)),
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
            Some(_) => (attr(ino, &ROOT), CACHE),
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
        inode.node.target.clone().ok_or(Errno::EINVAL)
    }

    async fn open(&self, caller: Caller, ino: InodeNo, flags: OpenFlags) -> Result<Opened, Errno> {
        let device = self.open_device(caller, ino, flags).await?;
        let fh = self.next_fh.fetch_add(1, Ordering::Relaxed);
        let mut open = self.open.lock().expect("no holder panics");
        if open.len() >= OPEN_FILES_MAX {
            return Err(Errno(libc::ENFILE));
        }
        open.insert(fh, Arc::new(device));
        Ok(Opened {
            fh,
            direct_io: true,
            noflush: true,
            ..Opened::default()
        })
    }

    async fn read(
        &self,
        _: Caller,
        _: InodeNo,
        fh: u64,
        _: u64,
        size: u32,
        _: OpenFlags,
    ) -> Result<ReadReply, Errno> {
        let open = self.opened(fh)?;
        let data = match &open.records {
            Some(records) => next_record(records, size as usize),
            None => {
                let size = size.min(IO_BYTES_MAX);
                let request = DevRequest::Read {
                    path: open.path.clone(),
                    device: open.device,
                    who: open.who,
                    size,
                };
                match self.ask(open.owner, request, IO_DEADLINE).await? {
                    DevReply::Data(data) if data.len() <= size as usize => data,
                    _ => return Err(malformed(open.owner, "another answer than to Read")),
                }
            }
        };
        Ok(ReadReply {
            data,
            hold: Hold::none(),
        })
    }

    async fn write(
        &self,
        _: Caller,
        _: InodeNo,
        fh: u64,
        _: u64,
        mut data: Bytes,
        _: OpenFlags,
        _: bool,
        _: bool,
    ) -> Result<u32, Errno> {
        let open = self.opened(fh)?;
        data.truncate(IO_BYTES_MAX as usize);
        let len = data.len();
        let request = DevRequest::Write {
            path: open.path.clone(),
            device: open.device,
            who: open.who,
            data,
        };
        match self.ask(open.owner, request, IO_DEADLINE).await? {
            DevReply::Written(taken) if taken as usize <= len => Ok(taken),
            _ => Err(malformed(open.owner, "another answer than to Write")),
        }
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
        let enter = |(name, node): (Name, Node)| {
            let path = dir.join(&name)?;
            let kind = shown_kind(node.kind);
            let number = inodes::number_for_listing(owner, &path);
            let node = on_its_node(&path, node);
            let entry = plus.then(|| self.entry(owner, path, node));
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

    async fn getxattr(&self, _: Caller, ino: InodeNo, name: &Name) -> Result<Bytes, Errno> {
        let found = xattrs(self.inodes.inode(ino).as_deref())
            .into_iter()
            .find(|(own, _)| *own == name.as_bytes());
        let (_, value) = found.ok_or(Errno(libc::ENODATA))?;
        Ok(value.into())
    }

    async fn listxattr(&self, _: Caller, ino: InodeNo) -> Result<Vec<Name>, Errno> {
        let own = xattrs(self.inodes.inode(ino).as_deref());
        let names = own.into_iter().map(|(name, _)| Ok(Name::new(name)?));
        names.collect()
    }
}

/// Returns the extended attributes of an inode.
fn xattrs(inode: Option<&Inode>) -> Vec<(&'static [u8], String)> {
    let Some(Node { kind, device, .. }) = inode.map(|inode| &inode.node) else {
        return Vec::new();
    };
    let why = match (kind, device) {
        (FileKind::Dir | FileKind::Symlink | FileKind::Socket, _) => return Vec::new(),
        (FileKind::Fifo, _) => Some("a named pipe joins processes of its own node".into()),
        (FileKind::File, _) => Some("this is a file, not a device".into()),
        (FileKind::Char | FileKind::Block, Some(device)) if carried::carried(*device).is_some() => {
            None
        }
        (FileKind::Char | FileKind::Block, _) => Some(format!(
            "not carried to other nodes yet; these are: {}",
            carried::names()
        )),
    };
    let device = match kind {
        FileKind::Fifo => Some("p".into()),
        _ => device.map(|device| device.to_string()),
    };
    let device = device.map(|device| (XATTR_DEVICE, device));
    device
        .into_iter()
        .chain(why.map(|why| (XATTR_WHY, why)))
        .collect()
}

/// Returns the type that is shown: what the kernel would not bring to us is a regular file.
const fn shown_kind(kind: FileKind) -> FileKind {
    match kind {
        FileKind::Dir | FileKind::Symlink | FileKind::Socket => kind,
        FileKind::File | FileKind::Fifo | FileKind::Char | FileKind::Block => FileKind::File,
    }
}

fn attr(ino: InodeNo, node: &Node) -> Attr {
    let [atime, mtime, ctime] = node.times;
    Attr {
        ino,
        kind: shown_kind(node.kind),
        mode: node.mode & 0o7777,
        nlink: node.nlink,
        uid: node.uid,
        gid: node.gid,
        rdev: 0,
        size: node.target.as_ref().map_or(0, |target| target.len() as u64),
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
fn on_its_node(path: &DevPath, mut node: Node) -> Node {
    if let Some(below) = node
        .target
        .as_ref()
        .and_then(|target| target.strip_prefix(b"/dev/"))
    {
        let up = b"../".repeat(path.depth().saturating_sub(1));
        node.target = Some([&up, below].concat().into());
    }
    node
}

/// Takes as much of the next record as fits.
fn next_record(records: &Mutex<Vec<Bytes>>, size: usize) -> Bytes {
    let mut records = records.lock().expect("no holder panics");
    let Some(record) = records.last_mut() else {
        return Bytes::new();
    };
    let taken = record.split_to(size.min(record.len()));
    if record.is_empty() {
        records.pop();
    }
    taken
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
