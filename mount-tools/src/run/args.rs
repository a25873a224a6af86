//! The command line of `glurun`: srun's letters.

use super::command::NAME;
use crate::nodes::{self, NodeSet};
use clap::Parser;
use gproc::job::private::Private;
use gproc::pids::ClusterPid;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Processes of one command, and nodes.
const COUNT_MAX: i64 = 4096;

/// Memory that may be asked for: more than any machine has, and no more than a number of bytes can tell.
pub(crate) const MEM_MIB_MAX: u64 = 1 << 40;

/// Runs a program on the least loaded node of the cluster.
///
/// The program has this one's working directory, environment, user, limits, input and outputs; its exit status is
/// this one's. Problems of the cluster end with 125, a program that cannot be executed with 126, one that is not
/// found with 127.
#[derive(Debug, Parser)]
#[command(name = NAME, version)]
pub(super) struct Args {
    /// As the first argument: HOST [COMMAND...] follow as for ssh, for programs that want a remote shell.
    #[arg(long, exclusive = true)]
    pub(super) rsh: bool,

    #[arg(short = 'w', long, value_name = "NODES", help = nodes::HELP)]
    pub(super) nodes: Option<NodeSet>,

    /// Nodes not to run on.
    #[arg(short = 'x', long, value_name = "NODES")]
    pub(super) exclude: Option<NodeSet>,

    /// How many processes to start; they find their number in GLU_VNN. The first one gets the input, the highest
    /// exit status is the result.
    #[arg(short = 'n', long, value_name = "COUNT")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=COUNT_MAX))]
    pub(super) count: Option<u32>,

    /// How many nodes to use, in turn; one process on each unless --count says another number.
    #[arg(short = 'N', long, value_name = "COUNT")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=COUNT_MAX))]
    pub(super) node_count: Option<u32>,

    /// One process on each node that is up, or on each of --nodes.
    #[arg(short, long, conflicts_with_all = ["count", "node_count"])]
    pub(super) all: bool,

    /// Gathers the outputs and shows equal ones once, under the nodes that they came from.
    #[arg(short = 'b', long, conflicts_with_all = ["label", "pty"])]
    pub(super) gather: bool,

    /// Memory in MiB that a node must have free to be chosen, and that each process may use, with those that it starts.
    #[arg(long, value_name = "MIB")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=MEM_MIB_MAX))]
    pub(super) mem: Option<u64>,

    /// Processors that a node must have to be chosen, and the time of which each process may use, with those that it starts.
    #[arg(long, value_name = "COUNT")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=COUNT_MAX))]
    pub(super) cpus: Option<u32>,

    /// Makes a checkpoint of the program every so often, from which it can be started again: TIME is as for --time, or ends
    /// with s, m or h; 10 s at least.
    #[arg(long, value_name = "TIME", value_parser = read_period)]
    #[arg(conflicts_with_all = ["all", "node_count", "gather", "label", "gang", "detach", "beside", "pty", "places"])]
    pub(super) checkpoint: Option<Duration>,

    /// Has the program go on from its last checkpoint on another node when the one that runs it is lost.
    #[arg(long)]
    #[arg(conflicts_with_all = ["all", "node_count", "gather", "label", "gang", "detach", "beside", "pty", "places"])]
    pub(super) restart: bool,

    /// Gives each process, with those that it starts, what others share with all of their node, so that it moves with them:
    /// `net`, a network in which they reach each other and nobody else; `ipc`, System V IPC; `net,ipc`.
    #[arg(long, value_name = "LIST")]
    pub(super) private: Option<Private>,

    /// Has the processes run together, in turns of a second with those of other gangs that share nodes with them.
    #[arg(long)]
    pub(super) gang: bool,

    /// Puts the command into the queue of batch jobs, where it outlives this process, and prints the number of the job;
    /// its output goes to glurun-<job>.out. `glubatch` shows and ends it.
    #[arg(long, conflicts_with_all = ["all", "gather", "label", "pty", "fanout", "wait", "kill_on_bad_exit", "places", "node_count"])]
    pub(super) detach: bool,

    /// Beside another job: a process on the node of each of its processes.
    #[arg(long, value_name = "NPID", value_parser = read_npid)]
    #[arg(conflicts_with_all = ["nodes", "exclude", "count", "node_count", "all", "detach", "places"])]
    pub(super) beside: Option<ClusterPid>,

    /// How many processes may run at a time; all if not given.
    #[arg(short, long, value_name = "COUNT")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=COUNT_MAX))]
    pub(super) fanout: Option<u32>,

    /// Which process gets the input: its number, `all` or `none`.
    #[arg(short, long, value_name = "WHICH", default_value = "0", value_parser = read_input)]
    pub(super) input: Input,

    /// Passes output on as it comes; it always is, but for lines under --label.
    #[arg(short, long, conflicts_with = "label")]
    pub(super) unbuffered: bool,

    /// Sends an interrupt to the program at once; it always is.
    #[arg(short = 'X', long)]
    pub(super) disable_status: bool,

    /// Ends all processes when one fails.
    #[arg(short = 'K', long)]
    pub(super) kill_on_bad_exit: bool,

    /// Ends all processes so many seconds after the first one has ended.
    #[arg(short = 'W', long, value_name = "SECONDS")]
    pub(super) wait: Option<u64>,

    /// Runs in this directory.
    #[arg(short = 'D', long, value_name = "DIR")]
    pub(super) chdir: Option<PathBuf>,

    /// The environment: ALL, NONE, or names and NAME=VALUE with commas between, with or without ALL.
    #[arg(long, value_name = "WHAT", default_value = "ALL")]
    pub(super) export: String,

    /// The file to take the environment from, NAME=VALUE with a zero byte after each.
    #[arg(long, value_name = "FILE")]
    pub(super) export_file: Option<PathBuf>,

    /// The file for output, and for errors if --error does not name another; from --chdir on.
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,

    /// The file for errors; from --chdir on.
    #[arg(short, long, value_name = "FILE")]
    pub(super) error: Option<PathBuf>,

    /// A node for each process.
    #[arg(long, hide = true, value_delimiter = ',', conflicts_with_all = ["all", "count", "node_count", "nodes", "exclude"])]
    pub(super) places: Vec<u16>,

    /// Ends the processes after this time, with status 124: minutes, minutes:seconds or hours:minutes:seconds.
    #[arg(short, long, value_name = "TIME", value_parser = read_time)]
    pub(super) time: Option<Duration>,

    /// Puts the number of the process in front of each line of output.
    #[arg(short, long)]
    pub(super) label: bool,

    /// Gives the program a terminal even where its output is none; without this it has one if input and output are.
    #[arg(long)]
    pub(super) pty: bool,

    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub(super) command: Vec<OsString>,
}

fn read_npid(text: &str) -> Result<ClusterPid, String> {
    let npid = ClusterPid::parse(text.as_bytes());
    npid.ok_or_else(|| "the number of a job, as `glu jobs` shows it".into())
}

/// Who gets the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    All,
    None,
    Process(u32),
}

fn read_input(text: &str) -> Result<Input, String> {
    match (text, text.parse()) {
        ("all", _) => Ok(Input::All),
        ("none", _) => Ok(Input::None),
        (_, Ok(vnn)) => Ok(Input::Process(vnn)),
        _ => Err("the number of a process, `all` or `none`".into()),
    }
}

/// Reads a time as srun takes it.
pub(crate) fn read_time(text: &str) -> Result<Duration, String> {
    let wrong = || "minutes, minutes:seconds or hours:minutes:seconds".to_owned();
    let parts = text.split(':').map(str::parse::<u32>);
    let parts: Vec<u64> = parts
        .map(|part| part.map(u64::from).map_err(|_| wrong()))
        .collect::<Result<_, _>>()?;
    match parts[..] {
        [minutes] => Ok(Duration::from_secs(minutes * 60)),
        [minutes, seconds] => Ok(Duration::from_secs(minutes * 60 + seconds)),
        [hours, minutes, seconds] => Ok(Duration::from_secs(hours * 3600 + minutes * 60 + seconds)),
        _ => Err(wrong()),
    }
}

/// The shortest time between two checkpoints.
const CHECKPOINT_MIN: Duration = Duration::from_secs(10);

/// Reads how often something is to be done: as [`read_time`], or a number with its unit.
fn read_period(text: &str) -> Result<Duration, String> {
    let units = [("s", 1), ("m", 60), ("h", 3600)];
    let with_unit = units.iter().find_map(|(unit, seconds)| {
        let number: u32 = text.strip_suffix(unit)?.parse().ok()?;
        Some(Duration::from_secs(u64::from(number) * seconds))
    });
    let every = match with_unit {
        Some(every) => every,
        None => read_time(text)?,
    };
    if every < CHECKPOINT_MIN {
        return Err(format!("{CHECKPOINT_MIN:?} at least"));
    }
    Ok(every)
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
        let found = (&*set, args.count.unwrap_or(1), args.label);
        assert_eq!(found, (nodes, count, label));
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
        check("glurun --checkpoint 10m ls", &[], 1, false, "ls");
        for (text, seconds) in [("10s", 10), ("2m", 120), ("3h", 10_800), ("7", 420)] {
            assert_eq!(read_period(text), Ok(Duration::from_secs(seconds)));
        }
        for wrong in ["9s", "0", "m", "1d", "-1m", "99999999999h"] {
            assert!(read_period(wrong).is_err(), "{wrong}");
        }
        check_refused("glurun --restart --gang ls");
        check("glurun --private net,ipc ls", &[], 1, false, "ls");
        check_refused("glurun --private pid ls");
        check_refused("glurun --private ls");
        check_refused("glurun");
        check_refused("glurun -x host ls");
        check_refused("glurun --mem x ls");
        check_refused("glurun --mem 0 ls");
        check_refused("glurun --cpus 0 ls");
        check_refused("glurun --detach -a ls");
        check_refused("glurun -a -n 2 ls");
        check_refused("glurun -l -b ls");
        check_refused("glurun -n 0 ls");
        check_refused("glurun --beside 70000 -n 2 ls");
        check_refused("glurun --beside x ls");
        check("glurun --beside 70000 ls", &[], 1, false, "ls");
        check_refused("glurun -w host ls");
    }

    #[test]
    fn times_and_inputs_are_read_as_srun_reads_them() {
        for (text, seconds) in [("2", 120), ("1:30", 90), ("0:05", 5), ("1:0:1", 3601)] {
            assert_eq!(read_time(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "x", "1:2:3:4", "-1", "1.5"] {
            read_time(text).expect_err(text);
        }
        assert_eq!(read_input("none"), Ok(Input::None));
        assert_eq!(read_input("all"), Ok(Input::All));
        assert_eq!(read_input("3"), Ok(Input::Process(3)));
        read_input("some").expect_err("is nobody");
    }
}
