//! All processes of a job, daemonised ones included, as one thing that can be killed (rule J2).
//!
//! A job has a cgroup (v2) of its own: `<glu.instance>/j<number>`. Where there is no writable cgroup tree its
//! processes are known by a variable in their environment instead; one that clears its environment escapes then.
//! A guardian process kills and removes the instance's whole cgroup when the daemon is gone, however it went.

use super::limits::{self, Kept, Limits};
use super::mark::Mark;
use super::sys;
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long killed processes get to disappear. One in an uninterruptible wait may take longer; its cgroup then stays
/// until the daemon starts again.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// How long processes may take until they are frozen: one that waits for a disk, or for a file of a node that has gone,
/// cannot be.
const FROZEN_WITHIN: Duration = Duration::from_secs(5);

/// Pause between looks at what cannot be waited for otherwise.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Where the cgroup trees of version 2 are mounted.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// The cgroup of the daemon alone, in that of its service.
const SUBGROUP: &str = "glud";

/// The jobs of one daemon.
#[derive(Debug)]
pub(super) struct Groups {
    instance: String,
    next: AtomicU64,
    cgroup: Option<Cgroup>,
}

#[derive(Debug)]
struct Cgroup {
    dir: PathBuf,
    /// Ends and removes all when it is dropped, or when the daemon is gone.
    _guardian: sys::Guardian,
}

impl Groups {
    /// Prepares for the jobs of `instance`; kills what an earlier daemon of that name left behind.
    pub(super) fn new(instance: &str) -> Self {
        limits::remove_old(instance);
        let cgroup = Cgroup::new(instance)
            .inspect_err(|error| {
                tracing::warn!(%error, "no cgroup for jobs: they are known by their environment only");
            })
            .ok();
        Self {
            instance: instance.to_owned(),
            next: AtomicU64::new(0),
            cgroup,
        }
    }

    /// Makes the group of a new job, which is kept within limits (J7), and is `held` at times if it is of a gang.
    pub(super) fn group(&self, limits: Limits, held: bool) -> io::Result<Group> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mark = Mark::new(&format!("{}/{number}", self.instance))?;
        let cgroup = self.cgroup.as_ref().map(|all| {
            let dir = all.dir.join(format!("j{number}"));
            fs::create_dir(&dir)?;
            let open = File::open(&dir).inspect_err(|_| {
                fs::remove_dir(&dir).ok();
            })?;
            Ok::<_, io::Error>((dir, open))
        });
        let mut group = Group {
            mark,
            kept: Kept::default(),
            cgroup: cgroup.transpose()?,
            frozen: Mutex::default(),
        };
        let name = format!("{}.j{number}", self.instance);
        group.kept = Kept::new(limits, held, &name, group.dir())?;
        Ok(group)
    }
}

impl Cgroup {
    fn new(instance: &str) -> io::Result<Self> {
        let (mut last, name) = (io::ErrorKind::NotFound.into(), format!("glu.{instance}"));
        for parent in parents() {
            let dir = parent.join(&name);
            if dir.exists() {
                remove_tree(&dir)?;
            }
            match fs::create_dir(&dir) {
                Ok(()) => {
                    let guardian = sys::Guardian::new(&dir)?;
                    return Ok(Self {
                        dir,
                        _guardian: guardian,
                    });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// Returns the directories to try: the daemon's own cgroup, then the root.
fn parents() -> Vec<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
    let mounts = MOUNTS
        .into_iter()
        .map(Path::new)
        .filter(|mount| mount.join("cgroup.controllers").exists());
    let own = own.filter(|path| !path.is_empty()).map(Path::new);
    mounts.flat_map(|mount| parents_below(mount, own)).collect()
}

/// A cgroup that has processes hands no controller on. Where systemd has put the daemon into one of its own for that
/// (`DelegateSubgroup=`), jobs belong beside it.
fn parents_below(mount: &Path, own: Option<&Path>) -> Vec<PathBuf> {
    let beside = own.filter(|own| own.ends_with(SUBGROUP));
    let beside = beside.and_then(Path::parent);
    let dirs = [beside, own, Some(Path::new(""))].into_iter().flatten();
    dirs.map(|dir| mount.join(dir)).collect()
}

/// Kills all in a cgroup and removes it with its children.
fn remove_tree(dir: &Path) -> io::Result<()> {
    end_in(dir)?;
    remove_dirs(dir)
}

/// Kills all in a cgroup and waits until it is gone.
pub(super) fn end_in(dir: &Path) -> io::Result<()> {
    fs::write(dir.join("cgroup.kill"), "1")?;
    await_empty(dir)
}

/// Removes an empty cgroup with all below: a job may have made some of its own.
fn remove_dirs(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_dirs(&entry.path())?;
        }
    }
    fs::remove_dir(dir)
}

/// Waits until a cgroup has no live process.
fn await_empty(dir: &Path) -> io::Result<()> {
    let events = File::open(dir.join("cgroup.events"))?;
    let deadline = Instant::now() + GONE_WITHIN;
    loop {
        // Read before waiting: the kernel wakes us for changes after the last read.
        if is_empty(&events)? {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let why = format!("processes in {} do not die", dir.display());
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        sys::await_change(events.as_fd(), left)?;
    }
}

/// Kills all in a cgroup that is frozen, where nothing new comes up, but one process.
fn end_all_but(dir: &Path, pid: i32) -> io::Result<()> {
    let deadline = Instant::now() + GONE_WITHIN;
    let mut killed = BTreeSet::new();
    loop {
        let left = fs::read_to_string(dir.join("cgroup.procs"))?;
        let left = left.lines().filter_map(|line| line.parse().ok());
        let left: Vec<i32> = left.filter(|left| *left != pid).collect();
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let why = format!("processes in {} do not die", dir.display());
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        for pid in left {
            // Once: later its number may be another's.
            if killed.insert(pid) {
                sys::signal_process(Pid::from_raw(pid), libc::SIGKILL).ok();
            }
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn is_empty(events: &File) -> io::Result<bool> {
    is_so(events, "populated 0")
}

/// Returns whether the events of a cgroup say so.
fn is_so(events: &File, line: &str) -> io::Result<bool> {
    use std::os::unix::fs::FileExt;
    let mut text = [0; 256];
    let len = events.read_at(&mut text, 0)?;
    let mut lines = text[..len].split(|byte| *byte == b'\n');
    Ok(lines.any(|said| said == line.as_bytes()))
}

/// The processes of one job.
#[derive(Debug)]
pub(super) struct Group {
    mark: Mark,
    kept: Kept,
    cgroup: Option<(PathBuf, File)>,
    frozen: Mutex<Frozen>,
}

/// Who wants it to be frozen.
#[derive(Debug, Default)]
struct Frozen {
    /// It moves.
    moves: bool,
    /// The owner of the node is there (J12).
    owner: bool,
}

impl Group {
    /// Returns the cgroup to start the job in.
    pub(super) fn cgroup(&self) -> Option<BorrowedFd<'_>> {
        self.cgroup.as_ref().map(|(_, open)| open.as_fd())
    }

    /// Returns the limits that it is kept within.
    pub(super) fn kept(&self) -> &Kept {
        &self.kept
    }

    /// Returns the directory of its cgroup.
    pub(super) fn dir(&self) -> Option<&Path> {
        self.cgroup.as_ref().map(|(dir, _)| dir.as_path())
    }

    /// Freezes all processes of the job for a move, or lets them go on; returns when that is so. Blocks.
    pub(super) fn freeze(&self, frozen: bool) -> io::Result<()> {
        let dir = self.change_frozen(|now| now.moves = frozen)?;
        let events = File::open(dir.join("cgroup.events"))?;
        let deadline = Instant::now() + FROZEN_WITHIN;
        while frozen && !is_so(&events, "frozen 1")? {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.change_frozen(|now| now.moves = false)?;
                let why = "a process of it cannot be stopped now";
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            sys::await_change(events.as_fd(), left)?;
        }
        Ok(())
    }

    /// Has all processes of the job stand still, or go on, as the owner of the node wants it.
    pub(super) fn pause(&self, pause: bool) -> io::Result<()> {
        self.change_frozen(|now| now.owner = pause).map(drop)
    }

    /// Lets what is left of the job go on, whoever wanted it to stand still. Blocks for a moment.
    pub(super) fn let_go(&self) {
        if let Err(error) = self.change_frozen(|now| *now = Frozen::default()) {
            tracing::warn!(%error, "what is left of a job does not go on");
        }
    }

    /// Freezes the job, or lets it go on, after a change of who wants what; returns the directory of its cgroup.
    fn change_frozen(&self, change: impl FnOnce(&mut Frozen)) -> io::Result<&Path> {
        let Some((dir, _)) = &self.cgroup else {
            let why = "there are no cgroups of version 2";
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        };
        // Held over the write: what was wanted last is what is written last.
        let mut frozen = self.frozen.lock().expect("no holder panics");
        change(&mut frozen);
        let value = if frozen.moves || frozen.owner {
            "1"
        } else {
            "0"
        };
        fs::write(dir.join("cgroup.freeze"), value)?;
        Ok(dir)
    }

    /// Returns what must be in the job's environment.
    pub(super) fn mark(&self) -> &str {
        self.mark.variable()
    }

    /// Kills all processes of the job. Blocks.
    fn kill(&self) {
        match &self.cgroup {
            Some((dir, _)) => {
                if let Err(error) = fs::write(dir.join("cgroup.kill"), "1") {
                    tracing::warn!(%error, dir = %dir.display(), "cannot kill a job");
                }
            }
            None => self.mark.kill_all(GONE_WITHIN),
        }
    }

    /// Returns whether it is plain that no process of the job is left. Blocks for microseconds only; without a cgroup
    /// it would take longer to know.
    pub(super) fn is_surely_empty(&self) -> bool {
        match &self.cgroup {
            Some((dir, _)) => File::open(dir.join("cgroup.events"))
                .and_then(|events| is_empty(&events))
                .unwrap_or(true),
            None => false,
        }
    }

    /// Kills all of a frozen job but one process, which stays frozen, and waits until they are gone. Blocks.
    pub(super) fn end_all_but(&self, pid: i32) {
        let ended = self.dir().map(|dir| end_all_but(dir, pid));
        if let Some(Err(error)) = ended {
            tracing::warn!(%error, "what is left of a job is still there");
        }
    }

    /// Kills what is left of the job and waits until it is gone. Blocks.
    pub(super) fn end(&self) {
        if self.is_surely_empty() {
            return;
        }
        self.kill();
        if let Some((dir, _)) = &self.cgroup
            && let Err(error) = await_empty(dir)
        {
            tracing::warn!(%error, "a killed job is still there");
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some((dir, _)) = &self.cgroup
            && let Err(first) = fs::remove_dir(dir)
            && let Err(error) = remove_tree(dir)
        {
            tracing::warn!(%first, %error, dir = %dir.display(), "left a cgroup behind");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    /// Starts sleepers in the cgroup of a job.
    fn sleepers_in(group: &Group) -> Child {
        let (dir, _) = group.cgroup.as_ref().expect("checked by the caller");
        let mut shell = Command::new("sh")
            .args(["-c", "read x; setsid sleep 600 & exec sleep 600"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("sh starts");
        fs::write(dir.join("cgroup.procs"), shell.id().to_string()).expect("moves it");
        // Only now it starts others.
        drop(shell.stdin.take());
        shell
    }

    #[test]
    fn jobs_belong_beside_a_daemon_that_is_alone() {
        let check = |own: Option<&str>, expected: &[&str]| {
            let found = parents_below(Path::new("/c"), own.map(Path::new));
            let expected: Vec<PathBuf> = expected.iter().map(PathBuf::from).collect();
            assert_eq!(found, expected, "{own:?}");
        };
        check(None, &["/c"]);
        check(
            Some("system.slice/glud.service"),
            &["/c/system.slice/glud.service", "/c"],
        );
        let service = "/c/system.slice/glud.service";
        let alone = [service, "/c/system.slice/glud.service/glud", "/c"];
        check(Some("system.slice/glud.service/glud"), &alone);
    }

    #[test]
    fn the_guardian_ends_jobs_when_the_daemon_is_gone() {
        let groups = Groups::new(&format!("guardian-test-{}", std::process::id()));
        let Some(all) = groups.cgroup.as_ref().map(|all| all.dir.clone()) else {
            eprintln!("no cgroups here: nothing to guard");
            return;
        };
        let group = groups.group(Limits::default(), false).expect("a group");
        let mut shell = sleepers_in(&group);
        assert!(!group.is_surely_empty());
        // The kernel closes the guardian's pipe as this does, however the daemon ends.
        drop(groups);
        assert!(!all.exists(), "the guardian ends all and removes it");
        shell.wait().expect("killed");
        // Its cgroup is gone, and so need not be removed.
        std::mem::forget(group);
    }

    #[test]
    fn what_an_earlier_daemon_left_is_ended() {
        let instance = format!("stale-test-{}", std::process::id());
        let earlier = Groups::new(&instance);
        if earlier.cgroup.is_none() {
            eprintln!("no cgroups here: nothing can be left");
            return;
        }
        let group = earlier.group(Limits::default(), false).expect("a group");
        let mut shell = sleepers_in(&group);
        let later = Groups::new(&instance);
        assert!(group.is_surely_empty());
        shell.wait().expect("killed");
        // However late the earlier daemon's guardian comes, it leaves the later one's alone.
        drop(earlier);
        later
            .group(Limits::default(), false)
            .expect("the later daemon makes groups");
        // Its cgroup is gone, and so need not be removed.
        std::mem::forget(group);
    }
}
