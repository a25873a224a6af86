//! Who says how a job has ended.

use super::super::protocol::End;
use super::super::sys;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use tokio::sync::Notify;

/// Whose word counts about the end of a job: the kernel's, of the original, or the deputy's.
#[derive(Debug, Default)]
pub(in crate::job) struct Seat {
    /// The original is no child of this process.
    forked: bool,
    state: Mutex<SeatState>,
    changed: Notify,
    /// So many of its processes were ended for want of memory where it was a copy.
    out_of_memory: AtomicU64,
    /// So far it had read, as a copy, in the file that it has as input.
    input_at: Mutex<Option<u64>>,
}

#[derive(Debug, Default)]
enum SeatState {
    #[default]
    Here,
    /// As [`Self::Here`], but signals wait.
    Moves,
    Away,
    Over(End),
}

impl Seat {
    pub(super) fn new(forked: bool) -> Self {
        Self {
            forked,
            ..Self::default()
        }
    }

    fn state(&self) -> MutexGuard<'_, SeatState> {
        self.state.lock().expect("no holder panics")
    }

    /// Takes the original off the process table if it has ended and counts; returns how the job has ended.
    pub(in crate::job) fn try_wait(&self, pidfd: BorrowedFd<'_>) -> io::Result<Option<End>> {
        let mut state = self.state();
        match &*state {
            SeatState::Here | SeatState::Moves => {
                let end = match self.forked {
                    false => sys::try_wait(pidfd)?,
                    // It only waits, so somebody has killed it.
                    true => sys::has_ended(pidfd)?.then_some(End::Killed(libc::SIGKILL)),
                };
                if let Some(end) = &end {
                    *state = SeatState::Over(end.clone());
                }
                Ok(end)
            }
            SeatState::Away => Ok(None),
            SeatState::Over(end) => Ok(Some(end.clone())),
        }
    }

    /// Waits until [`Self::try_wait`] may say something else than the original does.
    pub(in crate::job) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Returns whether the original does not count any more.
    pub(in crate::job) fn is_away(&self) -> bool {
        matches!(&*self.state(), SeatState::Away)
    }

    pub(super) fn is_away_or_moves(&self) -> bool {
        matches!(&*self.state(), SeatState::Away | SeatState::Moves)
    }

    /// The original counts no more; `false`: it has ended and was waited for.
    pub(super) fn leave(&self) -> bool {
        let mut state = self.state();
        if matches!(&*state, SeatState::Over(_)) {
            return false;
        }
        *state = SeatState::Away;
        true
    }

    pub(super) fn moves(&self, moves: bool) {
        let mut state = self.state();
        match (&*state, moves) {
            (SeatState::Here, true) => *state = SeatState::Moves,
            (SeatState::Moves, false) => *state = SeatState::Here,
            _ => {}
        }
    }

    pub(super) fn count_out_of_memory(&self, processes: u64) {
        self.out_of_memory.fetch_add(processes, Ordering::Relaxed);
    }

    /// Returns how many of its processes were ended for want of memory, but for those of the original.
    pub(in crate::job) fn out_of_memory(&self) -> u64 {
        self.out_of_memory.load(Ordering::Relaxed)
    }

    pub(super) fn reads_on_at(&self, place: u64) {
        *self.input_at.lock().expect("no holder panics") = Some(place);
    }

    /// Returns where it would read on in the file that it has as input, if it was elsewhere.
    pub(in crate::job) fn input_at(&self) -> Option<u64> {
        *self.input_at.lock().expect("no holder panics")
    }

    pub(super) fn end(&self, end: End) {
        *self.state() = SeatState::Over(end);
        self.changed.notify_one();
    }
}
