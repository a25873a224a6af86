//! The processes whose inodes the kernel knows.

use super::ino::Tag;
use crate::pids::ClusterPid;
use crate::wire::{Birth, Identity};
use std::collections::HashMap;
use std::sync::Mutex;

/// Who stands behind a pid and tag, as long as the kernel has an inode of it.
#[derive(Debug, Default)]
pub(super) struct Known {
    processes: Mutex<HashMap<(ClusterPid, Tag), Process>>,
}

#[derive(Debug)]
struct Process {
    identity: Identity,
    /// Of the directory and its files together.
    lookups: u64,
}

impl Known {
    /// Counts a lookup of a process's inode and returns its tag. No other process has that pid and tag meanwhile.
    pub(super) fn look_up(&self, identity: Identity, own: bool) -> Tag {
        let mut processes = self.processes.lock().expect("no holder panics");
        let mut tag = first_tag(identity.birth, own);
        loop {
            let process = processes.entry((identity.pid, tag)).or_insert(Process {
                identity,
                lookups: 0,
            });
            if process.identity.birth == identity.birth {
                process.identity = identity;
                process.lookups += 1;
                return tag;
            }
            // An inode of an earlier process with the same pid and tag is in use.
            tag = tag.next();
        }
    }

    /// Returns who it is.
    pub(super) fn identity(&self, pid: ClusterPid, tag: Tag) -> Option<Identity> {
        let processes = self.processes.lock().expect("no holder panics");
        processes.get(&(pid, tag)).map(|process| process.identity)
    }

    /// Takes lookups back.
    pub(super) fn forget(&self, pid: ClusterPid, tag: Tag, lookups: u64) {
        let mut processes = self.processes.lock().expect("no holder panics");
        if let Some(process) = processes.get_mut(&(pid, tag)) {
            process.lookups = process.lookups.saturating_sub(lookups);
            if process.lookups == 0 {
                processes.remove(&(pid, tag));
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.processes.lock().expect("no holder panics").len()
    }
}

/// Returns the tag that a process has unless it is taken; also good for a listing that makes no inode known.
pub(super) fn first_tag(birth: Birth, own: bool) -> Tag {
    // Fibonacci hashing: spreads times that lie close together over the upper bits.
    Tag::new(birth.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32, own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use consistency::NodeId;

    fn identity(birth: u64, uid: u32) -> Identity {
        Identity {
            pid: ClusterPid::of(NodeId(1), 1).expect("a pid"),
            birth: Birth(birth),
            uid,
            gid: 0,
            hidden: None,
        }
    }

    #[test]
    fn a_tag_stands_for_one_process_while_it_is_known() {
        let known = Known::default();
        // Multiples of 2^51 have the same tag.
        let (old, new) = (identity(0, 5), identity(1 << 51, 6));
        let pid = old.pid;
        assert_eq!(first_tag(old.birth, false), first_tag(new.birth, false));
        let (old_tag, new_tag) = (known.look_up(old, false), known.look_up(new, false));
        assert_ne!(old_tag, new_tag);
        assert_eq!(known.identity(pid, old_tag), Some(old));
        assert_eq!(known.identity(pid, new_tag), Some(new));
        assert_eq!(known.look_up(identity(1 << 51, 7), false), new_tag);
        assert_eq!(known.identity(pid, new_tag), Some(identity(1 << 51, 7)));
        assert_eq!(known.look_up(old, false), old_tag);
        known.forget(pid, old_tag, 1);
        assert_eq!(known.identity(pid, old_tag), Some(old));
        known.forget(pid, old_tag, 1);
        assert_eq!(known.identity(pid, old_tag), None);
        let own_tag = known.look_up(old, true);
        assert_ne!(own_tag, old_tag);
        known.forget(pid, own_tag, 1);
        known.forget(pid, new_tag, 1);
        assert_eq!(known.len(), 1);
        known.forget(pid, new_tag, 9);
        assert_eq!(known.len(), 0);
    }
}
