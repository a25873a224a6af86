//! The terminal of a job that moves.
//!
//! Each host gives the job a terminal of its own, whose line discipline does all, as that of the node did which started the
//! job. There the first terminal becomes a wire that changes nothing: what the owner types comes out of the job's end,
//! which home reads and sends to the host, and what the job has shown goes in there.
//!
//! - MV9 **Nothing typed is lost, nor read twice.** What was typed and not read by a job that stands still is taken from its
//!   terminal, as the job is to read it, and put into the next one, or back. What is typed meanwhile waits, and goes through the
//!   line discipline of whoever runs the job then.
//!
//! A job with a terminal is not the leader of its session: that is another process of Glu ([`leader`](super::super::leader)). It
//! does not move. Each host starts one, with the same pid, whose child the copy becomes: so the copy has the terminal from its
//! parent, as the original has. At home the first leader stays, frozen: it is the parent of what is left of the program, whose
//! pid is so nobody else's (MV6).

use super::super::terminal::{Held, Pty};
use super::wire::Carried;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// The terminal of a job that was started here.
#[derive(Clone, Debug)]
pub(in crate::job) struct AtHome {
    /// The leader of its session.
    pub(in crate::job) leader: i32,
    pub(in crate::job) pty: Arc<Pty>,
    /// The end of the leader's pipe that is read here.
    pub(in crate::job) reports: Arc<OwnedFd>,
}

/// The terminal of a copy.
#[derive(Debug)]
pub(super) struct Of {
    pub(super) leader: i32,
    pub(super) pty: Pty,
    /// How it was when the job was frozen.
    held: Option<Held>,
}

impl Carried {
    /// Takes it from a job that stands still.
    pub(super) fn take(leader: i32, pty: &Pty) -> io::Result<Self> {
        let foreground = pty.foreground();
        let Held { like, unread } = pty.hold()?;
        Ok(Self {
            leader,
            foreground: foreground.map_or(0, nix::unistd::Pid::as_raw),
            like,
            unread,
        })
    }

    pub(super) fn held(&self) -> Held {
        Held {
            like: self.like.clone(),
            unread: self.unread.clone(),
        }
    }
}

impl Of {
    /// Makes one for a job of this user that comes.
    pub(super) fn new(carried: &Carried, uid: u32) -> io::Result<Self> {
        let pty = Pty::open(&carried.like, uid)?;
        pty.go_on(&carried.held())?;
        Ok(Self {
            leader: carried.leader,
            pty,
            held: None,
        })
    }

    /// Takes note of how it is while the job stands still.
    pub(super) fn hold(&mut self) -> io::Result<Carried> {
        let carried = Carried::take(self.leader, &self.pty)?;
        self.held = Some(carried.held());
        Ok(carried)
    }

    /// The job goes on here.
    pub(super) fn go_on(&mut self) -> io::Result<()> {
        self.held
            .take()
            .map_or(Ok(()), |held| self.pty.go_on(&held))
    }
}
