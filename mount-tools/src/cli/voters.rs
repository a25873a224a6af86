//! `glu voters`: which nodes keep the metadata.

use crate::daemon::{SOCKET_DEFAULT, ask, ask_within};
use crate::dev::UsageError;
use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde::Deserialize;
use std::collections::BTreeSet;
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
    /// Make these the voters, all others none. A new one must be up.
    Set {
        /// 1, 3 or 5 numbers of nodes.
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<u16>,
    },
    /// Make these voters as well; 3 or 5 there must be then.
    Add {
        /// Numbers of nodes.
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<u16>,
    },
    /// Make these voters no more; 1 or 3 there must be then.
    Remove {
        /// Numbers of nodes.
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<u16>,
    },
    /// Have one node take the place of another, which may be lost. A voter that stays away for `[repair] after_s` is
    /// replaced without being asked for if there is a node that is none.
    Replace {
        /// The voter.
        old: u16,
        /// The node that is none yet.
        new: u16,
    },
}

#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(default)]
    voters: BTreeSet<u16>,
    error: Option<String>,
}

impl Voters {
    pub(super) fn run(self) -> Result<ExitCode> {
        let voters = match self.command {
            VotersCommand::Set { ref nodes } => self.set(nodes.iter().copied().collect())?,
            ref command => {
                let now = answered(ask(
                    &self.socket,
                    &serde_json::json!({"cmd": "voters"}),
                    OPTION,
                )?)?;
                match command.changed(&now)? {
                    Some(changed) => self.set(changed)?,
                    None => now,
                }
            }
        };
        let voters: Vec<_> = voters.iter().map(u16::to_string).collect();
        println!("{}", voters.join(" "));
        Ok(ExitCode::SUCCESS)
    }

    fn set(&self, voters: BTreeSet<u16>) -> Result<BTreeSet<u16>> {
        if !matches!(voters.len(), 1 | 3 | 5) {
            bail!(UsageError(format!(
                "{} voters: choose 1, 3 or 5",
                voters.len()
            )));
        }
        let question = serde_json::json!({"cmd": "voters", "set": voters});
        answered(ask_within(CHANGE_WITHIN, &self.socket, &question, OPTION)?)
    }
}

fn answered(answer: Answer) -> Result<BTreeSet<u16>> {
    match answer.error {
        Some(error) => bail!(error),
        None => Ok(answer.voters),
    }
}

impl VotersCommand {
    /// Returns what the voters are to be, if they are to be others than now.
    fn changed(&self, now: &BTreeSet<u16>) -> Result<Option<BTreeSet<u16>>, UsageError> {
        let mut voters = now.clone();
        let (leave, come): (&[u16], &[u16]) = match self {
            Self::List => return Ok(None),
            Self::Set { nodes } | Self::Add { nodes } => (&[], nodes),
            Self::Remove { nodes } => (nodes, &[]),
            Self::Replace { old, new } => (std::slice::from_ref(old), std::slice::from_ref(new)),
        };
        for node in leave {
            if !voters.remove(node) {
                return Err(UsageError(format!("node {node} is no voter")));
            }
        }
        for node in come {
            if !voters.insert(*node) {
                return Err(UsageError(format!("node {node} is a voter already")));
            }
        }
        Ok(Some(voters))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_voters_are_to_be() {
        let now = BTreeSet::from([1, 2, 3]);
        let check = |command: VotersCommand, expected: Result<&[u16], &str>| {
            let changed = command.changed(&now).map_err(|error| error.to_string());
            let expected = expected.map(|nodes| Some(nodes.iter().copied().collect()));
            assert_eq!(changed, expected.map_err(str::to_owned), "{command:?}");
        };
        let nodes = |nodes: &[u16]| nodes.to_vec();
        let add = |list| VotersCommand::Add { nodes: nodes(list) };
        let remove = |list| VotersCommand::Remove { nodes: nodes(list) };
        let replace = |old, new| VotersCommand::Replace { old, new };
        check(add(&[5, 4]), Ok(&[1, 2, 3, 4, 5]));
        check(add(&[3]), Err("node 3 is a voter already"));
        check(remove(&[1, 3]), Ok(&[2]));
        check(remove(&[4]), Err("node 4 is no voter"));
        check(replace(2, 7), Ok(&[1, 3, 7]));
        check(replace(4, 7), Err("node 4 is no voter"));
        check(replace(2, 3), Err("node 3 is a voter already"));
        assert_eq!(VotersCommand::List.changed(&now).expect("right"), None);
    }
}
