//! Who is at the other end of the unix socket (rule J1), as the kernel tells it.

use super::protocol::{Credentials, Limit};
use super::sys;
use std::io;
use std::os::fd::AsFd;
use tokio::net::UnixStream;

/// What home vouches for about an owner.
pub(super) struct Peer {
    pub(super) pid: i32,
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
        let limits = sys::limits_of(pid).or_else(|error| match error.kind() {
            // Root of a container may not ask about other users' processes this way.
            io::ErrorKind::PermissionDenied => {
                limits_from(&std::fs::read_to_string(format!("/proc/{pid}/limits"))?)
            }
            _ => Err(error),
        })?;
        let nice = sys::nice_of(pid);
        if sys::has_ended(process.as_fd())? {
            return Err(io::Error::other("the peer has ended"));
        }
        Ok(Self {
            pid,
            credentials,
            limits,
            nice,
        })
    }
}

/// Reads `/proc/PID/limits`: a heading, then a line for each limit in the order of their numbers, in columns.
fn limits_from(text: &str) -> io::Result<Vec<Limit>> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, "limits that are not understood");
    let value = |column: Option<&str>| match column.map(str::trim) {
        Some("unlimited") => Ok(u64::MAX),
        Some(number) => number.parse().map_err(|_| wrong()),
        None => Err(wrong()),
    };
    let lines = text.lines().skip(1).zip(0..sys::RESOURCES);
    lines
        .map(|(line, resource)| {
            Ok(Limit {
                resource,
                soft: value(line.get(26..47))?,
                hard: value(line.get(47..68))?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_the_kernel_tells_them() {
        let own = std::process::id().cast_signed();
        let text = std::fs::read_to_string("/proc/self/limits").expect("own limits");
        let read = limits_from(&text).expect("understood");
        assert_eq!(read, sys::limits_of(own).expect("own limits"));
        assert_eq!(read.len(), sys::RESOURCES as usize);
        limits_from("Limit\nMax cpu time").expect_err("is cut off");
    }
}
