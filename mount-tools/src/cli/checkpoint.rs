//! `glu checkpoint`: images of a job that goes on.

use crate::moves;
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

impl Checkpoint {
    pub(super) fn run(&self) -> Result<ExitCode> {
        let pid = self.pid;
        let (number, bytes) = moves::checkpoint(pid).map_err(|why| anyhow!("{pid}: {why}"))?;
        println!("{pid}: checkpoint {number}, {bytes} bytes");
        Ok(ExitCode::SUCCESS)
    }
}
