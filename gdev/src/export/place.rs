//! Where a path leads on its owner: below an exported directory, or on the way to one.
//!
//! A path is followed from the exported directory and never out of it: no `..` (a [`FilePath`] has none), no symbolic
//! link, no other mount, whoever changes the directories meanwhile (NR2). The owner follows it as itself and does what is
//! asked at its end as the caller: that he may come there his own kernel checks, name by name, with the attributes shown.

use super::config::{RootConfig, path_of};
use super::sys;
use super::wire::{At, Ident, Stat};
use crate::path::FilePath;
use consistency::wire::meta::{Attr, FileKind, Name};
use consistency::{InodeNo, Timestamp, Version};
use gfs::error::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;
use std::collections::BTreeSet;
use std::ffi::CString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What a descriptor is opened with that only stands for a file.
const STANDS: OFlag = OFlag::O_PATH
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);
const NANOS_PER_SEC: u64 = 1_000_000_000;

/// The exported directories of a node.
#[derive(Debug)]
pub(super) struct Exports {
    /// Where each lies below `root`, and on its node.
    dirs: Vec<(FilePath, PathBuf)>,
    pub(super) read_only: bool,
}

/// What a path stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place<'a> {
    /// A directory on the way to exported ones, with the names in it. It is made up.
    Way(BTreeSet<Name>),
    /// What is at a path below an exported directory.
    Below(&'a Path, FilePath),
}

/// What was found.
#[derive(Debug)]
pub(super) enum Found {
    /// A made-up directory and the names in it.
    Way(Stat, BTreeSet<Name>),
    /// A file of the node.
    File(Held),
}

/// A file that was found and is not opened yet.
#[derive(Debug)]
pub(super) struct Held {
    fd: OwnedFd,
    pub(super) stat: Stat,
}

impl Exports {
    pub(super) fn new(config: &RootConfig) -> Self {
        let dirs = config.export.iter();
        Self {
            dirs: dirs
                .filter_map(|dir| Some((path_of(dir)?, dir.clone())))
                .collect(),
            read_only: config.read_only,
        }
    }

    /// Returns what a path stands for; `None`: nothing.
    pub(super) fn place(&self, path: &FilePath) -> Option<Place<'_>> {
        let below = self.dirs.iter();
        let below = below.filter_map(|(at, dir)| Some((at, dir, path.below(at)?)));
        // The innermost: it may be another file system than what it lies in.
        if let Some((_, dir, below)) = below.max_by_key(|(at, ..)| at.depth()) {
            return Some(Place::Below(dir, below));
        }
        let names = self.dirs.iter().filter_map(|(at, _)| {
            let mut rest = at.below(path)?;
            while let Some((dir, name)) = rest.split() {
                if dir.is_empty() {
                    return Some(name);
                }
                rest = dir;
            }
            None
        });
        let names = BTreeSet::from_iter(names);
        (path.is_empty() || !names.is_empty()).then_some(Place::Way(names))
    }

    /// Returns whether a path is that of an exported directory: then it is shown though it may be a mount point.
    pub(super) fn is_exported(&self, path: &FilePath) -> bool {
        self.dirs.iter().any(|(at, _)| at == path)
    }

    /// Finds a file; ESTALE if another one, or none, is there by now.
    pub(super) fn find(&self, at: &At) -> Result<Found, Errno> {
        let found = self.look(&at.path).map_err(|error| match error.0 {
            libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::EXDEV => Errno::ESTALE,
            _ => error,
        })?;
        match at.ident {
            Some(ident) if ident != found.stat().ident => Err(Errno::ESTALE),
            _ => Ok(found),
        }
    }

    /// Finds a file of the node; EROFS for a made-up directory, of which nothing can be changed.
    pub(super) fn file(&self, at: &At) -> Result<Held, Errno> {
        match self.find(at)? {
            Found::File(held) => Ok(held),
            Found::Way(..) => Err(Errno(libc::EROFS)),
        }
    }

    fn look(&self, path: &FilePath) -> Result<Found, Errno> {
        match self.place(path).ok_or(Errno::ENOENT)? {
            Place::Way(names) => Ok(Found::Way(way(path, names.len()), names)),
            Place::Below(base, below) => {
                let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
                let base = open(base, flags, Mode::empty()).map_err(errno)?;
                let fd = if below.is_empty() {
                    base
                } else {
                    openat2(&base, below.relative(), beneath(STANDS)).map_err(errno)?
                };
                Held::of(fd).map(Found::File)
            }
        }
    }
}

/// Returns how a path is followed.
pub(super) fn beneath(flags: OFlag) -> OpenHow {
    let resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_XDEV
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    OpenHow::new().flags(flags).resolve(resolve)
}

impl Found {
    pub(super) const fn stat(&self) -> &Stat {
        match self {
            Self::Way(stat, _) => stat,
            Self::File(held) => &held.stat,
        }
    }
}

impl Held {
    /// Looks at a descriptor.
    pub(super) fn of(fd: OwnedFd) -> Result<Self, Errno> {
        let stat = stat_of(fd.as_fd())?;
        Ok(Self { fd, stat })
    }

    /// Returns a path that leads to the very file that was found, be it a link.
    pub(super) fn path(&self) -> CString {
        path_of_fd(self.fd.as_fd())
    }

    /// Returns what it is by now.
    pub(super) fn now(&self) -> Result<Stat, Errno> {
        stat_of(self.fd.as_fd())
    }

    pub(super) const fn kind(&self) -> FileKind {
        self.stat.attr.kind
    }

    /// ENOTDIR if it is no directory.
    pub(super) fn dir(self) -> Result<Self, Errno> {
        match self.kind() {
            FileKind::Dir => Ok(self),
            _ => Err(Errno::ENOTDIR),
        }
    }
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Returns a path that leads to an open file of this process.
pub(super) fn path_of_fd(fd: BorrowedFd<'_>) -> CString {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    CString::new(path).expect("digits have no NUL")
}

/// Returns what a descriptor stands for.
pub(super) fn stat_of(fd: BorrowedFd<'_>) -> Result<Stat, Errno> {
    let told = sys::statx(fd, c"").map_err(errno)?;
    stat(&told).ok_or(Errno::EIO)
}

/// Returns what there is under a name, unless another mount begins there: `None`.
pub(super) fn stat_at(dir: BorrowedFd<'_>, name: &Name) -> Result<Option<Stat>, Errno> {
    let name = sys::string(name.as_bytes()).map_err(errno)?;
    let told = sys::statx(dir, &name).map_err(errno)?;
    let root = u64::try_from(libc::STATX_ATTR_MOUNT_ROOT).unwrap_or(0);
    if told.stx_attributes & root != 0 {
        return Ok(None);
    }
    stat(&told).ok_or(Errno::EIO).map(Some)
}

fn stat(told: &libc::statx) -> Option<Stat> {
    let kind = match u32::from(told.stx_mode) & libc::S_IFMT {
        libc::S_IFREG => FileKind::File,
        libc::S_IFDIR => FileKind::Dir,
        libc::S_IFLNK => FileKind::Symlink,
        libc::S_IFIFO => FileKind::Fifo,
        libc::S_IFSOCK => FileKind::Socket,
        libc::S_IFCHR => FileKind::Char,
        libc::S_IFBLK => FileKind::Block,
        _ => return None,
    };
    let time = |time: libc::statx_timestamp| Timestamp {
        secs: time.tv_sec,
        nanos: time.tv_nsec,
    };
    let born = told.stx_mask & libc::STATX_BTIME != 0;
    let born = born.then(|| time(told.stx_btime));
    let nanos = born.map_or(0, |born| {
        let whole = born.secs.unsigned_abs().wrapping_mul(NANOS_PER_SEC);
        whole.wrapping_add(u64::from(born.nanos))
    });
    let ctime = time(told.stx_ctime);
    Some(Stat {
        ident: Ident {
            dev: u64::from(told.stx_dev_major) << 32 | u64::from(told.stx_dev_minor),
            ino: told.stx_ino,
            born: nanos,
        },
        attr: Attr {
            ino: InodeNo(told.stx_ino),
            kind,
            mode: u32::from(told.stx_mode) & 0o7777,
            nlink: told.stx_nlink,
            uid: told.stx_uid,
            gid: told.stx_gid,
            rdev: kernel_number(told.stx_rdev_major, told.stx_rdev_minor),
            size: told.stx_size,
            blocks: told.stx_blocks,
            atime: time(told.stx_atime),
            mtime: time(told.stx_mtime),
            ctime,
            btime: born.unwrap_or(ctime),
            version: Version(1),
        },
    })
}

/// Returns a device number in the kernel's 32 bits.
const fn kernel_number(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// Returns a made-up directory.
fn way(path: &FilePath, names: usize) -> Stat {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    let ino = hasher.finish() | 1;
    Stat {
        ident: Ident {
            dev: 0,
            ino,
            born: 0,
        },
        attr: Attr {
            mode: 0o555,
            nlink: u32::try_from(names).unwrap_or(0).saturating_add(2),
            ..made_up_dir(InodeNo(ino))
        },
    }
}

/// Returns the attributes of a directory that no file system has.
pub(super) fn made_up_dir(ino: InodeNo) -> Attr {
    Attr {
        ino,
        kind: FileKind::Dir,
        mode: 0o755,
        nlink: 2,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        blocks: 0,
        atime: Timestamp::default(),
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
        btime: Timestamp::default(),
        version: Version(1),
    }
}

pub(super) fn errno(errno: nix::errno::Errno) -> Errno {
    Errno(errno as i32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn path(text: &str) -> FilePath {
        FilePath::try_from(Bytes::copy_from_slice(text.as_bytes())).expect("a path")
    }

    fn shown(exports: &[&str], at: &str) -> String {
        let exports = Exports::new(&RootConfig {
            export: exports.iter().map(PathBuf::from).collect(),
            read_only: false,
        });
        match exports.place(&path(at)) {
            None => "-".into(),
            Some(Place::Way(names)) => {
                let names = names
                    .iter()
                    .map(|name| name.as_bytes().escape_ascii().to_string());
                Vec::from_iter(names).join(" ")
            }
            Some(Place::Below(dir, below)) => format!("{}:{below:?}", dir.display()),
        }
    }

    #[test]
    fn paths_lead_to_exports_or_on_the_way_there() {
        let exports = ["/home", "/srv/data/", "/srv/www"];
        let check = |at, expected| assert_eq!(shown(&exports, at), expected, "{at}");
        check("", "home srv");
        check("home", "/home:");
        check("home/a/b", "/home:a/b");
        check("srv", "data www");
        check("srv/data", "/srv/data/:");
        check("srv/data/x", "/srv/data/:x");
        check("srv/other", "-");
        check("homes", "-");
        check("etc", "-");
        assert_eq!(shown(&[], ""), "");
        assert_eq!(shown(&[], "home"), "-");
        // The innermost one counts.
        let nested = ["/", "/mnt/disk"];
        assert_eq!(shown(&nested, ""), "/:");
        assert_eq!(shown(&nested, "mnt"), "/:mnt");
        assert_eq!(shown(&nested, "mnt/disk/a"), "/mnt/disk:a");
    }
}
