//! A file below nodes that die: what S1 to S4 say of its content.
//!
//! What a node has written, and nobody else has seen, is lost with the node's life or session, or with the end of its
//! lease; an earlier state comes back, which is the last that was safe or one that was flushed since.

use std::collections::BTreeSet;
use tests::linear::Model;

/// A node between two losses of what it alone knew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Who {
    pub(super) node: u16,
    pub(super) life: u32,
}

/// A file that is read and written as a whole.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct File;

/// An operation on a [`File`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileOp {
    Read,
    /// Sets the value, and returns it.
    Write(u64),
    /// fsync(2)
    Sync,
    /// The node loses what it alone knows. It may happen at any time after it was called, or not at all.
    Lose,
}

/// An operation on one of several files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Of {
    pub(super) file: u32,
    pub(super) who: Who,
    pub(super) op: FileOp,
}

/// What a file is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct State {
    /// `None`: one of `earlier`, after a loss.
    value: Option<u64>,
    /// Who alone may know the value.
    owner: Option<Who>,
    /// What may be found if that one loses it.
    earlier: BTreeSet<u64>,
}

impl State {
    /// Finds the value that is there.
    fn found(&mut self, value: u64) -> bool {
        match self.value {
            Some(there) => there == value,
            None => {
                let there = self.earlier.contains(&value);
                self.value = Some(value);
                self.earlier.clear();
                there
            }
        }
    }

    /// S2, S3: what is seen, and what was synced, is safe.
    fn safe(&mut self) {
        if self.value.is_some() {
            self.owner = None;
            self.earlier.clear();
        }
    }
}

impl Model for File {
    type State = State;
    type Op = Of;
    type Ret = u64;

    fn start(&self) -> State {
        State {
            value: Some(0),
            owner: None,
            earlier: BTreeSet::new(),
        }
    }

    fn step(&self, state: &State, op: &Of, ret: Option<&u64>) -> Option<State> {
        let mut after = state.clone();
        match op.op {
            FileOp::Read => {
                let fits = ret.is_none_or(|ret| after.found(*ret));
                if after.owner != Some(op.who) {
                    after.safe();
                }
                fits.then_some(after)
            }
            FileOp::Write(value) => {
                if after.owner != Some(op.who) {
                    after.safe();
                    after.owner = Some(op.who);
                }
                after.earlier.extend(after.value);
                after.value = Some(value);
                Some(after)
            }
            FileOp::Sync => {
                if after.owner == Some(op.who) {
                    after.safe();
                }
                Some(after)
            }
            FileOp::Lose => {
                if after.owner == Some(op.who) {
                    after.earlier.extend(after.value.take());
                    after.owner = None;
                }
                Some(after)
            }
        }
    }

    fn is_look(op: &Of, ret: Option<&u64>) -> bool {
        op.op == FileOp::Read && ret.is_none()
    }
}
