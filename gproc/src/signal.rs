//! Signals to processes of any node: what may be written, who may send, and how they are sent.
//!
//! The rules are those of kill(2), with two differences: of the sender only the effective user is known, and SIGCONT
//! within a session has no rule of its own. A signal goes through a pidfd after the birth of its process has been
//! compared, so a pid that was given out again is never hit.

use crate::pids::ClusterPid;
use crate::procfs::Procfs;
use crate::sys;
use crate::text::{self, Credentials};
use crate::wire::{Birth, Who};
use nix::errno::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::str::FromStr;

/// The largest signal number.
pub const SIGNAL_MAX: i32 = 64;
/// The real-time signals, as the C library counts them: it keeps the first two for itself.
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=SIGNAL_MAX;
/// Names that are said for others.
const ALIASES: [(&str, i32); 4] = [
    ("CLD", libc::SIGCHLD),
    ("IOT", libc::SIGABRT),
    ("POLL", libc::SIGIO),
    ("UNUSED", libc::SIGSYS),
];

/// Reads a signal as kill(1) does: `TERM`, `SIGTERM`, `term`, `15`, `RTMIN+3`; `0` asks whether one could be sent.
///
/// # Errors
/// EINVAL for anything else.
pub fn parse(text: &[u8]) -> Result<i32, Errno> {
    let text = std::str::from_utf8(text).map_err(|_| Errno::EINVAL)?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    number(text)
        .filter(|number| (0..=SIGNAL_MAX).contains(number))
        .ok_or(Errno::EINVAL)
}

fn number(text: &str) -> Option<i32> {
    if text.starts_with(|first: char| first.is_ascii_digit()) {
        return text.parse().ok();
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some((_, number)) = ALIASES.iter().find(|(alias, _)| *alias == name) {
        return Some(*number);
    }
    let offset = |text: &str, sign: char| match text.strip_prefix(sign) {
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok(),
        Some(_) => None,
        None => text.is_empty().then_some(0),
    };
    let real_time = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => offset(rest, '+').and_then(|up: i32| REAL_TIME.start().checked_add(up)),
        (_, Some(rest)) => offset(rest, '-').and_then(|down: i32| SIGNAL_MAX.checked_sub(down)),
        (None, None) => {
            let signal = nix::sys::signal::Signal::from_str(&format!("SIG{name}"));
            return signal.ok().map(|signal| signal as i32);
        }
    };
    real_time.filter(|number| REAL_TIME.contains(number))
}

/// Returns whether one may send signals to a process, as kill(2) has it.
pub(crate) fn may_signal(who: Who, target: &Credentials) -> bool {
    let users = &target.users;
    who.uid == 0 || who.uid == users.real || who.uid == users.saved
}

impl Procfs {
    /// Sends a signal to a process.
    pub(crate) fn signal(
        &self,
        pid: ClusterPid,
        birth: Birth,
        number: i32,
        who: Who,
    ) -> Result<(), Errno> {
        check_number(number)?;
        let target = self.target(pid)?.born(birth)?;
        if may_signal(who, &target.credentials) {
            sys::signal(target.pidfd.as_fd(), number)
        } else {
            Err(Errno::EPERM)
        }
    }

    /// Sends a signal to the members of a process group that the sender may signal; it is an error only if there is
    /// none. With a `birth` the group must be that which this process leads.
    pub(crate) fn signal_group(
        &self,
        group: ClusterPid,
        birth: Option<Birth>,
        number: i32,
        who: Who,
    ) -> Result<(), Errno> {
        check_number(number)?;
        let leader = match (birth, self.target(group)) {
            (Some(birth), target) => Some(target?.born(birth)?.pidfd),
            // Its leader has ended: only its number tells which group is meant.
            (None, target) => target.ok().map(|target| target.pidfd),
        };
        if who.uid != 0 {
            let (allowed, all) = self.members_for(group, who)?;
            if allowed.is_empty() {
                return Err(if all == 0 { Errno::ESRCH } else { Errno::EPERM });
            }
            if allowed.len() < all {
                let sent = allowed
                    .iter()
                    .map(|pidfd| sys::signal(pidfd.as_fd(), number));
                return sent.reduce(Result::or).unwrap_or(Err(Errno::ESRCH));
            }
        }
        // All of it may be signalled. The kernel does that at once: no member is missed because it forks meanwhile,
        // and none is hit that was started because of the signal.
        match leader.map(|leader| sys::signal_group(leader.as_fd(), number)) {
            // Kernels before 6.9 do not know it.
            None | Some(Err(Errno::EINVAL)) => sys::signal_group_number(group.kernel(), number),
            Some(sent) => sent,
        }
    }

    /// Returns the members of a group that the sender may signal, and how many there are in all.
    fn members_for(&self, group: ClusterPid, who: Who) -> Result<(Vec<OwnedFd>, usize), Errno> {
        let (mut allowed, mut all) = (Vec::new(), 0);
        let pids = self.pids().map_err(|_| Errno::EIO)?;
        for pid in pids {
            // The descriptor comes before the look at the group: what is seen is what is held.
            let Ok(target) = self.target(pid) else {
                continue;
            };
            if text::group(&target.stat) == Some(group.kernel()) {
                all += 1;
                if may_signal(who, &target.credentials) {
                    allowed.push(target.pidfd);
                }
            }
        }
        Ok((allowed, all))
    }

    /// Returns the process that has a pid now.
    pub(crate) fn target(&self, pid: ClusterPid) -> Result<Target, Errno> {
        let pidfd = sys::pidfd_open(self.own(pid).ok_or(Errno::ESRCH)?).map_err(|error| {
            // So is said of a thread that is no process.
            if error == Errno::EINVAL {
                Errno::ESRCH
            } else {
                error
            }
        })?;
        let (stat, status) = self.stat_and_status(pid).ok_or(Errno::ESRCH)?;
        Ok(Target {
            pidfd,
            birth: self.birth(&stat).ok_or(Errno::EIO)?,
            credentials: text::credentials(&status).ok_or(Errno::EIO)?,
            stat,
        })
    }
}

/// A process that may be signalled.
pub(crate) struct Target {
    pub(crate) pidfd: OwnedFd,
    birth: Birth,
    pub(crate) credentials: Credentials,
    stat: Vec<u8>,
}

impl Target {
    pub(crate) fn born(self, birth: Birth) -> Result<Self, Errno> {
        (self.birth == birth).then_some(self).ok_or(Errno::ESRCH)
    }
}

fn check_number(number: i32) -> Result<(), Errno> {
    let valid = (0..=SIGNAL_MAX).contains(&number);
    valid.then_some(()).ok_or(Errno::EINVAL)
}

#[cfg(test)]
mod tests;
