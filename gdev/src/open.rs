//! A device that is open for another node: what is done with it, on the node that owns it.
//!
//! Devices are opened with O_NONBLOCK and waited for here, so that a wait costs no thread and ends when its caller
//! gives up. What has begun is finished and answered: a read that took bytes from a terminal must not lose them.
//! Devices that poll(2) knows nothing of (disks, `zero`) never make anybody wait for long, and are used from threads.

use crate::class::Class;
use crate::controls::{self, DISK_CLAIMS};
use crate::disks::Guard;
use crate::readiness::Readiness;
use crate::session::Served;
use crate::sys;
use crate::wire::session::{Access, Answer, Ask, How};
use async_trait::async_trait;
use bytes::Bytes;
use gfs::error::Errno;
use gfs::tree::READY;
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex};
use tokio::sync::{Notify, Semaphore};

/// What may be done to a disk by fallocate(2): what leaves its size as it is.
const ALLOCATIONS: [FallocateFlags; 3] = [
    FallocateFlags::FALLOC_FL_ZERO_RANGE,
    FallocateFlags::FALLOC_FL_ZERO_RANGE.union(FallocateFlags::FALLOC_FL_KEEP_SIZE),
    FallocateFlags::FALLOC_FL_PUNCH_HOLE.union(FallocateFlags::FALLOC_FL_KEEP_SIZE),
];

/// An open device.
#[derive(Debug)]
pub(crate) struct Open {
    file: File,
    /// Bounds the threads.
    turns: Arc<Semaphore>,
    class: Class,
    how: How,
    /// The caller may do what Linux asks a capability for.
    root: bool,
    access: Access,
    /// What the next reader of [`Access::Records`] has as its position.
    next: Mutex<u64>,
    readiness: Option<Readiness>,
    /// After the file: it has written all by then.
    claim: Option<Guard>,
}

impl Open {
    /// Opens the device at `path`; the caller's rights have been checked. Blocks, within a runtime.
    pub(crate) fn new(
        path: &Path,
        class: Class,
        how: How,
        root: bool,
        claim: Option<Guard>,
        turns: Arc<Semaphore>,
    ) -> Result<Arc<Self>, Errno> {
        // Never the agent's own terminal, and never a wait for a carrier.
        let mut flags = libc::O_NOCTTY;
        if class != Class::Block {
            flags |= libc::O_NONBLOCK;
        }
        if how.durable {
            flags |= libc::O_SYNC;
        }
        let mut options = OpenOptions::new();
        options.read(how.read).write(how.write).custom_flags(flags);
        let mut file = options.open(path).map_err(errno)?;
        let access = match class {
            Class::Kmsg => Access::Records,
            _ if file.stream_position().is_ok() => Access::Random,
            _ => Access::Stream,
        };
        let readiness = Readiness::of(&file).map_err(errno)?;
        Ok(Arc::new(Self {
            file,
            turns,
            class,
            how,
            root,
            access,
            next: Mutex::new(0),
            readiness,
            claim,
        }))
    }

    /// Returns how it is read and written.
    pub(crate) const fn access(&self) -> Access {
        self.access
    }

    /// Returns what the device is ready for, as poll(2) tells. `begin`: so that [`Served::changed`] tells what comes after.
    pub(crate) fn ready(&self, begin: bool) -> u32 {
        self.readiness
            .as_ref()
            .map_or(READY, |readiness| readiness.now(&self.file, begin))
    }

    async fn answered(self: &Arc<Self>, what: Ask, cancelled: &Notify) -> Result<Answer, Errno> {
        match what {
            Ask::Read { offset, size, wait } => {
                let read = self.read(offset, size as usize, wait, cancelled);
                read.await.map(Answer::Data)
            }
            Ask::Write { offset, data, wait } => {
                let written = self.write(offset, data, wait, cancelled).await;
                written.map(|count| Answer::Count(count as u64))
            }
            Ask::Poll { wake } => Ok(Answer::Count(self.ready(wake).into())),
            Ask::Sync => {
                let sync = self.in_thread(|open| open.file.sync_all());
                sync.await.map(|()| Answer::Done).map_err(errno)
            }
            Ask::Allocate { mode, offset, len } => {
                let allocate = self.in_thread(move |open| open.allocate(mode, offset, len));
                allocate.await.map(|()| Answer::Done)
            }
            Ask::Seek { offset, whence } => {
                let seek = self.in_thread(move |open| open.seek(offset, whence));
                seek.await.map(Answer::Count)
            }
            Ask::Control { command, input } => {
                let control = self.in_thread(move |open| open.control(command, &input));
                control.await.map(Answer::Data)
            }
            // Of files.
            Ask::Append { .. }
            | Ask::Stat
            | Ask::Change { .. }
            | Ask::Lock(_)
            | Ask::TestLock(_) => Err(Errno::EINVAL),
        }
    }

    async fn read(
        self: &Arc<Self>,
        offset: u64,
        size: usize,
        wait: bool,
        cancelled: &Notify,
    ) -> Result<Bytes, Errno> {
        if !self.how.read {
            return Err(Errno(libc::EBADF));
        }
        loop {
            let event = self.readiness.as_ref().map(Readiness::before_read);
            let read = self.in_thread(move |open| open.read_now(offset, size));
            match read.await {
                Ok(data) => return Ok(data),
                Err(error) if !wait || error.kind() != ErrorKind::WouldBlock => {
                    return Err(errno(error));
                }
                Err(_) => {}
            }
            let event = event.ok_or(Errno::EIO)?;
            tokio::select! {
                () = event.readable() => {}
                () = cancelled.notified() => return Err(Errno(libc::EINTR)),
            }
        }
    }

    async fn write(
        self: &Arc<Self>,
        offset: u64,
        data: Bytes,
        wait: bool,
        cancelled: &Notify,
    ) -> Result<usize, Errno> {
        if !self.how.write {
            return Err(Errno(libc::EBADF));
        }
        let mut taken = 0;
        loop {
            let event = self.readiness.as_ref().map(Readiness::before_write);
            let rest = data.slice(taken..);
            let at = offset + taken as u64;
            let failure = match self.in_thread(move |open| open.write_now(at, &rest)).await {
                Ok(count) => {
                    taken += count;
                    if taken == data.len() || count == 0 {
                        return Ok(taken);
                    }
                    continue;
                }
                Err(error) if wait && error.kind() == ErrorKind::WouldBlock => {
                    let event = event.ok_or(Errno::EIO)?;
                    tokio::select! {
                        () = event.writable() => continue,
                        () = cancelled.notified() => Errno(libc::EINTR),
                    }
                }
                Err(error) => errno(error),
            };
            // What was taken is told; the failure comes again with the next write.
            return if taken > 0 { Ok(taken) } else { Err(failure) };
        }
    }

    fn read_now(&self, offset: u64, size: usize) -> io::Result<Bytes> {
        let mut data = vec![0; size];
        let count = match self.access {
            Access::Random => self.file.read_at(&mut data, offset)?,
            Access::Stream => (&self.file).read(&mut data)?,
            Access::Records => self.read_record(offset, &mut data)?,
        };
        data.truncate(count);
        Ok(data.into())
    }

    /// Reads the next record. A reader who has gone back to the beginning gets the first one.
    fn read_record(&self, offset: u64, data: &mut [u8]) -> io::Result<usize> {
        let mut next = self.next.lock().expect("no holder panics");
        if offset == 0 && *next != 0 {
            (&self.file).rewind()?;
            *next = 0;
        }
        let read = (&self.file).read(data);
        match &read {
            Ok(count) => *next = offset + *count as u64,
            // It did not fit, and the kernel has gone past it.
            Err(error) if error.kind() == ErrorKind::InvalidInput => *next = u64::MAX,
            Err(_) => {}
        }
        read
    }

    fn write_now(&self, offset: u64, data: &[u8]) -> io::Result<usize> {
        match self.access {
            Access::Random => self.file.write_at(data, offset),
            Access::Stream | Access::Records => (&self.file).write(data),
        }
    }

    fn allocate(&self, mode: i32, offset: u64, len: u64) -> Result<(), Errno> {
        let mode = FallocateFlags::from_bits(mode).filter(|mode| ALLOCATIONS.contains(mode));
        let mode = mode.ok_or(Errno::ENOTSUP)?;
        let number = |number| i64::try_from(number).map_err(|_| Errno::EINVAL);
        let (offset, len) = (number(offset)?, number(len)?);
        let file = match &self.claim {
            _ if !self.how.write => return Err(Errno(libc::EBADF)),
            Some(claim) => claim.held(),
            None => &self.file,
        };
        fallocate(file, mode, offset, len).map_err(|errno| Errno(errno as i32))
    }

    /// Seeks to data. Of the kernel's log that is the first record that was not cleared away; the position then told
    /// means the next record.
    fn seek(&self, offset: u64, whence: i32) -> Result<u64, Errno> {
        let offset = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
        match (self.access, whence) {
            (Access::Records, libc::SEEK_DATA) => {
                let whence = nix::unistd::Whence::SeekData;
                nix::unistd::lseek(&self.file, offset, whence)
                    .map_err(|errno| Errno(errno as i32))?;
                *self.next.lock().expect("no holder panics") = 0;
                Ok(0)
            }
            // Disks are all data, as far as anybody can tell.
            (Access::Random, libc::SEEK_DATA | libc::SEEK_HOLE) => {
                let end = (&self.file).seek(SeekFrom::End(0)).map_err(errno)?;
                let offset = u64::try_from(offset).unwrap_or(0);
                match whence {
                    _ if offset >= end => Err(Errno(libc::ENXIO)),
                    libc::SEEK_HOLE => Ok(end),
                    _ => Ok(offset),
                }
            }
            _ => Err(Errno::EINVAL),
        }
    }

    fn control(&self, command: u32, input: &[u8]) -> Result<Bytes, Errno> {
        let control = controls::allow(self.class, command, input.len(), self.how, self.root)?;
        if control.command == DISK_CLAIMS {
            let claim = self.claim.as_ref().ok_or(Errno(libc::EBADF))?;
            return Ok(claim.told().map(u64::to_ne_bytes).concat().into());
        }
        let output = sys::control(self.file.as_fd(), control, input);
        output.map(Bytes::from).map_err(|errno| Errno(errno as i32))
    }

    async fn in_thread<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> T {
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        let open = Arc::clone(self);
        let work = move || {
            let done = work(&open);
            // Here and not in the runtime: the last close of a disk writes all that its node has cached of it.
            drop(open);
            drop(turn);
            done
        };
        tokio::task::spawn_blocking(work)
            .await
            .expect("using a device does not panic")
    }
}

#[async_trait]
impl Served for Open {
    async fn answer(self: Arc<Self>, what: Ask, cancelled: &Notify) -> Answer {
        let answered = self.answered(what, cancelled).await;
        answered.unwrap_or_else(|errno| Answer::Failed(errno.0))
    }

    async fn changed(&self) {
        match &self.readiness {
            Some(readiness) => readiness.changed(&self.file).await,
            None => std::future::pending().await,
        }
    }
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno)
}
