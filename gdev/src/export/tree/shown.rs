//! How files of other nodes are shown, and how what the kernel asks is put to them.

use super::inodes::Inode;
use crate::export::wire::{Change, Mode, NewTime};
use crate::wire::Device;
use consistency::wire::meta::{Attr, FileKind};
use consistency::{InodeNo, Version};
use gfs::tree::{NewMode, SetAttrRequest, TimeOrNow};

/// Bits of a file's mode that are shown: none that changes who executes it.
const FILE_MODE: u32 = 0o1777;
/// The first position behind `.` and `..` that the kernel may be told.
const COOKIE_FIRST: u64 = 3;
/// The last position that the kernel takes, also the end of a directory of ext4.
const COOKIE_MAX: u64 = i64::MAX.unsigned_abs();

/// Returns a file's attributes as they are shown.
pub(super) fn shown(ino: InodeNo, attr: &Attr) -> Attr {
    let kind = shown_kind(attr.kind);
    let device = matches!(attr.kind, FileKind::Char | FileKind::Block);
    let most = if kind == FileKind::File {
        FILE_MODE
    } else {
        0o7777
    };
    Attr {
        ino,
        kind,
        mode: attr.mode & most,
        rdev: 0,
        size: if device { 0 } else { attr.size },
        version: Version(1),
        ..attr.clone()
    }
}

/// Returns the type that is shown: the kernel would open the reader's own device.
pub(super) const fn shown_kind(kind: FileKind) -> FileKind {
    match kind {
        FileKind::Char | FileKind::Block => FileKind::File,
        FileKind::File | FileKind::Dir | FileKind::Symlink | FileKind::Fifo | FileKind::Socket => {
            kind
        }
    }
}

pub(super) fn device_of(inode: &Inode) -> Option<String> {
    let block = match inode.kind {
        FileKind::Block => true,
        FileKind::Char => false,
        _ => return None,
    };
    let device = Device {
        block,
        major: (inode.rdev >> 8) & 0xfff,
        minor: (inode.rdev & 0xff) | ((inode.rdev >> 12) & 0xf_ff00),
    };
    Some(device.to_string())
}

pub(super) const fn bits(mode: NewMode) -> Mode {
    let NewMode { mode, umask } = mode;
    Mode { mode, umask }
}

pub(super) fn change(set: SetAttrRequest) -> Change {
    let time = |time: TimeOrNow| match time {
        TimeOrNow::Now => NewTime::Now,
        TimeOrNow::At(at) => NewTime::At(at),
    };
    Change {
        mode: set.mode,
        uid: set.uid,
        gid: set.gid,
        size: set.size,
        atime: set.atime.map(time),
        mtime: set.mtime.map(time),
    }
}

/// Returns the kernel's position for one in a directory of the owner's, and [`place_of`] the other way.
pub(super) const fn cookie_of(place: u64) -> u64 {
    if place > COOKIE_MAX - COOKIE_FIRST {
        COOKIE_MAX
    } else {
        place + COOKIE_FIRST
    }
}

pub(super) const fn place_of(cookie: u64) -> u64 {
    if cookie >= COOKIE_MAX {
        COOKIE_MAX
    } else {
        cookie.saturating_sub(COOKIE_FIRST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_come_back_as_they_were() {
        for place in [0, 1, 2, 1 << 40, COOKIE_MAX - COOKIE_FIRST - 1, COOKIE_MAX] {
            assert_eq!(place_of(cookie_of(place)), place);
            assert!((COOKIE_FIRST..=COOKIE_MAX).contains(&cookie_of(place)));
        }
        assert_eq!(place_of(0), 0, "the beginning");
    }
}
