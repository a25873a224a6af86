//! `glu fsck`: checks what a node has on its disks, while its daemon is stopped.
//!
//! Exit status as that of fsck(8) where it fits: 0 nothing is wrong, 4 something is; 1 it could not be checked.

use crate::node::incarnation;
use anyhow::Result;
use clap::Args;
use gfs::fsck::{Fault, Report};
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

/// Something is wrong, and stays so.
pub(super) const EXIT_FAULTS: u8 = 4;

#[derive(Debug, Args)]
pub(super) struct Fsck {
    /// The node's `state_dir`, for instance /var/lib/glu; its daemon must be stopped.
    dir: PathBuf,
    /// For programs.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Shown {
    node: Option<u16>,
    index: u64,
    inodes: u64,
    chunks: u64,
    chunk_bytes: u64,
    orphans: u64,
    faults: Vec<ShownFault>,
}

#[derive(Debug, Serialize)]
struct ShownFault {
    part: &'static str,
    rule: Option<&'static str>,
    what: String,
}

impl Fsck {
    pub(super) fn run(self) -> Result<ExitCode> {
        let mut report = gfs::fsck::check(&self.dir)?;
        if let Err(error) = incarnation::last(&self.dir) {
            report.faults.push(Fault {
                part: "node",
                rule: None,
                what: format!("{error:#}"),
            });
        }
        let clean = report.faults.is_empty();
        if self.json {
            println!("{}", serde_json::to_string(&Shown::of(report))?);
        } else {
            for fault in &report.faults {
                println!("{fault}");
            }
            println!("{}", summary(&report));
        }
        Ok(if clean {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(EXIT_FAULTS)
        })
    }
}

impl Shown {
    fn of(report: Report) -> Self {
        let shown = |fault: Fault| ShownFault {
            part: fault.part,
            rule: fault.rule,
            what: fault.what,
        };
        Self {
            node: report.node.map(|node| node.0),
            index: report.index,
            inodes: report.inodes,
            chunks: report.chunks,
            chunk_bytes: report.chunk_bytes,
            orphans: report.orphans,
            faults: report.faults.into_iter().map(shown).collect(),
        }
    }
}

fn summary(report: &Report) -> String {
    let metadata = match report.node {
        Some(node) => format!(
            "metadata of node {node}: {} inodes at entry {}",
            report.inodes, report.index
        ),
        None => "no metadata that can be read: chunks were compared with their checksums alone"
            .to_owned(),
    };
    let mib = report.chunk_bytes.div_ceil(1 << 20);
    let (chunks, orphans) = (report.chunks, report.orphans);
    let faults = match report.faults.len() {
        0 => "nothing is wrong".to_owned(),
        1 => "1 fault".to_owned(),
        many => format!("{many} faults"),
    };
    format!("{metadata}; {chunks} chunks, {mib} MiB, {orphans} of them of no file; {faults}")
}
