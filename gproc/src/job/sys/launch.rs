//! Makes a process: born in its cgroup, without a copy of the daemon's memory.

use super::super::leader::REPORT_FD;
use super::super::protocol::{Credentials, Limit};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Pid, chdir, setsid};
use std::ffi::{CStr, CString, c_char, c_int, c_long};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Not a constant that every libc has in 64 bits.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The descriptor of a job's wire.
pub(in crate::job) const WIRE_FD: c_int = 3;

/// Runs files that are executable but have no format the kernel knows, as execvp(3) does.
const SHELL: &CStr = c"/bin/sh";

/// What a new process is to be. All of it is made before the process, which may not allocate.
pub(in crate::job) struct Launch<'a> {
    /// Files to try, in this order.
    pub(in crate::job) candidates: &'a [CString],
    /// Name and arguments.
    pub(in crate::job) argv: &'a [CString],
    /// `NAME=value` each.
    pub(in crate::job) env: &'a [CString],
    /// Working directory.
    pub(in crate::job) cwd: &'a CStr,
    /// What becomes descriptors 0, 1 and 2; numbers above 2.
    pub(in crate::job) stdio: [BorrowedFd<'a>; 3],
    /// The name of its machine, if it is not to be the host's.
    pub(in crate::job) host_name: Option<&'a [u8]>,
    /// What becomes descriptor 3. Descriptor 1 is then to be the terminal of its session.
    pub(in crate::job) report: Option<BorrowedFd<'a>>,
    /// What it keeps, under the same numbers, which are above 3.
    pub(in crate::job) kept: &'a [BorrowedFd<'a>],
    /// Its pid, if that is not for the kernel to choose.
    pub(in crate::job) pid: Option<Pid>,
    /// What becomes descriptor 3 of a process without a terminal.
    pub(in crate::job) wire: Option<BorrowedFd<'a>>,
    /// Open directory of its cgroup.
    pub(in crate::job) cgroup: Option<BorrowedFd<'a>>,
    /// Files that take the processes of further cgroups, to be entered once it lives.
    pub(in crate::job) entrances: &'a [BorrowedFd<'a>],
    /// Namespaces to be in.
    pub(in crate::job) namespaces: &'a [OwnedFd],
    /// As whom; `None`: as the daemon.
    pub(in crate::job) credentials: Option<&'a Credentials>,
    /// Limits; a hard one above the daemon's own is cut to it unless the daemon may raise it.
    pub(in crate::job) limits: &'a [Limit],
    /// Nice value.
    pub(in crate::job) nice: i32,
    /// Bits taken from the mode of new files.
    pub(in crate::job) umask: u32,
    /// It does not end with the thread that starts it.
    pub(in crate::job) outlives: bool,
    /// Signals to ignore, bit `n - 1` for signal `n`; all others get their default.
    pub(in crate::job) ignored: u64,
}

/// A step on the way to the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::job) enum Step {
    /// Making the process.
    Clone,
    /// Setting up its descriptors and session.
    Setup,
    /// Becoming the user.
    Credentials,
    /// Entering the working directory.
    Directory,
    /// Executing the program.
    Exec,
}

/// Why there is no new process.
#[derive(Clone, Copy, Debug)]
pub(in crate::job) struct LaunchError {
    pub(in crate::job) step: Step,
    pub(in crate::job) errno: Errno,
}

/// Starts a process in a session of its own; returns its pid and pidfd once it runs its program.
///
/// The child borrows our memory until its exec (as with vfork), because copying the page tables of a daemon with
/// large caches costs milliseconds and slows its other threads. It is born in its cgroup because moving it there
/// waits for a grace period of the kernel. Blocks as long as the exec does, which may be as long as a mount blocks.
/// The calling thread must live as long as the daemon: the child dies with it.
pub(in crate::job) fn launch(launch: &Launch<'_>) -> Result<(Pid, OwnedFd), LaunchError> {
    assert!(
        launch.stdio.iter().all(|fd| fd.as_raw_fd() > 2),
        "descriptors 0 to 2 of the daemon are in use"
    );
    let argv = pointers(launch.argv);
    let mut script_argv = vec![SHELL.as_ptr(), std::ptr::null()];
    script_argv.extend(argv.iter().skip(1));
    let mut shared = Shared {
        launch,
        argv,
        script_argv,
        env: pointers(launch.env),
        failed: None,
    };

    let mut pidfd: c_int = -1;
    let mut args = CloneArgs::for_child(&mut pidfd);
    args.flags |= u64::from((libc::CLONE_VM | libc::CLONE_VFORK).unsigned_abs());
    let pid = launch.pid.map(Pid::as_raw);
    if let Some(pid) = &pid {
        args.take_pid(pid);
    }
    if let Some(cgroup) = launch.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }

    // A handler of the daemon's must not run in the child, which borrows its memory.
    let mask = SigSet::all()
        .thread_swap_mask(SigmaskHow::SIG_SETMASK)
        .map_err(|errno| Step::Clone.failed(errno))?;
    // SAFETY: `args` and `shared` outlive the child's use of them, as this thread stands still until the exec or
    // the end of the child.
    let result = unsafe { clone_and_run(&args, &mut shared) };
    mask.thread_set_mask()
        .expect("a mask that was set before is valid");

    // The raw call returns the negative errno.
    let pid = i32::try_from(result).expect("pids and errno values are ints");
    if pid < 0 {
        return Err(Step::Clone.failed(Errno::from_raw(-pid)));
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let pid = Pid::from_raw(pid);
    match shared.failed {
        None => Ok((pid, pidfd)),
        Some(error) => {
            // It has ended already; this only takes it off the process table.
            nix::sys::wait::waitpid(pid, None).ok();
            Err(error)
        }
    }
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    let pointers = strings.iter().map(|string| string.as_ptr());
    pointers.chain([std::ptr::null()]).collect()
}

impl Step {
    pub(in crate::job) const fn failed(self, errno: Errno) -> LaunchError {
        LaunchError { step: self, errno }
    }
}

/// What the child works with, in the parent's memory.
struct Shared<'a> {
    launch: &'a Launch<'a>,
    argv: Vec<*const c_char>,
    /// The shell, room for the file, the arguments.
    script_argv: Vec<*const c_char>,
    env: Vec<*const c_char>,
    /// Written by the child.
    failed: Option<LaunchError>,
}

/// `struct clone_args` of clone3(2), in its version with the cgroup.
#[repr(C)]
#[derive(Default)]
pub(super) struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

impl CloneArgs {
    /// Makes those of a child whose pidfd goes there.
    pub(super) fn for_child(pidfd: &mut c_int) -> Self {
        Self {
            flags: u64::from(libc::CLONE_PIDFD.unsigned_abs()),
            pidfd: std::ptr::from_mut(pidfd) as u64,
            exit_signal: u64::from(libc::SIGCHLD.unsigned_abs()),
            ..Self::default()
        }
    }

    /// Has it get this pid.
    pub(super) fn take_pid(&mut self, pid: &i32) {
        self.set_tid = std::ptr::from_ref(pid) as u64;
        self.set_tid_size = 1;
    }
}

/// Clones; the child calls [`run`] and never comes back here.
///
/// The child uses this thread's stack below the present frame, so the call must come straight after the clone: a
/// return, or a branch the compiler knows of, could let the child overwrite what the parent still needs.
///
/// # Safety
/// `args` must ask for a clone that borrows the memory and suspends the parent.
#[cfg(target_arch = "x86_64")]
unsafe fn clone_and_run(args: &CloneArgs, shared: &mut Shared<'_>) -> c_long {
    let result: c_long;
    // SAFETY: as above. The stack is aligned for a call, and what the child changes in memory is written through
    // `shared` or below the stack pointer.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "mov rdi, r12",
            "call {run}",
            "ud2",
            "2:",
            run = sym run,
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") std::ptr::from_ref(args),
            in("rsi") size_of::<CloneArgs>(),
            in("r12") std::ptr::from_mut(shared).cast::<Shared<'static>>(),
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// As on x86-64.
///
/// # Safety
/// `args` must ask for a clone that borrows the memory and suspends the parent.
#[cfg(target_arch = "aarch64")]
unsafe fn clone_and_run(args: &CloneArgs, shared: &mut Shared<'_>) -> c_long {
    let result: c_long;
    // SAFETY: as on x86-64.
    unsafe {
        std::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x0, x20",
            "bl {run}",
            "brk 1",
            "2:",
            run = sym run,
            in("x8") libc::SYS_clone3,
            inlateout("x0") std::ptr::from_ref(args) => result,
            in("x1") size_of::<CloneArgs>(),
            in("x20") std::ptr::from_mut(shared).cast::<Shared<'static>>(),
            lateout("x30") _,
        );
    }
    result
}

/// The child's way to its program: nothing but system calls, since another thread may hold any lock.
extern "C" fn run(shared: &mut Shared<'static>) -> ! {
    let error = prepare(shared.launch).err();
    let error = error.unwrap_or_else(|| Step::Exec.failed(exec(shared)));
    shared.failed = Some(error);
    // SAFETY: ends the child at once, without the exit handlers of the memory it borrows.
    unsafe { libc::_exit(127) }
}

fn prepare(launch: &Launch<'_>) -> Result<(), LaunchError> {
    let setup = |errno| Step::Setup.failed(errno);
    setsid().map_err(setup)?;
    for entrance in launch.entrances {
        // 0 is who writes.
        nix::unistd::write(entrance, b"0").map_err(setup)?;
    }
    for (target, fd) in (0..).zip(&launch.stdio) {
        // SAFETY: the child's table of descriptors is its own, and 0 to 2 are not among the sources.
        let result = unsafe { libc::dup2(fd.as_raw_fd(), target) };
        Errno::result(result).map_err(setup)?;
    }
    // SAFETY: takes numbers. Descriptors of the daemon that lack the flag must not reach the program.
    let result = unsafe { libc::close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed()) };
    Errno::result(result).map_err(setup)?;
    for fd in launch.kept {
        keep_open(fd.as_raw_fd()).map_err(setup)?;
    }
    if let Some(report) = launch.report {
        take_terminal(report).map_err(setup)?;
    } else if let Some(wire) = launch.wire {
        keep_as(WIRE_FD, wire).map_err(setup)?;
    }

    if let Some(name) = launch.host_name {
        // A daemon without the right leaves the host's: no reason not to run.
        name_host(name).ok();
    }
    for namespace in launch.namespaces {
        setns(namespace, CloneFlags::empty()).map_err(setup)?;
    }
    for limit in launch.limits {
        set_limit(limit).map_err(setup)?;
    }
    // SAFETY: takes numbers. A daemon without the right to lower the value leaves it: no reason not to run.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, launch.nice) };
    umask(Mode::from_bits_truncate(launch.umask));

    if let Some(Credentials { uid, gid, groups }) = launch.credentials {
        let credentials = |errno| Step::Credentials.failed(errno);
        // The raw calls, because the C library's would change all threads that share this memory.
        // SAFETY: `groups` has as many elements as the count says.
        let result = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
        Errno::result(result).map_err(credentials)?;
        // SAFETY: takes numbers.
        let result = unsafe { libc::syscall(libc::SYS_setresgid, *gid, *gid, *gid) };
        Errno::result(result).map_err(credentials)?;
        // SAFETY: takes numbers.
        let result = unsafe { libc::syscall(libc::SYS_setresuid, *uid, *uid, *uid) };
        Errno::result(result).map_err(credentials)?;
    }
    // After the change of user, which clears it. The guardian ends the job with the daemon; this does so for the
    // program itself where there is no cgroup.
    if !launch.outlives {
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).map_err(setup)?;
    }

    for number in 1..=64 {
        let ignored = launch.ignored >> (number - 1) & 1 == 1;
        let handler = if ignored {
            libc::SIG_IGN
        } else {
            libc::SIG_DFL
        };
        // SAFETY: neither of the two runs code of ours. Numbers that cannot be set (9, 19, 32, 33) fail.
        unsafe { libc::signal(number, handler) };
    }
    chdir(launch.cwd).map_err(|errno| Step::Directory.failed(errno))?;
    SigSet::empty().thread_set_mask().map_err(setup)
}

/// Gives this process a machine of that name.
fn name_host(name: &[u8]) -> Result<(), Errno> {
    // SAFETY: takes a number.
    Errno::result(unsafe { libc::unshare(libc::CLONE_NEWUTS) })?;
    // SAFETY: `name` has that many bytes.
    Errno::result(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) })?;
    Ok(())
}

/// Makes descriptor 1 the terminal of this session, and `report` descriptor 3.
fn take_terminal(report: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: takes numbers: the terminal is not to be taken from another session.
    let result = unsafe { libc::ioctl(1, libc::TIOCSCTTY, 0) };
    Errno::result(result)?;
    keep_as(REPORT_FD, report)
}

/// Makes `fd` descriptor `number` of the program.
fn keep_as(number: c_int, fd: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: the child's table of descriptors is its own, and all of the daemon's in it go at the exec.
    let result = unsafe { libc::dup3(fd.as_raw_fd(), number, 0) };
    match Errno::result(result) {
        // It is there already.
        Err(Errno::EINVAL) => keep_open(number),
        other => other.map(drop),
    }
}

/// Has a descriptor stay open in the program.
fn keep_open(number: c_int) -> Result<(), Errno> {
    // SAFETY: takes numbers; the child's table of descriptors is its own.
    let result = unsafe { libc::fcntl(number, libc::F_SETFD, 0) };
    Errno::result(result).map(drop)
}

/// Sets a limit; one that only a mightier daemon could raise is cut to the daemon's own.
fn set_limit(limit: &Limit) -> Result<(), Errno> {
    let set = |soft, hard| {
        let new = libc::rlimit64 {
            rlim_cur: soft,
            rlim_max: hard,
        };
        // SAFETY: `new` outlives the call, and the old limit is not asked for.
        let result = unsafe {
            libc::prlimit64(0, limit.resource as _, &raw const new, std::ptr::null_mut())
        };
        Errno::result(result).map(drop)
    };
    match set(limit.soft, limit.hard) {
        Err(Errno::EPERM) => {}
        other => return other,
    }
    let mut own = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: no new limit is given, and `own` has room for the present one.
    let result = unsafe { libc::prlimit64(0, limit.resource as _, std::ptr::null(), &raw mut own) };
    Errno::result(result)?;
    let hard = limit.hard.min(own.rlim_max);
    set(limit.soft.min(hard), hard)
}

/// Tries the candidates as execvp(3) does; returns why none runs.
fn exec(shared: &mut Shared<'_>) -> Errno {
    let mut denied = false;
    for file in shared.launch.candidates {
        // SAFETY: all are C strings, and both arrays end with a null pointer.
        unsafe { libc::execve(file.as_ptr(), shared.argv.as_ptr(), shared.env.as_ptr()) };
        match Errno::last() {
            Errno::EACCES => denied = true,
            Errno::ENOENT
            | Errno::ENOTDIR
            | Errno::ENAMETOOLONG
            | Errno::ELOOP
            | Errno::ESTALE
            | Errno::ENODEV
            | Errno::ETIMEDOUT => {}
            Errno::ENOEXEC => {
                shared.script_argv[1] = file.as_ptr();
                let (argv, env) = (shared.script_argv.as_ptr(), shared.env.as_ptr());
                // SAFETY: as before.
                unsafe { libc::execve(SHELL.as_ptr(), argv, env) };
                return Errno::last();
            }
            other => return other,
        }
    }
    if denied { Errno::EACCES } else { Errno::ENOENT }
}
