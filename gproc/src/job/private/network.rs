//! A network namespace with the loopback device alone. It can stand still (MV8): a queue on the device drops what is sent.
//!
//! rtnetlink(7) is spoken here, as no program for it may be there.

use super::{on_a_thread, own_namespace};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

/// The loopback device is the first one of each namespace.
const LOOPBACK: u32 = 1;

/// A number for the queue that stops it, as `1:` of tc(8): of another one the kernel says that it is there.
const QUEUE: u32 = 1 << 16;

/// Numbers of rtnetlink(7) that libc has not.
const ACKNOWLEDGED_REQUEST: u16 = 5;
const ONLY_A_NEW_ONE: u16 = 0x600;
const QUEUE_KIND: u16 = 1;
const AT_THE_ROOT: u32 = u32::MAX;
const HEADER_BYTES: usize = 16;
const ATTRIBUTE_BYTES: usize = 4;

/// A network of a job's own.
#[derive(Debug)]
pub(in crate::job) struct Network(OwnedFd);

impl From<Network> for OwnedFd {
    fn from(network: Network) -> Self {
        network.0
    }
}

impl AsFd for Network {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Network {
    /// Makes one, whose loopback device works.
    pub(in crate::job) fn new() -> io::Result<Self> {
        on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let up = libc::IFF_UP.cast_unsigned();
            ask(libc::RTM_NEWLINK, 0, &words([0, LOOPBACK, up, up]))?;
            own_namespace("net").map(Self)
        })
    }

    /// Returns that of a process.
    pub(in crate::job) fn of(pid: i32) -> io::Result<Self> {
        Ok(Self(File::open(format!("/proc/{pid}/ns/net"))?.into()))
    }

    /// Returns its number.
    pub(in crate::job) fn inode(&self) -> io::Result<u64> {
        Ok(File::from(self.0.try_clone()?).metadata()?.ino())
    }

    /// Does something in it.
    pub(in crate::job) fn within<T: Send>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send,
    ) -> io::Result<T> {
        on_a_thread(|| {
            setns(&self.0, CloneFlags::CLONE_NEWNET)?;
            work()
        })
    }

    /// Lets nothing pass from now on. What a connection has to deliver it sends once more later.
    pub(in crate::job) fn stop(&self) -> io::Result<()> {
        const KIND: &[u8] = b"blackhole\0";
        let mut body = queue(QUEUE);
        let len = u16::try_from(ATTRIBUTE_BYTES + KIND.len()).expect("a few bytes");
        body.extend(len.to_ne_bytes());
        body.extend(QUEUE_KIND.to_ne_bytes());
        body.extend(KIND);
        body.resize(body.len().next_multiple_of(4), 0);
        self.within(|| ask(libc::RTM_NEWQDISC, ONLY_A_NEW_ONE, &body))
    }

    /// Lets what is sent pass again.
    pub(in crate::job) fn go_on(&self) -> io::Result<()> {
        self.within(|| ask(libc::RTM_DELQDISC, 0, &queue(0)))
    }
}

/// Returns what says which queue of the loopback device is meant; 0: the one that is there.
fn queue(number: u32) -> Vec<u8> {
    words([0, LOOPBACK, number, AT_THE_ROOT, 0])
}

fn words<const N: usize>(words: [u32; N]) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_ne_bytes).collect()
}

/// Has the kernel do something in the namespace of this thread.
fn ask(what: u16, how: u16, body: &[u8]) -> io::Result<()> {
    let kernel = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let len = u32::try_from(HEADER_BYTES + body.len()).expect("a few bytes");
    let mut request = len.to_ne_bytes().to_vec();
    request.extend(what.to_ne_bytes());
    request.extend((ACKNOWLEDGED_REQUEST | how).to_ne_bytes());
    // Number and sender.
    request.extend([0; 8]);
    request.extend(body);
    send(kernel.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut answer = [0; 512];
    let len = recv(kernel.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let error = answer[..len].get(HEADER_BYTES..HEADER_BYTES + 4);
    let error = error.ok_or(io::ErrorKind::InvalidData)?;
    match i32::from_ne_bytes(error.try_into().expect("four bytes")) {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(-errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
    use std::time::Duration;

    /// Makes a connection in a network.
    fn pair(network: &Network, address: std::net::IpAddr) -> (TcpStream, TcpStream) {
        let pair = network.within(|| {
            let listener = TcpListener::bind((address, 0))?;
            let one = TcpStream::connect(listener.local_addr()?)?;
            Ok((one, listener.accept()?.0))
        });
        pair.expect("a connection")
    }

    #[test]
    fn a_network_stands_still_and_goes_on() {
        let network = Network::new().expect("this is root");
        let addresses = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let mut pairs = addresses.map(|address| pair(&network, address));
        network.stop().expect("stops");
        let twice = network.stop().expect_err("somebody has stopped it");
        assert_eq!(twice.raw_os_error(), Some(libc::EEXIST));
        for (one, other) in &mut pairs {
            one.write_all(b"x").expect("written");
            other.set_nonblocking(true).expect("set");
            let nothing = other.read(&mut [0; 8]).expect_err("nothing has come");
            assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
            other.set_nonblocking(false).expect("set");
        }
        network.go_on().expect("goes on");
        for (_, other) in &mut pairs {
            let long = Some(Duration::from_secs(60));
            other.set_read_timeout(long).expect("set");
            let mut byte = [0];
            other.read_exact(&mut byte).expect("it is sent once more");
            assert_eq!(&byte, b"x");
        }
    }

    #[test]
    fn nobody_else_is_in_it() {
        let (one, other) = (Network::new().expect("root"), Network::new().expect("root"));
        assert_ne!(one.inode().expect("its"), other.inode().expect("its"));
        let listener = one.within(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
        let listener = listener.expect("bound");
        let place = listener.local_addr().expect("an address");
        assert!(other.within(|| TcpStream::connect(place)).is_err());
        assert!(one.within(|| TcpStream::connect(place)).is_ok());
    }
}
