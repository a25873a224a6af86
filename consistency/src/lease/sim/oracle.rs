//! What the world promises.
//!
//! * **S1** - a read sees every write that was acknowledged, and every value that somebody saw, before it began.
//! * **L5** - an operation never runs beside or before an earlier incompatible one.
//! * **belief** - a client never believes that it holds more than the server knows of.
//! * **liveness** - without faults no session ends, and every operation does.

use super::model::Register;
use std::collections::BTreeMap;

/// A point in the order of events, which both promises and reads are measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(u64);

#[derive(Debug)]
struct Promise {
    value: u64,
    since: Moment,
}

#[derive(Debug, Default)]
pub(super) struct Oracle {
    moment: u64,
    writes: u64,
    promises: BTreeMap<Register, Vec<Promise>>,
    pub(super) violation: Option<String>,
}

impl Oracle {
    /// Returns the present moment; later ones are larger.
    pub(super) fn moment(&mut self) -> Moment {
        self.moment += 1;
        Moment(self.moment)
    }

    /// Returns the number of a write that happens now.
    pub(super) fn next_write(&mut self) -> u64 {
        self.writes += 1;
        self.writes
    }

    /// From now on nobody may see less than `value`.
    pub(super) fn promise(&mut self, register: Register, value: u64) {
        let since = self.moment();
        let promises = self.promises.entry(register).or_default();
        promises.push(Promise { value, since });
    }

    /// A node lost its own unflushed writes up to `value` (S4): nobody needs to see them, but somebody may if
    /// the last flush was on its way. Only writes that nobody else saw are unflushed.
    pub(super) fn void(&mut self, register: Register, flushed: u64, value: u64) {
        if let Some(promises) = self.promises.get_mut(&register) {
            promises.retain(|p| p.value <= flushed || value < p.value);
        }
    }

    /// A read that began at `began` saw `value`.
    pub(super) fn saw(&mut self, who: &str, register: Register, value: u64, began: Moment) {
        let promises = self.promises.get(&register).map_or(&[][..], Vec::as_slice);
        let earlier = promises.iter().filter(|p| p.since < began);
        let least = earlier.map(|p| p.value).max().unwrap_or(0);
        if value < least {
            self.fail(format!(
                "{who} read {register:?} = {value}, but {least} was promised before"
            ));
        }
    }

    pub(super) fn fail(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }
}
