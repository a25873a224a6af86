//! GETLK, SETLK, SETLKW, and what FLUSH and RELEASE give back.
//!
//! A request runs in a task of its own until the leader has answered it, whatever becomes of its caller: a lock that
//! nobody knows of would stay until the session ends. One whose caller was interrupted is cancelled; if it was
//! granted at the same time, the owner is given back what it held before.

use crate::client::Core;
use crate::client::call::{Patience, Way};
use crate::client::locks::Request;
use crate::error::Errno;
use crate::tree::Lock;
use consistency::lock::Ranges;
use consistency::wire::lock::{
    Held, LocalOwner, LockKind, LockMode, LockOp, LockRange, LockReply, RANGE_END,
};
use consistency::wire::request::{MetaReply, MetaRequest};
use consistency::{InodeNo, OpSeq};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant as Deadline, sleep};

/// What goes on until its session ends.
const FOR_EVER: Duration = Duration::from_secs(24 * 3600);
/// A request that is not answered is cancelled again after this: the first word may have overtaken it.
const CANCEL_AGAIN: Duration = Duration::from_millis(500);
/// Time for one such word.
const CANCEL_WITHIN: Duration = Duration::from_secs(2);

pub(super) async fn getlk(
    core: &Arc<Core>,
    ino: InodeNo,
    owner: u64,
    lock: Lock,
) -> Result<Option<Lock>, Errno> {
    let wanted = held(&lock)?.ok_or(Errno::EINVAL)?;
    // The kernel asks for fcntl locks alone.
    let owner = posix(owner);
    let request = core
        .locks
        .begin(ino, owner, None, wanted.range, Some(wanted.mode), false);
    let answer = core.ask_lock(&request, LockOp::Test(wanted)).await?;
    let LockReply::InTheWay(found) = answer else {
        return Err(unexpected(&answer));
    };
    Ok(found.map(|found| Lock {
        start: found.range.start,
        end: found.range.end,
        kind: match found.mode {
            LockMode::Read => libc::F_RDLCK,
            LockMode::Write => libc::F_WRLCK,
        },
        pid: found.pid,
    }))
}

pub(super) async fn setlk(
    core: &Arc<Core>,
    ino: InodeNo,
    handle: u64,
    owner: LocalOwner,
    lock: Lock,
    wait: bool,
) -> Result<(), Errno> {
    core.locks.check(handle)?;
    let range = range(&lock)?;
    let Some(lock) = held(&lock)? else {
        return clear(core, ino, owner, range).await;
    };
    // The other end goes with this future when the caller is interrupted.
    let (caller, outcome) = oneshot::channel();
    let request = core
        .locks
        .begin(ino, owner, Some(handle), range, Some(lock.mode), wait);
    let task = {
        let core = Arc::clone(core);
        async move { acquire(&core, &request, lock, wait, caller).await }
    };
    drop(tokio::spawn(task));
    outcome.await.unwrap_or(Err(Errno::EIO))
}

/// FLUSH: a close ends the process's fcntl locks on the file, through whichever descriptor they were made.
pub(super) async fn close(core: &Arc<Core>, ino: InodeNo, owner: u64) {
    let owner = posix(owner);
    if core.locks.has(ino, owner) {
        give_back(core, ino, owner).await;
    }
}

/// RELEASE: an open file that goes takes its flock and OFD locks along. Does not wait.
pub(super) fn release(core: &Arc<Core>, ino: InodeNo, handle: u64) {
    for owner in core.locks.forget_handle(ino, handle) {
        let core = Arc::clone(core);
        drop(tokio::spawn(async move {
            give_back(&core, ino, owner).await;
        }));
    }
}

async fn give_back(core: &Arc<Core>, ino: InodeNo, owner: LocalOwner) {
    core.locks.quiet(ino, owner).await;
    if let Err(error) = clear(core, ino, owner, LockRange::ALL).await {
        tracing::debug!(%ino, %error, "a lock was not given back: its session has ended");
    }
}

async fn clear(
    core: &Arc<Core>,
    ino: InodeNo,
    owner: LocalOwner,
    range: LockRange,
) -> Result<(), Errno> {
    if !core.locks.has(ino, owner) {
        return Ok(());
    }
    let core = Arc::clone(core);
    let request = core.locks.begin(ino, owner, None, range, None, false);
    let task = async move { change(&core, &request, LockOp::Clear(range)).await };
    finished(tokio::spawn(task).await)
}

async fn acquire(
    core: &Core,
    request: &Request,
    lock: Held,
    wait: bool,
    mut caller: oneshot::Sender<Result<(), Errno>>,
) {
    let op = LockOp::Acquire { lock, wait };
    if !wait {
        // Who is killed while it is on its way closes the file, which gives it back.
        let _gone = caller.send(change(core, request, op).await);
        return;
    }
    let seq = core.calls.lock_seq();
    let outcome = tokio::select! {
        outcome = core.ask_lock_as(request, op, seq) => outcome,
        () = cancel(core, seq, &mut caller) => unreachable!("it cancels until it is dropped"),
    };
    match outcome {
        Ok((_, before)) => {
            if caller.send(Ok(())).is_err() {
                // The caller has gone, be it at the same moment.
                restore(core, request, lock.range, &before).await;
            }
        }
        Err(error) => {
            request.lost();
            let _gone = caller.send(Err(error));
        }
    }
}

/// When the caller has gone, tells the leader so until the request is answered.
async fn cancel(core: &Core, seq: OpSeq, caller: &mut oneshot::Sender<Result<(), Errno>>) {
    caller.closed().await;
    loop {
        let session = core.phase.borrow().session();
        if let Some(session) = session {
            let word = MetaRequest::Cancel { session, seq };
            let _heard = core.meta(&word, Deadline::now() + CANCEL_WITHIN).await;
        }
        sleep(CANCEL_AGAIN).await;
    }
}

/// Undoes a grant. The owner held no more of these bytes before, so that nothing can be in the way.
async fn restore(core: &Core, request: &Request, range: LockRange, before: &Ranges) {
    let before: Vec<Held> = match request.owner.kind {
        LockKind::Posix => before.within(range).collect(),
        // A conversion has given up the old lock.
        LockKind::Flock => Vec::new(),
    };
    for op in undo(range, &before) {
        if let Err(error) = change(core, request, op).await {
            tracing::debug!(ino = %request.ino, %error, "a lock was not given back: its session has ended");
        }
    }
}

/// Returns what makes of a lock on all of `range` what was there before.
fn undo(range: LockRange, before: &[Held]) -> Vec<LockOp> {
    let mut ops = Vec::new();
    let mut next = range.start;
    for held in before {
        if next < held.range.start {
            ops.push(LockOp::Clear(LockRange {
                start: next,
                end: held.range.start - 1,
            }));
        }
        ops.push(LockOp::Acquire {
            lock: *held,
            wait: false,
        });
        next = held.range.end + 1;
    }
    if next <= range.end {
        ops.push(LockOp::Clear(LockRange {
            start: next,
            end: range.end,
        }));
    }
    ops
}

async fn change(core: &Core, request: &Request, op: LockOp) -> Result<(), Errno> {
    let outcome = core.ask_lock(request, op).await;
    if outcome.is_err() {
        request.lost();
    }
    outcome.map(drop)
}

impl Core {
    async fn ask_lock(&self, request: &Request, op: LockOp) -> Result<LockReply, Errno> {
        let answer = self.ask_lock_as(request, op, self.calls.lock_seq()).await;
        answer.map(|(reply, _)| reply)
    }

    /// Asks until the leader of the present reign has answered, or the session has ended; returns also what the owner
    /// held before a change.
    async fn ask_lock_as(
        &self,
        request: &Request,
        op: LockOp,
        seq: OpSeq,
    ) -> Result<(LockReply, Ranges), Errno> {
        let until = Deadline::now() + self.config.request_deadline;
        let session = self.wait_session(until, Patience::Session).await?;
        let mut reigns = self.locks.reign();
        let mut way = Way::default();
        let mut attempt = 0;
        // What changes something goes on as long as it could still happen.
        let until = match op {
            LockOp::Test(_) => until,
            LockOp::Acquire { .. } | LockOp::Clear(_) => Deadline::now() + FOR_EVER,
        };
        loop {
            attempt += 1;
            let epoch = *reigns.borrow_and_update();
            let message = MetaRequest::Lock {
                session,
                seq,
                attempt,
                epoch,
                ino: request.ino,
                owner: request.owner,
                op,
            };
            let reply = tokio::select! {
                reply = self.meta_once(&mut way, &message, until) => reply,
                _ = reigns.changed() => continue,
                () = self.session_gone(session) => return Err(Errno::EIO),
            };
            match reply {
                None if Deadline::now() >= until => return Err(Errno::EIO),
                None | Some(MetaReply::Lock(Ok(LockReply::Waiting))) => {}
                Some(MetaReply::Lock(Ok(LockReply::Done { version, held }))) => {
                    let before = request.told(session, epoch, version, held.clone());
                    if let Some(before) = before {
                        return Ok((LockReply::Done { version, held }, before));
                    }
                }
                Some(MetaReply::Lock(outcome)) => return Ok((outcome?, Ranges::default())),
                Some(MetaReply::SessionEnded) => {
                    self.session_ended(session);
                    return Err(Errno::EIO);
                }
                Some(other) => {
                    tracing::error!(?other, "the metadata service answered something else");
                    return Err(Errno::EIO);
                }
            }
        }
    }
}

pub(super) const fn posix(id: u64) -> LocalOwner {
    LocalOwner {
        kind: LockKind::Posix,
        id,
    }
}

fn range(lock: &Lock) -> Result<LockRange, Errno> {
    let range = LockRange {
        start: lock.start,
        end: lock.end.min(RANGE_END),
    };
    range.is_valid().then_some(range).ok_or(Errno::EINVAL)
}

/// Returns the lock that is wanted, `None` to unlock.
fn held(lock: &Lock) -> Result<Option<Held>, Errno> {
    let mode = match lock.kind {
        libc::F_RDLCK => LockMode::Read,
        libc::F_WRLCK => LockMode::Write,
        libc::F_UNLCK => return Ok(None),
        _ => return Err(Errno::EINVAL),
    };
    let (range, pid) = (range(lock)?, lock.pid);
    Ok(Some(Held { range, mode, pid }))
}

fn unexpected(reply: &LockReply) -> Errno {
    tracing::error!(?reply, "the metadata service answered another question");
    Errno::EIO
}

fn finished(task: Result<Result<(), Errno>, tokio::task::JoinError>) -> Result<(), Errno> {
    task.unwrap_or_else(|failed| {
        tracing::error!(%failed, "a lock request's task ended early");
        Err(Errno::EIO)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn undoing_a_grant_leaves_what_was_there() {
        let check = |before: &[(u64, u64)], expected: &[(bool, u64, u64)]| {
            let held = |&(start, end): &(u64, u64)| Held {
                range: LockRange { start, end },
                mode: LockMode::Read,
                pid: 1,
            };
            let before: Vec<Held> = before.iter().map(held).collect();
            let range = LockRange { start: 2, end: 9 };
            let ops: Vec<_> = undo(range, &before)
                .into_iter()
                .map(|op| match op {
                    LockOp::Clear(range) => (false, range.start, range.end),
                    LockOp::Acquire { lock, .. } => (true, lock.range.start, lock.range.end),
                    LockOp::Test(_) => panic!("a test undoes nothing"),
                })
                .collect();
            assert_eq!(ops, expected);
        };
        check(&[], &[(false, 2, 9)]);
        check(&[(2, 9)], &[(true, 2, 9)]);
        check(&[(4, 5)], &[(false, 2, 3), (true, 4, 5), (false, 6, 9)]);
        check(
            &[(2, 3), (8, 9)],
            &[(true, 2, 3), (false, 4, 7), (true, 8, 9)],
        );
    }
}
