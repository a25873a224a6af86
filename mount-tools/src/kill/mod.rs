//! `glukill`: signals to processes of any node.

mod target;

use crate::cli::refuse;
use crate::jobs::files::Files;
use crate::nodes::{self, NodeSet};
use crate::table::{self, Process};
use clap::Parser;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use regex::bytes::Regex;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use target::Target;

/// This program's name in its messages.
const NAME: &str = "glukill";

/// Sends a signal to processes of any node.
///
/// Exit status: 0 all got it, 1 not all did or none was found, 2 the command line is not understood.
#[derive(Debug, Parser)]
#[command(name = NAME, version)]
struct Args {
    /// The signal: a name or a number, also as -TERM or -15 in front; 0 only asks whether one could be sent.
    #[arg(short, long, value_name = "SIGNAL", default_value = "TERM")]
    signal: String,

    /// List the signals.
    #[arg(short, long)]
    list: bool,

    #[arg(short = 'w', long, value_name = "NODES", help = nodes::HELP)]
    nodes: Option<NodeSet>,

    /// All processes whose name matches a regular expression, as pkill has it.
    #[arg(long, value_name = "PATTERN")]
    name: Option<Regex>,

    /// Match the whole command line instead of the name.
    #[arg(short, long, conflicts_with = "targets")]
    full: bool,

    /// Match all of the name.
    #[arg(short = 'x', long, conflicts_with = "targets")]
    exact: bool,

    /// Processes: PID, -PID for a process group (after --), NPID.VNN for one process of a job.
    #[arg(value_name = "PID", conflicts_with = "name")]
    #[arg(required_unless_present_any = ["name", "list"])]
    targets: Vec<Target>,
}

/// Runs `glukill` with the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    let args = match Args::try_parse_from(spelt_out(std::env::args_os().collect())) {
        Ok(args) => args,
        Err(error) => return refuse(NAME, &error),
    };
    if args.list {
        list();
        return ExitCode::SUCCESS;
    }
    let Ok(number) = gproc::signal::parse(args.signal.as_bytes()) else {
        let error = format!("`{}` is no signal: {NAME} -l lists them", args.signal);
        return refuse(
            NAME,
            &clap::Error::raw(clap::error::ErrorKind::InvalidValue, error),
        );
    };
    if run(&args, number, &table::root()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Puts `-s TERM` for `-TERM` and `-15` in front.
fn spelt_out(mut args: Vec<OsString>) -> Vec<OsString> {
    let first = args.get(1).and_then(|first| first.to_str());
    let signal = first.and_then(|first| first.strip_prefix('-'));
    let written = |text: &&str| {
        text.starts_with(|of: char| of.is_ascii_digit() || of.is_ascii_uppercase())
            && gproc::signal::parse(text.as_bytes()).is_ok()
    };
    if let Some(signal) = signal.filter(written).map(OsString::from) {
        args.splice(1..2, ["-s".into(), signal]);
    }
    args
}

fn list() {
    for signal in Signal::iterator() {
        let name = signal.as_str();
        println!("{:2} {}", signal as i32, name.trim_start_matches("SIG"));
    }
}

/// Signals what was named; returns whether all of it got the signal, and there was some.
fn run(args: &Args, number: i32, root: &Path) -> bool {
    if let Some(pattern) = &args.name {
        return by_name(args, pattern, number, root);
    }
    let mut all = true;
    for target in &args.targets {
        if let Err(error) = signal(root, *target, args.nodes.as_ref(), number) {
            eprintln!("{NAME}: {target}: {error}");
            all = false;
        }
    }
    all
}

/// Why a target got no signal.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("{}", .0.desc())]
    Sending(#[from] Errno),
    #[error("it is on node {0}, which is not in -w")]
    Elsewhere(consistency::NodeId),
    #[error(transparent)]
    NoTable(#[from] table::NoTable),
}

fn signal(root: &Path, target: Target, nodes: Option<&NodeSet>, number: i32) -> Result<(), Failed> {
    let (process, file) = match target {
        Target::Process(pid) => (Process::open(root, pid)?, "note"),
        Target::Group(pid) => match Process::open(root, pid) {
            // Its leader has ended; it runs where its number is from.
            Err(Errno::ESRCH) if nodes.is_none_or(|nodes| nodes.contains(pid.home())) => {
                return Ok(table::note_group(root, pid, number)?);
            }
            leader => (leader?, "notepg"),
        },
        Target::Member { npid, vnn } => {
            let is_it = |process: &Process| target::is_member(process, npid, vnn);
            let files = Files::of(root.parent().unwrap_or(root));
            let recorded = files.process(npid, vnn);
            let recorded = recorded.and_then(|pid| Process::open(root, pid).ok());
            match recorded.filter(is_it) {
                Some(process) => (process, "note"),
                // It is not on record yet, or not any more.
                None => {
                    let of_job = table::all(root)?.into_iter().find(is_it);
                    (of_job.ok_or(Errno::ESRCH)?, "note")
                }
            }
        }
    };
    if let Some(nodes) = nodes {
        let node = process.node()?;
        if !nodes.contains(node) {
            return Err(Failed::Elsewhere(node));
        }
    }
    Ok(process.order(file, &number.to_string())?)
}

fn by_name(args: &Args, pattern: &Regex, number: i32, root: &Path) -> bool {
    let processes = match table::all(root) {
        Ok(processes) => processes,
        Err(error) => {
            eprintln!("{NAME}: {error}");
            return false;
        }
    };
    table::warn_of_silent(NAME, root, &processes);
    let own = std::fs::read_link(root.join("self")).ok();
    let (mut found, mut all) = (false, true);
    for process in processes {
        let pid = process.pid().to_string();
        let itself = own.as_ref().is_some_and(|own| own.as_os_str() == &*pid);
        if itself || !target::is_named(&process, pattern, args.full, args.exact) {
            continue;
        }
        let here = |nodes: &NodeSet| process.node().is_ok_and(|node| nodes.contains(node));
        if !args.nodes.as_ref().is_none_or(here) {
            continue;
        }
        found = true;
        match process.order("note", &number.to_string()) {
            // It has ended by itself meanwhile.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => {
                eprintln!("{NAME}: {pid}: {}", error.desc());
                all = false;
            }
        }
    }
    found && all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, signal: &str, targets: &[&str]) {
        let words = line.split(' ').map(OsString::from).collect();
        let args = Args::try_parse_from(spelt_out(words)).expect("is understood");
        assert_eq!(args.signal, signal);
        let seen: Vec<String> = args.targets.iter().map(Target::to_string).collect();
        assert_eq!(seen, targets);
    }

    #[track_caller]
    fn check_refused(line: &str) {
        let words = line.split(' ').map(OsString::from).collect();
        Args::try_parse_from(spelt_out(words)).expect_err("is refused");
    }

    #[test]
    fn command_lines() {
        check("glukill 70000", "TERM", &["70000"]);
        check("glukill -9 70000 131072", "9", &["70000", "131072"]);
        check("glukill -KILL 70000", "KILL", &["70000"]);
        check("glukill -s RTMIN+1 -- -70000", "RTMIN+1", &["-70000"]);
        check("glukill -w 1-3 70000.2", "TERM", &["70000.2"]);
        check("glukill -0 70000", "0", &["70000"]);
        check("glukill -l", "TERM", &[]);
        check("glukill --name ^cc1 -f", "TERM", &[]);
        for line in [
            "glukill",
            "glukill x",
            "glukill 1",
            "glukill 70000.x",
            "glukill --name ( ",
            "glukill --name a 70000",
            "glukill -f 70000",
            "glukill -w host 70000",
        ] {
            check_refused(line);
        }
    }
}
