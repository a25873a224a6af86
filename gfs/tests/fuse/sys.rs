//! What has no safe wrapper: signals to threads, opening by number.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::thread::JoinHandleExt;
use std::thread::JoinHandle;

extern "C" fn nothing(_: libc::c_int) {}

/// Makes SIGUSR1 a signal that this process survives and that restarts no system call.
pub fn survive_usr1() {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    let action = SigAction::new(
        SigHandler::Handler(nothing),
        SaFlags::empty(),
        SigSet::empty(),
    );
    // SAFETY: the handler does nothing, so it may run anywhere.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.expect("SIGUSR1 can be handled");
}

/// Sends SIGUSR1 to a thread of this process that has not been joined.
pub fn send_usr1<T>(thread: &JoinHandle<T>) {
    // SAFETY: the handle is not joined, so its thread's id is still valid.
    let sent = unsafe { libc::pthread_kill(thread.as_pthread_t(), libc::SIGUSR1) };
    assert_eq!(sent, 0, "SIGUSR1 can be sent to a thread");
}

/// A handle of the kernel's FUSE: number and generation.
#[repr(C)]
struct FuseHandle {
    bytes: u32,
    kind: i32,
    number: [u32; 2],
    generation: u32,
}

/// Opens an inode of a FUSE mount that its kernel has in memory.
pub fn open_fuse_inode(mount: &impl AsFd, number: u64, flags: i32) -> io::Result<OwnedFd> {
    let handle = FuseHandle {
        bytes: 12,
        kind: 0x81,
        #[allow(clippy::cast_possible_truncation, reason = "both halves")]
        number: [(number >> 32) as u32, number as u32],
        generation: 0,
    };
    let mount = mount.as_fd().as_raw_fd();
    // SAFETY: open_by_handle_at reads a handle whose header tells its size; the descriptor is open.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount,
            &raw const handle,
            flags | libc::O_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // SAFETY: the kernel has just returned this descriptor to this caller alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Loads the page at `offset` of a file through a mapping; an error instead of SIGBUS.
pub fn load_page(file: &impl AsFd, offset: u32) -> io::Result<()> {
    use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
    const PAGE: usize = 4096;
    let len = PAGE.try_into().expect("not empty");
    let (read, shared) = (ProtFlags::PROT_READ, MapFlags::MAP_SHARED);
    // SAFETY: a fresh mapping that nothing else refers to.
    let page = unsafe { mmap(None, len, read, shared, file, offset.into()) }?;
    // SAFETY: madvise is given the mapping that was just made.
    let loaded = unsafe { libc::madvise(page.as_ptr(), PAGE, libc::MADV_POPULATE_READ) };
    let error = io::Error::last_os_error();
    // SAFETY: unmaps what was mapped above, once.
    unsafe { munmap(page, PAGE) }?;
    if loaded == 0 { Ok(()) } else { Err(error) }
}

/// Has the calling thread run on one processor, and only when nobody else wants it.
pub fn run_last_on(processor: usize) {
    run_on(processor);
    let nothing = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters outlive the call; 0 is the calling thread.
    let set = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const nothing) };
    assert_eq!(set, 0, "a thread may always ask for less");
}

/// Has the calling thread run on one processor.
pub fn run_on(processor: usize) {
    let mut set = nix::sched::CpuSet::new();
    set.set(processor).expect("a small number");
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).expect("it is there");
}

/// Returns the size of a file, which the file system is asked for whatever the kernel knows.
pub fn size_asked_for(file: &impl AsFd) -> io::Result<u64> {
    let mut found = std::mem::MaybeUninit::<libc::statx>::zeroed();
    let how = libc::AT_EMPTY_PATH | libc::AT_STATX_FORCE_SYNC;
    let fd = file.as_fd().as_raw_fd();
    let size = libc::STATX_SIZE;
    // SAFETY: statx fills the buffer, which lives through the call; the path is empty and ends in NUL.
    let result = unsafe { libc::statx(fd, c"".as_ptr(), how, size, found.as_mut_ptr()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: numbers alone, zeroed before the call.
    Ok(unsafe { found.assume_init() }.stx_size)
}
