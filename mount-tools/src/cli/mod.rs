//! The command line: what is asked, and how answers and errors look.
//!
//! Errors are one line on stderr. Exit status 2: what was asked cannot be; 1: it failed.

mod backup;
mod check;
mod checkpoint;
mod cluster;
mod debug;
mod dev;
mod found;
mod fsck;
mod node;
mod nodes;
mod voters;
mod why;

use crate::dev::{UsageError, init};
use crate::devices;
use crate::jobs::list::Jobs;
use crate::top;
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// What was asked cannot be.
const EXIT_USAGE: u8 = 2;

/// A set of Linux machines that behave as one.
#[derive(Debug, Parser)]
#[command(
    name = "glu",
    version,
    propagate_version = true,
    disable_help_subcommand = true
)]
struct Glu {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Found a cluster: make its authority, and for each node the directory that becomes /etc/glu there.
    Init(found::Init),
    /// A development cluster of several nodes on this machine.
    Dev(dev::Dev),
    /// Show the nodes of the cluster, who keeps the metadata and who leads, and how the repair of file data stands.
    Status(cluster::Status),
    /// Watch nodes, processes, leases and traffic of the cluster.
    Top(top::Top),
    /// Show whom the nodes are for: who may run processes there, in which partitions they are, who has reserved them. The
    /// rights are those of /cluster/node<N>, where chmod and chown change them.
    Nodes(nodes::Nodes),
    /// Show the jobs of glurun and its kin that run in the cluster: their numbers, users, nodes and commands. What has just
    /// begun is not there yet. A job is `lost` for half a minute when its glurun's node was lost.
    Jobs(Jobs),
    /// Move all file data off a node, and show how far that is.
    Drain(cluster::Drain),
    /// Let a node have file data again.
    Undrain(cluster::Undrain),
    /// Say what automatic levelling makes of a process: where it goes, or why it stays.
    Why(why::Why),
    /// Make a checkpoint of a job, which goes on: what it is started from if its node is lost and glurun has been given
    /// --restart.
    Checkpoint(checkpoint::Checkpoint),
    /// Have a job go on as its newest checkpoint, on another node than where it is. What it did since is forgotten, but for
    /// what it has written. If that fails it goes on as it is.
    Restart(checkpoint::Restart),
    /// Show or change the nodes that keep the metadata.
    Voters(voters::Voters),
    /// Make a node's certificate, or have no node accept it any more.
    Node(node::Node),
    /// Use a terminal or serial line of another node.
    Console(devices::Console),
    /// Make a block device of this node that stands for a disk of another one, and print its name.
    Attach(devices::Attach),
    /// End such a block device.
    Detach(devices::Detach),
    /// What requests of this node wait for.
    Debug(debug::Debug),
    /// Copy the metadata of the cluster, as they are at one moment, into a file.
    Backup(backup::Backup),
    /// Make the metadata of a stopped cluster anew from a backup.
    Restore(backup::Restore),
    /// Check the metadata, that all voters have the same, and the copies of file data, while the cluster is in use. Exit
    /// status: 0 nothing is wrong, 4 something is, 1 it could not be checked.
    Check(check::Check),
    /// Check what a node has on its disks, while its daemon is stopped. Exit status: 0 nothing is wrong, 4 something is,
    /// 1 it could not be checked.
    Fsck(fsck::Fsck),
    /// Pid 1 of a development node.
    #[command(name = init::SUBCOMMAND, hide = true)]
    DevInit {
        #[arg(long)]
        state: PathBuf,
        #[arg(long)]
        node: u16,
        #[arg(long)]
        glud: PathBuf,
    },
}

/// Runs `glu`.
#[must_use]
pub fn main() -> ExitCode {
    let glu = match Glu::try_parse() {
        Ok(glu) => glu,
        Err(e) => return refuse("glu", &e),
    };
    let result = match glu.command {
        Command::Init(init) => init.run(),
        Command::Dev(dev) => dev.run(),
        Command::Status(status) => status.run(),
        Command::Top(top) => top.run(),
        Command::Nodes(nodes) => nodes.run().map(|()| ExitCode::SUCCESS),
        Command::Jobs(jobs) => jobs.run().map(|()| ExitCode::SUCCESS),
        Command::Drain(drain) => drain.run(),
        Command::Undrain(undrain) => undrain.run(),
        Command::Why(why) => why.run(),
        Command::Checkpoint(checkpoint) => checkpoint.run(),
        Command::Restart(restart) => restart.run(),
        Command::Voters(voters) => voters.run(),
        Command::Node(node) => node.run(),
        Command::Console(console) => console.run(),
        Command::Attach(attach) => attach.run(),
        Command::Detach(detach) => detach.run(),
        Command::Debug(debug) => debug.run(),
        Command::Backup(backup) => backup.run(),
        Command::Restore(restore) => restore.run(),
        Command::Check(check) => check.run(),
        Command::Fsck(fsck) => fsck.run(),
        Command::DevInit { state, node, glud } => {
            init::run(&init::Options { state, node, glud }).map(|never| match never {})
        }
    };
    result.unwrap_or_else(|e| {
        eprintln!("glu: {e:#}");
        if e.is::<UsageError>() {
            ExitCode::from(EXIT_USAGE)
        } else {
            ExitCode::FAILURE
        }
    })
}

/// Prints help where it was asked for, else one line.
pub fn refuse(tool: &str, e: &clap::Error) -> ExitCode {
    if !e.use_stderr() {
        // Nobody reads the help if this fails.
        drop(e.print());
        return ExitCode::SUCCESS;
    }
    let text = e.render().to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut message = lines.next().unwrap_or("error: bad arguments").to_owned();
    // "the following arguments were not provided:" names them on lines of their own.
    if message.ends_with(':') {
        let names: Vec<&str> = lines
            .take_while(|line| !line.starts_with("Usage"))
            .collect();
        message = format!("{message} {}", names.join(" "));
    }
    let message = message.trim_start_matches("error: ");
    eprintln!("{tool}: {message} (try --help)");
    ExitCode::from(EXIT_USAGE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Glu::command().debug_assert();
    }
}
