//! `glu voters`: which nodes keep the metadata.

use crate::daemon::{SOCKET_DEFAULT, ask, ask_within};
use crate::dev::UsageError;
use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde::Deserialize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// A new voter gets the whole state first; the daemon gives up before that.
const CHANGE_WITHIN: Duration = Duration::from_secs(90);
const OPTION: &str = "--socket PATH";

#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
pub(super) struct Voters {
    /// The daemon's control socket.
    #[arg(long, value_name = "PATH", default_value = SOCKET_DEFAULT, global = true)]
    socket: PathBuf,
    #[command(subcommand)]
    command: VotersCommand,
}

#[derive(Debug, Subcommand)]
enum VotersCommand {
    /// List them.
    List,
    /// Make these the voters, all others none; to be run on the leader. A new one must be up, with its own number and
    /// those of the present voters in its `voters`.
    Set {
        /// 1, 3 or 5 numbers of nodes.
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<u16>,
    },
}

#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(default)]
    voters: Vec<u16>,
    error: Option<String>,
}

impl Voters {
    pub(super) fn run(self) -> Result<ExitCode> {
        let answer: Answer = match self.command {
            VotersCommand::List => {
                ask(&self.socket, &serde_json::json!({"cmd": "status"}), OPTION)?
            }
            VotersCommand::Set { nodes } => {
                if !matches!(nodes.len(), 1 | 3 | 5) {
                    bail!(UsageError(format!(
                        "{} voters: choose 1, 3 or 5",
                        nodes.len()
                    )));
                }
                let question = serde_json::json!({"cmd": "voters", "set": nodes});
                ask_within(CHANGE_WITHIN, &self.socket, &question, OPTION)?
            }
        };
        if let Some(error) = answer.error {
            bail!(error);
        }
        let voters: Vec<_> = answer.voters.iter().map(u16::to_string).collect();
        println!("{}", voters.join(" "));
        Ok(ExitCode::SUCCESS)
    }
}
