//! `glu node`: a node's certificate.

use crate::daemon::{SOCKET_DEFAULT, ask};
use crate::identity::ClusterCa;
use anyhow::Result;
use clap::{Args, Subcommand};
use consistency::NodeId;
use serde::Deserialize;
use std::path::PathBuf;
use std::process::ExitCode;

const OPTION: &str = "--socket PATH";

#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
pub(super) struct Node {
    #[command(subcommand)]
    command: NodeCommand,
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    /// Shut a node out for good whose machine or key was lost or stolen: no other node talks to it any more, what it held is
    /// free after the lease term, its file data is copied anew, and as a voter it is replaced. A certificate that is issued
    /// later is good.
    Revoke {
        /// The daemon's control socket.
        #[arg(long, value_name = "PATH", default_value = SOCKET_DEFAULT)]
        socket: PathBuf,
        /// Its number.
        node: u16,
    },
    /// Make a certificate and a key for a node, where the cluster's authority is.
    Issue {
        /// The directory with ca.pem and ca.key.
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// Its number.
        node: u16,
        /// Where to put ca.pem, node.pem and node.key; nothing is overwritten.
        #[arg(value_name = "DIR")]
        to: PathBuf,
    },
}

#[derive(Debug, Deserialize)]
struct Revoked {}

impl Node {
    pub(super) fn run(self) -> Result<ExitCode> {
        match self.command {
            NodeCommand::Revoke { socket, node } => {
                let question = serde_json::json!({"cmd": "revoke", "target": node});
                let Revoked {} = ask(&socket, &question, OPTION)?;
                println!(
                    "node {node} is revoked: every node that is up, or starts and finds a leader, refuses it"
                );
            }
            NodeCommand::Issue { ca, node, to } => {
                ClusterCa::load(&ca)?.issue(NodeId(node))?.store(&to)?;
                println!("{}: identity of node {node}", to.display());
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
