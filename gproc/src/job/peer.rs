//! Who is at the other end of the unix socket (rule J1), as the kernel tells it.

use super::protocol::{Credentials, Limit};
use super::sys;
use std::io;
use std::os::fd::AsFd;
use tokio::net::UnixStream;

/// What home vouches for about an owner.
pub(super) struct Peer {
    pub(super) credentials: Credentials,
    pub(super) limits: Vec<Limit>,
    pub(super) nice: i32,
}

impl Peer {
    /// Asks the kernel about the process that connected.
    ///
    /// User and groups are those of the connection itself. Limits and niceness are read from the process; a pidfd
    /// taken from the connection shows that the pid still meant it when they were read.
    pub(super) fn of(stream: &UnixStream) -> io::Result<Self> {
        let peer = stream.peer_cred()?;
        let credentials = Credentials {
            uid: peer.uid(),
            gid: peer.gid(),
            groups: sys::peer_groups(stream.as_fd())?,
        };
        let pid = peer
            .pid()
            .ok_or_else(|| io::Error::other("the peer has no pid in this pid namespace"))?;
        let process = sys::peer_pidfd(stream.as_fd(), pid)?;
        let limits = sys::limits_of(pid)?;
        let nice = sys::nice_of(pid);
        if sys::has_ended(process.as_fd())? {
            return Err(io::Error::other("the peer has ended"));
        }
        Ok(Self {
            credentials,
            limits,
            nice,
        })
    }
}
