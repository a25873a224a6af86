//! Group commit: one task gathers the commands that wait and proposes them as one entry.
//!
//! Two entries are under way at most: while one is synced the next is gathered and handed over. A lone
//! command on an idle log waits for nobody.

use super::Leadership;
use super::error::ProposeError;
use super::raft::{Batch, Life, Raft};
use crate::server::machine::StateMachine;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use openraft::error::Fatal;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

/// Entries under way at once: openraft syncs one after the other, so a third would only wait.
const IN_FLIGHT_MAX: usize = 2;
/// Commands in one entry: bounds how long applying one entry keeps readers out.
const BATCH_COMMANDS_MAX: usize = 1024;
/// Bytes of commands in one entry, unless it is a single larger command.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// Gives the caller of a command its outcome.
pub(super) type Caller<M> = oneshot::Sender<Result<<M as StateMachine>::Reply, ProposeError>>;

/// A command on its way to the log.
pub(super) struct Proposal<M: StateMachine> {
    pub command: M::Command,
    pub encoded: Bytes,
    pub caller: Caller<M>,
    /// Its share of the queue.
    pub room: OwnedSemaphorePermit,
}

/// The commands of a batch in their order, with who waits for each.
type Waiting<M> = Vec<(<M as StateMachine>::Command, Caller<M>)>;

/// The batches under way, by number. Apply takes them from here with their decoded commands.
pub(super) struct Pending<M: StateMachine> {
    batches: Mutex<BTreeMap<u64, Waiting<M>>>,
}

impl<M: StateMachine> Default for Pending<M> {
    fn default() -> Self {
        Self {
            batches: Mutex::default(),
        }
    }
}

impl<M: StateMachine> fmt::Debug for Pending<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.batches().keys()).finish()
    }
}

impl<M: StateMachine> Pending<M> {
    fn batches(&self) -> MutexGuard<'_, BTreeMap<u64, Waiting<M>>> {
        self.batches.lock().expect("no holder panics")
    }

    /// Removes a batch, to answer its callers.
    pub(super) fn take(&self, number: u64) -> Option<Waiting<M>> {
        self.batches().remove(&number)
    }

    fn fail(&self, number: u64, error: &ProposeError) {
        for (_, caller) in self.take(number).into_iter().flatten() {
            answer(caller, Err(error.clone()));
        }
    }

    /// Tells the callers of all batches that are in some log that their outcome is unknown. The others
    /// hear from openraft.
    fn abandon(&self, life: &Life, why: &str) {
        let numbers: Vec<u64> = self.batches().keys().copied().collect();
        let appended = numbers
            .into_iter()
            .filter(|number| life.is_appended(*number));
        for number in appended {
            self.fail(number, &ProposeError::Unknown(why.into()));
        }
    }
}

/// Answers a caller; one that does not wait any more needs no answer.
pub(super) fn answer<R>(
    caller: oneshot::Sender<Result<R, ProposeError>>,
    outcome: Result<R, ProposeError>,
) {
    drop(caller.send(outcome));
}

/// The task.
pub(super) struct Proposer<M: StateMachine> {
    pub raft: Raft,
    pub queue: mpsc::UnboundedReceiver<Proposal<M>>,
    pub pending: Arc<Pending<M>>,
    pub life: Arc<Life>,
    pub leadership: watch::Receiver<Leadership>,
}

/// An entry under way: its number and how it ended, with its share of the queue until then.
type InFlight = BoxFuture<'static, (u64, Option<ProposeError>, Vec<OwnedSemaphorePermit>)>;

impl<M: StateMachine> Proposer<M> {
    /// Runs until the last sender of the queue is gone and all is answered.
    pub(super) async fn run(mut self) {
        let mut in_flight = FuturesUnordered::<InFlight>::new();
        let mut carried = None;
        let mut number = 0;
        let (mut open, mut led) = (true, false);
        while open || !in_flight.is_empty() {
            let leading = self.leadership.borrow_and_update().leading;
            if led && !leading {
                let why = self
                    .cause()
                    .unwrap_or_else(|| "this node lost the leadership".into());
                self.pending.abandon(&self.life, &why);
            }
            led = leading;
            // Without leadership nothing is proposed, but the queue is emptied, with refusals.
            let receive = open && (in_flight.len() < IN_FLIGHT_MAX || !leading);
            tokio::select! {
                biased;
                Some((number, error, room)) = in_flight.next() => {
                    drop(room);
                    if let Some(error) = error {
                        self.settle(number, error);
                    }
                }
                // Before the queue: who has seen that this node leads is not refused.
                Ok(()) = self.leadership.changed() => {}
                first = next(&mut carried, &mut self.queue), if receive => match first {
                    None => open = false,
                    Some(first) if !leading => self.refuse(first),
                    Some(first) => {
                        number += 1;
                        let (batch, room) = self.gather(first, number, &mut carried);
                        let under_way = self.propose(batch, room).await;
                        in_flight.push(under_way);
                    }
                },
            }
        }
    }

    fn refuse(&self, proposal: Proposal<M>) {
        let leader = self.leadership.borrow().leader;
        answer(proposal.caller, Err(ProposeError::NotLeader(leader)));
    }

    /// Makes a batch of what waits; what does not fit is carried to the next.
    fn gather(
        &mut self,
        first: Proposal<M>,
        number: u64,
        carried: &mut Option<Proposal<M>>,
    ) -> (Batch, Vec<OwnedSemaphorePermit>) {
        let (mut commands, mut waiting, mut rooms) = (Vec::new(), Vec::new(), Vec::new());
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(proposal) = next.take() {
            // Its caller gave up before anything was proposed.
            if !proposal.caller.is_closed() {
                bytes += proposal.encoded.len();
                if !commands.is_empty() && bytes > BATCH_BYTES_MAX {
                    *carried = Some(proposal);
                    break;
                }
                commands.push(proposal.encoded);
                waiting.push((proposal.command, proposal.caller));
                rooms.push(proposal.room);
            }
            if commands.len() < BATCH_COMMANDS_MAX {
                next = self.queue.try_recv().ok();
            }
        }
        self.pending.batches().insert(number, waiting);
        let batch = Batch {
            life: self.life.id,
            number,
            commands,
        };
        (batch, rooms)
    }

    async fn propose(&self, batch: Batch, room: Vec<OwnedSemaphorePermit>) -> InFlight {
        let number = batch.number;
        let proposed = if batch.commands.is_empty() {
            None
        } else {
            fail_point!("log: before a batch is proposed");
            Some(self.raft.client_write_ff(batch).await)
        };
        Box::pin(async move {
            let error = match proposed {
                None => None,
                Some(Err(fatal)) => Some(stopped(&fatal)),
                Some(Ok(outcome)) => match outcome.await {
                    Ok(outcome) => outcome.err().map(ProposeError::from),
                    Err(_) => Some(stopped(&Fatal::Stopped)),
                },
            };
            (number, error, room)
        })
    }

    /// Answers the callers of a batch that failed. Openraft says "forward to the leader" both for a batch
    /// it refused and for one it appended and later had to drop; only the first is certain to have no effect.
    fn settle(&self, number: u64, error: ProposeError) {
        let error = match error {
            ProposeError::NotLeader(_) | ProposeError::Unavailable(_)
                if self.life.is_appended(number) =>
            {
                ProposeError::Unknown(self.why(&error))
            }
            ProposeError::Unavailable(_) => ProposeError::Unavailable(self.why(&error)),
            error => error,
        };
        self.pending.fail(number, &error);
    }

    /// Returns the reason for a failure: if the core has died, what it died of.
    fn why(&self, error: &ProposeError) -> String {
        self.cause().unwrap_or_else(|| error.to_string())
    }

    /// Returns what the core died of, if it has.
    fn cause(&self) -> Option<String> {
        let metrics = self.raft.metrics();
        let state = &metrics.borrow().running_state;
        state.as_ref().err().map(Fatal::to_string)
    }
}

async fn next<M: StateMachine>(
    carried: &mut Option<Proposal<M>>,
    queue: &mut mpsc::UnboundedReceiver<Proposal<M>>,
) -> Option<Proposal<M>> {
    match carried.take() {
        Some(proposal) => Some(proposal),
        None => queue.recv().await,
    }
}

fn stopped(fatal: &Fatal<u16>) -> ProposeError {
    ProposeError::Unavailable(fatal.to_string())
}
