//! Serving a mount: worker threads, the way of a request, interrupts, the end.
//!
//! # The way of a request
//! A worker reads it, makes its future and polls that once, right there: what is answered from caches is done then,
//! without a task and a change of threads. A future that has to wait becomes a task of the runtime and a line of
//! [`Waits`]; the worker reads on. Nothing here blocks a worker, and nothing in a tree's methods may.
//!
//! # Replies
//! A reply is written, and only then is its `Hold` dropped (K1). If it does not reach the kernel the tree gets back
//! what the reply gave away: lookups, the open file.

use super::Config;
use super::abi::{IN_HEADER_BYTES, Opcode};
use super::adapter::Adapter;
use super::asker::{Asker, Place};
use super::device::Device;
use super::init::{self, WRITE_BYTES_MAX};
use super::interrupt::{OnSignal, WATCH_PERIOD, is_dying, is_to_stand_still};
use super::mount::{Mount, MountError};
use super::notify::Notifier;
use super::reply::Answer;
use super::request::{self, Header, Operation, Request};
use super::waits::{Waiting, Waits};
use super::watches::Watches;
use crate::error::Errno;
use crate::tree::{Tree, Watching};
use futures::FutureExt;
use futures::future::{AbortHandle, Abortable};
use std::convert::Infallible;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::watch;

/// Longest request in bytes: a WRITE with its headers, with room for any name.
const REQUEST_BYTES_MAX: usize = WRITE_BYTES_MAX as usize + IN_HEADER_BYTES + 8192;
/// How long an unmounted connection is left to those who still use it before it is aborted.
const UNMOUNT_GRACE: Duration = Duration::from_secs(2);
/// How long the workers may take to see that their connection was aborted.
const ABORT_TIMEOUT: Duration = Duration::from_secs(5);

/// A mount that is made and negotiated; its requests wait in the kernel until [`Connection::serve`].
///
/// It comes before the tree because the tree needs its [`Notifier`].
#[derive(Debug)]
pub struct Connection {
    mount: Mount,
    device: Arc<Device>,
    notifier: Arc<Notifier>,
    place: Arc<Place>,
    waits: Arc<Waits>,
    config: Config,
}

impl Connection {
    /// Mounts on `point`, a directory.
    ///
    /// # Errors
    /// See [`MountError`].
    pub fn open(point: &Path, config: &Config) -> Result<Self, MountError> {
        let device = Device::open().map_err(|source| MountError::NoDevice { source })?;
        let device = Arc::new(device);
        let mount = Mount::new(point, &config.mount, &device)?;
        init::negotiate(&device, config.locks)?;
        let place = Arc::new(Place::new(mount.point()));
        let waits = Arc::default();
        let notifier = Notifier::probe(Arc::clone(&device), Arc::clone(&place), Arc::clone(&waits))
            .map(Arc::new)
            .map_err(|source| MountError::Init { source })?;
        Ok(Self {
            mount,
            device,
            notifier,
            place,
            waits,
            config: config.clone(),
        })
    }

    /// Returns what tells this mount's kernel to forget.
    #[must_use]
    pub fn notifier(&self) -> Arc<Notifier> {
        Arc::clone(&self.notifier)
    }

    /// Starts to answer requests from `tree`; what has to wait runs on `runtime`, which needs its timer.
    ///
    /// # Errors
    /// [`MountError::Thread`] if there are no threads.
    pub fn serve(self, tree: Arc<dyn Tree>, runtime: &Handle) -> Result<Mounted, MountError> {
        let asker =
            Asker::new(Arc::clone(&self.place)).map_err(|source| MountError::Thread { source })?;
        let session = Arc::new(Session {
            device: self.device,
            adapter: Adapter::new(tree, Arc::clone(&self.notifier), asker),
            waits: self.waits,
            runtime: runtime.clone(),
            watching: AtomicBool::new(false),
            used: Arc::default(),
        });
        let workers = self.config.workers.max(1);
        let (alive, all_ended) = mpsc::channel();
        let (living, ended) = watch::channel(workers);
        // Made before the threads, so that an error from here on unmounts and so ends those already started.
        let mounted = Mounted {
            session: Arc::clone(&session),
            notifier: self.notifier,
            watches: Arc::new(
                self.mount
                    .watches(Arc::clone(&self.place), Arc::clone(&session.used)),
            ),
            place: self.place,
            mount: Arc::new(self.mount),
            all_ended: Mutex::new(all_ended),
            ended,
        };
        let living = Arc::new(living);
        for number in 0..workers {
            let worker = Worker {
                session: Arc::clone(&session),
                living: Arc::clone(&living),
                _alive: alive.clone(),
            };
            thread::Builder::new()
                .name(format!("fuse-{number}"))
                .spawn(move || worker.run())
                .map_err(|source| MountError::Thread { source })?;
        }
        Ok(mounted)
    }
}

/// A mount that is served. Dropping it ends it, as [`Mounted::unmount`] does.
#[derive(Debug)]
pub struct Mounted {
    session: Arc<Session>,
    notifier: Arc<Notifier>,
    mount: Arc<Mount>,
    watches: Arc<Watches>,
    place: Arc<Place>,
    /// Disconnects when the last worker ends.
    all_ended: Mutex<mpsc::Receiver<Infallible>>,
    /// Counts the living workers.
    ended: watch::Receiver<usize>,
}

impl Mounted {
    /// Returns the mount point.
    #[must_use]
    pub fn point(&self) -> &Path {
        self.mount.point()
    }

    /// Returns what tells this mount's kernel to forget.
    #[must_use]
    pub fn notifier(&self) -> Arc<Notifier> {
        Arc::clone(&self.notifier)
    }

    /// Returns what finds and tells this mount's watchers.
    #[must_use]
    pub fn watching(&self) -> Arc<dyn Watching> {
        Arc::clone(&self.watches) as _
    }

    /// Returns the requests that wait for their answer, oldest first.
    #[must_use]
    pub fn waiting(&self) -> Vec<Waiting> {
        self.session.waits.list()
    }

    /// Lets the caller of a waiting request go with EIO; false if it does not wait any more. Not with EINTR: without a
    /// signal the kernel would make 512 (ERESTARTSYS) of that for a lock.
    #[must_use]
    pub fn abort_request(&self, unique: u64) -> bool {
        self.session.give_up(unique, Errno::EIO)
    }

    /// Waits for the end of the session, whoever brings it about.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        // An error means that the counter is gone, and so are all who counted.
        drop(ended.wait_for(|living| *living == 0).await);
    }

    /// Tells whether the session is over.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        *self.ended.borrow() == 0
    }

    /// Unmounts and waits for the end of the session. If something still uses the mount it is left alone for 2 s,
    /// then aborted. Blocks up to some seconds: not for an async task.
    ///
    /// # Errors
    /// [`MountError::Unmount`] if the mount is still there afterwards.
    pub fn unmount(&self) -> Result<(), MountError> {
        self.watches.close();
        self.place.close();
        // In a thread of its own: it waits for write-backs, which a tree may never answer.
        let mount = Arc::clone(&self.mount);
        let (send, result) = mpsc::channel();
        let unmounting = thread::Builder::new()
            .name("fuse-unmount".to_owned())
            // Nobody listens any more if the grace is over.
            .spawn(move || drop(send.send(mount.unmount())));
        if let Err(source) = unmounting {
            return Err(MountError::Thread { source });
        }
        let in_time = result.recv_timeout(UNMOUNT_GRACE);
        if !self.wait_ended(UNMOUNT_GRACE) {
            self.abort()?;
            if !self.wait_ended(ABORT_TIMEOUT) {
                return Err(self.unmount_error(io::ErrorKind::TimedOut.into()));
            }
        }
        in_time
            .or_else(|_| result.recv_timeout(ABORT_TIMEOUT))
            .map_err(|_| self.unmount_error(io::ErrorKind::TimedOut.into()))?
    }

    /// Ends the connection at once: every request on this mount fails, in every namespace and for every open file.
    /// The mount point stays, dead, until it is unmounted. Harmless when the session is over.
    ///
    /// # Errors
    /// [`MountError::Unmount`] with what the kernel reports.
    pub fn abort(&self) -> Result<(), MountError> {
        self.mount
            .abort()
            .map_err(|source| self.unmount_error(source))
    }

    /// Returns the file that ends the connection when a byte is written to it, for somebody who outlives this process.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn abort_file(&self) -> io::Result<std::fs::File> {
        self.mount.abort_file()
    }

    fn unmount_error(&self, source: io::Error) -> MountError {
        MountError::Unmount {
            point: self.point().to_owned(),
            source,
        }
    }

    fn wait_ended(&self, timeout: Duration) -> bool {
        let all_ended = self
            .all_ended
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        all_ended.recv_timeout(timeout) == Err(mpsc::RecvTimeoutError::Disconnected)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            tracing::warn!(%error, "the mount did not end well");
        }
    }
}

/// What the workers share.
#[derive(Debug)]
struct Session {
    device: Arc<Device>,
    adapter: Adapter,
    waits: Arc<Waits>,
    runtime: Handle,
    /// A task looks after waiting requests whose thread got a signal.
    watching: AtomicBool,
    /// There was a request, of any kind but FORGET.
    used: Arc<AtomicBool>,
}

/// A thread that reads requests.
struct Worker {
    session: Arc<Session>,
    living: Arc<watch::Sender<usize>>,
    /// Dropped after `living` has counted, as the last field.
    _alive: mpsc::Sender<Infallible>,
}

impl Worker {
    fn run(self) {
        let session = Arc::clone(&self.session);
        let _context = session.runtime.enter();
        let mut buffer = vec![0; REQUEST_BYTES_MAX];
        loop {
            match session.device.receive(&mut buffer) {
                Ok(Some(message)) => {
                    let handled = catch_unwind(AssertUnwindSafe(|| session.dispatch(message)));
                    if handled.is_err() {
                        tracing::error!("a FUSE message made its handler panic");
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::error!(%error, "cannot read from /dev/fuse");
                    break;
                }
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let mut last = false;
        self.living.send_modify(|living| {
            *living -= 1;
            last = *living == 0;
        });
        if last {
            self.session.drop_waiting();
        }
    }
}

impl Session {
    fn dispatch(self: &Arc<Self>, message: &[u8]) {
        let decoded = match request::header(message) {
            Ok((header, arguments)) => request::decode(header, arguments),
            Err(why) => {
                tracing::error!(%why, len = message.len(), "a FUSE message without a header");
                return;
            }
        };
        let request = match decoded {
            Ok(request) => request,
            Err(refused) => {
                let (opcode, why) = (refused.header.opcode, refused.why);
                tracing::debug!(?opcode, %why, "request refused");
                if !matches!(opcode, Opcode::FORGET | Opcode::BATCH_FORGET) {
                    self.answer(refused.header.unique, Answer::error(refused.errno()));
                }
                return;
            }
        };
        let unique = request.header.unique;
        match request.operation {
            Operation::Forget(forgotten) => self.adapter.forget(&forgotten),
            Operation::Interrupt { unique: meant } => self.interrupt(unique, meant),
            Operation::Destroy => self.answer(unique, Answer::done()),
            // INIT comes once, before the session.
            Operation::Init(_) => self.answer(unique, Answer::error(Errno::EIO)),
            _ => self.start(request),
        }
    }

    fn start(self: &Arc<Self>, request: Request) {
        let header = request.header;
        // Mostly it is set already; to read it alone does not take it from the other workers' processors.
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
        if self.waits.is_full() {
            return self.answer(header.unique, Answer::error(Errno(libc::ENOMEM)));
        }
        let on_signal = OnSignal::of(&request);
        let session = Arc::clone(self);
        let mut future: PendingAnswer = Box::pin(async move {
            let answer = AssertUnwindSafe(session.adapter.handle(request)).catch_unwind();
            answer.await.unwrap_or_else(|_| {
                tracing::error!(opcode = ?header.opcode, ino = %header.ino, "the tree panicked");
                Answer::error(Errno::EIO)
            })
        });
        match future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(answer) => self.answer(header.unique, answer),
            // The task polls anew, so that the waker of the first poll is never needed.
            Poll::Pending => self.wait(header, on_signal, future),
        }
    }

    fn wait(self: &Arc<Self>, header: Header, on_signal: OnSignal, future: PendingAnswer) {
        let (abort, registration) = AbortHandle::new_pair();
        self.waits.insert(header, on_signal, abort);
        let debt = Debt {
            session: Arc::clone(self),
            unique: header.unique,
        };
        drop(self.runtime.spawn(async move {
            if let Ok(answer) = Abortable::new(future, registration).await {
                debt.pay(answer).await;
            }
        }));
    }

    fn interrupt(self: &Arc<Self>, unique: u64, meant: u64) {
        match self.waits.signal(meant) {
            // Not entered yet, by a worker that is at its first poll, or just being answered. The kernel sends the
            // INTERRUPT again, unless the answer is there by then.
            None => {
                self.answer(unique, Answer::error(Errno(libc::EAGAIN)));
                thread::yield_now();
            }
            Some((OnSignal::Interrupt, _)) => {
                self.give_up(meant, Errno::EINTR);
            }
            Some((rule, tid)) => {
                if !self.look_after(meant, rule, tid) {
                    self.watch();
                }
            }
        }
    }

    /// Lets the caller of a request that got a signal go, if the rule says so.
    fn look_after(self: &Arc<Self>, unique: u64, rule: OnSignal, tid: u32) -> bool {
        if is_dying(tid) {
            return self.give_up(unique, Errno::EINTR);
        }
        let OnSignal::Order(bytes) = rule else {
            return false;
        };
        if !is_to_stand_still(tid) || self.waits.take(unique).is_none() {
            return false;
        }
        self.answer(unique, Answer::written(bytes));
        true
    }

    /// Lets the caller of a waiting request go; false if it does not wait.
    fn give_up(self: &Arc<Self>, unique: u64, errno: Errno) -> bool {
        let Some(wait) = self.waits.take(unique) else {
            return false;
        };
        if wait.on_signal != OnSignal::Detach {
            wait.abort.abort();
        }
        self.answer(unique, Answer::error(errno));
        true
    }

    /// Looks after signalled requests until there are none.
    fn watch(self: &Arc<Self>) {
        if self.watching.swap(true, Ordering::SeqCst) {
            return;
        }
        let session = Arc::clone(self);
        drop(self.runtime.spawn(async move {
            loop {
                tokio::time::sleep(WATCH_PERIOD).await;
                let signalled = session.waits.signalled();
                for (unique, rule, tid) in &signalled {
                    session.look_after(*unique, *rule, *tid);
                }
                if signalled.is_empty() {
                    session.watching.store(false, Ordering::SeqCst);
                    // One may have come between the look and the word that nobody looks.
                    let none = session.waits.signalled().is_empty();
                    if none || session.watching.swap(true, Ordering::SeqCst) {
                        break;
                    }
                }
            }
        }));
    }

    fn answer(self: &Arc<Self>, unique: u64, answer: Answer) {
        match self.device.reply(unique, &answer.body) {
            Ok(()) => return drop(answer.hold),
            // The connection is over or the kernel has given the request up.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {}
            Err(error) => tracing::error!(%error, "the kernel refuses a reply"),
        }
        self.take_back(answer);
    }

    fn take_back(self: &Arc<Self>, answer: Answer) {
        if answer.gives_nothing() {
            return;
        }
        let session = Arc::clone(self);
        drop(
            self.runtime
                .spawn(async move { session.adapter.take_back(answer).await }),
        );
    }

    /// Drops what waits when the connection is over and nobody can be answered.
    fn drop_waiting(&self) {
        for wait in self.waits.take_all() {
            if wait.on_signal != OnSignal::Detach {
                wait.abort.abort();
            }
        }
    }
}

type PendingAnswer = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// The duty to answer a waiting request. A task that is dropped, at the end of its runtime, still pays: nobody is left
/// waiting.
struct Debt {
    session: Arc<Session>,
    unique: u64,
}

impl Debt {
    async fn pay(self, answer: Answer) {
        if self.session.waits.take(self.unique).is_some() {
            self.session.answer(self.unique, answer);
        } else {
            self.session.adapter.take_back(answer).await;
        }
    }
}

impl Drop for Debt {
    fn drop(&mut self) {
        if self.session.waits.take(self.unique).is_some() {
            self.session.answer(self.unique, Answer::error(Errno::EIO));
        }
    }
}
