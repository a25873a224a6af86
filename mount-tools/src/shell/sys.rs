//! System calls behind safe functions.
#![allow(unsafe_code)]

use super::calls::Answer;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::unistd::ForkResult;
use std::ffi::CString;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A call that is held.
#[derive(Debug)]
pub(super) struct Notice {
    pub(super) id: u64,
    /// Who calls, in the pid namespace of this process; 0 if it is not in it.
    pub(super) thread: u32,
    pub(super) number: i32,
    pub(super) args: [u64; 6],
}

/// Installs a filter for this process and all that it will start; returns what its calls are received by.
pub(super) fn install(program: &[libc::sock_filter]) -> Result<OwnedFd, Errno> {
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // A call that has been received is then interrupted by fatal signals alone: it is never carried out twice.
    match install_with(
        program,
        flags | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
    ) {
        // Kernels before 5.19.
        Err(Errno::EINVAL) => install_with(program, flags),
        installed => installed,
    }
}

fn install_with(program: &[libc::sock_filter], flags: libc::c_ulong) -> Result<OwnedFd, Errno> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::E2BIG)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel reads `program` and the instructions it points to, which live until the call returns.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    new_descriptor(fd)
}

/// Waits for the next call.
pub(super) fn receive(listener: BorrowedFd<'_>) -> Result<Notice, Errno> {
    // SAFETY: numbers alone, for which 0 is valid; the kernel insists on it.
    let mut notice: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    let request = libc::SECCOMP_IOCTL_NOTIF_RECV;
    // SAFETY: the kernel writes a `seccomp_notif`, for which there is room.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), request, &raw mut notice) };
    Errno::result(result)?;
    Ok(Notice {
        id: notice.id,
        thread: notice.pid,
        number: notice.data.nr,
        args: notice.data.args,
    })
}

/// Returns whether a call is still held.
pub(super) fn is_held(listener: BorrowedFd<'_>, id: u64) -> bool {
    let request = libc::SECCOMP_IOCTL_NOTIF_ID_VALID;
    // SAFETY: the kernel reads a number, which lives until the call returns.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), request, &raw const id) };
    result == 0
}

/// Ends a call.
pub(super) fn answer(listener: BorrowedFd<'_>, id: u64, answer: Answer) -> Result<(), Errno> {
    let (error, flags) = match answer {
        Answer::Descriptor(fd) => return give(listener, id, fd.as_fd()),
        Answer::Done => (0, 0),
        Answer::Failed(errno) => (-(errno as i32), 0),
        Answer::Kernel => (0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE),
    };
    let mut response = libc::seccomp_notif_resp {
        id,
        val: 0,
        error,
        flags: u32::try_from(flags).expect("a small flag"),
    };
    let request = libc::SECCOMP_IOCTL_NOTIF_SEND;
    // SAFETY: the kernel reads a `seccomp_notif_resp`, which lives until the call returns.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), request, &raw mut response) };
    Errno::result(result).map(drop)
}

/// Ends a call with a copy of a descriptor in the caller.
fn give(listener: BorrowedFd<'_>, id: u64, fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut given = libc::seccomp_notif_addfd {
        id,
        flags: u32::try_from(libc::SECCOMP_ADDFD_FLAG_SEND).expect("a small flag"),
        srcfd: fd.as_raw_fd().cast_unsigned(),
        newfd: 0,
        newfd_flags: libc::O_CLOEXEC.cast_unsigned(),
    };
    let request = libc::SECCOMP_IOCTL_NOTIF_ADDFD;
    // SAFETY: the kernel reads a `seccomp_notif_addfd`, which lives until the call returns.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), request, &raw mut given) };
    Errno::result(result).map(drop)
}

/// Does something with other ids for files, of this thread alone; `None` if it may not have them.
pub(super) fn with_file_ids<T>(user: u32, group: u32, act: impl FnOnce() -> T) -> Option<T> {
    let own = (nix::unistd::geteuid(), nix::unistd::getegid());
    let set = |user, group| {
        // The group first: a user may not change it.
        // SAFETY: takes a number and returns one.
        unsafe { libc::setfsgid(group) };
        // SAFETY: takes a number and returns one.
        unsafe { libc::setfsuid(user) };
        // It fails in silence; an invalid number only asks.
        // SAFETY: takes a number and returns one.
        let now = unsafe { libc::setfsuid(u32::MAX) };
        now.cast_unsigned() == user
    };
    let done = set(user, group).then(act);
    // The user first: root may then change the group.
    // SAFETY: takes a number and returns one.
    unsafe { libc::setfsuid(own.0.as_raw()) };
    set(own.0.as_raw(), own.1.as_raw());
    done
}

/// Mounts a link over a link.
pub(super) fn mount_link(link: &Path, over: &Path) -> io::Result<()> {
    let path = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other);
    let (link, over) = (path(link)?, path(over)?);
    let flags = libc::OPEN_TREE_CLONE
        | libc::AT_SYMLINK_NOFOLLOW.cast_unsigned()
        | libc::O_CLOEXEC.cast_unsigned();
    // SAFETY: the kernel reads the path, which lives until the call returns.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, link.as_ptr(), flags) };
    let tree = new_descriptor(fd)?;
    // SAFETY: the kernel reads two paths, which live until the call returns.
    let moved = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            over.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    Errno::result(moved)?;
    Ok(())
}

/// Forks; this process must have no other thread.
pub(super) fn fork() -> nix::Result<ForkResult> {
    // SAFETY: as there is no other thread, no lock is held by one that the child does not have.
    unsafe { nix::unistd::fork() }
}

/// Ends this process without running what the one it was forked from has left to do.
pub(super) fn exit_at_once(status: i32) -> ! {
    // SAFETY: does not return.
    unsafe { libc::_exit(status) }
}

/// Makes descriptors 0, 1 and 2 this one.
pub(super) fn become_stdio(with: BorrowedFd<'_>) -> nix::Result<()> {
    nix::unistd::dup2_stdin(with)?;
    nix::unistd::dup2_stdout(with)?;
    nix::unistd::dup2_stderr(with)
}

/// Closes all descriptors above 2 but one.
pub(super) fn close_all_but(kept: RawFd) -> io::Result<()> {
    let kept = kept.cast_unsigned();
    for (first, last) in [(3, kept.saturating_sub(1)), (kept.max(2) + 1, u32::MAX)] {
        if first <= last {
            // SAFETY: whoever owns them is not in this process: it was forked, and only runs what has just begun.
            let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
            Errno::result(result)?;
        }
    }
    Ok(())
}

/// Sends a descriptor over a socket.
pub(super) fn send_descriptor(socket: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> nix::Result<()> {
    let fds = [fd.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&fds)];
    let bytes = [IoSlice::new(b"!")];
    sendmsg::<()>(
        socket.as_raw_fd(),
        &bytes,
        &message,
        MsgFlags::empty(),
        None,
    )
    .map(drop)
}

/// Receives a descriptor over a socket.
pub(super) fn receive_descriptor(socket: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let mut byte = [0];
    let mut bytes = [IoSliceMut::new(&mut byte)];
    let mut room = nix::cmsg_space!(RawFd);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut bytes, Some(&mut room), flags)?;
    let fd = message.cmsgs()?.find_map(|of| match of {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    // SAFETY: the kernel has just made this descriptor for us.
    fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
        .ok_or(Errno::ECONNRESET)
}

fn new_descriptor(fd: libc::c_long) -> Result<OwnedFd, Errno> {
    let fd = RawFd::try_from(Errno::result(fd)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn descriptors_travel() {
        let (a, b) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let (mut reader, writer) = io::pipe().expect("a pipe");
        send_descriptor(a.as_fd(), writer.as_fd()).expect("sent");
        drop(writer);
        drop(receive_descriptor(b.as_fd()).expect("received"));
        let mut nothing = Vec::new();
        assert_eq!(reader.read_to_end(&mut nothing).ok(), Some(0));
        drop(a);
        let end = receive_descriptor(b.as_fd()).map(drop);
        assert_eq!(end, Err(Errno::ECONNRESET));
    }

    #[test]
    fn ids_for_files_come_back() {
        let own = (
            nix::unistd::geteuid().as_raw(),
            nix::unistd::getegid().as_raw(),
        );
        let file = || tempfile::NamedTempFile::new().expect("a file");
        assert_eq!(with_file_ids(own.0, own.1, || 7), Some(7));
        if own.0 == 0 {
            use std::os::unix::fs::MetadataExt;
            let made = with_file_ids(65_534, 65_534, file).expect("root may");
            assert_eq!(made.as_file().metadata().expect("is there").uid(), 65_534);
            assert_eq!(file().as_file().metadata().expect("is there").gid(), own.1);
        }
    }
}
