//! The harness of the end-to-end tests: real clusters of `glu dev`, commands in their nodes.
//!
//! ```no_run
//! let cluster = tests::Cluster::up(3);
//! cluster.node(1).sh("echo hello >/cluster/f").ok();
//! assert_eq!(cluster.node(2).sh("cat /cluster/f").ok(), "hello");
//! ```
//!
//! Rules:
//! - Every wait has a deadline and says what it waited for; what ends it shows the nodes' logs.
//! - A test ends only processes that it started; its cluster goes with it, also when it panics.
//! - What a killed test run left behind is removed by the next one.
//! - A failure is a panic at the line of the test that asked.

mod binaries;
mod cluster;
mod command;
mod dice;
mod disk;
pub mod linear;
pub mod moves;
mod s3;
mod sources;
mod sshd;
mod stopped;
mod terminal;

pub use binaries::{binary, criu, program_in_c, scratch_dir};
pub use cluster::{Cluster, Node, NodeStatus, Options, Status};
pub use command::{Output, Running};
pub use dice::Dice;
pub use disk::Disk;
pub use s3::{S3_CREDENTIALS, S3Server};
pub use sources::sources;
pub use sshd::Sshd;
pub use stopped::Stopped;
pub use terminal::{SHELL, Terminal};

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// How long a command may take if its test says nothing: far more than any needs, on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(20);

/// Waits until `condition` holds.
///
/// # Panics
/// It does not hold within `deadline`; the message has `what`.
#[track_caller]
pub fn wait_until(what: &str, deadline: Duration, condition: impl FnMut() -> bool) {
    assert!(
        holds_within(deadline, condition),
        "waited {deadline:?} for {what}, in vain"
    );
}

/// Runs `work` on a thread of its own, for what may hang in the kernel, and returns its result.
///
/// # Panics
/// It runs on after `limit` (the thread is left behind), or it panics itself.
#[track_caller]
pub fn with_deadline<T: Send + 'static>(
    what: &str,
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (sender, receiver) = mpsc::sync_channel(1);
    let worker = thread::spawn(move || {
        // Nobody listens any more when the limit has passed.
        drop(sender.send(work()));
    });
    match receiver.recv_timeout(limit) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => panic!("waited {limit:?} for {what}, in vain"),
        Err(RecvTimeoutError::Disconnected) => match worker.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => unreachable!("a worker that did not panic has sent its result"),
        },
    }
}

/// Returns whether `condition` comes to hold within `deadline`.
pub(crate) fn holds_within(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    let mut pause = PAUSE_MIN;
    while !condition() {
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
    true
}
