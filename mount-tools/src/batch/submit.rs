//! `glubatch submit`: from a command line, and lines of a script, to what the queue is asked.
//!
//! In a script the lines that begin with `#GLU`, before the first that is neither empty nor a comment, are options; those
//! of the command line come after them, and so prevail.

use super::job::{ARRAY_MAX, COUNT_MAX, Dependency, Seconds, Spec};
use crate::nodes::{self, NodeSet};
use crate::run::args::{MEM_MIB_MAX, read_time};
use anyhow::{Context, Result, bail};
use clap::Args;
use gproc::job::private::Private;
use nix::sys::stat::{Mode, umask};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a line with options begins with.
const DIRECTIVE: &str = "#GLU";
/// Where such lines are looked for: so many bytes from the beginning.
const DIRECTIVE_BYTES_MAX: u64 = 64 << 10;

/// Puts a command into the queue; prints the number of the job.
///
/// The job gets this environment, user and working directory; its program is looked for when it starts. In a script, lines
/// that begin with `#GLU` before its first command are options.
#[derive(Debug, Args)]
#[command(args_override_self = true)]
pub(super) struct Submit {
    /// The job's name; that of its program if not given.
    #[arg(short = 'J', long = "job-name", value_name = "NAME")]
    name: Option<String>,

    /// How many processes; they find their number in GLU_VNN.
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(COUNT_MAX)))]
    count: u32,

    /// Processors of each process, and the time of which each may use, with those that it starts. If not given each has one,
    /// and may use more where there are more.
    #[arg(short, long, value_name = "COUNT")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1024))]
    cpus: Option<u32>,

    /// Memory in MiB that a node must have free for each process when it starts, and that each may use, with those that it
    /// starts; 0: any.
    #[arg(long, value_name = "MIB", default_value_t = 0)]
    #[arg(value_parser = clap::value_parser!(u64).range(..=MEM_MIB_MAX))]
    mem: u64,

    /// Has the processes run together, in turns of a second with those of other gangs that share nodes with them.
    #[arg(long)]
    gang: bool,

    /// What each process, with those that it starts, has to itself, so that it moves with them: `net`, a network in which they
    /// reach each other and nobody else; `ipc`, System V IPC; `net,ipc`.
    #[arg(long, value_name = "LIST")]
    private: Option<Private>,

    #[arg(short = 'w', long, value_name = "NODES", help = nodes::HELP)]
    nodes: Option<NodeSet>,

    /// Nodes not to run on.
    #[arg(short = 'x', long, value_name = "NODES")]
    exclude: Option<NodeSet>,

    /// The partition whose nodes and rules it has; `glupart list` shows them.
    #[arg(short, long, value_name = "NAME")]
    partition: Option<String>,

    /// How long it may run: minutes, minutes:seconds or hours:minutes:seconds.
    #[arg(short, long, value_name = "TIME", value_parser = read_time)]
    time: Option<Duration>,

    /// When it may begin: now+TIME, or a time of day like 2027-01-31T20:00:00Z.
    #[arg(short, long, value_name = "WHEN", value_parser = read_when)]
    begin: Option<When>,

    /// Jobs with a higher one begin first.
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    #[arg(value_parser = clap::value_parser!(i32).range(-1_000_000..=1_000_000))]
    priority: i32,

    /// What it waits for: after:JOB (it was started), afterok:JOB, afternotok:JOB, afterany:JOB; commas between.
    #[arg(
        short = 'd',
        long = "dependency",
        value_name = "WHAT",
        value_delimiter = ','
    )]
    after: Vec<Dependency>,

    /// Many jobs: 0-9, 1-9/2, 1,5,7; %4 at the end for 4 at a time. Each finds its index in GLU_ARRAY_INDEX.
    #[arg(short, long, value_name = "INDICES", value_parser = read_array)]
    array: Option<Indices>,

    /// Runs where nobody else's programs do, and leaves, to begin again, when they want the node back.
    #[arg(long)]
    when_idle: bool,

    /// Is not started again after a node was lost.
    #[arg(long)]
    no_requeue: bool,

    /// Waits until `glubatch release`.
    #[arg(short = 'H', long)]
    hold: bool,

    /// Its working directory; this one if not given.
    #[arg(short = 'D', long, value_name = "DIR")]
    chdir: Option<PathBuf>,

    /// The file for its output: %j is the job, %A its number, %a its index, %x its name.
    #[arg(short, long, value_name = "FILE", default_value = "glubatch-%j.out")]
    output: String,

    /// The file for its errors; that of the output if not given.
    #[arg(short, long, value_name = "FILE")]
    error: Option<String>,

    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// When a job may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    In(Duration),
    At(Seconds),
}

/// The indices of an array, and how many run at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Indices {
    indices: Vec<u32>,
    limit: Option<u32>,
}

impl When {
    /// Returns the time that is meant now.
    pub(super) fn seconds_after(self, now: Seconds) -> Seconds {
        match self {
            Self::In(time) => now + time.as_secs(),
            Self::At(at) => at,
        }
    }
}

impl Submit {
    /// Returns the options that the script has which is to be run, if it is one.
    pub(super) fn directives(&self) -> Result<Vec<OsString>> {
        let Some(path) = self.script() else {
            return Ok(Vec::new());
        };
        let mut text = Vec::new();
        let place = || format!("{}: cannot be read", path.display());
        let file = File::open(&path).with_context(place)?;
        file.take(DIRECTIVE_BYTES_MAX)
            .read_to_end(&mut text)
            .with_context(place)?;
        Ok(read_directives(&String::from_utf8_lossy(&text)))
    }

    /// Returns what the queue is asked.
    pub(super) fn spec(self, now: Seconds) -> Result<Spec> {
        let mut command = Vec::new();
        let script = self.script();
        for word in self.command {
            match word.into_string() {
                Ok(word) => command.push(word),
                Err(word) => bail!("{}: batch jobs have words of UTF-8 only", word.display()),
            }
        }
        // From wherever it runs.
        if let Some(script) = script {
            let script = std::path::absolute(&script)?;
            command[0] = script
                .to_str()
                .context("the path of the script is not UTF-8")?
                .into();
        }
        let directory = match self.chdir {
            Some(to) => std::path::absolute(to)?,
            None => std::env::current_dir().context("no working directory")?,
        };
        let mask = umask(Mode::empty());
        umask(mask);
        let name = self.name.unwrap_or_else(|| {
            let path = Path::new(&command[0]).file_name().unwrap_or_default();
            path.to_string_lossy().into_owned()
        });
        Ok(Spec {
            name,
            command,
            directory,
            umask: mask.bits(),
            output: self.output,
            error: self.error,
            count: self.count,
            cpus: self.cpus.unwrap_or(1),
            cpus_max: self.cpus,
            gang: self.gang,
            private: self.private,
            mem_mib: self.mem,
            nodes: self.nodes,
            exclude: self.exclude,
            partition: self.partition,
            time: self.time.map(|time| time.as_secs().max(1)),
            begin: self.begin.map(|when| when.seconds_after(now)),
            priority: self.priority,
            after: self.after,
            array_limit: self.array.as_ref().and_then(|array| array.limit),
            array: self.array.map(|array| array.indices).unwrap_or_default(),
            when_idle: self.when_idle,
            again: !self.no_requeue,
            held: self.hold,
        })
    }

    /// Returns the script that is to be run: a file by its path, or one of that name here.
    fn script(&self) -> Option<PathBuf> {
        let path = Path::new(&self.command[0]);
        let mut start = [0; 2];
        let mut file = File::open(path).ok()?;
        (file.read_exact(&mut start).is_ok() && &start == b"#!").then(|| path.into())
    }
}

fn read_directives(script: &str) -> Vec<OsString> {
    let before = script.lines().map(str::trim);
    let before = before.take_while(|line| line.is_empty() || line.starts_with('#'));
    let directives = before.filter_map(|line| line.strip_prefix(DIRECTIVE));
    let words = directives.flat_map(|line| {
        line.split('#')
            .next()
            .unwrap_or_default()
            .split_whitespace()
    });
    words.map(OsString::from).collect()
}

/// Reads a time to come.
pub(super) fn read_when(text: &str) -> Result<When, String> {
    if let Some(time) = text.strip_prefix("now+") {
        return read_time(time).map(When::In);
    }
    let wrong = || "now+TIME, or a time like 2027-01-31T20:00:00Z".to_owned();
    let at = humantime::parse_rfc3339_weak(text).map_err(|_| wrong())?;
    let at = at
        .duration_since(std::time::SystemTime::UNIX_EPOCH)
        .map_err(|_| wrong())?;
    Ok(When::At(at.as_secs()))
}

fn read_array(text: &str) -> Result<Indices, String> {
    let wrong =
        || "indices like 0-9, 1-9/2 or 1,5,7, with %4 at the end for 4 at a time".to_owned();
    let (list, limit) = match text.split_once('%') {
        Some((list, limit)) => (list, Some(limit.parse().map_err(|_| wrong())?)),
        None => (text, None),
    };
    if limit == Some(0) {
        return Err(wrong());
    }
    let number = |text: &str| match text.parse::<u32>() {
        Ok(number) if number <= ARRAY_MAX => Ok(number),
        Ok(_) => Err(format!("indices are at most {ARRAY_MAX}")),
        Err(_) => Err(wrong()),
    };
    let mut indices = BTreeSet::new();
    for part in list.split(',') {
        let (range, step) = part.split_once('/').unwrap_or((part, "1"));
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last, step) = (number(first)?, number(last)?, number(step)?);
        if first > last || step == 0 {
            return Err(wrong());
        }
        indices.extend((first..=last).step_by(step as usize));
    }
    Ok(Indices {
        indices: indices.into_iter().collect(),
        limit,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_of_arrays() {
        let check = |text: &str, expected: &[u32], limit| {
            let read = read_array(text).expect("are indices");
            assert_eq!((&*read.indices, read.limit), (expected, limit), "{text}");
        };
        check("3", &[3], None);
        check("0-3", &[0, 1, 2, 3], None);
        check("1-7/3,2", &[1, 2, 4, 7], None);
        check("1,1-2%4", &[1, 2], Some(4));
        for text in ["", "x", "3-1", "1-", "1%", "1%0", "1-2/0", "10001", "-1"] {
            read_array(text).expect_err(text);
        }
    }

    #[test]
    fn times_to_come() {
        let read = |text| read_when(text).map(|when| when.seconds_after(1_000));
        assert_eq!(read("now+2"), Ok(1_120));
        assert_eq!(read("1970-01-02T00:00:00Z"), Ok(86_400));
        for text in ["", "now", "now+", "tomorrow", "1960-01-01T00:00:00Z"] {
            read(text).expect_err(text);
        }
    }

    #[test]
    fn options_in_scripts() {
        let script =
            "#!/bin/sh\n#GLU -n 3  # three\n\n# plain\n#GLU --job-name x\necho\n#GLU -n 4\n";
        assert_eq!(read_directives(script), ["-n", "3", "--job-name", "x"]);
    }
}
