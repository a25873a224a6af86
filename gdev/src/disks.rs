//! The claims on this node's disks, with what makes its own kernel respect them.
//!
//! The lock is held while a disk is claimed or given back, so that nobody finds it half claimed.

use crate::claims::{Busy, Claim, Claims};
use crate::record::Record;
use crate::rights::Refusal;
use crate::wire::Device;
use gfs::error::Errno;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// The disks of this node that other nodes write or claim.
#[derive(Debug)]
pub(crate) struct Disks {
    claimed: Mutex<Claimed>,
    record: Record,
}

#[derive(Debug, Default)]
struct Claimed {
    claims: Claims,
    /// Opened with O_EXCL: what is mounted, swap or part of an array here cannot be, and cannot become it meanwhile.
    held: BTreeMap<Device, Arc<File>>,
}

/// A claim, for as long as it lives. It must outlive every write that was begun under it.
#[derive(Debug)]
pub(crate) struct Guard {
    disks: Arc<Disks>,
    claim: Claim,
    /// As in [`Claimed::held`]; gone only in the drop.
    held: Option<Arc<File>>,
}

impl Disks {
    /// Nobody has claimed any. Who has written them is kept at `record`, or not at all.
    pub(crate) fn new(record: Option<PathBuf>) -> Self {
        let (record, writers) = Record::open(record);
        let claimed = Claimed {
            claims: Claims::new(writers),
            held: BTreeMap::new(),
        };
        Self {
            claimed: Mutex::new(claimed),
            record,
        }
    }

    /// Claims the disk that is at `path`. Blocks.
    pub(crate) fn claim(self: &Arc<Self>, claim: Claim, path: &Path) -> Result<Guard, Errno> {
        let mut claimed = self.claimed.lock().expect("no holder panics");
        let claimed = &mut *claimed;
        let busy = |busy: Busy| Refusal::from(busy).errno();
        claimed.claims.open(claim).map_err(busy)?;
        let held = match claimed.held.entry(claim.device) {
            Entry::Occupied(held) => Arc::clone(held.get()),
            Entry::Vacant(free) => match hold(path) {
                Ok(held) => Arc::clone(free.insert(Arc::new(held))),
                Err(error) => {
                    claimed.claims.close(claim);
                    return Err(error.raw_os_error().map_or(Errno::EIO, Errno));
                }
            },
        };
        let kept = match claim.write {
            true => self.record.keep(claimed.claims.writers()),
            false => Ok(()),
        };
        if let Err(error) = kept {
            if claimed.claims.close(claim) {
                claimed.held.remove(&claim.device);
            }
            return Err(error.raw_os_error().map_or(Errno::EIO, Errno));
        }
        Ok(Guard {
            disks: Arc::clone(self),
            claim,
            held: Some(held),
        })
    }

    /// Returns what is in the way of a claim. Blocks.
    pub(crate) fn in_the_way(&self, claim: Claim, path: &Path) -> Option<Refusal> {
        let claimed = self.claimed.lock().expect("no holder panics");
        if let Some(busy) = claimed.claims.busy(&claim) {
            return Some(busy.into());
        }
        let free = claimed.held.contains_key(&claim.device)
            || hold(path).map_or_else(|error| error.raw_os_error() != Some(libc::EBUSY), |_| true);
        (!free).then_some(Refusal::InUse)
    }
}

impl Guard {
    /// Returns the disk as the kernel wants it for what drops pages of its cache: opened by who has claimed it.
    pub(crate) fn held(&self) -> &File {
        self.held.as_ref().expect("gone only in the drop")
    }

    /// Returns what who has claimed it is told (DV6): since when there are counts, how often other nodes have opened it to
    /// write since then, and how many opens to write there are.
    pub(crate) fn told(&self) -> [u64; 3] {
        let claimed = self.disks.claimed.lock().expect("no holder panics");
        let told = claimed.claims.told(self.claim.device, self.claim.node);
        [self.disks.record.since(), told.others, told.open]
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut claimed = self.disks.claimed.lock().expect("no holder panics");
        // The last of them before the claim: who comes next finds nothing half given back.
        self.held = None;
        if claimed.claims.close(self.claim) {
            claimed.held.remove(&self.claim.device);
        }
    }
}

fn hold(path: &Path) -> io::Result<File> {
    let open = |write| {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(write);
        options
            .custom_flags(libc::O_EXCL | libc::O_NONBLOCK)
            .open(path)
    };
    match open(true) {
        // A disk that cannot be written can be claimed all the same.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EROFS | libc::EACCES)) => {
            open(false)
        }
        opened => opened,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use consistency::NodeId;

    fn told(disks: &Arc<Disks>, node: u16, disk: &Path) -> [u64; 3] {
        let claim = Claim {
            device: Device {
                block: true,
                major: 7,
                minor: 0,
            },
            node: NodeId(node),
            write: true,
            exclusive: false,
        };
        let guard = disks.claim(claim, disk).expect("nobody writes it");
        guard.told()
    }

    #[test]
    fn who_has_written_is_known_after_a_restart() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (disk, record) = (dir.path().join("disk"), dir.path().join("record"));
        File::create(&disk).expect("what is opened in its place");
        let start = || Arc::new(Disks::new(Some(record.clone())));
        let first = told(&start(), 2, &disk);
        assert_eq!(first[1..], [0, 1]);
        // Another daemon is told, and a third one tells of it.
        assert_eq!(told(&start(), 3, &disk), [first[0], 1, 1]);
        assert_eq!(told(&start(), 2, &disk), [first[0], 1, 1]);
        std::fs::remove_file(&record).expect("it was kept");
        assert_ne!(told(&start(), 2, &disk)[0], first[0]);
        // What cannot be kept is not opened.
        std::fs::remove_file(&record).expect("it was kept");
        std::fs::create_dir(&record).expect("a directory");
        let claim = Claim {
            device: Device {
                block: true,
                major: 7,
                minor: 1,
            },
            node: NodeId(2),
            write: true,
            exclusive: false,
        };
        let disks = start();
        disks.claim(claim, &disk).expect_err("not kept");
        let claimed = disks.claimed.lock().expect("no holder panics");
        assert!(
            claimed
                .claims
                .busy(&Claim {
                    node: NodeId(3),
                    ..claim
                })
                .is_none()
        );
        assert!(claimed.held.is_empty());
    }
}
