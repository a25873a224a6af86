//! The search for an order, after Wing and Gong with Lowe's memory of what was tried.
//!
//! Calls and returns stand in a list by their times. Any call before the first return may be next: it is tried, and
//! taken out of the list with its return. When the first return is reached with none of them possible, the last one
//! is put back and the next is tried. A set of operations done, with the state they led to, need not be tried twice.

use super::{Counterexample, History, Model, Verdict};
use std::collections::HashSet;

/// Bound of the memory of one search: some hundred MiB.
pub const CONFIGURATIONS_MAX: usize = 1_000_000;

/// Bounds of the searches that shorten one counterexample: how many, and in how many configurations each. With fewer
/// reads less is known of the order of the changes, so the search can become far longer.
const SHORTENINGS_MAX: usize = 300;
const SHORTENING_CONFIGURATIONS_MAX: usize = 10_000;

/// Searches for an order, in at most [`CONFIGURATIONS_MAX`] configurations.
pub fn check<M: Model>(model: &M, history: &History<M>) -> Verdict<M> {
    check_within(model, history, CONFIGURATIONS_MAX)
}

/// Searches for an order, in at most so many configurations.
pub(super) fn check_within<M: Model>(
    model: &M,
    history: &History<M>,
    configurations_max: usize,
) -> Verdict<M> {
    let mut history = history.clone();
    history.sort_by_key(|operation| operation.called);
    match search(model, &history, configurations_max) {
        Outcome::Found => Verdict::Linearizable,
        Outcome::GivenUp => Verdict::Undecided,
        Outcome::None(dead_end) => {
            let (history, dead_end) = shorten(model, history, dead_end);
            Verdict::Violation(Counterexample {
                history,
                order: dead_end.order,
                state: dead_end.state,
                blocked: dead_end.blocked,
            })
        }
    }
}

enum Outcome<M: Model> {
    Found,
    None(DeadEnd<M>),
    GivenUp,
}

/// How far the search came.
struct DeadEnd<M: Model> {
    /// The longest order, and the state after it.
    order: Vec<usize>,
    state: M::State,
    /// What may be next by its times, and cannot.
    blocked: Vec<usize>,
    /// The latest return that the search reached: no order gets past it.
    wall: u64,
}

#[derive(Clone, Copy)]
enum Event {
    Call(usize),
    Return(usize),
}

/// The calls and returns that have not been placed, linked in the order of time. Place 0 is the head, the last the end.
struct Timeline {
    events: Vec<Event>,
    next: Vec<usize>,
    previous: Vec<usize>,
    /// Where each operation returns; `None`: pending.
    returns: Vec<Option<usize>>,
}

impl Timeline {
    fn new<M: Model>(history: &History<M>) -> Self {
        let mut events: Vec<(u64, bool, Event)> = Vec::with_capacity(2 * history.len());
        for (at, operation) in history.iter().enumerate() {
            events.push((operation.called, false, Event::Call(at)));
            if let Some(returned) = operation.returned {
                events.push((returned, true, Event::Return(at)));
            }
        }
        // At the same time a call comes first: what touches may overlap.
        events.sort_by_key(|(time, returns, _)| (*time, *returns));
        let mut returns = vec![None; history.len()];
        for (place, (_, _, event)) in events.iter().enumerate() {
            if let Event::Return(at) = event {
                returns[*at] = Some(place + 1);
            }
        }
        let end = events.len() + 1;
        Self {
            events: events.into_iter().map(|(_, _, event)| event).collect(),
            next: (1..=end + 1).collect(),
            previous: (0..=end).map(|place| place.saturating_sub(1)).collect(),
            returns,
        }
    }

    fn first(&self) -> usize {
        self.next[0]
    }

    /// Returns what is at a place, `None` at the end.
    fn event(&self, place: usize) -> Option<Event> {
        self.events.get(place - 1).copied()
    }

    fn take_out(&mut self, place: usize) {
        let (previous, next) = (self.previous[place], self.next[place]);
        self.next[previous] = next;
        self.previous[next] = previous;
    }

    fn put_back(&mut self, place: usize) {
        let (previous, next) = (self.previous[place], self.next[place]);
        self.next[previous] = place;
        self.previous[next] = place;
    }

    fn calls_before_return(&self) -> Vec<usize> {
        let mut calls = Vec::new();
        let mut place = self.first();
        while let Some(Event::Call(at)) = self.event(place) {
            calls.push(at);
            place = self.next[place];
        }
        calls
    }
}

/// Which operations are placed.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Placed(Vec<u64>);

impl Placed {
    fn flip(&mut self, at: usize) {
        self.0[at / 64] ^= 1 << (at % 64);
    }
}

fn search<M: Model>(model: &M, history: &History<M>, configurations_max: usize) -> Outcome<M> {
    let mut timeline = Timeline::new::<M>(history);
    let mut returns_left = timeline.returns.iter().flatten().count();
    let mut placed = Placed(vec![0; history.len().div_ceil(64)]);
    let mut state = model.start();
    let mut tried: HashSet<(Placed, M::State)> = HashSet::new();
    // Place of the call, operation, state before it.
    let mut order: Vec<(usize, usize, M::State)> = Vec::new();
    let mut dead_end: Option<DeadEnd<M>> = None;
    let mut place = timeline.first();
    while returns_left > 0 {
        match timeline.event(place) {
            Some(Event::Call(at)) => {
                let operation = &history[at];
                let after = model.step(&state, &operation.op, operation.ret.as_ref());
                placed.flip(at);
                match after {
                    Some(after) if tried.insert((placed.clone(), after.clone())) => {
                        if tried.len() > configurations_max {
                            return Outcome::GivenUp;
                        }
                        order.push((place, at, std::mem::replace(&mut state, after)));
                        timeline.take_out(place);
                        if let Some(returns) = timeline.returns[at] {
                            timeline.take_out(returns);
                            returns_left -= 1;
                        }
                        place = timeline.first();
                    }
                    Some(_) | None => {
                        placed.flip(at);
                        place = timeline.next[place];
                    }
                }
            }
            Some(Event::Return(at)) => {
                let wall = history[at].returned.expect("it has a return");
                note(&mut dead_end, wall, &order, &state, &timeline);
                let Some((call, at, before)) = order.pop() else {
                    return Outcome::None(dead_end.expect("just noted"));
                };
                if let Some(returns) = timeline.returns[at] {
                    timeline.put_back(returns);
                    returns_left += 1;
                }
                timeline.put_back(call);
                placed.flip(at);
                state = before;
                place = timeline.next[call];
            }
            None => unreachable!("the list ends with the last return, and one is left"),
        }
    }
    Outcome::Found
}

/// Keeps the longest order.
fn note<M: Model>(
    dead_end: &mut Option<DeadEnd<M>>,
    wall: u64,
    order: &[(usize, usize, M::State)],
    state: &M::State,
    timeline: &Timeline,
) {
    if let Some(known) = dead_end {
        known.wall = known.wall.max(wall);
        if known.order.len() >= order.len() {
            return;
        }
    }
    let wall = dead_end.as_ref().map_or(wall, |known| known.wall);
    *dead_end = Some(DeadEnd {
        order: order.iter().map(|(_, at, _)| *at).collect(),
        state: state.clone(),
        blocked: timeline.calls_before_return(),
        wall,
    });
}

/// Cuts a history behind the wall and takes out the reads that it does not need to have no order.
fn shorten<M: Model>(
    model: &M,
    history: History<M>,
    dead_end: DeadEnd<M>,
) -> (History<M>, DeadEnd<M>) {
    let wall = dead_end.wall;
    let mut cut: History<M> = history
        .into_iter()
        .filter(|operation| operation.called <= wall)
        .collect();
    for operation in &mut cut {
        // What it returned later still counts if it is placed before.
        operation.returned = operation.returned.filter(|returned| *returned <= wall);
    }
    let Outcome::None(mut dead_end) = search(model, &cut, usize::MAX) else {
        unreachable!("no order gets past the wall, so none explains what lies before it")
    };
    let mut searches = 0;
    let mut size = cut.len();
    while size > 0 && searches < SHORTENINGS_MAX {
        let mut from = 0;
        while from < cut.len() && searches < SHORTENINGS_MAX {
            let stays = |at: usize| !(from..from + size).contains(&at) || !M::is_read(&cut[at].op);
            let less: History<M> = (0..cut.len())
                .filter(|at| stays(*at))
                .map(|at| cut[at].clone())
                .collect();
            if less.len() == cut.len() {
                from += size;
                continue;
            }
            searches += 1;
            match search(model, &less, SHORTENING_CONFIGURATIONS_MAX) {
                Outcome::None(end) => {
                    cut = less;
                    dead_end = end;
                }
                Outcome::Found | Outcome::GivenUp => from += size,
            }
        }
        size /= 2;
    }
    (cut, dead_end)
}
