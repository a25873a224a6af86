//! `/cluster/node<N>/root`: the user's side.
//!
//! Every question goes to the owner's node. What is known here is only which file each inode number stands for
//! ([`inodes`]) and what is open ([`open`]); an open file is asked about itself where its name is gone.
//!
//! Lock order: none; each of the two tables has a lock of its own and no two are held together.

mod answers;
mod inodes;
mod open;
mod shown;

use super::agent::ExportAgent;
use super::wire::{At, Change, EXPORTS_SINCE, Reply, Request, Stat, What};
use crate::caller::user;
use crate::path::{DevPath, FilePath};
use crate::wire::DevRequest;
use crate::wire::session::{Answer, Ask};
use consistency::wire::{decode, encode};
use consistency::{InodeNo, NodeId};
use gfs::error::Errno;
use gfs::net::{ServiceId, Transport};
use gfs::tree::{Caller, EntryReply, Hold, NO_CACHE};
use inodes::{Inode, Inodes};
use open::Files;
use shown::shown;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How long a node's disks have to do what is asked. That a node is cut off is seen sooner, by its connection.
const CALL_DEADLINE: Duration = Duration::from_secs(30);

/// Tells the device number: `c 1:3`.
const XATTR_DEVICE: &[u8] = b"user.glu.device";
/// What all nodes export: a tree for each, see [`ExportTree::root`].
#[derive(Debug)]
pub struct ExportTree {
    transport: Arc<dyn Transport>,
    agent: Arc<ExportAgent>,
    inodes: Mutex<Inodes>,
    files: Files,
}

impl ExportTree {
    /// Makes the trees of the nodes that `transport` reaches. `agent` is this node's own.
    #[must_use]
    pub fn new(transport: Arc<dyn Transport>, agent: Arc<ExportAgent>) -> Self {
        Self {
            transport,
            agent,
            inodes: Mutex::default(),
            files: Files::default(),
        }
    }

    /// Returns the root directory of what a node exports.
    #[must_use]
    pub const fn root(owner: NodeId) -> InodeNo {
        inodes::root(owner)
    }

    fn inodes(&self) -> MutexGuard<'_, Inodes> {
        self.inodes.lock().expect("no holder panics")
    }

    fn inode(&self, ino: InodeNo) -> Result<Inode, Errno> {
        self.inodes().get(ino).cloned().ok_or(Errno::ESTALE)
    }

    /// Returns whose a file is, and where.
    fn at(&self, ino: InodeNo) -> Result<(NodeId, At), Errno> {
        if let Some(owner) = inodes::owner_of_root(ino) {
            let path = FilePath::default();
            return Ok((owner, At { path, ident: None }));
        }
        let inode = self.inode(ino)?;
        Ok((inode.owner, inode.place().ok_or(Errno::ESTALE)?))
    }

    /// Refuses a node that knows nothing of this. A connection tells its version.
    async fn knows_exports(&self, owner: NodeId) -> Result<(), Errno> {
        if self.transport.version_of(owner).is_none() {
            // What all versions answer.
            let body = encode(&DevRequest::Stat(DevPath::default())).into();
            let call = self
                .transport
                .call(owner, ServiceId::Device, body, CALL_DEADLINE);
            call.await?;
        }
        if self.transport.version_of(owner) >= Some(EXPORTS_SINCE) {
            Ok(())
        } else {
            Err(Errno::ENOTSUP)
        }
    }

    async fn ask(&self, owner: NodeId, caller: Caller, what: What) -> Result<Reply, Errno> {
        let who = user(caller);
        let request = Request { who, what };
        let reply = if owner == self.agent.node() {
            let answer = self.agent.answer(request);
            let answer = tokio::time::timeout(CALL_DEADLINE, answer).await;
            answer.map_err(|_| Errno::EIO)?
        } else {
            self.knows_exports(owner).await?;
            let body = encode(&request).into();
            let call = self
                .transport
                .call(owner, ServiceId::Export, body, CALL_DEADLINE);
            let reply = call.await?;
            decode(&reply).map_err(|error| malformed(owner, &error.to_string()))?
        };
        match reply {
            // Only what the kernel takes for an error number is one.
            Reply::Failed(errno @ 1..=4095) => Err(Errno(errno)),
            Reply::Failed(other) => Err(malformed(owner, &format!("errno {other}"))),
            reply => Ok(reply),
        }
    }

    async fn stat(&self, owner: NodeId, caller: Caller, what: What) -> Result<Stat, Errno> {
        match self.ask(owner, caller, what).await? {
            Reply::Stat(stat) => Ok(stat),
            _ => Err(malformed(owner, "no attributes")),
        }
    }

    async fn done(&self, owner: NodeId, caller: Caller, what: What) -> Result<(), Errno> {
        match self.ask(owner, caller, what).await? {
            Reply::Done => Ok(()),
            _ => Err(malformed(owner, "another answer than that it is done")),
        }
    }

    /// Asks about a file by the paths it was seen at, and last as an open one.
    async fn stat_file(
        &self,
        caller: Caller,
        ino: InodeNo,
        inode: &Inode,
        change: Option<Change>,
    ) -> Result<Stat, Errno> {
        let mut gone = Errno::ESTALE;
        for at in inode.places() {
            let what = match change {
                None => What::Stat(at),
                Some(change) => What::Change { at, change },
            };
            match self.stat(inode.owner, caller, what).await {
                Err(error @ Errno::ESTALE) => gone = error,
                told => return told,
            }
        }
        let open = self.files.of(ino).ok_or(gone)?;
        let what = change.map_or(Ask::Stat, |change| Ask::Change {
            who: user(caller),
            change,
        });
        match open.other(what).await? {
            Answer::Stat(stat) => Ok(*stat),
            _ => Err(open.malformed()),
        }
    }

    /// Makes a file known to the kernel.
    fn entry(&self, owner: NodeId, path: FilePath, stat: &Stat, caller: Caller) -> EntryReply {
        let now = Instant::now();
        let number = self.inodes().look_up(owner, path, stat, caller.pid, now);
        EntryReply {
            attr: Some(shown(number, &stat.attr)),
            ttl: NO_CACHE,
            attr_ttl: NO_CACHE,
            hold: Hold::none(),
        }
    }
}

fn malformed(owner: NodeId, why: &str) -> Errno {
    tracing::warn!(%owner, why, "a node sent a malformed reply about its files");
    Errno::EIO
}
