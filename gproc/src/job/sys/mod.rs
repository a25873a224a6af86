//! System calls that the standard library and nix do not offer, behind safe functions.
#![allow(unsafe_code)]

mod guardian;
mod launch;
mod mounted;
mod terminal;
mod timer;
mod traced;

pub(super) use guardian::Guardian;
pub(super) use launch::{Launch, LaunchError, Step, WIRE_FD, launch};
pub(super) use mounted::mounted;
pub(super) use terminal::{
    Change, await_child, become_user, close_above, close_standard_descriptors, die_by, forget_stop,
    open_again, put_typed, set_window_size, start_in_foreground, start_with_signals,
    take_descriptor, window_size,
};
pub(super) use timer::{descriptor_of, is_same_file, wind_timer};
pub(super) use traced::Traced;

use super::protocol::{Credentials, End, Limit};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::Pid;
use std::ffi::c_int;
use std::io::{self, IoSliceMut};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Limits that exist: resources 0 to 15.
pub(super) const RESOURCES: u32 = 16;

/// How long a killed process may stay on the process table.
const GONE_WITHIN: Duration = Duration::from_secs(1);

/// Pause between looks at what cannot be waited for otherwise.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Reads from a unix socket; descriptors that come along are added to `descriptors`.
///
/// # Errors
/// Of recvmsg(2), and `InvalidData` for more than three descriptors.
pub(super) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut room = nix::cmsg_space!([RawFd; 3]);
    let mut pieces = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut pieces, Some(&mut room), flags)?;
    // The kernel closes what does not fit; a sender of more than three is refused.
    let cut = message.flags.contains(MsgFlags::MSG_CTRUNC);
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just installed these descriptors for us and nobody else knows them.
            descriptors.extend(
                raw.into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    if cut || descriptors.len() > 3 {
        let why = "more than three descriptors came with a request";
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    Ok(message.bytes)
}

/// Returns the supplementary groups of the process that connected, as they were then.
pub(super) fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups: Vec<u32> = vec![0; 64];
    loop {
        let room = groups.len() * size_of::<u32>();
        let mut len = libc::socklen_t::try_from(room).expect("at most 65,536 groups");
        // SAFETY: `groups` has room for `len` bytes, and both outlive the call.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        let count = len as usize / size_of::<u32>();
        match Errno::result(result) {
            Ok(_) => {
                groups.truncate(count);
                return Ok(groups);
            }
            // The kernel says how many there are, 65,536 at most.
            Err(Errno::ERANGE) if count > groups.len() && count <= 65_536 => {
                groups.resize(count, 0);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Returns a pidfd of the process that connected. Kernels before 6.5 know it by `pid` only, which may have been
/// given to another process in the meantime.
pub(super) fn peer_pidfd(socket: BorrowedFd<'_>, pid: i32) -> io::Result<OwnedFd> {
    let mut fd: c_int = -1;
    let mut len = libc::socklen_t::try_from(size_of::<c_int>()).expect("4 bytes");
    // SAFETY: `fd` has room for the `len` bytes of a descriptor, and both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERPIDFD,
            (&raw mut fd).cast(),
            &raw mut len,
        )
    };
    match Errno::result(result) {
        Ok(_) => {}
        Err(Errno::ENOPROTOOPT) => {
            // SAFETY: takes two numbers and returns a number.
            let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
            fd = c_int::try_from(Errno::result(opened)?).expect("a descriptor is an int");
        }
        Err(error) => return Err(error.into()),
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Returns whether the process of a pidfd has ended.
pub(super) fn has_ended(pidfd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut fds = [PollFd::new(pidfd, PollFlags::POLLIN)];
    Ok(poll(&mut fds, PollTimeout::ZERO)? > 0)
}

/// Returns all limits of a process.
pub(super) fn limits_of(pid: i32) -> io::Result<Vec<Limit>> {
    let one = |resource| {
        let mut old = MaybeUninit::<libc::rlimit64>::uninit();
        // SAFETY: no new limit is given, and `old` has room for the present one.
        let result =
            unsafe { libc::prlimit64(pid, resource as _, std::ptr::null(), old.as_mut_ptr()) };
        Errno::result(result)?;
        // SAFETY: the call has succeeded, so it has filled `old`.
        let old = unsafe { old.assume_init() };
        Ok(Limit {
            resource,
            soft: old.rlim_cur,
            hard: old.rlim_max,
        })
    };
    (0..RESOURCES).map(one).collect()
}

/// Returns the nice value of a process, 0 if there is no such process.
pub(super) fn nice_of(pid: i32) -> i32 {
    // SAFETY: takes two numbers and returns a number. The raw call gives 20 - nice, so that an error (< 0) is
    // told from a negative nice value.
    let raw = unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, pid) };
    if raw < 1 {
        0
    } else {
        20 - i32::try_from(raw).expect("1 to 40")
    }
}

/// Waits until a file of the cgroup tree changes, at most `at_most`.
pub(super) fn await_change(file: BorrowedFd<'_>, at_most: Duration) -> io::Result<()> {
    let timeout = PollTimeout::try_from(at_most).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(file, PollFlags::POLLPRI)];
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Returns how many bytes of a pipe nobody has read, asked at either end.
pub(super) fn bytes_in(pipe: BorrowedFd<'_>) -> io::Result<u64> {
    let mut count: c_int = 0;
    // SAFETY: `count` has room for the number, and outlives the call.
    let result = unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut count) };
    Errno::result(result)?;
    Ok(u64::from(count.unsigned_abs()))
}

/// Returns a reader of the pipe of a writer.
pub(super) fn reader_of(writer: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    use std::os::unix::fs::OpenOptionsExt;
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let mut options = std::fs::File::options();
    let reader = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    Ok(reader.into())
}

/// Opens the other end of a pipe that is read.
pub(super) fn writer_of(reader: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    use std::os::unix::fs::OpenOptionsExt;
    let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
    let mut options = std::fs::File::options();
    let options = options.write(true).custom_flags(libc::O_NONBLOCK);
    Ok(options.open(path)?.into())
}

/// Does something as another user to the file system; `None`: as this process. Only this thread changes.
///
/// # Panics
/// If the thread cannot become itself again.
pub(super) fn as_user<T>(
    user: Option<&Credentials>,
    work: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    let Some(user) = user else { return work() };
    let own = nix::unistd::getgroups()?;
    let own: Vec<u32> = own.iter().map(|group| group.as_raw()).collect();
    // The raw calls, because the C library's would change all threads.
    let groups = |groups: &[u32]| {
        // SAFETY: `groups` has as many elements as the count says.
        let result = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
        Errno::result(result)
    };
    let become_user = |uid: u32, gid: u32| {
        // SAFETY: takes a number.
        unsafe { libc::syscall(libc::SYS_setfsgid, gid) };
        // SAFETY: takes a number.
        unsafe { libc::syscall(libc::SYS_setfsuid, uid) };
        // The call does not tell whether it has succeeded; another one, which changes nothing, tells the present user.
        // SAFETY: takes a number.
        let now = unsafe { libc::syscall(libc::SYS_setfsuid, u32::MAX) };
        now == libc::c_long::from(uid)
    };
    groups(&user.groups)?;
    let result = if become_user(user.uid, user.gid) {
        work()
    } else {
        Err(io::ErrorKind::PermissionDenied.into())
    };
    let back = become_user(0, nix::unistd::getegid().as_raw()) && groups(&own).is_ok();
    assert!(back, "root may become root again");
    result
}

/// Sends a signal to a process.
pub(super) fn signal(pidfd: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    // SAFETY: takes numbers and a null pointer for "as kill(2) does", and returns a number.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            number,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    Errno::result(result)?;
    Ok(())
}

/// Sends a signal to a process that is known by its number only.
pub(super) fn signal_process(process: Pid, number: i32) -> io::Result<()> {
    // SAFETY: takes two numbers and returns a number.
    let result = unsafe { libc::kill(process.as_raw(), number) };
    Errno::result(result)?;
    Ok(())
}

/// Sends a signal to a process group.
pub(super) fn signal_group(leader: Pid, number: i32) -> io::Result<()> {
    // SAFETY: takes two numbers and returns a number.
    let result = unsafe { libc::killpg(leader.as_raw(), number) };
    Errno::result(result)?;
    Ok(())
}

/// Lets the runtime watch a descriptor for being readable.
pub(super) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor stays open and the same as long as the watch owns it.
    let watched = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    Ok(watched?)
}

/// Takes a process that has ended off the process table; `None`: it has not.
pub(super) fn try_wait(pidfd: BorrowedFd<'_>) -> io::Result<Option<End>> {
    wait_id(pidfd, libc::WEXITED | libc::WNOHANG)
}

/// Returns whether a process is a child of this one, and has ended.
pub(super) fn is_dead_child(pidfd: BorrowedFd<'_>) -> bool {
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    matches!(wait_id(pidfd, flags), Ok(Some(_)))
}

/// Makes a child that has the pid of a process that has just been killed, and has ended: until it is waited for nobody else is
/// given that. Blocks until the pid is free.
pub(super) fn hold_pid(pid: i32) -> io::Result<OwnedFd> {
    let deadline = Instant::now() + GONE_WITHIN;
    loop {
        match try_hold_pid(pid) {
            Err(error)
                if error.raw_os_error() == Some(libc::EEXIST) && Instant::now() < deadline =>
            {
                std::thread::sleep(LOOK_EVERY);
            }
            held => return held,
        }
    }
}

fn try_hold_pid(pid: i32) -> io::Result<OwnedFd> {
    let mut pidfd: c_int = -1;
    let mut args = launch::CloneArgs::for_child(&mut pidfd);
    args.take_pid(&pid);
    // SAFETY: `args` is what clone3(2) takes; all that it points to outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) };
    if Errno::result(result)? == 0 {
        // SAFETY: takes a number. The child does nothing else: it has this thread alone, and no lock that others hold.
        unsafe { libc::_exit(0) }
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(pidfd) })
}

/// Waits for the end of a process and takes it off the process table.
pub(super) fn wait(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    wait_id(pidfd, libc::WEXITED).map(drop)
}

/// As [`wait`]; says how it has ended.
pub(super) fn wait_for(pidfd: BorrowedFd<'_>) -> io::Result<Option<End>> {
    wait_id(pidfd, libc::WEXITED)
}

/// The call itself; nix's cannot tell of real-time signals.
fn wait_id(pidfd: BorrowedFd<'_>, flags: c_int) -> io::Result<Option<End>> {
    // SAFETY: all zero is a valid value of this plain structure.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let id = pidfd.as_raw_fd().unsigned_abs();
    // SAFETY: `info` outlives the call.
    let result = unsafe { libc::waitid(libc::P_PIDFD, id, &raw mut info, flags) };
    Errno::result(result)?;
    // SAFETY: the kernel has filled the fields of SIGCHLD, or left all zero.
    let pid = unsafe { info.si_pid() };
    if pid == 0 {
        return Ok(None);
    }
    // SAFETY: as before.
    let status = unsafe { info.si_status() };
    Ok(Some(if info.si_code == libc::CLD_EXITED {
        End::Exited(status)
    } else {
        End::Killed(status)
    }))
}
