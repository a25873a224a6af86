//! The mark: what the log store has promised, kept beside the store.
//!
//! A store that lost its tail (a truncated journal, a restored disk) looks like a store that never had
//! one: fjall drops a torn tail without a word, which is right after a crash and wrong for what was
//! synced before. The mark says how much must be there. It is written after the store's fsync and not
//! synced itself, so it costs a copy to the page cache and is never ahead of the store, whatever dies.
//! The one thing that takes a promise back, truncation, lowers and syncs the mark first.

use super::disk::{Disk, DiskFile};
use super::error::OpenError;
use super::raft::LogId;
use consistency::NodeId;
use consistency::wire;
use openraft::Vote;
use serde::{Deserialize, Serialize};
use std::io;

/// File name in the log's directory.
pub(super) const NAME: &str = "MARK";

const MAGIC: &[u8; 8] = b"GLUMARK1";
/// The file's fixed size: below one sector, so that no write of it is torn.
const SIZE: usize = 256;
/// Magic, checksum, length.
const HEADER: usize = 8 + 4 + 4;

/// What the store must hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// Whose log this is.
    pub node: u16,
    /// Every entry below this index was synced (or is in a snapshot that was).
    pub flushed: u64,
    /// The newest vote that was synced.
    pub vote: Option<Vote<u16>>,
    /// The newest entry known to be committed: how far a restart can apply at once.
    pub committed: Option<LogId>,
}

/// The open mark file.
#[derive(Debug)]
pub(super) struct MarkFile {
    file: Box<dyn DiskFile>,
    mark: Mark,
}

impl MarkFile {
    /// Creates the mark of an empty log; durable on return.
    pub(super) fn create(disk: &dyn Disk, node: NodeId) -> Result<Self, OpenError> {
        const NEW: &str = "MARK.tmp";
        let mark = Mark {
            node: node.0,
            flushed: 0,
            vote: None,
            committed: None,
        };
        let path = disk.path().join(NEW);
        let file = disk.create(NEW).map_err(OpenError::io("create", &path))?;
        let this = Self { file, mark };
        this.write()
            .and_then(|()| this.file.sync())
            .and_then(|()| disk.rename(NEW, NAME))
            .map_err(OpenError::io("write", &disk.path().join(NAME)))?;
        Ok(this)
    }

    /// Opens the mark, `None` if there is none.
    pub(super) fn open(disk: &dyn Disk) -> Result<Option<Self>, OpenError> {
        let path = disk.path().join(NAME);
        let file = match disk.open(NAME) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(OpenError::io("open", &path)(error)),
        };
        let bytes = disk
            .read(NAME)
            .map_err(|error| OpenError::corrupt(&path, format!("it cannot be read: {error}")))?;
        let bytes = bytes
            .first_chunk()
            .ok_or_else(|| OpenError::corrupt(&path, "it is too short"))?;
        let mark = decode(bytes).map_err(|why| OpenError::corrupt(&path, why))?;
        Ok(Some(Self { file, mark }))
    }

    pub(super) fn mark(&self) -> &Mark {
        &self.mark
    }

    /// Changes the mark, in the page cache only.
    pub(super) fn update(&mut self, change: impl FnOnce(&mut Mark)) -> io::Result<()> {
        change(&mut self.mark);
        self.write()
    }

    /// Takes promises back: durable on return.
    pub(super) fn lower(&mut self, change: impl FnOnce(&mut Mark)) -> io::Result<()> {
        self.update(change)?;
        self.file.sync()
    }

    fn write(&self) -> io::Result<()> {
        self.file.write(&encode(&self.mark))
    }
}

fn encode(mark: &Mark) -> [u8; SIZE] {
    let body = wire::encode(mark);
    let end = HEADER + body.len();
    assert!(
        end <= SIZE,
        "a mark has a few numbers, far below {SIZE} bytes"
    );
    let length = u32::try_from(body.len()).expect("checked against the size above");
    let mut bytes = [0; SIZE];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&crc32fast::hash(&body).to_le_bytes());
    bytes[12..16].copy_from_slice(&length.to_le_bytes());
    bytes[HEADER..end].copy_from_slice(&body);
    bytes
}

fn decode(bytes: &[u8; SIZE]) -> Result<Mark, String> {
    let word = |at: usize| {
        let word = bytes[at..at + 4].try_into().expect("four bytes are four");
        u32::from_le_bytes(word)
    };
    if &bytes[..8] != MAGIC {
        return Err("it does not begin as a mark does (or is of another version)".into());
    }
    let length = word(12) as usize;
    let body = bytes.get(HEADER..HEADER + length);
    let body = body.ok_or("its length is impossible")?;
    if crc32fast::hash(body) != word(8) {
        return Err("its checksum does not fit".into());
    }
    wire::decode(body).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_survives_and_a_flipped_bit_is_seen() {
        let mark = Mark {
            node: 9,
            flushed: u64::MAX,
            vote: Some(Vote::new_committed(u64::MAX, u16::MAX)),
            committed: Some(LogId {
                leader_id: openraft::LeaderId::new(u64::MAX, u16::MAX),
                index: u64::MAX,
            }),
        };
        let bytes = encode(&mark);
        assert_eq!(decode(&bytes), Ok(mark));
        let used = HEADER + u32::from_le_bytes(bytes[12..16].try_into().expect("four")) as usize;
        for at in 0..used {
            let mut bad = bytes;
            bad[at] ^= 4;
            assert!(
                decode(&bad).is_err(),
                "flipped bit in byte {at} was not seen"
            );
        }
    }
}
