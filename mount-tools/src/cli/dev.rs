//! `glu dev`.

use crate::dev::{Cluster, NodeState, Progress, STATE_DIR_DEFAULT, Size, Status, down, exec};
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
pub(super) struct Dev {
    /// Where the cluster lives; clusters with different directories do not meet.
    #[arg(long, value_name = "DIR", env = "GLU_DEV_STATE", default_value = STATE_DIR_DEFAULT, global = true)]
    state: PathBuf,
    #[command(subcommand)]
    command: DevCommand,
}

#[derive(Debug, Subcommand)]
enum DevCommand {
    /// Make a cluster, or boot what is down of it; returns when all nodes serve.
    Up {
        /// How many nodes [default: 3, or as many as there are].
        #[arg(long, value_name = "N")]
        nodes: Option<u16>,
        /// How many of them keep the metadata, 1, 3 or 5 [default: 3 if there are so many nodes, else 1].
        #[arg(long, value_name = "N")]
        voters: Option<u16>,
        /// The daemon to run [default: the glud beside this program].
        #[arg(long, value_name = "FILE", env = "GLU_DEV_GLUD")]
        glud: Option<PathBuf>,
    },
    /// Show the nodes and who leads.
    Status {
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Run a command inside a node; its exit status or signal becomes this program's.
    Exec {
        /// `2` or `node2`.
        node: String,
        /// The command and its arguments, after `--`.
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// Open a shell inside a node.
    Shell {
        /// `2` or `node2`.
        node: String,
    },
    /// Cut a node's power: all its processes end at once, nothing is flushed.
    Kill {
        /// `2` or `node2`.
        node: String,
    },
    /// Boot a node again on its own disk; returns when it serves.
    Start {
        /// `2` or `node2`.
        node: String,
    },
    /// Cut a node's network.
    Cut {
        /// `2` or `node2`.
        node: String,
    },
    /// Mend a node's network.
    Heal {
        /// `2` or `node2`.
        node: String,
    },
    /// End and remove the cluster.
    Down,
}

impl Dev {
    pub(super) fn run(self) -> Result<ExitCode> {
        let state = &self.state;
        match self.command {
            DevCommand::Up {
                nodes,
                voters,
                glud,
            } => {
                let spinner = Spinner::new();
                let result = Cluster::up(state, Size { nodes, voters }, glud, &spinner);
                spinner.0.finish_and_clear();
                print!("{}", table(&result?.status()));
            }
            DevCommand::Status { json } => {
                let status = Cluster::open(state)?.status();
                if json {
                    println!(
                        "{}",
                        serde_json::to_string(&status).context("encode the status")?
                    );
                } else {
                    print!("{}", table(&status));
                }
            }
            DevCommand::Exec { node, command } => return exec(state, &node, &command)?.end_alike(),
            DevCommand::Shell { node } => {
                let shell = std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
                return exec(state, &node, &[shell, "-i".into()])?.end_alike();
            }
            DevCommand::Kill { node } => Cluster::open_locked(state)?.kill(&node)?,
            DevCommand::Start { node } => Cluster::open_locked(state)?.start(&node)?,
            DevCommand::Cut { node } => Cluster::open_locked(state)?.set_cut(&node, true)?,
            DevCommand::Heal { node } => Cluster::open_locked(state)?.set_cut(&node, false)?,
            DevCommand::Down => {
                let spinner = Spinner::new();
                let result = down(state, &spinner);
                spinner.0.finish_and_clear();
                result?;
            }
        }
        std::io::stdout().flush().context("write to stdout")?;
        Ok(ExitCode::SUCCESS)
    }
}

fn table(status: &Status) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_header(["NODE", "NAME", "STATE", "METADATA", "TREE"]);
    for node in &status.nodes {
        let state = match (node.state, node.ready) {
            (NodeState::Up, true) => "up",
            (NodeState::Up, false) => "up, not serving",
            (NodeState::Cut, true) => "cut",
            (NodeState::Cut, false) => "cut, not serving",
            (NodeState::Down, _) => "down",
        };
        let metadata = if status.leader == Some(node.number) {
            "leader"
        } else if status.voters.contains(&node.number) {
            "voter"
        } else {
            ""
        };
        table.add_row([
            node.number.to_string(),
            node.name.clone(),
            state.to_owned(),
            metadata.to_owned(),
            node.mount.display().to_string(),
        ]);
    }
    let lines: Vec<_> = table
        .lines()
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect();
    lines.concat()
}

/// Progress on a terminal; silent elsewhere.
struct Spinner(ProgressBar);

impl Spinner {
    fn new() -> Self {
        let bar = if std::io::stderr().is_terminal() {
            ProgressBar::new_spinner()
        } else {
            ProgressBar::hidden()
        };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }
}

impl Progress for Spinner {
    fn step(&self, what: &str) {
        self.0.set_message(what.to_owned());
    }
}
