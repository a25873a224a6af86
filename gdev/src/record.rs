//! Keeps who has opened which disk to write (DV6) in a file: another node's writes are not forgotten with the daemon.
//!
//! | state | event | then |
//! | --- | --- | --- |
//! | no file, or none that can be understood | the daemon starts | counts begin anew, with a number that none had before |
//! | a file | the daemon starts | they go on, with the same number |
//! | - | a disk is opened to write | the file is durable before that is answered |
//! | it cannot be written | a disk is opened to write | it is removed: the next daemon begins anew |
//! | nor removed | a disk is opened to write | refused |
//!
//! The file is text: [`TITLE`] and the number, then a line of major, minor, node and count for each.

use crate::wire::Device;
use consistency::NodeId;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What the file begins with.
const TITLE: &str = "disks written by nodes, 1, since";

/// How often which node has opened which disk to write.
pub(crate) type Writers = BTreeMap<(Device, NodeId), u64>;

/// Where the counts are kept.
#[derive(Debug)]
pub(crate) struct Record {
    /// `None`: nowhere.
    path: Option<PathBuf>,
    /// Names these counts: no others have the same.
    since: u64,
}

impl Record {
    /// Returns what was kept at `path`, or begins anew.
    pub(crate) fn open(path: Option<PathBuf>) -> (Self, Writers) {
        let kept = path.as_deref().and_then(load);
        let (since, writers) = kept.unwrap_or_else(|| (now(), Writers::new()));
        (Self { path, since }, writers)
    }

    pub(crate) const fn since(&self) -> u64 {
        self.since
    }

    /// Makes the counts durable. Fails if a later daemon would find older ones. Blocks.
    pub(crate) fn keep(&self, writers: &Writers) -> io::Result<()> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        let Err(error) = save(path, self.since, writers) else {
            return Ok(());
        };
        tracing::warn!(path = %path.display(), %error, "who has written disks cannot be kept");
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => sync_dir(path),
        }
    }
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.map_or(0, |now| now.as_nanos());
    u64::try_from(now).unwrap_or(u64::MAX)
}

fn load(path: &Path) -> Option<(u64, Writers)> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "who has written disks is not known");
            return None;
        }
    };
    let kept = parse(&text);
    if kept.is_none() {
        tracing::warn!(path = %path.display(), "not understood: who has written disks is not known");
    }
    kept
}

fn parse(text: &str) -> Option<(u64, Writers)> {
    // What was written ends with a newline.
    let mut lines = text.strip_suffix('\n')?.split('\n');
    let since = lines.next()?.strip_prefix(TITLE)?.trim().parse().ok()?;
    let writer = |line: &str| {
        let mut words = line.split(' ');
        let major = words.next()?.parse().ok()?;
        let minor = words.next()?.parse().ok()?;
        let node = NodeId(words.next()?.parse().ok()?);
        let count = words.next()?.parse().ok()?;
        let device = Device {
            block: true,
            major,
            minor,
        };
        words.next().is_none().then_some(((device, node), count))
    };
    let writers = lines.map(writer).collect::<Option<_>>()?;
    Some((since, writers))
}

fn save(path: &Path, since: u64, writers: &Writers) -> io::Result<()> {
    let mut text = format!("{TITLE} {since}\n");
    for ((device, node), count) in writers {
        let Device { major, minor, .. } = device;
        writeln!(text, "{major} {minor} {} {count}", node.0).expect("memory takes it");
    }
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    sync_dir(path)
}

fn sync_dir(path: &Path) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writers() -> Writers {
        let disk = |minor| Device {
            block: true,
            major: 8,
            minor,
        };
        let counts = [((disk(0), NodeId(2)), 3), ((disk(16), NodeId(3)), 1)];
        counts.into_iter().collect()
    }

    #[test]
    fn counts_outlive_the_daemon() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("disks");
        let (first, none) = Record::open(Some(path.clone()));
        assert!(none.is_empty());
        first.keep(&writers()).expect("kept");
        let (next, kept) = Record::open(Some(path));
        assert_eq!((next.since(), kept), (first.since(), writers()));
    }

    #[test]
    fn what_is_not_understood_begins_anew() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("disks");
        let (first, _) = Record::open(Some(path.clone()));
        first.keep(&writers()).expect("kept");
        let text = fs::read_to_string(&path).expect("kept");
        let half = &text[..text.len() - 3];
        let more = format!("{text}8 0 2 3 4\n");
        let later = text.replace("nodes, 1,", "nodes, 2,");
        for text in ["", "\n", half, &more, &later] {
            fs::write(&path, text).expect("write");
            let (next, kept) = Record::open(Some(path.clone()));
            assert!(kept.is_empty(), "{text:?}");
            assert_ne!(next.since(), first.since(), "{text:?}");
        }
    }

    #[test]
    fn what_cannot_be_kept_is_forgotten() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("disks");
        let (record, _) = Record::open(Some(path.clone()));
        record.keep(&Writers::new()).expect("kept");
        // Nothing can be written under this name.
        fs::create_dir(path.with_extension("new")).expect("a directory");
        record.keep(&writers()).expect("forgotten");
        assert!(!path.exists());
        fs::create_dir(&path).expect("a directory");
        record.keep(&writers()).expect_err("an old one would stay");
    }
}
