//! `glu check`: has the leader check the cluster while it serves. Exit status as that of `glu fsck`.

use super::fsck::EXIT_FAULTS;
use crate::daemon::{ClusterCheck, SOCKET_DEFAULT, ask_for};
use anyhow::{Context, Result, bail};
use clap::Args;
use comfy_table::{Table, presets};
use serde::Deserialize;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// The daemon says from time to time how far it is.
const SAYS_WITHIN: Duration = Duration::from_secs(60);
const OPTION: &str = "--socket PATH";

#[derive(Debug, Args)]
pub(super) struct Check {
    /// The daemon's control socket.
    #[arg(long, value_name = "PATH", default_value = SOCKET_DEFAULT)]
    socket: PathBuf,
    /// Read all file data, not one block of each copy of a chunk.
    #[arg(long)]
    data: bool,
    /// For programs.
    #[arg(long)]
    json: bool,
}

/// What the daemon says.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Said {
    Checking {
        #[serde(rename = "checking")]
        _copies: u64,
    },
    Error {
        error: String,
    },
    Checked(ClusterCheck),
}

impl Check {
    pub(super) fn run(self) -> Result<ExitCode> {
        let question = serde_json::json!({"cmd": "check", "data": self.data});
        let (mut said, rest): (Said, _) = ask_for(SAYS_WITHIN, &self.socket, &question, OPTION)?;
        let mut rest = BufReader::new(rest).lines();
        let checked = loop {
            match said {
                Said::Checked(checked) => break checked,
                Said::Error { error } => bail!(error),
                Said::Checking { .. } => {}
            }
            let line = rest.next().context("the daemon has ended the check")?;
            said = serde_json::from_str(&line.context("the daemon says nothing more")?)?;
        };
        if self.json {
            println!("{}", serde_json::to_string(&checked)?);
        } else {
            for fault in &checked.faults {
                println!("{}: {} ({})", fault.part, fault.what, fault.rule);
            }
            println!(
                "{}\n{}\n{}",
                voters(&checked),
                nodes(&checked),
                summary(&checked)
            );
        }
        Ok(if checked.faults.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(EXIT_FAULTS)
        })
    }
}

fn voters(checked: &ClusterCheck) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_header(["VOTER", "STATE", "BYTES"]);
    for voter in &checked.voters {
        let state = voter.sum.as_ref().or(voter.error.as_ref());
        let bytes = voter
            .bytes
            .map_or_else(String::new, |bytes| bytes.to_string());
        let state = state.cloned().unwrap_or_default();
        table.add_row([voter.node.to_string(), state, bytes]);
    }
    table
}

fn nodes(checked: &ClusterCheck) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_header(["NODE", "COPIES", "GOOD", "BAD", "NOT SEEN", "UNLISTED"]);
    for node in &checked.nodes {
        let unseen = node.copies.saturating_sub(node.good + node.bad);
        let numbers = [node.node.into(), node.copies, node.good, node.bad, unseen];
        let why = || node.error.clone().unwrap_or_default();
        let unlisted = node.unlisted.map(|count| count.to_string());
        let shown = numbers.into_iter().map(|number| number.to_string());
        table.add_row(shown.chain([unlisted.unwrap_or_else(why)]));
    }
    table
}

fn summary(checked: &ClusterCheck) -> String {
    let faults = match checked.faults.len() {
        0 => "nothing is wrong".to_owned(),
        1 => "1 fault".to_owned(),
        many => format!("{many} faults"),
    };
    format!(
        "{} inodes at entry {}; {faults}",
        checked.inodes, checked.index
    )
}
