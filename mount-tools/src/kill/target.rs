//! What a signal is for.

use crate::table::{Process, Stat};
use gproc::pids::ClusterPid;
use regex::bytes::Regex;
use std::fmt;
use std::str::FromStr;

/// What a word names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Process(ClusterPid),
    Group(ClusterPid),
    /// One process of a job.
    Member {
        npid: ClusterPid,
        vnn: u32,
    },
}

/// A word that names nothing.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no process of the cluster: write PID, -PID or NPID.VNN as in /cluster/proc")]
pub(super) struct NoTarget(String);

impl FromStr for Target {
    type Err = NoTarget;

    fn from_str(text: &str) -> Result<Self, NoTarget> {
        let pid = |text: &str| ClusterPid::parse(text.as_bytes());
        let target = match (text.strip_prefix('-'), text.split_once('.')) {
            (Some(group), _) => pid(group).map(Self::Group),
            (None, Some((job, vnn))) => match (pid(job), vnn.parse()) {
                (Some(npid), Ok(vnn)) => Some(Self::Member { npid, vnn }),
                _ => None,
            },
            (None, None) => pid(text).map(Self::Process),
        };
        target.ok_or_else(|| NoTarget(text.into()))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(pid) => write!(f, "{pid}"),
            Self::Group(pid) => write!(f, "-{pid}"),
            Self::Member { npid, vnn } => write!(f, "{npid}.{vnn}"),
        }
    }
}

/// Returns whether a process is the program of a job; what that program has started is not.
pub(super) fn is_member(process: &Process, npid: ClusterPid, vnn: u32) -> bool {
    let stat = process.read("stat").ok();
    let stat = stat.as_deref().and_then(Stat::parse);
    // Jobs start as leaders of sessions.
    if stat.is_none_or(|stat| stat.session.unsigned_abs() != process.pid().number()) {
        return false;
    }
    let environ = process.read("environ").unwrap_or_default();
    let has = |variable: String| {
        let mut variables = environ.split(|&byte| byte == 0);
        variables.any(|of| of == variable.as_bytes())
    };
    has(format!("GLU_NPID={}", npid.kernel())) && has(format!("GLU_VNN={vnn}"))
}

/// Returns whether a process is called so.
pub(super) fn is_named(process: &Process, pattern: &Regex, full: bool, exact: bool) -> bool {
    let text = if full {
        process.read("cmdline").map(|mut line| {
            let end = line
                .iter()
                .rposition(|&byte| byte != 0)
                .map_or(0, |at| at + 1);
            line.truncate(end);
            line.iter_mut()
                .filter(|byte| **byte == 0)
                .for_each(|byte| *byte = b' ');
            line
        })
    } else {
        let name = process.read("stat").ok();
        let name = name.as_deref().and_then(Stat::parse).map(|stat| stat.name);
        name.ok_or(nix::errno::Errno::ESRCH)
    };
    let Ok(text) = text else {
        return false;
    };
    let found = pattern.find(&text);
    found.is_some_and(|found| !exact || found.len() == text.len())
}
