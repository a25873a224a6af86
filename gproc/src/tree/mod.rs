//! `/cluster/proc`.
//!
//! Nothing is cached here but the snapshot of a reader who has listed the tree ([`SNAPSHOT_AGE_MAX`]). The kernel keeps
//! the names of processes that such a reader was shown, for everybody, for a moment (`LISTED_TTL`); else they are asked
//! for each time, and a process that has ended or started is seen so by the next look. The names inside a process's
//! directory never change, so the kernel keeps those.
//!
//! The content of a file is that of the moment it was opened. What has ended is `ESRCH`, what is of a node that does not
//! answer is `EHOSTDOWN`, but for what is known of it ([`crate::silent`]).
//!
//! Lock order: none; every table has a lock of its own and no two are held together.

mod best;
mod content;
mod control;
mod deep;
mod ino;
mod known;
mod names;
mod polls;
mod readers;
mod switches;
mod table;

pub use readers::{SNAPSHOT_AGE_MAX, SNAPSHOTS_MAX};
pub use switches::{Switch, Switches};

use crate::agent::ProcAgent;
use crate::cluster::{AskError, Cluster};
use crate::events::Events;
use crate::pids::ClusterPid;
use crate::wire::{Identity, Who};
use async_trait::async_trait;
use bytes::Bytes;
use consistency::wire::meta::{Attr, FileKind, Name};
use consistency::{InodeNo, NodeId, Timestamp, Version};
use content::{Open, is_read_at_open};
use control::Order;
use dashmap::DashMap;
use deep::{At, Deep, Spot};
use gfs::error::Errno;
use gfs::net::Transport;
use gfs::tree::{
    AttrReply, CACHE, Caller, EntryReply, Hold, ListEntry, ListReply, NO_CACHE, OpenFlags, Opened,
    ReadReply, SetAttrRequest, Tree, Wake,
};
use ino::Ino;
use known::Known;
use names::{Listed, What, kind_at, kind_of_fixed};
use readers::Readers;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use table::{CLUSTER, DIR_MODE, NODE, OfCluster, OfNode, OfProcess, PROCESS, ROOT};

/// Upper limit of files open at a time; each holds its content.
pub const OPEN_FILES_MAX: usize = 65_536;
/// How long the kernel may take a process's owner for true: it changes by setuid(2) and execve(2).
const OWNER_TTL: Duration = Duration::from_secs(1);
/// The same for a file that its owner may do no more with than anybody: it is asked for nothing but to be shown.
const SHOWN_OWNER_TTL: Duration = Duration::from_secs(10);
/// How long the kernel may take a process for alive that is in a snapshot: its reader opens some files of it at once,
/// each by way of its directory.
const LISTED_TTL: Duration = Duration::from_millis(100);
/// Cookies of the root's own names are below those of processes, which are this and the pid.
const COOKIE_PROCESSES: u64 = 1 << 32;
/// Cookies up to here are the adapter's.
const COOKIE_FIRST: u64 = 3;

/// Tells which nodes are being emptied of file data.
pub type TellDraining = Box<dyn Fn() -> BTreeSet<NodeId> + Send + Sync>;

struct Draining(TellDraining);

impl Default for Draining {
    fn default() -> Self {
        Self(Box::new(BTreeSet::new))
    }
}

impl fmt::Debug for Draining {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Draining({:?})", (self.0)())
    }
}

/// The processes of the cluster as a tree.
#[derive(Debug)]
pub struct ProcTree {
    cluster: Arc<Cluster>,
    events: Arc<Events>,
    draining: Draining,
    switches: switches::Kept,
    known: Known,
    deep: Deep,
    readers: Arc<Readers>,
    open: DashMap<u64, Open>,
    next_fh: AtomicU64,
    /// All files are as old as the tree.
    born: Timestamp,
}

impl ProcTree {
    /// The root directory.
    pub const ROOT: InodeNo = Ino::Root.number();

    /// Returns the root of a node's own view: its processes alone, with the numbers that its kernel gave them.
    #[must_use]
    pub const fn own_root(node: NodeId) -> InodeNo {
        Ino::Own(node).number()
    }

    /// Makes the tree of the cluster that `transport` reaches. `agent` is this node's own.
    #[must_use]
    pub fn new(transport: Arc<dyn Transport>, agent: Arc<ProcAgent>) -> Self {
        Self::with_snapshot_age(transport, agent, SNAPSHOT_AGE_MAX)
    }

    fn with_snapshot_age(
        transport: Arc<dyn Transport>,
        agent: Arc<ProcAgent>,
        age_max: Duration,
    ) -> Self {
        let age = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let nanos = age.map_or(0, |age| i64::try_from(age.as_nanos()).unwrap_or(i64::MAX));
        Self {
            cluster: Arc::new(Cluster::new(transport, agent)),
            events: Arc::default(),
            draining: Draining::default(),
            switches: switches::Kept::default(),
            known: Known::default(),
            deep: Deep::default(),
            readers: Arc::new(Readers::new(age_max)),
            open: DashMap::new(),
            next_fh: AtomicU64::new(1),
            born: Timestamp::from_nanos(nanos),
        }
    }

    /// Has the states of nodes show which ones are being emptied.
    #[must_use]
    pub fn with_draining(mut self, draining: TellDraining) -> Self {
        self.draining = Draining(draining);
        self
    }

    /// Keeps what root switches of nodes.
    #[must_use]
    pub fn with_switches(mut self, switches: Arc<dyn Switches>) -> Self {
        self.switches = switches::Kept(Some(switches));
        self
    }

    /// Returns what tells the readers of `cluster/events`.
    #[must_use]
    pub fn events(&self) -> Arc<Events> {
        Arc::clone(&self.events)
    }

    /// Returns who has a pid, for a reader.
    ///
    /// # Errors
    /// EHOSTDOWN if its node does not answer and it is not known: it may live.
    async fn identify(&self, reader: u32, pid: ClusterPid) -> Result<Option<Identity>, Errno> {
        if let Some(record) = self.readers.record(reader, pid) {
            return Ok(Some(record.identity));
        }
        // Not in the snapshot: it may be younger.
        if !self.cluster.nodes().contains(&pid.home()) {
            return Ok(None);
        }
        let as_it_was = || {
            let record = self.cluster.of_silent_node(pid);
            record.map(|record| record.identity)
        };
        if let Some(known) = as_it_was().filter(|_| self.cluster.may_be_silent(pid.home())) {
            return Ok(Some(known));
        }
        self.cluster.identify(pid).await.or_else(|error| {
            tracing::debug!(%pid, %error, "its node does not answer");
            as_it_was().map(Some).ok_or_else(|| error.into())
        })
    }

    /// Returns what a process's inode stands for.
    fn at(&self, ino: Ino) -> Result<At, Errno> {
        let (pid, tag, spot) = match ino {
            Ino::Process(pid, tag) => (pid, tag, Spot::Dir),
            Ino::ProcessFile(pid, tag, row) => (pid, tag, Spot::File(row)),
            Ino::Deep(number) => return self.deep.at(number).ok_or(Errno::ESTALE),
            _ => return Err(Errno::ENOTDIR),
        };
        Ok(At {
            identity: self.known.identity(pid, tag).ok_or(Errno::ESTALE)?,
            own: tag.own(),
            thread: None,
            spot,
        })
    }

    /// Returns what a write to an inode means.
    fn order_of(&self, ino: Ino) -> Option<Written> {
        let at = match ino {
            Ino::NodeFile(node, row) => {
                return match NODE.get(usize::from(row))?.what {
                    OfNode::Switch(order) => Some(Written::Switch(node, order)),
                    _ => None,
                };
            }
            Ino::ClusterFile(row) => {
                let file = CLUSTER.get(usize::from(row))?;
                return match file.what {
                    OfCluster::NoteGroup => Some(Written::Group),
                    OfCluster::LevelList => Some(Written::LevelList),
                    OfCluster::Shows(_) | OfCluster::Events => None,
                };
            }
            Ino::ProcessFile(..) => self.at(ino).ok()?,
            _ => return None,
        };
        let Spot::File(row) = at.spot else {
            return None;
        };
        match PROCESS.get(usize::from(row))?.what {
            OfProcess::Takes(order) | OfProcess::ReadsTakes(.., order) => {
                Some(Written::Order(order, at))
            }
            OfProcess::Known(_)
            | OfProcess::Moves(_)
            | OfProcess::Read(..)
            | OfProcess::Link(_)
            | OfProcess::Dir(_)
            | OfProcess::Wait => None,
        }
    }

    fn attr(&self, ino: Ino) -> Result<Attr, Errno> {
        let (mode, kind, (uid, gid)) = match ino {
            Ino::Process(..) | Ino::ProcessFile(..) | Ino::Deep(_) => {
                let at = self.at(ino)?;
                let mode = match at.spot {
                    Spot::Dir => Some(DIR_MODE),
                    Spot::File(row) => PROCESS.get(usize::from(row)).map(|file| file.mode),
                    Spot::Fd(_) => Some(0o700),
                    Spot::FdInfo(_) => Some(0o444),
                };
                let Identity { uid, gid, .. } = at.identity;
                (mode, kind_at(&at), (uid, gid))
            }
            _ => {
                let mode = match ino {
                    Ino::SelfLink(_) => Some(0o777),
                    Ino::RootFile(row) | Ino::OwnFile(_, row) => {
                        ROOT.get(usize::from(row)).map(|file| file.mode)
                    }
                    Ino::ClusterFile(row) => CLUSTER.get(usize::from(row)).map(|file| file.mode),
                    Ino::NodeFile(_, row) => NODE.get(usize::from(row)).map(|file| file.mode),
                    _ => Some(DIR_MODE),
                };
                (mode, kind_of_fixed(ino), (0, 0))
            }
        };
        Ok(Attr {
            ino: ino.number(),
            kind,
            mode: mode.ok_or(Errno::ESTALE)?,
            nlink: if kind == FileKind::Dir { 2 } else { 1 },
            uid,
            gid,
            rdev: 0,
            size: 0,
            blocks: 0,
            atime: self.born,
            mtime: self.born,
            ctime: self.born,
            btime: self.born,
            version: Version(1),
        })
    }

    /// Makes what a name stands for known to the kernel, for a reader who has it from its snapshot or not.
    fn enter(&self, what: What, listed: bool) -> Result<EntryReply, Errno> {
        let ino = match what {
            What::Fixed(ino) => ino,
            What::Of(at) if kind_at(&at) == FileKind::Symlink => {
                Ino::Deep(self.deep.look_at_link(at))
            }
            What::Of(at) => {
                let pid = at.identity.pid;
                match (at.thread, at.spot) {
                    (None, Spot::Dir) => Ino::Process(pid, self.known.look_up(at.identity, at.own)),
                    (None, Spot::File(row)) => {
                        Ino::ProcessFile(pid, self.known.look_up(at.identity, at.own), row)
                    }
                    _ => Ino::Deep(self.deep.look_up(at)),
                }
            }
        };
        let ttl = match (ino, what) {
            (Ino::Process(..), What::Of(at)) if listed && at.identity.hidden.is_none() => {
                LISTED_TTL
            }
            // Names of what comes and goes, and of what differs from caller to caller.
            (Ino::Node(_) | Ino::Process(..) | Ino::SelfLink(_) | Ino::Deep(_), _) => NO_CACHE,
            _ => CACHE,
        };
        Ok(EntryReply {
            attr: Some(self.attr(ino)?),
            ttl,
            attr_ttl: attr_ttl(ino),
            hold: Hold::none(),
        })
    }

    fn is_events(&self, ino: Ino) -> bool {
        let Ino::ClusterFile(row) = ino else {
            return false;
        };
        let file = CLUSTER.get(usize::from(row));
        file.is_some_and(|file| matches!(file.what, OfCluster::Events))
    }

    /// Reads what comes, and waits for it.
    async fn read_events(
        &self,
        fh: u64,
        position: u64,
        rest: Option<Bytes>,
        size: u32,
    ) -> Result<ReadReply, Errno> {
        let (mut rest, position) = match rest {
            Some(rest) => (rest, position),
            None => {
                let (lines, position) = self.events.behind(position).await;
                (lines.into(), position)
            }
        };
        let data = rest.split_to(rest.len().min(size as usize));
        if let Some(mut open) = self.open.get_mut(&fh) {
            open.position = Some(position);
            open.content = Some(rest);
        }
        Ok(ReadReply {
            data,
            grown: None,
            hold: Hold::none(),
        })
    }

    fn parent(&self, ino: Ino) -> Option<Ino> {
        match ino {
            Ino::Root | Ino::Own(_) | Ino::Deep(_) => None,
            Ino::Node(_) => Some(Ino::Cluster),
            Ino::OwnFile(node, _) => Some(Ino::Own(node)),
            Ino::Process(pid, tag) if tag.own() => Some(Ino::Own(pid.home())),
            Ino::ProcessFile(pid, tag, _) => Some(Ino::Process(pid, tag)),
            _ => Some(Ino::Root),
        }
    }
}

#[async_trait]
impl Tree for ProcTree {
    async fn lookup(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: &Name,
    ) -> Result<EntryReply, Errno> {
        let parent = Ino::of(parent).ok_or(Errno::ESTALE)?;
        match self.find_in(caller, parent, name.as_bytes()).await? {
            Some(what) => {
                let listed = matches!(what, What::Of(at) if self.readers.record(caller.pid, at.identity.pid).is_some());
                self.enter(what, listed)
            }
            None => Ok(EntryReply {
                attr: None,
                // Only here do no names come later.
                ttl: match parent {
                    Ino::Process(..) | Ino::Node(_) => CACHE,
                    _ => NO_CACHE,
                },
                attr_ttl: NO_CACHE,
                hold: Hold::none(),
            }),
        }
    }

    fn forget(&self, ino: InodeNo, count: u64) {
        match Ino::of(ino) {
            Some(Ino::Process(pid, tag) | Ino::ProcessFile(pid, tag, _)) => {
                self.known.forget(pid, tag, count);
            }
            Some(Ino::Deep(number)) => self.deep.forget(number, count),
            _ => {}
        }
    }

    async fn getattr(&self, _: Caller, ino: InodeNo, _: Option<u64>) -> Result<AttrReply, Errno> {
        let ino = Ino::of(ino).ok_or(Errno::ESTALE)?;
        Ok(AttrReply {
            attr: self.attr(ino)?,
            ttl: attr_ttl(ino),
            hold: Hold::none(),
        })
    }

    async fn setattr(
        &self,
        caller: Caller,
        ino: InodeNo,
        set: SetAttrRequest,
    ) -> Result<AttrReply, Errno> {
        let opened = Ino::of(ino).ok_or(Errno::ESTALE)?;
        // The shell truncates what it writes to.
        if set.size == Some(0) && self.order_of(opened).is_some() {
            return self.getattr(caller, ino, set.fh).await;
        }
        // Truncation is a write.
        Err(if set.size.is_some() {
            Errno::EACCES
        } else {
            Errno::EPERM
        })
    }

    async fn readlink(&self, caller: Caller, ino: InodeNo) -> Result<Bytes, Errno> {
        self.target(caller, Ino::of(ino).ok_or(Errno::ESTALE)?)
            .await
    }

    async fn open(&self, caller: Caller, ino: InodeNo, flags: OpenFlags) -> Result<Opened, Errno> {
        let ino = Ino::of(ino).ok_or(Errno::ESTALE)?;
        let written = self.order_of(ino);
        if flags.writes() && written.is_none() {
            return Err(Errno::EACCES);
        }
        if self.open.len() >= OPEN_FILES_MAX {
            return Err(Errno(libc::ENFILE));
        }
        let at_open = match (ino, written) {
            (_, Some(Written::Order(..))) => flags.0 & libc::O_ACCMODE == libc::O_RDONLY,
            (Ino::ProcessFile(..) | Ino::Deep(_), _) => is_read_at_open(&self.at(ino)?),
            _ => false,
        };
        let content = match at_open {
            true => Some(self.content(caller, ino).await?),
            false => None,
        };
        let fh = self.next_fh.fetch_add(1, Ordering::Relaxed);
        let position = self.is_events(ino).then(|| self.events.position());
        let open = Open {
            content,
            position,
            opener: who(caller),
            ..Open::default()
        };
        self.open.insert(fh, open);
        Ok(Opened {
            fh,
            // The size is told as 0, as on procfs: only a direct read gets at the content.
            direct_io: true,
            noflush: true,
            nonseekable: position.is_some(),
            ..Opened::default()
        })
    }

    async fn read(
        &self,
        caller: Caller,
        ino: InodeNo,
        fh: u64,
        offset: u64,
        size: u32,
        flags: OpenFlags,
    ) -> Result<ReadReply, Errno> {
        let open = self.open.get(&fh).ok_or(Errno(libc::EBADF))?.clone();
        if let Some(position) = open.position {
            let rest = open.content.filter(|rest| !rest.is_empty());
            let nothing = rest.is_none() && self.events.position() <= position;
            if nothing && flags.0 & libc::O_NONBLOCK != 0 {
                return Err(Errno(libc::EAGAIN));
            }
            return self.read_events(fh, position, rest, size).await;
        }
        let ended = match &open.polled {
            Some(polled) => polled.ended().await,
            None => None,
        };
        let content = match (open.content, ended) {
            (Some(content), _) if offset > 0 || !open.read => content,
            (_, Some(ended)) => ended,
            _ => {
                self.content(caller, Ino::of(ino).ok_or(Errno::ESTALE)?)
                    .await?
            }
        };
        if let Some(mut open) = self.open.get_mut(&fh) {
            open.content = Some(content.clone());
            open.read |= offset == 0;
        }
        let from = usize::try_from(offset).map_or(content.len(), |from| from.min(content.len()));
        let to = from.saturating_add(size as usize).min(content.len());
        Ok(ReadReply {
            data: content.slice(from..to),
            grown: None,
            hold: Hold::none(),
        })
    }

    async fn write(
        &self,
        caller: Caller,
        ino: InodeNo,
        _: u64,
        offset: u64,
        data: Bytes,
        _: OpenFlags,
        _: bool,
        _: bool,
    ) -> Result<u32, Errno> {
        let ino = Ino::of(ino).ok_or(Errno::ESTALE)?;
        match self.order_of(ino).ok_or(Errno(libc::EBADF))? {
            Written::Order(order, at) => self.order(who(caller), order, &at, &data).await?,
            Written::LevelList => self.set_level_list(offset, &data).await?,
            Written::Group => self.note_group(who(caller), &data).await?,
            Written::Switch(node, order) => self.switch(node, order, &data).await?,
        }
        Ok(u32::try_from(data.len()).expect("an order is short"))
    }

    async fn poll(&self, ino: InodeNo, fh: u64, wake: Option<Wake>) -> Result<u32, Errno> {
        self.poll_file(Ino::of(ino).ok_or(Errno::ESTALE)?, fh, wake)
            .await
    }

    async fn release(&self, _: InodeNo, fh: u64) {
        self.open.remove(&fh);
    }

    async fn readdir(
        &self,
        caller: Caller,
        ino: InodeNo,
        after: u64,
        limit: usize,
        plus: bool,
    ) -> Result<ListReply, Errno> {
        let ino = Ino::of(ino).ok_or(Errno::ESTALE)?;
        let limit = limit.max(1);
        let listed = self.list(caller, ino, after, limit).await?;
        let parent = self.parent(ino).map(Ino::number);
        let enter = |listed: Listed| {
            let entry = plus.then(|| self.enter(listed.what, true)).transpose()?;
            let made = entry.as_ref().and_then(|entry| entry.attr.as_ref());
            Ok(ListEntry {
                ino: made.map_or_else(|| listed.what.number(), |attr| attr.ino),
                name: Name::new(listed.name)?,
                kind: listed.what.kind(),
                cookie: listed.cookie,
                entry,
            })
        };
        let entries = listed.into_iter().take(limit).map(enter);
        Ok(ListReply {
            parent,
            entries: entries.collect::<Result<_, Errno>>()?,
        })
    }
}

/// What a write means.
enum Written {
    Order(Order, At),
    Group,
    LevelList,
    Switch(NodeId, switches::Order),
}

/// How long the kernel may keep attributes; see [`EntryReply::attr_ttl`].
fn attr_ttl(ino: Ino) -> Duration {
    match ino {
        Ino::ProcessFile(_, _, row) => match PROCESS.get(usize::from(row)) {
            // The kernel asks for them before it opens a file, to see who may.
            Some(file) if file.mode >> 6 == file.mode & 0o7 => SHOWN_OWNER_TTL,
            _ => OWNER_TTL,
        },
        Ino::Process(..) | Ino::Deep(_) => OWNER_TTL,
        _ => CACHE,
    }
}

const fn who(caller: Caller) -> Who {
    Who {
        uid: caller.uid,
        gid: caller.gid,
    }
}

impl From<AskError> for Errno {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Net(_) => Self(libc::EHOSTDOWN),
            AskError::Confused(_) | AskError::Failed(_) => {
                tracing::warn!(%error, "cannot read a process");
                Self::EIO
            }
        }
    }
}

#[cfg(test)]
mod tests;
