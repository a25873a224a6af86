//! Is there one order of all operations that explains what every process saw? A checker of linearizability.
//!
//! A history says of each operation when it was called, when it returned, and what it returned, on one clock. It is
//! linearizable if each operation can be given one moment between its call and its return, so that a single machine
//! that carries them out at these moments returns the same. This is S1 in its strong form: also what one process has
//! *read*, no later operation of any other may miss.
//!
//! # Words
//! - *model*: the single machine ([`Model`]); the ones for files are in [`models`].
//! - *pending*: an operation without a return. It may take effect at any time after its call, or never. So may one
//!   that failed with EIO: nobody knows whether it happened.
//! - *blocked*: an operation that fits nowhere after the longest order found.
//!
//! Histories of independent objects are checked one by one ([`check_each`]): the search is exponential in what goes on
//! at the same time, and nearly linear in the rest.

mod history;
pub mod models;
mod search;
#[cfg(test)]
mod tests;

pub use history::{Clock, Log};
pub use search::{CONFIGURATIONS_MAX, check};

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::hash::Hash;

/// How many of the last operations of the longest order a counterexample shows.
const SHOWN_MAX: usize = 24;

/// A machine that does one thing after the other.
pub trait Model {
    /// What it remembers.
    type State: Clone + Eq + Hash + Debug;
    /// What it is asked to do.
    type Op: Clone + Debug;
    /// What it answers.
    type Ret: Clone + Debug;

    /// Returns the state at the beginning.
    fn start(&self) -> Self::State;

    /// Returns the state after `op`, if `op` may return `ret` now; `None` for `ret` allows every return.
    fn step(
        &self,
        state: &Self::State,
        op: &Self::Op,
        ret: Option<&Self::Ret>,
    ) -> Option<Self::State>;

    /// Returns whether `op` changes nothing, in whatever state it returns `ret`. A write of what is there already is
    /// no look: later it would change something.
    fn is_look(op: &Self::Op, ret: Option<&Self::Ret>) -> bool;
}

/// One operation of a history. Times are in nanoseconds on the history's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation<O, R> {
    /// Who: a thread, for the reader of a counterexample.
    pub actor: String,
    /// When it was called.
    pub called: u64,
    /// When it returned; `None`: pending.
    pub returned: Option<u64>,
    /// What was asked.
    pub op: O,
    /// What came back, as far as it is known.
    pub ret: Option<R>,
}

/// The operations on one model.
pub type History<M> = Vec<Operation<<M as Model>::Op, <M as Model>::Ret>>;

/// What the search came to.
#[derive(Clone, Debug)]
pub enum Verdict<M: Model> {
    /// There is an order.
    Linearizable,
    /// There is none.
    Violation(Counterexample<M>),
    /// The search was given up after [`CONFIGURATIONS_MAX`] configurations: too much at the same time.
    Undecided,
}

/// A history without an order, cut after the return that cannot be explained, without the reads that do not matter.
#[derive(Clone, Debug)]
pub struct Counterexample<M: Model> {
    /// In the order of the calls.
    pub history: History<M>,
    /// The longest order found, as places in `history`.
    pub order: Vec<usize>,
    /// The state after it.
    pub state: M::State,
    /// Places in `history`; none of these can be next.
    pub blocked: Vec<usize>,
}

/// Checks the parts of a history that have nothing to do with each other, and returns the first that is not
/// linearizable.
pub fn check_each<M: Model, K: Ord>(
    model: &M,
    history: History<M>,
    key: impl Fn(&M::Op) -> K,
) -> Verdict<M> {
    let mut parts: BTreeMap<K, History<M>> = BTreeMap::new();
    for operation in history {
        parts.entry(key(&operation.op)).or_default().push(operation);
    }
    parts
        .values()
        .map(|part| check(model, part))
        .find(|verdict| !matches!(verdict, Verdict::Linearizable))
        .unwrap_or(Verdict::Linearizable)
}

impl<M: Model> fmt::Display for Counterexample<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut places = vec![None; self.history.len()];
        for (place, at) in self.order.iter().enumerate() {
            places[*at] = Some(place);
        }
        let shown_from = self.order.len().saturating_sub(SHOWN_MAX);
        let shown = |at: usize| places[at].is_none_or(|place| place >= shown_from);
        let start = (0..places.len()).find(|at| shown(*at));
        let start = start.map_or(0, |at| self.history[at].called);
        let us = |at: u64| at.saturating_sub(start) / 1_000;
        writeln!(
            f,
            "no order explains {} operations (the first {shown_from} of the longest order left out):",
            self.history.len()
        )?;
        writeln!(
            f,
            "    place | microseconds       | who      | what -> result"
        )?;
        for (at, operation) in self.history.iter().enumerate() {
            if !shown(at) {
                continue;
            }
            let place = match places[at] {
                Some(place) => place.to_string(),
                None if self.blocked.contains(&at) => "BLOCKED".to_owned(),
                None => "-".to_owned(),
            };
            let returned = match operation.returned {
                Some(at) => us(at).to_string(),
                None => "pending".to_owned(),
            };
            let ret = match &operation.ret {
                Some(ret) => format!("{ret:?}"),
                None => "unknown".to_owned(),
            };
            writeln!(
                f,
                "  {place:>7} | {:>8}..{returned:<8} | {:<8} | {:?} -> {ret}",
                us(operation.called),
                operation.actor,
                operation.op,
            )?;
        }
        write!(f, "  the state after the longest order: {:?}", self.state)
    }
}
