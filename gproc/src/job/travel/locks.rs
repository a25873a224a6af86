//! The locks of files that a job holds (flock(2), fcntl(2)). The cluster keeps them by node, and CRIU, which makes only
//! those again that the kernel knows of, does not see them: such a job stays until it has given them back (MV7).

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::sync::Arc;

/// Tells the inodes of the tree that something of this node has locked, each with the processes that asked.
pub type Locked = Arc<dyn Fn() -> Vec<(u64, u32)> + Send + Sync>;

/// What is locked by whom.
#[derive(Clone)]
pub(in crate::job) struct FileLocks(Locked);

impl FileLocks {
    pub(in crate::job) fn new(locked: Locked) -> Self {
        Self(locked)
    }

    /// Returns whether processes hold locks: one of them has asked, or somebody who has ended since, as flock(1) does
    /// for a script, and one of them has that file open.
    pub(super) fn holds(&self, members: &BTreeSet<i32>) -> io::Result<bool> {
        let mut inherited = BTreeSet::new();
        for (inode, pid) in (self.0)() {
            if members.contains(&pid.cast_signed()) {
                return Ok(true);
            }
            if !fs::exists(format!("/proc/{pid}"))? {
                inherited.insert(inode);
            }
        }
        Ok(!inherited.is_empty()
            && members
                .iter()
                .any(|pid| has_open(*pid, &inherited).unwrap_or(false)))
    }
}

/// Returns whether a process has a file of the tree open that is one of these.
fn has_open(pid: i32, inodes: &BTreeSet<u64>) -> io::Result<bool> {
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        let info = fs::read_to_string(entry?.path())?;
        let inode = info.lines().find_map(|line| line.strip_prefix("ino:"));
        let inode = inode.and_then(|inode| inode.trim().parse().ok());
        // One of the same number on another file system is taken for it: then it only stays for longer.
        if inode.is_some_and(|inode| inodes.contains(&inode)) {
            return Ok(true);
        }
    }
    Ok(false)
}

impl fmt::Debug for FileLocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileLocks").finish_non_exhaustive()
    }
}
