//! Who runs a job that moves, decided without a clock or a socket: what its home does at each event ([`Home`]), and what
//! a host may do with its copy ([`Copy`]). The tables are in docs/protocol.md.
//!
//! - MV1 **At most one copy runs.** A copy runs only by home's word, home gives it to one copy at a time, and once it has
//!   let the new copy run the old one never runs again, whatever becomes of the new one.
//! - MV2 **Never lost on the way.** Until home has let the new copy run, every failure of the move lets the old one go on.
//! - MV3 **One move at a time.** What is asked meanwhile is refused.
//! - MV4 **Nothing outlives its home.** A host that has lost home ends its copy (as J2 has it).

use consistency::NodeId;

/// Why a process was not moved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::job) enum NotMoved {
    /// It is on its way already.
    #[error("it is moving already")]
    Busy,
    /// It has ended meanwhile.
    #[error("it has ended")]
    Ended,
    /// Its copy could not be made or started; it goes on where it was.
    #[error("{0}")]
    Failed(String),
}

/// What happens at home.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Somebody wants it to move.
    Asked(NodeId),
    /// The source has frozen it, and its images are all here.
    Dumped,
    /// The source could not make images, and has let it go on.
    NotDumped(String),
    /// The source cannot be reached any more, or the program has ended there.
    SourceGone,
    /// The target has made the copy, which waits.
    Restored,
    /// The target could not make the copy, or cannot be reached, or the copy has ended there.
    TargetGone(String),
    /// The copy runs.
    Running,
}

/// What home is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Has the source freeze it and make images.
    Freeze,
    /// Sends the images to a target.
    Offer(NodeId),
    /// Lets the copy run.
    Run,
    /// Has the source end its copy, which is frozen.
    Drop,
    /// Has the source go on.
    Thaw,
    /// Has the target end its copy, which never ran.
    Abort,
    /// Tells who asked.
    Answer(Result<(), NotMoved>),
    /// The job is over: nobody has a copy that may run.
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    /// It runs.
    Settled,
    /// The source makes images.
    Freezing {
        to: NodeId,
    },
    /// The target makes a copy. `alone`: the source has gone since.
    Sending {
        to: NodeId,
        alone: bool,
    },
    /// The copy has been let run.
    Landing {
        to: NodeId,
    },
    Over,
}

/// A job as its home knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Home {
    at: NodeId,
    moves: u64,
    state: State,
}

impl Home {
    /// A job that runs at its home.
    pub(super) const fn new(home: NodeId) -> Self {
        Self {
            at: home,
            moves: 0,
            state: State::Settled,
        }
    }

    /// Returns where it runs, or is frozen.
    pub(super) const fn at(&self) -> NodeId {
        self.at
    }

    /// Returns how often it has moved.
    pub(super) const fn moves(&self) -> u64 {
        self.moves
    }

    /// Returns whether it neither moves nor has ended.
    pub(super) fn is_settled(&self) -> bool {
        self.state == State::Settled
    }

    /// Takes an event; returns what is to be done, in this order.
    pub(super) fn on(&mut self, event: Event) -> Vec<Action> {
        use Action::{Abort, Answer, Drop, End, Freeze, Offer, Run, Thaw};
        match (self.state, event) {
            (State::Over, Event::Asked(_)) => vec![Answer(Err(NotMoved::Ended))],
            (State::Settled, Event::Asked(to)) if to == self.at => vec![Answer(Ok(()))],
            (State::Settled, Event::Asked(to)) => {
                self.state = State::Freezing { to };
                vec![Freeze]
            }
            // MV3
            (_, Event::Asked(_)) => vec![Answer(Err(NotMoved::Busy))],

            (State::Freezing { to }, Event::Dumped) => {
                self.state = State::Sending { to, alone: false };
                vec![Offer(to)]
            }
            (State::Freezing { .. }, Event::NotDumped(why)) => {
                self.state = State::Settled;
                vec![Answer(Err(NotMoved::Failed(why)))]
            }
            (State::Settled, Event::SourceGone) => {
                self.state = State::Over;
                vec![End]
            }
            (State::Freezing { .. }, Event::SourceGone) => {
                self.state = State::Over;
                vec![Answer(Err(NotMoved::Ended)), End]
            }

            // MV1: from here on the source's copy must not run again, so this is where it is decided.
            (State::Sending { to, alone }, Event::Restored) => {
                (self.at, self.state) = (to, State::Landing { to });
                self.moves += 1;
                if alone { vec![Run] } else { vec![Run, Drop] }
            }
            // Its images are complete: the target can do without it.
            (State::Sending { to, .. }, Event::SourceGone) => {
                self.state = State::Sending { to, alone: true };
                Vec::new()
            }
            // MV2
            (State::Sending { alone: false, .. }, Event::TargetGone(why)) => {
                self.state = State::Settled;
                vec![Abort, Thaw, Answer(Err(NotMoved::Failed(why)))]
            }
            (State::Sending { alone: true, .. }, Event::TargetGone(_)) => {
                self.state = State::Over;
                vec![Abort, Answer(Err(NotMoved::Ended)), End]
            }

            (State::Landing { .. }, Event::Running) => {
                self.state = State::Settled;
                vec![Answer(Ok(()))]
            }
            // MV1: it may have run, so the old copy is of no use.
            (State::Landing { .. }, Event::TargetGone(_)) => {
                self.state = State::Over;
                vec![Answer(Err(NotMoved::Ended)), End]
            }

            // Late news of what is decided.
            _ => Vec::new(),
        }
    }
}

/// A host's copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Copy {
    /// It is made, and waits for its first instruction.
    Ready,
    /// It runs.
    Running,
    /// It is frozen, and home may have its images.
    Frozen,
    /// It has ended.
    Gone,
}

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Word {
    /// Home lets it run for the first time.
    Run,
    /// Home wants images.
    Freeze,
    /// Home has it go on; so does a host that could not make images.
    Thaw,
    /// Home wants it ended, or is lost (MV4).
    End,
}

impl Copy {
    /// Returns what it is after a word; a word that is not due changes nothing.
    pub(super) const fn after(self, word: Word) -> Self {
        match (self, word) {
            (Self::Ready, Word::Run) | (Self::Frozen, Word::Thaw) => Self::Running,
            (Self::Running, Word::Freeze) => Self::Frozen,
            (_, Word::End) => Self::Gone,
            (same, _) => same,
        }
    }
}

#[cfg(test)]
mod worlds;
