//! What a batch job is, as it is kept in a file: JSON, so that a later version reads what an earlier one wrote.

use crate::nodes::NodeSet;
use consistency::NodeId;
use gproc::job::private::Private;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

/// Seconds since 1970, as the clock of the scheduler's node has them.
pub(super) type Seconds = u64;

/// Returns the time.
pub(super) fn now() -> Seconds {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// Shows a time.
pub(super) fn show_time(at: Seconds) -> String {
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(at);
    humantime::format_rfc3339_seconds(at).to_string()
}

/// Most processes of one job.
pub(super) const COUNT_MAX: u32 = 4096;
/// Highest index of an array, and most jobs of one.
pub(super) const ARRAY_MAX: u32 = 10_000;

/// Names a job: `12`, or `12_3` for index 3 of array 12.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(super) struct JobId {
    pub(super) number: u64,
    pub(super) index: Option<u32>,
}

/// A text that names no job.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no job: write 12, or 12_3 for one of an array")]
pub(super) struct NoJob(String);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            Some(index) => write!(f, "{}_{index}", self.number),
            None => write!(f, "{}", self.number),
        }
    }
}

impl FromStr for JobId {
    type Err = NoJob;

    fn from_str(text: &str) -> Result<Self, NoJob> {
        let wrong = || NoJob(text.into());
        let plain = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        let (number, index) = match text.split_once('_') {
            Some((number, index)) => (number, Some(index)),
            None => (text, None),
        };
        if !plain(number) || !index.is_none_or(plain) {
            return Err(wrong());
        }
        let index = index.map(str::parse).transpose();
        Ok(Self {
            number: number.parse().map_err(|_| wrong())?,
            index: index.map_err(|_| wrong())?,
        })
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for JobId {
    type Error = NoJob;

    fn try_from(text: String) -> Result<Self, NoJob> {
        text.parse()
    }
}

impl JobId {
    /// Returns whether `self` as a user writes it means `job`: an array's number means all of it.
    pub(super) fn means(self, job: Self) -> bool {
        self.number == job.number && (self.index.is_none() || self.index == job.index)
    }
}

/// What a user asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Spec {
    pub(super) name: String,
    /// Program and arguments; at least the program.
    pub(super) command: Vec<String>,
    /// Working directory; absolute.
    pub(super) directory: PathBuf,
    /// Bits taken from the mode of new files, 0 to 0o777.
    pub(super) umask: u32,
    /// Where output goes, from the working directory on: `%j` is the job, `%A` its number, `%a` its index, `%x` its
    /// name.
    pub(super) output: String,
    /// Where errors go; the output if not given.
    pub(super) error: Option<String>,
    /// Processes, 1 to [`COUNT_MAX`].
    pub(super) count: u32,
    /// Processors of each process, at least 1.
    pub(super) cpus: u32,
    /// Memory in MiB that a node must have free for each process when it starts, and that each may use; 0: that is not said.
    pub(super) mem_mib: u64,
    /// Processors of which each process may use the time, if that is said.
    #[serde(default)]
    pub(super) cpus_max: Option<u32>,
    /// Its processes run together, in turns with other gangs (J10).
    #[serde(default)]
    pub(super) gang: bool,
    /// What each of its processes has to itself.
    #[serde(default)]
    pub(super) private: Option<Private>,
    pub(super) nodes: Option<NodeSet>,
    pub(super) exclude: Option<NodeSet>,
    pub(super) partition: Option<String>,
    /// How long it may run, in seconds.
    pub(super) time: Option<u64>,
    /// Not before.
    pub(super) begin: Option<Seconds>,
    pub(super) priority: i32,
    pub(super) after: Vec<Dependency>,
    /// Indices of an array, ascending; empty: no array.
    pub(super) array: Vec<u32>,
    /// So many of an array at a time.
    pub(super) array_limit: Option<u32>,
    /// Runs on nodes that nobody else uses, and leaves when somebody does.
    pub(super) when_idle: bool,
    /// It may be started again if a node was lost.
    pub(super) again: bool,
    pub(super) held: bool,
}

/// What another job must have come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Dependency {
    pub(super) kind: Kind,
    /// All of an array.
    pub(super) job: u64,
}

/// To what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    /// It has been started.
    After,
    /// It has ended, with success.
    AfterOk,
    /// It has ended, without.
    AfterNotOk,
    /// It has ended.
    AfterAny,
}

impl FromStr for Dependency {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}`: write after:12, afterok:12, afternotok:12 or afterany:12");
        let (kind, job) = text.split_once(':').ok_or_else(wrong)?;
        let kind = match kind {
            "after" => Kind::After,
            "afterok" => Kind::AfterOk,
            "afternotok" => Kind::AfterNotOk,
            "afterany" => Kind::AfterAny,
            _ => return Err(wrong()),
        };
        let job: JobId = job.parse().map_err(|_| wrong())?;
        match job.index {
            None => Ok(Self {
                kind,
                job: job.number,
            }),
            Some(_) => Err(wrong()),
        }
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl User {
    /// Returns whether this user may change what `owner` has.
    pub(super) const fn may_change(self, owner: u32) -> bool {
        self.uid == 0 || self.uid == owner
    }
}

/// A job of the queue, or one that has left it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Job {
    pub(super) id: JobId,
    pub(super) user: User,
    pub(super) spec: Spec,
    pub(super) submitted: Seconds,
    pub(super) state: State,
    /// How often it was started.
    pub(super) starts: u32,
    /// Why it waits, or was ended; empty: nothing to say.
    pub(super) reason: String,
}

/// Where it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "is")]
pub(super) enum State {
    /// For its turn, and at least until then.
    Waiting {
        /// What it was put back for must be over first.
        not_before: Seconds,
    },
    /// Until somebody releases it.
    Held,
    /// Its processes run, or are being started or ended.
    Running {
        since: Seconds,
        /// Each node as often as it has processes of the job.
        on: Vec<NodeId>,
        /// It has been told to end; and what becomes of it then.
        ending: Option<Ending>,
    },
    /// Over.
    Ended {
        /// When it was started last, if it was.
        since: Option<Seconds>,
        at: Seconds,
        outcome: Outcome,
    },
}

/// What becomes of a job whose processes are being ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Ending {
    Cancelled,
    TimedOut,
    /// It waits again.
    PutBack,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Outcome {
    /// With this exit status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
    /// Its time was over.
    TimedOut,
    Cancelled,
    /// A node was lost, or could not run it.
    Lost,
    /// What it waited for can never be.
    Never,
}

impl State {
    /// Returns what it is called.
    pub(super) fn word(&self) -> String {
        match self {
            Self::Waiting { .. } => "waiting".into(),
            Self::Held => "held".into(),
            Self::Running { ending: None, .. } => "running".into(),
            Self::Running { .. } => "ending".into(),
            Self::Ended { outcome, .. } => outcome.to_string(),
        }
    }

    /// Returns whether it is over.
    pub(super) const fn has_ended(&self) -> bool {
        matches!(self, Self::Ended { .. })
    }
}

impl Outcome {
    /// Returns whether the job did what it should.
    pub(super) fn is_success(self) -> bool {
        self == Self::Exited(0)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(0) => f.write_str("done"),
            Self::Exited(status) => write!(f, "exit {status}"),
            Self::Killed(signal) => write!(f, "signal {signal}"),
            Self::TimedOut => f.write_str("timeout"),
            Self::Cancelled => f.write_str("cancelled"),
            Self::Lost => f.write_str("lost"),
            Self::Never => f.write_str("never"),
        }
    }
}

impl Job {
    /// Returns a path of the specification with what stands for the job in it.
    pub(super) fn expand(&self, pattern: &str) -> PathBuf {
        let mut path = String::new();
        let mut rest = pattern.chars();
        while let Some(next) = rest.next() {
            match (next, next == '%') {
                (plain, false) => path.push(plain),
                (_, true) => match rest.next() {
                    Some('j') => path.push_str(&self.id.to_string()),
                    Some('A') => path.push_str(&self.id.number.to_string()),
                    Some('a') => path.push_str(&self.id.index.unwrap_or(0).to_string()),
                    Some('x') => path.push_str(&self.spec.name),
                    Some('%') | None => path.push('%'),
                    Some(other) => path.extend(['%', other]),
                },
            }
        }
        self.spec.directory.join(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_jobs() {
        for text in ["12", "12_3", "0_0"] {
            let id: JobId = text.parse().expect("names a job");
            assert_eq!(id.to_string(), text);
        }
        for text in [
            "",
            "x",
            "_",
            "1_",
            "_1",
            "1_2_3",
            "-1",
            "+1",
            "99999999999999999999",
        ] {
            text.parse::<JobId>().expect_err(text);
        }
        let [all, one, other] =
            ["12", "12_3", "12_4"].map(|text| text.parse::<JobId>().expect("is one"));
        assert!(all.means(one) && one.means(one) && !one.means(other) && !one.means(all));
    }

    #[test]
    fn dependencies() {
        let ok: Dependency = "afterok:7".parse().expect("is one");
        assert_eq!((ok.kind, ok.job), (Kind::AfterOk, 7));
        for text in [
            "",
            "7",
            "afterok",
            "afterok:",
            "afterok:x",
            "before:7",
            "after:7_1",
        ] {
            text.parse::<Dependency>().expect_err(text);
        }
    }
}
