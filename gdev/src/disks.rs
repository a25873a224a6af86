//! The claims on this node's disks, with what makes its own kernel respect them.
//!
//! The lock is held while a disk is claimed or given back, so that nobody finds it half claimed.

use crate::claims::{Busy, Claim, Claims};
use crate::rights::Refusal;
use crate::wire::Device;
use gfs::error::Errno;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

/// The disks of this node that other nodes write or claim.
#[derive(Debug)]
pub(crate) struct Disks {
    claimed: Mutex<Claimed>,
    /// Of this daemon's start: no two are the same.
    since: u64,
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
    /// Nobody has claimed any.
    pub(crate) fn new() -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let since = now.map_or(0, |now| now.as_nanos());
        Self {
            claimed: Mutex::default(),
            since: u64::try_from(since).unwrap_or(u64::MAX),
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

    /// Returns what who has claimed it is told (DV6): when this daemon was started, how often other nodes have opened it to
    /// write since then, and how many opens to write there are.
    pub(crate) fn told(&self) -> [u64; 3] {
        let claimed = self.disks.claimed.lock().expect("no holder panics");
        let told = claimed.claims.told(self.claim.device, self.claim.node);
        [self.disks.since, told.others, told.open]
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
