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
use nix::errno::Errno;
use nix::unistd::Pid;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The signal that it waits for.
pub(super) const GO: i32 = libc::SIGCONT;

/// What a job has to itself only by `--private`, and then with others that would stay behind; and mounts.
const NAMESPACES: [&str; 3] = ["mnt", "net", "ipc"];

/// Such a process.
#[derive(Debug)]
pub(super) struct Forked {
    pub(super) pid: Pid,
    pub(super) pidfd: OwnedFd,
}

impl Forked {
    /// Takes hold of a child of an owner (J1), and of nobody else's.
    ///
    /// # Errors
    /// ESRCH, EPERM; EOPNOTSUPP: it does not see this machine as it is, as in `glush`.
    pub(super) fn of(pid: u32, owner: &Peer) -> Result<Self, Errno> {
        let number = i32::try_from(pid).map_err(|_| Errno::ESRCH)?;
        let pidfd = crate::sys::pidfd_open(number)?;
        let read = |pid: &str| Status::read(Path::new("/proc").join(pid));
        let (own, its) = (read("self"), read(&pid.to_string()));
        // The number meant it as long as it lives.
        let ended = sys::has_ended(pidfd.as_fd()).unwrap_or(true);
        let (Ok(own), Ok(its), false) = (own, its, ended) else {
            return Err(Errno::ESRCH);
        };
        if !its.is_child(owner.pid, &owner.credentials) {
            return Err(Errno::EPERM);
        }
        if !its.sees_what_is_seen_by(&own) {
            return Err(Errno::EOPNOTSUPP);
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

/// What there is to know of a process.
#[derive(Debug, Default)]
struct Status {
    /// As in `/proc/PID/status`.
    text: String,
    /// Those of its namespaces in which a job is as the daemon is.
    namespaces: Vec<PathBuf>,
}

impl Status {
    fn read(dir: PathBuf) -> io::Result<Self> {
        Ok(Self {
            text: fs::read_to_string(dir.join("status"))?,
            namespaces: NAMESPACES
                .iter()
                .map(|name| fs::read_link(dir.join("ns").join(name)))
                .collect::<Result<_, _>>()?,
        })
    }

    fn numbers(&self, name: &str) -> Option<Vec<i64>> {
        let mut lines = self.text.lines();
        let numbers = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let numbers = numbers.split_whitespace().map(str::parse);
        numbers.collect::<Result<_, _>>().ok()
    }

    /// Returns whether it is a child of this process, and has no other rights.
    fn is_child(&self, parent: i32, user: &Credentials) -> bool {
        self.numbers("PPid") == Some(vec![parent.into()])
            && self.numbers("Uid") == Some(vec![user.uid.into(); 4])
            && self.numbers("Gid") == Some(vec![user.gid.into(); 4])
    }

    /// Returns whether it sees the same mounts as this process, and all else that a job shares with that, and nobody looks at its system calls who does not look at those of
    /// this process: who does would not find it any more.
    fn sees_what_is_seen_by(&self, own: &Self) -> bool {
        let filters = |of: &Self| of.numbers("Seccomp_filters").unwrap_or_default();
        self.namespaces == own.namespaces && filters(self) == filters(own)
    }
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
        let status = |text: &str| Status {
            text: text.to_owned(),
            ..Status::default()
        };
        let check = |text: &str, expected: bool| {
            assert_eq!(status(text).is_child(70, &user), expected, "{text}");
        };
        check("PPid:\t70\nUid:\t7\t7\t7\t7\nGid:\t8\t8\t8\t8\n", true);
        check("PPid:\t71\nUid:\t7\t7\t7\t7\nGid:\t8\t8\t8\t8\n", false);
        // A program that has more rights than who has started it.
        check("PPid:\t70\nUid:\t7\t0\t0\t0\nGid:\t8\t8\t8\t8\n", false);
        check("PPid:\t70\nUid:\t7\t7\t7\t7\nGid:\t8\t0\t0\t0\n", false);
        check("", false);
    }

    #[test]
    fn a_shell_that_shows_all_nodes_is_told_from_others() {
        let status = |filters: &str, mounts: &str| Status {
            text: format!("Seccomp:\t2\n{filters}"),
            namespaces: vec![mounts.into()],
        };
        let check = |one: (&str, &str), other: (&str, &str), expected: bool| {
            let (one, other) = (status(one.0, one.1), status(other.0, other.1));
            assert_eq!(one.sees_what_is_seen_by(&other), expected);
        };
        let (none, one) = ("Seccomp_filters:\t0\n", "Seccomp_filters:\t1\n");
        check((none, "mnt:[1]"), (none, "mnt:[1]"), true);
        // As in some containers.
        check((one, "mnt:[1]"), (one, "mnt:[1]"), true);
        check((one, "mnt:[1]"), (none, "mnt:[1]"), false);
        check((none, "mnt:[2]"), (none, "mnt:[1]"), false);
        // Of old kernels.
        check(("", "mnt:[1]"), ("", "mnt:[1]"), true);
    }
}
