//! The record of an inode.

use super::{Directory, FileContent};
use crate::birth::DIR_SIZE_BYTES;
use bytes::Bytes;
use consistency::wire::meta::{Attr, FileKind, Name};
use consistency::{InodeNo, Timestamp, Version};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An inode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Inode {
    pub(crate) attr: Attr,
    pub(crate) payload: Payload,
    pub(crate) xattrs: BTreeMap<Name, Bytes>,
    /// Copies of its chunks, as of its tree; 0: as many as the cluster makes of everything.
    pub(crate) copies: u8,
}

/// What an inode is beside its attributes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Payload {
    /// Boxed, since most inodes are files.
    Dir(Box<Directory>),
    File(FileContent),
    Symlink(Bytes),
    /// Fifo, socket or device node.
    Special,
}

impl Inode {
    pub(super) fn root() -> Self {
        let ino = InodeNo::ROOT;
        let attr = Attr {
            ino,
            kind: FileKind::Dir,
            mode: 0o755,
            nlink: 2,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: DIR_SIZE_BYTES,
            blocks: DIR_SIZE_BYTES / 512,
            atime: Timestamp::default(),
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            btime: Timestamp::default(),
            version: Version(1),
        };
        Self {
            attr,
            payload: Payload::Dir(Box::new(Directory::new(ino))),
            xattrs: BTreeMap::new(),
            copies: 0,
        }
    }

    pub(crate) fn dir(&self) -> Option<&Directory> {
        match &self.payload {
            Payload::Dir(dir) => Some(dir),
            Payload::File(_) | Payload::Symlink(_) | Payload::Special => None,
        }
    }
}
