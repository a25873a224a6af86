//! Opening a file of an exported directory. Only regular files are opened: a device would do things, a pipe would wait.

use super::hands::as_user;
use super::ops::FILE_MODE;
use super::place::{Exports, Held, beneath, errno, stat_of};
use super::wire::{FileHow, OpenFile, Stat};
use crate::wire::{GROUPS_MAX, User};
use consistency::wire::meta::FileKind;
use gfs::error::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open, openat2};
use nix::sys::stat::Mode;
use nix::unistd::{AccessFlags, faccessat};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// How often a file that comes and goes is tried to be opened or made.
const OPEN_TRIES: usize = 16;

/// Opens a file, and makes it before if that is asked.
pub(super) fn open_file(exports: &Exports, asked: &OpenFile) -> Result<(File, Stat), Errno> {
    let OpenFile {
        who,
        at,
        how,
        create,
    } = asked;
    if who.groups.len() > GROUPS_MAX || !(how.read || how.write) {
        return Err(Errno::EINVAL);
    }
    if exports.read_only && (how.write || create.is_some()) {
        return Err(Errno(libc::EROFS));
    }
    let Some(create) = create else {
        return open_held(&exports.file(at)?, who, *how);
    };
    let dir = exports.file(at)?.dir()?;
    let name = OsStr::from_bytes(create.name.as_bytes());
    let bits = Mode::from_bits_truncate(create.mode.mode & FILE_MODE);
    // Never O_CREAT alone: it would open whatever device is there.
    let flags = flags(*how) | OFlag::O_CREAT | OFlag::O_EXCL;
    for _ in 0..OPEN_TRIES {
        let made = as_user(who, create.mode.umask, || {
            openat2(&dir, name, beneath(flags).mode(bits)).map_err(errno)
        });
        match made {
            Ok(file) => return opened(file),
            Err(Errno(libc::EEXIST)) if !create.exclusive => {}
            Err(error) => return Err(error),
        }
        let there = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat2(&dir, name, beneath(there)).map_err(errno) {
            Ok(there) => return open_held(&Held::of(there)?, who, *how),
            Err(Errno::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Errno::ESTALE)
}

fn open_held(file: &Held, who: &User, how: FileHow) -> Result<(File, Stat), Errno> {
    match file.kind() {
        FileKind::File => {}
        FileKind::Dir => return Err(Errno(libc::EISDIR)),
        // The caller's kernel follows it, from where it is for the caller.
        FileKind::Symlink => return Err(Errno::ESTALE),
        // Pipes and sockets join processes of one node; devices are without effect.
        FileKind::Fifo | FileKind::Socket | FileKind::Char | FileKind::Block => {
            return Err(Errno::EACCES);
        }
    }
    let again = || open(file.path().as_c_str(), flags(how), Mode::empty()).map_err(errno);
    let execute = || {
        let flag = AtFlags::AT_EACCESS;
        let may = AccessFlags::X_OK;
        faccessat(AT_FDCWD, file.path().as_c_str(), may, flag).map_err(errno)
    };
    let done = as_user(who, 0, again);
    match done {
        Err(Errno::EACCES) if how.execute && !how.write && as_user(who, 0, execute).is_ok() => {
            opened(again()?)
        }
        done => opened(done?),
    }
}

fn opened(file: OwnedFd) -> Result<(File, Stat), Errno> {
    let stat = stat_of(file.as_fd())?;
    Ok((file.into(), stat))
}

fn flags(how: FileHow) -> OFlag {
    let access = match (how.read, how.write) {
        (true, true) => OFlag::O_RDWR,
        (false, true) => OFlag::O_WRONLY,
        _ => OFlag::O_RDONLY,
    };
    let extra = [
        (how.durable, OFlag::O_DSYNC),
        (how.noatime, OFlag::O_NOATIME),
    ];
    let extra = extra
        .into_iter()
        .filter_map(|(set, flag)| set.then_some(flag));
    extra.fold(
        access | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK,
        OFlag::union,
    )
}
