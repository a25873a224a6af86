//! The leader of the session of a job that has a terminal: what a shell is for a program here.
//!
//! The kernel stops a program by the terminal only if its parent is in the same session but another process group.
//! The daemon cannot be that, so another process stands between: `glud` once more, as the job's user. It starts the
//! program as the terminal's foreground group, reports to the daemon how it fares through descriptor
//! [`REPORT_FD`], and ends as the program ended.

use super::sys;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::SigSet;
use nix::unistd::Pid;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::Command;

/// What makes `glud` a leader; the program and its arguments follow.
pub const ARGUMENT: &str = "--lead-session";

/// Where a leader reports.
pub(super) const REPORT_FD: i32 = 3;

/// Exit status of a leader whose program did not start; the report says why.
const NOT_STARTED_STATUS: i32 = 127;

/// How the program fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Report {
    /// It runs, with this pid.
    Running(Pid),
    /// It does not start.
    NotStarted(Errno),
    /// A signal stopped it.
    Stopped(i32),
}

/// Bytes of a report.
pub(super) const REPORT_BYTES: usize = 8;

impl Report {
    fn encode(self) -> [u8; REPORT_BYTES] {
        let (kind, value) = match self {
            Self::Running(pid) => (1_u32, pid.as_raw()),
            Self::NotStarted(errno) => (2, errno as i32),
            Self::Stopped(signal) => (3, signal),
        };
        let mut bytes = [0; REPORT_BYTES];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[4..].copy_from_slice(&value.to_le_bytes());
        bytes
    }

    /// Reads a report, which comes from a process of the job's user.
    pub(super) fn decode(bytes: [u8; REPORT_BYTES]) -> io::Result<Self> {
        let [a, b, c, d, e, f, g, h] = bytes;
        let value = i32::from_le_bytes([e, f, g, h]);
        match (u32::from_le_bytes([a, b, c, d]), value) {
            (1, 2..) => Ok(Self::Running(Pid::from_raw(value))),
            (2, _) => Ok(Self::NotStarted(Errno::from_raw(value))),
            (3, 1..=64) => Ok(Self::Stopped(value)),
            _ => {
                let why = "the leader of a session reports nonsense";
                Err(io::Error::new(io::ErrorKind::InvalidData, why))
            }
        }
    }

    /// Waits for the next report.
    pub(super) fn read(mut from: impl Read) -> io::Result<Self> {
        let mut bytes = [0; REPORT_BYTES];
        from.read_exact(&mut bytes)?;
        Self::decode(bytes)
    }
}

/// Is the leader of a session, whose terminal is descriptor 1.
pub fn main(argv: impl IntoIterator<Item = OsString>) -> ! {
    let mut report = io::PipeWriter::from(sys::take_descriptor(REPORT_FD));
    fcntl(&report, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok();
    // What the terminal sends is for the program, and nobody else sends the leader anything.
    SigSet::all().thread_block().ok();
    let program = match start(argv) {
        Ok(program) => program,
        Err(error) => {
            let errno = Errno::from_raw(error.raw_os_error().unwrap_or(libc::EINVAL));
            report.write_all(&Report::NotStarted(errno).encode()).ok();
            std::process::exit(NOT_STARTED_STATUS)
        }
    };
    // An input that the program closes is to have no reader left.
    sys::close_standard_descriptors();
    report.write_all(&Report::Running(program).encode()).ok();
    loop {
        match sys::await_child(program) {
            Ok(sys::Change::Stopped(signal)) => {
                // Where the daemon is gone its guardian ends the job.
                report.write_all(&Report::Stopped(signal).encode()).ok();
            }
            Ok(sys::Change::Exited(status)) => std::process::exit(status),
            Ok(sys::Change::Killed(signal)) => sys::die_by(signal),
            Err(_) => std::process::exit(NOT_STARTED_STATUS),
        }
    }
}

fn start(argv: impl IntoIterator<Item = OsString>) -> io::Result<Pid> {
    let mut argv = argv.into_iter();
    let program = argv.next().ok_or(Errno::ENOENT)?;
    let mut command = Command::new(program);
    command.args(argv);
    let terminal = io::stdout().as_fd().try_clone_to_owned()?;
    sys::start_in_foreground(&mut command, terminal);
    let program = command.spawn()?;
    Ok(Pid::from_raw(program.id().cast_signed()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_read_as_they_were_written() {
        for report in [
            Report::Running(Pid::from_raw(4_000_000)),
            Report::NotStarted(Errno::ENOENT),
            Report::Stopped(libc::SIGTSTP),
        ] {
            let bytes = report.encode();
            assert_eq!(Report::read(&bytes[..]).expect("a report"), report);
        }
        for nonsense in [[0; 8], [1, 0, 0, 0, 0, 0, 0, 0], [3, 0, 0, 0, 65, 0, 0, 0]] {
            Report::decode(nonsense).expect_err("is refused");
        }
        Report::read(&b"short"[..]).expect_err("is refused");
    }
}
