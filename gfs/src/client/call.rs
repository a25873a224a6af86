//! Finds the metadata leader and asks it, again and again under the same number until it answers.
//!
//! A new leader announces itself to every node; who waits for the answer of another then asks it instead. Until that
//! comes the nodes are asked one after the other: each names the leader that it knows of.

use super::Core;
use super::session::Phase;
use crate::error::Errno;
use crate::net::{NetError, Service, ServiceId};
use async_trait::async_trait;
use bytes::Bytes;
use consistency::lease::Stamp;
use consistency::wire::lease::Announcement;
use consistency::wire::meta::{FsError, NAMES_SINCE, Op, OpReply};
use consistency::wire::request::{MetaReply, MetaRequest};
use consistency::wire::{decode, encode};
use consistency::{Epoch, Instant, NodeId, OpSeq, SessionId};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant as Deadline;
use tokio::time::{sleep, timeout_at};

/// Time for one attempt; longer than any break takes, shorter than a request waits in all.
const ATTEMPT: Duration = Duration::from_secs(10);
/// The same for a node of which nobody has said that it leads: it may be dead.
const PROBE: Duration = Duration::from_millis(300);
/// Pause before the next node is asked, so that an election is not disturbed by a storm of questions.
const PAUSE: Duration = Duration::from_millis(10);

/// Who leads, and which operations are not answered yet.
#[derive(Debug, Default)]
pub(super) struct Calls {
    lead: watch::Sender<Lead>,
    seqs: Mutex<Seqs>,
    /// The leader may have changed: the session wants to be renewed at once.
    pub(super) leader_changed: Notify,
}

/// Who leads, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lead {
    leader: Option<NodeId>,
    /// The youngest reign that was announced.
    announced: Epoch,
}

impl Default for Lead {
    fn default() -> Self {
        Self {
            leader: None,
            announced: Epoch(0),
        }
    }
}

#[derive(Debug, Default)]
struct Seqs {
    last: u64,
    open: BTreeSet<u64>,
}

/// An answer, and when the attempt that brought it began.
pub(super) struct Answered {
    pub(super) reply: MetaReply,
    pub(super) sent_at: Instant,
}

/// The search for the leader, of one request.
#[derive(Debug, Default)]
pub(super) struct Way {
    turn: usize,
    redirects: u32,
    /// The version of the protocol that has brought the request.
    since: u32,
}

/// Belongs to a request that may bring grants.
#[derive(Debug)]
pub(super) struct Ticket {
    core: Arc<Core>,
    pub(super) stamp: Stamp,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.core.leases().end_request(self.stamp);
    }
}

/// The number of an operation that has not been answered.
struct Seq<'a> {
    calls: &'a Calls,
    seq: u64,
}

impl Drop for Seq<'_> {
    fn drop(&mut self) {
        self.calls.seqs().open.remove(&self.seq);
    }
}

impl Calls {
    fn seqs(&self) -> MutexGuard<'_, Seqs> {
        self.seqs.lock().expect("no holder panics")
    }

    /// Returns a number for a request to lock. It does not count as open: the results of operations that came after it
    /// need not be kept for as long as it waits.
    pub(super) fn lock_seq(&self) -> OpSeq {
        let mut seqs = self.seqs();
        seqs.last += 1;
        OpSeq(seqs.last)
    }

    /// Returns the next number, and the number below which everything was answered.
    fn next_seq(&self) -> (Seq<'_>, OpSeq) {
        let mut seqs = self.seqs();
        seqs.last += 1;
        let seq = seqs.last;
        seqs.open.insert(seq);
        let done_below = *seqs.open.first().expect("one was just added");
        drop(seqs);
        (Seq { calls: self, seq }, OpSeq(done_below))
    }

    /// Returns who leads, as far as is known.
    pub(super) fn known_leader(&self) -> Option<NodeId> {
        self.lead.borrow().leader
    }

    /// Returns when another node than `asked` is known to lead.
    async fn moved(&self, asked: NodeId) {
        let mut lead = self.lead.subscribe();
        let other = |lead: &Lead| lead.leader.is_some_and(|leader| leader != asked);
        // The sender lives in `self`.
        let _lead = lead.wait_for(other).await;
    }

    /// Takes what a node says of itself.
    fn announced(&self, from: NodeId, reign: Epoch) {
        self.lead.send_if_modified(|lead| {
            // Late: its reign is over.
            if reign <= lead.announced {
                return false;
            }
            *lead = Lead {
                leader: Some(from),
                announced: reign,
            };
            true
        });
        self.leader_changed.notify_one();
    }
}

/// Hears of new leaders.
pub(super) struct Announcements(Weak<Core>);

impl Announcements {
    pub(super) fn new(core: &Arc<Core>) -> Self {
        Self(Arc::downgrade(core))
    }
}

#[async_trait]
impl Service for Announcements {
    async fn call(&self, from: NodeId, body: Bytes) -> Option<Bytes> {
        let Announcement { epoch } = decode(&body).ok()?;
        self.0.upgrade()?.calls.announced(from, epoch);
        Some(Bytes::new())
    }

    fn is_prompt(&self) -> bool {
        true
    }
}

/// The metadata service of a node that keeps no metadata: it names the leader that it knows of.
pub(super) struct Bystander(Weak<Core>);

impl Bystander {
    pub(super) fn new(core: &Arc<Core>) -> Self {
        Self(Arc::downgrade(core))
    }
}

#[async_trait]
impl Service for Bystander {
    async fn call(&self, _from: NodeId, _body: Bytes) -> Option<Bytes> {
        let leader = self.0.upgrade()?.calls.known_leader();
        Some(encode(&MetaReply::NotLeader(leader)).into())
    }

    fn is_prompt(&self) -> bool {
        true
    }
}

impl Core {
    /// Asks the leader until it answers or the deadline has passed; finds out who leads on the way.
    pub(super) async fn meta(
        &self,
        request: &MetaRequest,
        until: Deadline,
    ) -> Result<Answered, Errno> {
        self.meta_encoded(encode(request).into(), 0, until).await
    }

    /// As [`Core::meta`], of a leader that speaks this version; an older one is not asked, and does not support it.
    pub(super) async fn meta_since(
        &self,
        request: &MetaRequest,
        since: u32,
        until: Deadline,
    ) -> Result<Answered, Errno> {
        self.meta_encoded(encode(request).into(), since, until)
            .await
    }

    async fn meta_encoded(
        &self,
        body: Bytes,
        since: u32,
        until: Deadline,
    ) -> Result<Answered, Errno> {
        let mut way = Way {
            since,
            ..Way::default()
        };
        loop {
            if let Some(answered) = self.try_meta(&mut way, body.clone(), until).await {
                return Ok(answered);
            }
            if Deadline::now() >= until {
                return Err(Errno::EIO);
            }
        }
    }

    /// Asks one node once; `None` if it did not answer or does not lead.
    async fn try_meta(&self, way: &mut Way, body: Bytes, until: Deadline) -> Option<Answered> {
        let known = self.calls.known_leader();
        let to = known.unwrap_or_else(|| self.candidate(&mut way.turn));
        let sent_at = self.clock.now();
        if self
            .transport
            .version_of(to)
            .is_some_and(|spoken| spoken < way.since)
        {
            // V1. No leader has taken it, or all voters would speak that version.
            let reply = MetaReply::Op {
                now: self.clock.stamp(),
                result: Err(FsError::NotSupported),
                watched: self.watched.load(Ordering::Relaxed),
            };
            return Some(Answered { reply, sent_at });
        }
        let time = if known.is_some() { ATTEMPT } else { PROBE };
        let attempt = until.min(Deadline::now() + time);
        let answer = tokio::select! {
            biased;
            answer = timeout_at(attempt, self.attempt(to, body, attempt)) => answer,
            // What it answers after that, if anything, is the answer to another copy.
            () = self.calls.moved(to) => return None,
        };
        match answer {
            Ok(Ok(MetaReply::NotLeader(hint))) => {
                self.suspect(to, hint.filter(|&node| node != to));
                way.redirects += 1;
                if hint.is_none() || way.redirects > 1 {
                    sleep(PAUSE).await;
                }
            }
            Ok(Ok(reply)) => {
                self.calls.lead.send_if_modified(|lead| {
                    let news = lead.leader != Some(to);
                    lead.leader = Some(to);
                    news
                });
                return Some(Answered { reply, sent_at });
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "no answer from the metadata service");
                self.suspect(to, None);
                sleep(PAUSE).await;
            }
            Err(_) => self.suspect(to, None),
        }
        None
    }

    /// Asks the leader once, for a request that says in each copy how often it was sent.
    pub(super) async fn meta_once(
        &self,
        way: &mut Way,
        request: &MetaRequest,
        until: Deadline,
    ) -> Option<MetaReply> {
        let answered = self.try_meta(way, encode(request).into(), until).await?;
        Some(answered.reply)
    }

    async fn attempt(
        &self,
        to: NodeId,
        body: Bytes,
        until: Deadline,
    ) -> Result<MetaReply, NetError> {
        let time = until.saturating_duration_since(Deadline::now());
        let call = self.transport.call(to, ServiceId::Meta, body, time);
        let reply = call.await?;
        decode(&reply).map_err(|error| NetError::Malformed {
            to,
            why: error.to_string(),
        })
    }

    /// Returns one node after the other.
    fn candidate(&self, turn: &mut usize) -> NodeId {
        let nodes = self.transport.nodes();
        let node = nodes.get(*turn % nodes.len().max(1)).copied();
        *turn += 1;
        node.unwrap_or_else(|| self.transport.local())
    }

    /// Notes that `node` does not lead (any more).
    fn suspect(&self, node: NodeId, instead: Option<NodeId>) {
        let mut concerned = false;
        self.calls.lead.send_if_modified(|lead| {
            concerned = lead.leader == Some(node) || lead.leader.is_none();
            if concerned {
                lead.leader = instead;
            }
            concerned
        });
        if concerned {
            self.calls.leader_changed.notify_one();
        }
    }

    /// Performs an operation. Reading is done again under a new session if need be; a change whose session ended
    /// has an unknown outcome and fails.
    ///
    /// The ticket must live until the grants of the reply are installed.
    pub(super) async fn op(self: &Arc<Self>, op: Op) -> Result<(OpReply, Ticket), Errno> {
        self.op_with(op, Patience::Session).await
    }

    pub(super) async fn op_with(
        self: &Arc<Self>,
        op: Op,
        patience: Patience,
    ) -> Result<(OpReply, Ticket), Errno> {
        // G2
        if self.makes.concerns(&op) {
            self.flush_made().await?;
        }
        self.op_in_turn(op, patience).await
    }

    /// As [`Self::op_with`], for what tells of changes of this node's own: it is what others wait for (G2).
    pub(super) async fn op_in_turn(
        self: &Arc<Self>,
        op: Op,
        patience: Patience,
    ) -> Result<(OpReply, Ticket), Errno> {
        let until = Deadline::now() + self.config.request_deadline;
        loop {
            let session = self.wait_session(until, patience).await?;
            let Some(ticket) = self.ticket(session) else {
                continue;
            };
            let (seq, done_below) = self.calls.next_seq();
            let request = MetaRequest::Op {
                session,
                seq: OpSeq(seq.seq),
                done_below,
                op: op.clone(),
            };
            // A change is asked for as long as its session lives: were it given up, it could still happen later
            // and our caches would not know. Everything cached goes with the session.
            let change = op.is_change();
            let since = if let Op::Names(_) = op {
                NAMES_SINCE
            } else {
                0
            };
            let until = if change {
                Deadline::now() + Duration::from_secs(24 * 3600)
            } else {
                until
            };
            fail_point!("client: before an operation is asked for");
            let answered = tokio::select! {
                answered = self.meta_encoded(encode(&request).into(), since, until) => answered?,
                () = self.session_gone(session) => {
                    if change {
                        return Err(Errno::EIO);
                    }
                    continue;
                }
            };
            fail_point!("client: after an operation is answered");
            match answered.reply {
                MetaReply::Op {
                    now,
                    result,
                    watched,
                } => {
                    self.clock.heard(now);
                    self.watched.store(watched, Ordering::Relaxed);
                    return Ok((result?, ticket));
                }
                MetaReply::SessionEnded => {
                    self.session_ended(session);
                    if change {
                        return Err(Errno::EIO);
                    }
                }
                other => {
                    tracing::error!(?other, "the metadata service answered something else");
                    return Err(Errno::EIO);
                }
            }
        }
    }

    /// Begins a request under a session; `None` if that has just ended.
    pub(super) fn ticket(self: &Arc<Self>, session: SessionId) -> Option<Ticket> {
        let mut leases = self.leases();
        let stamp = (leases.session() == Some(session)).then(|| leases.begin_request())?;
        drop(leases);
        Some(Ticket {
            core: Arc::clone(self),
            stamp,
        })
    }

    pub(super) async fn wait_session(
        &self,
        until: Deadline,
        patience: Patience,
    ) -> Result<SessionId, Errno> {
        let mut phases = self.phase.subscribe();
        let settled = phases.wait_for(|phase| match (phase, patience) {
            (Phase::Live(_) | Phase::Stopped, _) | (_, Patience::Only(_)) => true,
            (Phase::Lapsing, _) => patience == Patience::PageLock,
            (Phase::None, _) => false,
        });
        let phase = match timeout_at(until, settled).await {
            Ok(Ok(phase)) => *phase,
            Ok(Err(_)) | Err(_) => Phase::None,
        };
        // S5: the deadline has passed, or a READ must not hold up the invalidation of its file.
        let session = phase.session().ok_or(Errno::EIO)?;
        match patience {
            Patience::Only(of) if of != session => Err(Errno::EIO),
            Patience::Only(_) | Patience::Session | Patience::PageLock => Ok(session),
        }
    }

    /// Returns when the kernel's caches are being invalidated because the session was lost.
    pub(super) async fn lapsing(&self) {
        let mut phases = self.phase.subscribe();
        // The sender lives in `self`.
        let _phase = phases.wait_for(|phase| *phase == Phase::Lapsing).await;
    }

    /// Returns when the session is not the current one any more.
    pub(super) async fn session_gone(&self, session: SessionId) {
        let mut phases = self.phase.subscribe();
        // The sender lives in `self`.
        let _phase = phases
            .wait_for(|phase| *phase != Phase::Live(session))
            .await;
    }
}

/// What a request without session waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// A new session.
    Session,
    /// The same, but it fails while the kernel's caches are being invalidated: it may hold the lock of a page that
    /// the invalidation waits for.
    PageLock,
    /// Nothing: what it sends was made under the leases of this session, and is worth nothing under another.
    Only(SessionId),
}
