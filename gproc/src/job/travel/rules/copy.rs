//! What a host may do with its copy of a job.

/// A host's copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in super::super) enum Copy {
    /// It is made, and waits for its first instruction.
    Ready,
    /// It runs.
    Running,
    /// It is frozen, and home may have its images.
    Frozen,
    /// It has ended.
    Gone,
}

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in super::super) enum Word {
    /// Home lets it run for the first time.
    Run,
    /// Home wants images.
    Freeze,
    /// Home has it go on; so does a host that could not make images.
    Thaw,
    /// Home wants it ended, or is lost (MV4).
    End,
}

impl Copy {
    /// Returns what it is after a word; a word that is not due changes nothing.
    pub(in super::super) const fn after(self, word: Word) -> Self {
        match (self, word) {
            (Self::Ready, Word::Run) | (Self::Frozen, Word::Thaw) => Self::Running,
            (Self::Running, Word::Freeze) => Self::Frozen,
            (_, Word::End) => Self::Gone,
            (same, _) => same,
        }
    }
}
