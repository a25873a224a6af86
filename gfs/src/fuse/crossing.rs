//! K2: a size that the kernel shows is one that it keeps.
//!
//! Told to forget an inode's attributes between its GETATTR and the moment at which the thread that asked takes the reply
//! up, the kernel shows the reply to that thread and keeps nothing of it (`attr_version` in fs/fuse/inode.c): fstat tells
//! the size that another node gave the file, but loads and stores through a mapping behind the old size meet SIGBUS, since
//! a page fault asks nobody. So
//! - a reply that may have crossed such a notification on its way from the kernel does not leave before the kernel has
//!   that size: it is made to ask once more ([`Asker`](super::asker::Asker)), and then the first question is answered;
//! - such a notification waits until the size in a reply that has just left is with the kernel.
//!
//! | event | what is done |
//! | --- | --- |
//! | the kernel is about to be told to forget | written down with the time; replies that were found not to cross are let out, and the last one taken up |
//! | it has been told | written down with the time |
//! | GETATTR or STATX, told less than [`CROSSING_WITHIN`] before it came, or since | the size that the kernel has is read; if it is another one it asks once more |
//! | the kernel has the size | until it is told again every reply is right: a size that changes makes it be told |
//! | the same from the thread that asks once more | answered at once |
//! | this node's own write, truncation, allocation | the size in a reply from before it is not waited for |

use super::asker::Place;
use consistency::InodeNo;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A question may have been on its way from the kernel for so long when it is read, on a busy machine.
const CROSSING_WITHIN: Duration = Duration::from_millis(100);
/// A thread that has an answer gets this long to take it up; it may also have died meanwhile.
const TAKEN_UP_WITHIN: Duration = Duration::from_secs(1);
/// What shares a slot is taken for one inode, which costs a look too many at worst.
const SLOTS: usize = 1024;
/// Pause between two looks whether a reply was taken up.
const LOOK_PAUSE: Duration = Duration::from_micros(50);

/// When the kernel was told to forget attributes, and the replies with attributes that are on their way to it.
#[derive(Debug)]
pub(super) struct Crossings {
    place: Arc<Place>,
    slots: Vec<Mutex<Slot>>,
}

/// Of all inodes with one hash.
#[derive(Debug, Default)]
struct Slot {
    told: Option<Instant>,
    /// The kernel had this one's size after it was told.
    settled: Option<InodeNo>,
    /// Replies that were found not to cross and have not reached the kernel yet.
    replies: u32,
    /// The last of them.
    last: Option<Left>,
}

/// A reply that has left.
#[derive(Clone, Copy, Debug)]
struct Left {
    ino: InodeNo,
    size: u64,
    at: Instant,
}

impl Crossings {
    pub(super) fn new(place: Arc<Place>) -> Self {
        Self {
            place,
            slots: (0..SLOTS).map(|_| Mutex::default()).collect(),
        }
    }

    /// Runs a notification that has the kernel forget attributes. Blocks while replies are being written and taken up.
    pub(super) fn tell<T>(&self, ino: InodeNo, notify: impl FnOnce() -> T) -> T {
        self.slot(ino).mark();
        // Who asks for a reply from here on sees that the kernel is being told.
        while self.slot(ino).replies > 0 {
            thread::yield_now();
        }
        let left = self.slot(ino).last.take();
        if let Some(left) = left.filter(|left| left.ino == ino) {
            self.wait_taken_up(left);
        }
        let told = notify();
        self.slot(ino).mark();
        told
    }

    fn wait_taken_up(&self, left: Left) {
        // A kernel that does not have the inode maps nothing of it.
        let elsewhere = |size| size != left.size;
        while left.at.elapsed() <= TAKEN_UP_WITHIN
            && self.place.kernel_size(left.ino).is_ok_and(elsewhere)
        {
            thread::sleep(LOOK_PAUSE);
        }
    }

    /// Returns what the reply to a question that has come `at` is kept with until it is written, if nothing crosses it.
    pub(super) fn reply(
        self: &Arc<Self>,
        ino: InodeNo,
        size: u64,
        at: Instant,
    ) -> Option<Replying> {
        let mut slot = self.slot(ino);
        let told = |told: Instant| told + CROSSING_WITHIN >= at;
        if slot.settled != Some(ino) && slot.told.is_some_and(told) {
            return None;
        }
        slot.replies += 1;
        Some(Replying {
            crossings: Arc::clone(self),
            ino,
            size,
        })
    }

    /// This node is about to change the size of an inode.
    pub(super) fn resizing(&self, ino: InodeNo) {
        let mut slot = self.slot(ino);
        slot.last = slot.last.filter(|left| left.ino != ino);
    }

    /// Returns when the kernel was told last, for [`Self::settle`].
    pub(super) fn told(&self, ino: InodeNo) -> Option<Instant> {
        self.slot(ino).told
    }

    /// The kernel was found to have the size that the tree has, and had been told last at `told` before that.
    pub(super) fn settle(&self, ino: InodeNo, told: Option<Instant>) {
        let mut slot = self.slot(ino);
        if slot.told == told {
            slot.settled = Some(ino);
        }
    }

    fn slot(&self, ino: InodeNo) -> MutexGuard<'_, Slot> {
        let hashed = ino.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let slot = &self.slots[usize::try_from(hashed).unwrap_or(0) % SLOTS];
        slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    fn mark(&mut self) {
        self.told = Some(Instant::now());
        self.settled = None;
    }
}

/// A reply on its way to the kernel.
#[derive(Debug)]
pub(super) struct Replying {
    crossings: Arc<Crossings>,
    ino: InodeNo,
    size: u64,
}

impl Drop for Replying {
    fn drop(&mut self) {
        let mut slot = self.crossings.slot(self.ino);
        slot.replies -= 1;
        slot.last = Some(Left {
            ino: self.ino,
            size: self.size,
            at: Instant::now(),
        });
    }
}
