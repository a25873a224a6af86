//! Tells the kernel to forget, on threads of its own: a notification may block behind a request that this
//! process has yet to answer, so it never runs in a request handler, on a runtime's worker or under a lock.
//!
//! Names, data and the notifications that hardly block have threads of their own, so that stuck names (which
//! wait for a directory's requests in flight) hold up nothing else.

use crate::tree::Kernel;
use consistency::InodeNo;
use consistency::wire::meta::Name;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, timeout};

/// Notifications that wait for a thread of one pool; more wait in their callers.
const QUEUE_LEN: usize = 1024;
/// Names are given this long before all names of the mount are invalidated instead, if a change in their directory waits.
const NAMES_WITHIN: Duration = Duration::from_millis(10);
/// The same if none does: it is just a busy machine.
const NAMES_LATE_WITHIN: Duration = Duration::from_secs(1);
/// Above this many names invalidating all names of the mount is cheaper.
const NAMES_SINGLY_MAX: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Notifier {
    mount: OnceLock<Mount>,
}

#[derive(Debug)]
struct Mount {
    kernel: Arc<dyn Kernel>,
    /// The kernel has epochs (E1).
    epochs: bool,
    quick: Pool,
    data: Pool,
    names: Pool,
}

impl Notifier {
    /// Starts the threads, and asks the kernel whether it has epochs.
    pub(super) async fn mounted(&self, kernel: Arc<dyn Kernel>) {
        let quick = Pool::new("notify-quick", 2, &kernel);
        let epochs = quick.run(|kernel| kernel.forget_all_names()).await.is_ok();
        if !epochs {
            tracing::info!("the kernel has no FUSE epochs (Linux 6.16): it caches no names");
        }
        let mount = Mount {
            kernel: Arc::clone(&kernel),
            epochs,
            quick,
            data: Pool::new("notify-data", 4, &kernel),
            names: Pool::new("notify-names", 4, &kernel),
        };
        if self.mount.set(mount).is_err() {
            tracing::error!("mounted twice: the second kernel is not told anything");
        }
    }

    /// Tells whether the kernel may cache attributes and pages.
    pub(super) fn caches(&self) -> bool {
        self.mount.get().is_some()
    }

    /// Tells whether the kernel may cache names (E1).
    pub(super) fn caches_names(&self) -> bool {
        self.mount.get().is_some_and(|mount| mount.epochs)
    }

    pub(super) async fn forget_attr(&self, ino: InodeNo) {
        if let Some(mount) = self.mount.get() {
            log(ino, mount.quick.run(move |k| k.forget_attr(ino)).await);
        }
    }

    /// Waits for reads of the inode in flight.
    pub(super) async fn forget_data(&self, ino: InodeNo) {
        if let Some(mount) = self.mount.get() {
            log(ino, mount.data.run(move |k| k.forget_data(ino)).await);
        }
    }

    /// Makes names of a directory unusable in the kernel, in bounded time.
    pub(super) async fn forget_names(&self, dir: InodeNo, names: Vec<Name>) {
        let Some(mount) = self.mount.get().filter(|mount| mount.epochs) else {
            return;
        };
        if names.len() <= NAMES_SINGLY_MAX {
            let singly = names.into_iter().map(|name| {
                let job = mount.names.run(move |k| k.forget_name(dir, &name));
                async move { log(dir, job.await) }
            });
            let mut singly: FuturesUnordered<_> = singly.collect();
            let began = Instant::now();
            // E2: not for nothing, since what is mounted below goes with all names.
            while began.elapsed() < NAMES_LATE_WITHIN {
                let all = async { while singly.next().await.is_some() {} };
                if timeout(NAMES_WITHIN, all).await.is_ok() {
                    return;
                }
                // The kernel waits for a change in that directory, which may wait for us.
                if mount.kernel.may_hold(dir) {
                    break;
                }
            }
        }
        tracing::debug!(%dir, "the kernel forgets all names, and what is mounted below");
        self.forget_all_names().await;
    }

    pub(super) async fn forget_all_names(&self) {
        if let Some(mount) = self.mount.get().filter(|mount| mount.epochs) {
            log(
                InodeNo::ROOT,
                mount.quick.run(|kernel| kernel.forget_all_names()).await,
            );
        }
    }
}

/// A kernel that does not know the inode, or is gone, has nothing cached.
fn log(ino: InodeNo, result: io::Result<()>) {
    match result {
        Err(error)
            if !matches!(
                error.raw_os_error(),
                Some(libc::ENOENT | libc::ENOTCONN | libc::ENODEV | libc::ENOTDIR)
            ) =>
        {
            tracing::error!(%ino, %error, "the kernel refused to forget");
        }
        _ => {}
    }
}

type Job = Box<dyn FnOnce(&dyn Kernel) + Send>;

/// Who makes the notifications.
#[derive(Debug)]
enum Pool {
    /// Their callers, for a kernel that never waits.
    Prompt(Arc<dyn Kernel>),
    /// Threads with a queue; they end when the pool is dropped.
    Threads {
        jobs: SyncSender<Job>,
        room: Arc<Semaphore>,
    },
}

impl Pool {
    fn new(name: &str, threads: usize, kernel: &Arc<dyn Kernel>) -> Self {
        if kernel.is_prompt() {
            return Self::Prompt(Arc::clone(kernel));
        }
        let (jobs, queue) = sync_channel(QUEUE_LEN);
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..threads {
            let (queue, kernel) = (Arc::clone(&queue), Arc::clone(kernel));
            let spawned = std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || work(&queue, &*kernel));
            if let Err(error) = spawned {
                // The others, or at worst nobody: then notifications wait, and with them the breaks.
                tracing::error!(%error, name, "cannot start a notifier thread");
            }
        }
        Self::Threads {
            jobs,
            room: Arc::new(Semaphore::new(QUEUE_LEN)),
        }
    }

    /// Runs a notification; it goes on if the caller gives up.
    async fn run(
        &self,
        notify: impl FnOnce(&dyn Kernel) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let (jobs, room) = match self {
            Self::Prompt(kernel) => return notify(&**kernel),
            Self::Threads { jobs, room } => (jobs, room),
        };
        let room = Arc::clone(room).acquire_owned().await;
        let (done, outcome) = oneshot::channel();
        let job: Job = Box::new(move |kernel| {
            // Nobody waits any more if this fails.
            let _gone = done.send(notify(kernel));
            drop(room);
        });
        let gone = || io::Error::from_raw_os_error(libc::ENOTCONN);
        jobs.try_send(job).map_err(|_| gone())?;
        outcome.await.map_err(|_| gone())?
    }
}

fn work(queue: &Mutex<Receiver<Job>>, kernel: &dyn Kernel) {
    loop {
        let job = queue.lock().expect("no holder panics").recv();
        let Ok(job) = job else { return };
        job(kernel);
    }
}
