//! The metadata leader: takes requests, breaks leases, commits, answers.
//!
//! It joins three parts that know nothing of each other: the lease core (who may cache what), the state machine
//! (what the tree is) and the replicated log (what is safe). The way of an operation:
//!
//! 1. *plan*: the state says which inodes the operation looks at or changes;
//! 2. *begin*: the lease core breaks what conflicts and says when all of it is gone ([`Barriers`]);
//! 3. *plan again*: what it found in the meantime may concern other inodes; then it starts over;
//! 4. *commit*: a change goes through the log; when that returns it is on the disks of a majority (S2);
//! 5. *finish*: with the lease core locked, the facts of the reply are read from the state and granted.
//!
//! Rules:
//! * **M1 facts under the lock** - step 5 reads the state while no change can begin or finish, so a fact that is
//!   granted is the youngest there is.
//! * **M2 ends before conflicts** - when a session ends, its end is committed before any operation that waited for its
//!   leases goes on, so that a late flush of the dead session is refused by the state machine.
//! * **M3 reign** - lease state belongs to one reign of one leader; whatever waits when the reign ends is answered
//!   with `NotLeader` and asked again by the client under the same number.
//!
//! Lock order: `Barriers::core`, then the state (inside [`Replicated::read`]). Neither is held across an await.

use super::barriers::{Barrier, Barriers, Ended};
use super::check;
use super::locks::{self, Entered};
use super::log::{ProposeError, Replicated};
use super::notes;
use super::reaper;
use super::repair::{self, Repair};
use super::state::{Body, Command, MetaState, Reply};
use super::stream::{self, StreamReply, StreamRequest};
use super::upgrade;
use super::voters;
use super::watches::{self, News, Watches};
use crate::net::{ByteStream, NetError, Router, Service, ServiceId, Transport};
use async_trait::async_trait;
use bytes::Bytes;
use consistency::wire::lock::{LockOp, LockReply};
use consistency::wire::meta::{FsError, NAMES_SINCE, Op, OpReply, StatFs};
use consistency::wire::request::{MetaReply, MetaRequest, NodeReport, NodeStatus, WATCH_SINCE};
use consistency::wire::{decode, encode};
use consistency::{Duration, Epoch, InodeNo, NodeId, OpSeq, SessionId, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::io::AsyncWriteExt;

/// How long an answer to `Watch` waits for events; less than a call may take.
const WATCH_WITHIN: std::time::Duration = std::time::Duration::from_secs(5);

/// The version of the protocol that has brought [`Op::Make`].
const DELEGATION_SINCE: u32 = 8;

/// How a metadata server behaves.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// How long a session lives without a renewal.
    pub term: Duration,
    /// How long a session may take to answer a break before it is ended.
    pub break_timeout: Duration,
    /// Copies that there should be of each chunk whose tree says nothing.
    pub replicas: u8,
    /// How long a node may be away until its copies are made anew elsewhere.
    pub gone_after: std::time::Duration,
    /// How long a dead chunk stays: a read that got its map of extents before it died may still be on its way to it.
    pub dead_for: std::time::Duration,
    /// Bytes that the bucket may hold, if file data goes there.
    pub bucket_bytes: Option<u64>,
}

/// The metadata service of one node; it answers while the node leads.
#[derive(Debug)]
pub struct MetaServer {
    pub(super) log: Replicated<MetaState>,
    pub(super) barriers: Barriers,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) config: Config,
    pub(super) repair: Repair,
    reports: Mutex<BTreeMap<NodeId, NodeReport>>,
    pub(super) watches: Watches,
    /// Held by the check that is under way.
    pub(super) checking: tokio::sync::Mutex<()>,
}

impl MetaServer {
    /// Starts the service of this node and registers it.
    pub fn start(
        config: Config,
        log: Replicated<MetaState>,
        transport: Arc<dyn Transport>,
        router: &Router,
    ) -> Arc<Self> {
        let server = Arc::new(Self {
            log,
            barriers: Barriers::new(config.term, config.break_timeout),
            transport,
            config,
            repair: Repair::default(),
            reports: Mutex::default(),
            watches: Watches::default(),
            checking: tokio::sync::Mutex::default(),
        });
        router.register(ServiceId::Meta, Arc::new(Handle(Arc::clone(&server))));
        notes::register(router);
        tokio::spawn(Arc::clone(&server).follow_leadership());
        tokio::spawn(Arc::clone(&server).drive());
        tokio::spawn(reaper::run(Arc::clone(&server)));
        tokio::spawn(repair::run(Arc::clone(&server)));
        tokio::spawn(upgrade::run(Arc::clone(&server)));
        tokio::spawn(voters::run(Arc::clone(&server)));
        server
    }

    /// Returns the leader that this node knows of.
    pub fn leader(&self) -> Option<NodeId> {
        self.log.leadership().borrow().leader
    }

    /// Returns why this node's log has stopped for good; see [`Replicated::fault`].
    pub fn fault(&self) -> Option<String> {
        self.log.fault()
    }

    /// Returns the voters, as this node knows them; none if it has never been one.
    pub fn voters(&self) -> Vec<NodeId> {
        self.log.voters()
    }

    /// Answers one request of a node.
    pub async fn handle(self: &Arc<Self>, from: NodeId, request: MetaRequest) -> MetaReply {
        if let MetaRequest::Nodes = request {
            return self.nodes();
        }
        let Some(epoch) = self.barriers.epoch() else {
            return self.not_leader();
        };
        match request {
            MetaRequest::Nodes => self.nodes(),
            MetaRequest::OpenSession { attempt } => self.open_session(from, attempt, epoch).await,
            MetaRequest::Renew { session, report } => match self.log.confirm_leader().await {
                // L3: a deposed leader would give time that its successor does not know of.
                Ok(()) => self.renew(from, session, report, epoch),
                Err(error) => self.refused(&error),
            },
            MetaRequest::Reclaim {
                session,
                epoch,
                leases,
                last,
            } => match self.barriers.reclaim(from, session, epoch, &leases, last) {
                Ok(grants) => MetaReply::Reclaimed(grants),
                Err(ended) => self.ended(ended),
            },
            MetaRequest::Release { session, leases } => {
                match self.barriers.release(from, session, &leases) {
                    Ok(()) => MetaReply::Done,
                    Err(ended) => self.ended(ended),
                }
            }
            MetaRequest::Watch {
                session,
                set,
                inodes,
                after,
            } => {
                let set = watches::Set::of(set, inodes, after, None);
                match self.watch(from, session, set, after).await {
                    Ok(news) => MetaReply::Events {
                        known: news.is_some(),
                        events: news.unwrap_or_default().events,
                    },
                    Err(ended) => self.ended(ended),
                }
            }
            MetaRequest::WatchSince {
                session,
                set,
                inodes,
                after,
                since,
            } => {
                let set = watches::Set::of(set, inodes, after, since);
                match self.watch(from, session, set, after).await {
                    Ok(news) => {
                        let known = news.is_some();
                        let News { events, upto, lost } = news.unwrap_or_default();
                        MetaReply::EventsUpTo {
                            known,
                            events,
                            upto,
                            lost,
                        }
                    }
                    Err(ended) => self.ended(ended),
                }
            }
            MetaRequest::Closed { session, files } => match self.barriers.check(from, session) {
                Ok(()) => self.closed(session, files).await,
                Err(ended) => self.ended(ended),
            },
            MetaRequest::Locate(_)
            | MetaRequest::BadCopies(_)
            | MetaRequest::Inventory { .. }
            | MetaRequest::Drain { .. }
            | MetaRequest::Repair => self.about_copies(from, request).await,
            MetaRequest::Voters => MetaReply::Voters(self.voters()),
            MetaRequest::Revoked => MetaReply::Revoked(self.revoked().into_iter().collect()),
            MetaRequest::Clock => MetaReply::Clock {
                epoch,
                since: Duration(self.barriers.now().0),
            },
            MetaRequest::Cancel { session, seq } => {
                self.barriers.cancel(from, session, seq);
                MetaReply::Done
            }
            MetaRequest::Lock {
                session,
                seq,
                attempt,
                epoch,
                ino,
                owner,
                op,
            } => {
                let request = locks::Request {
                    session,
                    seq,
                    attempt,
                    ino,
                    owner,
                    op,
                };
                self.lock(from, epoch, request).await
            }
            MetaRequest::ReclaimLocks {
                session,
                epoch,
                locks,
            } => match self.barriers.reclaim_locks(from, session, epoch, &locks) {
                Ok(()) => MetaReply::Done,
                Err(ended) => self.ended(ended),
            },
            MetaRequest::Op {
                session,
                seq,
                done_below,
                op,
            } => {
                if let Err(ended) = self.barriers.check(from, session) {
                    return self.ended(ended);
                }
                self.operate(session, seq, done_below, op).await
            }
        }
    }

    /// Answers what is about copies of chunks.
    pub(super) async fn about_copies(&self, from: NodeId, request: MetaRequest) -> MetaReply {
        match request {
            MetaRequest::Locate(chunk) => {
                let listed = self.log.read(|state| state.listed(chunk));
                MetaReply::Located(listed.map(|listed| listed.replicas).unwrap_or_default())
            }
            MetaRequest::BadCopies(chunks) => {
                self.repair.report(from, chunks);
                MetaReply::Done
            }
            MetaRequest::Inventory {
                from: first,
                to,
                chunks,
            } => repair::inventory(self, from, first, to, &chunks)
                .await
                .unwrap_or_else(|| self.not_leader()),
            MetaRequest::Drain { node, drain } => {
                match self.commit(Body::Drain { node, drain }).await {
                    Ok(_) => MetaReply::Done,
                    Err(error) => self.refused(&error),
                }
            }
            _ => MetaReply::Repair(self.repair.status(&self.statuses())),
        }
    }

    /// Commits a command under the leader's clock.
    pub(super) async fn commit(&self, body: Body) -> Result<Reply, ProposeError> {
        self.log.propose(Command { now: clock(), body }).await
    }

    async fn open_session(&self, from: NodeId, attempt: u64, epoch: Epoch) -> MetaReply {
        let body = Body::OpenSession {
            node: from,
            attempt,
        };
        match self.commit(body).await {
            Ok(Reply::SessionEnded) => MetaReply::SessionEnded,
            Ok(Reply::Session { session, new }) => {
                if let Err(ended) = self.barriers.open_session(from, session, new) {
                    return self.ended(ended);
                }
                tracing::info!(node = from.0, session = session.0, "session opened");
                MetaReply::Opened {
                    session,
                    // A repeated request does not tell how long ago the session began: it must be renewed first.
                    term: if new { self.config.term } else { Duration(0) },
                    epoch,
                    now: clock(),
                }
            }
            Ok(other) => unreachable!("OpenSession is answered by a session, not {other:?}"),
            Err(error) => self.refused(&error),
        }
    }

    fn renew(
        &self,
        from: NodeId,
        session: SessionId,
        report: NodeReport,
        epoch: Epoch,
    ) -> MetaReply {
        match self.barriers.renew(from, session) {
            Ok(reclaim) => {
                self.reports
                    .lock()
                    .expect("no holder panics")
                    .insert(from, report);
                MetaReply::Renewed {
                    term: self.config.term,
                    epoch,
                    now: clock(),
                    reclaim,
                }
            }
            Err(ended) => self.ended(ended),
        }
    }

    async fn operate(
        self: &Arc<Self>,
        session: SessionId,
        seq: OpSeq,
        done_below: OpSeq,
        op: Op,
    ) -> MetaReply {
        tracing::trace!(session = session.0, seq = seq.0, ?op, "asked");
        let change = op.is_change();
        let result = if change {
            // L8: in a task of its own, for what may be in the log must be finished whatever becomes of the caller.
            let server = Arc::clone(self);
            let change = async move { server.change(session, seq, done_below, op).await };
            tokio::spawn(change).await.expect("a change does not panic")
        } else {
            self.look(session, seq, &op).await
        };
        tracing::trace!(session = session.0, seq = seq.0, ?result, "answered");
        // M6: what is answered without the log is the present state only if no other node can have begun to reign.
        let from_log = change && result.is_ok();
        if !from_log && !self.log.lease_holds() {
            return self.not_leader();
        }
        let result = match result {
            Ok(reply) => Ok(reply),
            Err(Refusal::Error(error)) => Err(error),
            Err(Refusal::Ended(ended)) => return self.ended(ended),
            Err(Refusal::Log(error)) => return self.refused(&error),
        };
        MetaReply::Op {
            now: clock(),
            result,
            watched: self.watches.any(),
        }
    }

    /// Answers a request to lock when it is granted or refused, or has waited for as long as a call should.
    async fn lock(&self, from: NodeId, epoch: Epoch, request: locks::Request) -> MetaReply {
        const WAITING: MetaReply = MetaReply::Lock(Ok(LockReply::Waiting));
        let until = tokio::time::Instant::now() + locks::POLL;
        let (session, ino) = (request.session, request.ino);
        if !self.barriers.may_lock(session, ino, until).await {
            return WAITING;
        }
        if let LockOp::Acquire { .. } = request.op {
            let noted = match self.barriers.note_locks(from, session, ino) {
                Ok(untold) => self.tell_first(untold).await,
                Err(ended) => Err(ended),
            };
            if let Err(ended) = noted {
                return self.ended(ended);
            }
        }
        match self.barriers.lock_request(from, epoch, request) {
            Err(ended) => self.ended(ended),
            Ok(Entered::Answered(answer)) => MetaReply::Lock(answer),
            Ok(Entered::Waits(answer)) => match tokio::time::timeout_at(until, answer).await {
                Ok(Ok(answer)) => MetaReply::Lock(answer),
                // A younger copy waits in its place, its session has ended, or the reign has: asking again tells.
                Ok(Err(_)) | Err(_) => WAITING,
            },
        }
    }

    /// Answers an operation that changes nothing.
    async fn look(&self, session: SessionId, seq: OpSeq, op: &Op) -> Result<OpReply, Refusal> {
        loop {
            let claims = self.log.read(|state| super::claims::looks(state, op));
            let mut barrier = self.barriers.begin(session, seq, claims.clone()).await?;
            let nodes_up = self.barriers.nodes_up();
            let found = self.barriers.with_core(|core| {
                Ok(self.log.read(|state| {
                    let same = super::claims::looks(state, op) == claims;
                    same.then(|| {
                        let statfs = |ino| self.statfs(state, &nodes_up, ino);
                        let reply = super::grants::look(state, core, &mut barrier, op, statfs);
                        (reply, core.untold(session))
                    })
                }))
            })?;
            if let Some((reply, untold)) = found {
                self.tell_first(untold).await?;
                return reply.map_err(Refusal::Error);
            }
        }
    }

    /// Carries out an operation that changes the tree.
    async fn change(
        &self,
        session: SessionId,
        seq: OpSeq,
        done_below: OpSeq,
        mut op: Op,
    ) -> Result<OpReply, Refusal> {
        if matches!(op, Op::Names(_)) && self.version() < NAMES_SINCE {
            // V2
            return Err(Refusal::Error(FsError::NotSupported));
        }
        let mut barrier = self.barrier(session, seq, &op).await?;
        fail_point!("leader: before a change is committed");
        let (files, stale) = match &mut op {
            Op::Flush(files) => (files.len(), self.barriers.refuse_stale(session, files)),
            // A repeated one is answered from the record, whatever this leader was told of the session's leases.
            op => {
                let held = super::ops::held_by_session(op).unwrap_or_default();
                if !self.barriers.holds(session, held.into_iter())
                    && self
                        .log
                        .read(|state| state.recorded(session, seq).is_none())
                {
                    return Err(Refusal::Error(FsError::Stale));
                }
                (0, Vec::new())
            }
        };
        // Who makes or removes a name here does more of it.
        let since = match op {
            Op::Create { .. } => Some(DELEGATION_SINCE),
            Op::Unlink { .. } => Some(NAMES_SINCE),
            _ => None,
        };
        let body = Body::Change {
            session,
            seq,
            done_below,
            op,
        };
        let (reply, again) = match self.commit(body).await.map_err(Refusal::Log)? {
            Reply::Op { result, again, .. } => (result.map_err(Refusal::Error)?, again),
            Reply::SessionEnded => return Err(Refusal::Ended(Ended::Session)),
            other => unreachable!("a change is answered by its outcome, not {other:?}"),
        };
        fail_point!("leader: before a change is answered");
        if again {
            // Others may have undone it since. Nothing is granted: the barrier ends the operation as it goes.
            return Ok(super::grants::again(reply, files, &stale));
        }
        if self.watches.any() {
            self.log.read(|state| self.watches.tell(state));
        }
        let delegates = since.is_some_and(|since| self.delegates_to(session, since));
        let granted = self.barriers.with_core(|core| {
            let reply = self.log.read(|state| {
                super::grants::change(state, core, &mut barrier, reply, &stale, delegates)
            });
            Ok((reply, core.untold(session)))
        });
        let (reply, untold) = granted?;
        self.tell_first(untold).await?;
        Ok(reply)
    }

    /// Returns whether the node of a session, and the log, know what to do with a directory held exclusively (V2).
    fn delegates_to(&self, session: SessionId, since: u32) -> bool {
        let speaks = |node| self.transport.version_of(node) >= Some(since);
        self.version() >= since && self.barriers.node_of(session).is_some_and(speaks)
    }

    /// L10: a reply to this node's own session waits until what it grants would outlive this node.
    async fn tell_first(&self, untold: Option<(Epoch, u64)>) -> Result<(), Ended> {
        match untold {
            Some(untold) => self.barriers.told(untold).await,
            None => Ok(()),
        }
    }

    async fn closed(&self, session: SessionId, files: Vec<InodeNo>) -> MetaReply {
        // V2: until all voters know of closes, watchers do not hear of them.
        if self.watches.any() && self.version() >= WATCH_SINCE {
            if let Err(error) = self.commit(Body::Closed { session, files }).await {
                return self.refused(&error);
            }
            self.log.read(|state| self.watches.tell(state));
        }
        MetaReply::Done
    }

    /// Answers when there are events, or after a while; `None` if it is not known what the session watches.
    async fn watch(
        &self,
        from: NodeId,
        session: SessionId,
        set: Option<watches::Set>,
        after: u64,
    ) -> Result<Option<News>, Ended> {
        self.barriers.check(from, session)?;
        if let Some(set) = set {
            if !set.inodes.is_empty() {
                self.begin_record().await;
            }
            // Within the read no change is applied: no name is missed.
            self.log
                .read(|state| self.watches.watch(session, from, set, state));
        }
        let until = tokio::time::Instant::now() + WATCH_WITHIN;
        loop {
            let news = self.watches.news();
            let Some(found) = self.watches.after(session, after) else {
                return Ok(None);
            };
            if !found.is_empty() || tokio::time::timeout_at(until, news).await.is_err() {
                return Ok(Some(found));
            }
        }
    }

    /// Breaks what a change conflicts with, until the plan holds still.
    async fn barrier(
        &self,
        session: SessionId,
        seq: OpSeq,
        op: &Op,
    ) -> Result<Barrier<'_>, Refusal> {
        // A repeated operation is answered from the record and claims nothing; one that the state as it is refuses
        // needs no log entry to be refused.
        let plan = |state: &MetaState| {
            if state.recorded(session, seq).is_some() {
                Ok(Vec::new())
            } else {
                super::claims::changes(state, op)
            }
        };
        loop {
            let claims = match self.log.read(plan) {
                Ok(claims) => claims,
                Err(error) => {
                    let looks = super::claims::refused(op);
                    let _looks = self.barriers.begin(session, seq, looks).await?;
                    self.log.read(plan).map_err(Refusal::Error)?;
                    tracing::trace!(%error, "not refused any more");
                    continue;
                }
            };
            let barrier = self.barriers.begin(session, seq, claims.clone()).await?;
            if super::claims::covers(&claims, &self.log.read(plan).map_err(Refusal::Error)?) {
                return Ok(barrier);
            }
        }
    }

    fn statfs(&self, state: &MetaState, up: &BTreeSet<NodeId>, ino: InodeNo) -> StatFs {
        let reports = self.reports.lock().expect("no holder panics");
        let disks = reports.iter().filter(|(node, _)| up.contains(node));
        let (total, free) = disks.fold((0, 0), |(total, free), (_, report)| {
            (total + report.disk_total, free + report.disk_free)
        });
        let copies = u64::from(self.config.replicas).clamp(1, up.len().max(1) as u64);
        let (total, free) = match self.config.bucket_bytes {
            None => (total / copies, free / copies),
            Some(total) => {
                let held = state.held().get(&NodeId::BUCKET);
                let bytes = held.map_or(0, |held| held.bytes);
                (total, total.saturating_sub(bytes))
            }
        };
        let whole = StatFs {
            bytes_total: total,
            bytes_free: free,
            inodes: state.counts().inodes,
            inodes_free: None,
        };
        super::ops::within_quota(state, ino, whole)
    }

    fn nodes(&self) -> MetaReply {
        if self.barriers.epoch().is_none() {
            return self.not_leader();
        }
        MetaReply::Nodes(self.statuses())
    }

    /// Returns the nodes as this leader sees them.
    pub(super) fn statuses(&self) -> Vec<NodeStatus> {
        let reports = self.reports.lock().expect("no holder panics").clone();
        let up = self.barriers.nodes_up();
        let (held, draining) = self
            .log
            .read(|state| (state.held().clone(), state.draining().clone()));
        let status = |node: NodeId| {
            let held = held.get(&node).copied().unwrap_or_default();
            NodeStatus {
                node,
                up: up.contains(&node),
                report: reports.get(&node).cloned().unwrap_or_default(),
                chunks: held.chunks,
                chunk_bytes: held.bytes,
                draining: draining.contains(&node),
            }
        };
        self.transport.nodes().into_iter().map(status).collect()
    }

    fn not_leader(&self) -> MetaReply {
        let me = self.transport.local();
        MetaReply::NotLeader(self.leader().filter(|leader| *leader != me))
    }

    fn refused(&self, error: &ProposeError) -> MetaReply {
        tracing::warn!(%error, "a change could not be committed");
        self.not_leader()
    }

    fn ended(&self, ended: Ended) -> MetaReply {
        match ended {
            Ended::Session => MetaReply::SessionEnded,
            Ended::Reign => self.not_leader(),
            Ended::TooManyOps => MetaReply::Op {
                now: clock(),
                result: Err(FsError::Busy),
                watched: self.watches.any(),
            },
        }
    }

    /// Answers a stream.
    async fn stream(&self, from: NodeId, mut stream: ByteStream) -> std::io::Result<()> {
        let request = stream::receive(&mut stream.reader).await?;
        if let StreamRequest::SumAt { index } = request {
            check::sum_at(self, index, &mut stream).await?;
            return stream.writer.shutdown().await;
        }
        if let Err(error) = self.log.confirm_leader().await {
            tracing::debug!(%error, ?request, "asked, and does not lead");
            let me = self.transport.local();
            let leader = self.leader().filter(|leader| *leader != me);
            return stream::send(&mut stream.writer, &StreamReply::NotLeader(leader)).await;
        }
        match request {
            StreamRequest::Check { data } => check::run(self, data, false, &mut stream).await?,
            StreamRequest::CheckStores { data } => {
                check::run(self, data, true, &mut stream).await?;
            }
            StreamRequest::SetVoters(voters) => {
                let voters: BTreeSet<NodeId> = voters.into_iter().collect();
                let reply = match self.set_voters(&voters).await {
                    Ok(()) => StreamReply::Voters(self.voters()),
                    Err(error) => StreamReply::Failed(error.to_string()),
                };
                stream::send(&mut stream.writer, &reply).await?;
            }
            StreamRequest::Revoke(node) => {
                let reply = match self.revoke(node).await {
                    Ok(()) => StreamReply::Revoked,
                    Err(why) => StreamReply::Failed(why),
                };
                stream::send(&mut stream.writer, &reply).await?;
            }
            StreamRequest::Backup | StreamRequest::SumAt { .. } => {
                self.backup(from, &mut stream).await?;
            }
        }
        stream.writer.shutdown().await
    }

    /// Sends the state as it is.
    async fn backup(&self, from: NodeId, stream: &mut ByteStream) -> std::io::Result<()> {
        let read = |index, state: &MetaState| (index, state.clone());
        let (index, state) = self.log.read_at_length(read).await;
        let inodes = state.counts().inodes;
        let state = state.encoded().await;
        let bytes = state.len() as u64;
        tracing::info!(index, inodes, bytes, node = from.0, "backup");
        let reply = StreamReply::Backup {
            index,
            inodes,
            bytes,
        };
        stream::send(&mut stream.writer, &reply).await?;
        stream.writer.write_all(&state).await
    }

    /// Carries out what the lease core asks for: breaks, ends of sessions, timeouts.
    async fn drive(self: Arc<Self>) {
        loop {
            let work = self.barriers.next_work().await;
            for (session, node, request) in work.breaks {
                tokio::spawn(Arc::clone(&self).send_break(session, node, request));
            }
            for session in work.ended {
                tracing::warn!(
                    session = session.0,
                    "session ended: not renewed or a break not answered in time"
                );
                fail_point!("leader: before the end of a session is committed");
                let server = Arc::clone(&self);
                tokio::spawn(async move {
                    if let Err(error) = server.commit(Body::EndSession(session)).await {
                        tracing::warn!(%error, session = session.0, "end of a session not committed");
                    }
                    server.barriers.end_committed(session);
                });
            }
        }
    }

    /// Sends a break until it is answered or its session has ended.
    async fn send_break(
        self: Arc<Self>,
        session: SessionId,
        node: NodeId,
        request: consistency::wire::lease::Break,
    ) {
        const ATTEMPT: std::time::Duration = std::time::Duration::from_secs(2);
        const PAUSE: std::time::Duration = std::time::Duration::from_millis(50);
        fail_point!("leader: before a break is sent");
        tracing::debug!(session = session.0, node = node.0, ?request, "break");
        let body = Bytes::from(encode(&request));
        while self.barriers.awaits(session, &request) {
            match self
                .transport
                .call(node, ServiceId::Callback, body.clone(), ATTEMPT)
                .await
            {
                Ok(reply) => match decode(&reply) {
                    Ok(ack) => self.barriers.handle_break_ack(session, ack),
                    Err(error) => {
                        tracing::error!(node = node.0, %error, "malformed answer to a break");
                        tokio::time::sleep(PAUSE).await;
                    }
                },
                Err(NetError::Deadline { .. }) => {}
                Err(NetError::Unreachable { .. } | NetError::Malformed { .. }) => {
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Answers the calls: the trait gives `&self`, the server's tasks need an `Arc`.
struct Handle(Arc<MetaServer>);

#[async_trait]
impl Service for Handle {
    async fn call(&self, from: NodeId, body: Bytes) -> Option<Bytes> {
        let request = decode(&body).ok()?;
        Some(encode(&self.0.handle(from, request).await).into())
    }

    async fn accept(&self, from: NodeId, stream: ByteStream) {
        if let Err(error) = self.0.stream(from, stream).await {
            tracing::warn!(node = from.0, %error, "a stream was not answered to its end");
        }
    }

    /// Until its first wait a request takes microseconds: a look that conflicts with nothing is answered at once.
    fn is_prompt(&self) -> bool {
        true
    }
}

/// Why an operation has no outcome.
#[derive(Debug)]
pub(super) enum Refusal {
    Error(FsError),
    Ended(Ended),
    Log(ProposeError),
}

impl From<Ended> for Refusal {
    fn from(ended: Ended) -> Self {
        Self::Ended(ended)
    }
}

/// The leader's clock (S6); the state machine keeps it from running backwards.
fn clock() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::from_nanos(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}
