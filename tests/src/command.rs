//! Commands with deadlines.

use crate::holds_within;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// What a command that ended left behind.
#[derive(Debug, Clone)]
pub struct Output {
    what: String,
    /// Its exit status; `None` when a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What it printed, without the trailing line ends.
    pub stdout: String,
    /// What it complained about, without the trailing line ends.
    pub stderr: String,
}

/// A command in the background; it is killed when this is dropped.
#[derive(Debug)]
pub struct Running {
    what: String,
    child: Child,
    // Files, not pipes: what the command left running may hold them open without blocking us.
    stdout: File,
    stderr: File,
}

impl Output {
    /// Returns what it printed.
    ///
    /// # Panics
    /// It failed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(
            self.code == Some(0),
            "`{}` failed (status {:?}, signal {:?})\nstdout: {}\nstderr: {}",
            self.what,
            self.code,
            self.signal,
            self.stdout,
            self.stderr
        );
        self.stdout
    }
}

impl Running {
    /// Starts `command`; `what` names it in messages.
    #[track_caller]
    pub(crate) fn start(what: String, mut command: Command) -> Self {
        let file = || tempfile::tempfile().expect("make a temporary file");
        let (stdout, stderr) = (file(), file());
        let copy = |file: &File| file.try_clone().expect("duplicate a descriptor");
        command
            .stdin(Stdio::null())
            .stdout(copy(&stdout))
            .stderr(copy(&stderr));
        let child = command
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run `{what}`: {e}"));
        Self {
            what,
            child,
            stdout,
            stderr,
        }
    }

    /// Returns the process id of the command's watcher outside of the node.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns what it has printed so far.
    pub fn stdout(&mut self) -> String {
        read(&mut self.stdout)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It runs on after `deadline`, and was killed; the message has what it said.
    pub(crate) fn end_within(mut self, deadline: Duration) -> Result<Output, String> {
        let mut status = None;
        holds_within(deadline, || {
            status = self.child.try_wait().expect("wait for our own child");
            status.is_some()
        });
        match status {
            Some(status) => Ok(self.output(status)),
            None => Err(format!(
                "waited {deadline:?} for the end of `{}`, in vain\nstdout: {}\nstderr: {}",
                self.what,
                read(&mut self.stdout),
                read(&mut self.stderr)
            )),
        }
    }

    fn output(&mut self, status: ExitStatus) -> Output {
        Output {
            what: self.what.clone(),
            code: status.code(),
            signal: status.signal(),
            stdout: read(&mut self.stdout),
            stderr: read(&mut self.stderr),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only for a child that has ended and was waited for.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Reads a file from its start; its descriptor's position is the command's, which is at its end.
fn read(file: &mut File) -> String {
    let mut bytes = Vec::new();
    let mut whole = || {
        file.rewind()?;
        file.read_to_end(&mut bytes)
    };
    whole().expect("read a temporary file");
    String::from_utf8_lossy(&bytes)
        .trim_end_matches('\n')
        .to_owned()
}
