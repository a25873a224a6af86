//! What becomes of a call that the kernel holds.

use crate::table::{self, Process};
use gproc::pids::ClusterPid;
use nix::errno::Errno;
use std::path::Path;

/// A held call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// kill(2).
    Kill { pid: i32, number: i32 },
    /// What other nodes' kernels do not offer here.
    Unsupported { pid: i32 },
}

/// How it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// With success.
    Done,
    /// With an error.
    Failed(Errno),
    /// As if it had not been held: the cluster knows no such process. This kernel may, for it has given out a number
    /// beyond its range, or has one from before the daemon.
    Kernel,
}

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
            libc::SYS_pidfd_open => Some(Self::Unsupported { pid: arg(0) }),
            libc::SYS_ptrace => Some(Self::Unsupported { pid: arg(1) }),
            _ => None,
        }
    }

    /// Carries it out, with the credentials that this thread has for files.
    pub(super) fn carry_out(self, root: &Path) -> Answer {
        let (pid, number) = match self {
            Self::Kill { pid, number } => (pid, Some(number)),
            Self::Unsupported { pid } => (pid, None),
        };
        let group = pid < 0;
        let pid = pid.checked_abs().map(ClusterPid::try_from);
        let Some(Ok(pid)) = pid else {
            return Answer::Kernel;
        };
        let sent = match (Process::open(root, pid), number) {
            (Ok(_), None) => return Answer::Failed(Errno::EOPNOTSUPP),
            (Ok(process), Some(number)) => {
                let file = if group { "notepg" } else { "note" };
                process.order(file, &number.to_string())
            }
            // A group may outlive its leader; it alone knows.
            (Err(Errno::ESRCH), Some(number)) if group => {
                match table::note_group(root, pid, number) {
                    Err(Errno::ESRCH) => return Answer::Kernel,
                    sent => sent,
                }
            }
            (Err(Errno::ESRCH), _) => return Answer::Kernel,
            (Err(error), _) => Err(error),
        };
        match sent {
            Ok(()) => Answer::Done,
            Err(error) => Answer::Failed(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(call: Call, expected: Answer, note: &str, notepg: &str) {
        let root = tempfile::tempdir().expect("a directory");
        let dir = root.path().join("70000");
        std::fs::create_dir(&dir).expect("made");
        for file in ["note", "notepg"] {
            std::fs::write(dir.join(file), "").expect("written");
        }
        assert_eq!(call.carry_out(root.path()), expected);
        let read = |file| std::fs::read_to_string(dir.join(file)).expect("is there");
        assert_eq!((&*read("note"), &*read("notepg")), (note, notepg));
    }

    #[test]
    fn signals_go_to_processes_and_groups() {
        let kill = |pid, number| Call::Kill { pid, number };
        check(kill(70_000, 15), Answer::Done, "15", "");
        check(kill(-70_000, 0), Answer::Done, "", "0");
        for pid in [70_001, -70_001, 1, i32::MIN] {
            check(kill(pid, 9), Answer::Kernel, "", "");
        }
        let root = tempfile::tempdir().expect("a directory");
        let notepg = root.path().join("cluster/notepg");
        std::fs::create_dir(root.path().join("cluster")).expect("made");
        std::fs::write(&notepg, "").expect("written");
        let left = kill(-70_001, 9).carry_out(root.path());
        let written = std::fs::read_to_string(&notepg).expect("is there");
        assert_eq!((left, &*written), (Answer::Done, "70001 9"));
        let trace = |pid| Call::Unsupported { pid };
        check(trace(70_000), Answer::Failed(Errno::EOPNOTSUPP), "", "");
        check(trace(70_001), Answer::Kernel, "", "");
    }

    #[test]
    fn calls_are_read_from_registers() {
        let group = u64::from((-70_000_i32).cast_unsigned());
        let of = |number: i64, args: [u64; 2]| {
            let number = i32::try_from(number).expect("small");
            Call::of(number, [args[0], args[1], 7, 7, 7, 7])
        };
        let kill = Call::Kill {
            pid: -70_000,
            number: 9,
        };
        assert_eq!(of(libc::SYS_kill, [group, 9]), Some(kill));
        let unsupported = Some(Call::Unsupported { pid: 70_000 });
        assert_eq!(of(libc::SYS_ptrace, [16, 70_000]), unsupported);
        assert_eq!(of(libc::SYS_pidfd_open, [70_000, 0]), unsupported);
        assert_eq!(of(libc::SYS_getpid, [0, 0]), None);
    }
}
