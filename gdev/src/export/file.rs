//! A file of an exported directory that is open for another node: the owner's side of its session.

use super::hands::{Hands, as_user};
use super::ops::alter;
use super::place::{errno, path_of_fd, stat_of};
use super::sys;
use super::wire::{Change, Stat};
use crate::session::Served;
use crate::wire::User;
use crate::wire::session::{Answer, Ask};
use async_trait::async_trait;
use consistency::wire::meta::FileKind;
use gfs::error::Errno;
use gfs::tree::READY;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, ftruncate, lseek};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use tokio::sync::Notify;

/// An open file.
#[derive(Debug)]
pub(super) struct Open {
    file: File,
    /// Who opened it: what is written counts as his.
    who: User,
    read_only: bool,
    hands: Arc<Hands>,
}

impl Open {
    pub(super) const fn new(file: File, who: User, read_only: bool, hands: Arc<Hands>) -> Self {
        Self {
            file,
            who,
            read_only,
            hands,
        }
    }

    /// Answers a question. Blocks, on a thread of [`Hands`].
    fn answered(&self, what: Ask) -> Result<Answer, Errno> {
        let count = |count: usize| Answer::Count(count as u64);
        match what {
            Ask::Read { offset, size, .. } => self.read(offset, size as usize),
            // The kernel takes the bits that change user and group from what is written by who may not give them.
            Ask::Write { offset, data, .. } => {
                let write = || self.file.write_at(&data, offset).map_err(io_errno);
                as_user(&self.who, 0, write).map(count)
            }
            Ask::Append { data } => {
                let append = || sys::append(self.file.as_fd(), &data).map_err(errno);
                as_user(&self.who, 0, append).map(count)
            }
            Ask::Sync => self
                .file
                .sync_all()
                .map(|()| Answer::Done)
                .map_err(io_errno),
            Ask::Allocate { mode, offset, len } => {
                let number = |number| i64::try_from(number).map_err(|_| Errno::EINVAL);
                let (offset, len) = (number(offset)?, number(len)?);
                let mode = FallocateFlags::from_bits(mode).ok_or(Errno::ENOTSUP)?;
                let allocate = || fallocate(&self.file, mode, offset, len).map_err(errno);
                as_user(&self.who, 0, allocate).map(|()| Answer::Done)
            }
            Ask::Seek { offset, whence } => self.seek(offset, whence),
            Ask::Poll { .. } => Ok(Answer::Count(READY.into())),
            Ask::Stat => self.stat(),
            Ask::Change { who, change } => self.change(&who, change),
            Ask::Lock(lock) => {
                let taken = sys::lock(self.file.as_fd(), lock).map_err(errno);
                taken.map(|()| Answer::Done)
            }
            Ask::TestLock(lock) => {
                let found = sys::test_lock(self.file.as_fd(), lock).map_err(errno);
                found.map(Answer::Lock)
            }
            Ask::Control { .. } => Err(Errno::ENOTTY),
        }
    }

    fn read(&self, offset: u64, size: usize) -> Result<Answer, Errno> {
        let mut data = vec![0; size];
        let mut taken = 0;
        // Fewer bytes than asked for mean the end of the file.
        while taken < size {
            let at = offset.saturating_add(taken as u64);
            match self.file.read_at(&mut data[taken..], at) {
                Ok(0) => break,
                Ok(count) => taken += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) if taken > 0 => break,
                Err(error) => return Err(io_errno(error)),
            }
        }
        data.truncate(taken);
        Ok(Answer::Data(data.into()))
    }

    /// Positions are of nobody else: reads and writes tell theirs.
    fn seek(&self, offset: u64, whence: i32) -> Result<Answer, Errno> {
        let offset = i64::try_from(offset).map_err(|_| Errno(libc::ENXIO))?;
        let whence = match whence {
            libc::SEEK_DATA => Whence::SeekData,
            libc::SEEK_HOLE => Whence::SeekHole,
            _ => return Err(Errno::EINVAL),
        };
        let found = lseek(&self.file, offset, whence).map_err(errno)?;
        let found = u64::try_from(found).map_err(|_| Errno::EIO)?;
        Ok(Answer::Count(found))
    }

    fn change(&self, who: &User, change: Change) -> Result<Answer, Errno> {
        if self.read_only {
            return Err(Errno(libc::EROFS));
        }
        let fd = self.file.as_fd();
        as_user(who, 0, || {
            alter(fd, &path_of_fd(fd), FileKind::File, change, |size| {
                ftruncate(fd, size).map_err(errno)
            })
        })?;
        self.stat()
    }

    fn stat(&self) -> Result<Answer, Errno> {
        let stat: Stat = stat_of(self.file.as_fd())?;
        Ok(Answer::Stat(Box::new(stat)))
    }
}

#[async_trait]
impl Served for Open {
    async fn answer(self: Arc<Self>, what: Ask, _: &Notify) -> Answer {
        let open = Arc::clone(&self);
        let answered = self.hands.run(move || open.answered(what)).await;
        answered.unwrap_or_else(|errno| Answer::Failed(errno.0))
    }
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn io_errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno)
}
