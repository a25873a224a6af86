//! The places where a node may die, and the rules that may be missing: what the product asks a world.

use super::shared::Shared;
use consistency::NodeId;
use std::cell::RefCell;
use std::sync::Arc;

/// A rule that a world takes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// R1 of the log: an entry is acknowledged without a sync.
    NoSync,
    /// The same of a vote: the voter may vote twice.
    NoVote,
    /// R4 of the log: it goes on after a failed write.
    GoOn,
    /// M3, M7: all reigns have the same number.
    OneReign,
    /// M4: a repeated change is made again.
    Twice,
    /// L6: a new leader starts at once.
    NoGrace,
    /// S1: a break is acknowledged and nothing forgotten.
    NoBreak,
    /// G3: what was made in a directory is not flushed for a break of it, nor for fsync.
    KeepMade,
    /// G4: what a node has removed by itself stays where it was.
    LoseRemoved,
    /// S3: fsync does nothing.
    NoFlush,
    /// G3: the leader's record of a made file replaces what was written into it meanwhile.
    LoseContent,
    /// S5: nothing is dropped when the session is lost.
    NoLapse,
    /// D1: a chunk counts as put that was not synced.
    PutUnsynced,
    /// D1: a copy is listed that nobody has made.
    ListAtOnce,
    /// D2: a bad copy is dropped although nobody has looked at another one.
    DropUnverified,
    /// D3: what a live session may still enter counts as an orphan.
    IgnoreSessions,
    /// D6: the bytes of a chunk are not compared with their checksums.
    BelieveDisks,
    /// D7: a chunk that one node does not take is not offered to another one.
    NoOther,
    /// L3: the clock of a node runs slower than leases allow.
    SlowClock,
}

impl Mutant {
    /// All of them, each with a seed near which a world notices it.
    pub(super) const ALL: [(Self, u64); 19] = [
        (Self::NoSync, 0),
        (Self::NoVote, 40),
        (Self::GoOn, 40),
        (Self::OneReign, 8),
        (Self::Twice, 8),
        (Self::NoGrace, 0),
        (Self::NoBreak, 0),
        (Self::KeepMade, 8),
        (Self::LoseRemoved, 32),
        (Self::NoFlush, 0),
        (Self::LoseContent, 8),
        (Self::NoLapse, 12),
        (Self::PutUnsynced, 0),
        (Self::ListAtOnce, 0),
        (Self::DropUnverified, 448),
        (Self::IgnoreSessions, 0),
        (Self::BelieveDisks, 20),
        (Self::NoOther, 12),
        (Self::SlowClock, 0),
    ];

    pub(super) fn named(name: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter().map(|(mutant, _)| mutant);
        all.find(|mutant| format!("{mutant:?}") == name)
    }
}

/// Who runs on this thread.
pub(super) struct Here {
    pub(super) shared: Arc<Shared>,
    pub(super) node: NodeId,
    pub(super) mutant: Option<Mutant>,
}

thread_local! {
    static HERE: RefCell<Option<Here>> = const { RefCell::new(None) };
}

/// Says who runs on this thread from now on.
pub(super) fn enter(here: Option<Here>) {
    HERE.replace(here);
}

/// Tells the world that a node is at this place.
pub(crate) fn reached(point: &'static str) {
    HERE.with_borrow(|here| {
        if let Some(here) = here {
            here.shared.reached(here.node, point);
        }
    });
}

/// Returns whether a rule is missing here.
pub(crate) fn is_missing(mutant: Mutant) -> bool {
    HERE.with_borrow(|here| {
        here.as_ref()
            .is_some_and(|here| here.mutant == Some(mutant))
    })
}
