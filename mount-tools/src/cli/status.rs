//! `glu status`: this node, the metadata's voters and their leader.

use crate::daemon::{SOCKET_DEFAULT, ask};
use anyhow::Result;
use clap::Args;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub(super) struct Status {
    /// The daemon's control socket.
    #[arg(long, value_name = "PATH", default_value = SOCKET_DEFAULT)]
    socket: PathBuf,
    /// For programs.
    #[arg(long)]
    json: bool,
}

/// What the daemon answers.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    node: u16,
    leader: Option<u16>,
    voters: Vec<u16>,
    state: String,
}

impl Status {
    pub(super) fn run(self) -> Result<ExitCode> {
        let question = serde_json::json!({"cmd": "status"});
        let answer: Answer = ask(&self.socket, &question, "--socket PATH")?;
        if self.json {
            println!("{}", serde_json::to_string(&answer)?);
        } else {
            println!("{answer}");
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "node    {}, {}", self.node, self.state)?;
        match self.leader {
            Some(leader) => writeln!(f, "leader  {leader}")?,
            None => writeln!(f, "leader  none known")?,
        }
        let voters: Vec<_> = self.voters.iter().map(u16::to_string).collect();
        write!(f, "voters  {}", voters.join(" "))
    }
}
