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
    watch: Mutex<Watch>,
    tell: T,
}

/// How a disk is and was written, as its node tells (DV6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claims {
    /// Since when that node counts, also through restarts of its daemon: it knows of nothing before.
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
}

/// Finds out, from one opening of the file to the next, whether another node has written the disk (SD3).
#[derive(Debug, Default)]
struct Watch {
    before: Option<Claims>,
    #[cfg(test)]
    mutant: Option<Mutant>,
}

/// What its tests have to catch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    /// What other nodes have done does not count.
    OverlooksOthers,
    /// A node that counts anew tells all.
    TrustsNewCounts,
    /// What was counted before is compared with what is counted anew.
    ForgetsSince,
    /// What the ended file had begun is not waited for.
    WaitsForNothing,
}

impl Watch {
    /// The file was opened; its node tells this. Fails if what the file that has ended had begun is not done yet: it would come
    /// after what is written again.
    fn opened(&mut self, now: Claims) -> io::Result<Since> {
        let Some(then) = self.before else {
            self.before = Some(now);
            return Ok(Since::Untouched);
        };
        if self.written_since(then, now) {
            return Ok(Since::Written);
        }
        if now.open > 1 && !self.is(Mutant::WaitsForNothing) {
            return Err(nix::Error::EBUSY.into());
        }
        self.before = Some(now);
        Ok(Since::Untouched)
    }

    /// Returns whether another node may have written it since then.
    fn written_since(&self, then: Claims, now: Claims) -> bool {
        if now.since == then.since || self.is(Mutant::ForgetsSince) {
            now.others != then.others && !self.is(Mutant::OverlooksOthers)
        } else {
            // What was before that node began to count is not known.
            now.others != 0 || !self.is(Mutant::TrustsNewCounts)
        }
    }

    #[cfg(test)]
    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self, reason = "as in tests")]
    const fn is(&self, _: Mutant) -> bool {
        false
    }
}

impl<T: Fn(bool) + Send + Sync> InTree<T> {
    pub(super) fn new(path: PathBuf, read_only: bool, tell: T) -> Self {
        Self {
            path,
            read_only,
            watch: Mutex::default(),
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
        self.watch.lock().expect("no holder panics").opened(now)
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
mod tests;
