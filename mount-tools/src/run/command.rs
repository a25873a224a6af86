//! `glurun`: runs a program on the best node as if it ran here.

use super::fan::Fan;
use super::many::{self, Rules, Wish};
use super::owner::{self, Command, Reader};
use super::rsh;
use super::signals::Signals;
use super::terminal::Terminal;
use super::{end_as, socket, sys};
use crate::jobs::files::{Files, no_job};
use crate::nodes::{self, NodeSet};
use crate::table::{self, Process};
use clap::Parser;
use clap::error::ErrorKind;
use consistency::NodeId;
use gproc::job::limits::Limits;
use gproc::job::terminal::Checkpoints;
use gproc::pids::ClusterPid;
use nix::errno::Errno;
use nix::unistd::{dup2_stderr, dup2_stdout};
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// This program's name in its messages.
const NAME: &str = "glurun";

/// Processes of one command, and nodes.
const COUNT_MAX: i64 = 4096;

/// Memory that may be asked for: more than any machine has, and no more than a number of bytes can tell.
pub(crate) const MEM_MIB_MAX: u64 = 1 << 40;

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
    /// As the first argument: HOST [COMMAND...] follow as for ssh, for programs that want a remote shell.
    #[arg(long, exclusive = true)]
    rsh: bool,

    #[arg(short = 'w', long, value_name = "NODES", help = nodes::HELP)]
    nodes: Option<NodeSet>,

    /// Nodes not to run on.
    #[arg(short = 'x', long, value_name = "NODES")]
    exclude: Option<NodeSet>,

    /// How many processes to start; they find their number in GLU_VNN. The first one gets the input, the highest
    /// exit status is the result.
    #[arg(short = 'n', long, value_name = "COUNT")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=COUNT_MAX))]
    count: Option<u32>,

    /// How many nodes to use, in turn; one process on each unless --count says another number.
    #[arg(short = 'N', long, value_name = "COUNT")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=COUNT_MAX))]
    node_count: Option<u32>,

    /// One process on each node that is up, or on each of --nodes.
    #[arg(short, long, conflicts_with_all = ["count", "node_count"])]
    all: bool,

    /// Gathers the outputs and shows equal ones once, under the nodes that they came from.
    #[arg(short = 'b', long, conflicts_with_all = ["label", "pty"])]
    gather: bool,

    /// Memory in MiB that a node must have free to be chosen, and that each process may use, with those that it starts.
    #[arg(long, value_name = "MIB")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=MEM_MIB_MAX))]
    mem: Option<u64>,

    /// Processors that a node must have to be chosen, and the time of which each process may use, with those that it starts.
    #[arg(long, value_name = "COUNT")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=COUNT_MAX))]
    cpus: Option<u32>,

    /// Makes a checkpoint of the program every so often, from which it can be started again: TIME is as for --time, or ends
    /// with s, m or h; 10 s at least.
    #[arg(long, value_name = "TIME", value_parser = read_period)]
    #[arg(conflicts_with_all = ["all", "node_count", "gather", "label", "mem", "cpus", "gang", "detach", "beside", "pty", "places"])]
    checkpoint: Option<Duration>,

    /// Has the program go on from its last checkpoint on another node when the one that runs it is lost.
    #[arg(long)]
    #[arg(conflicts_with_all = ["all", "node_count", "gather", "label", "mem", "cpus", "gang", "detach", "beside", "pty", "places"])]
    restart: bool,

    /// Has the processes run together, in turns of a second with those of other gangs that share nodes with them.
    #[arg(long)]
    gang: bool,

    /// Puts the command into the queue of batch jobs, where it outlives this process, and prints the number of the job;
    /// its output goes to glurun-<job>.out. `glubatch` shows and ends it.
    #[arg(long, conflicts_with_all = ["all", "gather", "label", "pty", "fanout", "wait", "kill_on_bad_exit", "places", "node_count"])]
    detach: bool,

    /// Beside another job: a process on the node of each of its processes.
    #[arg(long, value_name = "NPID", value_parser = read_npid)]
    #[arg(conflicts_with_all = ["nodes", "exclude", "count", "node_count", "all", "detach", "places"])]
    beside: Option<ClusterPid>,

    /// How many processes may run at a time; all if not given.
    #[arg(short, long, value_name = "COUNT")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=COUNT_MAX))]
    fanout: Option<u32>,

    /// Which process gets the input: its number, `all` or `none`.
    #[arg(short, long, value_name = "WHICH", default_value = "0", value_parser = read_input)]
    input: Input,

    /// Passes output on as it comes; it always is, but for lines under --label.
    #[arg(short, long, conflicts_with = "label")]
    unbuffered: bool,

    /// Sends an interrupt to the program at once; it always is.
    #[arg(short = 'X', long)]
    disable_status: bool,

    /// Ends all processes when one fails.
    #[arg(short = 'K', long)]
    kill_on_bad_exit: bool,

    /// Ends all processes so many seconds after the first one has ended.
    #[arg(short = 'W', long, value_name = "SECONDS")]
    wait: Option<u64>,

    /// Runs in this directory.
    #[arg(short = 'D', long, value_name = "DIR")]
    chdir: Option<PathBuf>,

    /// The environment: ALL, NONE, or names and NAME=VALUE with commas between, with or without ALL.
    #[arg(long, value_name = "WHAT", default_value = "ALL")]
    export: String,

    /// The file to take the environment from, NAME=VALUE with a zero byte after each.
    #[arg(long, value_name = "FILE")]
    export_file: Option<PathBuf>,

    /// The file for output, and for errors if --error does not name another; from --chdir on.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// The file for errors; from --chdir on.
    #[arg(short, long, value_name = "FILE")]
    error: Option<PathBuf>,

    /// A node for each process.
    #[arg(long, hide = true, value_delimiter = ',', conflicts_with_all = ["all", "count", "node_count", "nodes", "exclude"])]
    places: Vec<u16>,

    /// Ends the processes after this time, with status 124: minutes, minutes:seconds or hours:minutes:seconds.
    #[arg(short, long, value_name = "TIME", value_parser = read_time)]
    time: Option<Duration>,

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
    let line = rsh::translated(std::env::args_os().collect(), |name| std::env::var_os(name));
    let args = line.and_then(Args::try_parse_from);
    let args = args.unwrap_or_else(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => error.exit(),
        _ => usage(&error),
    });
    if args.detach {
        detach(&args);
    }
    let ignored = sys::ignored_signals();
    let wish = Wish {
        on: args.nodes,
        except: args.exclude,
        mem_mib: args.mem,
        cpus: args.cpus,
        all: args.all,
        nodes: args.node_count.map(|count| count as usize),
        count: args.count.map(|count| count as usize),
    };
    let known = || owner::nodes(&socket())?;
    let one = |node| vec![node];
    let places = match (args.beside, args.places.is_empty()) {
        (Some(npid), _) => beside(npid).map(|nodes| nodes.into_iter().map(one).collect()),
        (None, true) => wish.plan(known),
        (None, false) => Ok(args.places.iter().map(|&node| one(NodeId(node))).collect()),
    };
    let places = places.unwrap_or_else(|why| many::give_up(&why));
    let directory = args.chdir.map(|to| std::path::absolute(&to).unwrap_or(to));
    redirect(directory.as_deref(), args.output, args.error).unwrap_or_else(|why| fail(&why));
    let rules = Rules {
        fanout: args.fanout.map_or(places.len(), |count| count as usize),
        end_on_failure: args.kill_on_bad_exit,
        end_after_first: args.wait.map(Duration::from_secs),
        limit: args.time,
        gather: args.gather,
    };
    // Those that wait for their turn cannot be waited for.
    let count = u32::try_from(places.len()).expect("counts are small");
    let parallel = (count > 1 && rules.fanout >= places.len()).then_some(count);
    let reader = match args.input {
        Input::None => Reader::Nobody,
        Input::Process(vnn) => Reader::One(vnn),
        Input::All if count == 1 => Reader::One(0),
        Input::All if parallel.is_none() => {
            eprintln!(
                "{NAME}: input for all is for processes that run at a time, without --fanout"
            );
            std::process::exit(USAGE_STATUS);
        }
        Input::All => Reader::All(Fan::new(count)),
    };
    let kept = args.checkpoint.is_some() || args.restart;
    if kept && places.len() != 1 {
        eprintln!("{NAME}: --checkpoint and --restart are for one process");
        std::process::exit(USAGE_STATUS);
    }
    let single = places.len() == 1 && !args.label && !args.gather;
    // Of a program with a terminal no images can be made.
    let terminal = (single && !kept)
        .then(|| Terminal::find(args.pty))
        .flatten();
    if args.pty && terminal.is_none() {
        eprintln!("{NAME}: --pty is for one process, and wants a terminal as standard input");
        std::process::exit(USAGE_STATUS);
    }
    let signals = Signals::take_over(ignored, terminal.clone());
    let signals = signals.unwrap_or_else(|e| many::give_up(&format!("cannot take signals: {e}")));
    let env = match &args.export_file {
        Some(path) => read_environment(path).unwrap_or_else(|why| fail(&why)),
        None => std::env::vars_os().collect(),
    };
    let env = export(&args.export, env);
    let command = Command::new(args.command, env, ignored);
    let command = command.unwrap_or_else(|e| many::give_up(&format!("no working directory: {e}")));
    let command = command
        .in_directory(directory)
        .labelled(args.label)
        .gathered(args.gather)
        .with_input_for(reader)
        .parallel(parallel)
        .limited(Limits {
            mem_bytes: args.mem.map(|mib| mib << 20),
            cpus: args.cpus,
        })
        .in_turns(args.gang)
        .kept(
            kept.then_some(Checkpoints {
                every_s: args
                    .checkpoint
                    .map(|every| u32::try_from(every.as_secs()).unwrap_or(u32::MAX)),
                restart: args.restart,
            }),
        )
        .with_terminal(terminal);
    if single && args.time.is_none() {
        end_as(
            NAME,
            command.run_on(&socket(), 0, &places[0], None, &signals),
        )
    }
    std::process::exit(many::run(&command, &places, &rules, &signals).into())
}

/// Returns the node of each process of a job.
fn beside(npid: ClusterPid) -> Result<Vec<NodeId>, String> {
    let root = table::root();
    // The record may not have heard yet that it has ended.
    if Process::open(&root, npid).err() == Some(Errno::ESRCH) {
        return Err(no_job(npid));
    }
    let nodes = Files::of(root.parent().unwrap_or(&root)).places(npid)?;
    match nodes.is_empty() {
        true => Err(format!("the processes of job {npid} have ended")),
        false => Ok(nodes),
    }
}

fn read_npid(text: &str) -> Result<ClusterPid, String> {
    let npid = ClusterPid::parse(text.as_bytes());
    npid.ok_or_else(|| "the number of a job, as `glu jobs` shows it".into())
}

/// Who gets the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
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

/// Becomes `glubatch`, which has a process that outlives this one start the command.
fn detach(args: &Args) -> ! {
    let own = std::env::current_exe().unwrap_or_default();
    let mut glubatch = std::process::Command::new(own.with_file_name("glubatch"));
    glubatch.args(["submit", "--no-requeue"]);
    let mut option = |name: &str, value: Option<OsString>| {
        if let Some(value) = value {
            glubatch.arg(name).arg(value);
        }
    };
    let text = |set: &Option<NodeSet>| set.as_ref().map(|set| set.to_string().into());
    option("--nodes", text(&args.nodes));
    option("--exclude", text(&args.exclude));
    option("--count", args.count.map(|count| count.to_string().into()));
    option("--cpus", args.cpus.map(|count| count.to_string().into()));
    option("--mem", args.mem.map(|mib| mib.to_string().into()));
    option("--chdir", args.chdir.clone().map(Into::into));
    let time = args.time.map(|time| format!("0:{}", time.as_secs().max(1)));
    option("--time", time.map(Into::into));
    let output = args
        .output
        .clone()
        .unwrap_or_else(|| "glurun-%j.out".into());
    option("--output", Some(output.into()));
    option("--error", args.error.clone().map(Into::into));
    if args.gang {
        glubatch.arg("--gang");
    }
    let env = export(&args.export, std::env::vars_os().collect());
    glubatch.env_clear().envs(env).arg("--").args(&args.command);
    let error = std::os::unix::process::CommandExt::exec(&mut glubatch);
    many::give_up(&format!("glubatch cannot be run: {error}"))
}

/// Puts files in the place of this process's output and errors.
fn redirect(
    directory: Option<&Path>,
    output: Option<PathBuf>,
    error: Option<PathBuf>,
) -> Result<(), String> {
    let open = |path: PathBuf| {
        let path = directory.map_or_else(|| path.clone(), |directory| directory.join(&path));
        let file = File::create(&path);
        file.map_err(|error| format!("{}: cannot be written: {error}", path.display()))
    };
    let both = error.is_none();
    let (output, error) = (output.map(open).transpose()?, error.map(open).transpose()?);
    let errors = if both { &output } else { &error };
    let failed = |errno| format!("cannot redirect: {errno}");
    if let Some(file) = &output {
        dup2_stdout(file).map_err(failed)?;
    }
    if let Some(file) = errors {
        dup2_stderr(file).map_err(failed)?;
    }
    Ok(())
}

fn read_environment(path: &Path) -> Result<Vec<(OsString, OsString)>, String> {
    let bytes = std::fs::read(path);
    let bytes = bytes.map_err(|error| format!("{}: cannot be read: {error}", path.display()))?;
    let variable = |text: &[u8]| {
        let at = text.iter().position(|byte| *byte == b'=')?;
        let (name, value) = (text[..at].to_vec(), text[at + 1..].to_vec());
        Some((OsString::from_vec(name), OsString::from_vec(value)))
    };
    Ok(bytes
        .split(|byte| *byte == 0)
        .filter_map(variable)
        .collect())
}

/// Ends with what is wrong with a file of the user's.
fn fail(why: &str) -> ! {
    eprintln!("{NAME}: {why}");
    std::process::exit(USAGE_STATUS)
}

/// Returns what of an environment goes along.
fn export(what: &str, all: Vec<(OsString, OsString)>) -> Vec<(OsString, OsString)> {
    let words: Vec<&str> = what.split(',').filter(|word| !word.is_empty()).collect();
    let mut env = match words.contains(&"ALL") {
        true => all.clone(),
        false => Vec::new(),
    };
    for word in words
        .into_iter()
        .filter(|word| !["ALL", "NONE"].contains(word))
    {
        let new = match word.split_once('=') {
            Some((name, value)) => Some((name.into(), value.into())),
            None => all.iter().find(|(name, _)| name == word).cloned(),
        };
        if let Some(new) = new {
            env.retain(|(name, _)| *name != new.0);
            env.push(new);
        }
    }
    env
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

    #[test]
    fn environments_that_go_along() {
        let own = |name: &str| (OsString::from(name), OsString::from("own"));
        let check = |what: &str, expected: &str| {
            let env = export(what, vec![own("A"), own("B")]);
            let env: Vec<String> = env
                .iter()
                .map(|(name, value)| format!("{}={}", name.display(), value.display()))
                .collect();
            assert_eq!(env.join(" "), expected, "{what}");
        };
        check("ALL", "A=own B=own");
        check("NONE", "");
        check("A,C=3", "A=own C=3");
        check("ALL,A=1", "B=own A=1");
        check("X", "");
    }
}
