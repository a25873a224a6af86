//! What watchers (inotify) on one node are told of the changes of others.

use super::meta::{FileKind, Name};
use crate::{InodeNo, Timestamp};
use serde::{Deserialize, Serialize};

/// Where an event stands among all of the cluster, under whichever leader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// The time of the change.
    pub at: Timestamp,
    /// Which of the events of that change.
    pub nth: u32,
}

impl Place {
    /// Returns the place behind all events of the changes up to a time.
    #[must_use]
    pub const fn behind(at: Timestamp) -> Self {
        Self { at, nth: u32::MAX }
    }
}

/// Something that watchers of a file system are told (inotify).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The name concerned; `None` if the inode is watched itself and no directory that has it is.
    pub place: Option<(InodeNo, Name)>,
    /// The inode concerned.
    pub ino: InodeNo,
    /// Its type.
    pub kind: FileKind,
    /// What happened.
    pub what: Happened,
}

/// See [`Event`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Happened {
    /// The name was made.
    Created,
    /// The name was removed.
    Deleted,
    /// The name was moved.
    Moved {
        /// To this directory.
        dir: InodeNo,
        /// To this name.
        name: Name,
        /// What had that name before.
        replaced: Option<(InodeNo, FileKind)>,
    },
    /// Mode, owner, times or extended attributes were set.
    Attributes,
    /// The content was changed.
    Content,
    /// The last writer has closed.
    Closed,
}
