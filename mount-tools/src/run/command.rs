//! `glurun`: runs a program on the best node as if it ran here.

use super::args::{Args, Input};
use super::fan::Fan;
use super::forked;
use super::many::{self, Rules, Wish};
use super::owner::{self, Command, Reader};
use super::rsh;
use super::signals::Signals;
use super::terminal::Terminal;
use super::{end_as, socket, sys};
use crate::jobs::files::{Files, no_job};
use crate::nodes::NodeSet;
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
pub(super) const NAME: &str = "glurun";

/// Exit status for a command line that is not understood.
const USAGE_STATUS: i32 = 2;

/// Runs `glurun` with the arguments of this process, and ends it.
pub fn main() -> ! {
    let line: Vec<OsString> = std::env::args_os().collect();
    if line.get(1).is_some_and(|flag| flag == forked::FLAG) {
        forked::main(&line[1..]);
    }
    let line = rsh::translated(line, |name| std::env::var_os(name));
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
        .with_its_own(args.private.unwrap_or_default())
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
    option("--private", args.private.map(|own| own.to_string().into()));
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
