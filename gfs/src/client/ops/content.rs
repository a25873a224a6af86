//! FALLOCATE and LSEEK.

use super::setattr::{changed, without_suidgid};
use crate::client::Core;
use crate::client::call::Patience;
use crate::client::content::Segment;
use crate::error::Errno;
use consistency::InodeNo;
use consistency::wire::lease::Mode;
use consistency::wire::meta::FILE_BYTES_MAX;
use std::sync::Arc;
use tokio::time::Instant as Deadline;

pub(super) async fn fallocate(
    core: &Arc<Core>,
    ino: InodeNo,
    handle: u64,
    offset: u64,
    len: u64,
    mode: i32,
) -> Result<(), Errno> {
    let end = offset.checked_add(len).filter(|&end| end <= FILE_BYTES_MAX);
    let end = end.ok_or(Errno(libc::EFBIG))?;
    if len == 0 {
        return Err(Errno::EINVAL);
    }
    let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
    let zero = match mode & !libc::FALLOC_FL_KEEP_SIZE {
        0 => false,
        libc::FALLOC_FL_PUNCH_HOLE if keep_size => true,
        libc::FALLOC_FL_ZERO_RANGE => true,
        _ => return Err(Errno::ENOTSUP),
    };
    let node = core.pin(ino);
    core.wait_for_room().await?;
    core.change_owned(&node, false, |state| {
        core.locks.check(handle)?;
        let now = core.clock.stamp();
        let size = state.size();
        let content = state
            .content
            .as_mut()
            .expect("an owned file's content is known");
        if zero && offset < size {
            if end >= size {
                content.dirty.truncate(offset);
            } else {
                content.dirty.zero(offset, len);
            }
        }
        let attr = state
            .attr
            .as_mut()
            .expect("an owned file's attributes are known");
        if !keep_size && end > size {
            attr.size = end;
        }
        attr.mtime = now;
        attr.mode = without_suidgid(attr.mode);
        changed(state, now);
        Ok(())
    })
    .await
}

/// SEEK_DATA and SEEK_HOLE; the end of the file is a hole.
pub(super) async fn lseek(
    core: &Arc<Core>,
    ino: InodeNo,
    offset: u64,
    whence: i32,
) -> Result<u64, Errno> {
    let hole = match whence {
        libc::SEEK_HOLE => true,
        libc::SEEK_DATA => false,
        _ => return Err(Errno::EINVAL),
    };
    let node = core.pin(ino);
    let until = Deadline::now() + core.config.request_deadline;
    while Deadline::now() < until {
        {
            let state = node.state();
            let usable = core.covered(&state, ino) || core.owned(ino);
            if let Some(content) = state.content.as_ref().filter(|_| usable) {
                let size = state.size();
                if offset >= size {
                    return Err(Errno(libc::ENXIO));
                }
                return seek(&content.segments(offset, size - offset), offset, hole);
            }
        }
        core.load(&node, Mode::Shared, Patience::Session).await?;
    }
    Err(Errno::EIO)
}

fn seek(segments: &[Segment], offset: u64, hole: bool) -> Result<u64, Errno> {
    let mut at = offset;
    for segment in segments {
        if matches!(segment, Segment::Zero(_)) == hole {
            return Ok(at);
        }
        at += segment.len();
    }
    if hole {
        Ok(at)
    } else {
        Err(Errno(libc::ENXIO))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[track_caller]
    fn check(offset: u64, hole: bool, expected: Result<u64, Errno>) {
        let data = Segment::Bytes(Bytes::from_static(b"0123456789"));
        let segments = [Segment::Zero(5), data.clone(), data, Segment::Zero(5)];
        assert_eq!(seek(&segments, offset, hole), expected);
    }

    #[test]
    fn seeking() {
        check(100, true, Ok(100));
        check(100, false, Ok(105));
        assert_eq!(seek(&[Segment::Zero(5)], 3, false), Err(Errno(libc::ENXIO)));
        let data = [Segment::Bytes(Bytes::from_static(b"abc"))];
        assert_eq!(seek(&data, 3, true), Ok(6), "the end is a hole");
    }
}
