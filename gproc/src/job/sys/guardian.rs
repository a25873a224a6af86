//! The process that outlives the daemon by a moment.

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::SigSet;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pipe2, setsid};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A process that writes `1` to a file (`cgroup.kill`) when this one is gone, by whatever way.
#[derive(Debug)]
pub(in crate::job) struct Guardian {
    /// Closed by our end, expected or not.
    alive: Option<OwnedFd>,
    pid: Pid,
}

impl Guardian {
    pub(in crate::job) fn new(kill_file: &Path) -> io::Result<Self> {
        let path = CString::new(kill_file.as_os_str().as_bytes())?;
        let (watched, alive) = pipe2(OFlag::O_CLOEXEC)?;
        // SAFETY: the child only makes system calls, on data made before; it allocates nothing, takes no lock and
        // never returns.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Self {
                alive: Some(alive),
                pid: child,
            }),
            ForkResult::Child => guard(watched.as_raw_fd(), &path),
        }
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.alive.take());
        // It ends at once; without this it would stay a zombie.
        waitpid(self.pid, None).ok();
    }
}

/// The life of a guardian.
fn guard(watched: RawFd, kill_file: &CStr) -> ! {
    // A terminal's signals and those for the daemon's group are not for the guardian.
    setsid().ok();
    SigSet::all().thread_set_mask().ok();
    // SAFETY: the name is a C string of at most 16 bytes.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"glu-guardian".as_ptr()) };
    // SAFETY: this process uses no descriptor but the one it moves to 0 here.
    unsafe { libc::dup2(watched, 0) };
    // SAFETY: as before. Foremost the copy of `alive` must go, or the end would never show.
    unsafe { libc::close_range(1, u32::MAX, 0) };
    let mut byte = 0_u8;
    loop {
        // SAFETY: `byte` has room for the one byte asked for.
        let got = unsafe { libc::read(0, (&raw mut byte).cast(), 1) };
        if got == 0 || (got < 0 && Errno::last() != Errno::EINTR) {
            break;
        }
    }
    // SAFETY: `kill_file` is a C string.
    let fd = unsafe { libc::open(kill_file.as_ptr(), libc::O_WRONLY) };
    // SAFETY: the one byte is there. Where the file could not be opened (it is gone already) the call fails.
    unsafe { libc::write(fd, b"1".as_ptr().cast(), 1) };
    // SAFETY: ends the process at once.
    unsafe { libc::_exit(0) }
}
