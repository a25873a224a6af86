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
use crate::server::machine::Unreadable;
use consistency::NodeId;
use consistency::wire;
use openraft::Vote;
use serde::{Deserialize, Serialize};
use std::io;

/// File name in the log's directory.
pub(super) const NAME: &str = "MARK";

const MAGIC: &[u8; 7] = b"GLUMARK";
/// Follows the magic, as a digit.
const VERSION: u8 = b'1';
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
        let mark = decode(bytes).map_err(|error| OpenError::unreadable(&path, error))?;
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
        self.file.write(0, &encode(&self.mark))
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
    bytes[..7].copy_from_slice(MAGIC);
    bytes[7] = VERSION;
    bytes[8..12].copy_from_slice(&crc32fast::hash(&body).to_le_bytes());
    bytes[12..16].copy_from_slice(&length.to_le_bytes());
    bytes[HEADER..end].copy_from_slice(&body);
    bytes
}

/// Checks the first eight bytes of a file: a word and a digit, the version.
pub(super) fn check_magic(
    what: &str,
    bytes: &[u8],
    magic: &[u8; 7],
    version: u8,
) -> Result<(), Unreadable> {
    match bytes.strip_prefix(magic).and_then(<[u8]>::first) {
        Some(found) if *found == version => Ok(()),
        Some(found) if found.is_ascii_digit() && *found > version => {
            let known = u32::from(version - b'0');
            Err(Unreadable::newer(what, char::from(*found), known))
        }
        Some(_) | None => Err(format!(
            "{what} does not begin with {}",
            String::from_utf8_lossy(magic)
        )
        .into()),
    }
}

fn decode(bytes: &[u8; SIZE]) -> Result<Mark, Unreadable> {
    let word = |at: usize| {
        let word = bytes[at..at + 4].try_into().expect("four bytes are four");
        u32::from_le_bytes(word)
    };
    check_magic("it", bytes, MAGIC, VERSION)?;
    let length = word(12) as usize;
    let body = bytes.get(HEADER..HEADER + length);
    let body = body.ok_or("its length is impossible")?;
    if crc32fast::hash(body) != word(8) {
        return Err("its checksum does not fit".into());
    }
    wire::decode(body).map_err(|error| error.to_string().into())
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

    #[test]
    fn golden_bytes() {
        let mark = Mark {
            node: 9,
            flushed: 300,
            vote: Some(Vote::new(2, 1)),
            committed: Some(LogId {
                leader_id: openraft::LeaderId::new(2, 1),
                index: 7,
            }),
        };
        let bytes = encode(&mark);
        assert_eq!(&bytes[..8], b"GLUMARK1");
        let golden = [12, 0, 0, 0, 9, 251, 44, 1, 1, 2, 1, 0, 1, 2, 1, 7];
        assert_eq!(&bytes[12..28], golden, "changed on disk");
        let mut newer = bytes;
        newer[7] = b'2';
        let error = decode(&newer).expect_err("refused");
        assert_eq!(
            error,
            Unreadable::Newer(
                "it has format 2, this program reads up to 1: use the newer program again".into()
            )
        );
    }
}
