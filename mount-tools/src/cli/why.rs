//! `glu why`: what automatic levelling makes of a process, and what its newest move has cost.

use crate::table::{self, Moved, Process};
use anyhow::{Result, anyhow};
use clap::Args;
use gproc::pids::ClusterPid;
use serde::Serialize;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub(super) struct Why {
    /// The process, as in /cluster/proc.
    #[arg(value_name = "PID", value_parser = pid)]
    pid: ClusterPid,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What `why` of a process says: `stays well_off: it has all it wants`, or `goes 3 crowded: ...`.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Said {
    pid: i32,
    /// Where it runs.
    node: u16,
    /// Where it goes.
    to: Option<u16>,
    reason: String,
    text: String,
    /// Its newest move.
    moved: Option<Moved>,
}

/// Says what a move has cost.
fn show(moved: &Moved) -> String {
    let Moved {
        from,
        to,
        took_ms,
        pause_ms,
        bytes,
        memory,
    } = moved;
    let mib = bytes.div_ceil(1 << 20);
    format!(
        "it has moved from node {from} to node {to} in {took_ms} ms, {pause_ms} ms of which it stood still ({mib} MiB, {memory})"
    )
}

fn pid(text: &str) -> Result<ClusterPid, String> {
    ClusterPid::parse(text.as_bytes()).ok_or_else(|| "it is no process of the cluster".to_owned())
}

impl Said {
    fn read(pid: i32, at: &[u8], why: &[u8]) -> Option<Self> {
        let (head, text) = std::str::from_utf8(why).ok()?.trim_end().split_once(": ")?;
        let words: Vec<&str> = head.split(' ').collect();
        let (to, reason) = match words[..] {
            ["stays", reason] => (None, reason),
            ["goes", node, reason] => (Some(node.parse().ok()?), reason),
            _ => return None,
        };
        Some(Self {
            pid,
            node: table::number(at)?,
            to,
            reason: reason.to_owned(),
            text: text.to_owned(),
            moved: None,
        })
    }

    fn show(&self) -> String {
        let Self {
            pid, node, text, ..
        } = self;
        match self.to {
            None => format!("{pid} stays on node {node}: {text}"),
            Some(to) => format!("{pid} goes from node {node} to node {to}: {text}"),
        }
    }
}

impl Why {
    pub(super) fn run(&self) -> Result<ExitCode> {
        let pid = self.pid;
        let failed = |errno: nix::errno::Errno| anyhow!("{pid}: {}", errno.desc());
        let process = Process::open(&table::root(), pid).map_err(failed)?;
        let at = process.read("where").map_err(failed)?;
        let why = process.read("why").map_err(failed)?;
        let said = Said::read(pid.into(), &at, &why);
        let mut said =
            said.ok_or_else(|| anyhow!("{pid}: its node says what this glu does not understand"))?;
        said.moved = Moved::read(&process.read("moved").unwrap_or_default());
        if self.json {
            println!("{}", serde_json::to_string(&said)?);
        } else {
            println!("{}", said.show());
            if let Some(moved) = &said.moved {
                println!("{}", show(moved));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said() {
        let said = |why: &str| Said::read(9, b"2\n", why.as_bytes());
        let check = |why: &str, shown: &str, reason: &str, to: Option<u16>| {
            let said = said(why).expect(why);
            assert_eq!(
                (said.show().as_str(), said.reason.as_str(), said.to),
                (shown, reason, to)
            );
        };
        check(
            "stays tied: it cannot move: tcp\n",
            "9 stays on node 2: it cannot move: tcp",
            "tied",
            None,
        );
        check(
            "goes 3 crowded: its node is crowded\n",
            "9 goes from node 2 to node 3: its node is crowded",
            "crowded",
            Some(3),
        );
        let moved = Moved::read(b"1 2 812 90 4096 post-copy\n").expect("a move");
        assert_eq!(
            show(&moved),
            "it has moved from node 1 to node 2 in 812 ms, 90 ms of which it stood still (1 MiB, post-copy)"
        );
        assert_eq!(Moved::read(b""), None);
        for odd in [
            "",
            "stays",
            "stays tied",
            "goes tied: x",
            "goes x tied: x",
            "runs 1 a: b",
        ] {
            assert_eq!(said(odd), None, "{odd}");
        }
    }
}
