//! Clusters of one test.

use crate::command::{Logs, without_caller};
use crate::{DEADLINE, Output, Running, Terminal, binary, scratch_dir, wait_until};
use serde::Deserialize;
use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

/// `glu dev up` has deadlines of its own, which say more than ours.
const UP_DEADLINE: Duration = Duration::from_secs(180);
const NAME: &str = "glu-";

/// A development cluster that lives as long as this.
#[derive(Debug)]
pub struct Cluster {
    state: PathBuf,
    glu: PathBuf,
    nodes: u32,
}

/// What a cluster is to be like.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How many nodes; 3 if not given.
    pub nodes: Option<u32>,
    /// How many keep the metadata; 3 if not given and there are so many nodes, else 1.
    pub voters: Option<u32>,
    /// The daemon to run instead of the real one.
    pub glud: Option<PathBuf>,
    /// The program that moves processes; that of the machine, if there is one, if not given.
    pub criu: Option<PathBuf>,
}

/// One node of a [`Cluster`].
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    cluster: &'a Cluster,
    number: u32,
}

/// What `glu dev status --json` says.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Status {
    /// The node whose metadata server leads.
    pub leader: Option<u32>,
    /// The nodes that keep the metadata.
    pub voters: Vec<u32>,
    /// In the order of their numbers.
    pub nodes: Vec<NodeStatus>,
}

/// One node of a [`Status`].
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct NodeStatus {
    /// Counts from 1.
    pub number: u32,
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
    pub fn up(nodes: u32) -> Self {
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
        let voters = options.voters.map(|voters| voters.to_string());
        if let Some(voters) = &voters {
            args.extend([OsStr::new("--voters"), OsStr::new(voters)]);
        }
        if let Some(glud) = &options.glud {
            args.extend([OsStr::new("--glud"), glud.as_os_str()]);
        }
        let criu = options.criu.as_deref();
        let up = cluster.start_dev_with(&args, criu);
        up.wait(UP_DEADLINE).ok();
        cluster.nodes = u32::try_from(cluster.status().nodes.len()).expect("a handful of nodes");
        cluster
    }

    /// Returns the state directory; what a test puts there goes with the cluster.
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
    pub fn node(&self, number: u32) -> Node<'_> {
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
    pub fn path(&self, number: u32) -> PathBuf {
        self.state.join(format!("node{number}/cluster"))
    }

    /// Asks what the nodes are doing.
    #[track_caller]
    pub fn status(&self) -> Status {
        let text = self.dev(&["status", "--json"]).ok();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("status: {e}: {text}"))
    }

    /// Waits until a node other than `not` leads the metadata, and returns it.
    ///
    /// # Panics
    /// None does within [`DEADLINE`].
    #[track_caller]
    pub fn leader(&self, not: Option<u32>) -> u32 {
        let mut leader = None;
        wait_until("a metadata leader", DEADLINE, || {
            leader = self.status().leader.filter(|leader| Some(*leader) != not);
            leader.is_some()
        });
        leader.expect("found")
    }

    /// Cuts the power of a node.
    #[track_caller]
    pub fn kill(&self, number: u32) {
        self.dev(&["kill", &number.to_string()]).ok();
    }

    /// Boots a node again and waits until it serves.
    #[track_caller]
    pub fn start(&self, number: u32) {
        self.dev(&["start", &number.to_string()]).ok();
    }

    /// Has a node export a directory to the others, once; it is down for a moment.
    ///
    /// # Panics
    /// It does not come back.
    #[track_caller]
    pub fn export(&self, number: u32, dir: &Path, read_only: bool) {
        let path = self.state.join(format!("node{number}/glud.toml"));
        let config = fs::read_to_string(&path).expect("its configuration");
        assert!(!config.contains("[root]"), "nothing by default");
        let shown = dir.display();
        let section = format!("[root]\nexport = [\"{shown}\"]\nread_only = {read_only}\n[tls]");
        fs::write(&path, config.replacen("[tls]", &section, 1)).expect("written");
        self.kill(number);
        self.start(number);
        let look = format!("stat /cluster/node{number}/root{shown}");
        for node in self.nodes() {
            wait_until("what it exports", DEADLINE, || {
                node.sh(&look).status.success()
            });
        }
    }

    /// Cuts a node's network.
    #[track_caller]
    pub fn cut(&self, number: u32) {
        self.dev(&["cut", &number.to_string()]).ok();
    }

    /// Mends a node's network.
    #[track_caller]
    pub fn heal(&self, number: u32) {
        self.dev(&["heal", &number.to_string()]).ok();
    }

    /// Runs `glu dev` with these arguments on this cluster.
    #[track_caller]
    pub fn dev(&self, args: &[&str]) -> Output {
        let args: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
        self.dev_within(DEADLINE, &args)
    }

    /// Runs a shell script inside node `number`; see [`Node::sh`].
    #[track_caller]
    pub fn sh(&self, number: u32, script: &str) -> Output {
        self.node(number).sh(script)
    }

    /// Starts a shell script inside node `number`.
    #[track_caller]
    pub fn spawn(&self, number: u32, script: &str) -> Running {
        self.node(number).spawn(script)
    }

    #[track_caller]
    fn dev_within(&self, deadline: Duration, args: &[&OsStr]) -> Output {
        self.start_dev(args).wait(deadline)
    }

    #[track_caller]
    fn start_dev(&self, args: &[&OsStr]) -> Running {
        self.start_dev_with(args, None)
    }

    #[track_caller]
    fn start_dev_with(&self, args: &[&OsStr], criu: Option<&Path>) -> Running {
        let mut command = Command::new(&self.glu);
        command
            .arg("dev")
            .arg("--state")
            .arg(&self.state)
            .args(args);
        without_caller(&mut command);
        command.envs(criu.map(|criu| ("GLU_CRIU", criu)));
        let words: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
        let what = format!("glu dev {}", words.join(" "));
        Running::start(what, command, self.logs())
    }

    fn logs(&self) -> Logs {
        Logs(self.state.clone())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.logs().tails());
        }
        let Err(failure) = remove(&self.glu, &self.state) else {
            return;
        };
        // A second panic would abort the run and hide the first.
        if thread::panicking() {
            eprintln!("{failure}");
        } else {
            panic!("{failure}");
        }
    }
}

impl Node<'_> {
    /// Returns its number.
    #[must_use]
    pub fn number(&self) -> u32 {
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
        self.spawn(script).wait(deadline)
    }

    /// Starts a shell script inside the node.
    #[track_caller]
    pub fn spawn(&self, script: &str) -> Running {
        self.spawn_command(&["sh", "-c", script])
    }

    /// Starts a command inside the node, at a terminal.
    #[track_caller]
    pub fn terminal(&self, words: &[&str]) -> Terminal {
        let mut command = Command::new(&self.cluster.glu);
        command.args(["dev", "--state"]).arg(&self.cluster.state);
        command.args(["exec", &self.number.to_string(), "--"]);
        Terminal::start(command.args(words), self.cluster.logs())
    }

    /// Starts a command inside the node.
    #[track_caller]
    pub fn spawn_command(&self, words: &[&str]) -> Running {
        let number = self.number.to_string();
        let mut args = vec![OsStr::new("exec"), OsStr::new(&number), OsStr::new("--")];
        args.extend(words.iter().map(OsStr::new));
        self.cluster.start_dev(&args)
    }
}

/// Ends the cluster in `state` and deletes the directory with whatever a test put there.
fn remove(glu: &Path, state: &Path) -> Result<(), String> {
    let mut down = Command::new(glu);
    down.args(["dev", "down", "--state"]).arg(state);
    let running = Running::start("glu dev down".to_owned(), down, Logs(state.to_owned()));
    let output = running.end_within(DEADLINE)?;
    if !output.status.success() {
        return Err(output.to_string());
    }
    match fs::remove_dir_all(state) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(format!("{}: {e}", state.display())),
        _ => Ok(()),
    }
}

/// Removes the clusters of test runs that were killed; once per run.
fn remove_leftovers(glu: &Path) {
    static ONCE: Once = Once::new();
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
            if maker != std::process::id() && Path::new("/proc").join(maker.to_string()).exists() {
                continue;
            }
            if let Err(e) = remove(glu, &entry.path()) {
                eprintln!("a leftover of an earlier run stays: {e}");
            }
        }
    });
}
