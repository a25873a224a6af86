//! What becomes of a call that the kernel holds.

use crate::table::{self, Process};
use gproc::pids::ClusterPid;
use nix::errno::Errno;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A held call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// kill(2).
    Kill { pid: i32, number: i32 },
    /// pidfd_open(2).
    Open { pid: i32, flags: u32 },
    /// pidfd_send_signal(2).
    SignalBy {
        fd: i32,
        number: i32,
        /// It has a siginfo, which cannot be had from here.
        info: bool,
        flags: u32,
    },
    /// waitid(2) of a descriptor.
    WaitBy { fd: i32, options: i32 },
    /// What other nodes' kernels do not offer here.
    Unsupported { pid: i32 },
}

/// How it ends.
#[derive(Debug)]
pub(super) enum Answer {
    /// With success.
    Done,
    /// With an error.
    Failed(Errno),
    /// With a new descriptor.
    Descriptor(OwnedFd),
    /// As if it had not been held: the cluster knows no such process. This kernel may, for it has given out a number
    /// beyond its range, or has one from before the daemon.
    Kernel,
}

/// A process of the cluster that a descriptor of a caller stands for: its directory, or its `wait`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meant {
    pid: ClusterPid,
    inode: u64,
    /// It is what pidfd_open(2) gives. To the kernel, too, a directory is not good for everything.
    is_pidfd: bool,
}

/// What waitid(2) may be asked for, and how.
const WAIT_FOR: i32 = libc::WEXITED | libc::WSTOPPED | libc::WCONTINUED;
const WAIT_HOW: i32 =
    libc::WNOHANG | libc::WNOWAIT | libc::__WNOTHREAD | libc::__WCLONE | libc::__WALL;

impl Call {
    /// Reads a call's number and arguments.
    pub(super) fn of(number: i32, args: [u64; 6]) -> Option<Self> {
        // The kernel, too, takes the lower half.
        #[allow(clippy::cast_possible_truncation)]
        let arg = |index: usize| (args[index] as u32).cast_signed();
        match i64::from(number) {
            libc::SYS_kill => Some(Self::Kill {
                pid: arg(0),
                number: arg(1),
            }),
            libc::SYS_pidfd_open => Some(Self::Open {
                pid: arg(0),
                flags: arg(1).cast_unsigned(),
            }),
            libc::SYS_pidfd_send_signal => Some(Self::SignalBy {
                fd: arg(0),
                number: arg(1),
                info: args[2] != 0,
                flags: arg(3).cast_unsigned(),
            }),
            libc::SYS_waitid if arg(0).cast_unsigned() == libc::P_PIDFD => Some(Self::WaitBy {
                fd: arg(1),
                options: arg(3),
            }),
            libc::SYS_ptrace => Some(Self::Unsupported { pid: arg(1) }),
            // Of a user: no process is named.
            libc::SYS_getpriority | libc::SYS_setpriority
                if arg(0).cast_unsigned() == libc::PRIO_USER =>
            {
                None
            }
            libc::SYS_getpriority | libc::SYS_setpriority => {
                Some(Self::Unsupported { pid: arg(1) })
            }
            libc::SYS_tgkill
            | libc::SYS_tkill
            | libc::SYS_rt_sigqueueinfo
            | libc::SYS_rt_tgsigqueueinfo
            | libc::SYS_sched_getaffinity
            | libc::SYS_sched_setaffinity
            | libc::SYS_prlimit64 => Some(Self::Unsupported { pid: arg(0) }),
            _ => None,
        }
    }

    /// Returns what the descriptor of a thread's call stands for; `None` if it has none, or it is none of the tree.
    pub(super) fn meant(self, thread: u32, root: &Path) -> Option<Meant> {
        let (Self::SignalBy { fd, .. } | Self::WaitBy { fd, .. }) = self else {
            return None;
        };
        Meant::read(Path::new(&format!("/proc/{thread}/fd/{fd}")), root)
    }

    /// Carries it out, with the credentials that this thread has for files.
    pub(super) fn carry_out(self, meant: Option<Meant>, root: &Path) -> Answer {
        match self {
            Self::Kill { pid, number } => kill(pid, number, root),
            Self::Open { pid, flags } => match lookup(pid, root) {
                Ok(_) if flags & !libc::PIDFD_NONBLOCK != 0 => Answer::Failed(Errno::EINVAL),
                Ok(process) => match process.watch() {
                    Ok(watch) => Answer::Descriptor(watch),
                    Err(error) => Answer::Failed(error),
                },
                Err(answer) => answer,
            },
            Self::SignalBy {
                number,
                info,
                flags,
                ..
            } => match meant {
                None => Answer::Kernel,
                Some(_) if flags != 0 => Answer::Failed(Errno::EINVAL),
                Some(_) if info => Answer::Failed(Errno::EOPNOTSUPP),
                Some(meant) => meant.signal(number, root).into(),
            },
            Self::WaitBy { options, .. } => match meant {
                Some(Meant { is_pidfd: true, .. }) => Answer::Failed(wait(options)),
                // It has no process there, and says so.
                _ => Answer::Kernel,
            },
            Self::Unsupported { pid } => match lookup(pid, root) {
                Ok(_) => Answer::Failed(Errno::EOPNOTSUPP),
                Err(answer) => answer,
            },
        }
    }
}

impl From<Result<(), Errno>> for Answer {
    fn from(done: Result<(), Errno>) -> Self {
        done.map_or_else(Self::Failed, |()| Self::Done)
    }
}

impl Meant {
    /// Reads a link to an open file.
    fn read(link: &Path, root: &Path) -> Option<Self> {
        let file = fs::metadata(link).ok()?;
        if file.dev() != fs::metadata(root).ok()?.dev() {
            return None;
        }
        // How it ends is the same in every mount namespace; which process that is the inode tells.
        let path = fs::read_link(link).ok()?;
        let name = path.file_name()?.as_bytes();
        // So the kernel calls what has ended.
        let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
        let is_pidfd = name == b"wait";
        let dir = match is_pidfd {
            true => path.parent()?.file_name()?.as_bytes(),
            false => name,
        };
        let pid = ClusterPid::parse(dir)?;
        let inode = file.ino();
        Some(Self {
            pid,
            inode,
            is_pidfd,
        })
    }

    fn signal(self, number: i32, root: &Path) -> Result<(), Errno> {
        let process = Process::open(root, self.pid)?;
        if !process.is(self.inode)? {
            return Err(Errno::ESRCH);
        }
        process.order("note", &number.to_string())
    }
}

/// Looks a process up; an error is how the call ends.
fn lookup(pid: i32, root: &Path) -> Result<Process, Answer> {
    let pid = ClusterPid::try_from(pid).map_err(|_| Answer::Kernel)?;
    Process::open(root, pid).map_err(|error| match error {
        Errno::ESRCH => Answer::Kernel,
        error => Answer::Failed(error),
    })
}

/// Says how waitid(2) fails for a process that is nobody's child here.
fn wait(options: i32) -> Errno {
    if options & WAIT_FOR == 0 || options & !(WAIT_FOR | WAIT_HOW) != 0 {
        Errno::EINVAL
    } else {
        Errno::ECHILD
    }
}

fn kill(pid: i32, number: i32, root: &Path) -> Answer {
    let group = pid < 0;
    let pid = pid.checked_abs().map(ClusterPid::try_from);
    let Some(Ok(pid)) = pid else {
        return Answer::Kernel;
    };
    let sent = match Process::open(root, pid) {
        Ok(process) => {
            let file = if group { "notepg" } else { "note" };
            process.order(file, &number.to_string())
        }
        // A group may outlive its leader; it alone knows.
        Err(Errno::ESRCH) if group => match table::note_group(root, pid, number) {
            Err(Errno::ESRCH) => return Answer::Kernel,
            sent => sent,
        },
        Err(Errno::ESRCH) => return Answer::Kernel,
        Err(error) => Err(error),
    };
    sent.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    /// Says how a call ends.
    fn said(answer: &Answer) -> String {
        match answer {
            Answer::Descriptor(_) => "Descriptor".into(),
            other => format!("{other:?}"),
        }
    }

    #[track_caller]
    fn check(call: Call, expected: &str, note: &str, notepg: &str) {
        let root = tree();
        let answer = call.carry_out(None, root.path());
        assert_eq!(said(&answer), expected, "{call:?}");
        let read = |file| fs::read_to_string(root.path().join("70000").join(file)).expect("there");
        assert_eq!((&*read("note"), &*read("notepg")), (note, notepg));
    }

    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        let dir = root.path().join("70000");
        fs::create_dir(&dir).expect("made");
        for file in ["note", "notepg", "wait"] {
            fs::write(dir.join(file), "").expect("written");
        }
        root
    }

    #[test]
    fn signals_go_to_processes_and_groups() {
        let kill = |pid, number| Call::Kill { pid, number };
        check(kill(70_000, 15), "Done", "15", "");
        check(kill(-70_000, 0), "Done", "", "0");
        for pid in [70_001, -70_001, 1, i32::MIN] {
            check(kill(pid, 9), "Kernel", "", "");
        }
        let root = tempfile::tempdir().expect("a directory");
        let notepg = root.path().join("cluster/notepg");
        fs::create_dir(root.path().join("cluster")).expect("made");
        fs::write(&notepg, "").expect("written");
        let left = kill(-70_001, 9).carry_out(None, root.path());
        let written = fs::read_to_string(&notepg).expect("is there");
        assert_eq!((said(&left), &*written), ("Done".into(), "70001 9"));
        let trace = |pid| Call::Unsupported { pid };
        check(trace(70_000), "Failed(EOPNOTSUPP)", "", "");
        check(trace(70_001), "Kernel", "", "");
    }

    #[test]
    fn descriptors_stand_for_processes() {
        let open = |pid, flags| Call::Open { pid, flags };
        check(open(70_000, 0), "Descriptor", "", "");
        check(open(70_000, libc::PIDFD_NONBLOCK), "Descriptor", "", "");
        check(open(70_000, 1), "Failed(EINVAL)", "", "");
        check(open(70_001, 0), "Kernel", "", "");
        let root = tree();
        let dir = root.path().join("70000");
        let here = std::process::id();
        let through = |file: &fs::File, info, flags| {
            let call = Call::SignalBy {
                fd: file.as_raw_fd(),
                number: 15,
                info,
                flags,
            };
            let meant = call.meant(here, root.path());
            said(&call.carry_out(meant, root.path()))
        };
        let wait = |file: &fs::File, options| {
            let fd = file.as_raw_fd();
            let call = Call::WaitBy { fd, options };
            said(&call.carry_out(call.meant(here, root.path()), root.path()))
        };
        let opened = |path: &Path| fs::File::open(path).expect("there");
        for path in [dir.clone(), dir.join("wait")] {
            let file = opened(&path);
            assert_eq!(through(&file, false, 0), "Done", "{path:?}");
            assert_eq!(through(&file, true, 0), "Failed(EOPNOTSUPP)");
            assert_eq!(through(&file, false, 1), "Failed(EINVAL)");
        }
        assert_eq!(fs::read_to_string(dir.join("note")).expect("there"), "15");
        // No process of another node is a child here.
        let watch = opened(&dir.join("wait"));
        for (options, expected) in [
            (libc::WEXITED, "Failed(ECHILD)"),
            (libc::WSTOPPED | libc::WNOHANG, "Failed(ECHILD)"),
            (libc::WNOHANG, "Failed(EINVAL)"),
            (libc::WEXITED | 1 << 20, "Failed(EINVAL)"),
        ] {
            assert_eq!(wait(&watch, options), expected, "{options:#x}");
        }
        assert_eq!(wait(&opened(&dir), libc::WEXITED), "Kernel");
        // Another file of the tree is no process, nor is one elsewhere.
        assert_eq!(through(&opened(&dir.join("note")), false, 0), "Kernel");
        assert_eq!(
            through(&opened(Path::new("/proc/self")), false, 0),
            "Kernel"
        );
        // A later process of the same number is another one, whatever was opened of the earlier one.
        let old = opened(&dir);
        fs::rename(&dir, root.path().join("70001")).expect("moved");
        fs::rename(root.path().join("70001"), root.path().join("kept")).expect("moved");
        let meant = Meant {
            pid: ClusterPid::parse(b"70000").expect("a pid"),
            inode: old.metadata().expect("there").ino(),
            is_pidfd: false,
        };
        assert_eq!(meant.signal(9, root.path()), Err(Errno::ESRCH));
        fs::create_dir(&dir).expect("made");
        fs::write(dir.join("wait"), "").expect("written");
        assert_eq!(meant.signal(9, root.path()), Err(Errno::ESRCH));
        for path in [dir.clone(), dir.join("wait")] {
            let file = opened(&path);
            match path.is_dir() {
                true => fs::remove_dir_all(&path).expect("removed"),
                false => fs::remove_file(&path).expect("removed"),
            }
            assert_eq!(through(&file, false, 0), "Failed(ESRCH)", "{path:?}");
            fs::create_dir_all(&dir).expect("made");
            fs::write(dir.join("wait"), "").expect("written");
        }
    }

    #[test]
    fn calls_are_read_from_registers() {
        let group = u64::from((-70_000_i32).cast_unsigned());
        let of = |number: i64, args: [u64; 2]| {
            let number = i32::try_from(number).expect("small");
            Call::of(number, [args[0], args[1], 0, 7, 7, 7])
        };
        let kill = Call::Kill {
            pid: -70_000,
            number: 9,
        };
        assert_eq!(of(libc::SYS_kill, [group, 9]), Some(kill));
        let unsupported = Some(Call::Unsupported { pid: 70_000 });
        assert_eq!(of(libc::SYS_ptrace, [16, 70_000]), unsupported);
        assert_eq!(of(libc::SYS_tgkill, [70_000, 70_001]), unsupported);
        assert_eq!(of(libc::SYS_setpriority, [0, 70_000]), unsupported);
        let user = u64::from(libc::PRIO_USER);
        assert_eq!(of(libc::SYS_setpriority, [user, 70_000]), None);
        let open = Call::Open {
            pid: 70_000,
            flags: 0,
        };
        assert_eq!(of(libc::SYS_pidfd_open, [70_000, 0]), Some(open));
        let through = Call::SignalBy {
            fd: 3,
            number: 9,
            info: false,
            flags: 7,
        };
        assert_eq!(of(libc::SYS_pidfd_send_signal, [3, 9]), Some(through));
        let wait = Call::WaitBy { fd: 3, options: 7 };
        let by_descriptor = u64::from(libc::P_PIDFD);
        assert_eq!(of(libc::SYS_waitid, [by_descriptor, 3]), Some(wait));
        assert_eq!(of(libc::SYS_waitid, [u64::from(libc::P_PID), 3]), None);
        assert_eq!(of(libc::SYS_getpid, [0, 0]), None);
    }
}
