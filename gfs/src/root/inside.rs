//! What the daemon itself looks for and reads in the files tree, without the mount.

use crate::error::Errno;
use crate::tree::{Caller, OpenFlags, Tree};
use bytes::{Bytes, BytesMut};
use consistency::InodeNo;
use consistency::wire::meta::{Attr, Name};
use std::fmt;

/// The daemon itself.
pub(super) const SELF: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 0,
};
/// How much is read at a time.
const PIECE_BYTES: u32 = 128 << 10;

/// An inode that was looked up; dropped, it is forgotten.
pub struct Found<'a> {
    files: &'a dyn Tree,
    /// As it was then.
    pub attr: Attr,
}

impl Drop for Found<'_> {
    fn drop(&mut self) {
        self.files.forget(self.attr.ino, 1);
    }
}

impl fmt::Debug for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.attr.fmt(f)
    }
}

/// Looks for a path below the root, without symbolic links; `None`: there is no such thing.
///
/// # Errors
/// Of the tree; EINVAL if a name cannot be one.
pub async fn find<'a>(files: &'a dyn Tree, path: &[&str]) -> Result<Option<Found<'a>>, Errno> {
    let mut found: Option<Found<'a>> = None;
    for part in path {
        let name = name(part)?;
        let dir = found.as_ref().map_or(InodeNo::ROOT, |dir| dir.attr.ino);
        let attr = match files.lookup(SELF, dir, &name).await {
            Ok(entry) => entry.attr,
            Err(Errno::ENOENT | Errno::ENOTDIR) => None,
            Err(error) => return Err(error),
        };
        let Some(attr) = attr else { return Ok(None) };
        found = Some(Found::new(files, attr));
    }
    Ok(found)
}

pub(super) fn name(part: &str) -> Result<Name, Errno> {
    Name::new(part.to_owned()).map_err(|_| Errno::EINVAL)
}

impl<'a> Found<'a> {
    /// Takes the result of a lookup.
    pub(super) fn new(files: &'a dyn Tree, attr: Attr) -> Self {
        Self { files, attr }
    }

    /// Reads all of a file, up to a length.
    ///
    /// # Errors
    /// Of the tree; EFBIG if it is longer.
    pub async fn read(&self, bytes_max: usize) -> Result<Bytes, Errno> {
        let (ino, flags) = (self.attr.ino, OpenFlags(libc::O_RDONLY));
        let opened = self.files.open(SELF, ino, flags).await?;
        let read = async {
            let mut bytes = BytesMut::new();
            loop {
                let at = bytes.len() as u64;
                let piece = self
                    .files
                    .read(SELF, ino, opened.fh, at, PIECE_BYTES, flags);
                let piece = piece.await?.data;
                bytes.extend_from_slice(&piece);
                if bytes.len() > bytes_max {
                    return Err(Errno(libc::EFBIG));
                }
                if piece.len() < PIECE_BYTES as usize {
                    return Ok(bytes.freeze());
                }
            }
        };
        let read = read.await;
        self.files.release(ino, opened.fh).await;
        read
    }
}
