//! What can be shown of a process.

use crate::table::{
    Moved, Process, Stat, command_line, constant, effective_user, number, printable, user_name,
};
use clap::ValueEnum;
use nix::unistd::SysconfVar;
use serde::Serialize;

/// What `-o` understands.
pub(super) const HELP: &str = "Columns: pid, ppid, pgid, sid, uid, user, stat, node, nmigs, took, pause, sent, lock, ni, nlwp, vsz, rss, time, comm, args";

/// Shown by itself.
pub(super) const SHORT: &[Column] = &[Column::Pid, Column::Node, Column::Time, Column::Cmd];
/// Shown with `-f`.
pub(super) const FULL: &[Column] = &[
    Column::Owner,
    Column::Pid,
    Column::Ppid,
    Column::Node,
    Column::Nmigs,
    Column::Lock,
    Column::Time,
    Column::Line,
];

/// One thing about a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Column {
    Pid,
    Ppid,
    Pgid,
    Sid,
    Uid,
    User,
    #[value(alias = "s", alias = "state")]
    Stat,
    Node,
    Nmigs,
    Took,
    Pause,
    Sent,
    Lock,
    #[value(alias = "nice")]
    Ni,
    Nlwp,
    Vsz,
    Rss,
    Time,
    Comm,
    #[value(alias = "command", alias = "cmd")]
    Args,
    /// `user` and `args` under the headers that `ps -f` has.
    #[value(skip)]
    Owner,
    #[value(skip)]
    Line,
    #[value(skip)]
    Cmd,
}

/// A process at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Row {
    pub(super) pid: u32,
    pub(super) ppid: i32,
    pub(super) pgid: i32,
    pub(super) sid: i32,
    pub(super) uid: u32,
    pub(super) user: String,
    pub(super) stat: char,
    pub(super) node: u16,
    pub(super) nmigs: u64,
    /// Its newest move.
    pub(super) moved: Option<Moved>,
    pub(super) lock: bool,
    pub(super) ni: i32,
    pub(super) nlwp: u32,
    pub(super) vsz_kib: u64,
    pub(super) rss_kib: u64,
    pub(super) cpu_seconds: u64,
    pub(super) comm: String,
    pub(super) args: String,
}

impl Row {
    /// Reads a process; `None` if it ends meanwhile.
    pub(super) fn read(process: &Process) -> Option<Self> {
        let stat = Stat::parse(&process.read("stat").ok()?)?;
        let uid = effective_user(&process.read("status").ok()?)?;
        let line = process.read("cmdline").ok()?;
        let comm = printable(&stat.name);
        let args = command_line(&line, &comm);
        let kib = |pages: u64| pages.saturating_mul(constant(SysconfVar::PAGE_SIZE, 4096)) / 1024;
        let lock = process.read("lock").unwrap_or_default();
        let nmigs = number(&process.read("nmigs").unwrap_or_default()).unwrap_or(0);
        // Of one that has not moved there is nothing to be asked.
        let moved = (nmigs > 0).then(|| process.read("moved").unwrap_or_default());
        Some(Self {
            pid: process.pid().number(),
            ppid: stat.parent,
            pgid: stat.group,
            sid: stat.session,
            uid,
            user: user_name(uid),
            stat: stat.state,
            node: process.node().ok()?.0,
            nmigs,
            moved: moved.and_then(|moved| Moved::read(&moved)),
            lock: number::<u8>(&lock) == Some(1),
            ni: stat.nice,
            nlwp: stat.threads,
            vsz_kib: stat.virtual_bytes / 1024,
            rss_kib: kib(stat.resident_pages),
            cpu_seconds: stat.ticks / constant(SysconfVar::CLK_TCK, 100),
            comm,
            args,
        })
    }
}

impl Column {
    pub(super) const fn header(self) -> &'static str {
        match self {
            Self::Pid => "PID",
            Self::Ppid => "PPID",
            Self::Pgid => "PGID",
            Self::Sid => "SID",
            Self::Uid | Self::Owner => "UID",
            Self::User => "USER",
            Self::Stat => "STAT",
            Self::Node => "NODE",
            Self::Nmigs => "NMIGS",
            Self::Took => "TOOK",
            Self::Pause => "PAUSE",
            Self::Sent => "SENT",
            Self::Lock => "LOCK",
            Self::Ni => "NI",
            Self::Nlwp => "NLWP",
            Self::Vsz => "VSZ",
            Self::Rss => "RSS",
            Self::Time => "TIME",
            Self::Comm | Self::Args => "COMMAND",
            Self::Line | Self::Cmd => "CMD",
        }
    }

    pub(super) const fn is_number(self) -> bool {
        !matches!(
            self,
            Self::User
                | Self::Owner
                | Self::Stat
                | Self::Lock
                | Self::Comm
                | Self::Args
                | Self::Line
                | Self::Cmd
        )
    }

    pub(super) fn show(self, row: &Row) -> String {
        match self {
            Self::Pid => row.pid.to_string(),
            Self::Ppid => row.ppid.to_string(),
            Self::Pgid => row.pgid.to_string(),
            Self::Sid => row.sid.to_string(),
            Self::Uid => row.uid.to_string(),
            Self::User | Self::Owner => row.user.clone(),
            Self::Stat => row.stat.to_string(),
            Self::Node => row.node.to_string(),
            Self::Nmigs => row.nmigs.to_string(),
            Self::Took => of_move(row, |moved| moved.took_ms),
            Self::Pause => of_move(row, |moved| moved.pause_ms),
            Self::Sent => of_move(row, |moved| moved.bytes.div_ceil(1024)),
            Self::Lock => if row.lock { "L" } else { "-" }.into(),
            Self::Ni => row.ni.to_string(),
            Self::Nlwp => row.nlwp.to_string(),
            Self::Vsz => row.vsz_kib.to_string(),
            Self::Rss => row.rss_kib.to_string(),
            Self::Time => {
                let (minutes, seconds) = (row.cpu_seconds / 60, row.cpu_seconds % 60);
                format!("{:02}:{:02}:{seconds:02}", minutes / 60, minutes % 60)
            }
            Self::Comm | Self::Cmd => row.comm.clone(),
            Self::Args | Self::Line => row.args.clone(),
        }
    }
}

/// Of the newest move: milliseconds, or KiB.
fn of_move(row: &Row, what: impl Fn(&Moved) -> u64) -> String {
    let moved = row.moved.as_ref();
    moved.map_or_else(|| "-".to_owned(), |moved| what(moved).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_names_all_columns() {
        let named = HELP.trim_start_matches("Columns: ").split(", ");
        let columns = Column::value_variants().iter();
        let columns = columns.filter_map(Column::to_possible_value);
        let columns: Vec<String> = columns.map(|of| of.get_name().into()).collect();
        assert_eq!(named.collect::<Vec<_>>(), columns);
    }
}
