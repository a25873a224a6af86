//! `glu jobs`: the jobs that run in the cluster.

use super::files::Files;
use super::record::{Job, Process};
use super::recorder::now;
use crate::nodes::{self, NodeSet};
use crate::table::{self, printable, user_name};
use anyhow::Result;
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use consistency::NodeId;
use gproc::pids::ClusterPid;
use serde::Serialize;
use std::io::{self, Write};
use std::path::Path;

#[derive(Debug, Args)]
pub(crate) struct Jobs {
    #[arg(short = 'w', long, value_name = "NODES", help = nodes::HELP)]
    nodes: Option<NodeSet>,

    /// For programs.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Shown {
    npid: u32,
    /// The node of its glurun.
    home: u16,
    uid: u32,
    user: String,
    state: &'static str,
    /// Processes in all; those that run are listed.
    count: u32,
    /// Seconds since 1970.
    started: u64,
    age_s: u64,
    /// Nothing: it is hidden.
    command: Vec<String>,
    processes: Vec<Process>,
}

impl Jobs {
    pub(crate) fn run(&self) -> Result<()> {
        let root = table::root();
        // Says what is wrong where there is no cluster.
        table::nodes(&root)?;
        let mount = root.parent().unwrap_or(&root);
        let on = |job: &Job| {
            let mut places = job.processes.iter().map(|process| NodeId(process.node));
            let nodes = self.nodes.as_ref();
            nodes.is_none_or(|nodes| places.any(|node| nodes.contains(node)))
        };
        let jobs = Files::of(mount).jobs()?.into_iter();
        let jobs = jobs.filter(|(_, job)| on(job));
        let shown: Vec<Shown> = jobs.map(|(home, job)| shown(&root, home, job)).collect();
        let text = match self.json {
            true => serde_json::to_string(&shown)?,
            false => show(&shown),
        };
        Ok(writeln!(io::stdout(), "{text}")?)
    }
}

fn shown(root: &Path, home: NodeId, job: Job) -> Shown {
    let command = match job.command.is_empty() {
        true => seen_command(root, &job).unwrap_or_default(),
        false => job.command,
    };
    Shown {
        npid: job.npid,
        home: home.0,
        uid: job.uid,
        user: user_name(job.uid),
        state: job.lost.map_or("running", |_| "lost"),
        count: job.count,
        started: job.started,
        age_s: now().saturating_sub(job.started),
        command,
        processes: job.processes,
    }
}

/// Returns the command of the owner, for whom the nodes show it to.
fn seen_command(root: &Path, job: &Job) -> Option<Vec<String>> {
    let npid = ClusterPid::try_from(i32::try_from(job.npid).ok()?).ok()?;
    let owner = table::Process::open(root, npid).ok()?;
    let line = owner.read("cmdline").ok()?;
    let words = line
        .split(|&byte| byte == 0)
        .filter(|word| !word.is_empty());
    Some(
        words
            .map(|word| String::from_utf8_lossy(word).into())
            .collect(),
    )
}

fn show(jobs: &[Shown]) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_header(["NPID", "USER", "STATE", "N", "NODES", "AGE", "COMMAND"]);
    for job in jobs {
        let nodes = job.processes.iter().map(|process| NodeId(process.node));
        let words: Vec<String> = job
            .command
            .iter()
            .map(|word| printable(word.as_bytes()))
            .collect();
        let command = match words.is_empty() {
            true => "-".into(),
            false => words.join(" "),
        };
        table.add_row([
            job.npid.to_string(),
            job.user.clone(),
            job.state.into(),
            job.count.to_string(),
            NodeSet::folded(nodes),
            age(job.age_s),
            command,
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    for at in [0, 3, 5] {
        let column = table.column_mut(at).expect("it has a header");
        column.set_cell_alignment(CellAlignment::Right);
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().into()).collect();
    lines.join("\n")
}

/// Shows a time as ps(1) does: days-hours:minutes:seconds, as far as there are any.
fn age(seconds: u64) -> String {
    let (days, hours) = (seconds / 86_400, seconds / 3_600 % 24);
    let (minutes, seconds) = (seconds / 60 % 60, seconds % 60);
    match (days, hours) {
        (0, 0) => format!("{minutes:02}:{seconds:02}"),
        (0, _) => format!("{hours:02}:{minutes:02}:{seconds:02}"),
        _ => format!("{days}-{hours:02}:{minutes:02}:{seconds:02}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_in_columns() {
        let process = |vnn, node| Process { vnn, node, pid: 9 };
        let job = Shown {
            npid: 131_080,
            home: 2,
            uid: 0,
            user: "root".into(),
            state: "running",
            count: 3,
            started: 7,
            age_s: 3_725,
            command: vec!["sleep".into(), "a\nb".into()],
            processes: vec![process(0, 2), process(1, 3), process(2, 2)],
        };
        let text = show(&[job]);
        let expected = "NPID    USER  STATE    N  NODES      AGE       COMMAND\n\
                        131080  root  running  3  node[2-3]  01:02:05  sleep a?b";
        let squeezed = |text: &str| {
            let lines = text.lines();
            let lines = lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
            lines.collect::<Vec<_>>()
        };
        assert_eq!(squeezed(&text), squeezed(expected));
    }

    #[test]
    fn ages_as_ps_shows_them() {
        for (seconds, expected) in [(59, "00:59"), (3_600, "01:00:00"), (90_061, "1-01:01:01")] {
            assert_eq!(age(seconds), expected);
        }
    }
}
