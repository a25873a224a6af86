//! `glu backup` and `glu restore`: the metadata of the cluster in a file, and back.

use crate::config::GludConfig;
use crate::daemon::{SOCKET_DEFAULT, ask_for};
use crate::identity::NodeIdentity;
use anyhow::{Context, Result, bail};
use clap::Args;
use consistency::NodeId;
use gfs::data::store::{DirStore, OpenError};
use gfs::server::backup::{self, About};
use gfs::server::log;
use gfs::server::machine::StateMachine;
use serde::Deserialize;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// The leader copies its state first.
const BEGINS_WITHIN: Duration = Duration::from_secs(90);
const OPTION: &str = "--socket PATH";

#[derive(Debug, Args)]
pub(super) struct Backup {
    /// Where it goes; one that is there is replaced when the new one is whole.
    file: PathBuf,
    /// The daemon's control socket.
    #[arg(long, value_name = "PATH", default_value = SOCKET_DEFAULT)]
    socket: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct Restore {
    /// The backup.
    file: PathBuf,
    /// Configuration of the node that gets the metadata: the first of the voters, without a log.
    #[arg(long, value_name = "FILE", default_value = "/etc/glu/glud.toml")]
    config: PathBuf,
    /// Also if the backup is of a cluster of another name. The chunks of this one that the backup does not know are
    /// deleted then.
    #[arg(long)]
    other_cluster: bool,
}

/// What the daemon says before the metadata.
#[derive(Debug, Deserialize)]
struct Begun {
    cluster: String,
    index: u64,
    inodes: u64,
    bytes: u64,
}

impl Backup {
    pub(super) fn run(self) -> Result<ExitCode> {
        let question = serde_json::json!({"cmd": "backup"});
        let (begun, mut state): (Begun, _) =
            ask_for(BEGINS_WITHIN, &self.socket, &question, OPTION)?;
        let about = About {
            cluster: begun.cluster,
            index: begun.index,
            inodes: begun.inodes,
        };
        let new = beside(&self.file)?;
        let kept = write(&new, &about, &mut state, begun.bytes).and_then(|bytes| {
            fs::rename(&new, &self.file)
                .with_context(|| format!("{}: cannot be made", self.file.display()))?;
            sync_dir(&self.file)?;
            Ok(bytes)
        });
        let bytes = kept.inspect_err(|_| {
            // What is left of it is no backup.
            drop(fs::remove_file(&new));
        })?;
        println!(
            "{}: cluster {} as of entry {}: {} inodes, {bytes} bytes",
            self.file.display(),
            about.cluster,
            about.index,
            about.inodes
        );
        Ok(ExitCode::SUCCESS)
    }
}

/// Returns where a file is made before it is whole.
fn beside(file: &Path) -> Result<PathBuf> {
    let Some(name) = file.file_name() else {
        bail!("{}: is no name for a file", file.display());
    };
    let mut name = name.to_owned();
    name.push(format!(".{}.new", std::process::id()));
    Ok(file.with_file_name(name))
}

/// Writes a backup and reads it once more; returns its size.
fn write(path: &Path, about: &About, state: &mut impl std::io::Read, bytes: u64) -> Result<u64> {
    let cannot = || format!("{}: cannot be written", path.display());
    let mut file = File::create_new(path).with_context(cannot)?;
    backup::write(&mut file, about, state, bytes)
        .and_then(|()| file.sync_all())
        .with_context(cannot)?;
    backup::read(path).context("the backup is not what the leader has")?;
    Ok(file.metadata().with_context(cannot)?.len())
}

fn sync_dir(file: &Path) -> Result<()> {
    let dir = match file.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        Some(_) | None => Path::new("."),
    };
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .with_context(|| format!("{}: cannot be synced", dir.display()))
}

impl Restore {
    pub(super) fn run(self) -> Result<ExitCode> {
        let config = GludConfig::load(&self.config)?;
        let first = config.voters.iter().min();
        if first != Some(&config.node) {
            let first = first.expect("checked by the configuration");
            bail!(
                "{}: the voters are {}: restore on node {first}, which founds the group",
                self.config.display(),
                list(&config.voters)
            );
        }
        let tls = &config.tls;
        let identity = NodeIdentity::load(config.node, &tls.ca, &tls.cert, &tls.key)?;
        let (about, state) = backup::read(&self.file)?;
        let cluster = identity.root().name();
        if about.cluster != cluster && !self.other_cluster {
            bail!(
                "{}: is of the cluster {}, this node belongs to {cluster}: --other-cluster restores it all the same",
                self.file.display(),
                about.cluster
            );
        }
        for fault in state.faults() {
            eprintln!("glu: the backup has a fault: {fault}");
        }
        // Its lock keeps a daemon out until the log is there.
        let _store = match DirStore::open_as_it_is(config.state_dir.join("chunks")) {
            Ok(store) => Some(store),
            Err(OpenError::Missing { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        fs::create_dir_all(&config.state_dir)
            .with_context(|| format!("{}: cannot be made", config.state_dir.display()))?;
        let dir = config.state_dir.join("meta");
        log::seed(&dir, config.node, about.index, &state.restored().snapshot())?;
        println!("{}", next_steps(&config, &about, &dir));
        Ok(ExitCode::SUCCESS)
    }
}

/// Says what there is and what is to be done.
fn next_steps(config: &GludConfig, about: &About, dir: &Path) -> String {
    let mut text = format!(
        "{}: {} inodes of the cluster {} as of entry {}; start glud here with the other nodes' daemons stopped, then those",
        dir.display(),
        about.inodes,
        about.cluster,
        about.index
    );
    if config.voters.len() > 1 {
        text += &format!(
            "\nthis node keeps the metadata alone: move meta away on all other nodes before they start, then run glu voters set {}",
            list(&config.voters)
        );
    }
    text
}

fn list(nodes: &[NodeId]) -> String {
    let nodes: Vec<_> = nodes.iter().map(NodeId::to_string).collect();
    nodes.join(" ")
}
