//! `glu debug`: what the requests of this node wait for, and a way out for one that should not.

use crate::daemon::{SOCKET_DEFAULT, ask};
use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
pub(super) struct Debug {
    /// The daemon's control socket.
    #[arg(long, value_name = "PATH", default_value = SOCKET_DEFAULT, global = true)]
    socket: PathBuf,
    #[command(subcommand)]
    command: DebugCommand,
}

#[derive(Debug, Subcommand)]
enum DebugCommand {
    /// List the requests that wait for their answer, oldest first.
    Waits {
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Let the caller of a request that waits go with EIO.
    Abort {
        /// The number that `waits` shows.
        number: u64,
    },
}

#[derive(Debug, Deserialize)]
struct Waits {
    waits: Vec<Wait>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Wait {
    number: u64,
    request: String,
    inode: u64,
    pid: u32,
    ms: u64,
}

#[derive(Debug, Deserialize)]
struct Aborted {
    aborted: bool,
}

const OPTION: &str = "--socket PATH";

impl Debug {
    pub(super) fn run(self) -> Result<ExitCode> {
        match self.command {
            DebugCommand::Waits { json } => {
                let question = serde_json::json!({"cmd": "waits"});
                let Waits { waits } = ask(&self.socket, &question, OPTION)?;
                if json {
                    println!("{}", serde_json::to_string(&waits)?);
                } else {
                    println!("{}", table(&waits));
                }
            }
            DebugCommand::Abort { number } => {
                let question = serde_json::json!({"cmd": "abort", "number": number});
                let Aborted { aborted } = ask(&self.socket, &question, OPTION)?;
                if !aborted {
                    bail!(
                        "request {number} does not wait (any more): glu debug waits shows what does"
                    );
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn table(waits: &[Wait]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_header(["NUMBER", "REQUEST", "INODE", "PID", "SECONDS"]);
    for wait in waits {
        table.add_row([
            wait.number.to_string(),
            wait.request.clone(),
            wait.inode.to_string(),
            wait.pid.to_string(),
            format!("{}.{:03}", wait.ms / 1_000, wait.ms % 1_000),
        ]);
    }
    table
}
