//! The commands on a whole cluster or one of its nodes.

use super::exec::no_cluster;
use super::state::{NodeRecord, Record, StateDir, StateLock, node_name};
use super::status::Status;
use super::{NODES_MAX, UsageError, config, host_dir, init, mounts, network, node};
use anyhow::{Context, Result, bail};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

const NODES_DEFAULT: u16 = 3;
/// Survive the loss of one.
const VOTERS_DEFAULT: u16 = 3;
/// From a node's boot to the mounted tree, on a machine that is busy with a build.
const READY_WAIT: Duration = Duration::from_secs(60);
const READY_POLL_PAUSE: Duration = Duration::from_millis(5);
/// A daemon that failed so often in a row has a reason that will not go away.
const FAILURES_MAX: u32 = 4;
const LOG_LINES_SHOWN: usize = 20;

/// What a new cluster is to be like.
#[derive(Clone, Copy, Debug, Default)]
pub struct Size {
    /// How many nodes; 3 if not given.
    pub nodes: Option<u16>,
    /// How many of them keep the metadata; 3 if not given and there are so many nodes, else 1.
    pub voters: Option<u16>,
}

/// A cluster that exists, up or not.
#[derive(Debug)]
pub struct Cluster {
    dir: StateDir,
    record: Record,
    /// `None` for who only looks.
    lock: Option<StateLock>,
}

/// What a long command tells about its progress.
pub trait Progress {
    /// One thing after the other, a few words each.
    fn step(&self, what: &str);
}

impl Cluster {
    /// Makes a cluster of this size in `state`, or boots what is down of the one that is there,
    /// and waits until all serve. `glud` is the one beside this program if not given.
    ///
    /// A new cluster that does not come up is removed again.
    ///
    /// # Errors
    /// [`UsageError`]: the number is out of range or not the number of nodes there, the directory
    /// holds something else. Else: a node did not boot or serve in time; the message has its log.
    pub fn up(
        state: &Path,
        size: Size,
        glud: Option<PathBuf>,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let Size { nodes, voters } = size;
        if !nodes.is_none_or(|nodes| (1..=NODES_MAX).contains(&nodes)) {
            bail!(UsageError(format!("a cluster has 1 to {NODES_MAX} nodes")));
        }
        let dir = StateDir::create(state)?;
        let lock = Some(dir.lock()?);
        let found = dir.load()?;
        let fresh = found.is_none();
        let record = match found {
            Some(mut record) => {
                let there = record.nodes.len();
                if nodes.is_some_and(|nodes| usize::from(nodes) != there) {
                    bail!(UsageError(format!(
                        "the cluster in {} has {there} nodes: `glu dev down` removes it",
                        dir.path().display()
                    )));
                }
                if voters.is_some() {
                    bail!(UsageError(format!(
                        "the cluster in {} has its voters already: `glu voters` changes them",
                        dir.path().display()
                    )));
                }
                if let Some(glud) = glud {
                    record.glud = program(glud)?;
                }
                record
            }
            None => {
                let glud = match glud {
                    Some(glud) => glud,
                    None => init::program_dir()?.join("glud"),
                };
                Record::new(program(glud)?, nodes.unwrap_or(NODES_DEFAULT))?
            }
        };
        let count = u16::try_from(record.nodes.len())?;
        let voters = voters.unwrap_or(if count < VOTERS_DEFAULT {
            1
        } else {
            VOTERS_DEFAULT
        });
        if fresh && !(matches!(voters, 1 | 3 | 5) && voters <= count) {
            bail!(UsageError(format!(
                "{voters} voters of {count} nodes: choose 1, 3 or 5"
            )));
        }
        let mut cluster = Self { dir, record, lock };
        match cluster.bring_up(fresh.then_some(voters), progress) {
            Ok(()) => Ok(cluster),
            Err(e) if fresh => {
                cluster
                    .remove()
                    .with_context(|| format!("after the failure: {e:#}"))?;
                Err(e)
            }
            Err(e) => Err(e),
        }
    }

    /// Opens the cluster in `state` to look at it.
    pub fn open(state: &Path) -> Result<Self> {
        let dir = StateDir::find(state)?.with_context(|| no_cluster(state))?;
        let record = dir.load()?.with_context(|| no_cluster(state))?;
        Ok(Self {
            dir,
            record,
            lock: None,
        })
    }

    /// Opens the cluster in `state` to change it.
    pub fn open_locked(state: &Path) -> Result<Self> {
        let dir = StateDir::find(state)?.with_context(|| no_cluster(state))?;
        // Looked at before the lock is taken, which would leave a lock file in any directory.
        dir.load()?.with_context(|| no_cluster(state))?;
        let lock = Some(dir.lock()?);
        let record = dir.load()?.with_context(|| no_cluster(state))?;
        Ok(Self { dir, record, lock })
    }

    /// Looks at every node.
    #[must_use]
    pub fn status(&self) -> Status {
        Status::of(self)
    }

    /// Cuts the power of a node; nothing if it is down.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        let found = self.find(name)?;
        node::kill(&self.dir, found.number, found.init)?;
        self.update(NodeRecord {
            init: None,
            cut: false,
            ..found
        })
    }

    /// Boots a node on its own disk and waits until it serves; nothing if it is up.
    pub fn start(&mut self, name: &str) -> Result<()> {
        let found = self.find(name)?;
        if found.running().is_none() {
            self.boot(found.number)?;
        }
        self.wait_ready(&[found.number])
    }

    /// Cuts a node's network, or heals it.
    pub fn set_cut(&mut self, name: &str, cut: bool) -> Result<()> {
        let found = self.find(name)?;
        if found.running().is_none() {
            bail!("{0} is down: `glu dev start {0}` boots it", found.name());
        }
        network::set_cut(&self.dir.hub(), found.number, cut)?;
        self.update(NodeRecord { cut, ..found })
    }

    pub(super) fn dir(&self) -> &StateDir {
        &self.dir
    }

    pub(super) fn nodes(&self) -> &[NodeRecord] {
        &self.record.nodes
    }

    fn find(&self, name: &str) -> Result<NodeRecord, UsageError> {
        self.record.node(name).cloned()
    }

    /// `voters`: of a cluster that is new.
    fn bring_up(&mut self, voters: Option<u16>, progress: &dyn Progress) -> Result<()> {
        if let Some(voters) = voters {
            // A command that died may have left something without a record.
            clear(&self.dir)?;
            let nodes = u16::try_from(self.record.nodes.len())?;
            config::write_all(&self.dir, nodes, voters)?;
        }
        self.store()?;
        network::make_hub(&self.dir.hub())?;
        let numbers: Vec<u16> = self.record.nodes.iter().map(|node| node.number).collect();
        for node in self.record.nodes.clone() {
            if node.running().is_none() {
                progress.step(&format!("booting {}", node.name()));
                self.boot(node.number)?;
            }
        }
        progress.step("waiting for the nodes to serve");
        self.wait_ready(&numbers)
    }

    fn boot(&mut self, number: u16) -> Result<()> {
        let init = node::boot(&self.dir, number, &self.record.glud)?;
        self.update(NodeRecord {
            number,
            init: Some(init),
            cut: false,
        })
    }

    fn update(&mut self, changed: NodeRecord) -> Result<()> {
        for node in self
            .record
            .nodes
            .iter_mut()
            .filter(|node| node.number == changed.number)
        {
            *node = changed.clone();
        }
        self.store()
    }

    fn store(&self) -> Result<()> {
        assert!(
            self.lock.is_some(),
            "only who holds the lock changes the cluster"
        );
        self.dir.store(&self.record)
    }

    /// Waits until the daemons of `numbers` have mounted the tree and serve it.
    fn wait_ready(&self, numbers: &[u16]) -> Result<()> {
        let end = Instant::now() + READY_WAIT;
        for &number in numbers {
            let dir = self.dir.node(number);
            // The file says that it serves, the mount table that the tree is visible from outside.
            while !(dir.ready().exists() && mounts::is_mounted(&dir.cluster())?) {
                let running = self
                    .record
                    .nodes
                    .iter()
                    .any(|n| n.number == number && n.running().is_some());
                let why = match init::failures(&dir) {
                    _ if !running => "its init ended".to_owned(),
                    Some(failures) if failures.count >= FAILURES_MAX => {
                        format!("glud failed {} times, it {}", failures.count, failures.last)
                    }
                    _ if Instant::now() > end => format!("it was not ready within {READY_WAIT:?}"),
                    _ => {
                        thread::sleep(READY_POLL_PAUSE);
                        continue;
                    }
                };
                bail!(NotServing {
                    name: node_name(number),
                    why,
                    log: dir.log_tail(LOG_LINES_SHOWN)
                });
            }
        }
        Ok(())
    }

    fn remove(self) -> Result<()> {
        let Self {
            dir,
            record: _,
            lock,
        } = self;
        remove(&dir)?;
        drop(lock);
        Ok(())
    }
}

/// Ends and removes the cluster in `state`, whatever state it is in; nothing if there is none.
pub fn down(state: &Path, progress: &dyn Progress) -> Result<()> {
    let Some(dir) = StateDir::find(state)? else {
        return Ok(());
    };
    if fs::read_dir(dir.path())?.next().is_none() {
        return Ok(());
    }
    if let Err(e) = dir.load()
        && e.is::<UsageError>()
    {
        return Err(e);
    }
    let lock = dir.lock()?;
    progress.step("ending the nodes");
    end(&dir)?;
    progress.step("removing what they had");
    remove(&dir)?;
    drop(lock);
    Ok(())
}

/// Ends and deletes all that belongs to the cluster but its lock.
///
/// Needs no readable record: what has crashed may have left none.
fn clear(dir: &StateDir) -> Result<()> {
    end(dir)?;
    dir.clear()
}

fn end(dir: &StateDir) -> Result<()> {
    node::kill_all(dir)?;
    mounts::detach_below(dir.path())
}

fn remove(dir: &StateDir) -> Result<()> {
    clear(dir)?;
    dir.remove()?;
    for host in [host_dir::CLUSTER, host_dir::RUN] {
        host_dir::release(Path::new(host))?;
    }
    Ok(())
}

/// Makes the path of a program absolute and sees that it is there.
fn program(path: PathBuf) -> Result<PathBuf> {
    fs::canonicalize(&path).with_context(|| {
        format!(
            "find the daemon {} (build it, or name it with --glud)",
            path.display()
        )
    })
}

#[derive(Debug)]
struct NotServing {
    name: String,
    why: String,
    log: String,
}

impl std::error::Error for NotServing {}

impl fmt::Display for NotServing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, why, log } = self;
        write!(
            f,
            "{name} does not serve: {why}; the end of its log:\n{log}"
        )
    }
}
