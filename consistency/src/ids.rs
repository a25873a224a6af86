//! Newtypes for every number that has a meaning.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($repr:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub $repr);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

id!(
    /// A machine of the cluster, 1 to 9,999; it stands in the node's certificate.
    NodeId(u16), "n"
);
impl NodeId {
    /// The bucket, where file data is kept in an object store: listed like a node, reached by every node (decision 9).
    pub const BUCKET: Self = Self(u16::MAX);
}

id!(
    /// One life of a node's client: a restarted node opens a new session. Never reused.
    SessionId(u64), "s"
);
id!(
    /// Numbers the operations of one session from 1; (session, sequence) names an operation for ever.
    OpSeq(u64), "q"
);
id!(
    /// Identifies an inode cluster-wide. The upper 16 bits are the shard (0 today for files; the
    /// other trees use numbers of their own, see `gfs::tree`). Never reused.
    InodeNo(u64), "i"
);
id!(
    /// Names one grant of a lease. A break and its ack name the grant they are about, so that a late
    /// ack cannot end a younger grant.
    LeaseId(u64), "l"
);
id!(
    /// Counts the committed changes of one inode; never goes back.
    Version(u64), "v"
);
id!(
    /// Names an immutable chunk of file data cluster-wide. Never reused.
    ChunkId(u64), "c"
);
id!(
    /// Numbers the reigns of metadata leaders (the raft term); a message of an older epoch is refused.
    Epoch(u64), "e"
);
id!(
    /// Names an operation inside the lease server between its arrival and its end.
    OpId(u64), "o"
);

impl InodeNo {
    /// The root directory of `/cluster`; FUSE fixes the number.
    pub const ROOT: Self = Self(1);

    /// Set in the numbers that a session has given itself, never in those of the leader.
    const BY_SESSION: u64 = 1 << 40;

    /// Returns the inode number that goes with a number that a session was given ([`crate::wire::meta::Op::AllocateChunks`]).
    /// One number makes at most one chunk and at most one inode. `None` if the number is too large.
    #[must_use]
    pub const fn by_session(number: ChunkId) -> Option<Self> {
        if number.0 < Self::BY_SESSION {
            Some(Self(Self::BY_SESSION | number.0))
        } else {
            None
        }
    }

    /// Returns the number that [`by_session`](Self::by_session) made this one of; `None` if the leader gave it.
    #[must_use]
    pub const fn number_of_session(self) -> Option<ChunkId> {
        if self.0 >= Self::BY_SESSION && self.0 < 2 * Self::BY_SESSION {
            Some(ChunkId(self.0 - Self::BY_SESSION))
        } else {
            None
        }
    }
}

impl Version {
    /// Returns the version the next committed change gets.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}
