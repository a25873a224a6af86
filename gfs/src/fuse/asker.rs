//! Makes the kernel ask for the attributes of an inode (K2): threads that look at it on the daemon's own mount.
//!
//! The inode is opened by its number, which asks nothing. The question that comes of a look is known by its thread and
//! answered like anybody's, but never made to wait for another look.

use super::sys;
use consistency::InodeNo;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;
use tokio::sync::oneshot;

/// After so long without a look nothing is open any more: it would keep an unmount by hand from its mount.
const IDLE: Duration = Duration::from_secs(5);
/// Looks under way at once; one waits as long as its question, for another node maybe.
const THREADS: usize = 4;

type Job = Box<dyn FnOnce() + Send>;

/// The threads. They end when it is dropped.
#[derive(Debug)]
pub(super) struct Asker {
    place: Arc<Place>,
    jobs: mpsc::Sender<Job>,
    /// What the threads are called in requests.
    threads: Arc<Mutex<BTreeSet<u32>>>,
}

/// Where inodes of a mount are opened, by their numbers.
#[derive(Debug)]
pub(super) struct Place {
    point: PathBuf,
    root: Mutex<Root>,
}

#[derive(Debug)]
enum Root {
    NotYet,
    Open(Arc<File>),
    /// For good: what is open keeps the mount busy.
    Closed,
}

impl Place {
    pub(super) fn new(point: &Path) -> Self {
        Self {
            point: point.to_owned(),
            root: Mutex::new(Root::NotYet),
        }
    }

    /// Opens the root anew for the next look.
    fn let_go(&self) {
        let mut root = lock(&self.root);
        if matches!(*root, Root::Open(_)) {
            *root = Root::NotYet;
        }
    }

    /// Opens nothing any more.
    pub(super) fn close(&self) {
        *lock(&self.root) = Root::Closed;
    }

    /// Returns the size of an inode as the kernel has it, and asks nobody.
    pub(super) fn kernel_size(&self, ino: InodeNo) -> io::Result<u64> {
        self.size(ino, sys::Look::Cached)
    }

    fn size(&self, ino: InodeNo, how: sys::Look) -> io::Result<u64> {
        sys::size(&self.open(ino)?, how)
    }

    /// Opens (O_PATH) an inode by its number.
    ///
    /// # Errors
    /// ESTALE if the kernel does not have it in memory; NotConnected once closed.
    pub(super) fn open(&self, ino: InodeNo) -> io::Result<OwnedFd> {
        sys::open_inode(&*self.root()?, ino.0)
    }

    fn root(&self) -> io::Result<Arc<File>> {
        let mut root = lock(&self.root);
        match &*root {
            Root::Open(file) => Ok(Arc::clone(file)),
            Root::Closed => Err(io::ErrorKind::NotConnected.into()),
            Root::NotYet => {
                let file = Arc::new(File::open(&self.point)?);
                *root = Root::Open(Arc::clone(&file));
                Ok(file)
            }
        }
    }
}

impl Asker {
    pub(super) fn new(place: Arc<Place>) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (queue, threads) = (Arc::new(Mutex::new(queue)), Arc::default());
        for _ in 0..THREADS {
            let (queue, threads) = (Arc::clone(&queue), Arc::clone(&threads));
            let place = Arc::clone(&place);
            thread::Builder::new()
                .name("fuse-ask".to_owned())
                .spawn(move || work(&queue, &threads, &place))?;
        }
        Ok(Self {
            place,
            jobs,
            threads,
        })
    }

    /// Tells whether a request comes from a look.
    pub(super) fn is(&self, caller: u32) -> bool {
        lock(&self.threads).contains(&caller)
    }

    /// Returns the size of an inode as the kernel has it, and asks nobody.
    ///
    /// # Errors
    /// The kernel does not have the inode; the mount is about to go.
    pub(super) async fn kernel_size(&self, ino: InodeNo) -> io::Result<u64> {
        self.run(move |place| place.kernel_size(ino)).await
    }

    /// Has the kernel ask for the attributes.
    ///
    /// # Errors
    /// As for [`Self::kernel_size`], and what the question is answered with.
    pub(super) async fn ask(&self, ino: InodeNo) -> io::Result<()> {
        let ask = move |place: &Place| place.size(ino, sys::Look::Asked);
        self.run(ask).await.map(drop)
    }

    async fn run(
        &self,
        look: impl FnOnce(&Place) -> io::Result<u64> + Send + 'static,
    ) -> io::Result<u64> {
        let place = Arc::clone(&self.place);
        let (done, outcome) = oneshot::channel();
        let gone = || io::Error::from(io::ErrorKind::NotConnected);
        self.jobs
            // Nobody waits any more if that fails.
            .send(Box::new(move || drop(done.send(look(&place)))))
            .map_err(|_| gone())?;
        outcome.await.map_err(|_| gone())?
    }
}

fn work(queue: &Mutex<mpsc::Receiver<Job>>, threads: &Mutex<BTreeSet<u32>>, place: &Place) {
    lock(threads).insert(nix::unistd::gettid().as_raw().cast_unsigned());
    loop {
        let job = lock(queue).recv_timeout(IDLE);
        match job {
            Ok(job) => job(),
            Err(mpsc::RecvTimeoutError::Timeout) => place.let_go(),
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
