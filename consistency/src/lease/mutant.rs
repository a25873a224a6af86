//! Deliberate faults: each takes one rule away, and the simulation must notice.

/// A rule to break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// L1: an operation does not wait for the acks.
    RunWithoutAck,
    /// L1: shared grants are given while a change is under way.
    GrantDuringChange,
    /// L2: a reply installs its grant whatever crossed it.
    IgnoreOrder,
    /// L2: a release leaves no trace for the replies still on their way.
    ForgetWithoutTrace,
    /// L3: the client serves on after the term.
    IgnoreExpiry,
    /// L3: the client counts the term from when it heard, which is the driver's part.
    #[cfg(test)]
    CountFromReply,
    /// L4: any ack ends the break of the present grant.
    AckAnyName,
    /// L4: a break keeps the name of the grant.
    BreakKeepsName,
    /// L5: a claim overtakes earlier ones that still wait.
    Overtake,
    /// L6: a new leader starts at once.
    NoGrace,
    /// L6: a flush runs before its session has told its grant.
    FlushUntold,
    /// L6: grants of an old reign count.
    IgnoreReign,
    /// L7: facts are granted although a change crossed them.
    IgnoreCrossing,
    /// L8: the end of a session ends its operations in flight.
    EndDropsInFlight,
    /// L9: the client serves an inode that it is changing.
    ServeOwnChange,
    /// L10: the leader's own session uses what no other voter has noted.
    UseUntold,
    /// L10: a voter takes notes of a reign after it was asked to close it.
    NoteClosed,
    /// L10: notes count for more than what another session tells.
    TrustNotes,
    /// L10: a new leader goes by the first notes it gets.
    #[cfg(test)]
    FirstNotes,
    /// L11: what an ended session held stays in the way of others.
    EndedCount,
    /// F1: reads of a session that owes an ack wait like any other.
    NoBypass,
    /// F1: such reads may be cached.
    BypassGrants,
}

/// The fault of one state machine: none in a real build, where every question is answered at compile time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mutation(#[cfg(test)] pub(crate) Option<Mutant>);

impl Mutation {
    /// Returns whether this fault is on.
    #[cfg(test)]
    pub(crate) fn is(self, mutant: Mutant) -> bool {
        self.0 == Some(mutant)
    }

    /// Returns whether this fault is on.
    #[cfg(not(test))]
    #[allow(clippy::unused_self, reason = "same signature as in tests")]
    pub(crate) const fn is(self, _: Mutant) -> bool {
        false
    }
}
