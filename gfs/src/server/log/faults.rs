//! A disk that fails, for tests: what the log's writer meets instead of a sound one.

use super::store::{Shared, key};
use super::writer::Job;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// No room.
    Full,
    /// EIO.
    Broken,
    /// Half of what is appended gets there, then EIO.
    Torn,
    /// Each write takes so long.
    Slow(Duration),
}

/// By the log's directory.
static FAULTS: Mutex<BTreeMap<PathBuf, Fault>> = Mutex::new(BTreeMap::new());

/// From now on the disk under a log behaves so.
pub(super) fn set(dir: &Path, fault: Option<Fault>) {
    let mut faults = FAULTS.lock().expect("no holder panics");
    match fault {
        Some(fault) => drop(faults.insert(dir.into(), fault)),
        None => drop(faults.remove(dir)),
    }
}

/// What a write meets.
pub(super) fn meet(shared: &Shared, job: &Job) -> io::Result<()> {
    let fault = {
        let faults = FAULTS.lock().expect("no holder panics");
        faults.get(shared.disk.path()).copied()
    };
    match fault {
        None => Ok(()),
        Some(Fault::Full) => Err(io::ErrorKind::StorageFull.into()),
        Some(Fault::Broken) => Err(io::Error::from_raw_os_error(libc::EIO)),
        Some(Fault::Torn) => {
            if let Job::Append(entries, _) = job {
                let half = entries.iter().take(entries.len().div_ceil(2));
                let changes =
                    half.map(|(index, entry)| (key(*index).to_vec(), Some(entry.clone())));
                shared.table.commit(changes.collect(), false)?;
            }
            Err(io::Error::from_raw_os_error(libc::EIO))
        }
        Some(Fault::Slow(time)) => {
            std::thread::sleep(time);
            Ok(())
        }
    }
}
