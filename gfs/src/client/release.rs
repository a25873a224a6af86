//! Gives leases of inodes back that the kernel has forgotten, many at a time.

use super::Core;
use super::session::Phase;
use consistency::wire::request::MetaRequest;
use consistency::{InodeNo, LeaseId, SessionId};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::Notify;

/// Releases in one message; when so many wait they are sent at once.
const BATCH_LEN: usize = 512;
/// The longest a release waits for company.
const WITHIN: Duration = Duration::from_millis(100);
/// Releases that wait; more are dropped, which only makes the leader remember the inodes until the session ends.
const QUEUE_LEN: usize = 1 << 18;
/// Time for the leader to take one message.
const DEADLINE: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct Releases {
    queue: Mutex<Vec<(InodeNo, LeaseId)>>,
    full: Notify,
}

impl Releases {
    pub(super) fn push(&self, ino: InodeNo, lease: LeaseId) {
        let mut queue = self.queue();
        if queue.len() < QUEUE_LEN {
            queue.push((ino, lease));
        }
        if queue.len() >= BATCH_LEN {
            self.full.notify_one();
        }
    }

    /// The session is over: its leases are gone.
    pub(super) fn clear(&self) {
        self.queue().clear();
    }

    fn take(&self) -> Vec<(InodeNo, LeaseId)> {
        let mut queue = self.queue();
        let count = queue.len().min(BATCH_LEN);
        queue.drain(..count).collect()
    }

    fn queue(&self) -> MutexGuard<'_, Vec<(InodeNo, LeaseId)>> {
        self.queue.lock().expect("no holder panics")
    }
}

/// Sends releases until the client stops.
pub(super) async fn run(core: Arc<Core>) {
    let mut phase = core.phase.subscribe();
    loop {
        tokio::select! {
            _ = phase.wait_for(|phase| *phase == Phase::Stopped) => return,
            () = tokio::time::sleep(WITHIN) => {}
            () = core.releases.full.notified() => {}
        }
        let session = core.phase.borrow().session();
        if let Some(session) = session {
            core.send_releases(session).await;
        }
    }
}

impl Core {
    async fn send_releases(&self, session: SessionId) {
        loop {
            let leases = self.releases.take();
            if leases.is_empty() {
                return;
            }
            let request = MetaRequest::Release { session, leases };
            let until = tokio::time::Instant::now() + DEADLINE;
            if self.meta(&request, until).await.is_err() {
                // The leader remembers these inodes for longer than needed; nothing else.
                return;
            }
        }
    }

    /// Gives every lease back.
    pub(super) async fn release_everything(&self) {
        let Some(session) = self.phase.borrow().session() else {
            return;
        };
        let held = self.leases().leases();
        for (ino, _) in held {
            let lease = self.leases().forget(ino);
            if let Some(lease) = lease {
                self.releases.push(ino, lease);
            }
        }
        self.send_releases(session).await;
    }
}
