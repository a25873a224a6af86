//! Which files are changed on one node while they are used on another.
//!
//! An open of such a file reads past the kernel's pages. They are not worth filling, and a buffered read takes a page
//! before it looks at the size: if the file grows in between, on another node or by a direct write on this one, it
//! returns the zeros behind the old end as content (docs/decisions/0006).

use consistency::{Duration, Instant};

/// So many breaks, each so soon after the one before, make a file shared; as long after the last it is no more.
const BREAKS: u32 = 2;
const SOON: Duration = Duration::from_millis(1_000);

/// The recent breaks of a file's content.
#[derive(Debug, Default)]
pub(super) struct Sharing {
    last: Option<Instant>,
    breaks: u32,
}

impl Sharing {
    pub(super) const NONE: Self = Self {
        last: None,
        breaks: 0,
    };

    pub(super) fn note_break(&mut self, now: Instant) {
        self.breaks = if self.recent(now) {
            self.breaks.saturating_add(1)
        } else {
            1
        };
        self.last = Some(now);
    }

    pub(super) fn is_shared(&self, now: Instant) -> bool {
        self.breaks >= BREAKS && self.recent(now)
    }

    fn recent(&self, now: Instant) -> bool {
        self.last.is_some_and(|last| now.since(last) < SOON)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(breaks_ms: &[u64], at_ms: u64, expected: bool) {
        let at = |ms| Instant(0) + Duration::from_millis(ms);
        let mut sharing = Sharing::default();
        for &ms in breaks_ms {
            sharing.note_break(at(ms));
        }
        let shared = sharing.is_shared(at(at_ms));
        assert_eq!(shared, expected, "{breaks_ms:?} seen at {at_ms} ms");
    }

    #[test]
    fn breaks_in_a_row_make_a_file_shared() {
        check(&[], 0, false);
        check(&[0], 1, false);
        check(&[0, 999], 1_000, true);
        check(&[0, 1_000], 1_001, false);
        check(&[0, 1_000, 1_500], 1_600, true);
    }

    #[test]
    fn quiet_ends_it() {
        check(&[0, 1, 2], 1_001, true);
        check(&[0, 1, 2], 1_002, false);
        check(&[0, 1, 2, 5_000], 5_001, false);
    }
}
