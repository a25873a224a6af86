//! A disk's file in the tree.

use super::disk::{Backing, Since, Source};
use crate::devices::sys;
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Mutex;

/// Where a disk is in the tree, and what was known of it when it was opened last.
#[derive(Debug)]
pub(super) struct InTree<T> {
    path: PathBuf,
    read_only: bool,
    claims: Mutex<Option<Claims>>,
    tell: T,
}

/// How a disk is and was written, as its node tells (DV6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claims {
    /// When that node's daemon was started: it knows of nothing before.
    since: u64,
    /// How often other nodes than this one have opened it to write.
    others: u64,
    /// How many files of this node that can write it are open.
    open: u64,
}

impl Claims {
    const fn new([since, others, open]: [u64; 3]) -> Self {
        Self {
            since,
            others,
            open,
        }
    }

    /// Returns whether another node may have written it since then.
    const fn written_since(self, then: Self) -> bool {
        if self.since == then.since {
            self.others != then.others
        } else {
            self.others != 0
        }
    }
}

impl<T: Fn(bool) + Send + Sync> InTree<T> {
    pub(super) const fn new(path: PathBuf, read_only: bool, tell: T) -> Self {
        Self {
            path,
            read_only,
            claims: Mutex::new(None),
            tell,
        }
    }

    fn since(&self, file: &File) -> io::Result<Since> {
        let now = match sys::disk_claims(file.as_fd()) {
            Ok(told) => Claims::new(told),
            // Its node is of an earlier version, which does not tell.
            Err(nix::Error::ENOTTY) => return Ok(Since::Untouched),
            Err(error) => return Err(error.into()),
        };
        let mut before = self.claims.lock().expect("no holder panics");
        let Some(then) = *before else {
            *before = Some(now);
            return Ok(Since::Untouched);
        };
        if now.written_since(then) {
            return Ok(Since::Written);
        }
        // What the file that has ended had begun is not done yet: it would come after what is written again.
        if now.open > 1 {
            return Err(nix::Error::EBUSY.into());
        }
        *before = Some(now);
        Ok(Since::Untouched)
    }
}

impl<T: Fn(bool) + Send + Sync> Source for InTree<T> {
    type File = File;

    fn open(&self) -> io::Result<(File, Since)> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(!self.read_only).open(&self.path)?;
        let since = if self.read_only {
            Since::Untouched
        } else {
            self.since(&file)?
        };
        Ok((file, since))
    }

    fn tell(&self, lost: bool) {
        (self.tell)(lost);
    }
}

impl Backing for File {
    fn read_at(&self, data: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(data, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(data, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn trim(&self, offset: u64, len: u64) -> io::Result<()> {
        let number = |number| i64::try_from(number).map_err(|_| nix::Error::EINVAL);
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        Ok(fallocate(self, punch, number(offset)?, number(len)?)?)
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(sys::disk_bytes(self.as_fd())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_written_it() {
        let check = |then: [u64; 3], now: [u64; 3], expected| {
            let written = Claims::new(now).written_since(Claims::new(then));
            assert_eq!(written, expected, "{then:?} {now:?}");
        };
        check([7, 0, 1], [7, 0, 1], false);
        check([7, 3, 1], [7, 3, 2], false);
        check([7, 3, 1], [7, 4, 1], true);
        // Its daemon has been started anew: all that was written since is known.
        check([7, 3, 1], [9, 0, 1], false);
        check([7, 0, 1], [9, 1, 1], true);
    }
}
