//! The writes that were acknowledged and are not flushed yet: what the disk must not lose.
//!
//! A disk may lose what was written since the last flush, but not with its node still saying that all is well. The file
//! behind the stand-in may end (with the daemon, the connection or the disk's node) and be opened anew; what it was
//! given before and nobody has flushed may then be lost.
//!
//! | event | then |
//! | --- | --- |
//! | a write was done by the file as it is open now | kept, acknowledged |
//! | a write was done by a file that has been opened anew since | not kept: to be done again (SD1) |
//! | more than [`UNFLUSHED_BYTES_MAX`] are kept | a flush, before that write is acknowledged |
//! | a flush begins | marks what is kept |
//! | the marked flush was done, and the file is still the same | what was marked is forgotten; success |
//! | the marked flush was done by a file that has been opened anew since | to be done again (SD2) |
//! | the file is opened anew | all that is kept is written again, in order, before anything else (SD1) |

use bytes::Bytes;
use std::collections::VecDeque;

/// Upper limit of what is kept: so much memory a stand-in may take.
pub(super) const UNFLUSHED_BYTES_MAX: usize = 64 << 20;

/// Counts how often the file was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Opening(u64);

/// What a flush is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    opening: Opening,
    /// How many writes there have been.
    writes: u64,
}

impl Mark {
    /// Returns which opening of the file is to flush.
    pub(super) const fn opening(self) -> Opening {
        self.opening
    }
}

#[derive(Debug)]
struct Write {
    offset: u64,
    data: Bytes,
}

#[derive(Debug, Default)]
pub(super) struct Unflushed {
    opening: Opening,
    kept: VecDeque<Write>,
    bytes: usize,
    /// Writes that were kept once and are flushed.
    flushed: u64,
    #[cfg(test)]
    pub(super) mutant: Option<Mutant>,
}

/// What the tests of the disk have to catch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mutant {
    /// The file is not given again what it had.
    RepeatNothing,
    /// A write counts, whichever opening of the file has done it.
    KeepAnyWrite,
    /// A flush counts, whichever opening of the file has done it.
    CountAnyFlush,
    /// A flush counts for what was written after it began.
    FlushTooMuch,
}

impl Unflushed {
    pub(super) const fn opening(&self) -> Opening {
        self.opening
    }

    /// Keeps a write that the file has done; returns whether it may be acknowledged, or is to be done again.
    pub(super) fn keep(&mut self, opening: Opening, offset: u64, data: &Bytes) -> bool {
        if opening != self.opening && !self.is(Mutant::KeepAnyWrite) {
            return false;
        }
        self.bytes += data.len();
        let data = data.clone();
        self.kept.push_back(Write { offset, data });
        true
    }

    /// Returns whether a flush has to come first.
    pub(super) const fn is_full(&self) -> bool {
        self.bytes > UNFLUSHED_BYTES_MAX
    }

    /// Begins a flush, by the file as it is open now.
    pub(super) fn mark(&self) -> Mark {
        Mark {
            opening: self.opening,
            writes: self.flushed + self.kept.len() as u64,
        }
    }

    /// A flush was done; returns whether it may be acknowledged, or is to be done again.
    pub(super) fn flushed(&mut self, mark: Mark) -> bool {
        if mark.opening != self.opening && !self.is(Mutant::CountAnyFlush) {
            return false;
        }
        while self.flushed < mark.writes || self.is(Mutant::FlushTooMuch) {
            let Some(write) = self.kept.pop_front() else {
                break;
            };
            self.bytes -= write.data.len();
            self.flushed += 1;
        }
        true
    }

    /// Returns what has to be written to the file when it is opened anew, in order.
    pub(super) fn again(&self) -> impl Iterator<Item = (u64, &Bytes)> {
        let count = if self.is(Mutant::RepeatNothing) {
            0
        } else {
            self.kept.len()
        };
        let again = self.kept.iter().take(count);
        again.map(|write| (write.offset, &write.data))
    }

    /// The file was opened anew, and has been given [`Self::again`].
    pub(super) const fn opened(&mut self) {
        self.opening.0 += 1;
    }

    #[cfg(test)]
    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self, reason = "as in tests")]
    const fn is(&self, _: Mutant) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Bytes = Bytes::from_static(b"one");
    const TWO: Bytes = Bytes::from_static(b"two");

    fn unflushed(mutant: Option<Mutant>) -> Unflushed {
        Unflushed {
            mutant,
            ..Unflushed::default()
        }
    }

    fn again(unflushed: &Unflushed) -> Vec<(u64, Bytes)> {
        let again = unflushed.again();
        again.map(|(offset, data)| (offset, data.clone())).collect()
    }

    fn a_flush_is_for_what_came_before_it(mutant: Option<Mutant>) -> bool {
        let mut unflushed = unflushed(mutant);
        let opening = unflushed.opening();
        let mut right = unflushed.keep(opening, 0, &ONE);
        let mark = unflushed.mark();
        right &= unflushed.keep(opening, 8, &TWO);
        right &= unflushed.flushed(mark);
        right &= again(&unflushed) == [(8, TWO)];
        // An older flush that ends later takes nothing away.
        right &= unflushed.flushed(mark);
        right &= again(&unflushed) == [(8, TWO)];
        right &= unflushed.flushed(unflushed.mark());
        right && again(&unflushed).is_empty() && unflushed.bytes == 0
    }

    fn what_another_opening_did_is_no_success(mutant: Option<Mutant>) -> bool {
        let mut unflushed = unflushed(mutant);
        let before = unflushed.opening();
        let kept = unflushed.keep(before, 0, &ONE);
        let mark = unflushed.mark();
        unflushed.opened();
        let counted = unflushed.keep(before, 0, &TWO) || unflushed.flushed(mark);
        kept && !counted && again(&unflushed) == [(0, ONE)]
    }

    #[test]
    fn rules() {
        assert!(a_flush_is_for_what_came_before_it(None));
        assert!(what_another_opening_did_is_no_success(None));
        for mutant in [Mutant::FlushTooMuch, Mutant::RepeatNothing] {
            assert!(!a_flush_is_for_what_came_before_it(Some(mutant)));
        }
        for mutant in [Mutant::KeepAnyWrite, Mutant::CountAnyFlush] {
            assert!(!what_another_opening_did_is_no_success(Some(mutant)));
        }
    }

    #[test]
    fn what_is_kept_has_a_bound() {
        let mut unflushed = Unflushed::default();
        let data = Bytes::from(vec![0; UNFLUSHED_BYTES_MAX]);
        let opening = unflushed.opening();
        assert!(unflushed.keep(opening, 0, &data) && !unflushed.is_full());
        assert!(unflushed.keep(opening, 0, &data) && unflushed.is_full());
        assert!(unflushed.flushed(unflushed.mark()) && !unflushed.is_full());
    }
}
