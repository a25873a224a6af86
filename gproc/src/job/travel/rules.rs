//! Who runs a job that moves, decided without a clock or a socket: what its home does at each event ([`Home`]), and what
//! a host may do with its copy ([`Copy`]). The tables are in docs/protocol.md.
//!
//! - MV1 **At most one copy runs.** A copy runs only by home's word, home gives it to one copy at a time, and once it has
//!   let the new copy run the old one never runs again, whatever becomes of the new one.
//! - MV2 **Never lost on the way.** Until home has let the new copy run, every failure of the move lets the old one go on.
//! - MV3 **One move at a time.** What is asked meanwhile is refused.
//! - MV4 **Nothing outlives its home.** A host that has lost home ends its copy (as J2 has it).
//! - MV10 **Pages are kept until all are there.** The source of a move by post-copy stays frozen until the copy has all pages;
//!   if they are lost before, the copy ends. Until then nothing else is done with the job.
//! - CK1 **A checkpoint runs in the place of nobody.** A copy is made from one only when the one that ran cannot run any more.
//! - CK2 **A checkpoint harms no job.** The source goes on at once, whatever becomes of its images.
//! - CK3 **Whole or not there.** Nothing starts from a checkpoint that has not been kept whole.

mod copy;
mod events;
#[cfg(test)]
mod worlds;

pub(super) use copy::{Copy, Word};
pub(super) use events::{Action, Event};
pub(in crate::job) use events::{NotKept, NotMoved};

use consistency::NodeId;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    /// It runs.
    Settled,
    /// It runs, and its pages go ahead of it.
    Ahead {
        to: NodeId,
    },
    /// The source makes images.
    Freezing {
        to: NodeId,
    },
    /// The target makes a copy.
    Sending {
        to: NodeId,
        images: Images,
    },
    /// The copy has been let run. `partly`: pages are with the source still.
    Landing {
        to: NodeId,
        partly: bool,
    },
    /// The copy runs, and gets its pages.
    Fetching,
    /// The source makes images that are to be kept.
    Imaging,
    /// The one that ran is lost. `fenced`: it cannot run any more.
    Lost {
        fenced: bool,
    },
    /// What was kept is being read.
    Loading,
    /// A node makes a copy from what was kept.
    Starting {
        to: NodeId,
    },
    Over,
}

/// Where the images of a job that moves are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Images {
    Here,
    /// And the source has gone since.
    Alone,
    /// But for pages that the source keeps.
    Partly,
}

/// What becomes of the newest images that are to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Storing {
    Nothing,
    /// They are being written.
    Writing,
    /// They are, and are of no use any more.
    InVain,
}

/// A job as its home knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Home {
    at: NodeId,
    moves: u64,
    state: State,
    /// Its owner wants it to go on from a checkpoint when its node is lost.
    restart: bool,
    restarts: u64,
    /// The number of its newest checkpoint.
    kept: Option<u64>,
    storing: Storing,
}

impl Home {
    /// A job that runs at its home.
    pub(super) const fn new(home: NodeId) -> Self {
        Self {
            at: home,
            moves: 0,
            state: State::Settled,
            restart: false,
            restarts: 0,
            kept: None,
            storing: Storing::Nothing,
        }
    }

    /// Has it go on from its newest checkpoint when its node is lost.
    pub(super) const fn with_restart(mut self, restart: bool) -> Self {
        self.restart = restart;
        self
    }

    /// Returns where it runs, or is frozen.
    pub(super) const fn at(&self) -> NodeId {
        self.at
    }

    /// Returns how often it has moved.
    pub(super) const fn moves(&self) -> u64 {
        self.moves
    }

    /// Returns how often it was started from a checkpoint.
    pub(super) const fn restarts(&self) -> u64 {
        self.restarts
    }

    /// Returns the number of its newest checkpoint.
    pub(super) const fn kept(&self) -> Option<u64> {
        self.kept
    }

    /// Returns whether nobody runs it, and it is to be started from a checkpoint.
    pub(super) const fn is_lost(&self) -> bool {
        matches!(
            self.state,
            State::Lost { .. } | State::Loading | State::Starting { .. }
        )
    }

    /// Returns whether it neither moves nor has ended.
    pub(super) fn is_settled(&self) -> bool {
        self.state == State::Settled
    }

    /// Returns whether it has moved, and may run already.
    pub(super) const fn lands(&self) -> bool {
        matches!(self.state, State::Landing { .. })
    }

    /// Returns whether it runs, though pages of it may be missing.
    pub(super) fn runs(&self) -> bool {
        matches!(
            self.state,
            State::Settled | State::Ahead { .. } | State::Fetching
        )
    }

    /// Takes an event; returns what is to be done, in this order.
    pub(super) fn on(&mut self, event: Event) -> Vec<Action> {
        use Action::{
            Abort, Answer, CopyAhead, CopyNoMore, Drop, End, EndCopy, Follow, Freeze, Image, Load,
            Offer, Run, Store, TellKept, Thaw,
        };
        match (self.state, event) {
            (State::Over, Event::Asked(_) | Event::AskedAhead(_)) => {
                vec![Answer(Err(NotMoved::Ended))]
            }
            (State::Settled, Event::Asked(to) | Event::AskedAhead(to)) if to == self.at => {
                vec![Answer(Ok(()))]
            }
            (State::Settled, Event::Asked(to)) | (State::Ahead { to }, Event::Copied) => {
                self.state = State::Freezing { to };
                vec![Freeze]
            }
            (State::Settled, Event::AskedAhead(to)) => {
                self.state = State::Ahead { to };
                vec![CopyAhead(to)]
            }
            // MV3
            (_, Event::Asked(_) | Event::AskedAhead(_)) => vec![Answer(Err(NotMoved::Busy))],

            (State::Ahead { .. }, Event::TargetGone(why)) => {
                self.state = State::Settled;
                vec![Abort, CopyNoMore, Answer(Err(NotMoved::Failed(why)))]
            }

            (State::Freezing { to }, event @ (Event::Dumped | Event::DumpedPartly)) => {
                let images = match event {
                    Event::Dumped => Images::Here,
                    _ => Images::Partly,
                };
                self.state = State::Sending { to, images };
                vec![Offer(to)]
            }
            (State::Freezing { .. }, Event::NotDumped(why)) => {
                self.state = State::Settled;
                vec![Abort, Answer(Err(NotMoved::Failed(why)))]
            }
            (State::Settled, Event::SourceGone) => self.lose(),
            (State::Ahead { .. } | State::Freezing { .. }, Event::SourceGone) => {
                let lost = self.lose();
                [vec![Abort], self.answer_lost(lost)].concat()
            }

            // MV1: from here on the source's copy must not run again, so this is where it is decided.
            (State::Sending { to, images }, Event::Restored) => {
                let partly = images == Images::Partly;
                (self.at, self.state) = (to, State::Landing { to, partly });
                self.moves += 1;
                match images {
                    Images::Here => vec![Run, Drop],
                    // MV10
                    Images::Alone | Images::Partly => vec![Run],
                }
            }
            // Its images are complete: the target can do without it.
            (State::Sending { to, images }, Event::SourceGone) if images != Images::Partly => {
                let images = Images::Alone;
                self.state = State::Sending { to, images };
                Vec::new()
            }
            // The copy cannot be made without its pages, nor has it run; nor can the source.
            (State::Sending { .. }, Event::SourceGone) => {
                let lost = self.lose();
                [vec![Abort], self.answer_lost(lost)].concat()
            }
            // MV2
            (State::Sending { images, .. }, Event::TargetGone(why) | Event::PagesGone(why))
                if images != Images::Alone =>
            {
                self.state = State::Settled;
                vec![Abort, Thaw, Answer(Err(NotMoved::Failed(why)))]
            }
            (State::Sending { .. }, Event::TargetGone(_)) => {
                let lost = self.lose();
                [vec![Abort], self.answer_lost(lost)].concat()
            }

            (State::Landing { partly: false, .. }, Event::Running) => {
                self.state = State::Settled;
                vec![Answer(Ok(()))]
            }
            (State::Landing { partly: true, .. }, Event::Running) => {
                self.state = State::Fetching;
                vec![Follow]
            }
            // MV1: it may have run, so the old copy is of no use.
            (State::Landing { partly, .. }, Event::TargetGone(_)) => {
                let lost = self.lose();
                let lost = self.answer_lost(lost);
                let drop = if partly { vec![Drop] } else { Vec::new() };
                [drop, lost].concat()
            }
            // MV10: it may have run already, and cannot go on.
            (State::Landing { partly: true, .. }, Event::SourceGone | Event::PagesGone(_)) => {
                let lost = self.lose();
                [vec![Abort, Drop], self.answer_lost(lost)].concat()
            }
            (State::Fetching, Event::Whole) => {
                self.state = State::Settled;
                vec![Drop, Answer(Ok(()))]
            }
            (State::Fetching, Event::SourceGone) => {
                let lost = self.lose();
                [vec![Drop], self.answer_lost(lost)].concat()
            }
            (State::Fetching, Event::PagesGone(_)) => {
                let lost = self.lose();
                [vec![EndCopy, Drop], self.answer_lost(lost)].concat()
            }

            (State::Over, Event::Keep) => vec![TellKept(Err(NotKept::Ended))],
            (State::Settled, Event::Keep) if self.storing == Storing::Nothing => {
                self.state = State::Imaging;
                vec![Image]
            }
            (_, Event::Keep) => vec![TellKept(Err(NotKept::Busy))],
            // CK2: the source goes on already.
            (State::Imaging, Event::Dumped) => {
                (self.state, self.storing) = (State::Settled, Storing::Writing);
                vec![Store]
            }
            (State::Imaging, Event::NotDumped(why)) => {
                self.state = State::Settled;
                vec![TellKept(Err(NotKept::NoImages(why)))]
            }
            (State::Imaging, Event::SourceGone) => {
                let told = TellKept(Err(NotKept::Ended));
                [vec![told], self.lose()].concat()
            }
            (_, Event::Stored(number)) => {
                let told = if self.storing == Storing::Writing {
                    self.kept = Some(number);
                    Ok(number)
                } else {
                    Err(NotKept::Busy)
                };
                self.storing = Storing::Nothing;
                [vec![TellKept(told)], self.go_on()].concat()
            }
            (_, Event::NotStored(why)) => {
                self.storing = Storing::Nothing;
                [vec![TellKept(Err(why))], self.go_on()].concat()
            }
            (_, Event::Forget) => {
                self.kept = None;
                if self.storing == Storing::Writing {
                    self.storing = Storing::InVain;
                }
                Vec::new()
            }

            // CK1
            (State::Lost { .. }, Event::Fenced) => {
                self.state = State::Lost { fenced: true };
                self.go_on()
            }
            (State::Loading, Event::Loaded(to)) => {
                self.state = State::Starting { to };
                vec![Offer(to)]
            }
            (State::Loading, Event::NotLoaded) => {
                self.state = State::Over;
                vec![End]
            }
            (State::Starting { to }, Event::Restored) => {
                let partly = false;
                (self.at, self.state) = (to, State::Landing { to, partly });
                self.restarts += 1;
                vec![Run]
            }
            // It has never run: another node may.
            (State::Starting { .. }, Event::TargetGone(_)) => {
                self.state = State::Loading;
                vec![Abort, Load]
            }
            (State::Lost { .. } | State::Loading, Event::Killed) => {
                self.state = State::Over;
                vec![End]
            }
            (State::Starting { .. }, Event::Killed) => {
                self.state = State::Over;
                vec![Abort, End]
            }

            // Late news of what is decided.
            _ => Vec::new(),
        }
    }

    /// Nobody is known to run it any more.
    fn lose(&mut self) -> Vec<Action> {
        if self.restart && (self.kept.is_some() || self.storing == Storing::Writing) {
            self.state = State::Lost { fenced: false };
            return vec![Action::Fence(self.at)];
        }
        self.state = State::Over;
        vec![Action::End]
    }

    /// Tells who has asked for a move before what comes of the loss.
    fn answer_lost(&self, lost: Vec<Action>) -> Vec<Action> {
        let why = match self.state {
            State::Over => NotMoved::Ended,
            _ => NotMoved::Lost,
        };
        [vec![Action::Answer(Err(why))], lost].concat()
    }

    /// Starts it from its newest checkpoint, once it is known which that is and the one that ran cannot run any more.
    fn go_on(&mut self) -> Vec<Action> {
        let (State::Lost { fenced: true }, false) = (self.state, self.storing == Storing::Writing)
        else {
            return Vec::new();
        };
        // CK3
        if self.kept.is_some() {
            self.state = State::Loading;
            vec![Action::Load]
        } else {
            self.state = State::Over;
            vec![Action::End]
        }
    }
}
