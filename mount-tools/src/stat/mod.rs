//! `glustat`: the state of all nodes, and why they are in it.

mod facts;
mod judge;

use crate::cli::refuse;
use crate::daemon::SOCKET_DEFAULT;
use crate::nodes::{self, NodeSet};
use crate::table;
use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
pub(crate) use judge::{Node, State};
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// This program's name in its messages.
const NAME: &str = "glustat";
/// Clears a terminal.
const CLEAR: &str = "\x1b[H\x1b[2J";
const MIB: u64 = 1 << 20;

/// Shows the nodes of the cluster with their state and its reason, load, memory and users.
///
/// idle and busy: whether programs want more than half of the processors; drain: its file data is moved away; unreachable:
/// it does not answer this node; down: nor is it in touch with the cluster. How far a node that drains is, and what the
/// cluster hears of one that does not answer, only root is told. The load is 100 when one program runs on each processor of
/// the reference speed. Users are those, but for the system's, whose processes run there.
#[derive(Debug, Parser)]
#[command(name = NAME, version)]
struct Args {
    #[arg(short = 'w', long, value_name = "NODES", help = nodes::HELP)]
    nodes: Option<NodeSet>,

    /// For programs.
    #[arg(long)]
    json: bool,

    /// Again and again, after so many seconds.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400))]
    watch: Option<u64>,

    /// The daemon's control socket.
    #[arg(long, value_name = "PATH", default_value = SOCKET_DEFAULT)]
    socket: PathBuf,
}

/// Runs `glustat` with the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return refuse(NAME, &error),
    };
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{NAME}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let root = table::root();
    let clear = args.watch.is_some() && !args.json && io::stdout().is_terminal();
    loop {
        let nodes = facts::collect(&root, &args.socket, args.nodes.as_ref())?;
        let nodes: Vec<Node> = nodes.into_iter().map(Node::from).collect();
        let text = if args.json {
            serde_json::to_string(&nodes)?
        } else {
            show(&nodes)
        };
        let before = if clear { CLEAR } else { "" };
        match writeln!(io::stdout(), "{before}{text}") {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
        let Some(seconds) = args.watch else {
            return Ok(());
        };
        std::thread::sleep(Duration::from_secs(seconds));
    }
}

/// Returns all nodes, or some, as they are now; how many users they have is not looked for.
///
/// # Errors
/// There is no table, or no such node.
pub(crate) fn nodes(
    root: &Path,
    socket: &Path,
    only: Option<&NodeSet>,
) -> anyhow::Result<Vec<Node>> {
    let facts = facts::collect_without_users(root, socket, only)?;
    Ok(facts.into_iter().map(Node::from).collect())
}

fn show(nodes: &[Node]) -> String {
    const HEADER: [&str; 8] = [
        "NODE", "STATE", "LOAD", "CPUS", "FREE MB", "MB", "USERS", "REASON",
    ];
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(HEADER);
    for node in nodes {
        let number = |number: Option<u64>| number.map_or_else(|| "-".into(), |n| n.to_string());
        table.add_row([
            node.node.to_string(),
            node.state.to_string(),
            number(node.load),
            number(node.cpus),
            number(node.memory_free.map(|bytes| bytes / MIB)),
            number(node.memory.map(|bytes| bytes / MIB)),
            number(node.users),
            node.reason.clone(),
        ]);
    }
    for index in 0..HEADER.len() {
        let column = table.column_mut(index).expect("it has a header");
        column.set_padding((0, 2));
        // Texts are on the left.
        if ![1, HEADER.len() - 1].contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().into()).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use consistency::NodeId;
    use facts::{Facts, Load};

    #[test]
    fn a_line_for_each_node() {
        let load = Load {
            load: 12,
            cpus: Some(2),
            memory: Some(64 * MIB),
            memory_free: Some(32 * MIB),
        };
        let up = Facts {
            load: Some(load),
            users: 3,
            ..Facts::of(NodeId(1))
        };
        let down = Facts::of(NodeId(2));
        let shown = show(&[Node::from(up), Node::from(down)]);
        let lines: Vec<Vec<&str>> = shown
            .lines()
            .map(|line| line.split_whitespace().take(8).collect())
            .collect();
        assert_eq!(lines[1][..7], ["1", "idle", "12", "2", "32", "64", "3"]);
        assert_eq!(lines[2][..7], ["2", "down", "-", "-", "-", "-", "-"]);
    }

    #[test]
    fn command_lines() {
        for line in [
            "glustat",
            "glustat --watch",
            "glustat --watch 5 --json -w 1-2",
        ] {
            Args::try_parse_from(line.split(' ')).expect("is understood");
        }
        for line in ["glustat --watch 0", "glustat -w x", "glustat x"] {
            Args::try_parse_from(line.split(' ')).expect_err("is refused");
        }
    }
}
