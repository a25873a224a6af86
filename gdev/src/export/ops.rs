//! What is done to the files of an exported directory: one function for each kind of question. They block, on a thread of
//! [`super::hands`]; a path is followed by the daemon, and what is asked is done as the caller (NR1).

use super::hands::as_user;
use super::place::{Exports, Found, Held, errno, stat_at};
use super::sys;
use super::wire::{
    At, Change, Entry, Mode, NewTime, PAGE_ENTRIES_MAX, Reply, Request, Stat, What, XATTR_BYTES_MAX,
};
use crate::wire::{GROUPS_MAX, User};
use consistency::wire::meta::{FileKind, Name, NewNode, RenameMode, StatFs, XattrMode};
use gfs::error::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, RenameFlags, open, readlinkat, renameat2};
use nix::sys::stat::{self as mode, SFlag, UtimensatFlags, mkdirat, mknodat, utimensat};
use nix::sys::statfs::fstatfs;
use nix::sys::time::TimeSpec;
use nix::unistd::{
    Gid, LinkatFlags, Uid, UnlinkatFlags, Whence, fchownat, linkat, lseek, symlinkat, truncate,
    unlinkat,
};
use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Permission bits that a file and a directory of an export may get and show: the bits that change the user or the group
/// of who executes a file are without effect here.
pub(super) const FILE_MODE: u32 = 0o1777;
const DIR_MODE: u32 = 0o3777;
/// Upper limit of the names of one inode's attributes, the kernel's own.
const XATTR_NAMES_BYTES_MAX: usize = 64 << 10;
/// Extended attributes that are carried: those of users, and ACLs. Others mean something to the kernel of their node.
const XATTRS: [&[u8]; 3] = [
    b"user.",
    b"system.posix_acl_access",
    b"system.posix_acl_default",
];

impl What {
    /// Returns whether it changes anything.
    const fn changes(&self) -> bool {
        match self {
            Self::Lookup { .. }
            | Self::Stat(_)
            | Self::Readlink(_)
            | Self::List { .. }
            | Self::SyncDir(_)
            | Self::StatFs(_)
            | Self::Getxattr { .. }
            | Self::Listxattr(_) => false,
            Self::Change { .. }
            | Self::Make { .. }
            | Self::Link { .. }
            | Self::Unlink { .. }
            | Self::Rename { .. }
            | Self::Setxattr { .. }
            | Self::Removexattr { .. } => true,
        }
    }
}

/// Answers a request.
pub(super) fn answer(exports: &Exports, request: Request) -> Result<Reply, Errno> {
    let Request { who, what } = request;
    if who.groups.len() > GROUPS_MAX {
        return Err(Errno::EINVAL);
    }
    if exports.read_only && what.changes() {
        return Err(Errno(libc::EROFS));
    }
    let who = &who;
    let done = |()| Reply::Done;
    match what {
        What::Lookup { dir, name } => lookup(exports, who, &dir, &name).map(Reply::Stat),
        What::Stat(at) => Ok(Reply::Stat(exports.find(&at)?.stat().clone())),
        What::Change { at, change } => {
            let file = exports.file(&at)?;
            as_user(who, 0, || {
                let kind = file.kind();
                alter(file.as_fd(), &file.path(), kind, change, |size| {
                    truncate(file.path().as_c_str(), size).map_err(errno)
                })
            })?;
            file.now().map(Reply::Stat)
        }
        What::Readlink(at) => {
            let file = exports.file(&at)?;
            let target = readlinkat(&file, "").map_err(errno)?;
            Ok(Reply::Data(target.into_vec().into()))
        }
        What::List { dir, after, limit } => {
            list(exports, who, &dir, after, limit).map(Reply::Listing)
        }
        What::Make {
            dir,
            name,
            node,
            mode,
        } => make(exports, who, &dir, &name, &node, mode).map(Reply::Stat),
        What::Link { at, dir, name } => {
            let (file, dir) = (exports.file(&at)?, exports.file(&dir)?.dir()?);
            let name = OsStr::from_bytes(name.as_bytes());
            as_user(who, 0, || {
                let follow = LinkatFlags::AT_SYMLINK_FOLLOW;
                linkat(AT_FDCWD, file.path().as_c_str(), &dir, name, follow).map_err(errno)
            })?;
            file.now().map(Reply::Stat)
        }
        What::Unlink { dir, name, is_dir } => {
            let dir = exports.file(&dir)?.dir()?;
            let flag = if is_dir {
                UnlinkatFlags::RemoveDir
            } else {
                UnlinkatFlags::NoRemoveDir
            };
            let name = OsStr::from_bytes(name.as_bytes());
            as_user(who, 0, || unlinkat(&dir, name, flag).map_err(errno)).map(done)
        }
        What::Rename {
            dir,
            name,
            to,
            to_name,
            mode,
        } => {
            let (dir, to) = (exports.file(&dir)?.dir()?, exports.file(&to)?.dir()?);
            let (name, to_name) = (name.as_bytes(), to_name.as_bytes());
            let (name, to_name) = (OsStr::from_bytes(name), OsStr::from_bytes(to_name));
            let flags = match mode {
                RenameMode::Replace => RenameFlags::empty(),
                RenameMode::NoReplace => RenameFlags::RENAME_NOREPLACE,
                RenameMode::Exchange => RenameFlags::RENAME_EXCHANGE,
            };
            as_user(who, 0, || {
                renameat2(&dir, name, &to, to_name, flags).map_err(errno)
            })
            .map(done)
        }
        What::SyncDir(at) => {
            let dir = exports.file(&at)?.dir()?;
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let dir = open(dir.path().as_c_str(), flags, mode::Mode::empty()).map_err(errno)?;
            nix::unistd::fsync(&dir).map_err(errno).map(done)
        }
        What::StatFs(at) => room(exports, &at).map(Reply::StatFs),
        What::Getxattr { at, name } => {
            let (path, name, _file) = xattr(exports, &at, &name, libc::ENODATA)?;
            let value = as_user(who, 0, || {
                sys::getxattr(&path, &name, XATTR_BYTES_MAX).map_err(errno)
            });
            value.map(|value| Reply::Data(value.into()))
        }
        What::Listxattr(at) => {
            let Found::File(file) = exports.find(&at)? else {
                return Ok(Reply::Names(Vec::new()));
            };
            let names = as_user(who, 0, || {
                sys::listxattr(&file.path(), XATTR_NAMES_BYTES_MAX).map_err(errno)
            })?;
            let names = names.split(|&byte| byte == 0);
            let names = names.filter(|name| is_carried(name));
            let names = names.filter_map(|name| Name::new(name.to_vec()).ok());
            Ok(Reply::Names(names.collect()))
        }
        What::Setxattr {
            at,
            name,
            value,
            mode,
        } => {
            if value.len() > XATTR_BYTES_MAX {
                return Err(Errno(libc::E2BIG));
            }
            let (path, name, _file) = xattr(exports, &at, &name, libc::EOPNOTSUPP)?;
            let flags = match mode {
                XattrMode::Any => 0,
                XattrMode::Create => libc::XATTR_CREATE,
                XattrMode::Replace => libc::XATTR_REPLACE,
            };
            as_user(who, 0, || {
                sys::setxattr(&path, &name, &value, flags).map_err(errno)
            })
            .map(done)
        }
        What::Removexattr { at, name } => {
            let (path, name, _file) = xattr(exports, &at, &name, libc::EOPNOTSUPP)?;
            as_user(who, 0, || sys::removexattr(&path, &name).map_err(errno)).map(done)
        }
    }
}

fn lookup(exports: &Exports, who: &User, dir: &At, name: &Name) -> Result<Stat, Errno> {
    let path = dir.path.join(name)?;
    let whatever = |path| At { path, ident: None };
    match exports.find(dir)? {
        // What is exported lies there, whatever is under that name in the directory around it.
        Found::File(_) if exports.is_exported(&path) => exports
            .find(&whatever(path))
            .map(|found| found.stat().clone()),
        Found::File(dir) => {
            let dir = dir.dir()?;
            as_user(who, 0, || stat_at(dir.as_fd(), name))?.ok_or(Errno::ENOENT)
        }
        Found::Way(_, names) if names.contains(name) => {
            let found = exports.find(&whatever(path));
            // An exported directory that is not there.
            let found = found.map_err(|error| match error {
                Errno::ESTALE => Errno::ENOENT,
                error => error,
            })?;
            Ok(found.stat().clone())
        }
        Found::Way(..) => Err(Errno::ENOENT),
    }
}

fn list(
    exports: &Exports,
    who: &User,
    at: &At,
    after: u64,
    limit: u32,
) -> Result<Vec<Entry>, Errno> {
    let limit = limit.clamp(1, PAGE_ENTRIES_MAX) as usize;
    let dir = match exports.find(at)? {
        Found::File(dir) => dir.dir()?,
        Found::Way(_, names) => {
            let after = usize::try_from(after).unwrap_or(usize::MAX);
            let names = names.into_iter().zip(1..).skip(after).take(limit);
            let entries = names.filter_map(|(name, cookie)| {
                let path = at.path.join(&name).ok()?;
                let found = exports.find(&At { path, ident: None }).ok()?;
                Some(entry(name, found.stat(), cookie))
            });
            return Ok(entries.collect());
        }
    };
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let opened = as_user(who, 0, || {
        open(dir.path().as_c_str(), flags, mode::Mode::empty()).map_err(errno)
    })?;
    let after = i64::try_from(after).map_err(|_| Errno::EINVAL)?;
    if after > 0 {
        lseek(&opened, after, Whence::SeekSet).map_err(errno)?;
    }
    let mut entries = Vec::new();
    loop {
        let dents = sys::dents(opened.as_fd()).map_err(errno)?;
        if dents.is_empty() {
            return Ok(entries);
        }
        for dent in dents {
            // `.` and `..` are no names.
            let Ok(name) = Name::new(dent.name) else {
                continue;
            };
            let cookie = u64::try_from(dent.cookie).map_err(|_| Errno::EIO)?;
            let exported = at
                .path
                .join(&name)
                .is_ok_and(|path| exports.is_exported(&path));
            let stat = match stat_at(opened.as_fd(), &name) {
                Ok(stat) => stat,
                // It has gone meanwhile.
                Err(Errno::ENOENT) => continue,
                Err(error) => return Err(error),
            };
            // Of a mount point the user's node is told when it looks it up; here its kind is enough.
            let stat = match stat {
                Some(stat) => stat,
                None if exported => dir.stat.clone(),
                None => continue,
            };
            entries.push(entry(name, &stat, cookie));
            if entries.len() == limit {
                return Ok(entries);
            }
        }
    }
}

const fn entry(name: Name, stat: &Stat, cookie: u64) -> Entry {
    Entry {
        name,
        ident: stat.ident,
        kind: stat.attr.kind,
        cookie,
    }
}

fn make(
    exports: &Exports,
    who: &User,
    at: &At,
    name: &Name,
    node: &NewNode,
    bits: Mode,
) -> Result<Stat, Errno> {
    let dir = exports.file(at)?.dir()?;
    let os_name = OsStr::from_bytes(name.as_bytes());
    let bits_of = |most| mode::Mode::from_bits_truncate(bits.mode & most);
    as_user(who, bits.umask, || {
        let special = |kind| mknodat(&dir, os_name, kind, bits_of(FILE_MODE), 0).map_err(errno);
        match node {
            NewNode::File => special(SFlag::S_IFREG),
            NewNode::Dir => mkdirat(&dir, os_name, bits_of(DIR_MODE)).map_err(errno),
            NewNode::Symlink(target) => {
                symlinkat(OsStr::from_bytes(target), &dir, os_name).map_err(errno)
            }
            NewNode::Special { kind, .. } => match kind {
                FileKind::Fifo => special(SFlag::S_IFIFO),
                FileKind::Socket => special(SFlag::S_IFSOCK),
                FileKind::Char | FileKind::Block => Err(Errno::EPERM),
                FileKind::File | FileKind::Dir | FileKind::Symlink => Err(Errno::EINVAL),
            },
        }?;
        stat_at(dir.as_fd(), name)?.ok_or(Errno::EIO)
    })
}

/// Changes attributes, as the user that the thread is. `resize` does so with the size.
pub(super) fn alter(
    file: BorrowedFd<'_>,
    path: &CStr,
    kind: FileKind,
    change: Change,
    resize: impl FnOnce(i64) -> Result<(), Errno>,
) -> Result<(), Errno> {
    if let Some(size) = change.size {
        match kind {
            FileKind::File => resize(i64::try_from(size).map_err(|_| Errno(libc::EFBIG))?)?,
            FileKind::Dir => return Err(Errno(libc::EISDIR)),
            _ => return Err(Errno::EINVAL),
        }
    }
    if change.uid.is_some() || change.gid.is_some() {
        let (uid, gid) = (change.uid.map(Uid::from_raw), change.gid.map(Gid::from_raw));
        fchownat(file, "", uid, gid, AtFlags::AT_EMPTY_PATH).map_err(errno)?;
    }
    if let Some(bits) = change.mode {
        let most = if kind == FileKind::Dir {
            DIR_MODE
        } else {
            FILE_MODE
        };
        let bits = mode::Mode::from_bits_truncate(bits & most);
        mode::fchmodat(AT_FDCWD, path, bits, mode::FchmodatFlags::FollowSymlink).map_err(errno)?;
    }
    if change.atime.is_some() || change.mtime.is_some() {
        let time = |time: Option<NewTime>| match time {
            None => TimeSpec::UTIME_OMIT,
            Some(NewTime::Now) => TimeSpec::UTIME_NOW,
            Some(NewTime::At(at)) => TimeSpec::new(at.secs, at.nanos.into()),
        };
        let (atime, mtime) = (time(change.atime), time(change.mtime));
        let follow = UtimensatFlags::FollowSymlink;
        utimensat(AT_FDCWD, path, &atime, &mtime, follow).map_err(errno)?;
    }
    Ok(())
}

fn room(exports: &Exports, at: &At) -> Result<StatFs, Errno> {
    let Found::File(file) = exports.find(at)? else {
        return Ok(StatFs::default());
    };
    let told = fstatfs(&file).map_err(errno)?;
    let block = u64::try_from(told.block_size()).unwrap_or(0);
    let bytes = |blocks: u64| blocks.saturating_mul(block);
    Ok(StatFs {
        bytes_total: bytes(told.blocks()),
        bytes_free: bytes(told.blocks_available()),
        inodes: told.files().saturating_sub(told.files_free()),
        // Some file systems make them as they need them, and tell 0 of 0.
        inodes_free: (told.files() > 0).then(|| told.files_free()),
    })
}

/// Finds whose extended attribute is meant; `other` is the errno for one that is not carried.
fn xattr(
    exports: &Exports,
    at: &At,
    name: &Name,
    other: i32,
) -> Result<(std::ffi::CString, std::ffi::CString, Held), Errno> {
    if !is_carried(name.as_bytes()) {
        return Err(Errno(other));
    }
    let file = exports.file(at).map_err(|error| match error.0 {
        // Made-up directories have none.
        libc::EROFS => Errno(other),
        _ => error,
    })?;
    let name = sys::string(name.as_bytes()).map_err(errno)?;
    Ok((file.path(), name, file))
}

fn is_carried(name: &[u8]) -> bool {
    XATTRS.iter().any(|&carried| match carried.last() {
        Some(b'.') => name.starts_with(carried),
        _ => name == carried,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_that_mean_something_to_a_kernel_are_not_carried() {
        for carried in [
            "user.a",
            "system.posix_acl_access",
            "system.posix_acl_default",
        ] {
            assert!(is_carried(carried.as_bytes()), "{carried}");
        }
        for other in [
            "security.capability",
            "security.selinux",
            "trusted.overlay.opaque",
            "system.posix_acl_access2",
            "system.",
            "user",
            "",
        ] {
            assert!(!is_carried(other.as_bytes()), "{other}");
        }
    }
}
