//! Who is at the other end of unix sockets: the kernel tells by netlink alone (sock_diag(7)).

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsRawFd;

/// Numbers of netlink(7) and sock_diag(7).
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const REQUEST_ALL: u16 = 0x301;
const SHOW_PEER: u32 = 4;
const ATTRIBUTE_PEER: u16 = 2;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

const HEADER_BYTES: usize = 16;
/// Of the answer before its attributes.
const ANSWER_BYTES: usize = 16;
/// Offsets in an answer.
const TYPE_AT: usize = 1;
const INODE_AT: usize = 4;

/// Bytes of one piece of the answer; the kernel sends no more at a time.
const PIECE_BYTES: usize = 32 << 10;

/// Returns whether one of these sockets, by their inodes, is connected to one that is not of them. Those of datagrams are
/// not counted: they are connected anew, by name, wherever their program runs.
pub(super) fn has_peer_outside(inodes: &BTreeSet<u32>) -> io::Result<bool> {
    let kernel = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    send(kernel.as_raw_fd(), &request(), MsgFlags::empty())?;
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let len = recv(kernel.as_raw_fd(), &mut piece, MsgFlags::empty())?;
        match look(&piece[..len], inodes) {
            Seen::Outside => return Ok(true),
            Seen::All => return Ok(false),
            Seen::Some => {}
        }
    }
}

/// What a piece of the answer has shown.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Outside,
    /// And there is more.
    Some,
    All,
}

/// Asks for all unix sockets and their peers.
fn request() -> Vec<u8> {
    let mut body = vec![libc::AF_UNIX.to_le_bytes()[0], 0, 0, 0];
    for number in [u32::MAX, 0, SHOW_PEER, u32::MAX, u32::MAX] {
        body.extend(number.to_ne_bytes());
    }
    let len = u32::try_from(HEADER_BYTES + body.len()).expect("a few bytes");
    let mut request = len.to_ne_bytes().to_vec();
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(REQUEST_ALL.to_ne_bytes());
    // Number and sender.
    request.extend([0; 8]);
    request.extend(body);
    request
}

fn look(piece: &[u8], inodes: &BTreeSet<u32>) -> Seen {
    let mut rest = piece;
    while let (Some(len), Some(kind)) = (u32_at(rest, 0), u16_at(rest, 4)) {
        let len = (len as usize).clamp(HEADER_BYTES, rest.len().max(HEADER_BYTES));
        match kind {
            NLMSG_DONE | NLMSG_ERROR => return Seen::All,
            _ => {}
        }
        let body = rest.get(HEADER_BYTES..len).unwrap_or_default();
        let ours = u32_at(body, INODE_AT).is_some_and(|inode| inodes.contains(&inode));
        let datagrams = body.get(TYPE_AT) == Some(&libc::SOCK_DGRAM.to_le_bytes()[0]);
        if ours && !datagrams && peer(body).is_some_and(|peer| peer != 0 && !inodes.contains(&peer))
        {
            return Seen::Outside;
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Seen::Some
}

/// Returns the inode of the peer that an answer tells.
fn peer(answer: &[u8]) -> Option<u32> {
    let mut rest = answer.get(ANSWER_BYTES..)?;
    loop {
        let (len, kind) = (u16_at(rest, 0)?, u16_at(rest, 2)?);
        if kind == ATTRIBUTE_PEER {
            return u32_at(rest, 4);
        }
        rest = rest.get(usize::from(len).max(4).next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(bytes.try_into().expect("two bytes")))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().expect("four bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    fn inode(socket: impl Into<OwnedFd>) -> u32 {
        let file = std::fs::File::from(socket.into());
        let inode = file.metadata().expect("an inode").ino();
        u32::try_from(inode).expect("sockets have small ones")
    }

    #[test]
    fn a_peer_is_outside_unless_it_is_among_them() {
        let (one, other) = UnixStream::pair().expect("a pair");
        let (datagrams, _other) = UnixDatagram::pair().expect("a pair");
        let lonely = std::os::unix::net::UnixListener::bind(
            tempfile::tempdir()
                .expect("a directory")
                .path()
                .join("socket"),
        );
        let number = |socket: &UnixStream| inode(socket.try_clone().expect("a copy"));
        let check = |sockets: &[u32], outside: bool| {
            let sockets = sockets.iter().copied().collect();
            assert_eq!(has_peer_outside(&sockets).expect("an answer"), outside);
        };
        check(&[number(&one)], true);
        check(&[number(&one), number(&other)], false);
        check(&[inode(datagrams.try_clone().expect("a copy"))], false);
        check(&[inode(lonely.expect("bound"))], false);
        check(&[], false);
    }

    #[test]
    fn nonsense_shows_nothing() {
        for piece in [&[][..], &[0; 3], &[0; 40], &[255; 40]] {
            assert_eq!(look(piece, &BTreeSet::from([1])), Seen::Some);
        }
    }
}
