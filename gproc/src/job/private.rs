//! What a job has to itself (`glurun --private`) where others share it with all processes of their node, so that it can move
//! with the job: a network, in which there is the loopback device and nothing else, and System V IPC.
//!
//! Both are namespaces of the kernel. The job enters them before it is its user; they go with its last process.

mod network;
mod queues;

pub(super) use network::Network;
pub(super) use queues::has_queues;

use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::str::FromStr;

/// What a job has to itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Private {
    /// A network: its processes reach each other by 127.0.0.1 and ::1, and nobody else.
    pub net: bool,
    /// System V IPC, and message queues of POSIX.
    pub ipc: bool,
}

/// A word that names nothing that can be private.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`net`, `ipc`, or both with a comma between")]
pub struct NotPrivate;

impl FromStr for Private {
    type Err = NotPrivate;

    fn from_str(text: &str) -> Result<Self, NotPrivate> {
        let mut private = Self::default();
        for word in text.split(',') {
            match word {
                "net" => private.net = true,
                "ipc" => private.ipc = true,
                _ => return Err(NotPrivate),
            }
        }
        Ok(private)
    }
}

impl fmt::Display for Private {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.net, self.ipc) {
            (true, true) => "net,ipc",
            (true, false) => "net",
            (false, true) => "ipc",
            (false, false) => "",
        })
    }
}

impl Private {
    /// Makes what a new job is to enter.
    pub(super) fn make(self) -> io::Result<Vec<OwnedFd>> {
        let net = self.net.then(|| Network::new().map(OwnedFd::from));
        let ipc = self.ipc.then(new_ipc);
        net.into_iter().chain(ipc).collect()
    }
}

/// Returns whether a process has a namespace of this kind that is not this node's.
pub(super) fn has_own(pid: i32, kind: &str) -> io::Result<bool> {
    let namespace = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/{kind}"));
    Ok(namespace(&pid.to_string())? != namespace("self")?)
}

fn new_ipc() -> io::Result<OwnedFd> {
    on_a_thread(|| {
        unshare(CloneFlags::CLONE_NEWIPC)?;
        own_namespace("ipc")
    })
}

/// Opens a namespace of this thread.
fn own_namespace(kind: &str) -> io::Result<OwnedFd> {
    let path = format!("/proc/thread-self/ns/{kind}");
    Ok(open(
        path.as_str(),
        OFlag::O_RDONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?)
}

/// Does something on a thread that ends then: with it goes what it has entered.
fn on_a_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("glu-private".into());
        let thread = thread.spawn_scoped(scope, work)?;
        thread.join().expect("the work does not panic")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        for text in ["net", "ipc", "net,ipc"] {
            let private: Private = text.parse().expect(text);
            assert_eq!(private.to_string(), text);
        }
        assert_eq!("ipc,net".parse(), "net,ipc".parse::<Private>());
        for wrong in ["", "net,", "mnt", "NET", "net ipc"] {
            assert_eq!(wrong.parse::<Private>(), Err(NotPrivate), "{wrong}");
        }
    }
}
