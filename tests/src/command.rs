//! Commands with deadlines.

use crate::holds_within;
use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// Lines of each node's log that are shown when something fails, unless `LOG_LINES` says how many.
const LOG_LINES_SHOWN: usize = 30;

/// What tells a program of who has started the tests: another program under test, and make, whose children say where they
/// are.
const CALLER: [&str; 5] = [
    "GLU_DEV_GLUD",
    "MAKEFLAGS",
    "MAKELEVEL",
    "MAKEOVERRIDES",
    "MFLAGS",
];

/// Has a command run as if nobody had started the tests.
pub(crate) fn without_caller(command: &mut Command) {
    for name in CALLER {
        command.env_remove(name);
    }
}

/// What a command that ended left behind.
#[derive(Debug, Clone)]
pub struct Output {
    what: String,
    /// How it ended: `glu dev exec` ends as its command did.
    pub status: ExitStatus,
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
    logs: Logs,
}

/// Where the logs of a cluster's nodes are.
#[derive(Debug, Clone)]
pub(crate) struct Logs(pub(crate) PathBuf);

impl Output {
    /// Returns what it printed.
    ///
    /// # Panics
    /// It failed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.status.success(), "{self}");
        self.stdout
    }

    /// Returns its exit status; `None` when a signal ended it.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Returns the signal that ended it.
    #[must_use]
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            what,
            status,
            stdout,
            stderr,
        } = self;
        write!(f, "`{what}`: {status}\nstdout: {stdout}\nstderr: {stderr}")
    }
}

impl Running {
    /// Starts `command`; `what` names it in messages.
    #[track_caller]
    pub(crate) fn start(what: String, mut command: Command, logs: Logs) -> Self {
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
            logs,
        }
    }

    /// Returns the process id outside of the node: the watcher's, not the command's.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns what it has printed so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// It runs on after `deadline`; it is killed, and the message has what it and the nodes said.
    #[track_caller]
    pub fn wait(self, deadline: Duration) -> Output {
        self.end_within(deadline).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Like [`Self::wait`], for who must not panic.
    pub(crate) fn end_within(mut self, deadline: Duration) -> Result<Output, String> {
        let mut status = None;
        holds_within(deadline, || {
            status = self.child.try_wait().expect("wait for our own child");
            status.is_some()
        });
        let (stdout, stderr) = (read(&self.stdout), read(&self.stderr));
        let what = self.what.clone();
        match status {
            Some(status) => Ok(Output {
                what,
                status,
                stdout,
                stderr,
            }),
            None => Err(format!(
                "waited {deadline:?} for the end of `{what}`, in vain\nstdout: {stdout}\nstderr: {stderr}\n{}",
                self.logs.tails()
            )),
        }
    }
}

impl Logs {
    /// Returns the ends of the nodes' logs.
    pub(crate) fn tails(&self) -> String {
        let mut nodes: Vec<PathBuf> = fs::read_dir(&self.0)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.join("glud.log").exists())
            .collect();
        nodes.sort();
        let asked = std::env::var("LOG_LINES").ok();
        let count = asked.and_then(|count| count.parse().ok());
        let count = count.unwrap_or(LOG_LINES_SHOWN);
        let mut tails = String::new();
        for node in nodes {
            let text = fs::read(node.join("glud.log")).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            let shown = lines.get(lines.len().saturating_sub(count)..);
            let shown = shown.unwrap_or_default().join("\n");
            tails += &format!("--- the log of {}\n{shown}\n", node.display());
        }
        tails
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only for a child that has ended and was waited for.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Reads a file from its start, without moving the position, which is the command's too.
fn read(file: &File) -> String {
    let size = file.metadata().expect("look at a temporary file").len();
    let mut bytes = vec![0; usize::try_from(size).expect("output fits into memory")];
    file.read_exact_at(&mut bytes, 0)
        .expect("read a temporary file");
    let text = String::from_utf8_lossy(&bytes);
    text.trim_end_matches('\n').to_owned()
}
