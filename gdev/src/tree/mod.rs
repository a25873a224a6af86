//! `/cluster/node<N>/dev`.
//!
//! Nothing is cached but the attributes of a lookup, for the GETATTR that comes with it ([`ATTR_AGE_MAX`]). A node
//! that does not answer is `EHOSTDOWN`. An open device is a session with its node ([`remote`]).
//!
//! Lock order: none; every table has a lock of its own and no two are held together.

mod answers;
mod inodes;
mod remote;
mod shown;

pub(crate) use remote::Remote;

use crate::agent::DevAgent;
use crate::caller::user;
use crate::path::DevPath;
use crate::wire::session::{Answer, Ask, FromOwner, How, ToOwner};
use crate::wire::{DevReply, DevRequest, Node, SESSIONS_SINCE, Seen};
use consistency::wire::meta::{Attr, FileKind, Name};
use consistency::wire::{decode, encode};
use consistency::{InodeNo, NodeId, Timestamp};
use gfs::error::Errno;
use gfs::net::{ServiceId, Transport, frames};
use gfs::tree::{Caller, EntryReply, Hold, NO_CACHE, OpenFlags};
use inodes::{Inode, Inodes};
use shown::{attr, on_its_node};
use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
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

fn malformed(owner: NodeId, why: &str) -> Errno {
    tracing::warn!(%owner, why, "a node sent a malformed reply about its devices");
    Errno::EIO
}

#[cfg(test)]
mod tests;
