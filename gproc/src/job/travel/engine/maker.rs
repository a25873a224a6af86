//! Who makes a copy: CRIU, as a child of this daemon, or of the leader of the session that the copy is to be in.

use super::super::super::group::Group;
use super::super::super::leader::{AGAIN_ARGUMENT, Again, REPORT_BYTES, Report};
use super::super::super::protocol::Credentials;
use super::super::super::sys::{self, Launch};
use super::WITHIN;
use super::helper::{Helper, Start, c_string, environment};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The session that a copy with a terminal is to be in.
#[derive(Debug)]
pub(in super::super) struct Session {
    /// The program that leads it.
    pub(in super::super) exe: PathBuf,
    /// Its pid.
    pub(in super::super) leader: i32,
    pub(in super::super) program: i32,
    /// The process group that has the terminal.
    pub(in super::super) foreground: i32,
    /// As whom it leads.
    pub(in super::super) user: Credentials,
    /// The job's end of the terminal.
    pub(in super::super) terminal: OwnedFd,
}

#[derive(Debug)]
pub(super) enum Maker {
    Criu {
        criu: Helper,
        /// Its script writes here when the copy waits.
        ready: File,
    },
    Leader {
        leader: OwnedFd,
        reports: PipeReader,
    },
}

impl Maker {
    /// Starts CRIU.
    pub(super) fn start(
        group: &Group,
        criu: &Command,
        ready: &Path,
        kept: &[BorrowedFd<'_>],
    ) -> io::Result<Self> {
        // Open before the other end is: then nobody waits for anybody.
        let mut options = File::options();
        let options = options.read(true).custom_flags(libc::O_NONBLOCK);
        let ready = options.open(ready)?;
        let how = Start {
            kept,
            group: group.cgroup(),
            entrances: &group.kept().entrances(),
            ..Start::default()
        };
        let criu = Helper::start(criu, how)?;
        Ok(Self::Criu { criu, ready })
    }

    /// Starts the leader of a session, which starts CRIU.
    pub(super) fn lead(
        group: &Group,
        session: &Session,
        criu: &Command,
        ready: &Path,
        kept: &[BorrowedFd<'_>],
    ) -> io::Result<Self> {
        let (reports, writer) = io::pipe()?;
        let words = [criu.get_program()].into_iter().chain(criu.get_args());
        let again = Again {
            program: session.program,
            foreground: session.foreground,
            user: session.user.clone(),
            ready: ready.to_owned(),
            criu: words.map(OsStr::to_owned).collect(),
        };
        let exe = c_string(session.exe.as_os_str())?;
        let own = [session.exe.clone().into_os_string(), AGAIN_ARGUMENT.into()];
        let argv = own.into_iter().chain(again.arguments());
        let argv: Vec<CString> = argv.map(|word| c_string(&word)).collect::<Result<_, _>>()?;
        let env = environment()?;
        let terminal = session.terminal.as_fd();
        let launch = Launch {
            candidates: &[exe],
            argv: &argv,
            env: &env,
            cwd: c"/",
            stdio: [terminal; 3],
            host_name: None,
            report: Some(writer.as_fd()),
            kept,
            pid: Some(Pid::from_raw(session.leader)),
            wire: None,
            cgroup: group.cgroup(),
            entrances: &group.kept().entrances(),
            // It becomes the user when CRIU has done its work.
            credentials: None,
            limits: &[],
            // CRIU makes those of the copy.
            namespaces: &[],
            nice: 0,
            umask: 0o022,
            outlives: false,
            ignored: 0,
        };
        let launched = sys::launch(&launch);
        let (_, leader) = launched.map_err(|error| {
            let why = error.errno.desc();
            io::Error::other(format!("its session cannot be made: {why}"))
        })?;
        Ok(Self::Leader { leader, reports })
    }

    /// Returns whether the copy waits. Fails if it will not.
    pub(super) fn waits(&mut self) -> io::Result<bool> {
        match self {
            Self::Criu { criu, ready } => match ready.read(&mut [0; 8]) {
                Ok(1..) => Ok(true),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
                _ if criu.try_wait()?.is_some() => Err(io::Error::other("CRIU has ended")),
                _ => Ok(false),
            },
            Self::Leader { reports, .. } => match report(reports, Duration::ZERO)? {
                None => Ok(false),
                Some(Report::Waits(_)) => Ok(true),
                Some(other) => Err(io::Error::other(format!("{other:?}"))),
            },
        }
    }

    /// Waits until a copy runs that has been let.
    pub(super) fn ran(self) -> io::Result<Option<OwnedFd>> {
        match self {
            Self::Criu { mut criu, .. } => {
                let failed = || io::Error::other("CRIU has failed");
                criu.wait()?.then_some(None).ok_or_else(failed)
            }
            Self::Leader { mut reports, .. } => match report(&mut reports, WITHIN)? {
                Some(Report::Running(_)) => Ok(Some(reports.into())),
                other => Err(io::Error::other(format!("{other:?}"))),
            },
        }
    }

    /// Ends all that has been made.
    pub(super) fn end(&mut self, group: &Group) {
        group.end();
        match self {
            Self::Criu { criu, .. } => criu.end(),
            Self::Leader { leader, .. } => drop(sys::wait(leader.as_fd())),
        }
    }
}

/// Returns the next report, if one comes within so long.
fn report(reports: &mut PipeReader, within: Duration) -> io::Result<Option<Report>> {
    let mut fds = [PollFd::new(reports.as_fd(), PollFlags::POLLIN)];
    let within = PollTimeout::try_from(within).unwrap_or(PollTimeout::MAX);
    if poll(&mut fds, within)? == 0 {
        return Ok(None);
    }
    let mut bytes = [0; REPORT_BYTES];
    reports.read_exact(&mut bytes)?;
    Report::decode(bytes).map(Some)
}
