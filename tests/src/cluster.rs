//! Clusters of one test.

use crate::{DEADLINE, Output, Running, binary, scratch_dir};
use serde::Deserialize;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Once};
use std::thread;
use std::time::Duration;

/// `glu dev up` has deadlines of its own, which say more than ours.
const UP_DEADLINE: Duration = Duration::from_secs(180);
const LOG_LINES_SHOWN: usize = 30;
const NAME: &str = "glu-";

/// A development cluster that lives as long as this.
#[derive(Debug)]
pub struct Cluster {
    state: PathBuf,
    glu: PathBuf,
    nodes: u16,
}

/// What a cluster is to be like.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How many nodes; 3 if not given.
    pub nodes: Option<u16>,
    /// The daemon to run instead of the real one.
    pub glud: Option<PathBuf>,
}

/// One node of a [`Cluster`].
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    cluster: &'a Cluster,
    number: u16,
}

/// What `glu dev status --json` says.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Status {
    /// The node whose metadata server leads.
    pub leader: Option<u16>,
    /// In the order of their numbers.
    pub nodes: Vec<NodeStatus>,
}

/// One node of a [`Status`].
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct NodeStatus {
    /// Counts from 1.
    pub number: u16,
    /// Its host name.
    pub name: String,
    /// `up`, `down` or `cut`.
    pub state: String,
    /// Its daemon serves.
    pub ready: bool,
    /// Its tree, seen from outside.
    pub mount: PathBuf,
    /// Its init, seen from outside.
    pub pid: Option<i32>,
}

impl Cluster {
    /// Makes a cluster of `nodes` nodes with the real daemon and waits until all serve.
    ///
    /// # Panics
    /// It does not come up.
    #[must_use]
    #[track_caller]
    pub fn up(nodes: u16) -> Self {
        Self::with(&Options {
            nodes: Some(nodes),
            ..Options::default()
        })
    }

    /// Makes a cluster with `options` and waits until all nodes serve.
    ///
    /// # Panics
    /// It does not come up.
    #[must_use]
    #[track_caller]
    pub fn with(options: &Options) -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        assert!(
            nix::unistd::geteuid().is_root(),
            "clusters need root: namespaces and mounts"
        );
        let glu = binary("glu");
        remove_leftovers(&glu);
        let count = MADE.fetch_add(1, Ordering::Relaxed);
        let state = scratch_dir().join(format!("{NAME}{}-{count}", std::process::id()));
        // Before `up`: if that fails the drop cleans up.
        let mut cluster = Self {
            state,
            glu,
            nodes: 0,
        };
        let nodes = options.nodes.map(|nodes| nodes.to_string());
        let mut args = vec![OsStr::new("up")];
        if let Some(nodes) = &nodes {
            args.extend([OsStr::new("--nodes"), OsStr::new(nodes)]);
        }
        if let Some(glud) = &options.glud {
            args.extend([OsStr::new("--glud"), glud.as_os_str()]);
        }
        cluster.dev_within(UP_DEADLINE, &args).ok();
        cluster.nodes = u16::try_from(cluster.status().nodes.len()).expect("a handful of nodes");
        cluster
    }

    /// Returns the state directory.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Returns node `number`, counted from 1.
    ///
    /// # Panics
    /// There is no such node.
    #[must_use]
    #[track_caller]
    pub fn node(&self, number: u16) -> Node<'_> {
        assert!(
            (1..=self.nodes).contains(&number),
            "node {number} of {}",
            self.nodes
        );
        Node {
            cluster: self,
            number,
        }
    }

    /// Returns all nodes.
    pub fn nodes(&self) -> impl Iterator<Item = Node<'_>> {
        (1..=self.nodes).map(|number| Node {
            cluster: self,
            number,
        })
    }

    /// Returns where the tree of node `number` is seen from outside.
    #[must_use]
    pub fn path(&self, number: u16) -> PathBuf {
        self.state.join(format!("node{number}/cluster"))
    }

    /// Asks what the nodes are doing.
    #[track_caller]
    pub fn status(&self) -> Status {
        let text = self.dev(&["status", "--json"]).ok();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("status: {e}: {text}"))
    }

    /// Cuts the power of a node.
    #[track_caller]
    pub fn kill(&self, number: u16) {
        self.dev(&["kill", &number.to_string()]).ok();
    }

    /// Boots a node again and waits until it serves.
    #[track_caller]
    pub fn start(&self, number: u16) {
        self.dev(&["start", &number.to_string()]).ok();
    }

    /// Cuts a node's network.
    #[track_caller]
    pub fn cut(&self, number: u16) {
        self.dev(&["cut", &number.to_string()]).ok();
    }

    /// Mends a node's network.
    #[track_caller]
    pub fn heal(&self, number: u16) {
        self.dev(&["heal", &number.to_string()]).ok();
    }

    /// Runs `glu dev` with these arguments on this cluster.
    #[track_caller]
    pub fn dev(&self, args: &[&str]) -> Output {
        let args: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
        self.dev_within(DEADLINE, &args)
    }

    #[track_caller]
    fn dev_within(&self, deadline: Duration, args: &[&OsStr]) -> Output {
        self.finish(self.start_dev(args), deadline)
    }

    fn start_dev(&self, args: &[&OsStr]) -> Running {
        let mut command = Command::new(&self.glu);
        command
            .arg("dev")
            .arg("--state")
            .arg(&self.state)
            .args(args);
        command.env_remove("GLU_DEV_GLUD");
        let words: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
        Running::start(format!("glu dev {}", words.join(" ")), command)
    }

    #[track_caller]
    fn finish(&self, running: Running, deadline: Duration) -> Output {
        running
            .end_within(deadline)
            .unwrap_or_else(|e| panic!("{e}\n{}", self.log_tails()))
    }

    /// Returns the ends of the nodes' logs.
    fn log_tails(&self) -> String {
        let tail = |number: u16| {
            let path = self.state.join(format!("node{number}/glud.log"));
            let text = fs::read(path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            let shown = lines.get(lines.len().saturating_sub(LOG_LINES_SHOWN)..);
            format!(
                "--- node{number} glud.log\n{}\n",
                shown.unwrap_or_default().join("\n")
            )
        };
        (1..=self.nodes).map(tail).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.log_tails());
        }
        let down = self.start_dev(&[OsStr::new("down")]).end_within(DEADLINE);
        let failure = match down {
            Ok(output) if output.code == Some(0) => return,
            Ok(output) => output.stderr,
            Err(e) => e,
        };
        // A second panic would abort the run and hide the first.
        if thread::panicking() {
            eprintln!("glu dev down: {failure}");
        } else {
            panic!("glu dev down: {failure}");
        }
    }
}

impl Node<'_> {
    /// Returns its number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Runs a shell script inside the node, in the root directory, and waits for its end.
    ///
    /// # Panics
    /// It runs for longer than [`DEADLINE`].
    #[track_caller]
    pub fn sh(&self, script: &str) -> Output {
        self.sh_within(DEADLINE, script)
    }

    /// Like [`Self::sh`], with another deadline.
    #[track_caller]
    pub fn sh_within(&self, deadline: Duration, script: &str) -> Output {
        self.cluster.finish(self.spawn(script), deadline)
    }

    /// Starts a shell script inside the node.
    #[track_caller]
    pub fn spawn(&self, script: &str) -> Running {
        self.spawn_command(&["sh", "-c", script])
    }

    /// Starts a command inside the node.
    #[track_caller]
    pub fn spawn_command(&self, words: &[&str]) -> Running {
        let number = self.number.to_string();
        let mut args = vec![OsStr::new("exec"), OsStr::new(&number), OsStr::new("--")];
        args.extend(words.iter().map(OsStr::new));
        self.cluster.start_dev(&args)
    }

    /// Waits for the end of a command that [`Self::spawn`] started.
    ///
    /// # Panics
    /// It runs for longer than `deadline`.
    #[track_caller]
    pub fn wait(&self, running: Running, deadline: Duration) -> Output {
        self.cluster.finish(running, deadline)
    }
}

/// Removes the clusters of test runs that were killed; once per run.
fn remove_leftovers(glu: &Path) {
    static ONCE: Once = Once::new();
    static OWN: LazyLock<u32> = LazyLock::new(std::process::id);
    ONCE.call_once(|| {
        for entry in fs::read_dir(scratch_dir())
            .expect("list target/tmp")
            .filter_map(Result::ok)
        {
            let name = entry.file_name();
            let maker = name
                .to_str()
                .and_then(|name| name.strip_prefix(NAME)?.split('-').next());
            let Some(maker) = maker.and_then(|pid| pid.parse::<u32>().ok()) else {
                continue;
            };
            if maker != *OWN && Path::new("/proc").join(maker.to_string()).exists() {
                continue;
            }
            let mut down = Command::new(glu);
            down.args(["dev", "down", "--state"]).arg(entry.path());
            let result =
                Running::start(format!("glu dev down of {name:?}"), down).end_within(DEADLINE);
            if let Err(e) = result {
                eprintln!("a leftover of an earlier run stays: {e}");
            }
        }
    });
}
