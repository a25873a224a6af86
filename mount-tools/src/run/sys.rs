//! System calls behind safe functions.
#![allow(unsafe_code)]

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::SigSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Returns the signals that this process ignores: bit `n - 1` for signal `n`. SIGPIPE is left out, which the
/// runtime of every Rust program ignores.
pub(super) fn ignored_signals() -> u64 {
    let ignored = |number: &i32| {
        let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: no new action is given, and `action` has room for the present one.
        let result = unsafe { libc::sigaction(*number, std::ptr::null(), action.as_mut_ptr()) };
        if result != 0 {
            return false;
        }
        // SAFETY: the call has succeeded, so it has filled `action`.
        let action = unsafe { action.assume_init() };
        action.sa_sigaction == libc::SIG_IGN
    };
    (1..=64)
        .filter(|number| *number != libc::SIGPIPE)
        .filter(ignored)
        .fold(0, |mask, number| mask | 1 << (number - 1))
}

/// Returns these signals as a set, real-time ones too.
pub(super) fn signal_set(numbers: impl IntoIterator<Item = i32>) -> SigSet {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: the call fills `set`.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for number in numbers {
        // SAFETY: `set` is filled; a number that is no signal's changes nothing.
        unsafe { libc::sigaddset(set.as_mut_ptr(), number) };
    }
    // SAFETY: it is filled.
    let set = unsafe { set.assume_init() };
    // SAFETY: any set of signals is one that nix may hold.
    unsafe { SigSet::from_sigset_t_unchecked(set) }
}

/// Returns whether two of our descriptors are the same open file.
pub(super) fn same_open_file(a: RawFd, b: RawFd) -> bool {
    const KCMP_FILE: i32 = 0;
    let own = std::process::id();
    // SAFETY: takes numbers and returns one; without the call in the kernel it fails, and the answer is no.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, own, own, KCMP_FILE, a, b) };
    order == 0
}

/// Returns a descriptor that this process has got by its number alone, if it is open.
pub(super) fn inherited<'a>(number: RawFd) -> Option<BorrowedFd<'a>> {
    // SAFETY: takes numbers and returns one.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    // SAFETY: it is open, and nobody here closes what is not his.
    (flags >= 0).then(|| unsafe { BorrowedFd::borrow_raw(number) })
}

/// As [`inherited`], for who closes it; each is taken once.
pub(super) fn taken(number: RawFd) -> Option<OwnedFd> {
    inherited(number)?;
    // SAFETY: it is open, and whoever started this process has left it to it.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Returns how many bytes a pipe holds.
pub(super) fn bytes_in(pipe: BorrowedFd<'_>) -> io::Result<u64> {
    let mut count: libc::c_int = 0;
    // SAFETY: `count` has room for the number, and outlives the call.
    let result = unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut count) };
    nix::errno::Errno::result(result)?;
    Ok(u64::from(count.unsigned_abs()))
}

/// Opens the pipe of a reader once more, as an open file of its own.
pub(super) fn open_again(reader: BorrowedFd<'_>) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
    File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
}

/// Has the terminal at descriptor 0 take bytes as if they were typed, as far as the kernel lets this user.
pub(super) fn type_again<'a>(bytes: impl IntoIterator<Item = &'a u8>) {
    for byte in bytes {
        // SAFETY: `byte` is the one byte that the call reads.
        let result = unsafe { libc::ioctl(0, libc::TIOCSTI, std::ptr::from_ref(byte)) };
        if result != 0 {
            return;
        }
    }
}

/// Has a program that is yet to be started killed when this thread ends.
pub(super) fn dies_with_this_thread(command: &mut Command) {
    let parent = std::process::id();
    let ask = move || {
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
        // It may have ended just before.
        match std::os::unix::process::parent_id() == parent {
            true => Ok(()),
            false => Err(io::ErrorKind::Interrupted.into()),
        }
    };
    // SAFETY: two system calls, which take no lock and no memory.
    unsafe { command.pre_exec(ask) };
}

/// Ends this process by a signal, as a job was ended by it.
pub(super) fn die_by(number: i32) -> ! {
    // The program that crashed was not this one.
    setrlimit(Resource::RLIMIT_CORE, 0, 0).ok();
    // SAFETY: the default action runs no code of ours.
    unsafe { libc::signal(number, libc::SIG_DFL) };
    SigSet::all().thread_unblock().ok();
    // SAFETY: takes a number.
    unsafe { libc::raise(number) };
    // A signal whose default is to do nothing, or that does not exist here.
    std::process::exit(128 + number)
}
