//! What the nodes watch, and what has happened to it: the leader's side of inotify (`docs/protocol.md`, Watches).
//!
//! Where nobody watches nothing is done: [`Watches::any`] is false then.
//!
//! N1: an event is numbered once and stays until its number was acknowledged, so that it is told at least once; the
//! node leaves out what it has had. Numbers go on where the node's stop, also with a leader that knows nothing of it.
//! N2: the session that made a change is not told of it, its own kernel did that.
//! N5: a queue is bounded; the oldest events go first, and the gap in the numbers tells the node.

use super::state::MetaState;
use consistency::wire::meta::{
    Attr, FileKind, FlushContent, FlushFile, Made, Name, NameChange, Op, RenameMode,
};
use consistency::wire::watch::{Event, Happened};
use consistency::{InodeNo, SessionId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Events that wait for a session (N5).
const QUEUE_LEN_MAX: usize = 16_384;
/// Events in one answer.
const ANSWER_LEN_MAX: usize = 256;

/// What the sessions watch.
#[derive(Debug, Default)]
pub(super) struct Watches {
    sessions: Mutex<BTreeMap<SessionId, Watcher>>,
    any: AtomicBool,
    /// `sessions` is not empty.
    known: AtomicBool,
    news: Notify,
}

#[derive(Debug, Default)]
struct Watcher {
    /// Number of `inodes`.
    set: u64,
    inodes: BTreeSet<InodeNo>,
    /// What is in the watched directories.
    places: BTreeMap<InodeNo, (InodeNo, Name)>,
    last: u64,
    queue: VecDeque<(u64, Event)>,
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

    /// Takes what a session watches from now on; `after` is the number of the last event that it has had.
    pub(super) fn watch(
        &self,
        session: SessionId,
        set: u64,
        inodes: Vec<InodeNo>,
        after: u64,
        state: &MetaState,
    ) {
        let mut sessions = self.sessions();
        let watcher = sessions.entry(session).or_insert_with(|| Watcher {
            last: after,
            ..Watcher::default()
        });
        if set <= watcher.set {
            return;
        }
        watcher.set = set;
        watcher.inodes = inodes.into_iter().collect();
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
        self.count(&sessions);
    }

    /// Returns the events after number `after` and forgets those before; `None` if the session is not known.
    pub(super) fn after(&self, session: SessionId, after: u64) -> Option<Vec<(u64, Event)>> {
        let mut sessions = self.sessions();
        let queue = &mut sessions.get_mut(&session)?.queue;
        // N1
        let had = queue.partition_point(|(number, _)| *number <= after);
        queue.drain(..had);
        Some(queue.iter().take(ANSWER_LEN_MAX).cloned().collect())
    }

    /// Tells everybody but the session that made them.
    pub(super) fn tell(&self, by: SessionId, events: &[Event]) {
        let mut sessions = self.sessions();
        // N2
        for (session, watcher) in sessions.iter_mut().filter(|(session, _)| **session != by) {
            let full = watcher.queue.len() >= QUEUE_LEN_MAX;
            for event in events {
                watcher.take(event);
            }
            if !full && watcher.queue.len() >= QUEUE_LEN_MAX {
                tracing::warn!(
                    session = session.0,
                    "more events than are kept: the oldest are dropped"
                );
            }
        }
        drop(sessions);
        self.news.notify_waiters();
    }

    /// Forgets sessions that have ended, and what was queued for them.
    pub(super) fn keep(&self, live: impl FnOnce() -> BTreeSet<SessionId>) {
        if !self.known.load(Ordering::Relaxed) {
            return;
        }
        let mut sessions = self.sessions();
        let live = live();
        sessions.retain(|session, watcher| {
            let keep = live.contains(session);
            if !keep && !watcher.queue.is_empty() {
                let events = watcher.queue.len();
                tracing::warn!(
                    session = session.0,
                    events,
                    "a session ended with events that it was not told"
                );
            }
            keep
        });
        self.count(&sessions);
    }

    /// Forgets everything: another reign begins.
    pub(super) fn clear(&self) {
        let mut sessions = self.sessions();
        sessions.clear();
        self.count(&sessions);
        drop(sessions);
        self.news.notify_waiters();
    }

    fn count(&self, sessions: &BTreeMap<SessionId, Watcher>) {
        let any = sessions.values().any(|watcher| !watcher.inodes.is_empty());
        self.any.store(any, Ordering::Relaxed);
        self.known.store(!sessions.is_empty(), Ordering::Relaxed);
    }

    fn sessions(&self) -> MutexGuard<'_, BTreeMap<SessionId, Watcher>> {
        self.sessions.lock().expect("no holder panics")
    }
}

impl Watcher {
    /// Queues an event if it concerns what is watched.
    fn take(&mut self, event: &Event) {
        let mut event = event.clone();
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
            return;
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
        self.queue.push_back((self.last, event));
        // N5
        if self.queue.len() > QUEUE_LEN_MAX {
            self.queue.pop_front();
        }
    }
}

/// Returns what watchers are told of an operation, read off the state before it is carried out.
pub(super) fn told_before(state: &MetaState, op: &Op) -> Vec<Event> {
    let found = |parent: &InodeNo, name: &Name| state.lookup(*parent, name).ok().flatten();
    let named = |parent: &InodeNo, name: &Name, attr: Attr, what: Happened| Event {
        place: Some((*parent, name.clone())),
        ino: attr.ino,
        kind: attr.kind,
        what,
    };
    let unnamed = |ino: InodeNo, what: Happened| unnamed(state, ino, what);
    let event = match op {
        // Number and type of what is made are known when it is.
        Op::Create {
            parent,
            name: Some(name),
            ..
        } if found(parent, name).is_none() => Some(Event {
            place: Some((*parent, name.clone())),
            ino: InodeNo(0),
            kind: FileKind::File,
            what: Happened::Created,
        }),
        Op::Link { ino, parent, name } => {
            let mut event = unnamed(*ino, Happened::Created);
            if let Some(event) = &mut event {
                event.place = Some((*parent, name.clone()));
            }
            event
        }
        Op::Unlink { parent, name, .. } => {
            found(parent, name).map(|attr| named(parent, name, attr, Happened::Deleted))
        }
        Op::Rename {
            parent,
            name,
            new_parent,
            new_name,
            mode,
        } => {
            let replaced = found(new_parent, new_name);
            let moved = found(parent, name);
            let same =
                replaced.as_ref().map(|attr| attr.ino) == moved.as_ref().map(|attr| attr.ino);
            if *mode == RenameMode::Exchange {
                let there = |parent: &InodeNo, name: &Name, attr: Option<Attr>, what| {
                    attr.map(|attr| named(parent, name, attr, what))
                };
                // Told as what an exchange amounts to: each name goes and comes.
                return [
                    there(parent, name, moved.clone(), Happened::Deleted),
                    there(new_parent, new_name, replaced.clone(), Happened::Deleted),
                    there(new_parent, new_name, moved, Happened::Created),
                    there(parent, name, replaced, Happened::Created),
                ]
                .into_iter()
                .flatten()
                .collect();
            }
            let what = Happened::Moved {
                dir: *new_parent,
                name: new_name.clone(),
                replaced: replaced.map(|attr| (attr.ino, attr.kind)),
            };
            // Two names of one inode: nothing happens.
            moved
                .filter(|_| !same)
                .map(|attr| named(parent, name, attr, what))
        }
        Op::SetAttr { ino, .. } | Op::SetXattr { ino, .. } | Op::RemoveXattr { ino, .. } => {
            unnamed(*ino, Happened::Attributes)
        }
        Op::Make(made) => return made.iter().map(told_made).collect(),
        Op::Names(changes) => {
            let told = changes.iter().map(|change| match change {
                NameChange::Made(made) => told_made(made),
                NameChange::Removed(removed) => Event {
                    place: Some((removed.parent, removed.name.clone())),
                    ino: removed.ino,
                    kind: removed.kind,
                    what: Happened::Deleted,
                },
            });
            return told.collect();
        }
        Op::Flush(files) => {
            let told = files.iter().flat_map(|file| {
                let changed = file.content != FlushContent::Same;
                let what = if changed {
                    Happened::Content
                } else {
                    Happened::Attributes
                };
                // Of a file that was also given other attributes, before it was written or afterwards.
                let other = changed && attributes_changed(state, file);
                let other = other.then(|| unnamed(file.ino, Happened::Attributes));
                let closed = changed && !file.written;
                let closed = closed.then(|| unnamed(file.ino, Happened::Closed));
                [unnamed(file.ino, what), other.flatten(), closed.flatten()]
            });
            return told.flatten().collect();
        }
        _ => None,
    };
    event.into_iter().collect()
}

fn told_made(made: &Made) -> Event {
    Event {
        place: Some((made.parent, made.name.clone())),
        ino: made.ino,
        kind: made.node.kind(),
        what: Happened::Created,
    }
}

/// Returns whether a flush of content brings other attributes as well. What is written last sets both times alike.
fn attributes_changed(state: &MetaState, file: &FlushFile) -> bool {
    let Ok(inode) = state.inode(file.ino) else {
        return false;
    };
    let before = &inode.attr;
    let same = (before.mode, before.uid, before.gid) == (file.mode, file.uid, file.gid);
    !same || file.ctime != file.mtime
}

/// Returns what watchers are told of files whose last writer has closed.
pub(super) fn told_closed(state: &MetaState, files: &[InodeNo]) -> Vec<Event> {
    let files = files.iter();
    files
        .filter_map(|ino| unnamed(state, *ino, Happened::Closed))
        .collect()
}

/// Returns an event of an inode, whatever its names are.
fn unnamed(state: &MetaState, ino: InodeNo, what: Happened) -> Option<Event> {
    let kind = state.inode(ino).map(|inode| inode.attr.kind);
    kind.ok().map(|kind| Event {
        place: None,
        ino,
        kind,
        what,
    })
}

/// Adds what is known only after the operation.
pub(super) fn told_after(state: &MetaState, events: &mut Vec<Event>) {
    events.retain_mut(|event| {
        let by_session = event.ino.number_of_session().is_some();
        if by_session && matches!(event.what, Happened::Created) {
            // Unless it was refused.
            return state.inode(event.ino).is_ok();
        }
        if event.ino != InodeNo(0) {
            return true;
        }
        let place = event.place.as_ref();
        let made = place.and_then(|(parent, name)| state.lookup(*parent, name).ok().flatten());
        if let Some(attr) = &made {
            (event.ino, event.kind) = (attr.ino, attr.kind);
        }
        made.is_some()
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use consistency::Timestamp;
    use consistency::wire::meta::FlushFile;

    const WATCHER: SessionId = SessionId(1);
    const WRITER: SessionId = SessionId(2);
    const DIR: InodeNo = InodeNo::ROOT;

    fn made(name: &str, ino: u64) -> Event {
        Event {
            place: Some((DIR, Name::new(name.to_owned()).expect("a name"))),
            ino: InodeNo(ino),
            kind: FileKind::File,
            what: Happened::Created,
        }
    }

    fn content(ino: u64) -> Event {
        Event {
            place: None,
            ino: InodeNo(ino),
            kind: FileKind::File,
            what: Happened::Content,
        }
    }

    fn watching(after: u64) -> Watches {
        let watches = Watches::default();
        watches.watch(WATCHER, 1, vec![DIR], after, &MetaState::default());
        watches
    }

    fn numbers(watches: &Watches, after: u64) -> Vec<u64> {
        let events = watches.after(WATCHER, after).expect("known");
        events.into_iter().map(|(number, _)| number).collect()
    }

    #[test]
    fn n1_events_stay_until_they_are_acknowledged() {
        let watches = watching(0);
        watches.tell(WRITER, &[made("a", 7), made("b", 8)]);
        assert_eq!(numbers(&watches, 0), [1, 2]);
        assert_eq!(numbers(&watches, 0), [1, 2], "the answer was lost");
        assert_eq!(numbers(&watches, 1), [2]);
        assert!(numbers(&watches, 2).is_empty());
    }

    #[test]
    fn n1_numbers_go_on_at_another_leader() {
        let watches = watching(57);
        watches.tell(WRITER, &[made("a", 7)]);
        assert_eq!(numbers(&watches, 57), [58]);
    }

    #[test]
    fn n1_a_late_copy_brings_no_older_set_back() {
        let watches = watching(0);
        let state = MetaState::default();
        watches.watch(WATCHER, 3, vec![], 0, &state);
        watches.watch(WATCHER, 2, vec![DIR], 0, &state);
        assert!(!watches.any());
    }

    #[test]
    fn n2_nobody_is_told_of_own_changes() {
        let watches = watching(0);
        watches.tell(WATCHER, &[made("a", 7)]);
        assert!(numbers(&watches, 0).is_empty());
    }

    #[test]
    fn n5_the_oldest_events_go_first() {
        let watches = watching(0);
        for _ in 0..QUEUE_LEN_MAX + 3 {
            watches.tell(WRITER, &[made("a", 7)]);
        }
        assert_eq!(numbers(&watches, 0)[..2], [4, 5]);
        let sessions = watches.sessions();
        assert_eq!(sessions[&WATCHER].queue.len(), QUEUE_LEN_MAX);
    }

    /// A file in a watched directory is told by its name, wherever that moves; one elsewhere is not.
    #[test]
    fn names_follow_their_moves() {
        let watches = watching(0);
        let moved = |to: InodeNo| Event {
            what: Happened::Moved {
                dir: to,
                name: Name::new("new").expect("a name"),
                replaced: None,
            },
            ..made("a", 7)
        };
        watches.tell(WRITER, &[content(7)]);
        watches.tell(WRITER, &[made("a", 7), content(7), moved(DIR), content(7)]);
        watches.tell(WRITER, &[moved(InodeNo(99)), content(7)]);
        let events = watches.after(WATCHER, 0).expect("known");
        let told: Vec<_> = events
            .iter()
            .filter(|(_, event)| event.what == Happened::Content)
            .map(|(number, event)| {
                let (_, name) = event.place.as_ref().expect("a name");
                (
                    *number,
                    String::from_utf8_lossy(name.as_bytes()).into_owned(),
                )
            })
            .collect();
        assert_eq!(told, [(2, "a".to_owned()), (4, "new".to_owned())]);
        assert_eq!(events.len(), 5);
    }

    /// Returns a flush of content, and nothing else, of what there is at the beginning.
    fn flush(state: &MetaState) -> FlushFile {
        let attr = &state.inode(InodeNo::ROOT).expect("always there").attr;
        FlushFile {
            ino: InodeNo::ROOT,
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            size: 0,
            atime: Timestamp::from_nanos(5),
            mtime: Timestamp::from_nanos(5),
            ctime: Timestamp::from_nanos(5),
            content: FlushContent::Inline(Bytes::new()),
            written: true,
        }
    }

    #[track_caller]
    fn check_flush(change: impl FnOnce(&mut FlushFile), expected: &[Happened]) {
        let state = MetaState::default();
        let mut file = flush(&state);
        change(&mut file);
        let told = told_before(&state, &Op::Flush(vec![file])).into_iter();
        let told: Vec<_> = told.map(|event| event.what).collect();
        assert_eq!(told, expected);
    }

    #[test]
    fn a_flush_tells_of_a_close_if_nobody_writes_on() {
        use Happened::{Attributes, Closed, Content};
        check_flush(|_| {}, &[Content]);
        check_flush(|file| file.written = false, &[Content, Closed]);
        let same = |file: &mut FlushFile| {
            file.content = FlushContent::Same;
            file.written = false;
        };
        check_flush(same, &[Attributes]);
    }

    #[test]
    fn a_flush_tells_of_attributes_that_came_with_content() {
        use Happened::{Attributes, Closed, Content};
        check_flush(|file| file.mode ^= 0o100, &[Content, Attributes]);
        check_flush(|file| file.uid += 1, &[Content, Attributes]);
        check_flush(|file| file.gid += 1, &[Content, Attributes]);
        let times_and_close = |file: &mut FlushFile| {
            file.mtime = Timestamp::from_nanos(1);
            file.written = false;
        };
        check_flush(times_and_close, &[Content, Attributes, Closed]);
    }

    #[test]
    fn nothing_is_done_where_nobody_watches() {
        let watches = watching(0);
        watches.keep(|| BTreeSet::from([WRITER]));
        assert!(!watches.any());
        assert_eq!(watches.after(WATCHER, 0), None);
        watches.keep(|| unreachable!("nobody is known"));
    }
}
