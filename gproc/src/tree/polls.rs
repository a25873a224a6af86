//! poll(2): `events` can be read when there is a new line, `wait` when its process has ended. All other files always can.

use super::ProcTree;
use super::deep::{At, Spot};
use super::ino::Ino;
use super::table::{OfProcess, PROCESS};
use crate::text;
use crate::wire::{ProcFile, Who};
use bytes::Bytes;
use gfs::error::Errno;
use gfs::tree::{BROKEN, READABLE, READY, Wake};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::SetOnce;
use tokio::task::AbortHandle;

/// That a process ends is no secret: who may not know how is told by the read.
const ANYBODY: Who = Who { uid: 0, gid: 0 };

/// A task that wakes; it ends with this.
#[derive(Debug)]
pub(super) struct Polled {
    task: AbortHandle,
    /// It wakes now, or has.
    wakes: Arc<AtomicBool>,
    ended: Ended,
}

/// How a process has ended, for who reads that after it was told by poll(2): by then nobody else may know any more. Nothing: who
/// has it open is not told, or it could not be found out.
type Ended = Arc<SetOnce<Option<Bytes>>>;

impl Polled {
    /// Waits for the end of the process that is waited for; returns how it has ended. That it has may be seen before this is
    /// told. Cancel-safe.
    pub(super) async fn ended(&self) -> Option<Bytes> {
        self.ended.wait().await.clone()
    }
}

impl Drop for Polled {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ProcTree {
    /// Tells what an open file is ready for.
    pub(super) async fn poll_file(
        &self,
        ino: Ino,
        fh: u64,
        wake: Option<Wake>,
    ) -> Result<u32, Errno> {
        let open = self.open.get(&fh).ok_or(Errno(libc::EBADF))?.clone();
        if let Some(position) = open.position {
            let rest = open.content.is_some_and(|rest| !rest.is_empty());
            if rest || self.events.position() > position {
                return Ok(READABLE);
            }
            let events = Arc::clone(&self.events);
            self.wake_after(fh, wake, Ended::default(), async move {
                events.behind(position).await;
            });
            return Ok(0);
        }
        let Some(at) = self.waited_for(ino) else {
            return Ok(READY);
        };
        match self.has_ended(&at).await {
            None => return Ok(BROKEN),
            Some(true) => return Ok(READABLE),
            Some(false) => {}
        }
        let (cluster, ended) = (Arc::clone(&self.cluster), Ended::default());
        let told = Arc::clone(&ended);
        self.wake_after(fh, wake, ended, async move {
            match cluster.wait(&at.identity, open.opener).await {
                // There is one task for an open file.
                Ok(Ok(how)) => drop(told.set(Some(how))),
                Ok(Err(libc::EACCES)) => {
                    told.set(None).ok();
                    drop(cluster.wait(&at.identity, ANYBODY).await);
                }
                // Whatever came of it, it is looked at again.
                Ok(Err(_)) | Err(_) => {}
            }
        });
        Ok(0)
    }

    /// Returns the process whose `wait` an inode is.
    fn waited_for(&self, ino: Ino) -> Option<At> {
        let Ino::ProcessFile(..) = ino else {
            return None;
        };
        let at = self.at(ino).ok()?;
        let Spot::File(row) = at.spot else {
            return None;
        };
        let file = PROCESS.get(usize::from(row))?;
        matches!(file.what, OfProcess::Wait).then_some(at)
    }

    /// Returns whether a process has ended, be it waited for or not; `None` if its node does not say.
    async fn has_ended(&self, at: &At) -> Option<bool> {
        let stat = self
            .cluster
            .read(&at.identity, None, ProcFile::Stat, ANYBODY)
            .await;
        match stat.ok()? {
            Ok(stat) => Some(text::exit_status(&stat).is_some()),
            Err(libc::ESRCH) => Some(true),
            Err(_) => None,
        }
    }

    fn wake_after(
        &self,
        fh: u64,
        wake: Option<Wake>,
        ended: Ended,
        change: impl Future<Output = ()> + Send + 'static,
    ) {
        let Some(wake) = wake else { return };
        // Closed meanwhile: nobody waits.
        let Some(mut open) = self.open.get_mut(&fh) else {
            return;
        };
        // One that will still wake does so for all who poll the file.
        let waits = |polled: &Arc<Polled>| !polled.wakes.load(Ordering::SeqCst);
        if open.polled.as_ref().is_some_and(waits) {
            return;
        }
        let wakes = Arc::<AtomicBool>::default();
        let (waking, known) = (Arc::clone(&wakes), Arc::clone(&ended));
        let task = tokio::spawn(async move {
            change.await;
            // By then somebody else may have.
            known.set(None).ok();
            waking.store(true, Ordering::SeqCst);
            wake.wake();
        });
        let task = task.abort_handle();
        open.polled = Some(Arc::new(Polled { task, wakes, ended }));
    }
}
