//! The FUSE layer against this machine's kernel: real mounts of a tree in memory. Needs root and /dev/fuse.
//!
//! Every system call that may hang runs in a child process or a thread with a deadline, and a test that fails aborts
//! its mount, so that nothing is left waiting.
#![allow(missing_debug_implementations, unreachable_pub, reason = "test code")]

mod basic;
mod cache;
mod ending;
mod fanotify;
mod growth;
mod locks;
mod memtree;
mod replay;
mod signals;
mod sys;

use gfs::fuse::{Config, Connection, Mounted};
use memtree::MemTree;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

/// How long anything may take that is not meant to take time.
const DEADLINE: Duration = Duration::from_secs(10);

/// A mount for one test.
struct Fs {
    tree: Arc<MemTree>,
    mounted: Option<Mounted>,
    runtime: Option<Runtime>,
    dir: TempDir,
}

impl Fs {
    fn new() -> Self {
        Self::with(&Config::default())
    }

    fn with(config: &Config) -> Self {
        let dir = TempDir::with_prefix("glu-fuse-").expect("a directory for the mount");
        let tree = MemTree::new();
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_time()
            .build()
            .expect("a runtime");
        let connection =
            Connection::open(dir.path(), config).expect("these tests need root and /dev/fuse");
        let mounted = connection
            .serve(Arc::clone(&tree) as _, runtime.handle())
            .expect("threads");
        Self {
            tree,
            mounted: Some(mounted),
            runtime: Some(runtime),
            dir,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn mounted(&self) -> &Mounted {
        self.mounted.as_ref().expect("mounted until the end")
    }
}

impl Drop for Fs {
    fn drop(&mut self) {
        let mounted = self.mounted.take();
        if let Some(mounted) = mounted.as_ref().filter(|_| thread::panicking()) {
            eprintln!("waiting requests: {:?}", mounted.waiting());
            drop(mounted.abort());
        }
        drop(mounted);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Runs `what` in a thread and returns its result within [`DEADLINE`].
fn within<T: Send + 'static>(what: &str, run: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, result) = mpsc::channel();
    thread::spawn(move || send.send(run()));
    match result.recv_timeout(DEADLINE) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{what}: not done after {DEADLINE:?}"),
        Err(mpsc::RecvTimeoutError::Disconnected) => panic!("{what}: panicked"),
    }
}

/// Waits until `done`, looking every millisecond.
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < until, "waited {DEADLINE:?} for: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}
