//! The files that processes are controlled by. One write is one order; it returns when the order has been carried out,
//! with the errno that the system call would have given on the process's node.

use super::ProcTree;
use crate::signal;
use crate::wire::{Identity, ProcRequest, Who};
use gfs::error::Errno;
use gfs::tree::Caller;

/// Upper limit of an order.
pub(super) const ORDER_BYTES_MAX: usize = 64;

/// What a write to a file means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// A signal to the process.
    Note,
    /// A signal to the process group whose number is that of the process.
    NoteGroup,
    /// A word of Plan 9.
    Ctl,
}

/// Returns the signal that a word of `ctl` stands for.
fn ctl(text: &[u8]) -> Result<i32, Errno> {
    match text.strip_suffix(b"\n").unwrap_or(text) {
        b"stop" => Ok(libc::SIGSTOP),
        b"start" => Ok(libc::SIGCONT),
        b"kill" => Ok(libc::SIGKILL),
        // To close a descriptor of another process would take a debugger.
        close if close.starts_with(b"close") => Err(Errno(libc::EOPNOTSUPP)),
        _ => Err(Errno::EINVAL),
    }
}

impl ProcTree {
    /// Carries out what has been written.
    pub(super) async fn order(
        &self,
        caller: Caller,
        order: Order,
        identity: Identity,
        text: &[u8],
    ) -> Result<(), Errno> {
        if text.len() > ORDER_BYTES_MAX {
            return Err(Errno::EINVAL);
        }
        let number = match order {
            Order::Note | Order::NoteGroup => {
                signal::parse(text).map_err(|errno| Errno(errno as i32))?
            }
            Order::Ctl => ctl(text)?,
        };
        let Identity { pid, birth, .. } = identity;
        let who = Who {
            uid: caller.uid,
            gid: caller.gid,
        };
        let request = match order {
            Order::Note | Order::Ctl => ProcRequest::Signal {
                pid,
                birth,
                number,
                who,
            },
            Order::NoteGroup => ProcRequest::SignalGroup {
                group: pid,
                birth: Some(birth),
                number,
                who,
            },
        };
        self.cluster.act(pid.home(), request).await?.map_err(Errno)
    }
}
