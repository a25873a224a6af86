//! Memory and processors that a job may use at most. The kernel's control groups keep it (rule J7): those of version 2
//! if the controller is there and may be handed on, else those of version 1. What cannot be kept is not run.

use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What a job may use at most; processes that it starts count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory, in bytes.
    pub mem_bytes: Option<u64>,
    /// Time of so many processors.
    pub cpus: Option<u32>,
}

/// In so long the time of a job is measured out.
const PERIOD_MICROS: u64 = 100_000;

/// The file of a cgroup, of either version, whose processes come behind all others.
const IDLE: &str = "cpu.idle";

/// What the kernel limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Controller {
    Memory,
    Cpu,
}

impl Controller {
    const ALL: [Self; 2] = [Self::Memory, Self::Cpu];

    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
        }
    }

    /// Returns the option of glurun that asks for it.
    fn option(self) -> &'static str {
        match self {
            Self::Memory => "--mem",
            Self::Cpu => "--cpus",
        }
    }

    /// Returns the files to write, of version 2, and what.
    fn settings(self, limits: Limits) -> Vec<(&'static str, String)> {
        match self {
            Self::Memory => limits
                .mem_bytes
                .map(|bytes| ("memory.max", bytes.to_string())),
            Self::Cpu => limits
                .cpus
                .map(|cpus| ("cpu.max", format!("{} {PERIOD_MICROS}", quota_micros(cpus)))),
        }
        .into_iter()
        .collect()
    }

    /// As [`Self::settings`], of version 1.
    fn old_settings(self, limits: Limits) -> Vec<(&'static str, String)> {
        match self {
            Self::Memory => limits
                .mem_bytes
                .map(|bytes| vec![("memory.limit_in_bytes", bytes.to_string())]),
            Self::Cpu => limits.cpus.map(|cpus| {
                vec![
                    ("cpu.cfs_period_us", PERIOD_MICROS.to_string()),
                    ("cpu.cfs_quota_us", quota_micros(cpus).to_string()),
                ]
            }),
        }
        .unwrap_or_default()
    }
}

fn quota_micros(cpus: u32) -> u64 {
    u64::from(cpus) * PERIOD_MICROS
}

/// A limit that a node cannot keep.
#[derive(Debug, thiserror::Error)]
#[error("it cannot keep {option}: {why}")]
pub(super) struct NotKept {
    option: &'static str,
    why: String,
}

/// What is lent to a job while images or a copy of it are made: what does that needs memory among the job's processes.
const LENT_BYTES: u64 = 32 << 20;

/// The limits of one job, which are kept.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// The limit of memory, and the file that has it.
    mem: Option<(PathBuf, u64)>,
    /// Where the kernel counts what it has ended for want of memory.
    ended: Option<PathBuf>,
    /// Its cgroups of version 1, with the files that take processes.
    old: Vec<(PathBuf, File)>,
    /// Where it is said that others come first.
    idle: Option<PathBuf>,
}

impl Kept {
    /// Has the kernel keep limits for the job of this name, which is to start in the cgroup `dir` (version 2).
    /// `held`: it is to be held at times.
    pub(super) fn new(
        limits: Limits,
        held: bool,
        name: &str,
        dir: Option<&Path>,
    ) -> Result<Self, NotKept> {
        let mut kept = Self::default();
        for controller in Controller::ALL {
            let settings = controller.settings(limits);
            let held = held && controller == Controller::Cpu;
            let option = match (settings.is_empty(), held) {
                (true, false) => continue,
                (true, true) => "--gang",
                (false, _) => controller.option(),
            };
            let not_kept = |why| NotKept { option, why };
            let new = match dir {
                Some(dir) => hand_on(controller, dir),
                None => Err("there are no cgroups of version 2".into()),
            };
            let (dir, settings, events) = match (new, dir) {
                (Ok(()), Some(dir)) => (dir.to_owned(), settings, "memory.events"),
                (new, _) => {
                    let why = new.err().unwrap_or_default();
                    let dir = old_group(controller, name, &why).map_err(not_kept)?;
                    let procs = File::options().write(true).open(dir.join("cgroup.procs"));
                    let procs = procs.map_err(|error| {
                        fs::remove_dir(&dir).ok();
                        not_kept(error.to_string())
                    })?;
                    kept.old.push((dir.clone(), procs));
                    (dir, controller.old_settings(limits), "memory.oom_control")
                }
            };
            for (file, value) in &settings {
                let set = fs::write(dir.join(file), value);
                set.map_err(|error| not_kept(format!("{value} in {file}: {error}")))?;
            }
            if held {
                let idle = dir.join(IDLE);
                if !idle.exists() {
                    let why = format!("{} has no {IDLE}", dir.display());
                    return Err(NotKept {
                        option: "--gang",
                        why,
                    });
                }
                kept.idle = Some(idle);
            }
            if controller == Controller::Memory {
                kept.ended = Some(dir.join(events));
                let file = settings.first().map(|(file, _)| dir.join(file));
                kept.mem = file.zip(limits.mem_bytes);
            }
        }
        Ok(kept)
    }

    /// Returns the files in which a process of the job enters its further cgroups.
    pub(super) fn entrances(&self) -> Vec<BorrowedFd<'_>> {
        self.old.iter().map(|(_, procs)| procs.as_fd()).collect()
    }

    /// Has the job get what nobody else wants of the processors, or its share again.
    pub(super) fn hold(&self, hold: bool) -> io::Result<()> {
        match &self.idle {
            Some(idle) => fs::write(idle, if hold { "1" } else { "0" }),
            None => Ok(()),
        }
    }

    /// Lends the job some memory, or takes it back: what it has must not end with a copy, nor while images are made.
    pub(super) fn lend(&self, lend: bool) -> io::Result<()> {
        match &self.mem {
            Some((file, bytes)) => {
                let lent = if lend { LENT_BYTES } else { 0 };
                fs::write(file, bytes.saturating_add(lent).to_string())
            }
            None => Ok(()),
        }
    }

    /// Returns how many of its processes the kernel has ended for want of memory.
    pub(super) fn ended_for_memory(&self) -> u64 {
        let ended = self.ended.as_ref();
        let text = ended.and_then(|path| fs::read_to_string(path).ok());
        text.as_deref().map_or(0, oom_kills)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        for (dir, _) in &self.old {
            if let Err(error) = fs::remove_dir(dir) {
                tracing::warn!(%error, dir = %dir.display(), "left a cgroup behind");
            }
        }
    }
}

/// Reads the line that both versions have.
fn oom_kills(text: &str) -> u64 {
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

/// Sees to it that a job's cgroup has a controller, which all above it have to hand on; the job's has no process yet.
fn hand_on(controller: Controller, dir: &Path) -> Result<(), String> {
    let name = controller.name();
    let has = |dir: &Path| {
        let all = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
        all.split_whitespace().any(|one| one == name)
    };
    if has(dir) {
        return Ok(());
    }
    // The daemon's jobs are in its instance's cgroup, and that is in one that it has found.
    for above in [dir.parent().and_then(Path::parent), dir.parent()]
        .into_iter()
        .flatten()
    {
        if !has(above) {
            return Err(format!("{} has no {name} controller", above.display()));
        }
        let order = format!("+{name}");
        if let Err(error) = fs::write(above.join("cgroup.subtree_control"), order) {
            return Err(format!(
                "{} does not hand the {name} controller on: {error}",
                above.display()
            ));
        }
    }
    match has(dir) {
        true => Ok(()),
        false => Err(format!("{} has no {name} controller", dir.display())),
    }
}

/// Makes a cgroup of version 1 for a job.
fn old_group(controller: Controller, name: &str, but: &str) -> Result<PathBuf, String> {
    let mut why = but.to_owned();
    for parent in old_parents(controller) {
        let dir = parent.join(format!("glu.{name}"));
        match fs::create_dir(&dir) {
            Ok(()) => return Ok(dir),
            Err(error) => why = format!("{}: {error}", dir.display()),
        }
    }
    Err(why)
}

/// Removes what earlier daemons of this instance have left in trees of version 1.
pub(super) fn remove_old(instance: &str) {
    let begin = format!("glu.{instance}.");
    for parent in Controller::ALL.into_iter().flat_map(old_parents) {
        for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
            if entry.file_name().as_bytes().starts_with(begin.as_bytes()) {
                fs::remove_dir(entry.path()).ok();
            }
        }
    }
}

/// Returns the directories of version 1 to try: the daemon's own, then the root.
fn old_parents(controller: Controller) -> Vec<PathBuf> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let mount = old_mount(&read("/proc/self/mountinfo"), controller);
    let groups = read("/proc/self/cgroup");
    let own = own_group(&groups, controller);
    let Some(mount) = mount else {
        return Vec::new();
    };
    let own = own.map(|own| mount.join(own)).filter(|own| own.is_dir());
    let mut parents: Vec<PathBuf> = own.into_iter().chain([mount]).collect();
    parents.dedup();
    parents
}

/// Returns where the tree of a controller is mounted.
fn old_mount(mountinfo: &str, controller: Controller) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let mut kind = kind.split(' ');
        let options = (kind.next()? == "cgroup").then(|| kind.nth(1)).flatten()?;
        let has = options.split(',').any(|option| option == controller.name());
        let path = OsStr::from_bytes(place.split(' ').nth(4)?.as_bytes());
        has.then(|| PathBuf::from(path))
    })
}

/// Returns the place of this process in the tree of a controller, relative to its root.
fn own_group(cgroup: &str, controller: Controller) -> Option<&str> {
    cgroup.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let has = parts.next()?.split(',').any(|one| one == controller.name());
        let path = parts.next()?.strip_prefix('/')?;
        has.then_some(path)
    })
}

/// Returns an error as that of the file system.
impl From<NotKept> for io::Error {
    fn from(not_kept: NotKept) -> Self {
        Self::new(io::ErrorKind::Unsupported, not_kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree as version 2 has it, of plain files: root, the instance's cgroup, the job's.
    fn tree(root: &str, job: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a directory");
        let group = dir.path().join("glu.x/j1");
        fs::create_dir_all(&group).expect("makes them");
        let controllers = [
            (dir.path(), root),
            (group.parent().expect("has one"), root),
            (&*group, job),
        ];
        for (of, controllers) in controllers {
            fs::write(of.join("cgroup.controllers"), controllers).expect("writes");
        }
        (dir, group)
    }

    fn read(path: PathBuf) -> String {
        fs::read_to_string(path).unwrap_or_default()
    }

    const BOTH: Limits = Limits {
        mem_bytes: Some(1 << 20),
        cpus: Some(3),
    };

    #[test]
    fn limits_of_version_2() {
        let (_dir, group) = tree("cpu memory", "cpu memory\n");
        let kept = Kept::new(BOTH, false, "x.j1", Some(&group)).expect("has both");
        assert_eq!(read(group.join("memory.max")), "1048576");
        assert_eq!(read(group.join("cpu.max")), "300000 100000");
        assert!(kept.entrances().is_empty());
        assert_eq!(kept.ended_for_memory(), 0);
        fs::write(
            group.join("memory.events"),
            "oom 4\noom_kill 3\noom_group_kill 1\n",
        )
        .expect("writes");
        assert_eq!(kept.ended_for_memory(), 3);
        kept.lend(true).expect("writes");
        assert_eq!(read(group.join("memory.max")), "34603008");
        kept.lend(false).expect("writes");
        assert_eq!(read(group.join("memory.max")), "1048576");
    }

    #[test]
    fn a_gang_is_held_by_its_weight() {
        let none = Limits::default();
        let (_dir, group) = tree("cpu", "cpu\n");
        let why = Kept::new(none, true, "x.j1", Some(&group)).expect_err("an older kernel");
        assert!(why.to_string().contains("cannot keep --gang"), "{why}");
        fs::write(group.join(IDLE), "0").expect("writes");
        let kept = Kept::new(none, true, "x.j1", Some(&group)).expect("has it");
        kept.hold(true).expect("writes");
        assert_eq!(read(group.join(IDLE)), "1");
        kept.hold(false).expect("writes");
        assert_eq!(read(group.join(IDLE)), "0");
    }

    #[test]
    fn controllers_are_handed_on() {
        let (dir, group) = tree("cpu memory", "");
        hand_on(Controller::Memory, &group).expect_err("plain files do nothing");
        for above in [dir.path(), &dir.path().join("glu.x")] {
            assert_eq!(read(above.join("cgroup.subtree_control")), "+memory");
        }
        let (_dir, group) = tree("cpu", "");
        let why = hand_on(Controller::Memory, &group).expect_err("there is none");
        assert!(why.contains("has no memory controller"), "{why}");
    }

    #[test]
    fn no_limits_need_nothing() {
        Kept::new(Limits::default(), false, "x.j1", None).expect("nothing to keep");
    }

    #[test]
    fn trees_of_version_1_are_found() {
        let mounts = "30 24 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup rw\n\
            31 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n";
        let found = old_mount(mounts, Controller::Cpu);
        assert_eq!(
            found.as_deref(),
            Some(Path::new("/sys/fs/cgroup/cpu,cpuacct"))
        );
        assert_eq!(old_mount(mounts, Controller::Memory), None);
        let own = "4:memory:/a/b\n2:cpu,cpuacct:/\n0::/\n";
        assert_eq!(own_group(own, Controller::Memory), Some("a/b"));
        assert_eq!(own_group(own, Controller::Cpu), Some(""));
        assert_eq!(own_group("0::/x\n", Controller::Cpu), None);
    }

    #[test]
    fn what_cannot_be_kept_is_told() {
        let told = NotKept {
            option: "--mem",
            why: "there are no cgroups of version 2".into(),
        };
        assert_eq!(
            told.to_string(),
            "it cannot keep --mem: there are no cgroups of version 2"
        );
    }
}
