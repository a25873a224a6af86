//! `/cluster/proc`.
//!
//! Nothing is cached here but the snapshot of a reader who has listed the tree ([`SNAPSHOT_AGE_MAX`]): names
//! of processes are asked for each time, and a process that has ended or started is seen so by the next look. The
//! names inside a process's directory never change, so the kernel keeps those.
//!
//! The content of a file is that of the moment it was opened. What has ended is `ESRCH`, a node that does not answer
//! is `EHOSTDOWN`; its processes are absent.
//!
//! Lock order: none; every table has a lock of its own and no two are held together.

mod control;
mod ino;
mod known;
mod readers;
mod table;

pub use readers::{SNAPSHOT_AGE_MAX, SNAPSHOTS_MAX};

use crate::agent::ProcAgent;
use crate::cluster::{AskError, Cluster, View};
use crate::pids::ClusterPid;
use crate::wire::{Identity, ProcFile, Record};
use async_trait::async_trait;
use bytes::Bytes;
use consistency::wire::meta::{Attr, FileKind, Name};
use consistency::wire::node::NodeLoad;
use consistency::{InodeNo, NodeId, Timestamp, Version};
use control::Order;
use dashmap::DashMap;
use gfs::error::Errno;
use gfs::net::Transport;
use gfs::tree::{
    AttrReply, CACHE, Caller, EntryReply, Hold, ListEntry, ListReply, NO_CACHE, OpenFlags, Opened,
    ReadReply, SetAttrRequest, Tree,
};
use ino::{Ino, Row};
use known::Known;
use readers::Readers;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};
use table::{CLUSTER, DIR_MODE, NODE, PROCESS};

/// Upper limit of files open at a time; each holds its content.
pub const OPEN_FILES_MAX: usize = 65_536;
/// How long the kernel may take a process's owner for true: it changes by setuid(2) and execve(2).
const OWNER_TTL: Duration = Duration::from_secs(1);
/// Cookies of the root's own names are below those of processes, which are this and the pid.
const COOKIE_PROCESSES: u64 = 1 << 32;
/// Cookies up to here are the adapter's.
const COOKIE_FIRST: u64 = 3;

/// The processes of the cluster as a tree.
#[derive(Debug)]
pub struct ProcTree {
    cluster: Cluster,
    known: Known,
    readers: Arc<Readers>,
    open: DashMap<u64, Bytes>,
    next_fh: AtomicU64,
    /// All files are as old as the tree.
    born: Timestamp,
}

impl ProcTree {
    /// The root directory.
    pub const ROOT: InodeNo = Ino::Root.number();

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
            cluster: Cluster::new(transport, agent),
            known: Known::default(),
            readers: Arc::new(Readers::new(age_max)),
            open: DashMap::new(),
            next_fh: AtomicU64::new(1),
            born: Timestamp::from_nanos(nanos),
        }
    }

    /// Returns who has a pid, for a reader.
    async fn identify(&self, reader: u32, pid: ClusterPid) -> Option<Identity> {
        let kept = self.readers.view(reader);
        if let Some(record) = kept.as_ref().and_then(|view| view.processes.get(&pid)) {
            return Some(record.identity);
        }
        // Not in the snapshot: it may be younger.
        if !self.cluster.nodes().contains(&pid.home()) {
            return None;
        }
        let identity = self.cluster.identify(pid).await;
        // A process of a node that is down is absent.
        identity.unwrap_or_else(|error| {
            tracing::debug!(%pid, %error, "it is not shown");
            None
        })
    }

    async fn content(&self, caller: Caller, ino: Ino) -> Result<Bytes, Errno> {
        match ino {
            Ino::Root | Ino::Cluster | Ino::Node(_) | Ino::Process(..) => Err(Errno(libc::EISDIR)),
            Ino::SelfLink(_) => Err(Errno(libc::ELOOP)),
            Ino::ClusterFile(row) => {
                let file = CLUSTER.get(usize::from(row)).ok_or(Errno::ESTALE)?;
                Ok((file.show)(&self.cluster.loads().await).into())
            }
            Ino::NodeFile(node, row) => {
                let file = NODE.get(usize::from(row)).ok_or(Errno::ESTALE)?;
                let load: Option<NodeLoad> = self.cluster.load(node).await.ok();
                Ok((file.show)(load.as_ref())?.into())
            }
            Ino::ProcessFile(pid, tag, row) => {
                let identity = self.known.identity(pid, tag).ok_or(Errno::ESTALE)?;
                self.process_content(caller.pid, identity, row).await
            }
        }
    }

    async fn process_content(
        &self,
        reader: u32,
        identity: Identity,
        row: Row,
    ) -> Result<Bytes, Errno> {
        let file = PROCESS.get(usize::from(row)).ok_or(Errno::ESTALE)?;
        let (from, show) = match file.what {
            table::What::Known(show) => {
                let now = self.identify(reader, identity.pid).await;
                let alive = now.is_some_and(|now| now.birth == identity.birth);
                return alive.then(|| show(&identity).into()).ok_or(Errno::ESRCH);
            }
            table::What::Read(from, show) => (from, show),
            // Root, who may open it all the same, reads nothing.
            table::What::Order(_) => return Err(Errno::EACCES),
        };
        let kept = self.readers.view(reader).and_then(|view| {
            let record = view.processes.get(&identity.pid)?;
            (record.identity.birth == identity.birth).then(|| record.kept(from))?
        });
        let content = match kept {
            Some(content) => content,
            None => {
                let content = self.cluster.read(identity.pid, identity.birth, from);
                content.await?.ok_or(Errno::ESRCH)?
            }
        };
        Ok(show(content))
    }

    /// Returns what a write to an inode means.
    fn order_of(ino: Ino) -> Option<Order> {
        let Ino::ProcessFile(.., row) = ino else {
            return None;
        };
        match PROCESS.get(usize::from(row))?.what {
            table::What::Order(order) => Some(order),
            table::What::Known(_) | table::What::Read(..) => None,
        }
    }

    fn attr(&self, ino: Ino) -> Result<Attr, Errno> {
        let mode = match ino {
            Ino::Root | Ino::Cluster | Ino::Node(_) | Ino::Process(..) => Some(DIR_MODE),
            Ino::SelfLink(_) => Some(0o777),
            Ino::ClusterFile(row) => CLUSTER.get(usize::from(row)).map(|file| file.mode),
            Ino::NodeFile(_, row) => NODE.get(usize::from(row)).map(|file| file.mode),
            Ino::ProcessFile(_, _, row) => PROCESS.get(usize::from(row)).map(|file| file.mode),
        };
        let kind = ino.kind();
        let (uid, gid) = match ino {
            Ino::Process(pid, tag) | Ino::ProcessFile(pid, tag, _) => {
                let identity = self.known.identity(pid, tag).ok_or(Errno::ESTALE)?;
                (identity.uid, identity.gid)
            }
            Ino::Root
            | Ino::Cluster
            | Ino::ClusterFile(_)
            | Ino::Node(_)
            | Ino::NodeFile(..)
            | Ino::SelfLink(_) => (0, 0),
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

    fn entry(&self, ino: Ino) -> Result<EntryReply, Errno> {
        let ttl = match ino {
            // Names of what comes and goes, and of what differs from caller to caller.
            Ino::Node(_) | Ino::Process(..) | Ino::SelfLink(_) => NO_CACHE,
            Ino::Root
            | Ino::Cluster
            | Ino::ClusterFile(_)
            | Ino::NodeFile(..)
            | Ino::ProcessFile(..) => CACHE,
        };
        Ok(EntryReply {
            attr: Some(self.attr(ino)?),
            ttl,
            hold: Hold::none(),
        })
    }

    /// Finds a name in the root.
    async fn find_in_root(&self, caller: Caller, name: &[u8]) -> Option<Ino> {
        match name {
            b"cluster" => Some(Ino::Cluster),
            b"self" => self.own_link(caller).await,
            _ => {
                let identity = self.identify(caller.pid, ClusterPid::parse(name)?).await?;
                let tag = self.known.look_up(identity);
                Some(Ino::Process(identity.pid, tag))
            }
        }
    }

    async fn own_link(&self, caller: Caller) -> Option<Ino> {
        let own = self.cluster.agent().process_of(caller.pid).await;
        own.map(Ino::SelfLink)
    }

    /// Returns the names in any directory but the root.
    fn names(&self, ino: Ino) -> Result<Vec<(String, Ino)>, Errno> {
        let names = match ino {
            Ino::Cluster => {
                let node = |node: NodeId| (format!("node{node}"), Ino::Node(node));
                let nodes = self.cluster.nodes().into_iter().map(node);
                rows(CLUSTER.iter().map(|file| file.name), Ino::ClusterFile)
                    .chain(nodes)
                    .collect()
            }
            Ino::Node(node) => {
                let file = |row| Ino::NodeFile(node, row);
                rows(NODE.iter().map(|file| file.name), file).collect()
            }
            Ino::Process(pid, tag) => {
                let file = |row| Ino::ProcessFile(pid, tag, row);
                rows(PROCESS.iter().map(|file| file.name), file).collect()
            }
            Ino::Root
            | Ino::ClusterFile(_)
            | Ino::NodeFile(..)
            | Ino::ProcessFile(..)
            | Ino::SelfLink(_) => return Err(Errno::ENOTDIR),
        };
        Ok(names)
    }

    /// Lists a directory behind a cookie, in ascending order of cookies, at least `limit` entries if there are.
    async fn list(
        &self,
        caller: Caller,
        ino: Ino,
        after: u64,
        limit: usize,
    ) -> Result<Vec<Listed>, Errno> {
        if ino == Ino::Root {
            return Ok(self.list_root(caller, after, limit).await);
        }
        if let Ino::Process(pid, tag) = ino {
            let identity = self.known.identity(pid, tag).ok_or(Errno::ESTALE)?;
            let now = self.identify(caller.pid, pid).await;
            now.filter(|now| now.birth == identity.birth)
                .ok_or(Errno::ENOENT)?;
        }
        Ok(fixed(self.names(ino)?, after))
    }

    async fn list_root(&self, caller: Caller, after: u64, limit: usize) -> Vec<Listed> {
        let mut listed = Vec::new();
        if after < COOKIE_PROCESSES {
            let own = self.own_link(caller).await.map(|ino| ("self".into(), ino));
            let own = [("cluster".into(), Ino::Cluster)].into_iter().chain(own);
            listed = fixed(own.collect(), after);
        }
        let view = self.listing_view(caller.pid, after).await;
        let cookie = |pid: ClusterPid| COOKIE_PROCESSES + u64::from(pid.number());
        let rest = view.processes.values().map(|record| record.identity);
        let rest = rest.skip_while(|identity| cookie(identity.pid) <= after);
        listed.extend(rest.take(limit).map(|identity| Listed {
            cookie: cookie(identity.pid),
            name: identity.pid.to_string(),
            what: What::Process(identity),
        }));
        listed
    }

    /// Takes a snapshot when a listing begins and uses it up to its end.
    async fn listing_view(&self, reader: u32, after: u64) -> Arc<View> {
        if after != 0
            && let Some(view) = self.readers.view(reader)
        {
            return view;
        }
        let taken = Instant::now();
        let view = Arc::new(self.cluster.view().await);
        self.readers.keep(reader, taken, &view);
        view
    }

    /// Makes a listed inode known to the kernel.
    fn enter(&self, what: What) -> Result<EntryReply, Errno> {
        match what {
            What::Process(identity) => {
                let tag = self.known.look_up(identity);
                self.entry(Ino::Process(identity.pid, tag))
            }
            What::Fixed(ino) => {
                self.look_up(ino)?;
                self.entry(ino)
            }
        }
    }

    /// Counts a lookup of an inode whose process is known.
    fn look_up(&self, ino: Ino) -> Result<(), Errno> {
        match ino {
            Ino::Process(pid, tag) | Ino::ProcessFile(pid, tag, _) => {
                let known = self.known.look_up_again(pid, tag);
                known.then_some(()).ok_or(Errno::ESTALE)
            }
            Ino::Root
            | Ino::Cluster
            | Ino::ClusterFile(_)
            | Ino::Node(_)
            | Ino::NodeFile(..)
            | Ino::SelfLink(_) => Ok(()),
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
        if parent == Ino::Root {
            // What finds a process has counted the lookup.
            return match self.find_in_root(caller, name.as_bytes()).await {
                Some(ino) => self.entry(ino),
                None => Ok(absent(NO_CACHE)),
            };
        }
        let mut names = self.names(parent)?.into_iter();
        match names.find(|(found, _)| found.as_bytes() == name.as_bytes()) {
            Some((_, ino)) => {
                self.look_up(ino)?;
                self.entry(ino)
            }
            None => Ok(absent(if parent == Ino::Cluster {
                NO_CACHE
            } else {
                CACHE
            })),
        }
    }

    fn forget(&self, ino: InodeNo, count: u64) {
        if let Some(Ino::Process(pid, tag) | Ino::ProcessFile(pid, tag, _)) = Ino::of(ino) {
            self.known.forget(pid, tag, count);
        }
    }

    async fn getattr(&self, _: Caller, ino: InodeNo, _: Option<u64>) -> Result<AttrReply, Errno> {
        let ino = Ino::of(ino).ok_or(Errno::ESTALE)?;
        let of_process = matches!(ino, Ino::Process(..) | Ino::ProcessFile(..));
        Ok(AttrReply {
            attr: self.attr(ino)?,
            ttl: if of_process { OWNER_TTL } else { CACHE },
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
        if set.size == Some(0) && Self::order_of(opened).is_some() {
            return self.getattr(caller, ino, set.fh).await;
        }
        // Truncation is a write.
        Err(if set.size.is_some() {
            Errno::EACCES
        } else {
            Errno::EPERM
        })
    }

    async fn readlink(&self, _: Caller, ino: InodeNo) -> Result<Bytes, Errno> {
        match Ino::of(ino).ok_or(Errno::ESTALE)? {
            Ino::SelfLink(pid) => Ok(pid.to_string().into()),
            Ino::Root
            | Ino::Cluster
            | Ino::ClusterFile(_)
            | Ino::Node(_)
            | Ino::NodeFile(..)
            | Ino::Process(..)
            | Ino::ProcessFile(..) => Err(Errno::EINVAL),
        }
    }

    async fn open(&self, caller: Caller, ino: InodeNo, flags: OpenFlags) -> Result<Opened, Errno> {
        let ino = Ino::of(ino).ok_or(Errno::ESTALE)?;
        if flags.writes() {
            // Each write stands alone: there is nothing to keep.
            return match Self::order_of(ino) {
                Some(_) if flags.0 & libc::O_ACCMODE == libc::O_WRONLY => Ok(Opened {
                    fh: 0,
                    direct_io: true,
                    noflush: true,
                    ..Opened::default()
                }),
                _ => Err(Errno::EACCES),
            };
        }
        if self.open.len() >= OPEN_FILES_MAX {
            return Err(Errno(libc::ENFILE));
        }
        let content = self.content(caller, ino).await?;
        let fh = self.next_fh.fetch_add(1, Ordering::Relaxed);
        self.open.insert(fh, content);
        Ok(Opened {
            fh,
            // The size is told as 0, as on procfs: only a direct read gets at the content.
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
        offset: u64,
        size: u32,
        _: OpenFlags,
    ) -> Result<ReadReply, Errno> {
        let content = self.open.get(&fh).ok_or(Errno(libc::EBADF))?;
        let from = usize::try_from(offset).map_or(content.len(), |from| from.min(content.len()));
        let to = from.saturating_add(size as usize).min(content.len());
        Ok(ReadReply {
            data: content.slice(from..to),
            hold: Hold::none(),
        })
    }

    async fn write(
        &self,
        caller: Caller,
        ino: InodeNo,
        _: u64,
        _: u64,
        data: Bytes,
        _: OpenFlags,
        _: bool,
        _: bool,
    ) -> Result<u32, Errno> {
        let ino = Ino::of(ino).ok_or(Errno::ESTALE)?;
        let (Some(order), Ino::ProcessFile(pid, tag, _)) = (Self::order_of(ino), ino) else {
            return Err(Errno(libc::EBADF));
        };
        let identity = self.known.identity(pid, tag).ok_or(Errno::ESTALE)?;
        self.order(caller, order, identity, &data).await?;
        Ok(u32::try_from(data.len()).expect("an order is short"))
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
        let parent = match ino {
            Ino::Root => None,
            Ino::Node(_) => Some(Ino::Cluster.number()),
            Ino::Cluster
            | Ino::ClusterFile(_)
            | Ino::NodeFile(..)
            | Ino::Process(..)
            | Ino::ProcessFile(..)
            | Ino::SelfLink(_) => Some(Ino::Root.number()),
        };
        let enter = |listed: Listed| {
            let entry = plus.then(|| self.enter(listed.what)).transpose()?;
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

fn absent(ttl: Duration) -> EntryReply {
    EntryReply {
        attr: None,
        ttl,
        hold: Hold::none(),
    }
}

/// Returns the names of a table with their inodes.
fn rows(
    names: impl Iterator<Item = &'static str>,
    ino: impl Fn(Row) -> Ino,
) -> impl Iterator<Item = (String, Ino)> {
    (0..)
        .zip(names)
        .map(move |(row, name)| (name.into(), ino(row)))
}

/// Returns the entries behind a cookie of a directory with these names.
fn fixed(names: Vec<(String, Ino)>, after: u64) -> Vec<Listed> {
    let listed = |(cookie, (name, ino))| Listed {
        cookie,
        name,
        what: What::Fixed(ino),
    };
    (COOKIE_FIRST..)
        .zip(names)
        .filter(|(cookie, _)| *cookie > after)
        .map(listed)
        .collect()
}

/// A name in a listing.
struct Listed {
    cookie: u64,
    name: String,
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    Fixed(Ino),
    Process(Identity),
}

impl What {
    fn number(self) -> InodeNo {
        match self {
            Self::Fixed(ino) => ino.number(),
            Self::Process(identity) => {
                Ino::Process(identity.pid, known::first_tag(identity.birth)).number()
            }
        }
    }

    const fn kind(self) -> FileKind {
        match self {
            Self::Process(_) => FileKind::Dir,
            Self::Fixed(ino) => ino.kind(),
        }
    }
}

impl Record {
    /// Returns a file if the snapshot has it.
    fn kept(&self, file: ProcFile) -> Option<Bytes> {
        match file {
            ProcFile::Stat => Some(self.stat.clone()),
            ProcFile::Status => Some(self.status.clone()),
            ProcFile::Cmdline => self.cmdline.clone(),
        }
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
