//! What watchers are told of a change: read off the state before and after it.
//!
//! Each voter does so as it applies the change, if somebody watches, and keeps the youngest ([`Recent`]): whoever leads next
//! goes on where the leader before it stopped. None of it is in snapshots: a voter that begins with one says from when on it
//! knows (N6).

use super::MetaState;
use consistency::wire::meta::{
    Attr, FileKind, FlushContent, FlushFile, Made, Name, NameChange, Op, RenameMode,
};
use consistency::wire::watch::{Event, Happened, Place};
use consistency::{InodeNo, NodeId, Timestamp};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

/// Events that are kept: some seconds of a busy cluster, which is how long an election and its grace take.
const KEPT_MAX: usize = 65_536;

/// An event, who made it, and where it stands among all.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub place: Place,
    pub by: NodeId,
    pub event: Event,
}

/// The youngest events, in order.
///
/// Two states are the same whatever they have of these.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    /// All that happened later is here; `None` while nobody watches. Behind a lock, for a leader begins by itself as long as
    /// the log may not tell the others (V2).
    from: Mutex<Option<Timestamp>>,
    events: VecDeque<Recorded>,
}

impl Recent {
    pub(crate) fn is_on(&self) -> bool {
        self.from().is_some()
    }

    /// Keeps what happens from now on, or goes on to.
    pub(crate) fn begin(&self, now: Timestamp) {
        self.from().get_or_insert(now);
    }

    pub(super) fn end(&mut self) {
        *self.from() = None;
        self.events = VecDeque::new();
    }

    pub(super) fn keep(&mut self, at: Timestamp, by: NodeId, events: Vec<Event>) {
        self.keep_at_most(KEPT_MAX, at, by, events);
    }

    fn keep_at_most(&mut self, most: usize, at: Timestamp, by: NodeId, events: Vec<Event>) {
        for (nth, event) in (0..).zip(events) {
            let place = Place { at, nth };
            self.events.push_back(Recorded { place, by, event });
        }
        while self.events.len() > most {
            let oldest = self.events.pop_front().expect("there is one");
            *self.from() = Some(oldest.place.at);
        }
    }

    /// Returns what happened after `place`, in order.
    pub(crate) fn after(&self, place: Place) -> impl Iterator<Item = &Recorded> {
        let first = self.events.partition_point(|kept| kept.place <= place);
        self.events.range(first..)
    }

    /// Returns whether all that happened after `place` is here.
    pub(crate) fn reaches(&self, place: Place) -> bool {
        self.from().is_some_and(|from| place.at >= from)
    }

    fn from(&self) -> MutexGuard<'_, Option<Timestamp>> {
        self.from.lock().expect("no holder panics")
    }
}

/// A copy of the state is for looking at it.
impl Clone for Recent {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for Recent {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Recent {}

/// Returns what watchers are told of an operation, read off the state before it is carried out.
pub(super) fn before(state: &MetaState, op: &Op) -> Vec<Event> {
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
        Op::Make(names) => return names.iter().map(made).collect(),
        Op::Names(changes) => {
            let told = changes.iter().map(|change| match change {
                NameChange::Made(name) => made(name),
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

fn made(made: &Made) -> Event {
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
pub(super) fn closed(state: &MetaState, files: &[InodeNo]) -> Vec<Event> {
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
pub(super) fn after(state: &MetaState, events: &mut Vec<Event>) {
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
        let told = before(&state, &Op::Flush(vec![file])).into_iter();
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

    const NODE: NodeId = NodeId(3);

    fn place(at: i64, nth: u32) -> Place {
        let at = Timestamp::from_nanos(at);
        Place { at, nth }
    }

    fn event(ino: u64) -> Event {
        Event {
            place: None,
            ino: InodeNo(ino),
            kind: FileKind::File,
            what: Happened::Content,
        }
    }

    fn after(recent: &Recent, at: i64, nth: u32) -> Vec<u64> {
        let events = recent.after(place(at, nth));
        events.map(|kept| kept.event.ino.0).collect()
    }

    #[test]
    fn n6_what_is_not_kept_is_known_to_be_missing() {
        let mut recent = Recent::default();
        assert!(!recent.reaches(place(9, 0)), "nobody has watched");
        recent.begin(Timestamp::from_nanos(10));
        assert!(!recent.reaches(place(9, 0)));
        assert!(recent.reaches(place(10, 0)));
        let mut keep = |at, events| {
            recent.keep_at_most(3, Timestamp::from_nanos(at), NODE, events);
        };
        keep(11, vec![event(1), event(2)]);
        keep(12, vec![event(3)]);
        recent.begin(Timestamp::from_nanos(12));
        assert!(recent.reaches(place(10, 0)));
        assert_eq!(after(&recent, 10, u32::MAX), [1, 2, 3]);
        assert_eq!(after(&recent, 11, 0), [2, 3]);
        assert_eq!(after(&recent, 11, 1), [3]);
        assert_eq!(after(&recent, 12, 0), [0; 0]);
        recent.keep_at_most(3, Timestamp::from_nanos(13), NODE, vec![event(4)]);
        assert!(!recent.reaches(place(10, 0)), "the first one had to go");
        assert!(recent.reaches(place(11, 0)));
        recent.end();
        assert!(!recent.reaches(place(13, 0)));
    }

    #[test]
    fn what_is_kept_is_no_part_of_the_state() {
        let mut one = MetaState::default();
        one.recent.begin(Timestamp::from_nanos(1));
        one.recent
            .keep(Timestamp::from_nanos(2), NODE, vec![event(1)]);
        assert_eq!(one, MetaState::default());
    }
}
