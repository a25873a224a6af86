//! The files that processes and nodes are controlled by. One write is one order; it returns when the order has been
//! carried out, with the errno that the system call would have given on the process's node.

use super::deep::At;
use super::{ProcTree, best};
use crate::job::{Asked, Told};
use crate::pids::ClusterPid;
use crate::signal;
use crate::wire::{Identity, ProcFile, ProcRequest, Who};
use consistency::NodeId;
use gfs::error::Errno;

/// Upper limit of an order.
const ORDER_BYTES_MAX: usize = 64;

/// What a write to a file means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// A signal to the process.
    Note,
    /// A signal to the process group whose number is that of the process.
    NoteGroup,
    /// A word of Plan 9.
    Ctl,
    /// 1: it must stay where it is.
    Lock,
    /// 0: it must stay where it is.
    Loadlevel,
    /// The node to move to; 0 is home, -1 the best one. ` post-copy` after it: its memory may follow.
    Goto,
    /// 1: a checkpoint is to be made of it.
    Checkpoint,
    /// The node to go on on as its newest checkpoint, as for `Goto`.
    Restart,
}

/// An order that has been understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meant {
    Signal(i32),
    GroupSignal(i32),
    Lock(bool),
    Go(Option<NodeId>, How),
    Checkpoint,
}

/// What moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Whole,
    PostCopy,
    /// Its newest checkpoint.
    Restart,
}

impl How {
    const fn asked(self, to: NodeId) -> Asked {
        match self {
            Self::Whole => Asked::Go(to),
            Self::PostCopy => Asked::GoFirst(to),
            Self::Restart => Asked::Restart(to),
        }
    }
}

/// What is written after a node to `goto`.
const POST_COPY: &[u8] = b" post-copy";

impl Order {
    fn read(self, text: &[u8]) -> Result<Meant, Errno> {
        if text.len() > ORDER_BYTES_MAX {
            return Err(Errno::EINVAL);
        }
        let signal = || signal::parse(text).map_err(|errno| Errno(errno as i32));
        match self {
            Self::Note => signal().map(Meant::Signal),
            Self::NoteGroup => signal().map(Meant::GroupSignal),
            Self::Ctl => ctl(text).map(Meant::Signal),
            Self::Lock => switch(text).map(Meant::Lock),
            Self::Loadlevel => switch(text).map(|level| Meant::Lock(!level)),
            Self::Checkpoint => match line(text) {
                b"1" => Ok(Meant::Checkpoint),
                _ => Err(Errno::EINVAL),
            },
            Self::Goto => match line(text).strip_suffix(POST_COPY) {
                Some(to) => Ok(Meant::Go(node(to)?, How::PostCopy)),
                None => Ok(Meant::Go(node(line(text))?, How::Whole)),
            },
            Self::Restart => Ok(Meant::Go(node(line(text))?, How::Restart)),
        }
    }
}

fn line(text: &[u8]) -> &[u8] {
    text.strip_suffix(b"\n").unwrap_or(text)
}

/// Reads where something is to go.
fn node(text: &[u8]) -> Result<Option<NodeId>, Errno> {
    match text {
        b"-1" => Ok(None),
        digits if digits.iter().all(u8::is_ascii_digit) => {
            let digits = std::str::from_utf8(digits).ok();
            let number = digits.and_then(|digits| digits.parse::<u64>().ok());
            // What is a number but that of no node is no device.
            let node = number.ok_or(Errno::EINVAL)?.try_into();
            Ok(Some(NodeId(node.unwrap_or(u16::MAX))))
        }
        _ => Err(Errno::EINVAL),
    }
}

/// Reads 0 or 1.
pub(super) fn switch(text: &[u8]) -> Result<bool, Errno> {
    match line(text) {
        b"0" => Ok(false),
        b"1" => Ok(true),
        _ => Err(Errno::EINVAL),
    }
}

/// Returns the signal that a word of `ctl` stands for.
fn ctl(text: &[u8]) -> Result<i32, Errno> {
    match line(text) {
        b"stop" => Ok(libc::SIGSTOP),
        b"start" => Ok(libc::SIGCONT),
        b"kill" => Ok(libc::SIGKILL),
        // To close a descriptor of another process would take a debugger.
        close if close.starts_with(b"close") => Err(Errno(libc::EOPNOTSUPP)),
        _ => Err(Errno::EINVAL),
    }
}

impl ProcTree {
    /// Carries out what has been written to a file of a process.
    pub(super) async fn order(
        &self,
        who: Who,
        order: Order,
        at: &At,
        text: &[u8],
    ) -> Result<(), Errno> {
        let Identity { pid, birth, .. } = at.identity;
        let request = match order.read(text)? {
            Meant::Signal(number) => ProcRequest::Signal {
                pid,
                birth,
                number,
                who,
            },
            Meant::GroupSignal(number) => ProcRequest::SignalGroup {
                group: pid,
                birth: Some(birth),
                number,
                who,
            },
            Meant::Lock(lock) => ProcRequest::Lock {
                pid,
                birth,
                lock,
                who,
            },
            Meant::Go(node, how) => return self.go(who, at.identity, node, how).await,
            Meant::Checkpoint => return self.checkpoint(who, at.identity).await,
        };
        self.cluster.act(pid.home(), request).await?.map_err(Errno)
    }

    /// Sends a signal to a process group: `131080 TERM`.
    pub(super) async fn note_group(&self, who: Who, text: &[u8]) -> Result<(), Errno> {
        if text.len() > ORDER_BYTES_MAX {
            return Err(Errno::EINVAL);
        }
        let blank = text.iter().position(|byte| *byte == b' ');
        let (group, signal) = text.split_at(blank.ok_or(Errno::EINVAL)?);
        let number = signal::parse(&signal[1..]).map_err(|errno| Errno(errno as i32))?;
        let group = std::str::from_utf8(group)
            .ok()
            .and_then(|group| group.parse::<i32>().ok());
        let group = group.filter(|group| *group > 0).ok_or(Errno::EINVAL)?;
        // A number that no process can have is that of no group.
        let group = ClusterPid::try_from(group).map_err(|_| Errno::ESRCH)?;
        if !self.cluster.nodes().contains(&group.home()) {
            return Err(Errno::ESRCH);
        }
        let request = ProcRequest::SignalGroup {
            group,
            birth: None,
            number,
            who,
        };
        self.cluster
            .act(group.home(), request)
            .await?
            .map_err(Errno)
    }

    /// Moves a process, as it is or as its newest checkpoint.
    async fn go(
        &self,
        who: Who,
        identity: Identity,
        to: Option<NodeId>,
        how: How,
    ) -> Result<(), Errno> {
        let restart = how == How::Restart;
        let home = identity.pid.home();
        let to = to.map(|node| if node == NodeId(0) { home } else { node });
        if to.is_some_and(|to| !self.cluster.nodes().contains(&to)) {
            return Err(Errno(libc::ENXIO));
        }
        self.may_control(who, identity).await?;
        let to = match to {
            Some(to) => to,
            None => self.best_for(identity, restart).await?,
        };
        if to != home && self.is_locked(identity).await? {
            return Err(Errno(libc::EBUSY));
        }
        let asked = self.cluster.ask_of_moves(identity.pid, how.asked(to));
        match asked.await? {
            Some(Told::Gone(done)) => done.map_err(Errno),
            None if to == home && !restart => Ok(()),
            _ => Err(Errno(libc::EOPNOTSUPP)),
        }
    }

    /// Fails if a process does not live, or is not the caller's: its node knows.
    async fn may_control(&self, who: Who, identity: Identity) -> Result<(), Errno> {
        let Identity { pid, birth, .. } = identity;
        let ask = ProcRequest::Signal {
            pid,
            birth,
            number: 0,
            who,
        };
        self.cluster.act(pid.home(), ask).await?.map_err(Errno)
    }

    /// Has a checkpoint made of a process.
    async fn checkpoint(&self, who: Who, identity: Identity) -> Result<(), Errno> {
        self.may_control(who, identity).await?;
        let asked = Asked::Keep;
        match self.cluster.ask_of_moves(identity.pid, asked).await? {
            Some(Told::Kept(kept)) => kept.map(drop).map_err(Errno),
            _ => Err(Errno(libc::EOPNOTSUPP)),
        }
    }

    /// Returns the node that a process runs best on, if it can move. `other`: among those that it is not on.
    async fn best_for(&self, identity: Identity, other: bool) -> Result<NodeId, Errno> {
        match self.cluster.ask_of_moves(identity.pid, Asked::Ties).await? {
            Some(Told::Ties(ties)) if ties.is_empty() => {}
            _ => return Err(Errno(libc::EOPNOTSUPP)),
        }
        let told = self
            .cluster
            .ask_of_moves(identity.pid, Asked::Where)
            .await?;
        let Some(Told::Where { at, .. }) = told else {
            return Err(Errno(libc::EOPNOTSUPP));
        };
        let drains = (self.draining.0)();
        let loads = self.cluster.loads().await.into_iter();
        let loads = loads.filter(|(node, _)| !drains.contains(node));
        let loads: Vec<_> = loads
            .filter_map(|(node, load)| Some((node, load?)))
            .collect();
        if other {
            let others = loads.into_iter().filter(|(node, _)| *node != at);
            let others: Vec<_> = others.collect();
            // Where it is not known it is better off anywhere.
            return Ok(best::best(&others, at));
        }
        Ok(best::best(&loads, at))
    }

    /// Returns whether a process is to stay where it is.
    pub(super) async fn is_locked(&self, identity: Identity) -> Result<bool, Errno> {
        let read = self
            .cluster
            .read(&identity, None, ProcFile::Lock, Who::default());
        Ok(read.await?.map_err(Errno)?.starts_with(b"1"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(order: Order, text: &str, expected: Result<Meant, i32>) {
        assert_eq!(
            order.read(text.as_bytes()),
            expected.map_err(Errno),
            "{text:?}"
        );
    }

    #[test]
    fn orders_are_understood_or_not() {
        check(Order::Note, "HUP\n", Ok(Meant::Signal(libc::SIGHUP)));
        check(Order::NoteGroup, "9", Ok(Meant::GroupSignal(9)));
        check(Order::Ctl, "stop", Ok(Meant::Signal(libc::SIGSTOP)));
        check(Order::Lock, "1\n", Ok(Meant::Lock(true)));
        check(Order::Loadlevel, "1\n", Ok(Meant::Lock(false)));
        check(Order::Goto, "-1\n", Ok(Meant::Go(None, How::Whole)));
        check(Order::Goto, "0", Ok(Meant::Go(Some(NodeId(0)), How::Whole)));
        check(
            Order::Goto,
            "12",
            Ok(Meant::Go(Some(NodeId(12)), How::Whole)),
        );
        check(
            Order::Goto,
            "65536",
            Ok(Meant::Go(Some(NodeId(u16::MAX)), How::Whole)),
        );
        check(
            Order::Goto,
            "3 post-copy\n",
            Ok(Meant::Go(Some(NodeId(3)), How::PostCopy)),
        );
        check(
            Order::Goto,
            "-1 post-copy",
            Ok(Meant::Go(None, How::PostCopy)),
        );
        check(Order::Restart, "3 post-copy", Err(libc::EINVAL));
        check(Order::Checkpoint, "1\n", Ok(Meant::Checkpoint));
        check(Order::Checkpoint, "0", Err(libc::EINVAL));
        check(Order::Restart, "-1", Ok(Meant::Go(None, How::Restart)));
        check(
            Order::Restart,
            "3\n",
            Ok(Meant::Go(Some(NodeId(3)), How::Restart)),
        );
        check(Order::Ctl, "close 3", Err(libc::EOPNOTSUPP));
        let all = [
            Order::Note,
            Order::NoteGroup,
            Order::Ctl,
            Order::Lock,
            Order::Loadlevel,
            Order::Goto,
            Order::Checkpoint,
            Order::Restart,
        ];
        let long = "1".repeat(4096);
        for order in all {
            for text in [
                "",
                "\n",
                "x",
                "-2",
                " 1",
                "1 ",
                " post-copy",
                "1  post-copy",
                "1 post",
                "1\n\n",
                "0x1",
                "\0",
                "1.0",
                &long,
            ] {
                check(order, text, Err(libc::EINVAL));
            }
        }
        check(Order::Goto, "99999999999999999999999", Err(libc::EINVAL));
        check(Order::Lock, "2", Err(libc::EINVAL));
    }
}
