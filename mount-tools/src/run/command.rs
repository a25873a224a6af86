//! `glurun`: runs a program on the best node as if it ran here.

use super::owner::Command;
use super::signals::Signals;
use super::terminal::Terminal;
use super::{SIGNAL_STATUS, end_as, give_up, socket, sys};
use crate::nodes::{self, NodeSet};
use clap::Parser;
use clap::error::ErrorKind;
use gproc::job::protocol::{End, Failure};
use std::ffi::OsString;

/// This program's name in its messages.
const NAME: &str = "glurun";

/// Exit status for a command line that is not understood.
const USAGE_STATUS: i32 = 2;

/// Runs a program on the least loaded node of the cluster.
///
/// The program has this one's working directory, environment, user, limits, input and outputs; its exit status is
/// this one's. Problems of the cluster end with 125, a program that cannot be executed with 126, one that is not
/// found with 127.
#[derive(Debug, Parser)]
#[command(name = NAME, version)]
struct Args {
    #[arg(short = 'w', long, value_name = "NODES", help = nodes::HELP)]
    nodes: Option<NodeSet>,

    /// How many processes to start; they find their number in GLU_VNN. The first one gets the input, the highest
    /// exit status is the result.
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=4096))]
    count: u32,

    /// Puts the number of the process in front of each line of output.
    #[arg(short, long)]
    label: bool,

    /// Gives the program a terminal even where its output is none; without this it has one if input and output are.
    #[arg(long)]
    pty: bool,

    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Runs `glurun` with the arguments of this process, and ends it.
pub fn main() -> ! {
    let args = Args::try_parse().unwrap_or_else(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => error.exit(),
        _ => usage(&error),
    });
    let ignored = sys::ignored_signals();
    let command = Command::new(args.command, std::env::vars_os(), ignored);
    let single = args.count == 1 && !args.label;
    let terminal = (single || args.pty)
        .then(|| Terminal::find(args.pty))
        .flatten();
    if args.pty && (args.count > 1 || terminal.is_none()) {
        let why = if args.count > 1 {
            "--pty is for one process"
        } else {
            "--pty wants a terminal for standard input"
        };
        eprintln!("{NAME}: {why}");
        std::process::exit(USAGE_STATUS);
    }
    let signals = Signals::take_over(ignored, terminal.clone());
    let (command, signals) = match (command, signals) {
        (Ok(command), Ok(signals)) => (command, signals),
        (Err(error), _) => give_up(
            NAME,
            Failure::Cluster,
            &format!("no working directory: {error}"),
        ),
        (_, Err(error)) => give_up(
            NAME,
            Failure::Cluster,
            &format!("cannot take signals: {error}"),
        ),
    };
    let nodes = args.nodes.map(|set| set.iter().collect());
    let nodes = nodes.unwrap_or_default();
    let command = command
        .on(nodes)
        .labelled(args.label)
        .with_terminal(terminal);
    if args.count == 1 {
        end_as(NAME, command.run(&socket(), 0, &signals))
    } else {
        std::process::exit(run_many(&command, args.count, &signals).into())
    }
}

/// Says in one line what is wrong with the command line.
fn usage(error: &clap::Error) -> ! {
    let text = error.to_string();
    let line = text.lines().find(|line| !line.trim().is_empty());
    let line = line.unwrap_or("the command line is not understood");
    let line = line.strip_prefix("error: ").unwrap_or(line);
    eprintln!("{NAME}: {} (see {NAME} --help)", line.trim_end_matches(':'));
    std::process::exit(USAGE_STATUS)
}

/// Runs `count` jobs at once; returns the highest status.
fn run_many(command: &Command, count: u32, signals: &Signals) -> u8 {
    let socket = socket();
    std::thread::scope(|scope| {
        let socket = &socket;
        let start = |vnn| scope.spawn(move || status_of(vnn, command.run(socket, vnn, signals)));
        let jobs: Vec<_> = (0..count).map(start).collect();
        jobs.into_iter()
            .map(|job| job.join().unwrap_or_else(|_| Failure::Cluster.status()))
            .max()
            .unwrap_or_default()
    })
}

fn status_of(vnn: u32, end: End) -> u8 {
    let byte = |number: i32| u8::try_from(number).unwrap_or(u8::MAX);
    match end {
        End::Exited(status) => byte(status),
        End::Killed(signal) => SIGNAL_STATUS.saturating_add(byte(signal)),
        End::Failed { kind, message } => {
            eprintln!("{NAME}: process {vnn}: {message}");
            kind.status()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, nodes: &[u16], count: u32, label: bool, command: &str) {
        let args = Args::try_parse_from(line.split(' ')).expect("is understood");
        let set: Vec<u16> = args
            .nodes
            .iter()
            .flat_map(NodeSet::iter)
            .map(|node| node.0)
            .collect();
        assert_eq!((&*set, args.count, args.label), (nodes, count, label));
        let command: Vec<_> = command.split(' ').map(OsString::from).collect();
        assert_eq!(args.command, command);
    }

    #[track_caller]
    fn check_refused(line: &str) {
        Args::try_parse_from(line.split(' ')).expect_err("is refused");
    }

    #[test]
    fn command_lines() {
        check("glurun ls", &[], 1, false, "ls");
        check(
            "glurun ls -l -n 3 --help",
            &[],
            1,
            false,
            "ls -l -n 3 --help",
        );
        check(
            "glurun -w 1-3 -n 4 -l ls -w x",
            &[1, 2, 3],
            4,
            true,
            "ls -w x",
        );
        check("glurun -wnode2 -n2 ls", &[2], 2, false, "ls");
        check("glurun -- -odd", &[], 1, false, "-odd");
        check_refused("glurun");
        check_refused("glurun -x ls");
        check_refused("glurun -n 0 ls");
        check_refused("glurun -w host ls");
    }
}
