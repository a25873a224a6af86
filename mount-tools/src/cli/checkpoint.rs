//! `glu checkpoint` and `glu restart`: images of a job that goes on, and a job that goes on as these.

use crate::moves;
use crate::moves::destination::Destination;
use anyhow::{Result, anyhow};
use clap::Args;
use gproc::pids::ClusterPid;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub(super) struct Checkpoint {
    /// The program of the job, as in /cluster/proc.
    #[arg(value_name = "PID", value_parser = moves::pid)]
    pid: ClusterPid,
}

#[derive(Debug, Args)]
pub(super) struct Restart {
    /// The program of the job, as in /cluster/proc.
    #[arg(value_name = "PID", value_parser = moves::pid)]
    pid: ClusterPid,
    /// A node's number; `home`, where it was started; or `balance`, where it runs best.
    #[arg(value_name = "NODE|home|balance", default_value = "balance")]
    to: Destination,
}

impl Checkpoint {
    pub(super) fn run(&self) -> Result<ExitCode> {
        let pid = self.pid;
        let (number, bytes) = moves::checkpoint(pid).map_err(|why| anyhow!("{pid}: {why}"))?;
        println!("{pid}: checkpoint {number}, {bytes} bytes");
        Ok(ExitCode::SUCCESS)
    }
}

impl Restart {
    pub(super) fn run(&self) -> Result<ExitCode> {
        let pid = self.pid;
        moves::restart(pid, self.to).map_err(|why| anyhow!("{pid}: {why}"))?;
        Ok(ExitCode::SUCCESS)
    }
}
