//! Orders to move a job, as its home takes them.

use super::super::admission::Refused;
use super::super::protocol::Moved;
use super::rules::NotMoved;
use super::{How, Known, Order, STAY, Travel};
use crate::level::Because;
use consistency::NodeId;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::oneshot;

/// Why a job is to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    Asked,
    Levelled(Because),
    /// It is to go on as its newest checkpoint.
    Restart,
    /// As [`Self::Asked`], and its memory may follow.
    PostCopy,
}

impl Why {
    const fn because(self) -> Option<Because> {
        match self {
            Self::Levelled(because) => Some(because),
            Self::Asked | Self::Restart | Self::PostCopy => None,
        }
    }
}

impl Travel {
    /// Moves a job of this node; returns when it runs there, or the errno that says why it does not.
    pub(in crate::job) async fn go_now(self: &Arc<Self>, pid: i32, to: NodeId) -> Result<(), i32> {
        let known = self.jobs().get(&pid).cloned();
        self.go(known, pid, to, Why::Asked).await
    }

    pub(super) async fn go(
        self: &Arc<Self>,
        known: Option<Known>,
        pid: i32,
        to: NodeId,
        why: Why,
    ) -> Result<(), i32> {
        let begun = Instant::now();
        let at_home = || self.node;
        let at = known
            .as_ref()
            .map_or_else(at_home, |known| known.status.borrow().at);
        match why {
            // Its pid is there already.
            Why::Restart if at == to => return Err(libc::EEXIST),
            _ if at == to => return Ok(()),
            Why::Restart | Why::Asked | Why::PostCopy | Why::Levelled(_) => {}
        }
        let ties = self.ties_at_rest(known.as_ref(), pid).await;
        let mut ties = ties.ok_or(libc::EBUSY)?;
        if to == self.node {
            ties.remove(STAY);
        }
        let Some(known) = known.filter(|_| ties.is_empty()) else {
            tracing::info!(pid, %to, ?ties, "a process cannot move");
            return Err(libc::EOPNOTSUPP);
        };
        // A lock binds levelling as well, and whoever has not seen it.
        if known.level.locked && to != self.node {
            return Err(libc::EBUSY);
        }
        // Before anything stands still; the target looks itself, too (J5).
        let guest = to != self.node;
        match self.admissions.admit(to, &known.user, guest).await {
            Ok(()) => {}
            Err(
                Refused::Closed { .. }
                | Refused::Reserved { .. }
                | Refused::Blocked { .. }
                | Refused::InUse { .. }
                | Refused::NoRoot { .. }
                | Refused::NoAccount { .. },
            ) => {
                return Err(libc::ECONNREFUSED);
            }
            Err(Refused::Unknown { .. }) => return Err(libc::EAGAIN),
        }
        // MV12
        let used = self.look(&known, pid).await;
        let lacks = self.lacks(&used, to).await;
        if !lacks.is_empty() {
            let lacks = lacks.join(" ");
            tracing::warn!(pid, %to, %lacks, "a process may use what a node's processors lack");
            return Err(libc::ENOEXEC);
        }
        let (answer, told) = oneshot::channel();
        if why == Why::Restart && !known.is_kept() {
            return Err(libc::ENODATA);
        }
        let how = match why {
            Why::Restart => How::Restart,
            Why::PostCopy => How::PostCopy,
            Why::Asked | Why::Levelled(_) => How::Whole,
        };
        let order = Order::Go { to, how, answer };
        if known.orders.send(order).await.is_err() {
            return Err(libc::ESRCH);
        }
        // It moves also if whoever asked has gone away meanwhile.
        let (travel, status) = (Arc::clone(self), known.status);
        let told = tokio::spawn(async move {
            let told = told.await;
            if let Ok(Ok(cost)) = told {
                let took_ms = u32::try_from(begun.elapsed().as_millis()).unwrap_or(u32::MAX);
                let moved = Moved {
                    from: at,
                    to,
                    because: why.because(),
                    took_ms,
                };
                status.send_modify(|status| status.last = Some((moved, cost)));
                tokio::spawn(async move { travel.tell_of(pid, moved, cost).await });
            }
            told
        });
        match told.await.expect("it does not panic") {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(NotMoved::Busy)) => Err(libc::EBUSY),
            Ok(Err(NotMoved::Failed(why))) => {
                tracing::warn!(pid, %to, %why, "a process was not moved");
                Err(libc::EAGAIN)
            }
            // ESRCH also of one that will run again: the move has come to nothing.
            Ok(Err(NotMoved::Ended | NotMoved::Lost)) | Err(_) => Err(libc::ESRCH),
        }
    }
}
