//! Directories outside the state directory that nodes need as mount points: `/cluster`, `/run/glu`.
//!
//! Several clusters use them at once, and removing one on which another mount namespace has mounted
//! something would unmount it there. So every init holds a shared flock on the directory, and only
//! who gets an exclusive one removes it, and only if a cluster made it: then it holds nothing but
//! the *marker* file.

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Where the tree is inside a node.
pub(super) const CLUSTER: &str = "/cluster";
/// The run directory inside a node.
pub(super) const RUN: &str = "/run/glu";

const MARKER: &str = ".glu-dev-made-this";
const MARKER_TEXT: &str = "A mount point of `glu dev`; the last cluster's end removes it.\n";
/// Removal takes microseconds; who waits longer waits for something else.
const HOLD_WAIT: Duration = Duration::from_secs(5);
const RETRY_PAUSE: Duration = Duration::from_millis(5);

/// Makes `dir` where it is missing and keeps it from being removed as long as the result lives.
pub(super) fn hold(dir: &Path) -> Result<Flock<File>> {
    let end = Instant::now() + HOLD_WAIT;
    loop {
        make(dir).with_context(|| format!("make the mount point {}", dir.display()))?;
        if let Some(held) = lock_current(dir, FlockArg::LockSharedNonblock)? {
            return Ok(held);
        }
        if Instant::now() > end {
            bail!(
                "{} stayed locked for {HOLD_WAIT:?}: see who holds it with `lslocks`",
                dir.display()
            );
        }
        std::thread::sleep(RETRY_PAUSE);
    }
}

/// Removes `dir` if a cluster made it and no node uses it.
pub(super) fn release(dir: &Path) -> Result<()> {
    let Ok(Some(_held)) = lock_current(dir, FlockArg::LockExclusiveNonblock) else {
        return Ok(());
    };
    let only_marker = fs::read_dir(dir)?.all(|entry| {
        entry.is_ok_and(|entry| entry.file_name().as_encoded_bytes() == MARKER.as_bytes())
    });
    let marker = dir.join(MARKER);
    if only_marker && marker.exists() {
        fs::remove_file(&marker).with_context(|| format!("remove {}", marker.display()))?;
        fs::remove_dir(dir).with_context(|| format!("remove {}", dir.display()))?;
    }
    Ok(())
}

/// Locks the file or directory at `path`; `None` when somebody else holds it, or it was replaced
/// or removed meanwhile.
pub(super) fn lock_current(path: &Path, how: FlockArg) -> Result<Option<Flock<File>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("open {}", path.display())),
    };
    let opened = file.metadata()?;
    let held = match Flock::lock(file, how) {
        Ok(held) => held,
        Err((_, nix::errno::Errno::EWOULDBLOCK | nix::errno::Errno::EINTR)) => return Ok(None),
        Err((_, e)) => return Err(e).with_context(|| format!("lock {}", path.display())),
    };
    // Without this look a waiter could hold the lock of a file that its last holder unlinked.
    let current =
        fs::metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (opened.dev(), opened.ino()));
    Ok(current.then_some(held))
}

fn make(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Ok(()) => fs::write(dir.join(MARKER), MARKER_TEXT),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_user_removes_what_the_first_made() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let dir = root.path().join("mnt");
        let first = hold(&dir).expect("made and held");
        let second = hold(&dir).expect("held again");
        drop(first);
        release(&dir).expect("nothing to do while it is held");
        assert!(dir.is_dir(), "somebody still holds it");
        drop(second);
        release(&dir).expect("removed");
        assert!(!dir.exists(), "nobody holds it any more");
        release(&dir).expect("once is enough");
    }

    #[test]
    fn what_was_there_before_stays() {
        let root = tempfile::tempdir().expect("a temporary directory");
        drop(hold(root.path()).expect("held"));
        release(root.path()).expect("nothing to do");
        assert!(root.path().is_dir(), "no cluster made it");
    }

    #[test]
    fn what_got_content_stays() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let dir = root.path().join("mnt");
        drop(hold(&dir).expect("made"));
        fs::write(dir.join("data"), "precious").expect("write a file");
        release(&dir).expect("nothing to do");
        assert!(dir.join("data").exists(), "it is not empty");
    }
}
