//! Threads that do things in a node's file systems as another user (NR1).
//!
//! Linux keeps user, groups and capabilities for each thread, and so does the umask once a thread has parted from its
//! process (CLONE_FS). So work for users is done by threads of its own, which nothing else runs on: each piece of it
//! begins as the daemon and ends as the daemon. The *effective* user is changed: with it all capabilities go, also those
//! that a change of the file-system user would leave (reserved blocks, quotas, trusted attributes), and the daemon's
//! come back with it.

use super::sys;
use crate::wire::User;
use gfs::error::Errno;
use nix::unistd::{getegid, geteuid, getgroups};
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot};

/// How many pieces of work are done at a time; more wait. It bounds the threads that a slow disk may block.
pub(super) const HANDS_MAX: usize = 64;
/// How long a thread waits for work before it ends.
const IDLE_MAX: Duration = Duration::from_secs(30);

type Work = Box<dyn FnOnce() + Send>;

/// The threads. They come as they are needed.
pub(super) struct Hands {
    turns: Arc<Semaphore>,
    desk: Arc<Desk>,
}

/// Where work is put and taken.
#[derive(Default)]
struct Desk {
    queue: Mutex<Queue>,
    filled: Condvar,
}

#[derive(Default)]
struct Queue {
    work: VecDeque<Work>,
    idle: usize,
}

impl fmt::Debug for Hands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hands")
    }
}

impl Default for Hands {
    fn default() -> Self {
        Self {
            turns: Arc::new(Semaphore::new(HANDS_MAX)),
            desk: Arc::default(),
        }
    }
}

impl Hands {
    /// Does work on a thread of its own, to its end, also if nobody waits for it any more.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Errno> + Send + 'static,
    ) -> Result<T, Errno> {
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        let (done, result) = oneshot::channel();
        let piece = move || {
            // Held by the work itself: what is stuck counts even after its caller has given up.
            let _turn = turn.expect("it is never closed");
            // Nobody may wait for it.
            drop(done.send(work()));
        };
        self.desk.put(Box::new(piece));
        result.await.map_err(|_| Errno::EIO)?
    }
}

impl Desk {
    fn put(self: &Arc<Self>, work: Work) {
        let mut queue = self.queue.lock().expect("no holder panics");
        queue.work.push_back(work);
        if queue.idle >= queue.work.len() {
            self.filled.notify_one();
            return;
        }
        drop(queue);
        let desk = Arc::clone(self);
        let hand = thread::Builder::new().name("export".into());
        if let Err(error) = hand.spawn(move || desk.work()) {
            tracing::warn!(%error, "no thread for an exported directory");
            // Its caller is told that it was not done.
            drop(self.queue.lock().expect("no holder panics").work.pop_back());
        }
    }

    fn work(&self) {
        if let Err(error) = sys::own_umask() {
            tracing::warn!(%error, "a thread cannot have a umask of its own");
            // What it was made for fails.
            drop(self.queue.lock().expect("no holder panics").work.pop_back());
            return;
        }
        let mut queue = self.queue.lock().expect("no holder panics");
        loop {
            if let Some(work) = queue.work.pop_front() {
                drop(queue);
                work();
                queue = self.queue.lock().expect("no holder panics");
                continue;
            }
            queue.idle += 1;
            let (back, waited) = self
                .filled
                .wait_timeout(queue, IDLE_MAX)
                .expect("no holder panics");
            queue = back;
            queue.idle -= 1;
            if waited.timed_out() && queue.work.is_empty() {
                return;
            }
        }
    }
}

/// Does what `act` does as a user, with a umask; on a thread of [`Hands`] alone.
///
/// # Errors
/// EACCES if the thread cannot become that user, and those of `act`.
pub(super) fn as_user<T>(
    who: &User,
    umask: u32,
    act: impl FnOnce() -> Result<T, Errno>,
) -> Result<T, Errno> {
    let _back = Back::begin(who, umask)?;
    act()
}

/// Makes the thread the daemon's again.
struct Back {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl Back {
    fn begin(who: &User, umask: u32) -> Result<Self, Errno> {
        // That number means "as it is" to the kernel.
        if [who.uid, who.gid].contains(&u32::MAX) {
            return Err(Errno::EACCES);
        }
        let groups = getgroups().map_err(|_| Errno::EACCES)?;
        // From here on it is undone, however far it comes.
        let back = Self {
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
            groups: groups.into_iter().map(|group| group.as_raw()).collect(),
        };
        let become_user = || {
            sys::set_groups(&who.groups)?;
            sys::set_group(who.gid)?;
            sys::set_user(who.uid)
        };
        become_user().map_err(|error| {
            let uid = who.uid;
            tracing::warn!(%error, uid, "a thread cannot act for a user");
            Errno::EACCES
        })?;
        sys::set_umask(umask & 0o777);
        Ok(back)
    }
}

impl Drop for Back {
    fn drop(&mut self) {
        let back = || {
            sys::set_user(self.uid)?;
            sys::set_group(self.gid)?;
            sys::set_groups(&self.groups)
        };
        if let Err(error) = back() {
            // It would act for one user with the rights of another.
            tracing::error!(%error, "a thread cannot become the daemon's again");
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// What the kernel says of this thread.
    fn now() -> Vec<String> {
        let status = std::fs::read_to_string("/proc/thread-self/status").expect("read");
        let kept = ["Umask", "Uid", "Gid", "Groups", "CapEff"];
        let lines = status.lines();
        let lines = lines.filter(|line| kept.iter().any(|key| line.starts_with(key)));
        lines.map(|line| line.replace('\t', " ")).collect()
    }

    #[tokio::test]
    async fn a_thread_is_the_user_and_then_the_daemon_again() {
        let hands = Hands::default();
        let process = now();
        let (before, during, after) = hands
            .run(|| {
                let who = User {
                    uid: 4321,
                    gid: 4322,
                    groups: vec![7, 9],
                };
                let before = now();
                let during = as_user(&who, 0o027, || Ok(now()))?;
                let failed = as_user(&who, 0, || Err::<(), _>(Errno::EIO));
                assert_eq!(failed, Err(Errno::EIO));
                Ok((before, during, now()))
            })
            .await
            .expect("done");
        let expected = [
            "Umask: 0027",
            "Uid: 0 4321 0 4321",
            "Gid: 0 4322 0 4322",
            "Groups: 7 9 ",
            "CapEff: 0000000000000000",
        ];
        assert_eq!(during, expected);
        let ids = |lines: &[String]| lines[1..].to_vec();
        assert_eq!(ids(&before), ids(&after));
        assert_eq!(now(), process, "other threads are as they were");
        let nobody = User {
            uid: u32::MAX,
            gid: 0,
            groups: vec![],
        };
        let refused = hands.run(move || as_user(&nobody, 0, || Ok(()))).await;
        assert_eq!(refused, Err(Errno::EACCES));
    }

    #[tokio::test]
    async fn work_is_done_at_the_same_time_up_to_a_limit() {
        let hands = Arc::new(Hands::default());
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let all = (0..4 * HANDS_MAX).map(|_| {
            let (hands, now, most) = (Arc::clone(&hands), Arc::clone(&now), Arc::clone(&most));
            tokio::spawn(async move {
                let work = move || {
                    let busy = now.fetch_add(1, Ordering::SeqCst) + 1;
                    most.fetch_max(busy, Ordering::SeqCst);
                    thread::sleep(Duration::from_millis(1));
                    now.fetch_sub(1, Ordering::SeqCst);
                    Ok(())
                };
                hands.run(work).await
            })
        });
        for done in futures::future::join_all(all).await {
            assert_eq!(done.expect("no panic"), Ok(()));
        }
        let most = most.load(Ordering::SeqCst);
        assert!((2..=HANDS_MAX).contains(&most), "{most}");
    }
}
