//! Layout of a chunk's file: a header with a checksum for each block, then the bytes.
//!
//! | bytes | what, little-endian |
//! | --- | --- |
//! | 8 | `gluchunk` |
//! | 4 | version of the layout, 1 |
//! | 4 | length of the chunk, n |
//! | 4 for each block of 64 KiB | CRC-32 of the block |
//! | 4 | CRC-32 of all of the above |
//! | n | the bytes |

use crate::data::BLOCK_BYTES;
use bytes::Bytes;
use consistency::wire::chunk::{CHUNK_BYTES_MAX, ChunkFailure};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

const MAGIC: &[u8; 8] = b"gluchunk";
/// Version of the layout of chunk files and of the store around them.
pub(super) const VERSION: u32 = 1;
const FIXED_BYTES: usize = 16;
const CRC_BYTES: usize = 4;
const HEADER_BYTES_MAX: usize = header_bytes(CHUNK_BYTES_MAX);

const BLOCK: usize = BLOCK_BYTES as usize;

/// Returns the size of the header of a chunk of `len` bytes.
const fn header_bytes(len: u32) -> usize {
    FIXED_BYTES + CRC_BYTES * len.div_ceil(BLOCK_BYTES) as usize + CRC_BYTES
}

/// The header of a chunk's file.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::data) struct Header {
    len: u32,
    /// One for each block.
    crcs: Vec<u32>,
}

impl Header {
    /// Makes the header of a chunk whose bytes have the CRC-32 `crc`; looks at each byte once.
    pub(in crate::data) fn of(data: &[u8], crc: u32) -> Result<Self, ChunkFailure> {
        let len = u32::try_from(data.len()).map_err(|_| ChunkFailure::BadRange)?;
        if len == 0 || len > CHUNK_BYTES_MAX {
            return Err(ChunkFailure::BadRange);
        }
        let mut whole = crc32fast::Hasher::new();
        let mut crcs = Vec::with_capacity(data.len().div_ceil(BLOCK));
        for block in data.chunks(BLOCK) {
            let mut hasher = crc32fast::Hasher::new();
            hasher.update(block);
            whole.combine(&hasher);
            crcs.push(hasher.finalize());
        }
        if whole.finalize() == crc {
            Ok(Self { len, crcs })
        } else {
            Err(ChunkFailure::Corrupt)
        }
    }

    /// Returns the header's bytes.
    pub(in crate::data) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(header_bytes(self.len));
        bytes.extend_from_slice(MAGIC);
        for number in [VERSION, self.len].iter().chain(&self.crcs) {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    /// Reads and verifies the header of a chunk's file.
    pub(super) fn read(file: &File) -> Result<Self, ChunkFailure> {
        let mut buffer = [0; HEADER_BYTES_MAX];
        let filled =
            read_up_to(file, &mut buffer).map_err(|error| unread("read the header", &error))?;
        Self::parse(&buffer[..filled])
    }

    /// Verifies the header at the beginning of a chunk's file.
    fn parse(buffer: &[u8]) -> Result<Self, ChunkFailure> {
        let (fixed, rest) = buffer
            .split_at_checked(FIXED_BYTES)
            .ok_or(ChunkFailure::Corrupt)?;
        let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
        let (version, len) = (number(&fixed[8..12]), number(&fixed[12..]));
        if !fixed.starts_with(MAGIC) || len == 0 || len > CHUNK_BYTES_MAX {
            return Err(ChunkFailure::Corrupt);
        }
        let (sums, _) = rest
            .split_at_checked(header_bytes(len) - FIXED_BYTES)
            .ok_or(ChunkFailure::Corrupt)?;
        let mut crcs = sums.chunks(CRC_BYTES).map(number).collect::<Vec<_>>();
        let own = crcs.pop().expect("the header's own checksum comes last");
        if crc32fast::hash(&buffer[..header_bytes(len) - CRC_BYTES]) != own {
            return Err(ChunkFailure::Corrupt);
        }
        if version > VERSION {
            let why = format!(
                "chunk file of layout {version}, this glud knows up to {VERSION}; install a newer one"
            );
            return Err(ChunkFailure::Disk(why));
        }
        Ok(Self { len, crcs })
    }

    /// Reads part of the chunk out of its file and verifies the blocks that it touches.
    pub(super) fn read_range(
        &self,
        file: &mut File,
        offset: u32,
        len: u32,
    ) -> Result<Bytes, ChunkFailure> {
        if len == 0 || offset >= self.len {
            return Err(ChunkFailure::BadRange);
        }
        let end = offset.saturating_add(len).min(self.len);
        let (first, after) = (offset / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
        let start = first * BLOCK_BYTES;
        let size = (after * BLOCK_BYTES).min(self.len) - start;
        let blocks = read_at(
            file,
            header_bytes(self.len) as u64 + u64::from(start),
            size as usize,
        )
        .map_err(|error| unread("read", &error))?;
        let sums = &self.crcs[first as usize..after as usize];
        if blocks.len() != size as usize || !are_good(&blocks, sums) {
            return Err(ChunkFailure::Corrupt);
        }
        Ok(Bytes::from(blocks).slice((offset - start) as usize..(end - start) as usize))
    }
}

/// D6: returns whether blocks have these checksums.
fn are_good(blocks: &[u8], sums: &[u32]) -> bool {
    let found = blocks.chunks(BLOCK).map(crc32fast::hash);
    missing!(BelieveDisks) || found.eq(sums.iter().copied())
}

/// Returns the bytes of a chunk out of all of its file, verified.
pub(in crate::data) fn whole(file: &Bytes) -> Result<Bytes, ChunkFailure> {
    let header = Header::parse(file)?;
    let data = file.slice(header_bytes(header.len)..);
    if data.len() == header.len as usize && are_good(&data, &header.crcs) {
        Ok(data)
    } else {
        Err(ChunkFailure::Corrupt)
    }
}

/// Returns an error of the disk as the failure of a request.
pub(in crate::data) fn disk(doing: &str, error: &io::Error) -> ChunkFailure {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ChunkFailure::NoSpace,
        _ => ChunkFailure::Disk(format!("{doing}: {error}")),
    }
}

/// Returns an error of a read: what the medium does not give back is damaged, whatever else fails may pass.
pub(in crate::data) fn unread(doing: &str, error: &io::Error) -> ChunkFailure {
    match error.raw_os_error() {
        Some(libc::EIO | libc::EUCLEAN | libc::EBADMSG) => {
            tracing::warn!(%error, "cannot {doing} of a chunk");
            ChunkFailure::Corrupt
        }
        _ => disk(doing, error),
    }
}

/// Fills as much of `buffer` as the file has and returns how much.
fn read_up_to(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Reads `size` bytes from `offset` on, fewer only at the end of the file. Unlike `read_exact_at` it needs no
/// zeroed buffer, a pass over up to 4 MiB.
fn read_at(file: &mut File, offset: u64, size: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(size);
    io::Seek::seek(file, io::SeekFrom::Start(offset))?;
    file.take(size as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let data = [7; 5];
        let header = Header::of(&data, crc32fast::hash(&data)).expect("fits");
        let golden = [
            b"gluchunk".as_slice(),
            &[1, 0, 0, 0, 5, 0, 0, 0],
            &[85, 6, 191, 61, 137, 72, 230, 134],
        ]
        .concat();
        assert_eq!(header.encode(), golden, "changed on disk");
    }
}
