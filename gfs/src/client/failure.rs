//! What became of changes that could not be flushed, and who has been told.
//!
//! Whoever has the file open for writing is told once through each handle, as on a local file system: who closes it after
//! reading must not take the error away from the one who wrote (S3). Nor does a close(2) of the writer's own handle: each
//! child of a process closes its copy of the parent's descriptors when it executes a program, and hears of nothing.

use crate::error::Errno;
use std::collections::BTreeSet;

/// Bit of a handle: it was opened for writing.
pub(super) const WRITES: u64 = 2;
/// In the place of a handle: who asks has none.
pub(super) const NO_HANDLE: u64 = 0;

/// The last error of a file. Handles are numbered in the order of their opening.
#[derive(Debug, Default)]
pub(super) struct Failure {
    error: Option<Errno>,
    /// Somebody was told: who opens the file later is not.
    seen: bool,
    /// The newest handle for writing at the time of the error.
    newest: u64,
    /// Those that were told.
    told: BTreeSet<u64>,
}

impl Failure {
    pub(super) const NONE: Self = Self {
        error: None,
        seen: false,
        newest: 0,
        told: BTreeSet::new(),
    };

    pub(super) fn new(error: Errno, newest: u64) -> Self {
        Self {
            error: Some(error),
            newest,
            ..Self::NONE
        }
    }

    pub(super) const fn is_none(&self) -> bool {
        self.error.is_none()
    }

    /// Returns what a handle has to be told.
    pub(super) fn tell(&mut self, handle: u64) -> Option<Errno> {
        let error = self.error?;
        if handle != NO_HANDLE && handle & WRITES == 0 {
            return (!self.seen).then_some(error);
        }
        let wrote = handle != NO_HANDLE && handle <= self.newest;
        let untold = if wrote {
            self.told.insert(handle)
        } else {
            !self.seen
        };
        self.seen = true;
        untold.then_some(error)
    }

    /// Returns what close(2) of a handle for writing has to tell. An fsync through the same handle is still told.
    pub(super) fn tell_close(&mut self, handle: u64) -> Option<Errno> {
        let wrote = handle <= self.newest;
        let untold = if wrote {
            !self.told.contains(&handle)
        } else {
            !self.seen
        };
        let error = self.error.filter(|_| untold)?;
        self.seen = true;
        Some(error)
    }

    /// A handle for writing is released; it may be the `last` one.
    pub(super) fn released(&mut self, handle: u64, last: bool) {
        self.told.remove(&handle);
        if last && self.seen {
            *self = Self::NONE;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READER: u64 = 1 << 2;
    const WRITER: u64 = 2 << 2 | WRITES;
    const OTHER: u64 = 3 << 2 | WRITES;
    const LATER: u64 = 4 << 2 | WRITES;

    #[test]
    fn every_writer_is_told_once_whoever_else_was() {
        let error = Some(Errno::EIO);
        let mut failure = Failure::new(Errno::EIO, OTHER);
        assert_eq!(failure.tell(READER), error);
        assert_eq!(failure.tell(READER), error, "a reader takes nothing away");
        assert_eq!(failure.tell(NO_HANDLE), error);
        assert_eq!(failure.tell(NO_HANDLE), None, "it was seen");
        assert_eq!(failure.tell(LATER), None, "it was seen before the open");
        assert_eq!(failure.tell(WRITER), error);
        assert_eq!(failure.tell(WRITER), None);
        assert_eq!(failure.tell(OTHER), error);
        failure.released(WRITER, false);
        failure.released(OTHER, true);
        assert_eq!(failure.tell(OTHER), None);
    }

    #[test]
    fn a_close_takes_nothing_away_from_the_fsync_of_its_handle() {
        let error = Some(Errno::EIO);
        let mut failure = Failure::new(Errno::EIO, WRITER);
        assert_eq!(failure.tell_close(WRITER), error, "of a child's copy");
        assert_eq!(
            failure.tell_close(LATER),
            None,
            "it was seen before the open"
        );
        assert_eq!(failure.tell(WRITER), error);
        assert_eq!(failure.tell_close(WRITER), None);
        assert_eq!(failure.tell(WRITER), None);
    }

    #[test]
    fn who_opens_it_next_is_told_if_nobody_was() {
        let mut failure = Failure::new(Errno::EIO, WRITER);
        failure.released(WRITER, true);
        assert_eq!(failure.tell(LATER), Some(Errno::EIO));
        assert_eq!(failure.tell(LATER), None);
    }
}
