//! A process that runs already and is to be a job of its own on another node: a child of its owner, by `glu_rfork`.
//!
//! The library forks twice. The first child becomes the owner, a `glurun` that ends as the job does: it is what the caller waits
//! for. The second is the job. It waits for [`GO`] until it runs where it is to, and does nothing before; so what cannot move
//! is ended, and the caller, who hears of it, has not forked.
//!
//! It is no child of the daemon's, so its end is not known as that of other programs is ([`Seat`](super::travel::Seat)); nor can it
//! stay on the process table once it has left ([MV6](super::travel)): its owner ignores SIGCHLD, so that it is gone when it is
//! killed, and a process of the daemon's takes its pid ([`sys::hold_pid`]).

use super::group::Group;
use super::peer::Peer;
use super::protocol::Credentials;
use super::sys;
use nix::unistd::Pid;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// The signal that it waits for.
pub(super) const GO: i32 = libc::SIGCONT;

/// Such a process.
#[derive(Debug)]
pub(super) struct Forked {
    pub(super) pid: Pid,
    pub(super) pidfd: OwnedFd,
}

impl Forked {
    /// Takes hold of a child of an owner (J1), and of nobody else's.
    pub(super) fn of(pid: u32, owner: &Peer) -> Result<Self, String> {
        let none = || format!("process {pid} is no child of yours");
        let number = i32::try_from(pid).map_err(|_| none())?;
        let pidfd = crate::sys::pidfd_open(number).map_err(|_| none())?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(|_| none())?;
        // The number meant it as long as it lives.
        let lives = !sys::has_ended(pidfd.as_fd()).map_err(|error| error.to_string())?;
        if !lives || !is_child(&status, owner.pid, &owner.credentials) {
            return Err(none());
        }
        Ok(Self {
            pid: Pid::from_raw(number),
            pidfd,
        })
    }

    /// Has it be the first process of a group.
    pub(super) fn enter(&self, group: &Group) -> io::Result<()> {
        let dir = group.dir().ok_or_else(|| {
            let why = "there are no cgroups of version 2";
            io::Error::new(io::ErrorKind::Unsupported, why)
        })?;
        fs::write(dir.join("cgroup.procs"), self.pid.to_string())
    }
}

/// Returns whether this is what `/proc/PID/status` says of a child of a process that has no other rights.
fn is_child(status: &str, parent: i32, user: &Credentials) -> bool {
    let field = |name: &str| {
        let numbers = status.lines().find_map(|line| line.strip_prefix(name))?;
        let numbers = numbers.split_whitespace().map(str::parse::<i64>);
        numbers.collect::<Result<Vec<_>, _>>().ok()
    };
    field("PPid:") == Some(vec![parent.into()])
        && field("Uid:") == Some(vec![user.uid.into(); 4])
        && field("Gid:") == Some(vec![user.gid.into(); 4])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_known_by_its_parent_and_rights() {
        let user = Credentials {
            uid: 7,
            gid: 8,
            groups: Vec::new(),
        };
        let check = |status: &str, expected: bool| {
            assert_eq!(is_child(status, 70, &user), expected, "{status}");
        };
        check("PPid:\t70\nUid:\t7\t7\t7\t7\nGid:\t8\t8\t8\t8\n", true);
        check("PPid:\t71\nUid:\t7\t7\t7\t7\nGid:\t8\t8\t8\t8\n", false);
        // A program that has more rights than who has started it.
        check("PPid:\t70\nUid:\t7\t0\t0\t0\nGid:\t8\t8\t8\t8\n", false);
        check("PPid:\t70\nUid:\t7\t7\t7\t7\nGid:\t8\t0\t0\t0\n", false);
        check("", false);
    }
}
