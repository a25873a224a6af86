//! Snapshots as files: `snapshot-<index>`, written beside and renamed, the previous one kept until the
//! new one is durable. The same bytes travel to a follower that is too far behind for the log.
//!
//! ```text
//! magic 8 | checksum 4 | meta length 4 | state length 8 | meta | state      (little endian)
//! ```
//! The checksum (CRC-32) covers everything after itself.

use super::disk::Disk;
use super::error::OpenError;
use super::mark::check_magic;
use super::raft::{LogId, SnapshotMeta};
use crate::server::machine::Unreadable;
use consistency::wire;
use std::io;
use std::path::PathBuf;

const MAGIC: &[u8; 7] = b"GLUSNAP";
/// Follows the magic, as a digit.
const VERSION: u8 = b'1';
const PREFIX: &str = "snapshot-";
/// A filesystem that writes data before the names of files (ext4's `data=ordered`) has the log's sync wait for all that is on
/// its way to the disk, so it is never much: a leader that waits for its disk for long is not taken for one.
const PIECE_BYTES: usize = 4 << 20;
const HEADER: usize = 24;
/// From where on the checksum counts.
const CHECKED: usize = 12;

/// Puts a snapshot together.
pub(super) fn encode(meta: &SnapshotMeta, state: &[u8]) -> Vec<u8> {
    let meta = wire::encode(meta);
    let meta_length = u32::try_from(meta.len()).expect("a snapshot's meta data is small");
    let mut bytes = Vec::with_capacity(HEADER + meta.len() + state.len());
    bytes.extend_from_slice(MAGIC);
    bytes.push(VERSION);
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&meta_length.to_le_bytes());
    bytes.extend_from_slice(&(state.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&meta);
    bytes.extend_from_slice(state);
    let checksum = crc32fast::hash(&bytes[CHECKED..]);
    bytes[8..CHECKED].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Takes a snapshot apart.
pub(super) fn decode(bytes: &[u8]) -> Result<(SnapshotMeta, &[u8]), Unreadable> {
    let (header, body) = bytes
        .split_first_chunk::<HEADER>()
        .ok_or("it is too short")?;
    check_magic("it", header, MAGIC, VERSION)?;
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    let state_length = u64::from_le_bytes(header[16..].try_into().expect("eight bytes"));
    let (meta_length, body_length) = (word(12) as usize, body.len() as u64);
    if (meta_length as u64).checked_add(state_length) != Some(body_length) {
        return Err("it is truncated or has something behind its end".into());
    }
    if crc32fast::hash(&bytes[CHECKED..]) != word(8) {
        return Err("its checksum does not fit".into());
    }
    let (meta, state) = body.split_at(meta_length);
    let meta = wire::decode(meta).map_err(|error| error.to_string())?;
    Ok((meta, state))
}

/// Writes a snapshot's bytes to its file; durable on return. Older ones are removed then; a newer one,
/// received while this one was made, stays.
pub(super) fn save(disk: &dyn Disk, last: Option<LogId>, bytes: &[u8]) -> io::Result<()> {
    let name = format!("{PREFIX}{:020}", last.map_or(0, |last| last.index));
    let new = format!("{name}.tmp");
    let written = disk
        .create(&new)
        .and_then(|file| {
            for (number, piece) in bytes.chunks(PIECE_BYTES).enumerate() {
                file.write(number * PIECE_BYTES, piece)?;
                file.sync()?;
            }
            Ok(())
        })
        .and_then(|()| disk.rename(&new, &name));
    if let Err(error) = written {
        // On a full disk its room is needed; what cannot be removed is in nobody's way.
        drop(disk.remove(&new));
        return Err(error);
    }
    for old in list(disk)?.into_iter().filter(|old| *old < name) {
        match disk.remove(&old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Returns the bytes of the newest whole snapshot that reaches `purged`, `None` if there never was one.
///
/// # Errors
/// Says which file is corrupt if no whole one reaches that far.
pub(super) fn newest(disk: &dyn Disk, purged: Option<LogId>) -> Result<Option<Vec<u8>>, OpenError> {
    let dir = disk.path();
    let mut files = list(disk).map_err(OpenError::io("list", dir))?;
    files.sort();
    let mut corrupt = None;
    while let Some(name) = files.pop() {
        let file = dir.join(&name);
        let bytes = disk.read(&name).map_err(OpenError::io("read", &file))?;
        match decode(&bytes) {
            Ok((meta, _)) if meta.last_log_id >= purged => return Ok(Some(bytes)),
            Ok((meta, _)) => {
                let reach = meta.last_log_id.map_or(0, |last| last.index);
                let why = format!("it ends at entry {reach}, the log begins after {purged:?}");
                corrupt.get_or_insert_with(|| OpenError::corrupt(&file, why));
            }
            Err(Unreadable::Newer(why)) => return Err(OpenError::Newer { path: file, why }),
            Err(Unreadable::Damaged(why)) => {
                tracing::warn!(file = %file.display(), why, "skipped a corrupt snapshot");
                corrupt.get_or_insert_with(|| OpenError::corrupt(&file, why));
            }
        }
    }
    match (corrupt, purged) {
        (Some(corrupt), _) => Err(corrupt),
        (None, Some(purged)) => {
            let why = format!(
                "the log begins after entry {}, and no snapshot is there",
                purged.index
            );
            Err(OpenError::corrupt(dir, why))
        }
        (None, None) => Ok(None),
    }
}

/// Reads every snapshot that is there and says what is wrong with it, if anything is.
pub(super) fn check_all(disk: &dyn Disk) -> io::Result<Vec<(PathBuf, Result<(), String>)>> {
    let mut names = list(disk)?;
    names.sort();
    let check = |name: String| {
        let bytes = disk.read(&name)?;
        let checked = decode(&bytes).map(drop).map_err(|error| error.to_string());
        Ok((disk.path().join(name), checked))
    };
    names.into_iter().map(check).collect()
}

/// Returns whether a disk has snapshots.
pub(super) fn any(disk: &dyn Disk) -> io::Result<bool> {
    Ok(!list(disk)?.is_empty())
}

/// Lists the finished snapshots.
fn list(disk: &dyn Disk) -> io::Result<Vec<String>> {
    let mut names = disk.list()?;
    names.retain(|name| {
        let index = name.strip_prefix(PREFIX);
        index.is_some_and(|index| index.bytes().all(|byte| byte.is_ascii_digit()))
    });
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::log::directory::Directory;

    #[test]
    fn what_cannot_be_finished_takes_no_room() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        // Something that the new file cannot replace.
        let name = format!("{PREFIX}{:020}", 0);
        std::fs::create_dir(dir.path().join(&name)).expect("mkdir");
        let (disk, _closed) = Directory::open(dir.path()).expect("it is free");
        assert!(save(&*disk, None, b"bytes").is_err());
        let mut left = disk.list().expect("list");
        left.sort();
        assert_eq!(left, ["LOCK", &name]);
    }

    #[test]
    fn a_snapshot_survives_and_any_damage_is_seen() {
        let meta = SnapshotMeta {
            snapshot_id: "7".into(),
            ..SnapshotMeta::default()
        };
        let bytes = encode(&meta, b"the state");
        assert_eq!(decode(&bytes), Ok((meta, b"the state".as_slice())));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(
                decode(&bad).is_err(),
                "flipped bit in byte {at} was not seen"
            );
            assert!(
                decode(&bytes[..at]).is_err(),
                "cut at byte {at} was not seen"
            );
        }
        let longer = [bytes.as_slice(), b"x"].concat();
        assert!(decode(&longer).is_err(), "a byte too many was not seen");
    }

    #[test]
    fn golden_bytes() {
        let last = LogId {
            leader_id: openraft::LeaderId::new(2, 1),
            index: 300,
        };
        let members = openraft::Membership::new(vec![[1, 2].into()], None);
        let meta = SnapshotMeta {
            last_log_id: Some(last),
            last_membership: openraft::StoredMembership::new(Some(last), members),
            snapshot_id: "x".into(),
        };
        let bytes = encode(&meta, b"state");
        assert_eq!(&bytes[..8], b"GLUSNAP1");
        let golden = [
            &[21, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0][..],
            &[1, 2, 1, 251, 44, 1],
            &[1, 2, 1, 251, 44, 1, 1, 2, 1, 2, 2, 1, 2],
            b"\x01xstate",
        ]
        .concat();
        assert_eq!(&bytes[12..], golden, "changed on disk");
        let mut newer = bytes;
        newer[7] = b'2';
        assert!(matches!(decode(&newer), Err(Unreadable::Newer(_))));
    }
}
