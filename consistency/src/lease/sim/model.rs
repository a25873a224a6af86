//! The small world that the simulation runs in: two files and two directories made of registers, operations on
//! them, and the messages that carry those.

use crate::lease::{Claim, Need};
use crate::wire::lease::{Break, BreakAck, Grant, Mode, Scope};
use crate::wire::meta::Name;
use crate::{Epoch, InodeNo, Instant, LeaseId, SessionId};

pub(super) const FILES: [InodeNo; 2] = [InodeNo(1), InodeNo(2)];
pub(super) const DIRS: [InodeNo; 2] = [InodeNo(3), InodeNo(4)];

/// What can be seen of an inode. Its value is the number of the write that set it, 0 for none (of a name:
/// absence); numbers grow with the order in which the writes happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Attr,
    Data,
    Name(u8),
}

pub(super) const NAMES: u8 = 3;

/// A register of the world.
pub(super) type Register = (InodeNo, Part);

pub(super) fn name(n: u8) -> Name {
    Name::new(vec![b'a' + n]).expect("a letter is a name")
}

/// Returns the parts that a scope covers.
pub(super) fn parts(scope: &Scope) -> Vec<Part> {
    let names = |list: Vec<u8>| list.into_iter().map(Part::Name).chain([Part::Attr]);
    match scope {
        Scope::Attr => vec![Part::Attr],
        Scope::Data => vec![Part::Attr, Part::Data],
        Scope::Names(list) => {
            names(list.iter().map(|n| n.as_bytes()[0] - b'a').collect()).collect()
        }
        Scope::All => names((0..NAMES).collect()).collect(),
        Scope::Flush => Vec::new(),
    }
}

/// An operation at the leader.
#[derive(Clone, Debug)]
pub(super) enum Op {
    /// Sees a part of an inode.
    Look(Register),
    /// Sees the attributes of a directory and of all files, which it does not claim.
    List(InodeNo),
    /// Loads a file.
    Load(InodeNo, Mode),
    /// Changes inodes.
    Change(Vec<(InodeNo, Scope)>),
    /// Writes back the content of a file: the number of the last local write.
    Flush(InodeNo, u64),
}

impl Op {
    pub(super) fn claims(&self) -> Vec<Claim> {
        let claim = |ino, need| Claim { ino, need };
        match self {
            Self::Look((ino, _)) | Self::List(ino) => vec![claim(*ino, Need::Peek)],
            Self::Load(ino, Mode::Exclusive) => vec![claim(*ino, Need::Exclusive)],
            Self::Load(ino, Mode::Known | Mode::Shared) => vec![claim(*ino, Need::Share)],
            Self::Change(scopes) => scopes
                .iter()
                .map(|(ino, scope)| claim(*ino, Need::Change(scope.clone())))
                .collect(),
            Self::Flush(ino, _) => vec![claim(*ino, Need::Flush)],
        }
    }

    /// Returns what the reply tells about, and the mode wanted for it.
    pub(super) fn facts(&self) -> Vec<(InodeNo, Mode, Vec<Part>)> {
        match self {
            Self::Look((ino, part)) => vec![(*ino, Mode::Shared, vec![Part::Attr, *part])],
            Self::List(dir) => {
                let files = FILES.map(|ino| (ino, Mode::Shared, vec![Part::Attr]));
                let dir = (*dir, Mode::Shared, vec![Part::Attr]);
                files.into_iter().chain([dir]).collect()
            }
            Self::Load(ino, mode) => vec![(*ino, *mode, vec![Part::Attr, Part::Data])],
            Self::Change(scopes) => scopes
                .iter()
                .map(|(ino, scope)| (*ino, Mode::Shared, parts(scope)))
                .collect(),
            Self::Flush(..) => Vec::new(),
        }
    }

    pub(super) fn writes(&self) -> bool {
        matches!(self, Self::Change(_) | Self::Flush(..))
    }

    /// Returns the inodes that a change is about.
    pub(super) fn changed(&self) -> Vec<InodeNo> {
        match self {
            Self::Change(scopes) => scopes.iter().map(|(ino, _)| *ino).collect(),
            Self::Look(_) | Self::List(_) | Self::Load(..) | Self::Flush(..) => Vec::new(),
        }
    }
}

/// A piece of a reply.
#[derive(Clone, Debug)]
pub(super) struct Fact {
    pub(super) ino: InodeNo,
    pub(super) grant: Option<Grant>,
    pub(super) values: Vec<(Part, u64)>,
}

/// From a node to the leader.
#[derive(Clone, Debug)]
pub(super) enum Request {
    /// `attempt` grows with every wish of the node for a new session, and is kept when it is repeated.
    Open {
        attempt: u64,
    },
    Renew {
        session: SessionId,
        sent_at: Instant,
    },
    Reclaim {
        session: SessionId,
        reign: Epoch,
        part: usize,
        leases: Vec<(InodeNo, Mode)>,
        last: bool,
    },
    Release {
        session: SessionId,
        ino: InodeNo,
        lease: LeaseId,
    },
    Op {
        session: SessionId,
        seq: u64,
        done_below: u64,
        op: Op,
    },
    Ack {
        session: SessionId,
        ack: BreakAck,
    },
}

/// From the leader to a node.
#[derive(Clone, Debug)]
pub(super) enum Message {
    /// Without time if the session was there already: it must be renewed before it is used.
    Opened {
        attempt: u64,
        session: SessionId,
        fresh: bool,
    },
    Renewed {
        session: SessionId,
        sent_at: Instant,
        reign: Epoch,
        reclaim: bool,
    },
    Reclaimed {
        session: SessionId,
        reign: Epoch,
        part: usize,
        names: Vec<Option<LeaseId>>,
    },
    /// `None`: refused, the grant was not there.
    Reply {
        session: SessionId,
        seq: u64,
        facts: Option<Vec<Fact>>,
    },
    Ended {
        session: SessionId,
    },
    Break {
        session: SessionId,
        request: Break,
    },
}
