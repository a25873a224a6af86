//! Descriptors of other processes, and timers among them.

use nix::errno::Errno;
use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// `TFD_IOC_SET_TICKS`, of kernels that can make processes from images.
const SET_TICKS: libc::c_ulong = 0x4008_5400;

/// Returns a copy of a descriptor of another process.
pub(in crate::job) fn descriptor_of(pidfd: BorrowedFd<'_>, number: c_int) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers and returns one.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) };
    let fd = c_int::try_from(Errno::result(fd)?).expect("a descriptor is an int");
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Returns whether a descriptor of another process is the same open file as one of this process.
pub(in crate::job) fn is_same_file(
    own: BorrowedFd<'_>,
    pid: i32,
    number: c_int,
) -> io::Result<bool> {
    const KCMP_FILE: c_int = 0;
    let (this, own) = (nix::unistd::getpid().as_raw(), own.as_raw_fd());
    // SAFETY: takes numbers.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, this, pid, KCMP_FILE, own, number) };
    Ok(Errno::result(order)? == 0)
}

/// Has a timer run out again after `interval`, and from then on; it has run out `ticks` times since it was read.
pub(in crate::job) fn wind_timer(
    timer: BorrowedFd<'_>,
    interval: Duration,
    ticks: u64,
) -> io::Result<()> {
    let interval = libc::timespec {
        tv_sec: libc::time_t::try_from(interval.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(interval.subsec_nanos().cast_signed()),
    };
    let both = libc::itimerspec {
        it_interval: interval,
        it_value: interval,
    };
    // SAFETY: `both` outlives the call, and no old value is asked for.
    let set = unsafe {
        libc::timerfd_settime(timer.as_raw_fd(), 0, &raw const both, std::ptr::null_mut())
    };
    Errno::result(set)?;
    // SAFETY: `ticks` outlives the call.
    let told = unsafe { libc::ioctl(timer.as_raw_fd(), SET_TICKS, &raw const ticks) };
    Errno::result(told)?;
    Ok(())
}
