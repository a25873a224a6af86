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
}

impl Version {
    /// Returns the version the next committed change gets.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}
