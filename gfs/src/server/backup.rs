//! The metadata in a file of their own, and back.
//!
//! | bytes | what, numbers little-endian |
//! | --- | --- |
//! | 8 | `GLUBKUP\n` |
//! | 4 | version of the layout, 1 |
//! | 4 | length of the description |
//! | 8 | length of the state |
//! | | the description, [`About`] |
//! | | the state, as snapshots have it, with a version of its own |
//! | 4 | CRC-32 of all of the above |
//!
//! A backup is what the leader has at one entry of the log. On the way it is a stream of the metadata service
//! ([`super::stream`]).

use super::machine::{StateMachine, Unreadable};
use super::state::MetaState;
use consistency::wire;
use consistency::{ChunkId, Epoch, InodeNo};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"GLUBKUP\n";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 24;
/// A description is a few words.
const ABOUT_BYTES_MAX: u32 = 64 << 10;
/// Numbers that are left out when a state comes back: so many were given out at most since it was saved. What has one of
/// them, a chunk on a disk or a process that holds an inode, must not be taken for what gets the next.
const NUMBERS_SKIPPED: u64 = 1 << 32;
/// Likewise for reigns, of which there are fewer.
const REIGNS_SKIPPED: u64 = 1 << 10;

/// What a backup is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The cluster's name.
    pub cluster: String,
    /// The last entry of the log that is in it.
    pub index: u64,
    /// Inodes in it.
    pub inodes: u64,
}

/// Why a backup cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The operating system refused something.
    #[error("{}: cannot be read: {error}", path.display())]
    Io {
        /// The backup.
        path: PathBuf,
        /// Its answer.
        error: io::Error,
    },
    /// It is none, or not whole.
    #[error("{}: {why}", path.display())]
    Bad {
        /// The backup.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
}

/// Writes a backup whose state comes from `state` and has `bytes` bytes.
///
/// # Errors
/// Of either side; `UnexpectedEof` if the state ends early.
pub fn write(out: &mut File, about: &About, state: &mut impl Read, bytes: u64) -> io::Result<()> {
    let about = wire::encode(about);
    let about_length = u32::try_from(about.len()).expect("a description is a few words");
    let mut header = Vec::with_capacity(HEADER_BYTES + about.len());
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&VERSION.to_le_bytes());
    header.extend_from_slice(&about_length.to_le_bytes());
    header.extend_from_slice(&bytes.to_le_bytes());
    header.extend_from_slice(&about);
    let mut out = Summed {
        out,
        sum: crc32fast::Hasher::new(),
    };
    out.write_all(&header)?;
    if io::copy(&mut state.take(bytes), &mut out)? < bytes {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let sum = out.sum.finalize();
    out.out.write_all(&sum.to_le_bytes())
}

/// Reads and checks a backup.
///
/// # Errors
/// [`BackupError`]
pub fn read(path: &Path) -> Result<(About, MetaState), BackupError> {
    let bytes = std::fs::read(path).map_err(|error| BackupError::Io {
        path: path.to_owned(),
        error,
    })?;
    decode(&bytes).map_err(|why| BackupError::Bad {
        path: path.to_owned(),
        why,
    })
}

fn decode(bytes: &[u8]) -> Result<(About, MetaState), String> {
    if !bytes.starts_with(MAGIC) {
        return Err("is no backup of glu: it begins with something else".to_owned());
    }
    let truncated = || "is truncated: take another backup".to_owned();
    let (checked, sum) = bytes.split_last_chunk::<4>().ok_or_else(truncated)?;
    let (header, body) = checked
        .split_first_chunk::<HEADER_BYTES>()
        .ok_or_else(truncated)?;
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    if word(8) != VERSION {
        return Err(Unreadable::newer("it", word(8), VERSION).to_string());
    }
    let state_length = u64::from_le_bytes(header[16..].try_into().expect("eight bytes"));
    let length = u64::from(word(12)).checked_add(state_length);
    if word(12) > ABOUT_BYTES_MAX || length != Some(body.len() as u64) {
        return Err(truncated());
    }
    if crc32fast::hash(checked) != u32::from_le_bytes(*sum) {
        return Err("does not match its checksum, it is damaged: take another backup".to_owned());
    }
    let (about, state) = body.split_at(word(12) as usize);
    let about = wire::decode(about).map_err(|error| error.to_string())?;
    let state = MetaState::restore(state).map_err(|error| error.to_string())?;
    Ok((about, state))
}

impl MetaState {
    /// Makes it fit to go on from a backup: everything that was open when it was made has ended, and no number that was
    /// given out since is given out again.
    #[must_use]
    pub fn restored(mut self) -> Self {
        self.sessions.end_all(NUMBERS_SKIPPED);
        self.next_ino = InodeNo(self.next_ino.0 + NUMBERS_SKIPPED);
        self.chunks
            .skip_to(ChunkId(self.next_chunk().0 + NUMBERS_SKIPPED));
        self.reign = Epoch(self.reign.0 + REIGNS_SKIPPED);
        self
    }
}

/// Sums up what is written.
struct Summed<'a> {
    out: &'a mut File,
    sum: crc32fast::Hasher,
}

impl Write for Summed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.sum.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::ops::testing::World;
    use crate::server::state::{Body, Reply};
    use consistency::NodeId;

    fn about() -> About {
        About {
            cluster: "lab".to_owned(),
            index: 300,
            inodes: 2,
        }
    }

    /// Writes a backup and returns its bytes.
    fn bytes_of(state: &[u8]) -> Vec<u8> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("backup");
        let mut file = File::create(&path).expect("made");
        let length = state.len() as u64;
        write(&mut file, &about(), &mut &state[..], length).expect("written");
        std::fs::read(&path).expect("read")
    }

    #[test]
    fn a_backup_survives_and_any_damage_is_seen() {
        let state = World::new("mkdir d").state;
        let bytes = bytes_of(&state.snapshot());
        assert_eq!(decode(&bytes), Ok((about(), state)));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(decode(&bad).is_err(), "flipped bit in byte {at}");
            assert!(decode(&bytes[..at]).is_err(), "cut at byte {at}");
        }
        let longer = [&bytes[..], b"x"].concat();
        assert!(decode(&longer).is_err(), "a byte too many");
    }

    #[test]
    fn the_layout_is_fixed() {
        let bytes = bytes_of(b"state");
        let golden = b"GLUBKUP\n\x01\0\0\0\x08\0\0\0\x05\0\0\0\0\0\0\0\x03lab\xfb\x2c\x01\x02state";
        assert_eq!(&bytes[..bytes.len() - 4], golden);
    }

    #[test]
    fn one_of_the_future_is_refused() {
        let mut bytes = bytes_of(b"state");
        bytes[8] = 2;
        let why = decode(&bytes).expect_err("refused");
        assert!(
            why.contains("format 2") && why.contains("reads up to 1"),
            "{why}"
        );
    }

    #[test]
    fn a_state_that_ends_early_is_no_backup() {
        let mut file = tempfile::tempfile().expect("made");
        let error = write(&mut file, &about(), &mut &b"sta"[..], 5).expect_err("too short");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_was_open_has_ended_and_no_number_comes_again() {
        let mut world = World::new("mkdir d; touch d/f");
        let given = world.state.next_chunk();
        let (before, session) = (world.state.counts(), world.session);
        world.state = world.state.clone().restored();
        assert_eq!(world.state.check(), Ok(()));
        assert_eq!(world.state.counts().sessions, 0);
        assert_eq!(world.state.counts().inodes, before.inodes);
        assert!(world.state.next_chunk() > given);
        // What was stored since is garbage.
        assert!(world.state.is_orphan(ChunkId(given.0 + 5), NodeId(1)));
        let Reply::Session { session: next, .. } = world.apply(Body::OpenSession {
            node: NodeId(1),
            attempt: 1,
        }) else {
            panic!("no session");
        };
        assert!(next.0 > session.0 + 1_000);
    }
}
