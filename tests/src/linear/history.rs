//! Writing down what happened.

use super::Operation;
use std::sync::Arc;
use std::time::Instant;

/// One clock for all actors: the monotonic clock of this machine, which its nodes share.
#[derive(Clone, Debug)]
pub struct Clock(Arc<Instant>);

/// What one actor did, in its order.
#[derive(Debug)]
pub struct Log<O, R> {
    actor: String,
    clock: Clock,
    operations: Vec<Operation<O, R>>,
}

impl Default for Clock {
    fn default() -> Self {
        Self(Arc::new(Instant::now()))
    }
}

impl Clock {
    fn now(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).expect("a test runs for less than 500 years")
    }

    /// Starts the log of an actor.
    #[must_use]
    pub fn log<O, R>(&self, actor: impl Into<String>) -> Log<O, R> {
        Log {
            actor: actor.into(),
            clock: self.clone(),
            operations: Vec::new(),
        }
    }
}

impl<O, R> Log<O, R> {
    /// Carries out an operation and writes it down; `None` from `carry_out`: nobody knows whether it happened.
    pub fn run(&mut self, op: O, carry_out: impl FnOnce() -> Option<R>) {
        let called = self.clock.now();
        let ret = carry_out();
        self.note(op, called, ret);
    }

    /// [`Self::run`] for what takes its time.
    pub async fn record(&mut self, op: O, carry_out: impl Future<Output = Option<R>>) {
        let called = self.clock.now();
        let ret = carry_out.await;
        self.note(op, called, ret);
    }

    fn note(&mut self, op: O, called: u64, ret: Option<R>) {
        let returned = ret.is_some().then(|| self.clock.now());
        self.operations.push(Operation {
            actor: self.actor.clone(),
            called,
            returned,
            op,
            ret,
        });
    }

    /// Carries out what counts as several operations at the same time.
    pub fn run_all(&mut self, carry_out: impl FnOnce() -> Vec<(O, R)>) {
        let called = self.clock.now();
        let done = carry_out();
        let returned = Some(self.clock.now());
        let operation = |(op, ret)| Operation {
            actor: self.actor.clone(),
            called,
            returned,
            op,
            ret: Some(ret),
        };
        self.operations.extend(done.into_iter().map(operation));
    }

    /// Returns what was written down.
    #[must_use]
    pub fn into_operations(self) -> Vec<Operation<O, R>> {
        self.operations
    }
}
