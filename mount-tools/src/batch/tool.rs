//! `glubatch`: puts jobs into the queue, shows it, and changes it.

use super::job::{Job, JobId, State, now, show_time};
use super::queue::{Answer, Request};
use super::spool::Spool;
use super::submit::Submit;
use crate::cli::refuse;
use crate::nodes::NodeSet;
use crate::table::{self, user_name};
use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use comfy_table::{Table, presets};
use nix::unistd::User;
use std::ffi::OsString;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;
use std::time::Duration;

/// This program's name in its messages.
const NAME: &str = "glubatch";
/// How often `wait` looks.
const WAIT_EVERY: Duration = Duration::from_millis(200);
/// Exit status of `wait` for what did not end by itself.
const NOT_DONE: u8 = 125;

/// Jobs that wait for their turn.
///
/// The queue is kept by the cluster: it outlives the loss of any node. Jobs start when processors are free, in the order of
/// their priority and then of their numbers.
#[derive(Debug, Parser)]
#[command(name = NAME, version, disable_help_subcommand = true)]
struct Glubatch {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Submit(Box<Submit>),
    /// Shows the jobs that wait and run.
    List {
        /// Those that have ended in the last day, too.
        #[arg(short, long)]
        all: bool,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Shows all about jobs.
    Show {
        #[arg(required = true, value_name = "JOB")]
        jobs: Vec<JobId>,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Shows the jobs that have ended, the oldest first.
    History {
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Ends jobs, or takes them out of the queue.
    Cancel {
        #[arg(required = true, value_name = "JOB")]
        jobs: Vec<JobId>,
    },
    /// Has jobs wait until they are released.
    Hold {
        #[arg(required = true, value_name = "JOB")]
        jobs: Vec<JobId>,
    },
    /// Lets jobs that are held have their turn.
    Release {
        #[arg(required = true, value_name = "JOB")]
        jobs: Vec<JobId>,
    },
    /// Waits until jobs have ended; the exit status is the highest of theirs, 125 for one that did not end by itself.
    Wait {
        #[arg(required = true, value_name = "JOB")]
        jobs: Vec<JobId>,
    },
}

/// Runs `glubatch` with the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let parsed = Glubatch::try_parse_from(&words).map_err(anyhow::Error::from);
    let result = parsed.and_then(|tool| with_directives(tool, &words));
    let result = result.and_then(|tool| tool.command.run());
    match result {
        Ok(status) => status,
        Err(error) => match error.downcast_ref::<clap::Error>() {
            Some(error) => refuse(NAME, error),
            None if is_broken_pipe(&error) => ExitCode::SUCCESS,
            None => {
                eprintln!("{NAME}: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}

/// Reads the command line again with the options that the script has.
fn with_directives(tool: Glubatch, words: &[OsString]) -> Result<Glubatch> {
    let Command::Submit(submit) = &tool.command else {
        return Ok(tool);
    };
    let directives = submit.directives()?;
    if directives.is_empty() {
        return Ok(tool);
    }
    // After the program's name and the subcommand.
    let words = words[..2].iter().chain(&directives).chain(&words[2..]);
    Ok(Glubatch::try_parse_from(words)?)
}

impl Command {
    fn run(self) -> Result<ExitCode> {
        let spool = spool();
        match self {
            Self::Submit(submit) => {
                let request = Request::Submit(Box::new(submit.spec(now())?));
                let env: Vec<_> = std::env::vars_os().collect();
                match spool.ask(&request, Some(&env))? {
                    Answer::Submitted(number) => writeln!(io::stdout(), "{number}")?,
                    other => through(&other)?,
                }
            }
            Self::List { all, json } => {
                let jobs = spool.jobs()?.into_iter();
                print(
                    jobs.filter(|job| all || !job.state.has_ended()).collect(),
                    json,
                )?;
            }
            Self::History { json } => {
                let ended = spool
                    .jobs()?
                    .into_iter()
                    .filter(|job| job.state.has_ended());
                print(spool.history()?.into_iter().chain(ended).collect(), json)?;
            }
            Self::Show { jobs, json } => {
                let shown = find(&spool, &jobs)?;
                if json {
                    writeln!(io::stdout(), "{}", serde_json::to_string(&shown)?)?;
                } else {
                    for job in &shown {
                        write!(io::stdout(), "{}", describe(job))?;
                    }
                }
            }
            Self::Cancel { jobs } => through(&spool.ask(&Request::Cancel(jobs), None)?)?,
            Self::Hold { jobs } => through(&spool.ask(&Request::Hold(jobs), None)?)?,
            Self::Release { jobs } => through(&spool.ask(&Request::Release(jobs), None)?)?,
            Self::Wait { jobs } => return wait(&spool, &jobs),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Returns the queue of this node's tree.
pub(super) fn spool() -> Spool {
    let root = table::root();
    Spool::of(root.parent().unwrap_or(&root))
}

/// Fails with why something was refused.
pub(super) fn through(answer: &Answer) -> Result<()> {
    match answer {
        Answer::Refused(why) => bail!("{why}"),
        Answer::Done | Answer::Submitted(_) => Ok(()),
    }
}

/// Returns whether nobody reads what is printed.
pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

/// Returns the jobs that are meant, those of the history, too.
fn find(spool: &Spool, ids: &[JobId]) -> Result<Vec<Job>> {
    let mut all = spool.jobs()?;
    let unknown = |all: &[Job]| {
        ids.iter()
            .copied()
            .find(|id| !all.iter().any(|job| id.means(job.id)))
    };
    if unknown(&all).is_some() {
        all.extend(spool.history()?);
    }
    if let Some(id) = unknown(&all) {
        bail!("there is no job {id}");
    }
    all.retain(|job| ids.iter().any(|id| id.means(job.id)));
    Ok(all)
}

fn wait(spool: &Spool, ids: &[JobId]) -> Result<ExitCode> {
    loop {
        let jobs = find(spool, ids)?;
        if jobs.iter().all(|job| job.state.has_ended()) {
            return Ok(ExitCode::from(jobs.iter().map(status).max().unwrap_or(0)));
        }
        std::thread::sleep(WAIT_EVERY);
    }
}

fn status(job: &Job) -> u8 {
    use super::job::Outcome;
    match job.state {
        State::Ended {
            outcome: Outcome::Exited(status),
            ..
        } => u8::try_from(status).unwrap_or(u8::MAX),
        State::Ended {
            outcome: Outcome::Killed(signal),
            ..
        } => u8::try_from(signal).map_or(u8::MAX, |signal| signal.saturating_add(128)),
        _ => NOT_DONE,
    }
}

fn print(jobs: Vec<Job>, json: bool) -> Result<()> {
    if json {
        writeln!(io::stdout(), "{}", serde_json::to_string(&jobs)?)?;
        return Ok(());
    }
    let rows = jobs.iter().map(|job| {
        let (on, time) = match &job.state {
            State::Running { since, on, .. } => (
                NodeSet::folded(on.iter().copied()),
                clock(now().saturating_sub(*since)),
            ),
            State::Ended {
                since: Some(since),
                at,
                ..
            } => ("-".into(), clock(at.saturating_sub(*since))),
            _ => ("-".into(), "-".into()),
        };
        let name = job.spec.name.clone();
        [
            job.id.to_string(),
            name,
            user_name(job.user.uid),
            job.state.word(),
            time,
            on,
            job.reason.clone(),
        ]
    });
    let header = ["JOB", "NAME", "USER", "STATE", "TIME", "NODES", "REASON"];
    writeln!(io::stdout(), "{}", lines(header, rows))?;
    Ok(())
}

/// Returns rows under a header.
pub(super) fn lines<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().into()).collect();
    lines.join("\n")
}

fn clock(seconds: u64) -> String {
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    match hours {
        0 => format!("{minutes}:{:02}", seconds % 60),
        _ => format!("{hours}:{minutes:02}:{:02}", seconds % 60),
    }
}

fn describe(job: &Job) -> String {
    let spec = &job.spec;
    let mut text = format!("job {}: {}\n", job.id, job.state.word());
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            text.push_str(&format!("  {name:<10} {value}\n"));
        }
    };
    line("reason", job.reason.clone());
    line("name", spec.name.clone());
    line("user", user_name(job.user.uid));
    line("command", spec.command.join(" "));
    line("directory", spec.directory.display().to_string());
    line("output", job.expand(&spec.output).display().to_string());
    line(
        "processes",
        format!("{} of {} processors", spec.count, spec.cpus),
    );
    let nodes = spec.nodes.as_ref().map(ToString::to_string);
    line("nodes", nodes.unwrap_or_default());
    line("partition", spec.partition.clone().unwrap_or_default());
    line("submitted", show_time(job.submitted));
    match &job.state {
        State::Running { since, on, .. } => {
            line("started", show_time(*since));
            line("runs on", NodeSet::folded(on.iter().copied()));
        }
        State::Ended { since, at: end, .. } => {
            line("started", since.map(show_time).unwrap_or_default());
            line("ended", show_time(*end));
        }
        State::Waiting { .. } | State::Held => {}
    }
    line("starts", job.starts.to_string());
    text
}

/// Used by the tools of this module to read a user: a name or a number.
pub(super) fn read_user(text: &str) -> Result<u32, String> {
    if let Ok(uid) = text.parse() {
        return Ok(uid);
    }
    match User::from_name(text) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err(format!("there is no user `{text}`")),
        Err(errno) => Err(format!("users cannot be read: {errno}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_lines() {
        Glubatch::command().debug_assert();
        for line in [
            "glubatch submit true",
            "glubatch submit -n 4 --mem 100 -w 1-2 -t 1:30 -a 0-9%2 -d afterok:3,after:4 prog -n 5",
            "glubatch submit -n 3 -n 4 true",
            "glubatch list --json",
            "glubatch cancel 1 2_3",
        ] {
            Glubatch::try_parse_from(line.split(' ')).expect(line);
        }
        for line in [
            "glubatch",
            "glubatch submit",
            "glubatch submit -n 0 true",
            "glubatch submit -w host true",
            "glubatch submit -d before:1 true",
            "glubatch cancel",
            "glubatch cancel x",
        ] {
            Glubatch::try_parse_from(line.split(' ')).expect_err(line);
        }
    }
}
