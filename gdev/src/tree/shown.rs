//! How what is in a node's `/dev` is shown.

use super::inodes::{self, Inode};
use crate::path::DevPath;
use crate::wire::Seen;
use consistency::wire::meta::{Attr, FileKind, Name};
use consistency::{InodeNo, Version};

/// Returns what an inode truly is, if it is shown as a file.
pub(super) fn device_of(inode: &Inode) -> Option<String> {
    match inode.seen.node.kind {
        FileKind::Fifo => Some("p".into()),
        _ => inode.seen.node.device.map(|device| device.to_string()),
    }
}

/// Returns the type that is shown: what the kernel would not bring to us is a regular file.
pub(super) const fn shown_kind(kind: FileKind) -> FileKind {
    match kind {
        FileKind::Dir | FileKind::Symlink | FileKind::Socket => kind,
        FileKind::File | FileKind::Fifo | FileKind::Char | FileKind::Block => FileKind::File,
    }
}

pub(super) fn attr(ino: InodeNo, seen: &Seen) -> Attr {
    let node = &seen.node;
    let [atime, mtime, ctime] = node.times;
    Attr {
        ino,
        kind: shown_kind(node.kind),
        mode: node.mode & 0o7777,
        nlink: node.nlink,
        uid: node.uid,
        gid: node.gid,
        rdev: 0,
        size: match &node.target {
            Some(target) => target.len() as u64,
            None => seen.size,
        },
        blocks: 0,
        atime,
        mtime,
        ctime,
        btime: ctime,
        version: Version(1),
    }
}

/// Returns what is at `path` with the target of a link so that it stays on its node: absolute targets below `/dev`
/// become relative.
pub(super) fn on_its_node(path: &DevPath, mut seen: Seen) -> Seen {
    let node = &mut seen.node;
    if let Some(below) = node
        .target
        .as_ref()
        .and_then(|target| target.strip_prefix(b"/dev/"))
    {
        let up = b"../".repeat(path.depth().saturating_sub(1));
        node.target = Some([&up, below].concat().into());
    }
    seen
}

/// Returns a name's position in a listing, 3 and more. Of names with the same one (one pair in 2^63) a listing may
/// miss one, when its pages meet just there.
pub(super) fn cookie(name: &Name) -> u64 {
    (inodes::hash(name.as_bytes()) >> 1).max(3)
}
