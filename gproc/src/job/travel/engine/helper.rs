//! Programs that help this daemon to move jobs: started without a copy of its memory, whose page tables alone take
//! milliseconds for which a job stands still.

use super::super::super::protocol::End;
use super::super::super::sys::{self, Launch};
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::Command;

/// How a helper is started.
#[derive(Clone, Copy, Debug, Default)]
pub(in super::super) struct Start<'a> {
    /// `None`: it has nothing to read.
    pub(in super::super) stdin: Option<BorrowedFd<'a>>,
    /// Descriptors that it has under the same numbers.
    pub(in super::super) kept: &'a [BorrowedFd<'a>],
    /// The group that it is born in: to be moved there takes a while.
    pub(in super::super) group: Option<BorrowedFd<'a>>,
    /// Files that take it into further groups.
    pub(in super::super) entrances: &'a [BorrowedFd<'a>],
    /// It goes on when the thread that starts it ends, and when it is asked to end as the daemon is.
    pub(in super::super) outlives: bool,
}

/// A helper that runs, or has not been waited for.
#[derive(Debug)]
pub(in super::super) struct Helper {
    pidfd: OwnedFd,
    pid: i32,
    /// It has been waited for, and has ended well.
    ended: Option<bool>,
}

impl Helper {
    pub(in super::super) fn start(command: &Command, how: Start<'_>) -> io::Result<Self> {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let words = [command.get_program()]
            .into_iter()
            .chain(command.get_args());
        let argv: Vec<CString> = words.map(c_string).collect::<Result<_, _>>()?;
        let end_it = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
        let deaf = end_it.iter().fold(0, |all, signal| all | 1 << (signal - 1));
        let launch = Launch {
            candidates: &candidates(command.get_program())?,
            argv: &argv,
            env: &environment()?,
            cwd: c"/",
            stdio: [
                how.stdin.unwrap_or_else(|| null.as_fd()),
                null.as_fd(),
                null.as_fd(),
            ],
            host_name: None,
            report: None,
            kept: how.kept,
            pid: None,
            wire: None,
            cgroup: how.group,
            entrances: how.entrances,
            credentials: None,
            limits: &[],
            namespaces: &[],
            nice: 0,
            umask: 0o022,
            outlives: how.outlives,
            ignored: if how.outlives { deaf } else { 0 },
        };
        let (pid, pidfd) = sys::launch(&launch).map_err(|error| io::Error::from(error.errno))?;
        Ok(Self {
            pidfd,
            pid: pid.as_raw(),
            ended: None,
        })
    }

    pub(in super::super) const fn pid(&self) -> i32 {
        self.pid
    }

    pub(in super::super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Returns whether it has ended well, if it has ended.
    pub(in super::super) fn try_wait(&mut self) -> io::Result<Option<bool>> {
        if self.ended.is_none() {
            let end = sys::try_wait(self.pidfd.as_fd())?;
            self.ended = end.map(|end| matches!(end, End::Exited(0)));
        }
        Ok(self.ended)
    }

    /// Waits for its end; returns whether it has ended well.
    pub(in super::super) fn wait(&mut self) -> io::Result<bool> {
        if self.ended.is_none() {
            let end = sys::wait_for(self.pidfd.as_fd())?;
            self.ended = Some(matches!(end, Some(End::Exited(0))));
        }
        Ok(self.ended == Some(true))
    }

    /// Ends it, and waits for that.
    pub(in super::super) fn end(&mut self) {
        sys::signal(self.pidfd.as_fd(), libc::SIGKILL).ok();
        self.wait().ok();
    }
}

/// That of this daemon.
pub(super) fn environment() -> io::Result<Vec<CString>> {
    let variable = |(mut name, value): (OsString, OsString)| {
        name.push("=");
        name.push(value);
        c_string(&name)
    };
    std::env::vars_os().map(variable).collect()
}

/// Returns where a program may be.
fn candidates(program: &OsStr) -> io::Result<Vec<CString>> {
    if Path::new(program).components().count() > 1 {
        return Ok(vec![c_string(program)?]);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path);
    dirs.map(|dir| c_string(dir.join(program).as_os_str()))
        .collect()
}

pub(super) fn c_string(text: &OsStr) -> io::Result<CString> {
    Ok(CString::new(text.to_owned().into_vec())?)
}
