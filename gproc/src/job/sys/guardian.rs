//! The process that outlives the daemon by a moment.

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::SigSet;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pipe2, setsid};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Pauses between attempts to remove cgroups whose processes are still dying, and how many of them.
const PAUSE_NANOS: libc::c_long = 10_000_000;
const PAUSES_MAX: u32 = 500;

/// A process that kills all in a cgroup and removes it, with its children, when this one is gone by whatever way.
#[derive(Debug)]
pub(in crate::job) struct Guardian {
    /// Closed by our end, expected or not.
    alive: Option<OwnedFd>,
    pid: Pid,
}

impl Guardian {
    pub(in crate::job) fn new(cgroup: &Path) -> io::Result<Self> {
        let path = CString::new(cgroup.as_os_str().as_bytes())?;
        let dir = File::open(cgroup)?;
        let (watched, alive) = pipe2(OFlag::O_CLOEXEC)?;
        // SAFETY: the child only makes system calls, on data made before; it allocates nothing, takes no lock and
        // never returns.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Self {
                alive: Some(alive),
                pid: child,
            }),
            ForkResult::Child => guard(watched.as_raw_fd(), dir.as_raw_fd(), &path),
        }
    }
}

impl Drop for Guardian {
    /// Has the guardian do its duty now, and waits for it.
    fn drop(&mut self) {
        drop(self.alive.take());
        waitpid(self.pid, None).ok();
    }
}

/// The life of a guardian. It works through the open directory: by the time of its duty the next daemon may have made
/// its own under the same name.
fn guard(watched: RawFd, dir: RawFd, path: &CStr) -> ! {
    // A terminal's signals and those for the daemon's group are not for the guardian.
    setsid().ok();
    SigSet::all().thread_set_mask().ok();
    // SAFETY: the name is a C string of at most 16 bytes.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"glu-guardian".as_ptr()) };
    // SAFETY: this process uses no descriptor but these two, which the daemon got above 2.
    unsafe { libc::dup2(watched, 0) };
    // SAFETY: as before.
    unsafe { libc::dup2(dir, 1) };
    // SAFETY: as before. Foremost the copy of `alive` must go, or the end would never show.
    unsafe { libc::close_range(2, u32::MAX, 0) };
    let dir = 1;
    let mut byte = 0_u8;
    loop {
        // SAFETY: `byte` has room for the one byte asked for.
        let got = unsafe { libc::read(0, (&raw mut byte).cast(), 1) };
        if got == 0 || (got < 0 && Errno::last() != Errno::EINTR) {
            break;
        }
    }

    // SAFETY: the name is a C string.
    let kill = unsafe { libc::openat(dir, c"cgroup.kill".as_ptr(), libc::O_WRONLY) };
    // SAFETY: the one byte is there.
    unsafe { libc::write(kill, b"1".as_ptr().cast(), 1) };
    for _ in 0..PAUSES_MAX {
        remove_children(dir);
        if inode_at(path) != inode_of(dir) {
            break;
        }
        // SAFETY: `path` is a C string.
        let removed = unsafe { libc::rmdir(path.as_ptr()) };
        if removed == 0 || Errno::last() != Errno::EBUSY {
            break;
        }
        let pause = libc::timespec {
            tv_sec: 0,
            tv_nsec: PAUSE_NANOS,
        };
        // SAFETY: `pause` outlives the call, and how much is left of it is not asked for.
        unsafe { libc::nanosleep(&raw const pause, std::ptr::null_mut()) };
    }
    // SAFETY: ends the process at once.
    unsafe { libc::_exit(0) }
}

fn inode_at(path: &CStr) -> Option<u64> {
    nix::sys::stat::stat(path).ok().map(|stat| stat.st_ino)
}

fn inode_of(fd: RawFd) -> Option<u64> {
    // SAFETY: the guardian keeps this descriptor open to its end.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    nix::sys::stat::fstat(fd).ok().map(|stat| stat.st_ino)
}

/// Removes the directories in a directory, as far as they can be. Reads it by hand, as the library would allocate.
fn remove_children(dir: RawFd) {
    /// Offsets in the kernel's `struct linux_dirent64`.
    const LEN_AT: usize = 16;
    const NAME_AT: usize = 19;
    let mut entries = [0_u64; 512];
    // SAFETY: takes numbers. What was read before is read again.
    unsafe { libc::lseek(dir, 0, libc::SEEK_SET) };
    loop {
        let room = size_of_val(&entries);
        let buffer = entries.as_mut_ptr();
        // SAFETY: `buffer` has room for so many bytes, and is aligned for the entries.
        let got = unsafe { libc::syscall(libc::SYS_getdents64, dir, buffer, room) };
        let Ok(got @ 1..) = usize::try_from(got) else {
            return;
        };
        // SAFETY: the kernel has filled that many bytes of `entries`, which is borrowed for as long.
        let mut rest = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), got) };
        while let Some(len) = rest.get(LEN_AT..LEN_AT + 2) {
            let len = usize::from(u16::from_ne_bytes([len[0], len[1]]));
            let (Some(entry), Some(after)) = (rest.get(..len), rest.get(len..)) else {
                return;
            };
            if let Some(name) = entry.get(NAME_AT..)
                && let Ok(name) = CStr::from_bytes_until_nul(name)
            {
                // SAFETY: `name` is a C string. What is no directory, `.` and `..` are refused.
                unsafe { libc::unlinkat(dir, name.as_ptr(), libc::AT_REMOVEDIR) };
            }
            rest = after;
        }
    }
}
