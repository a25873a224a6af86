//! When a device is ready, as poll(2) and epoll(7) tell.
//!
//! Tokio keeps what epoll has told of a descriptor until somebody clears it; so readers, writers and who polls have
//! descriptors of their own, and none clears what another waits for.

use crate::sys;
use futures::FutureExt;
use gfs::tree::READY;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

const ALL: Interest = Interest::READABLE
    .add(Interest::WRITABLE)
    .add(Interest::PRIORITY);

/// The readiness of an open device.
#[derive(Debug)]
pub(crate) struct Readiness {
    reads: AsyncFd<OwnedFd>,
    writes: AsyncFd<OwnedFd>,
    polls: AsyncFd<OwnedFd>,
    /// What was told when it began to be watched.
    told: AtomicU32,
}

/// What was known of a device before something was tried with it: only that is forgotten when it was to no avail.
pub(crate) struct Before<'a> {
    device: &'a AsyncFd<OwnedFd>,
    known: Option<AsyncFdReadyGuard<'a, OwnedFd>>,
}

impl Readiness {
    /// Watches a device; `None` if poll(2) knows nothing of it: it is always ready. Within a runtime.
    pub(crate) fn of(file: &File) -> io::Result<Option<Self>> {
        let watch = || {
            let copy = file.as_fd().try_clone_to_owned()?;
            sys::watch(copy, ALL)
        };
        let reads = match watch() {
            Ok(reads) => reads,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(Self {
            reads,
            writes: watch()?,
            polls: watch()?,
            told: AtomicU32::new(0),
        }))
    }

    /// To be called before a read is tried.
    pub(crate) fn before_read(&self) -> Before<'_> {
        let known = self.reads.ready(Interest::READABLE).now_or_never();
        Before {
            device: &self.reads,
            known: known.and_then(Result::ok),
        }
    }

    /// To be called before a write is tried.
    pub(crate) fn before_write(&self) -> Before<'_> {
        let known = self.writes.ready(Interest::WRITABLE).now_or_never();
        Before {
            device: &self.writes,
            known: known.and_then(Result::ok),
        }
    }

    /// Returns what the device is ready for. `begin`: forgets what has happened until now, for [`Self::changed`].
    pub(crate) fn now(&self, file: &File, begin: bool) -> u32 {
        if begin && let Some(Ok(mut known)) = self.polls.ready(ALL).now_or_never() {
            known.clear_ready();
        }
        let ready = look(file);
        if begin {
            self.told.store(ready, Ordering::Relaxed);
        }
        ready
    }

    /// Waits until something happens after the last [`Self::now`] that began it and that may make the device ready. Who has epoll tell of
    /// edges waits for the event, be the device as ready as it was.
    pub(crate) async fn changed(&self, file: &File) {
        while look(file) == self.told.load(Ordering::Relaxed) {
            let Ok(mut event) = self.polls.ready(ALL).await else {
                return;
            };
            event.clear_ready();
            if look(file) != 0 {
                return;
            }
        }
    }
}

impl Before<'_> {
    /// The read was to no avail: waits for the next event.
    pub(crate) async fn readable(self) {
        self.next(Interest::READABLE).await;
    }

    /// The write was to no avail: waits for the next event.
    pub(crate) async fn writable(self) {
        self.next(Interest::WRITABLE).await;
    }

    async fn next(self, interest: Interest) {
        if let Some(mut known) = self.known {
            known.clear_ready();
        }
        // An error here is the end of the runtime; whoever waits then finds out by the next try.
        drop(self.device.ready(interest).await);
    }
}

fn look(file: &File) -> u32 {
    let wanted = PollFlags::POLLIN
        | PollFlags::POLLRDNORM
        | PollFlags::POLLOUT
        | PollFlags::POLLWRNORM
        | PollFlags::POLLPRI;
    let mut polled = [PollFd::new(file.as_fd(), wanted)];
    // What it cannot tell it is ready for: the read or write tells what is wrong.
    poll(&mut polled, PollTimeout::ZERO)
        .ok()
        .and_then(|_| polled[0].revents())
        .map_or(READY, |ready| u32::from(ready.bits().cast_unsigned()))
}
