//! What the leader's own node holds, as the other voters note it: the notes outlive both (L10).

use super::lease::Mode;
use crate::{Epoch, InodeNo, NodeId, SessionId};
use serde::{Deserialize, Serialize};

/// Something to note. Notes are numbered; who has all up to a number knows what was held then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Note {
    /// What follows is held by this session; what an earlier one held is void.
    Session {
        /// Which.
        session: SessionId,
        /// It holds nothing else: false until it has told what it held before the reign.
        complete: bool,
    },
    /// From now on it holds an inode like this; `None`: less than shared.
    Holds {
        /// Which inode.
        ino: InodeNo,
        /// At most this.
        mode: Option<Mode>,
    },
}

/// What is asked of a voter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NotesRequest {
    /// By the leader: note this.
    Tell(Tell),
    /// By a new leader: note nothing more of earlier reigns than `by`, and say what is noted of `of`.
    Close {
        /// The reign that is about to begin.
        by: Epoch,
        /// The one before.
        of: Epoch,
    },
    /// By a new leader, after `Close`: what is held, behind an inode.
    Page {
        /// Under which reign.
        of: Epoch,
        /// Behind which inode; `None`: from the first.
        after: Option<InodeNo>,
    },
}

/// The answer of a voter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NotesReply {
    /// To `Tell`.
    Told(Told),
    /// To `Close`; `None`: it has no notes of that reign, or not all.
    Closed(Option<Noted>),
    /// To `Page`; empty behind the last.
    Page(Vec<(InodeNo, Mode)>),
}

/// Notes for a voter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tell {
    /// Of the leader of this reign.
    pub reign: Epoch,
    /// Where they belong.
    pub part: Part,
    /// The notes.
    pub notes: Vec<Note>,
}

/// Where notes belong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// They follow those up to this number.
    Next {
        /// The number of the last one before.
        from: u64,
    },
    /// They are a page of everything there is, for a voter that has nothing.
    Whole {
        /// The voter's life that this is meant for.
        life: u64,
        /// All voters of the reign.
        voters: Vec<NodeId>,
        /// The number of the last note when the first page was made.
        base: u64,
        /// Which page, from 0.
        page: u32,
        /// It is the last page.
        last: bool,
    },
}

/// What became of a [`Tell`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// All notes up to this number are there.
    At(u64),
    /// Pages before this one are there.
    Page {
        /// As in [`Part::Whole`].
        base: u64,
        /// The next page.
        next: u32,
    },
    /// There is nothing that the notes could follow: tell everything.
    Lost {
        /// The voter's life; another one is another memory.
        life: u64,
    },
    /// A younger reign has begun, or is about to.
    Closed,
}

/// What a voter has noted of a reign.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noted {
    /// The node that led, whose session this is about.
    pub leader: NodeId,
    /// All voters of the reign.
    pub voters: Vec<NodeId>,
    /// The number of the last note.
    pub number: u64,
    /// The session, if all that it holds is noted.
    pub session: Option<SessionId>,
}
