//! Everything the cluster knows about its files: one deterministic state machine in memory.
//!
//! The replicated log applies the same [`Command`]s in the same order on every voter, so nothing here reads a
//! clock, rolls dice or iterates over a hash map. What the operations of the tree do is in [`super::ops`], one
//! file each; this module keeps the records.
//!
//! # Words
//! - *inode*: attributes, xattrs and a [`Payload`] (directory, content map, target).
//! - *orphan*: an inode without a name, be it that it lost the last one or was made without. It lives on while a session knows it and goes with [`Body::Reap`].
//! - *chunk*: live while an extent refers to it, dead from then on until the chunk stores have deleted it.
//!
//! # Rules
//! - Exactly once: the result of a change is recorded under (session, sequence) by the `apply` that makes it.
//! - All or nothing: an operation that fails has changed nothing.
//! - S6: `now` is strictly later than every stamp given out before; no `ctime` is later than `now`.
//! - [`MetaState::check`] says in code what else always holds.

mod check;
mod chunks;
mod command;
mod content;
mod dir;
mod files;
mod inode;
#[cfg(test)]
mod large;
mod quota;
#[cfg(test)]
mod restart;
mod session;
mod shared;
mod snapshot;
#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "small numbers")]
pub(crate) mod tests;
mod told;

pub use check::{FAULTS_MAX, Fault};
pub use chunks::{Held, Listed, REPLICAS_MAX, Step};
pub use command::{Body, Command, Reply};
pub use files::FileOf;
pub use session::RESULTS_MAX;

pub(crate) use chunks::{ChunkState, ChunkTable, Replicas};
pub(crate) use content::{Extents, FileContent, Piece, RefChange};
pub(crate) use dir::{Directory, Dirent};
pub(crate) use inode::{Inode, Payload};
pub(crate) use quota::{Limits, Quotas};
pub(crate) use session::Sessions;
pub(crate) use shared::Shared;
pub(crate) use told::{Recent, Recorded};

use super::machine::{StateMachine, Unreadable};
use super::ops;
use consistency::wire::meta::{Attr, Fact, FileKind, FsError, OpReply};
use consistency::wire::watch::Event;
use consistency::{ChunkId, Epoch, InodeNo, NodeId, OpSeq, SessionId, Timestamp};
use imbl::OrdMap;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The metadata of the whole tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetaState {
    /// The last stamp given out.
    pub(crate) now: Timestamp,
    /// Not in the map itself, because a node of that is often half empty: an empty slot then costs a pointer, not a record.
    pub(crate) inodes: OrdMap<InodeNo, Shared<Inode>>,
    pub(crate) next_ino: InodeNo,
    pub(crate) orphans: BTreeSet<InodeNo>,
    /// Those of them that never had a name and may be given one (O_TMPFILE).
    pub(crate) unnamed: BTreeSet<InodeNo>,
    pub(crate) chunks: ChunkTable,
    pub(crate) sessions: Sessions,
    pub(crate) quotas: Quotas,
    /// The last one that began.
    pub(crate) reign: Epoch,
    /// What all voters speak: the log has nothing that a younger version has added. Not in every format of snapshots.
    #[serde(skip, default = "first_version")]
    pub(crate) version: u32,
    /// Certificates of a node are good if they were issued later than this (RV1). Not in every format of snapshots.
    #[serde(skip)]
    pub(crate) revoked: BTreeMap<NodeId, Timestamp>,
    /// What watchers may still have to be told; no part of the state.
    #[serde(skip)]
    pub(crate) recent: Recent,
}

/// That of clusters that nobody has raised.
const fn first_version() -> u32 {
    snapshot::VERSION_OF_FORMAT_3
}

/// How much of everything there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Inodes, orphans included.
    pub inodes: u64,
    /// Inodes without a name.
    pub orphans: u64,
    /// Chunks that files refer to.
    pub chunks_live: u64,
    /// Chunks that wait for their deletion.
    pub chunks_dead: u64,
    /// Sessions that have not ended.
    pub sessions: u64,
}

impl Default for MetaState {
    fn default() -> Self {
        let root = Inode::root();
        Self {
            now: Timestamp::default(),
            next_ino: InodeNo(root.attr.ino.0 + 1),
            inodes: OrdMap::unit(root.attr.ino, root.into()),
            orphans: BTreeSet::new(),
            unnamed: BTreeSet::new(),
            chunks: ChunkTable::default(),
            reign: Epoch(0),
            version: first_version(),
            revoked: BTreeMap::new(),
            sessions: Sessions::default(),
            quotas: Quotas::default(),
            recent: Recent::default(),
        }
    }
}

impl StateMachine for MetaState {
    type Command = Command;
    type Reply = Reply;

    fn apply(&mut self, command: &Command) -> Reply {
        let now = self.tick(command.now);
        match &command.body {
            Body::OpenSession { node, attempt } => match self.sessions.open(*node, *attempt) {
                Some((session, new)) => Reply::Session { session, new },
                None => Reply::SessionEnded,
            },
            Body::BeginReign => {
                let passed = u64::from(!missing!(OneReign) || self.reign == Epoch(0));
                self.reign = Epoch(self.reign.0 + passed);
                Reply::Reign(self.reign)
            }
            Body::EndSession(session) => {
                self.sessions.end(*session);
                Reply::Done
            }
            Body::Change {
                session,
                seq,
                done_below,
                op,
            } => {
                let Some(record) = self.sessions.record_mut(*session) else {
                    return Reply::SessionEnded;
                };
                record.forget_below(*done_below);
                if let Some(reply) = record.answer(*seq, now)
                    && !missing!(Twice)
                {
                    return reply;
                }
                if record.is_full() {
                    // Not recorded: a retry may find room, and nothing has happened yet.
                    return Reply::Op {
                        now,
                        result: Err(FsError::Busy),
                        again: false,
                    };
                }
                let told = self.recent.is_on().then(|| told::before(self, op));
                let result = ops::apply(self, now, *session, op);
                if let Some(mut told) = told.filter(|_| result.is_ok()) {
                    told::after(self, &mut told);
                    self.keep_told(*session, told);
                }
                // A flush may have taken the clock further (see `ops::flush`).
                let now = self.now;
                if let Some(record) = self.sessions.record_mut(*session) {
                    record.keep(*seq, now, result.clone());
                }
                Reply::Op {
                    now,
                    result,
                    again: false,
                }
            }
            Body::Reap(inodes) => Reply::Dead(self.reap(inodes)),
            Body::ForgetDead(chunks) => {
                self.chunks.forget_dead(chunks);
                Reply::Done
            }
            Body::Repair { reign, steps } => {
                let mut step = |step: &Step| *reign == self.reign && self.chunks.step(*step);
                Reply::Repaired(steps.iter().map(&mut step).collect())
            }
            Body::ForgetDeadOn(node) => {
                self.chunks.forget_dead_on(*node);
                Reply::Done
            }
            Body::RaiseVersion(version) => {
                self.version = self.version.max(*version);
                Reply::Done
            }
            Body::Drain { node, drain } => {
                self.chunks.drain(*node, *drain);
                Reply::Done
            }
            Body::Watched(true) => {
                self.recent.begin(now);
                Reply::Done
            }
            Body::Watched(false) => {
                self.recent.end();
                Reply::Done
            }
            Body::Closed { session, files } => {
                if self.recent.is_on() {
                    let told = told::closed(self, files);
                    self.keep_told(*session, told);
                }
                Reply::Done
            }
            Body::Revoke(node) => {
                self.revoked.insert(*node, now);
                Reply::Done
            }
        }
    }

    fn snapshot(&self) -> Vec<u8> {
        snapshot::encode(self)
    }

    fn restore(bytes: &[u8]) -> Result<Self, Unreadable> {
        snapshot::decode(bytes)
    }
}

impl MetaState {
    /// Returns a copy of the state as [`StateMachine::snapshot`] writes it. The work is done where it may block.
    pub(crate) async fn encoded(self) -> Vec<u8> {
        let encoding = tokio::task::spawn_blocking(move || self.snapshot());
        encoding.await.expect("encoding does not panic")
    }

    /// Returns the last stamp given out; the leader's clock must not show less (S6).
    #[must_use]
    pub const fn now(&self) -> Timestamp {
        self.now
    }

    /// Returns the sessions that have not ended, with their nodes, in ascending order.
    pub fn sessions(&self) -> impl Iterator<Item = (SessionId, NodeId)> {
        self.sessions.iter()
    }

    /// Returns the recorded reply to a change that was already made, so that a retry after a change of leader
    /// is answered before it is planned: planned again, an exclusive create would find its own file.
    #[must_use]
    pub fn recorded(&self, session: SessionId, seq: OpSeq) -> Option<Reply> {
        let record = self.sessions.record(session).filter(|_| !missing!(Twice));
        record?.answer(seq, self.now)
    }

    /// Returns the inodes without a name. A new leader reaps those that nobody knows after the reclaim.
    pub fn orphans(&self) -> impl Iterator<Item = InodeNo> {
        self.orphans.iter().copied()
    }

    /// Returns true for a file without a name whose maker has not been told of it yet, as far as the log knows: no
    /// lease covers it before the reply does, so nobody knowing it means nothing.
    #[must_use]
    pub fn is_being_made(&self, ino: InodeNo) -> bool {
        self.unnamed.contains(&ino) && self.sessions.keeps_birth_of(ino)
    }

    /// Returns the chunks that no file refers to any more, with the nodes that hold them, in ascending order.
    /// The leader has them deleted and then sends [`Body::ForgetDead`].
    pub fn dead_chunks(&self) -> impl Iterator<Item = (ChunkId, Vec<NodeId>)> {
        self.chunks.dead()
    }

    /// Returns true if a chunk found in a chunk store can never be referred to: no file has it, and the
    /// session that was given its number has ended (it crashed between storing the chunk and its flush).
    #[must_use]
    pub fn is_garbage(&self, chunk: ChunkId) -> bool {
        let owned = self.sessions.owns(chunk) && !missing!(IgnoreSessions);
        chunk < self.chunks.next() && !self.chunks.is_used(chunk) && !owned
    }

    /// Returns true if a node may delete its copy of a chunk, unless one is being made there (D3): it is listed
    /// there neither as live nor as dead, and nobody can enter it any more.
    #[must_use]
    pub fn is_orphan(&self, chunk: ChunkId, node: NodeId) -> bool {
        if self.chunks.is_used(chunk) {
            !self.chunks.is_listed_on(chunk, node)
        } else {
            self.is_garbage(chunk)
        }
    }

    /// Returns the first chunk number that was not given out.
    #[must_use]
    pub const fn next_chunk(&self) -> ChunkId {
        self.chunks.next()
    }

    /// Returns true if a copy of a chunk is listed on a node, be the chunk live or dead.
    #[must_use]
    pub fn is_listed_on(&self, chunk: ChunkId, node: NodeId) -> bool {
        self.chunks.is_listed_on(chunk, node)
    }

    /// Returns live chunks from `from` on, in ascending order.
    pub fn listed_from(&self, from: ChunkId) -> impl Iterator<Item = Listed> {
        self.chunks.listed_from(from)
    }

    /// Returns a live chunk.
    #[must_use]
    pub fn listed(&self, id: ChunkId) -> Option<Listed> {
        self.chunks.listed(id)
    }

    /// Returns what is listed on each node; nodes with nothing are not there.
    #[must_use]
    pub const fn held(&self) -> &BTreeMap<NodeId, Held> {
        self.chunks.held()
    }

    /// Returns the nodes that are being emptied.
    #[must_use]
    pub const fn draining(&self) -> &BTreeSet<NodeId> {
        self.chunks.draining()
    }

    /// Returns the nodes with revoked certificates, and up to when they were issued.
    #[must_use]
    pub const fn revoked(&self) -> &BTreeMap<NodeId, Timestamp> {
        &self.revoked
    }

    /// Returns the version of the protocol that all voters speak, as far as the log knows.
    #[must_use]
    pub const fn version(&self) -> u32 {
        self.version
    }

    /// Returns the present reign.
    #[must_use]
    pub const fn reign(&self) -> Epoch {
        self.reign
    }

    /// Returns how much of everything there is.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            inodes: self.inodes.len() as u64,
            orphans: self.orphans.len() as u64,
            chunks_live: self.chunks.live_count(),
            chunks_dead: self.chunks.dead_count(),
            sessions: self.sessions.iter().count() as u64,
        }
    }

    /// Keeps what a session has done for those who watch it.
    fn keep_told(&mut self, session: SessionId, told: Vec<Event>) {
        if let Some(node) = self.sessions.node_of(session) {
            self.recent.keep(self.now, node, told);
        }
    }

    /// Takes the clock to the leader's, or just past the last stamp if the leader's is behind (S6).
    fn tick(&mut self, leader: Timestamp) -> Timestamp {
        let first = self.now == Timestamp::default();
        self.now = leader.max(self.now.next());
        if first {
            // The root was made before there was a time.
            let now = self.now;
            let attr = &mut self.inode_mut(InodeNo::ROOT).attr;
            (attr.atime, attr.mtime, attr.ctime, attr.btime) = (now, now, now, now);
        }
        self.now
    }

    /// Frees orphans; returns the chunks that died with them. Inodes that have a name are left alone: the
    /// leader may have decided before a link that was committed first.
    fn reap(&mut self, inodes: &[InodeNo]) -> Vec<ChunkId> {
        let mut refs = RefChange::default();
        for ino in inodes {
            if !self.orphans.remove(ino) {
                continue;
            }
            self.unnamed.remove(ino);
            let inode = self.inodes.remove(ino).expect("an orphan has an inode");
            let inode = inode.into_inner();
            self.quotas.leave(*ino, inode.attr.blocks);
            if let Payload::File(FileContent::Extents(mut extents)) = inode.payload {
                extents.cut(0, &mut refs);
            }
        }
        self.chunks.change_refs(refs)
    }
}

/// What the operations work with.
impl MetaState {
    /// Returns an inode.
    ///
    /// # Errors
    /// [`FsError::Stale`] if there is none (any more).
    pub(crate) fn inode(&self, ino: InodeNo) -> Result<&Inode, FsError> {
        self.inodes
            .get(&ino)
            .map(|inode| &**inode)
            .ok_or(FsError::Stale)
    }

    /// Returns an inode that the operation has found before.
    pub(crate) fn inode_mut(&mut self, ino: InodeNo) -> &mut Inode {
        self.inodes
            .get_mut(&ino)
            .expect("the operation has checked that the inode exists")
    }

    /// Returns the names of a directory.
    ///
    /// # Errors
    /// [`FsError::Stale`], [`FsError::NotDir`].
    pub(crate) fn dir(&self, ino: InodeNo) -> Result<&Directory, FsError> {
        self.inode(ino)?.dir().ok_or(FsError::NotDir)
    }

    /// Returns the names of a directory that may get a new one.
    ///
    /// # Errors
    /// [`FsError::Stale`], [`FsError::NotDir`], [`FsError::NotFound`] if it was removed.
    pub(crate) fn dir_alive(&self, ino: InodeNo) -> Result<&Directory, FsError> {
        let dir = self.dir(ino)?;
        if self.inode(ino)?.attr.nlink == 0 {
            return Err(FsError::NotFound);
        }
        Ok(dir)
    }

    /// Returns the names of a directory that the operation has found before.
    pub(crate) fn dir_mut(&mut self, ino: InodeNo) -> &mut Directory {
        match &mut self.inode_mut(ino).payload {
            Payload::Dir(dir) => dir,
            Payload::File(_) | Payload::Symlink(_) | Payload::Special => {
                unreachable!("the operation has checked that the inode is a directory")
            }
        }
    }

    /// Returns true if `ino` is the directory `ancestor` or lies below it.
    pub(crate) fn is_within(&self, mut ino: InodeNo, ancestor: InodeNo) -> bool {
        while ino != ancestor {
            if ino == InodeNo::ROOT {
                return false;
            }
            match self.dir(ino) {
                Ok(dir) => ino = dir.parent,
                // Above a removed directory there may be nothing left.
                Err(_) => return false,
            }
        }
        true
    }

    /// Takes one name from an inode; the last one makes it an orphan.
    pub(crate) fn drop_name(&mut self, ino: InodeNo) {
        let attr = &mut self.inode_mut(ino).attr;
        // A directory has one name; what else its link count shows are `.` and the `..` of its children.
        attr.nlink = match attr.kind {
            FileKind::Dir => 0,
            _ => attr.nlink - 1,
        };
        if attr.nlink == 0 {
            self.orphans.insert(ino);
        }
    }

    /// Stamps the inodes that an operation changed, each once: `dirs` got or lost names, `others` changed
    /// themselves. Returns the operation's reply.
    pub(crate) fn changed(
        &mut self,
        now: Timestamp,
        dirs: &[InodeNo],
        others: &[InodeNo],
    ) -> OpReply {
        let mut facts: Vec<Fact> = Vec::with_capacity(dirs.len() + others.len());
        for &ino in dirs.iter().chain(others) {
            if facts.iter().any(|fact| fact.attr.ino == ino) {
                continue;
            }
            let attr = &mut self.inode_mut(ino).attr;
            if dirs.contains(&ino) {
                attr.mtime = now;
            }
            attr.ctime = now;
            attr.version = attr.version.next();
            facts.push(fact(attr));
        }
        OpReply::Changed(facts)
    }
}

/// Returns attributes as a fact; the driver fills the grant in.
pub(crate) fn fact(attr: &Attr) -> Fact {
    Fact {
        attr: attr.clone(),
        grant: None,
    }
}
