//! `glups`: the processes of all nodes.

mod columns;

use crate::cli::refuse;
use crate::nodes::{self, NodeSet};
use crate::table;
use clap::Parser;
use columns::{Column, Row};
use comfy_table::{CellAlignment, Table, presets};
use gproc::pids::ClusterPid;
use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;

/// This program's name in its messages.
const NAME: &str = "glups";

/// Shows processes of the cluster: the caller's own, or all of them with -e.
#[derive(Debug, Parser)]
#[command(name = NAME, version)]
struct Args {
    /// All processes.
    #[arg(short, long)]
    every: bool,

    /// More columns, and whole command lines.
    #[arg(short, long)]
    full: bool,

    /// These columns.
    #[arg(short = 'o', long, value_name = "COLUMNS", value_delimiter = ',', help = columns::HELP)]
    format: Vec<Column>,

    #[arg(short = 'w', long, value_name = "NODES", help = nodes::HELP)]
    nodes: Option<NodeSet>,

    /// Only these processes.
    #[arg(short, long, value_name = "PIDS", value_delimiter = ',', value_parser = pid)]
    pid: Vec<ClusterPid>,

    /// For programs: all that is known of each.
    #[arg(long)]
    json: bool,
}

fn pid(text: &str) -> Result<ClusterPid, String> {
    ClusterPid::parse(text.as_bytes())
        .ok_or_else(|| format!("`{text}` is no process of the cluster"))
}

/// Runs `glups` with the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return refuse(NAME, &error),
    };
    let root = table::root();
    let processes = match table::all(&root) {
        Ok(processes) => processes,
        Err(error) => {
            eprintln!("{NAME}: {error}");
            return ExitCode::FAILURE;
        }
    };
    table::warn_of_silent(NAME, &root, &processes);
    let own = nix::unistd::geteuid().as_raw();
    let wanted = |row: &Row| {
        let listed = args.pid.iter().any(|pid| pid.number() == row.pid);
        let chosen = if args.pid.is_empty() {
            args.every || row.uid == own
        } else {
            listed
        };
        let on = |nodes: &NodeSet| nodes.contains(consistency::NodeId(row.node));
        chosen && args.nodes.as_ref().is_none_or(on)
    };
    // What ends while it is read is not shown.
    let rows = processes.iter().filter_map(Row::read);
    let rows: Vec<Row> = rows.filter(wanted).collect();
    let text = if args.json {
        serde_json::to_string(&rows).expect("numbers and texts")
    } else {
        show(&rows, args.columns())
    };
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            eprintln!("{NAME}: cannot write: {error}");
            ExitCode::FAILURE
        }
        // As of ps(1): none of those that were asked for is there.
        _ if rows.is_empty() => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

impl Args {
    fn columns(&self) -> &[Column] {
        if !self.format.is_empty() {
            &self.format
        } else if self.full {
            columns::FULL
        } else {
            columns::SHORT
        }
    }
}

fn show(rows: &[Row], columns: &[Column]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(columns.iter().map(|column| column.header()));
    for row in rows {
        table.add_row(columns.iter().map(|column| column.show(row)));
    }
    for (index, column) in columns.iter().enumerate() {
        let shown = table.column_mut(index).expect("it has a header");
        shown.set_padding((0, 1));
        if column.is_number() {
            shown.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = String::new();
    for line in table.lines() {
        let newline = if text.is_empty() { "" } else { "\n" };
        write!(text, "{newline}{}", line.trim_end()).expect("writing to a string succeeds");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, expected: &str) {
        let args = Args::try_parse_from(line.split(' ')).expect("is understood");
        let headers = args.columns().iter().map(|column| column.header());
        assert_eq!(headers.collect::<Vec<_>>().join(" "), expected);
    }

    #[test]
    fn command_lines() {
        check("glups", "PID NODE TIME CMD");
        check("glups -ef", "UID PID PPID NODE NMIGS LOCK TIME CMD");
        check("glups -e -o pid,node -o args", "PID NODE COMMAND");
        for line in ["glups -o what", "glups -p 1", "glups x", "glups -w a"] {
            Args::try_parse_from(line.split(' ')).expect_err("is refused");
        }
    }

    #[test]
    fn rows_in_columns() {
        let row = Row {
            pid: 131_080,
            node: 2,
            args: "sleep 5".into(),
            cpu_seconds: 3_725,
            ..Row::default()
        };
        let columns = [Column::Pid, Column::Node, Column::Time, Column::Args];
        let text = show(&[row], &columns);
        let expected = "   PID NODE     TIME COMMAND\n131080    2 01:02:05 sleep 5";
        assert_eq!(text, expected);
    }
}
