//! Automatic levelling: which job of a node is to go on on another one, by MOSIX's rules. Pure: the caller brings the time
//! and what is known, and moves what it is told to (`job::travel::level`).
//!
//! Words: each node levels the jobs that it *hosts*, one move at a time. The *demand* of a job is how many of its threads
//! run or want to on the average; that of a node is how many of all. A job's *slowness* is how long it takes for a second's
//! work of the reference's core: 1 on such a core of its own. A node that has less than one part in [`SPARE_PART`] of its
//! memory left is *short* of it.
//!
//! What becomes of a job in a round, the first row that fits it; the rows of those that go are in order of precedence among
//! all jobs as well, for a round moves one:
//!
//! | job | what becomes of it |
//! | --- | --- |
//! | locked; not levelled; `cantmove`; its home does not say | stays: `locked`, `not_listed`, `tied`, `unknown` |
//! | levelled, but the nodes are not known | stays: `not_known` |
//! | the node levels nothing (`loadlevel` 0) | stays: `off` |
//! | a move of it has failed lately | stays: `failed` |
//! | the node drains; a guest (its owner is elsewhere), and the node's owner works at it | goes home, or to the best node |
//! | has much memory, and the node is short of it | goes where most is left |
//! | young; came lately | stays: `young`, `came` |
//! | wants no processor | stays: `idle` |
//! | would be faster elsewhere (LV1) | goes there |
//! | else | stays: `well_off`, `no_gain`, `no_node` |
//!
//! Who may go but for others that go first stays for now: `next`; so does all when the node has sent as many as it may in a
//! minute: `enough`.
//!
//! - LV1 **A move gains.** For speed a job moves only where its slowness is less by one part in ten ([`Rules::gain`]), where
//!   it saves, living on for as long as it has lived here, more than the move takes, and only if it holds up those there
//!   clearly less than it has held up those here ([`Rules::hysteresis`]). So each move makes less what is held up in all
//!   (the integral of the slowness of each node up to its demand), and moves end when demands do not change. What passes
//!   within [`Rules::lasting`] is no such change: of what is to be done here beside the jobs the least in that time counts,
//!   of other nodes' demands the most.
//! - LV2 **Not at once, not again at once.** For speed no job moves that is younger than [`Rules::age_min`], or has come
//!   within [`Rules::residence`].
//! - LV3 **So many and no more.** A node sends at most [`Rules::moves_per_minute`].
//! - LV4 **Switches are kept.** No job moves that is locked or not levelled; none goes to a node that is down, drains, takes
//!   no guests, is in use, or levels nothing.
//! - LV5 **Memory first.** A job that is much of a node's memory leaves before the node swaps; no job goes to a node that
//!   it would leave with less than twice what makes a node short.

pub(crate) mod demand;
mod lasting;
pub(crate) mod list;
mod policy;
#[cfg(test)]
mod worlds;

pub(crate) use policy::Leveller;

use consistency::wire::node::NodeLoad;
use consistency::{Duration, Instant, NodeId};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A node is short of memory if less than one part in this many is left.
pub(crate) const SPARE_PART: u64 = 10;
/// A job that has less than one part in this many of a node's memory is not worth a move for memory's sake.
pub(crate) const MUCH_PART: u64 = 64;
/// A job that wants less of a processor gains nothing by another one.
pub(crate) const DEMAND_MIN: f64 = 0.25;
/// After so long a node's own measurement shows what has left it.
pub(crate) const SEEN_AFTER: Duration = Duration::from_millis(1_500);
/// How long a job that could not be moved is left alone.
pub(crate) const FAILED_FOR: Duration = Duration::from_millis(30_000);
/// How long a job that has only been on its way already, or could not be asked about, is left alone.
pub(crate) const BUSY_FOR: Duration = Duration::from_millis(5_000);

/// How eager levelling is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// LV1: part of its slowness that a job must lose.
    pub(crate) gain: f64,
    /// LV1: part by which it must hold up others less.
    pub(crate) hysteresis: f64,
    /// LV1: what any move takes.
    pub(crate) cost: Duration,
    /// LV1: memory that moves in a millisecond.
    pub(crate) kib_per_ms: u64,
    /// LV1: how long demands are looked back at.
    pub(crate) lasting: Duration,
    /// LV2
    pub(crate) age_min: Duration,
    /// LV2
    pub(crate) residence: Duration,
    /// LV3
    pub(crate) moves_per_minute: usize,
    /// After so long a report of a node shows what has been sent there.
    pub(crate) felt_after: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            gain: 0.1,
            hysteresis: 0.15,
            cost: Duration::from_millis(300),
            kib_per_ms: 100,
            lasting: Duration::from_millis(3_000),
            age_min: Duration::from_millis(2_000),
            residence: Duration::from_millis(15_000),
            moves_per_minute: 20,
            felt_after: crate::job::place::FELT_AFTER,
        }
    }
}

/// What is known in a round.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// The node that levels.
    pub(crate) here: NodeId,
    /// All nodes, this one too.
    pub(crate) nodes: Vec<Node>,
    /// The jobs here.
    pub(crate) jobs: Vec<Job>,
}

/// A node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Node {
    pub(crate) node: NodeId,
    pub(crate) load: NodeLoad,
    pub(crate) state: State,
}

/// What may keep a node from getting jobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) down: bool,
    pub(crate) drains: bool,
    /// `block`
    pub(crate) blocks: bool,
    /// `in_use`
    pub(crate) in_use: bool,
    /// `loadlevel` is 0.
    pub(crate) off: bool,
}

impl State {
    /// LV4
    const fn takes(self) -> bool {
        !(self.down || self.drains || self.blocks || self.in_use || self.off)
    }
}

/// A job that runs here.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) pid: i32,
    pub(crate) home: NodeId,
    /// Its owner is on another node, or it has come from one.
    pub(crate) guest: bool,
    /// When it was started here, or came.
    pub(crate) since: Instant,
    /// It has come from another node.
    pub(crate) came: bool,
    pub(crate) demand: f64,
    pub(crate) memory_kib: u64,
    pub(crate) standing: Standing,
}

/// Whether a job may be levelled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Levelled,
    Locked,
    NotListed,
    /// Words of `cantmove`.
    Tied(String),
    /// Its home does not say.
    Unknown,
}

/// What becomes of a job.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Answer {
    Goes(Go),
    Stays(Why),
}

/// A move.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Go {
    pub(crate) pid: i32,
    pub(crate) to: NodeId,
    pub(crate) because: Because,
}

/// Why a job goes; in order of precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Because {
    /// Its node is being emptied.
    Drains,
    /// The owner of its node works there.
    InUse,
    /// Its node is short of memory.
    Memory,
    /// Its node is crowded.
    Crowded,
    /// It runs faster there.
    Faster,
}

/// Why a job stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    Off,
    Locked,
    NotListed,
    Tied(String),
    Unknown,
    NotKnown,
    Failed(String),
    Young,
    Came,
    Idle,
    WellOff,
    NoGain,
    NoNode,
    Next,
    Enough,
}

/// Why a job was not moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NotMoved {
    /// That node does not take it.
    Refused,
    /// It is on its way already.
    Busy,
    /// It has ended.
    Ended,
    Failed(String),
    /// It could not even be tried.
    Tied,
}

impl Because {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Drains => "drain",
            Self::InUse => "in_use",
            Self::Memory => "memory",
            Self::Crowded => "crowded",
            Self::Faster => "faster",
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::Drains => "its node is being emptied",
            Self::InUse => "the owner of its node works there",
            Self::Memory => "its node is short of memory",
            Self::Crowded => "its node is crowded, and it runs faster there",
            Self::Faster => "that node is faster",
        }
    }
}

impl Why {
    const fn word(&self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Locked => "locked",
            Self::NotListed => "not_listed",
            Self::Tied(_) => "tied",
            Self::Unknown => "unknown",
            Self::NotKnown => "not_known",
            Self::Failed(_) => "failed",
            Self::Young => "young",
            Self::Came => "came",
            Self::Idle => "idle",
            Self::WellOff => "well_off",
            Self::NoGain => "no_gain",
            Self::NoNode => "no_node",
            Self::Next => "next",
            Self::Enough => "enough",
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("its node levels nothing: cluster/node<N>/loadlevel is 0"),
            Self::Locked => f.write_str("it is locked: loadlevel -p PID on"),
            Self::NotListed => f.write_str(
                "it is not levelled: its program is not on cluster/loadlevellist, and nobody has asked for it \
                (loadlevel -p PID on)",
            ),
            Self::Tied(ties) => write!(f, "it cannot move: {ties}"),
            Self::Unknown => f.write_str("its home does not say whether it may move"),
            Self::NotKnown => f.write_str("how loaded the nodes are is not known just now"),
            Self::Failed(why) => write!(f, "a move of it has failed: {why}"),
            Self::Young => f.write_str("it has just been started"),
            Self::Came => f.write_str("it has just come"),
            Self::Idle => f.write_str("it wants too little of a processor"),
            Self::WellOff => f.write_str("it has all it wants where it is"),
            Self::NoGain => f.write_str("it would gain too little on any other node"),
            Self::NoNode => f.write_str("no other node takes it or has the memory for it"),
            Self::Next => f.write_str("another job goes first"),
            Self::Enough => f.write_str("its node has sent as many jobs as it may in a minute"),
        }
    }
}

/// One line: `stays well_off: ...`, or `goes 3 crowded: ...`.
impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Goes(go) => {
                let (word, text) = (go.because.word(), go.because.text());
                write!(f, "goes {} {word}: {text}", go.to)
            }
            Self::Stays(why) => write!(f, "stays {}: {why}", why.word()),
        }
    }
}
