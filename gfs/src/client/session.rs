//! The life of a session: opened, renewed every third of its term, reclaimed after a change of leader, and when it
//! may have ended, everything that was cached under it is invalidated before a new one is opened.
//!
//! | phase | event | next | action |
//! | --- | --- | --- | --- |
//! | None | OpenSession answered | Live | |
//! | Live | renewed | Live | reclaim if asked to |
//! | Live | not renewed until the margin, or ended by the leader | Lapsing | drop leases and caches |
//! | Lapsing | the kernel has forgotten | None | |
//! | any | shutdown | Stopped | |
//!
//! S5: the kernel does not look at the term, so invalidation must be over when it ends: it begins a margin before.

use super::Core;
use super::call::Answered;
use crate::error::Errno;
use consistency::wire::lease::Mode;
use consistency::wire::request::{MetaReply, MetaRequest};
use consistency::{Duration as Micros, Epoch, InodeNo, Instant, SessionId};
use futures::StreamExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::{Instant as Deadline, sleep, timeout};

/// The part of the term (one in this many) in which the kernel's caches are invalidated if it was not renewed.
const MARGIN_PART: u64 = 8;
/// Renewals per term.
const RENEWALS: u64 = 3;
/// Leases in one `Reclaim` message.
const RECLAIM_LEN: usize = 4096;
/// Invalidations of one lapse under way at a time.
const LAPSE_WIDTH: usize = 8;
/// Time for replies under the lost lease to reach the kernel; they have left this process's hands.
const HOLDS_WITHIN: Duration = Duration::from_millis(100);
/// How long one attempt to open a session looks for a leader.
const OPEN_WITHIN: Duration = Duration::from_secs(30);
/// Pause between attempts to open a session.
const PAUSE: Duration = Duration::from_millis(50);

/// Where the session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// None, and nothing is cached.
    None,
    Live(SessionId),
    /// Lost; caches are being invalidated.
    Lapsing,
    Stopped,
}

impl Phase {
    pub(super) const fn session(self) -> Option<SessionId> {
        match self {
            Self::Live(session) => Some(session),
            Self::None | Self::Lapsing | Self::Stopped => None,
        }
    }
}

struct Session {
    id: SessionId,
    term: Micros,
    epoch: Epoch,
    renew_at: Instant,
}

/// Keeps a session until the client stops.
pub(super) async fn run(core: Arc<Core>) {
    let mut phases = core.phase.subscribe();
    let life = async {
        loop {
            let Some(session) = core.open_session().await else {
                sleep(PAUSE).await;
                continue;
            };
            core.keep_session(session).await;
            core.lapse().await;
        }
    };
    tokio::select! {
        () = life => {}
        _ = phases.wait_for(|phase| *phase == Phase::Stopped) => {}
    }
}

impl Core {
    async fn open_session(&self) -> Option<Session> {
        // Not for ever, although requests may wait so long: it is told that nobody answers.
        let until = Deadline::now() + self.config.request_deadline.min(OPEN_WITHIN);
        let attempt = self.attempts.fetch_add(1, Ordering::Relaxed) + 1;
        let answered = self
            .meta(&MetaRequest::OpenSession { attempt }, until)
            .await;
        let Ok(Answered { reply, sent_at }) = answered else {
            tracing::warn!("no metadata leader answers; still looking for one");
            return None;
        };
        let MetaReply::Opened {
            session,
            term,
            epoch,
            now,
        } = reply
        else {
            tracing::error!(?reply, "cannot open a session");
            return None;
        };
        self.clock.heard(now);
        if term == Micros(0) {
            // The answer to a repeated request: nobody knows how much of its term is left.
            return None;
        }
        self.leases().session_opened(sent_at, session, term);
        self.locks.session_opened(session, epoch);
        self.phase.send_if_modified(|phase| {
            let open = *phase == Phase::None;
            if open {
                *phase = Phase::Live(session);
            }
            open
        });
        Some(Session {
            id: session,
            term,
            epoch,
            renew_at: sent_at + Micros(term.0 / RENEWALS),
        })
    }

    /// Renews a session; returns when it is lost.
    async fn keep_session(&self, mut session: Session) {
        let mut phases = self.phase.subscribe();
        loop {
            let lapse_at = self.lapse_at(session.term);
            let renewed = async {
                tokio::select! {
                    () = sleep(self.clock.until(session.renew_at)) => {}
                    () = self.calls.leader_changed.notified() => {}
                }
                self.renew(&mut session).await
            };
            tokio::select! {
                renewed = renewed => match renewed {
                    Ok(()) => {}
                    Err(Ended) => return,
                },
                () = sleep(self.clock.until(lapse_at)) => {
                    tracing::warn!("the leader could not be reached for a whole term: everything cached is dropped");
                    return;
                }
                _ = phases.wait_for(|phase| phase.session().is_none()) => return,
            }
        }
    }

    fn lapse_at(&self, term: Micros) -> Instant {
        let valid_until = self.leases().valid_until();
        Instant(valid_until.0.saturating_sub(term.0 / MARGIN_PART))
    }

    async fn renew(&self, session: &mut Session) -> Result<(), Ended> {
        let request = MetaRequest::Renew {
            session: session.id,
            report: (self.report)(),
        };
        let until = Deadline::now() + Duration::from_micros(session.term.0);
        let Ok(Answered { reply, sent_at }) = self.meta(&request, until).await else {
            return Ok(());
        };
        match reply {
            MetaReply::Renewed {
                term,
                epoch,
                now,
                reclaim,
            } => {
                self.clock.heard(now);
                session.term = term;
                session.renew_at = sent_at + Micros(term.0 / RENEWALS);
                if reclaim || epoch != session.epoch {
                    self.reclaim(session.id, epoch).await?;
                    session.epoch = epoch;
                    // Only a renewal after the reclaim gives time.
                    session.renew_at = self.clock.now();
                    return Ok(());
                }
                self.leases().renewed(sent_at, term);
                Ok(())
            }
            MetaReply::SessionEnded => Err(Ended),
            other => {
                tracing::error!(?other, "unexpected answer to a renewal");
                session.renew_at = self.clock.now() + Micros(session.term.0 / RENEWALS);
                Ok(())
            }
        }
    }

    /// Tells a new leader what the session holds.
    async fn reclaim(&self, session: SessionId, epoch: Epoch) -> Result<(), Ended> {
        let held = self.leases().begin_reclaim(self.clock.now(), epoch);
        let held = held.ok_or(Ended)?;
        fail_point!("client: before leases are told");
        self.reclaim_locks(session, epoch).await?;
        let mut batches: Vec<&[(InodeNo, Mode)]> = held.chunks(RECLAIM_LEN).collect();
        if batches.is_empty() {
            batches.push(&[]);
        }
        let count = batches.len();
        for (index, batch) in batches.into_iter().enumerate() {
            let request = MetaRequest::Reclaim {
                session,
                epoch,
                leases: batch.to_vec(),
                last: index + 1 == count,
            };
            let until = Deadline::now() + self.config.request_deadline;
            let reply = self.meta(&request, until).await.map_err(|_| Ended)?.reply;
            match reply {
                MetaReply::Reclaimed(ids) if ids.len() == batch.len() => {
                    let answers: Vec<_> = batch.iter().map(|&(ino, _)| ino).zip(ids).collect();
                    let given_back = self.leases().reclaimed(&answers);
                    for (ino, lease) in given_back {
                        self.releases.push(ino, lease);
                    }
                    for (ino, id) in answers {
                        if id.is_none() {
                            tracing::warn!(%ino, "the new leader did not honour a lease");
                            self.lose(ino).await;
                        }
                    }
                }
                MetaReply::SessionEnded => return Err(Ended),
                // Not in its grace period any more, or a leader of another opinion: start anew.
                other => {
                    tracing::warn!(?other, "reclaim was refused");
                    return Err(Ended);
                }
            }
        }
        Ok(())
    }

    /// Tells a new leader which locks programs hold; before it is told the last of the leases (LK6).
    async fn reclaim_locks(&self, session: SessionId, epoch: Epoch) -> Result<(), Ended> {
        let held = self.locks.begin_reign(epoch);
        for batch in held.chunks(RECLAIM_LEN) {
            let request = MetaRequest::ReclaimLocks {
                session,
                epoch,
                locks: batch.to_vec(),
            };
            let until = Deadline::now() + self.config.request_deadline;
            let reply = self.meta(&request, until).await.map_err(|_| Ended)?.reply;
            if reply != MetaReply::Done {
                tracing::warn!(?reply, "reclaim of locks was refused");
                return Err(Ended);
            }
        }
        Ok(())
    }

    /// Notes that the leader has ended a session.
    pub(super) fn session_ended(&self, session: SessionId) {
        self.phase.send_if_modified(|phase| {
            let current = *phase == Phase::Live(session);
            if current {
                *phase = Phase::Lapsing;
            }
            current
        });
    }

    /// Drops everything that the lost session covered, and has the kernel forget it (DESIGN: what waits for what, 7).
    async fn lapse(&self) {
        self.phase.send_if_modified(|phase| {
            let live = *phase != Phase::Stopped;
            if live {
                *phase = Phase::Lapsing;
            }
            live
        });
        if missing!(NoLapse) {
            self.phase.send_replace(Phase::None);
            return;
        }
        let unlocked = self.locks.session_lost();
        if unlocked > 0 {
            tracing::error!(
                files = unlocked,
                "the session is lost, and the locks of programs with it"
            );
        }
        self.leases().drop_all();
        self.makes.clear();
        self.releases.clear();
        self.dirty.forget_ids();
        let nodes: Vec<_> = self.nodes.iter().map(|node| Arc::clone(&node)).collect();
        let mut lost = 0_u32;
        for node in &nodes {
            let mut state = node.state();
            lost += u32::from(self.drop_everything(node.ino, &mut state));
            drop(state);
            node.wake();
        }
        if lost > 0 {
            // S4: nobody else has seen them, and no fsync has returned for them.
            tracing::error!(
                files = lost,
                "the session is lost, and unsynced changes with it"
            );
        }
        let delivered = async {
            for node in &nodes {
                node.wait(|state| (state.holds == 0).then_some(())).await;
            }
        };
        if timeout(HOLDS_WITHIN, delivered).await.is_err() {
            tracing::warn!("a reply is still on its way to the kernel");
        }
        self.kernel.forget_all_names().await;
        futures::stream::iter(nodes)
            .map(|node| async move { self.kernel.forget_data(node.ino).await })
            .buffer_unordered(LAPSE_WIDTH)
            .collect::<()>()
            .await;
        self.phase.send_if_modified(|phase| {
            let over = *phase == Phase::Lapsing;
            if over {
                *phase = Phase::None;
            }
            over
        });
    }

    /// Drops what is cached for one inode whose lease is gone without a break.
    async fn lose(&self, ino: InodeNo) {
        let node = self.nodes.get(&ino).map(|node| Arc::clone(&node));
        let Some(node) = node else { return };
        let names = {
            let mut state = node.state();
            if self.drop_everything(ino, &mut state) {
                tracing::error!(%ino, "a lease is lost, and unsynced changes with it");
            }
            state.names.in_kernel()
        };
        node.wake();
        self.kernel.forget_names(ino, names).await;
        self.kernel.forget_data(ino).await;
    }

    /// Returns true if changes were lost.
    fn drop_everything(&self, ino: InodeNo, state: &mut super::node::State) -> bool {
        let lost = state.is_dirty();
        if lost {
            state.writing.fail(Errno::EIO);
        }
        state.drop_data();
        state.made = false;
        state.removal = super::node::Removal::None;
        state.names.lose_made();
        state.names.forget_all();
        self.account(ino, state);
        lost
    }
}

/// The session is over.
struct Ended;
