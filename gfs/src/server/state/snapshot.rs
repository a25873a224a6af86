//! The state as bytes: a header with format, length and checksum, then the records.
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | `GLU-META` |
//! | 4 | format version, little endian |
//! | 4 | CRC-32 of the records |
//! | 8 | length of the records |
//! | rest | the records, in bincode |
//!
//! | format | records | written while |
//! | --- | --- | --- |
//! | 3 | the state | the cluster is at version 6, whose programs read no other |
//! | 4 | the state, then the version | it is at version 7 to 9 |
//! | 5 | the state, the version, what was revoked | later |
//!
//! The order of listings is not stored but made anew, which saves every name a second time.

use super::{Inode, MetaState, Payload};
use crate::server::machine::Unreadable;
use consistency::wire::request::REVOKED_SINCE;

const MAGIC: &[u8; 8] = b"GLU-META";
/// Changes with every change of a record's layout; those before it are still read, and written while the cluster is at a
/// version whose programs read no other.
const VERSION: u32 = 5;
const VERSION_MIN: u32 = 3;
/// The first that tells the version of the cluster.
const WITH_VERSION: u32 = 4;
/// The first that tells what was revoked.
const WITH_REVOKED: u32 = 5;
/// The version of the cluster that format 3 does not tell.
pub(super) const VERSION_OF_FORMAT_3: u32 = 6;

/// Returns the format that all programs of a cluster read.
const fn format_of(version: u32) -> u32 {
    if version <= VERSION_OF_FORMAT_3 {
        VERSION_MIN
    } else if version < REVOKED_SINCE {
        WITH_VERSION
    } else {
        WITH_REVOKED
    }
}
const HEADER_BYTES: usize = 24;

pub(super) fn encode(state: &MetaState) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    let config = bincode::config::standard();
    let vector = "a vector takes all records";
    bincode::serde::encode_into_std_write(state, &mut bytes, config).expect(vector);
    let format = format_of(state.version);
    if format >= WITH_VERSION {
        bincode::serde::encode_into_std_write(state.version, &mut bytes, config).expect(vector);
    }
    if format >= WITH_REVOKED {
        bincode::serde::encode_into_std_write(&state.revoked, &mut bytes, config).expect(vector);
    }
    let (header, body) = bytes.split_at_mut(HEADER_BYTES);
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&format.to_le_bytes());
    header[12..16].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
    header[16..].copy_from_slice(&(body.len() as u64).to_le_bytes());
    bytes
}

pub(super) fn decode(bytes: &[u8]) -> Result<MetaState, Unreadable> {
    let Some((header, body)) = bytes.split_at_checked(HEADER_BYTES) else {
        return Err(format!(
            "metadata snapshot has {} bytes, less than its header of {HEADER_BYTES}: it is truncated",
            bytes.len()
        )
        .into());
    };
    let number = |at: usize| {
        header[at..at + 4]
            .iter()
            .rev()
            .fold(0, |n, b| n << 8 | u32::from(*b))
    };
    if &header[..8] != MAGIC {
        return Err("metadata snapshot does not begin with GLU-META: it is no such file".into());
    }
    if number(8) > VERSION {
        let what = "metadata snapshot";
        return Err(Unreadable::newer(what, number(8), VERSION));
    }
    if number(8) < VERSION_MIN {
        return Err(format!(
            "metadata snapshot has format {}, which this program does not read any more: use the program that wrote it",
            number(8)
        )
        .into());
    }
    let length = u64::from(number(20)) << 32 | u64::from(number(16));
    if length != body.len() as u64 {
        return Err(format!(
            "metadata snapshot has {} bytes of records instead of {length}: it is truncated",
            body.len()
        )
        .into());
    }
    if crc32fast::hash(body) != number(12) {
        return Err("metadata snapshot does not match its checksum: it is damaged".into());
    }
    // No limit on allocation: the checksum says that these are the bytes `encode` wrote.
    let config = bincode::config::standard();
    let undecodable = |error| format!("metadata snapshot cannot be decoded: {error}");
    let (mut state, mut used): (MetaState, usize) =
        bincode::serde::decode_from_slice(body, config).map_err(undecodable)?;
    if number(8) >= WITH_VERSION {
        let (version, length) =
            bincode::serde::decode_from_slice(&body[used..], config).map_err(undecodable)?;
        state.version = version;
        used += length;
    }
    if number(8) >= WITH_REVOKED {
        let (revoked, length) =
            bincode::serde::decode_from_slice(&body[used..], config).map_err(undecodable)?;
        state.revoked = revoked;
        used += length;
    }
    if used != body.len() {
        return Err(format!(
            "metadata snapshot has {} bytes left over",
            body.len() - used
        )
        .into());
    }
    let is_dir = |inode: &Inode| matches!(inode.payload, Payload::Dir(_));
    let dirs = state.inodes.iter().filter(|(_, inode)| is_dir(inode));
    let dirs: Vec<_> = dirs.map(|(ino, _)| *ino).collect();
    for ino in dirs {
        if let Some(Payload::Dir(dir)) = state.inodes.get_mut(&ino).map(|inode| &mut inode.payload)
        {
            dir.index();
        }
    }
    Ok(state)
}
