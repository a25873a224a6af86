//! The search for an order, after Wing and Gong with Lowe's memory of what was tried.
//!
//! Calls and returns stand in a list by their times. Any call before the first return may be next: it is tried, and
//! taken out of the list with its return. When the first return is reached with none of them possible, the last one
//! is put back and the next is tried. A set of operations done, with the state they led to, need not be tried twice; and
//! a look is placed as soon as it fits, without a second try: any order that has it later is as good with
//! it here.

use super::{Counterexample, History, Model, Verdict};
use std::collections::HashSet;

/// Bound of the memory of one search: some hundred MiB.
pub const CONFIGURATIONS_MAX: usize = 300_000;

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
    returns_left: usize,
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
            returns_left: returns.iter().flatten().count(),
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

    /// Takes a call out, with its return.
    fn take_out_both(&mut self, call: usize, at: usize) {
        self.take_out(call);
        if let Some(returns) = self.returns[at] {
            self.take_out(returns);
            self.returns_left -= 1;
        }
    }

    /// Undoes the last [`Self::take_out_both`] that was not undone.
    fn put_back_both(&mut self, call: usize, at: usize) {
        if let Some(returns) = self.returns[at] {
            self.put_back(returns);
            self.returns_left += 1;
        }
        self.put_back(call);
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

    /// Returns what may be next: the places of the calls, and the operations.
    fn calls_before_return(&self) -> impl Iterator<Item = (usize, usize)> {
        let mut place = self.first();
        std::iter::from_fn(move || match self.event(place) {
            Some(Event::Call(at)) => {
                let call = place;
                place = self.next[call];
                Some((call, at))
            }
            Some(Event::Return(_)) | None => None,
        })
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

/// One operation placed.
struct Step<S> {
    /// The place of its call in the timeline.
    call: usize,
    at: usize,
    before: S,
    /// A look that fits, so nothing is gained by placing it later.
    free: bool,
}

fn search<M: Model>(model: &M, history: &History<M>, configurations_max: usize) -> Outcome<M> {
    let mut timeline = Timeline::new::<M>(history);
    let mut placed = Placed(vec![0; history.len().div_ceil(64)]);
    let mut state = model.start();
    let mut tried: HashSet<(Placed, M::State)> = HashSet::new();
    let mut order: Vec<Step<M::State>> = Vec::new();
    let mut dead_end: Option<DeadEnd<M>> = None;
    let step = |state: &M::State, at: usize| {
        let operation = &history[at];
        model.step(state, &operation.op, operation.ret.as_ref())
    };
    let is_look = |at: usize| M::is_look(&history[at].op, history[at].ret.as_ref());
    // Where to go on among the calls of this configuration; `None`: it is new.
    let mut next: Option<usize> = None;
    loop {
        let Some(place) = next else {
            loop {
                let free = timeline
                    .calls_before_return()
                    .find(|(_, at)| is_look(*at) && step(&state, *at).as_ref() == Some(&state));
                let Some((call, at)) = free else { break };
                timeline.take_out_both(call, at);
                placed.flip(at);
                let before = state.clone();
                order.push(Step {
                    call,
                    at,
                    before,
                    free: true,
                });
            }
            if timeline.returns_left == 0 {
                return Outcome::Found;
            }
            next = Some(timeline.first());
            continue;
        };
        match timeline.event(place) {
            Some(Event::Call(at)) => {
                let after = step(&state, at);
                placed.flip(at);
                match after {
                    Some(after) if tried.insert((placed.clone(), after.clone())) => {
                        if tried.len() > configurations_max {
                            return Outcome::GivenUp;
                        }
                        timeline.take_out_both(place, at);
                        let before = std::mem::replace(&mut state, after);
                        order.push(Step {
                            call: place,
                            at,
                            before,
                            free: false,
                        });
                        next = None;
                    }
                    Some(_) | None => {
                        placed.flip(at);
                        next = Some(timeline.next[place]);
                    }
                }
            }
            Some(Event::Return(at)) => {
                let wall = history[at].returned.expect("it has a return");
                note(&mut dead_end, wall, &order, &state, &timeline);
                loop {
                    let Some(undone) = order.pop() else {
                        return Outcome::None(dead_end.expect("just noted"));
                    };
                    timeline.put_back_both(undone.call, undone.at);
                    placed.flip(undone.at);
                    state = undone.before;
                    if !undone.free {
                        next = Some(timeline.next[undone.call]);
                        break;
                    }
                }
            }
            None => unreachable!("the list ends with the last return, and one is left"),
        }
    }
}

/// Keeps the longest order.
fn note<M: Model>(
    dead_end: &mut Option<DeadEnd<M>>,
    wall: u64,
    order: &[Step<M::State>],
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
        order: order.iter().map(|step| step.at).collect(),
        state: state.clone(),
        blocked: timeline.calls_before_return().map(|(_, at)| at).collect(),
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
            let stays = |at: usize| {
                !(from..from + size).contains(&at) || !M::is_look(&cut[at].op, cut[at].ret.as_ref())
            };
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
