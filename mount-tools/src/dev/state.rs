//! The state directory: its layout, its lock, and the record of the nodes.

use super::process::ProcessId;
use super::{UsageError, host_dir};
use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// `up` holds the lock while it waits for the nodes; everybody else is quick.
const LOCK_WAIT: Duration = Duration::from_secs(90);
const LOCK_RETRY_PAUSE: Duration = Duration::from_millis(10);
const VERSION: u32 = 1;

/// The paths of one cluster; absolute and without symlinks.
#[derive(Clone, Debug)]
pub(super) struct StateDir(PathBuf);

/// The directory of one node.
#[derive(Clone, Debug)]
pub(super) struct NodeDir(PathBuf);

/// Held by every command that changes the cluster.
#[derive(Debug)]
pub(super) struct StateLock {
    _file: Flock<File>,
}

/// What `cluster.json` holds.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    /// The boot of the host and the pid namespace in which the pids below mean something.
    host: HostId,
    /// The daemon that the nodes run.
    pub(super) glud: PathBuf,
    pub(super) nodes: Vec<NodeRecord>,
}

/// One node of the [`Record`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct NodeRecord {
    /// Counts from 1.
    pub(super) number: u16,
    /// Its init, as seen from outside, as of its last boot.
    pub(super) init: Option<ProcessId>,
    /// Its link to the hub is down.
    pub(super) cut: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct HostId {
    boot: String,
    pid_namespace: PathBuf,
}

impl StateDir {
    /// Makes the directory, or finds it.
    ///
    /// # Errors
    /// It holds something that is no cluster.
    pub(super) fn create(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)
            .with_context(|| format!("make the state directory {}", dir.display()))?;
        let found = Self::find(dir)?.with_context(|| format!("{} vanished", dir.display()))?;
        let foreign = fs::read_dir(&found.0)?
            .filter_map(Result::ok)
            .find(|entry| !found.is_own(&entry.file_name().to_string_lossy()));
        if let Some(foreign) = foreign {
            bail!(UsageError(format!(
                "{} holds {:?}, which is no part of a cluster: give an empty or new directory with --state",
                dir.display(),
                foreign.file_name()
            )));
        }
        Ok(found)
    }

    /// Returns the directory if there is one.
    pub(super) fn find(dir: &Path) -> Result<Option<Self>> {
        match fs::canonicalize(dir) {
            Ok(path) => Ok(Some(Self(path))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("open the state directory {}", dir.display())),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn hub(&self) -> PathBuf {
        self.0.join("hub.net")
    }

    /// Where the cluster's certificate authority is.
    pub(super) fn ca(&self) -> PathBuf {
        self.0.join("ca")
    }

    pub(super) fn node(&self, number: u16) -> NodeDir {
        NodeDir(self.0.join(node_name(number)))
    }

    /// Takes the lock; waits for whoever has it.
    pub(super) fn lock(&self) -> Result<StateLock> {
        let path = self.0.join("lock");
        let end = Instant::now() + LOCK_WAIT;
        loop {
            OpenOptions::new()
                .create(true)
                .append(true)
                .open(&path)
                .with_context(|| format!("open {}", path.display()))?;
            if let Some(file) = host_dir::lock_current(&path, FlockArg::LockExclusiveNonblock)? {
                return Ok(StateLock { _file: file });
            }
            if Instant::now() > end {
                bail!(
                    "another `glu dev` command has worked on {} for {LOCK_WAIT:?}",
                    self.0.display()
                );
            }
            std::thread::sleep(LOCK_RETRY_PAUSE);
        }
    }

    /// Reads the record; `None` when there is no cluster. After a reboot of the host all nodes are down.
    pub(super) fn load(&self) -> Result<Option<Record>> {
        let path = self.record_path();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("read {}", path.display())),
        };
        let mut record: Record = serde_json::from_slice(&text).with_context(|| {
            format!(
                "{} is damaged: `glu dev down` removes the cluster",
                path.display()
            )
        })?;
        if record.version != VERSION {
            bail!(
                "{} is of version {}, this glu knows {VERSION}",
                path.display(),
                record.version
            );
        }
        let here = HostId::current()?;
        if record.host.boot != here.boot {
            for node in &mut record.nodes {
                (node.init, node.cut) = (None, false);
            }
            record.host = here;
        } else if record.host != here {
            bail!(UsageError(format!(
                "the cluster of {} belongs to another pid namespace: run `glu dev` outside of its nodes",
                self.0.display()
            )));
        }
        Ok(Some(record))
    }

    /// Replaces the record.
    pub(super) fn store(&self, record: &Record) -> Result<()> {
        let path = self.record_path();
        let fresh = self.0.join("cluster.json.new");
        let write = || -> io::Result<()> {
            let mut file = File::create(&fresh)?;
            file.write_all(&serde_json::to_vec_pretty(record)?)?;
            fs::rename(&fresh, &path)
        };
        write().with_context(|| format!("write {}", path.display()))
    }

    /// Deletes what a cluster consists of, but the lock.
    ///
    /// The caller holds it, and has made sure that nothing is mounted below the directory.
    pub(super) fn clear(&self) -> Result<()> {
        let clear = || -> io::Result<()> {
            for entry in fs::read_dir(&self.0)? {
                let entry = entry?;
                if !self.is_own(&entry.file_name().to_string_lossy()) || entry.file_name() == "lock"
                {
                    continue;
                }
                if entry.file_type()?.is_dir() {
                    fs::remove_dir_all(entry.path())?;
                } else {
                    fs::remove_file(entry.path())?;
                }
            }
            Ok(())
        };
        clear().with_context(|| format!("remove the cluster in {}", self.0.display()))
    }

    /// Deletes the lock, which the caller holds, and the directory if nothing else is left in it.
    pub(super) fn remove(&self) -> Result<()> {
        let remove = || -> io::Result<()> {
            // Who waits for it sees that it is gone and looks anew.
            fs::remove_file(self.0.join("lock"))?;
            match fs::remove_dir(&self.0) {
                Err(e) if e.kind() != io::ErrorKind::DirectoryNotEmpty => Err(e),
                _ => Ok(()),
            }
        };
        remove().with_context(|| format!("remove {}", self.0.display()))
    }

    fn record_path(&self) -> PathBuf {
        self.0.join("cluster.json")
    }

    /// Returns whether `name` in the directory is a part of a cluster.
    fn is_own(&self, name: &str) -> bool {
        matches!(
            name,
            "lock" | "cluster.json" | "cluster.json.new" | "hub.net" | "ca"
        ) || name
            .strip_prefix("node")
            .is_some_and(|number| number.parse::<u16>().is_ok())
    }
}

impl NodeDir {
    #[cfg(test)]
    pub(super) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn config(&self) -> PathBuf {
        self.0.join("glud.toml")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.0.join("glud.log")
    }

    pub(super) fn tls(&self) -> PathBuf {
        self.0.join("tls")
    }

    pub(super) fn state(&self) -> PathBuf {
        self.0.join("state")
    }

    pub(super) fn cluster(&self) -> PathBuf {
        self.0.join("cluster")
    }

    pub(super) fn run(&self) -> PathBuf {
        self.0.join("run")
    }

    pub(super) fn ready(&self) -> PathBuf {
        self.run().join("ready")
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.run().join("glud.sock")
    }

    /// Where init counts how often glud ended, with its last status.
    pub(super) fn failures(&self) -> PathBuf {
        self.run().join("failures.json")
    }

    /// Returns the last `lines` lines of the node's log.
    pub(super) fn log_tail(&self, lines: usize) -> String {
        let text = fs::read(self.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let mut tail: Vec<&str> = text.lines().rev().take(lines).collect();
        tail.reverse();
        tail.join("\n")
    }
}

impl Record {
    pub(super) fn new(glud: PathBuf, nodes: u16) -> Result<Self> {
        let nodes = (1..=nodes)
            .map(|number| NodeRecord {
                number,
                init: None,
                cut: false,
            })
            .collect();
        Ok(Self {
            version: VERSION,
            host: HostId::current()?,
            glud,
            nodes,
        })
    }

    /// Finds a node by `2` or `node2`.
    ///
    /// # Errors
    /// [`UsageError`]: there is no such node.
    pub(super) fn node(&self, name: &str) -> Result<&NodeRecord, UsageError> {
        let wanted = name
            .strip_prefix("node")
            .unwrap_or(name)
            .parse::<u16>()
            .ok();
        self.nodes
            .iter()
            .find(|node| Some(node.number) == wanted)
            .ok_or_else(|| {
                let last = self.nodes.last().map_or(0, |node| node.number);
                UsageError(format!(
                    "there is no node {name:?}: this cluster has node1 to node{last}"
                ))
            })
    }
}

impl NodeRecord {
    pub(super) fn name(&self) -> String {
        node_name(self.number)
    }

    /// Returns its init if the node is up.
    pub(super) fn running(&self) -> Option<ProcessId> {
        self.init.filter(ProcessId::is_alive)
    }
}

impl HostId {
    fn current() -> Result<Self> {
        let read = || -> io::Result<Self> {
            Ok(Self {
                boot: fs::read_to_string("/proc/sys/kernel/random/boot_id")?
                    .trim()
                    .to_owned(),
                pid_namespace: fs::read_link("/proc/self/ns/pid")?,
            })
        };
        read().context("ask /proc for this boot and this pid namespace")
    }
}

pub(super) fn node_name(number: u16) -> String {
    format!("node{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record::new("/bin/glud".into(), 3).expect("proc is mounted")
    }

    #[track_caller]
    fn check_name(name: &str, expected: Result<u16, &str>) {
        let found = record()
            .node(name)
            .map(|node| node.number)
            .map_err(|e| e.to_string());
        assert_eq!(found, expected.map_err(str::to_owned), "{name}");
    }

    #[test]
    fn names_of_nodes() {
        check_name("2", Ok(2));
        check_name("node2", Ok(2));
        check_name(
            "4",
            Err("there is no node \"4\": this cluster has node1 to node3"),
        );
        check_name(
            "0",
            Err("there is no node \"0\": this cluster has node1 to node3"),
        );
        check_name(
            "nodex",
            Err("there is no node \"nodex\": this cluster has node1 to node3"),
        );
        check_name(
            "nodenode1",
            Err("there is no node \"nodenode1\": this cluster has node1 to node3"),
        );
    }

    #[test]
    fn a_record_survives_the_disk_but_its_pids_do_not_survive_a_boot() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let dir = StateDir::create(root.path()).expect("made");
        assert!(dir.load().expect("read").is_none(), "no cluster yet");
        let mut stored = record();
        stored.nodes[1].init = ProcessId::of(std::process::id().cast_signed());
        stored.nodes[1].cut = true;
        dir.store(&stored).expect("written");
        let loaded = dir.load().expect("read").expect("there");
        assert!(loaded.nodes[1].running().is_some() && loaded.nodes[1].cut);

        stored.host.boot = "another".to_owned();
        dir.store(&stored).expect("written");
        let loaded = dir.load().expect("read").expect("there");
        assert!(loaded.nodes[1].running().is_none() && !loaded.nodes[1].cut);

        stored = record();
        stored.host.pid_namespace = "pid:[1]".into();
        dir.store(&stored).expect("written");
        let error = dir.load().expect_err("its pids mean nothing here");
        assert!(error.is::<UsageError>(), "{error}");
    }

    #[test]
    fn a_directory_with_other_things_is_refused_and_kept() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let dir = StateDir::create(root.path()).expect("made");
        let lock = dir.lock().expect("locked");
        fs::write(root.path().join("thesis.tex"), "precious").expect("write a file");
        let error = StateDir::create(root.path()).expect_err("it holds a thesis");
        assert!(error.is::<UsageError>(), "{error}");
        dir.clear().expect("cleared");
        dir.remove().expect("removed");
        drop(lock);
        let left: Vec<_> = fs::read_dir(root.path())
            .expect("list")
            .map(|e| e.expect("entry").file_name())
            .collect();
        assert_eq!(left, ["thesis.tex"]);
    }

    #[test]
    fn two_commands_exclude_each_other() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let dir = StateDir::create(root.path()).expect("made");
        let lock = dir.lock().expect("locked");
        let path = root.path().join("lock");
        let try_it =
            || host_dir::lock_current(&path, FlockArg::LockExclusiveNonblock).expect("tried");
        assert!(try_it().is_none(), "we hold it");
        drop(lock);
        assert!(try_it().is_some(), "nobody holds it");
    }
}
