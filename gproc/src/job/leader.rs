//! The leader of the session of a job that has a terminal: what a shell is for a program here.
//!
//! The kernel stops a program by the terminal only if its parent is in the same session but another process group.
//! The daemon cannot be that, so another process stands between: `glud` once more, as the job's user. It starts the
//! program as the terminal's foreground group, reports to the daemon how it fares through descriptor
//! [`REPORT_FD`], and ends as the program ended.

use super::protocol::Credentials;
use super::sys;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use nix::unistd::Pid;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// What makes `glud` a leader; the program and its arguments follow.
pub const ARGUMENT: &str = "--lead-session";

/// What makes `glud` the leader of a session that has moved; [`Again`] follows.
pub const AGAIN_ARGUMENT: &str = "--lead-session-again";

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
    /// It is made again, with this pid, and waits.
    Waits(Pid),
}

/// Bytes of a report.
pub(super) const REPORT_BYTES: usize = 8;

impl Report {
    fn encode(self) -> [u8; REPORT_BYTES] {
        let (kind, value) = match self {
            Self::Running(pid) => (1_u32, pid.as_raw()),
            Self::NotStarted(errno) => (2, errno as i32),
            Self::Stopped(signal) => (3, signal),
            Self::Waits(pid) => (4, pid.as_raw()),
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
            (4, 2..) => Ok(Self::Waits(Pid::from_raw(value))),
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
    let report = begin();
    let program = start(argv);
    lead(report, program)
}

/// Is the leader of a session that has moved.
pub fn main_again(argv: impl IntoIterator<Item = OsString>) -> ! {
    let report = begin();
    let program = Again::parse(argv).and_then(|again| again.start(&report));
    lead(report, program)
}

fn begin() -> io::PipeWriter {
    let report = io::PipeWriter::from(sys::take_descriptor(REPORT_FD));
    fcntl(&report, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok();
    // What the terminal sends is for the program, and nobody else sends the leader anything.
    SigSet::all().thread_block().ok();
    report
}

fn lead(mut report: io::PipeWriter, program: io::Result<Pid>) -> ! {
    let program = match program {
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

/// What the leader of a session that has moved is to do: have CRIU make the program again, as its child, with the terminal that it
/// has from this session. A process that CRIU makes leader of a session gets a terminal, but those below it do not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Again {
    pub(super) program: i32,
    /// The process group that has the terminal.
    pub(super) foreground: i32,
    pub(super) user: Credentials,
    /// A fifo that CRIU's script writes to when all is made.
    pub(super) ready: PathBuf,
    /// CRIU, and its arguments.
    pub(super) criu: Vec<OsString>,
}

impl Again {
    /// Returns the arguments for it.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let Credentials { uid, gid, groups } = &self.user;
        let groups: Vec<String> = groups.iter().map(ToString::to_string).collect();
        let own = [
            self.program.to_string(),
            self.foreground.to_string(),
            uid.to_string(),
            gid.to_string(),
            groups.join(","),
        ];
        let own = own.into_iter().map(OsString::from);
        own.chain([self.ready.clone().into_os_string()])
            .chain(self.criu.iter().cloned())
            .collect()
    }

    fn parse(argv: impl IntoIterator<Item = OsString>) -> io::Result<Self> {
        let mut argv = argv.into_iter();
        let mut next = || argv.next().ok_or(Errno::EINVAL);
        let number = |text: OsString| {
            let number = text.to_str().and_then(|text| text.parse::<u32>().ok());
            number.ok_or(Errno::EINVAL)
        };
        let (program, foreground) = (number(next()?)?, number(next()?)?);
        let (uid, gid, groups) = (number(next()?)?, number(next()?)?, next()?);
        let groups = groups.to_string_lossy().into_owned();
        let groups = groups.split(',').filter(|group| !group.is_empty());
        Ok(Self {
            program: program.cast_signed(),
            foreground: foreground.cast_signed(),
            user: Credentials {
                uid,
                gid,
                groups: groups
                    .map(|group| number(group.into()))
                    .collect::<Result<_, _>>()?,
            },
            ready: next()?.into(),
            criu: argv.collect(),
        })
    }

    /// Has CRIU make the program, tells when it waits, and returns once it runs. Whoever is told has CRIU go on.
    fn start(&self, mut report: &io::PipeWriter) -> io::Result<Pid> {
        let program = Pid::from_raw(self.program);
        let mut options = std::fs::File::options();
        let ready = options.read(true).custom_flags(libc::O_NONBLOCK);
        let ready = ready.open(&self.ready)?;
        let (criu, arguments) = self.criu.split_first().ok_or(Errno::EINVAL)?;
        let mut command = Command::new(criu);
        // CRIU takes the terminal for the program from descriptor 0.
        command
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        sys::start_with_signals(&mut command);
        let mut criu = command.spawn()?;
        // What CRIU is to give to the program is not to be held here.
        sys::close_above(ready.as_raw_fd(), REPORT_FD)?;
        if !is_ready(&ready, &criu)? {
            criu.wait()?;
            return Err(Errno::ECHILD.into());
        }
        let terminal = io::stdin();
        if self.foreground > 1 {
            // A group that has no process any more has the terminal no more.
            nix::unistd::tcsetpgrp(&terminal, Pid::from_raw(self.foreground)).ok();
        }
        report.write_all(&Report::Waits(program).encode())?;
        if !criu.wait()?.success() {
            return Err(Errno::ECHILD.into());
        }
        sys::become_user(&self.user)?;
        // It was stopped before it moved, and who waits for it knows.
        sys::forget_stop(program);
        Ok(program)
    }
}

/// Waits until CRIU's script has written; `false`: CRIU has ended without.
fn is_ready(ready: &std::fs::File, criu: &Child) -> io::Result<bool> {
    let criu = crate::sys::pidfd_open(criu.id().cast_signed())?;
    loop {
        let mut fds = [
            PollFd::new(ready.as_fd(), PollFlags::POLLIN),
            PollFd::new(criu.as_fd(), PollFlags::POLLIN),
        ];
        // Whoever has started this ends it when it takes too long.
        poll(&mut fds, PollTimeout::NONE)?;
        let [ready, criu] = fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        if ready.contains(PollFlags::POLLIN) {
            return Ok(true);
        }
        if criu.contains(PollFlags::POLLIN) {
            return Ok(false);
        }
        // The script has it open, and has not written yet.
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_understands_what_it_is_to_do() {
        for groups in [vec![], vec![4, 5]] {
            let again = Again {
                program: 70_000,
                foreground: 0,
                user: Credentials {
                    uid: 1000,
                    gid: 100,
                    groups,
                },
                ready: "/dev/shm/x/ready".into(),
                criu: vec!["criu".into(), "restore".into()],
            };
            assert_eq!(Again::parse(again.arguments()).expect("understood"), again);
            for len in 0..6 {
                let short = again.arguments().into_iter().take(len);
                Again::parse(short).expect_err("is refused");
            }
        }
    }

    #[test]
    fn reports_are_read_as_they_were_written() {
        for report in [
            Report::Running(Pid::from_raw(4_000_000)),
            Report::NotStarted(Errno::ENOENT),
            Report::Stopped(libc::SIGTSTP),
            Report::Waits(Pid::from_raw(4_000_000)),
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
