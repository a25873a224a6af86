//! Freezes a job, makes images of it and makes it from images: CRIU does the work, this decides who runs.
//!
//! CRIU never decides that. The group of a job is frozen by us, and stays so whatever becomes of the dump; a copy that
//! CRIU has made waits at a *gate*, before its first instruction, for a word that we write.
//!
//! All of this blocks: never call it on a thread of the runtime.

mod helper;
mod images;
mod maker;
mod names;

pub(super) use helper::{Helper, Start};
pub(super) use images::Images;
pub(super) use maker::Session;

use super::super::group::Group;
use super::super::private::{Network, Private, has_queues};
use super::locks::FileLocks;
use super::pages::Served;
use super::pipes::members;
use super::tcp;
use super::timers;
use super::wire::Image;
use maker::Maker;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long CRIU may take for a dump, and how long until the copy waits at its gate.
const WITHIN: Duration = Duration::from_secs(60);
/// How long a program may take to begin.
const BEGUN_WITHIN: Duration = Duration::from_secs(5);
/// Pause between looks at what cannot be waited for otherwise.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// What passes the gate.
const WORD: &[u8] = b"run\n";
/// What CRIU calls the network of a job's own.
const NETWORK: &str = "glu-net";

/// A CRIU that works here, or why there is none.
#[derive(Clone, Debug)]
pub(in crate::job) struct Engine {
    criu: PathBuf,
    /// Names the directories of this daemon.
    instance: String,
    locks: FileLocks,
    /// It has been seen to run. What becomes of it later shows when it is used.
    runs: Arc<AtomicBool>,
}

/// What CRIU is to know of a job.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Kind {
    pub(super) private: Private,
    /// The leader of its session is another process, of which there are no images.
    pub(super) led: bool,
}

impl Engine {
    /// Removes what an earlier daemon of this name has left.
    pub(in crate::job) fn new(criu: &Path, instance: &str, locks: FileLocks) -> Self {
        Images::remove_all(instance);
        Self {
            criu: criu.to_owned(),
            instance: instance.to_owned(),
            locks,
            runs: Arc::default(),
        }
    }

    pub(super) fn locks(&self) -> &FileLocks {
        &self.locks
    }

    /// Fails, with what is to be told, if there is no CRIU.
    pub(super) fn check(&self) -> io::Result<()> {
        if self.runs.load(Ordering::Relaxed) {
            return Ok(());
        }
        let ran = Command::new(&self.criu).arg("--version").output();
        match ran {
            Ok(output) if output.status.success() => {
                self.runs.store(true, Ordering::Relaxed);
                Ok(())
            }
            Ok(output) => Err(io::Error::other(format!(
                "{} ends with {}",
                self.criu.display(),
                output.status
            ))),
            Err(error) => Err(io::Error::other(format!(
                "{}: {error}",
                self.criu.display()
            ))),
        }
    }

    /// Makes an empty directory for images.
    pub(super) fn images(&self) -> io::Result<Images> {
        Images::new(&self.instance)
    }

    /// Freezes a job and makes images of it. If that fails it goes on; else it stays frozen.
    pub(super) fn dump(&self, group: &Group, pid: i32, kind: Kind) -> io::Result<Vec<Image>> {
        let images = self.images()?;
        frozen(group, pid, || {
            at_rest(group, pid, kind.private, |network| {
                run(
                    &self.dumping(group, pid, kind.led, network, &images)?,
                    &images,
                )
            })?;
            tracing::debug!(pid, "images are made");
            images.pieces()
        })
    }

    /// As [`Self::dump`], but most pages are not among the images: they are served as long as the job is frozen.
    pub(super) fn dump_partly(
        &self,
        group: &Group,
        pid: i32,
        kind: Kind,
    ) -> io::Result<(Vec<Image>, Served)> {
        let images = self.images()?;
        frozen(group, pid, || {
            let members = members(group.dir().ok_or(io::ErrorKind::Unsupported)?, pid)?;
            let served = at_rest(group, pid, kind.private, |network| {
                let criu = self.dumping(group, pid, kind.led, network, &images)?;
                let served = Served::begin(criu, images, members, WITHIN)?;
                // MV1: CRIU lets the group go and holds its threads by itself. It may be killed.
                group.freeze(true)?;
                Ok(served)
            })?;
            tracing::debug!(pid, "images are made but for pages");
            Ok((served.images().pieces()?, served))
        })
    }

    /// Returns the command that makes images of a frozen job.
    fn dumping(
        &self,
        group: &Group,
        pid: i32,
        led: bool,
        network: Option<&Network>,
        images: &Images,
    ) -> io::Result<Command> {
        let dir = group.dir().ok_or(io::ErrorKind::Unsupported)?;
        // MV7: from now on it takes none.
        if self.locks.holds(&members(dir, pid)?)? {
            return Err(io::Error::other("it holds locks of files"));
        }
        let mut criu = self.command("dump", images);
        criu.arg("--tree").arg(pid.to_string());
        criu.arg("--freeze-cgroup").arg(dir);
        criu.args(["--leave-running", "--ext-unix-sk", "--file-locks"]);
        if led {
            criu.arg("--shell-job");
        }
        let names = names::find(dir, pid)?;
        names::note(&names, images)?;
        for name in names.keys() {
            criu.arg("--external").arg(name);
        }
        if let Some(network) = network {
            let external = format!("net[{}]:{NETWORK}", network.inode()?);
            criu.arg("--external").arg(external);
            // What stops it is ours.
            criu.args(["--tcp-established", "--network-lock", "skip"]);
        }
        Ok(criu)
    }

    /// Makes a job from images in a group of its own, which has been lent memory; returns when it waits at its gate. `ends`: what
    /// takes the place of what CRIU calls so. The calling thread must outlive the job: it becomes its parent, or that of the leader of its session.
    /// `partly`: the pages come from a [`Fetch`](super::fetch::Fetch).
    pub(super) fn restore(
        &self,
        group: &Group,
        images: Arc<Images>,
        ends: &[(String, OwnedFd)],
        private: Private,
        session: Option<&Session>,
        partly: bool,
    ) -> io::Result<Waiting> {
        let network = private.net.then(Network::new).transpose()?;
        let network = network.as_ref();
        still(network, || {
            self.to_the_gate(group, images, ends, network, session, partly)
        })
    }

    fn to_the_gate(
        &self,
        group: &Group,
        images: Arc<Images>,
        ends: &[(String, OwnedFd)],
        network: Option<&Network>,
        session: Option<&Session>,
        partly: bool,
    ) -> io::Result<Waiting> {
        let (gate, ready) = (images.dir().join("gate"), images.dir().join("ready"));
        for path in [&gate, &ready] {
            nix::unistd::mkfifo(
                path,
                nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR,
            )?;
        }
        let script = images.dir().join("at-gate");
        let text = format!(
            "#!/bin/sh\n[ \"$CRTOOLS_SCRIPT_ACTION\" = post-restore ] || exit 0\nexec 3< {}\necho > {}\nread -r word <&3\n[ \"$word\" = run ]\n",
            gate.display(),
            ready.display()
        );
        File::options()
            .write(true)
            .create_new(true)
            .mode(0o700)
            .open(&script)?
            .write_all(text.as_bytes())?;
        let gate = File::options().read(true).write(true).open(gate)?;

        let mut criu = self.command("restore", &images);
        criu.args(["--restore-detached", "--restore-sibling", "--file-locks"]);
        if partly {
            criu.arg("--lazy-pages");
        }
        criu.arg("--action-script").arg(&script);
        let files = names::open(&images)?;
        let mut kept: Vec<BorrowedFd<'_>> = Vec::new();
        for (name, end) in ends.iter().chain(&files) {
            criu.arg("--inherit-fd")
                .arg(format!("fd[{}]:{name}", end.as_raw_fd()));
            kept.push(end.as_fd());
        }
        if let Some(network) = network {
            let fd = network.as_fd();
            criu.arg("--inherit-fd")
                .arg(format!("fd[{}]:{NETWORK}", fd.as_raw_fd()));
            criu.arg("--tcp-established");
            kept.push(fd);
        }
        if session.is_some() {
            criu.arg("--shell-job");
        }
        let maker = match session {
            Some(session) => Maker::lead(group, session, &criu, &ready, &kept),
            None => Maker::start(group, &criu, &ready, &kept),
        };
        let mut waiting = Waiting {
            maker: maker?,
            gate,
            images,
        };
        let deadline = Instant::now() + WITHIN;
        loop {
            match waiting.maker.waits() {
                Ok(true) => {
                    let dir = group.dir().ok_or(io::ErrorKind::Unsupported)?;
                    timers::wind(dir)?;
                    return Ok(waiting);
                }
                Ok(false) if Instant::now() < deadline => std::thread::sleep(LOOK_EVERY),
                Ok(false) => {
                    waiting.maker.end(group);
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "making the copy took too long",
                    ));
                }
                Err(error) => {
                    waiting.maker.end(group);
                    tracing::debug!(%error, "no copy of a job");
                    return Err(waiting.images.why("restore"));
                }
            }
        }
    }

    /// Returns the command that gets pages for a copy that lacks them.
    pub(super) fn fetching(&self, images: &Images) -> Command {
        let mut criu = self.command("lazy-pages", images);
        criu.arg("--page-server");
        criu
    }

    fn command(&self, what: &str, images: &Images) -> Command {
        let mut criu = Command::new(&self.criu);
        let log = OsString::from(format!("{what}.log"));
        criu.arg(what)
            .arg("--images-dir")
            .arg(images.dir())
            .arg("--log-file")
            .arg(log);
        criu.arg("-v2").arg("--manage-cgroups=ignore");
        criu.stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        criu
    }
}

/// Does something with a job that is frozen, and stays so unless that fails.
fn frozen<T>(group: &Group, pid: i32, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let done = freeze(group, pid).and_then(|()| {
        tracing::debug!(pid, "frozen");
        work()
    });
    if done.is_err() {
        group.freeze(false)?;
    }
    done
}

/// Has CRIU make images of a job that is frozen, where that can be done: nothing passes in its network, and it is lent memory.
fn at_rest<T>(
    group: &Group,
    pid: i32,
    private: Private,
    image: impl FnOnce(Option<&Network>) -> io::Result<T>,
) -> io::Result<T> {
    if private.ipc && has_queues(pid)? {
        return Err(io::Error::other("it has message queues of POSIX"));
    }
    let network = private.net.then(|| Network::of(pid)).transpose()?;
    let network = network.as_ref();
    still(network, || {
        if network.is_some() && tcp::delivers_for_nobody(pid)? {
            let why = "a connection that it has closed has something to deliver";
            return Err(io::Error::other(why));
        }
        lent(group, || image(network))
    })
}

/// Runs a CRIU that makes images.
fn run(criu: &Command, images: &Images) -> io::Result<()> {
    let how = Start {
        outlives: true,
        ..Start::default()
    };
    let mut criu = Helper::start(criu, how)?;
    let deadline = Instant::now() + WITHIN;
    loop {
        match criu.try_wait()? {
            Some(true) => return Ok(()),
            Some(false) => return Err(images.why("dump")),
            None if Instant::now() > deadline => {
                criu.end();
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "making images took too long",
                ));
            }
            None => std::thread::sleep(LOOK_EVERY),
        }
    }
}

/// Does something with a job for which that is lent memory.
fn lent<T>(group: &Group, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let failed = |error| io::Error::other(format!("its limit of memory stays: {error}"));
    group.kept().lend(true).map_err(failed)?;
    let done = work();
    group.kept().lend(false).map_err(failed)?;
    done
}

/// Does something while nothing passes in a job's network (MV8). Each end of a connection is looked at, and made, at another
/// moment: what passed between them meanwhile would be lost, or would end a connection whose peer is not there yet.
fn still<T>(network: Option<&Network>, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let Some(network) = network else {
        return work();
    };
    let failed = |error| io::Error::other(format!("its network does not stand still: {error}"));
    network.stop().map_err(failed)?;
    let done = work();
    network.go_on().map_err(failed)?;
    done
}

/// Freezes a job where images can be made of it. Of a process that waits for its child of vfork(2) to begin a program they
/// cannot: it counts as frozen, and cannot be traced. Such a child takes a moment to get on.
fn freeze(group: &Group, pid: i32) -> io::Result<()> {
    let dir = group.dir().ok_or(io::ErrorKind::Unsupported)?;
    let deadline = Instant::now() + BEGUN_WITHIN;
    loop {
        group.freeze(true)?;
        if !waits_for_vfork(dir, pid)? {
            return Ok(());
        }
        group.freeze(false)?;
        if Instant::now() > deadline {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "a process of it waits for a program to begin",
            ));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Returns whether a thread of a frozen job is in a wait that nothing interrupts, which only that one is.
fn waits_for_vfork(dir: &Path, pid: i32) -> io::Result<bool> {
    for pid in members(dir, pid)? {
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let stat = fs::read_to_string(thread?.path().join("stat"))?;
            let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
            if state.is_some_and(|state| state.starts_with('D')) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// A copy at its gate.
#[derive(Debug)]
pub(super) struct Waiting {
    maker: Maker,
    gate: File,
    /// With what tells why it failed.
    images: Arc<Images>,
}

impl Waiting {
    /// Lets it run; returns what the leader of its session reports, if it has one.
    pub(super) fn run(mut self) -> io::Result<Option<OwnedFd>> {
        self.gate.write_all(WORD)?;
        self.maker.ran().map_err(|error| {
            tracing::debug!(%error, "a copy of a job does not run");
            self.images.why("restore")
        })
    }

    /// Ends it before it has run.
    pub(super) fn end(mut self, group: &Group) {
        self.maker.end(group);
    }
}
