//! What the nodes watch, and what has happened to it: the leader's side of inotify (`docs/protocol.md`, Watches).
//!
//! What has happened is kept by every voter ([`Recent`](super::state::Recent)); here it is sorted out who is to be told. Where
//! nobody watches nothing is done: [`Watches::any`] is false then, and nothing is kept.
//!
//! N1: an event is numbered once and stays until its number was acknowledged, so that it is told at least once; the
//! node leaves out what it has had. Numbers go on where the node's stop, also with a leader that knows nothing of it.
//! N2: the node that made a change is not told of it, its own kernel did that.
//! N5: a queue is bounded; the oldest events go first, and the gap in the numbers tells the node.
//! N6: a node says up to where it has had all events, and another leader goes on from there; what is not known there any
//! more is said to be lost.

use super::service::MetaServer;
use super::state::{Body, MetaState, Recorded};
use consistency::wire::meta::Name;
use consistency::wire::request::WATCH_SINCE;
use consistency::wire::watch::{Event, Happened, Place};
use consistency::{InodeNo, NodeId, SessionId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Events that wait for a session (N5).
const QUEUE_LEN_MAX: usize = 16_384;
/// Events in one answer.
const ANSWER_LEN_MAX: usize = 256;
/// How often the voters are told that somebody watches: one that was started since does not know.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// How long after the last watch the voters keep what happens; longer than all nodes take to come to a new leader.
const QUIET: Duration = Duration::from_secs(60);

/// What the sessions watch.
#[derive(Debug, Default)]
pub(super) struct Watches {
    known: Mutex<Known>,
    any: AtomicBool,
    /// Some session has said that it watches something, or did.
    some: AtomicBool,
    news: Notify,
}

#[derive(Debug, Default)]
struct Known {
    sessions: BTreeMap<SessionId, Watcher>,
    /// All that happened up to here was sorted out.
    upto: Place,
}

#[derive(Debug)]
struct Watcher {
    node: NodeId,
    /// Number of `inodes`.
    set: u64,
    inodes: BTreeSet<InodeNo>,
    /// What is in the watched directories.
    places: BTreeMap<InodeNo, (InodeNo, Name)>,
    last: u64,
    queue: VecDeque<Queued>,
    /// Something is missing that the node does not know of.
    lost: bool,
}

#[derive(Clone, Debug)]
struct Queued {
    number: u64,
    place: Place,
    event: Event,
}

/// What a node says of what it watches.
#[derive(Debug)]
pub(super) struct Set {
    pub number: u64,
    pub inodes: Vec<InodeNo>,
    /// The number of the last event that the node has had.
    pub after: u64,
    /// Up to where it has had all events, from whichever leader.
    pub since: Option<Place>,
}

impl Set {
    /// `None` if the node says nothing new.
    pub(super) fn of(
        number: u64,
        inodes: Option<Vec<InodeNo>>,
        after: u64,
        since: Option<Place>,
    ) -> Option<Self> {
        inodes.map(|inodes| Self {
            number,
            inodes,
            after,
            since,
        })
    }
}

/// What a node is told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    pub events: Vec<(u64, Event)>,
    pub upto: Place,
    pub lost: bool,
}

impl News {
    pub(super) const fn is_empty(&self) -> bool {
        self.events.is_empty() && !self.lost
    }
}

impl Watches {
    /// Tells whether anything is watched.
    pub(super) fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// Returns what ends when there is news.
    pub(super) fn news(&self) -> Notified<'_> {
        self.news.notified()
    }

    /// Takes what a session watches from now on.
    pub(super) fn watch(&self, session: SessionId, node: NodeId, set: Set, state: &MetaState) {
        let mut known = self.known();
        // Who comes later is told of no more than those that are there, and what they watched until now.
        known.sort_out(state);
        let upto = known.upto;
        let mut new = false;
        let watcher = known.sessions.entry(session).or_insert_with(|| {
            new = true;
            Watcher::new(node, set.after)
        });
        if set.number <= watcher.set {
            return;
        }
        watcher.set = set.number;
        watcher.inodes = set.inodes.into_iter().collect();
        watcher.places.clear();
        for dir in &watcher.inodes {
            let Ok(names) = state.dir(*dir) else { continue };
            let places = names
                .iter()
                .map(|(name, child)| (child.ino, (*dir, name.clone())));
            watcher.places.extend(places);
        }
        if watcher.inodes.is_empty() {
            watcher.queue.clear();
        }
        // N6
        if let Some(since) = set.since.filter(|_| new) {
            watcher.lost = !state.recent.reaches(since);
            for kept in state
                .recent
                .after(since)
                .take_while(|kept| kept.place <= upto)
            {
                watcher.take(kept);
            }
            if watcher.lost {
                tracing::warn!(
                    node = node.0,
                    "what a node watches has changed, and how is not known any more"
                );
            }
        }
        self.count(&known);
    }

    /// Returns the events after number `after` and forgets those before; `None` if the session is not known.
    pub(super) fn after(&self, session: SessionId, after: u64) -> Option<News> {
        let mut known = self.known();
        let upto = known.upto;
        let watcher = known.sessions.get_mut(&session)?;
        // N1
        let had = watcher.queue.partition_point(|it| it.number <= after);
        watcher.queue.drain(..had);
        let told = watcher.queue.iter().take(ANSWER_LEN_MAX);
        let events = told.map(|it| (it.number, it.event.clone())).collect();
        let next = watcher.queue.get(ANSWER_LEN_MAX);
        Some(News {
            events,
            upto: next.map_or(upto, |_| watcher.queue[ANSWER_LEN_MAX - 1].place),
            lost: std::mem::take(&mut watcher.lost),
        })
    }

    /// Sorts out what has happened since the last time.
    pub(super) fn tell(&self, state: &MetaState) {
        if self.known().sort_out(state) {
            self.news.notify_waiters();
        }
    }

    /// Forgets sessions that have ended, and what was queued for them.
    pub(super) fn keep(&self, live: impl FnOnce() -> BTreeSet<SessionId>) {
        if !self.some.load(Ordering::Relaxed) {
            return;
        }
        let mut known = self.known();
        let live = live();
        known.sessions.retain(|session, _| live.contains(session));
        self.count(&known);
    }

    /// Forgets everything: another reign begins.
    pub(super) fn clear(&self) {
        let mut known = self.known();
        *known = Known::default();
        self.count(&known);
        drop(known);
        self.news.notify_waiters();
    }

    fn count(&self, known: &Known) {
        let mut watchers = known.sessions.values();
        let any = watchers.any(|watcher| !watcher.inodes.is_empty());
        self.any.store(any, Ordering::Relaxed);
        self.some
            .store(!known.sessions.is_empty(), Ordering::Relaxed);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("no holder panics")
    }
}

impl Known {
    /// Queues what has happened for those whom it concerns; returns whether there was any for anybody.
    fn sort_out(&mut self, state: &MetaState) -> bool {
        let mut told = false;
        for kept in state.recent.after(self.upto) {
            for (session, watcher) in &mut self.sessions {
                let full = watcher.queue.len() >= QUEUE_LEN_MAX;
                told |= watcher.take(kept);
                if !full && watcher.queue.len() >= QUEUE_LEN_MAX {
                    tracing::warn!(
                        session = session.0,
                        "more events than are kept: the oldest are dropped"
                    );
                }
            }
        }
        self.upto = Place::behind(state.now());
        told
    }
}

impl Watcher {
    fn new(node: NodeId, last: u64) -> Self {
        Self {
            node,
            set: 0,
            inodes: BTreeSet::new(),
            places: BTreeMap::new(),
            last,
            queue: VecDeque::new(),
            lost: false,
        }
    }

    /// Queues an event if it concerns what is watched, and was made elsewhere (N2); returns whether it did.
    fn take(&mut self, kept: &Recorded) -> bool {
        if kept.by == self.node {
            return false;
        }
        let mut event = kept.event.clone();
        let watched = |ino: &InodeNo| self.inodes.contains(ino);
        let place = event.place.as_ref().filter(|(dir, _)| watched(dir));
        let concerned = match &event.what {
            Happened::Created => place.is_some(),
            Happened::Deleted => place.is_some() || watched(&event.ino),
            Happened::Moved { dir, replaced, .. } => {
                let replaced = replaced.as_ref().is_some_and(|(ino, _)| watched(ino));
                place.is_some() || watched(dir) || watched(&event.ino) || replaced
            }
            Happened::Attributes | Happened::Content | Happened::Closed => {
                let place = self.places.get(&event.ino).cloned();
                let concerned = place.is_some() || watched(&event.ino);
                event.place = place;
                concerned
            }
        };
        if !concerned {
            return false;
        }
        match (&event.what, &event.place) {
            (Happened::Created, Some(place)) => {
                self.places.insert(event.ino, place.clone());
            }
            (Happened::Deleted, _) => {
                self.places.remove(&event.ino);
            }
            (Happened::Moved { dir, name, .. }, _) => {
                self.places.remove(&event.ino);
                if self.inodes.contains(dir) {
                    self.places.insert(event.ino, (*dir, name.clone()));
                }
            }
            _ => {}
        }
        self.last = self.last.saturating_add(1);
        tracing::debug!(number = self.last, ?event, "queued");
        self.queue.push_back(Queued {
            number: self.last,
            place: kept.place,
            event,
        });
        // N5
        if self.queue.len() > QUEUE_LEN_MAX {
            self.queue.pop_front();
        }
        true
    }
}

/// When the voters are told whether somebody watches.
#[derive(Debug)]
pub(super) struct Recorder {
    told: Option<Instant>,
    /// Since when nobody watches.
    quiet: Instant,
}

impl Recorder {
    /// Begins with a reign, in which nobody has said yet what it watches.
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            told: None,
            quiet: now,
        }
    }

    /// Returns what the voters are to be told now, if anything; `on`: what they were told last, as far as this one knows.
    fn next(&mut self, now: Instant, any: bool, on: bool) -> Option<bool> {
        if any {
            self.quiet = now;
            let due = self
                .told
                .is_none_or(|told| now.duration_since(told) >= TELL_EVERY);
            return (!on || due).then(|| {
                self.told = Some(now);
                true
            });
        }
        (on && now.duration_since(self.quiet) >= QUIET).then_some(false)
    }
}

impl MetaServer {
    /// Has all voters keep what happens while somebody watches, and not for much longer.
    pub(super) async fn have_recorded(&self, recorder: &mut Recorder) {
        let on = self.log.read(|state| state.recent.is_on());
        if let Some(watched) = recorder.next(Instant::now(), self.watches.any(), on) {
            self.record(watched).await;
        }
    }

    /// Begins to keep what happens, before it is said that something is watched.
    pub(super) async fn begin_record(&self) {
        if !self.log.read(|state| state.recent.is_on()) {
            self.record(true).await;
        }
    }

    async fn record(&self, watched: bool) {
        if self.version() < WATCH_SINCE {
            // V2: then this one alone keeps it.
            if watched {
                self.log.read(|state| state.recent.begin(state.now()));
            }
            return;
        }
        if let Err(error) = self.commit(Body::Watched(watched)).await {
            tracing::debug!(%error, watched, "the voters are not told whether somebody watches");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::machine::StateMachine;
    use crate::server::state::Command;
    use consistency::wire::meta::{FileKind, NewNode, Op};
    use consistency::{OpSeq, Timestamp};

    const WATCHER: (SessionId, NodeId) = (SessionId(1), NodeId(1));
    const WRITER: SessionId = SessionId(2);
    const DIR: InodeNo = InodeNo::ROOT;

    /// A tree that two nodes have sessions with, watched by the first.
    struct World {
        state: MetaState,
        watches: Watches,
        seq: u64,
    }

    impl World {
        fn new() -> Self {
            let mut this = Self {
                state: MetaState::default(),
                watches: Watches::default(),
                seq: 0,
            };
            for node in [1, 2] {
                this.apply(Body::OpenSession {
                    node: NodeId(node),
                    attempt: 1,
                });
            }
            this.apply(Body::Watched(true));
            this
        }

        fn watching(after: u64) -> Self {
            let this = Self::new();
            this.watch(1, &[DIR], after, None);
            this
        }

        fn apply(&mut self, body: Body) {
            let now = Timestamp::from_nanos(0);
            self.state.apply(&Command { now, body });
        }

        fn watch(&self, number: u64, inodes: &[InodeNo], after: u64, since: Option<Place>) {
            let set = Set {
                number,
                inodes: inodes.to_vec(),
                after,
                since,
            };
            self.watches.watch(WATCHER.0, WATCHER.1, set, &self.state);
        }

        /// Makes a change, and tells of it.
        fn change(&mut self, session: SessionId, op: Op) {
            self.seq += 1;
            self.apply(Body::Change {
                session,
                seq: OpSeq(self.seq),
                done_below: OpSeq(self.seq),
                op,
            });
            self.watches.tell(&self.state);
        }

        fn make(&mut self, session: SessionId, text: &str) -> InodeNo {
            self.change(session, create(text));
            let found = self.state.lookup(DIR, &name(text)).expect("a directory");
            found.expect("it was made").ino
        }

        fn news(&self, after: u64) -> News {
            self.watches.after(WATCHER.0, after).expect("known")
        }

        fn numbers(&self, after: u64) -> Vec<u64> {
            let events = self.news(after).events.into_iter();
            events.map(|(number, _)| number).collect()
        }

        /// Another leader, with a copy of the state.
        fn another_leader(&mut self) {
            self.watches.clear();
        }
    }

    fn name(text: &str) -> Name {
        Name::new(text.to_owned()).expect("a name")
    }

    fn create(text: &str) -> Op {
        Op::Create {
            parent: DIR,
            name: Some(name(text)),
            node: NewNode::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            exclusive: true,
            umask: 0,
        }
    }

    #[test]
    fn n1_events_stay_until_they_are_acknowledged() {
        let mut world = World::watching(0);
        world.make(WRITER, "a");
        world.make(WRITER, "b");
        assert_eq!(world.numbers(0), [1, 2]);
        assert_eq!(world.numbers(0), [1, 2], "the answer was lost");
        assert_eq!(world.numbers(1), [2]);
        assert!(world.numbers(2).is_empty());
    }

    #[test]
    fn n1_numbers_go_on_at_another_leader() {
        let mut world = World::watching(57);
        world.make(WRITER, "a");
        assert_eq!(world.numbers(57), [58]);
    }

    #[test]
    fn n1_a_late_copy_brings_no_older_set_back() {
        let world = World::new();
        world.watch(3, &[], 0, None);
        world.watch(2, &[DIR], 0, None);
        assert!(!world.watches.any());
    }

    #[test]
    fn n2_nobody_is_told_of_own_changes() {
        let mut world = World::watching(0);
        world.make(WATCHER.0, "a");
        assert!(world.numbers(0).is_empty());
    }

    #[test]
    fn n5_the_oldest_events_go_first() {
        let mut world = World::watching(0);
        let ino = world.make(WRITER, "a");
        for _ in 0..QUEUE_LEN_MAX + 2 {
            world.apply(Body::Closed {
                session: WRITER,
                files: vec![ino],
            });
        }
        world.watches.tell(&world.state);
        assert_eq!(world.numbers(0)[..2], [4, 5]);
        let known = world.watches.known();
        assert_eq!(known.sessions[&WATCHER.0].queue.len(), QUEUE_LEN_MAX);
    }

    /// Wherever in an answer, or before it, the leader is lost: each event is told once, by one leader or the other.
    #[test]
    fn n6_another_leader_goes_on_where_the_one_before_stopped() {
        for told in 0..=3 {
            let mut world = World::watching(0);
            let mut heard = Vec::new();
            let mut since = world.news(0).upto;
            for (at, text) in ["a", "b", "c"].into_iter().enumerate() {
                world.make(WRITER, text);
                world.make(WATCHER.0, &format!("own {text}"));
                if at < told {
                    let news = world.news(heard.len() as u64);
                    heard.extend(news.events);
                    since = news.upto;
                }
            }
            world.another_leader();
            world.make(WRITER, "d");
            assert!(world.watches.after(WATCHER.0, 0).is_none());
            world.watch(9, &[DIR], heard.len() as u64, Some(since));
            world.make(WRITER, "e");
            let news = world.news(heard.len() as u64);
            assert!(!news.lost);
            heard.extend(news.events);
            let names = heard.iter().map(|(number, event)| {
                let (_, name) = event.place.as_ref().expect("a name");
                format!("{number} {}", String::from_utf8_lossy(name.as_bytes()))
            });
            assert_eq!(
                Vec::from_iter(names),
                ["1 a", "2 b", "3 c", "4 d", "5 e"],
                "after {told} answers"
            );
        }
    }

    /// An answer has so many events at most; with the next one it goes on in the middle of a change.
    #[test]
    fn n6_answers_are_cut_at_any_event() {
        let mut world = World::watching(0);
        let ino = world.make(WRITER, "a");
        world.apply(Body::Closed {
            session: WRITER,
            files: vec![ino; ANSWER_LEN_MAX + 40],
        });
        world.watches.tell(&world.state);
        let first = world.news(0);
        assert_eq!(first.events.len(), ANSWER_LEN_MAX);
        world.another_leader();
        world.watch(2, &[DIR], ANSWER_LEN_MAX as u64, Some(first.upto));
        let rest = world.news(ANSWER_LEN_MAX as u64);
        assert_eq!(first.events.len() + rest.events.len(), ANSWER_LEN_MAX + 41);
        assert!(rest.upto > first.upto);
    }

    #[test]
    fn n6_what_is_lost_is_said_to_be() {
        let mut world = World::watching(0);
        let since = world.news(0).upto;
        world.make(WRITER, "a");
        // One that began with a snapshot.
        world.state = MetaState::restore(&world.state.snapshot()).expect("readable");
        world.another_leader();
        world.watch(2, &[DIR], 0, Some(since));
        assert!(world.news(0).lost);
        assert!(!world.news(0).lost, "it is said once");
    }

    /// A file in a watched directory is told by its name, wherever that moves; one elsewhere is not.
    #[test]
    fn names_follow_their_moves() {
        let mut world = World::watching(0);
        let dir = Op::Create {
            parent: DIR,
            name: Some(name("dir")),
            node: NewNode::Dir,
            mode: 0o755,
            uid: 0,
            gid: 0,
            exclusive: true,
            umask: 0,
        };
        world.change(WATCHER.0, dir);
        let dir = world.state.lookup(DIR, &name("dir"));
        let dir = dir.expect("a directory").expect("it was made").ino;
        let file = world.make(WRITER, "a");
        let closed = |world: &mut World| {
            let files = vec![file];
            world.apply(Body::Closed {
                session: WRITER,
                files,
            });
            world.watches.tell(&world.state);
        };
        let moved = |from: (InodeNo, &str), to: (InodeNo, &str)| Op::Rename {
            parent: from.0,
            name: name(from.1),
            new_parent: to.0,
            new_name: name(to.1),
            mode: consistency::wire::meta::RenameMode::Replace,
        };
        closed(&mut world);
        world.change(WRITER, moved((DIR, "a"), (DIR, "new")));
        closed(&mut world);
        world.change(WRITER, moved((DIR, "new"), (dir, "new")));
        closed(&mut world);
        let events = world.news(0).events;
        let told: Vec<_> = events
            .iter()
            .filter(|(_, event)| event.what == Happened::Closed)
            .map(|(number, event)| {
                let (_, name) = event.place.as_ref().expect("a name");
                assert_eq!(event.kind, FileKind::File);
                (
                    *number,
                    String::from_utf8_lossy(name.as_bytes()).into_owned(),
                )
            })
            .collect();
        assert_eq!(told, [(2, "a".to_owned()), (4, "new".to_owned())]);
        assert_eq!(events.len(), 5);
    }

    #[test]
    fn nothing_is_done_where_nobody_watches() {
        let mut world = World::watching(0);
        world.watches.keep(|| BTreeSet::from([WRITER]));
        assert!(!world.watches.any());
        assert_eq!(world.watches.after(WATCHER.0, 0), None);
        world.watches.keep(|| unreachable!("nobody is known"));
        world.apply(Body::Watched(false));
        world.make(WRITER, "a");
        assert_eq!(world.state.recent.after(Place::default()).count(), 0);
    }

    #[test]
    fn the_voters_are_told_in_time() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut recorder = Recorder::new(start);
        // They were told by the leader before; nobody has come to this one yet.
        assert_eq!(recorder.next(at(1), false, true), None);
        assert_eq!(recorder.next(at(2), true, true), Some(true));
        assert_eq!(recorder.next(at(3), true, true), None);
        assert_eq!(recorder.next(at(4), true, false), Some(true));
        assert_eq!(recorder.next(at(14), true, true), Some(true));
        assert_eq!(recorder.next(at(60), false, true), None);
        assert_eq!(recorder.next(at(74), false, true), Some(false));
        assert_eq!(recorder.next(at(75), false, false), None);
    }
}
