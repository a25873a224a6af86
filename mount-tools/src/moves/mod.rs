//! `migrate` and `loadlevel`: where a process is to run, and whether it may move. They write the control files of
//! `/cluster/proc` (MOSIX, OpenSSI) and say in words what those answer in errnos.

pub(crate) mod destination;

use crate::cli::refuse;
use crate::table::{self, Process};
use clap::Parser;
use destination::Destination;
use gproc::job::LEVEL_ENV;
use gproc::pids::ClusterPid;
use nix::errno::Errno;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// What words in `cantmove` mean; docs/semantics.md has more.
const WORDS: [(&str, &str); 20] = [
    ("no_job", "it is not the program of a glurun job"),
    (
        "terminal",
        "it has a terminal that its glurun has not given it, or has /dev/tty open",
    ),
    ("wire", "it is part of a parallel program"),
    ("input_file", "its input is a file of the cluster"),
    ("limits", "it is kept within --mem or --cpus"),
    ("gang", "it takes turns with other gangs"),
    (
        "tcp",
        "it has a connection, whose address does not move (those inside of a job do under glurun --private net)",
    ),
    ("device", "it has a device open"),
    ("io_uring", "it uses io_uring"),
    ("local_file", "it writes a file outside of /cluster"),
    ("file_lock", "it holds locks of files"),
    (
        "ipc",
        "it has shared memory or a message queue, which stay with their node (those of System V move under glurun --private ipc)",
    ),
    (
        "kernel_object",
        "it uses a part of the kernel that does not move",
    ),
    ("traced", "it has a process that a debugger has"),
    (
        "unix",
        "it is connected to a program that is not of its job",
    ),
    (
        "no_criu",
        "its home has no CRIU 4.2 or newer ([migration] criu)",
    ),
    ("no_cgroup", "its home has no cgroups of version 2"),
    ("old_node", "the Glu of its home is older"),
    (
        "stay",
        "processes of its home stay there (cluster/node<N>/stay)",
    ),
    ("user_lock", "it is locked: loadlevel -p PID on"),
];

/// Moves a process to another node while it runs.
///
/// Exit status: 0 it runs there, 1 it does not, 2 the command line is not understood.
#[derive(Debug, Parser)]
#[command(name = "migrate", version)]
struct Migrate {
    /// The process, as in /cluster/proc.
    #[arg(value_name = "PID", value_parser = pid)]
    pid: ClusterPid,
    /// A node's number; `home`, where it was started; or `balance`, where it runs best.
    #[arg(value_name = "NODE|home|balance")]
    to: Destination,
    /// Lets it run there before its memory is there, which follows at once: it stands still for a fraction of the time. If the
    /// node that it leaves is lost before all has come the process ends.
    #[arg(long)]
    post_copy: bool,
}

/// Says or shows whether a process may move and is levelled, or runs a program as a job that is.
///
/// Exit status: 0 done, 1 not, 2 the command line is not understood; of a program, that of glurun.
#[derive(Debug, Parser)]
#[command(name = "loadlevel", version)]
struct Loadlevel {
    /// The process, as in /cluster/proc: then `on` or `off` follows, or nothing to be shown what it is.
    #[arg(short, long, value_name = "PID", value_parser = pid)]
    pid: Option<ClusterPid>,
    /// `on` or `off`; without -p a program and its arguments.
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required_unless_present = "pid",
        value_name = "WORD"
    )]
    words: Vec<OsString>,
}

pub(crate) fn pid(text: &str) -> Result<ClusterPid, String> {
    ClusterPid::parse(text.as_bytes()).ok_or_else(|| "it is no process of the cluster".to_owned())
}

/// Runs `migrate` with the arguments of this process.
#[must_use]
pub fn migrate() -> ExitCode {
    match Migrate::try_parse() {
        Ok(Migrate { pid, to, post_copy }) => done("migrate", pid, go(pid, to, post_copy)),
        Err(error) => refuse("migrate", &error),
    }
}

/// Runs `loadlevel` with the arguments of this process.
#[must_use]
pub fn loadlevel() -> ExitCode {
    let Loadlevel { pid, words } = match Loadlevel::try_parse() {
        Ok(args) => args,
        Err(error) => return refuse("loadlevel", &error),
    };
    let Some(pid) = pid else {
        // So that all that it starts by glurun is levelled, too.
        let error = Command::new("glurun")
            .env(LEVEL_ENV, "1")
            .arg("--")
            .args(&words)
            .exec();
        eprintln!("loadlevel: glurun: {error}");
        return ExitCode::from(127);
    };
    let word = words.first().and_then(|word| word.to_str());
    let level = match (word, words.len()) {
        (None, 0) => None,
        (Some("on" | "1"), 1) => Some("1"),
        (Some("off" | "0"), 1) => Some("0"),
        _ => {
            let error = "after -p PID there may be `on` or `off`";
            let error = clap::Error::raw(clap::error::ErrorKind::InvalidValue, error);
            return refuse("loadlevel", &error);
        }
    };
    done("loadlevel", pid, set(pid, level))
}

fn done(program: &str, pid: ClusterPid, outcome: Result<(), String>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{program}: {pid}: {why}");
            ExitCode::FAILURE
        }
    }
}

fn open(pid: ClusterPid) -> Result<Process, String> {
    Process::open(&table::root(), pid).map_err(|errno| errno.desc().to_owned())
}

fn go(pid: ClusterPid, to: Destination, post_copy: bool) -> Result<(), String> {
    let process = open(pid)?;
    let after = if post_copy { " post-copy" } else { "" };
    let moved = process.order("goto", &format!("{}{after}", to.order()));
    moved.map_err(|errno| not_moved(&process, errno))
}

fn not_moved(process: &Process, errno: Errno) -> String {
    match errno {
        Errno::EOPNOTSUPP => {
            let words = process.read("cantmove").unwrap_or_default();
            because("it cannot move", &words, &[])
        }
        Errno::ENXIO => "there is no such node: glustat shows those there are".to_owned(),
        Errno::EBUSY => {
            "it is moving already, or locked where it is (loadlevel -p PID on)".to_owned()
        }
        Errno::EAGAIN => {
            "it could not be moved now and goes on where it was: the log of its home says why"
                .to_owned()
        }
        Errno::ENOEXEC => {
            "that node's processors lack instructions that it may use: the log of its home names them"
                .to_owned()
        }
        Errno::ECONNREFUSED => {
            "that node is closed to its user, or reserved for others: see glu nodes".to_owned()
        }
        Errno::EHOSTDOWN => {
            "its home does not answer: look where it runs with glups -p PID".to_owned()
        }
        errno => errno.desc().to_owned(),
    }
}

/// Has a checkpoint made of a process; returns its number and size.
pub(crate) fn checkpoint(pid: ClusterPid) -> Result<(u64, u64), String> {
    let process = open(pid)?;
    process
        .order("checkpoint", "1")
        .map_err(|errno| match errno {
            Errno::EOPNOTSUPP => {
                let words = process.read("cantmove").unwrap_or_default();
                // Those keep it where it is, no more.
                because(
                    "no checkpoint can be made of it",
                    &words,
                    &["stay", "user_lock"],
                )
            }
            Errno::EBUSY => "it is moving, or a checkpoint of it is being made".to_owned(),
            Errno::EAGAIN => {
                "no checkpoint could be made now, and it goes on: the log of its home says why"
                    .to_owned()
            }
            Errno::EHOSTDOWN => "its home does not answer".to_owned(),
            errno @ (Errno::ESRCH | Errno::EPERM) => errno.desc().to_owned(),
            errno => format!(
                "its images could not be written, and it goes on: {}",
                errno.desc()
            ),
        })?;
    let text = process.read("checkpoints").unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut numbers = text.split_ascii_whitespace().map(str::parse);
    match (numbers.next(), numbers.nth(1)) {
        (Some(Ok(number)), Some(Ok(bytes))) => Ok((number, bytes)),
        _ => Err("it has ended since".to_owned()),
    }
}

/// Has a process go on as its newest checkpoint, on another node than where it is.
pub(crate) fn restart(pid: ClusterPid, to: Destination) -> Result<(), String> {
    let process = open(pid)?;
    process
        .order("restart", &to.order())
        .map_err(|errno| match errno {
            Errno::ENODATA => "there is no checkpoint of it: glu checkpoint makes one".to_owned(),
            Errno::EEXIST => "it runs there: name another node".to_owned(),
            Errno::EAGAIN => {
                "it could not be started from its checkpoint now and goes on as it was: the log of its home says why"
                    .to_owned()
            }
            errno => not_moved(&process, errno),
        })
}

/// Says why something cannot be done with a process, but for what does not matter for it.
fn because(what: &str, cantmove: &[u8], but: &[&str]) -> String {
    let words = String::from_utf8_lossy(cantmove);
    let why: Vec<&str> = words
        .split_ascii_whitespace()
        .filter(|word| !but.contains(word))
        .map(|word| {
            let known = WORDS.iter().find(|(known, _)| *known == word);
            known.map_or(word, |(_, meaning)| *meaning)
        })
        .collect();
    if why.is_empty() {
        what.to_owned()
    } else {
        format!("{what}: {}", why.join("; "))
    }
}

fn set(pid: ClusterPid, level: Option<&str>) -> Result<(), String> {
    let process = open(pid)?;
    let failed = |errno: Errno| errno.desc().to_owned();
    match level {
        Some(level) => process.order("loadlevel", level).map_err(failed),
        None => {
            let level = process.read("loadlevel").map_err(failed)?;
            let on = table::number::<u8>(&level) == Some(1);
            println!("{}", if on { "on" } else { "off" });
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_a_process_stays() {
        let check = |words: &str, expected: &str| {
            assert_eq!(because("it cannot move", words.as_bytes(), &[]), expected);
        };
        check(
            "terminal\ntcp\n",
            "it cannot move: it has a terminal that its glurun has not given it, or has /dev/tty open; it has a connection, whose address does not move (those inside of a job do under glurun --private net)",
        );
        check("news\n", "it cannot move: news");
        check("", "it cannot move");
        let kept = because("it cannot", b"stay\ntcp\n", &["stay"]);
        assert_eq!(
            kept,
            "it cannot: it has a connection, whose address does not move (those inside of a job do under glurun --private net)"
        );
    }

    #[test]
    fn command_lines() {
        let parse = |words: &[&str]| Loadlevel::try_parse_from(words);
        let args = parse(&["loadlevel", "make", "-j", "8"]).expect("a program");
        assert_eq!((args.pid, args.words.len()), (None, 3));
        let args = parse(&["loadlevel", "-p", "131080", "off"]).expect("a process");
        assert!(args.pid.is_some() && args.words == ["off"]);
        for wrong in [&["loadlevel"][..], &["loadlevel", "-p", "x"]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
        for wrong in [&["migrate", "7"][..], &["migrate", "7", "nowhere"]] {
            assert!(Migrate::try_parse_from(wrong).is_err(), "{wrong:?}");
        }
    }
}
