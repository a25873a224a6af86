//! `glupart`: which nodes are for which batch jobs.

use super::job::{now, show_time};
use super::queue::{Request, Rules};
use super::rules::{Partition, Reservation};
use super::spool::Spool;
use super::submit::{When, read_when};
use super::tool::{is_broken_pipe, lines, read_user, spool, through};
use crate::cli::refuse;
use crate::nodes::{self, NodeSet};
use crate::run::args::read_time;
use crate::table::user_name;
use anyhow::Result;
use clap::{Parser, Subcommand};
use consistency::NodeId;
use serde::Serialize;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// This program's name in its messages.
const NAME: &str = "glupart";

/// Partitions and reservations: which nodes are for which batch jobs, and when.
///
/// A partition is a name for nodes, with rules for the jobs that are submitted to it. A reservation keeps all batch jobs
/// but those of its users off nodes for some time: the others are put back into the queue when it begins. Nor do glurun and
/// glumake start anything for others than its users and root there; what runs already goes on.
#[derive(Debug, Parser)]
#[command(name = NAME, version, disable_help_subcommand = true)]
struct Glupart {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows them.
    List {
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Makes a partition, or gives one other rules; for root.
    Set {
        name: String,
        #[arg(short = 'w', long, value_name = "NODES", help = nodes::HELP)]
        nodes: Option<NodeSet>,
        /// Who may use it; everybody if not given.
        #[arg(long, value_name = "USER", value_delimiter = ',', value_parser = read_user)]
        users: Vec<u32>,
        /// Who may use it, and reserve its nodes.
        #[arg(long, value_name = "USER", value_delimiter = ',', value_parser = read_user)]
        owners: Vec<u32>,
        /// Added to the priority of its jobs.
        #[arg(
            long,
            value_name = "NUMBER",
            default_value_t = 0,
            allow_negative_numbers = true
        )]
        priority: i32,
        /// How long its jobs may run: minutes, minutes:seconds or hours:minutes:seconds.
        #[arg(short, long, value_name = "TIME", value_parser = read_time)]
        time: Option<Duration>,
        /// How many jobs of one user run in it at a time.
        #[arg(long, value_name = "COUNT")]
        jobs_per_user: Option<u32>,
    },
    /// Removes a partition; its jobs wait until there is one of that name again.
    Remove { name: String },
    /// Reserves nodes; for root, and for the owners of a partition that has them.
    Reserve {
        name: String,
        #[arg(short = 'w', long, required = true, value_name = "NODES", help = nodes::HELP)]
        nodes: NodeSet,
        /// From when on: now+TIME, or a time like 2027-01-31T20:00:00Z; now if not given.
        #[arg(long, value_name = "WHEN", value_parser = read_when)]
        from: Option<When>,
        /// For how long: minutes, minutes:seconds or hours:minutes:seconds.
        #[arg(short, long, value_name = "TIME", value_parser = read_time)]
        time: Duration,
        /// For whom; for you if not given.
        #[arg(long, value_name = "USER", value_delimiter = ',', value_parser = read_user)]
        users: Vec<u32>,
    },
    /// Ends a reservation.
    Unreserve { name: String },
}

/// Runs `glupart` with the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    let tool = match Glupart::try_parse() {
        Ok(tool) => tool,
        Err(error) => return refuse(NAME, &error),
    };
    match tool.command.run() {
        Err(error) if !is_broken_pipe(&error) => {
            eprintln!("{NAME}: {error:#}");
            ExitCode::FAILURE
        }
        Ok(()) | Err(_) => ExitCode::SUCCESS,
    }
}

impl Command {
    fn run(self) -> Result<()> {
        let spool = spool();
        let request = match self {
            Self::List { json } => {
                let rules = spool.rules()?;
                let text = match json {
                    true => serde_json::to_string(&rules)?,
                    false => show(&rules),
                };
                return Ok(writeln!(io::stdout(), "{text}")?);
            }
            Self::Set {
                name,
                nodes,
                users,
                owners,
                priority,
                time,
                jobs_per_user,
            } => {
                let partition = Partition {
                    nodes,
                    users,
                    owners,
                    priority,
                    time_max: time.map(|time| time.as_secs()),
                    jobs_per_user,
                };
                Request::Partition(name, Some(partition))
            }
            Self::Remove { name } => Request::Partition(name, None),
            Self::Reserve {
                name,
                nodes,
                from,
                time,
                users,
            } => {
                let now = now();
                let own = nix::unistd::Uid::current().as_raw();
                let from = from.map_or(now, |from| from.seconds_after(now));
                let reservation = Reservation {
                    nodes,
                    from,
                    until: from + time.as_secs(),
                    users: if users.is_empty() { vec![own] } else { users },
                    owner: own,
                };
                Request::Reservation(name, Some(reservation))
            }
            Self::Unreserve { name } => Request::Reservation(name, None),
        };
        through(&spool.ask(&request, None)?)
    }
}

/// What a node is used for.
#[derive(Debug, Serialize)]
pub(crate) struct Uses {
    /// Partitions that have it.
    pub(crate) partitions: Vec<String>,
    /// Reservations that it is in now.
    pub(crate) reserved: Vec<String>,
}

/// Returns who tells what a node is used for.
///
/// # Errors
/// If the rules cannot be read.
pub(crate) fn uses(mount: &Path) -> Result<impl Fn(NodeId) -> Uses> {
    let (rules, now) = (Spool::of(mount).rules()?, now());
    Ok(move |node| {
        let partitions = rules.partitions.iter().filter(|(_, of)| of.has(node));
        let reservations = rules.reservations.iter();
        let reserved = reservations.filter(|(_, of)| of.holds(node, now));
        Uses {
            partitions: partitions.map(|(name, _)| name.clone()).collect(),
            reserved: reserved.map(|(name, _)| name.clone()).collect(),
        }
    })
}

fn show(rules: &Rules) -> String {
    let users = |users: &[u32], none: &str| match users {
        [] => none.to_owned(),
        some => some
            .iter()
            .map(|&uid| user_name(uid))
            .collect::<Vec<_>>()
            .join(","),
    };
    let partitions = rules.partitions.iter().map(|(name, of)| {
        let nodes = of.nodes.as_ref();
        [
            name.clone(),
            nodes.map_or_else(|| "all".into(), ToString::to_string),
            users(&of.users, "all"),
            users(&of.owners, "root"),
            of.priority.to_string(),
            of.time_max
                .map_or_else(|| "-".into(), |time| format!("{time} s")),
        ]
    });
    let header = ["PARTITION", "NODES", "USERS", "OWNERS", "PRIORITY", "TIME"];
    let mut text = lines(header, partitions);
    let reservations = rules.reservations.iter().map(|(name, of)| {
        [
            name.clone(),
            of.nodes.to_string(),
            users(&of.users, "nobody"),
            user_name(of.owner),
            show_time(of.from),
            show_time(of.until),
        ]
    });
    if !rules.reservations.is_empty() {
        let header = ["RESERVATION", "NODES", "USERS", "OWNER", "FROM", "UNTIL"];
        text.push('\n');
        text.push_str(&lines(header, reservations));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_lines() {
        Glupart::command().debug_assert();
        for line in [
            "glupart set fast -w 1-2 --users root --time 60",
            "glupart reserve demo -w 2 --from now+10 -t 30 --users 1000",
            "glupart list --json",
        ] {
            Glupart::try_parse_from(line.split(' ')).expect(line);
        }
        for line in [
            "glupart",
            "glupart reserve demo -w 2",
            "glupart set x --users nobody-at-all",
        ] {
            Glupart::try_parse_from(line.split(' ')).expect_err(line);
        }
    }
}
