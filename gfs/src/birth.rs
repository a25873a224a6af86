//! What a new inode looks like: the leader that makes it and the node that has made it by itself must agree.

use consistency::wire::meta::{Attr, FileKind, NewNode};
use consistency::{InodeNo, Timestamp, Version};

/// Size shown for a directory, whatever is in it: one block, like a small one on other file systems.
pub(crate) const DIR_SIZE_BYTES: u64 = 4096;

const S_ISGID: u32 = 0o2000;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Birth<'a> {
    pub(crate) ino: InodeNo,
    pub(crate) node: &'a NewNode,
    /// Permission bits, less those that the umask takes away or a default ACL.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) named: bool,
    pub(crate) at: Timestamp,
}

impl Birth<'_> {
    /// Returns the attributes of an inode that is made in a directory.
    pub(crate) fn attr(&self, parent: &Attr) -> Attr {
        let kind = self.node.kind();
        let (rdev, size) = match self.node {
            NewNode::File => (0, 0),
            NewNode::Dir => (0, DIR_SIZE_BYTES),
            NewNode::Symlink(target) => (0, target.len() as u64),
            NewNode::Special { rdev, .. } => (*rdev, 0),
        };
        // A setgid directory hands its group down, and itself to directories.
        let setgid = parent.mode & S_ISGID != 0;
        let mode = match kind {
            FileKind::Symlink => 0o777,
            FileKind::Dir if setgid => self.mode | S_ISGID,
            _ => self.mode,
        };
        Attr {
            ino: self.ino,
            kind,
            mode,
            nlink: match kind {
                FileKind::Dir => 2,
                _ => u32::from(self.named),
            },
            uid: self.uid,
            gid: if setgid { parent.gid } else { self.gid },
            rdev,
            size,
            blocks: blocks(self.node),
            atime: self.at,
            mtime: self.at,
            ctime: self.at,
            btime: self.at,
            version: Version(1),
        }
    }
}

/// Returns what a new inode allocates, in units of 512 bytes.
pub(crate) const fn blocks(node: &NewNode) -> u64 {
    match node {
        NewNode::Dir => DIR_SIZE_BYTES / 512,
        NewNode::File | NewNode::Symlink(_) | NewNode::Special { .. } => 0,
    }
}
