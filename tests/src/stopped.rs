//! Daemons that stand still.

use crate::Cluster;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;

/// A node's daemon, which stands still as long as this lives.
#[derive(Debug)]
pub struct Stopped(Pid);

impl Stopped {
    /// Stops the daemon of a node that runs.
    ///
    /// # Panics
    /// It does not run.
    #[must_use]
    #[track_caller]
    pub fn new(cluster: &Cluster, number: u32) -> Self {
        let status = cluster.status();
        let init = status.nodes.iter().find(|node| node.number == number);
        let init = init.and_then(|node| node.pid).expect("it runs");
        let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children"));
        let children = children.expect("the init's children");
        let daemon = children.split_whitespace().find(|pid| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "glud")
        });
        let daemon = Pid::from_raw(daemon.expect("a daemon").parse().expect("a pid"));
        kill(daemon, Signal::SIGSTOP).expect("stop the daemon");
        Self(daemon)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        kill(self.0, Signal::SIGCONT).expect("let the daemon go on");
    }
}
