//! Guests of a node whose owner is back stand still until he is away again, where he wants that (J12).
//!
//! A guest is a process whose owner is on another node: `glurun` has started it here from there, or it has moved here. What
//! cannot be seen from its pid is told by who has it: [`Guests::enter`].
//!
//! | a guest is | the owner is back, and time to leave has passed | the owner is away |
//! | --- | --- | --- |
//! | running | it is frozen | - |
//! | frozen | - | it goes on |
//! | coming (a start or a move that was on its way) | it is frozen at once | - |
//! | ending, or killed | it ends | it ends |
//! | moving | it is frozen as it is, and may move; if that fails it stays frozen | a failed move has it go on |
//!
//! The last line is kept by [`Group`], which is frozen as long as anybody wants that. The mutex is a leaf.

use super::group::Group;
use super::spawn::GroupSlot;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// The guests of a node.
#[derive(Debug, Default)]
pub(super) struct Guests(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    paused: bool,
    next: u64,
    here: BTreeMap<u64, Guest>,
}

#[derive(Clone, Debug)]
struct Guest {
    pid: i32,
    group: Its,
}

/// What holds a guest's group.
#[derive(Clone, Debug)]
pub(super) enum Its {
    /// It has been started here.
    Slot(GroupSlot),
    /// It has moved here.
    Group(Arc<Group>),
}

impl Its {
    pub(super) fn get(&self) -> Option<&Group> {
        match self {
            Self::Slot(slot) => slot.get(),
            Self::Group(group) => Some(group),
        }
    }
}

/// The place of one guest.
#[derive(Debug)]
pub(super) struct Place {
    guests: Arc<Guests>,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.guests.lock().here.remove(&self.number);
    }
}

impl Guests {
    /// Takes a guest in, whose group there is, until what this returns is dropped. Blocks for a moment.
    pub(super) fn enter(self: &Arc<Self>, pid: i32, group: Its) -> Place {
        let guest = Guest { pid, group };
        let mut inner = self.lock();
        let number = inner.next;
        inner.next += 1;
        inner.here.insert(number, guest.clone());
        let paused = inner.paused;
        drop(inner);
        if paused {
            guest.pause(true);
        }
        let guests = Arc::clone(self);
        Place { guests, number }
    }

    /// Has all guests stand still, or go on. Blocks.
    pub(super) fn pause(&self, pause: bool) {
        let mut inner = self.lock();
        if std::mem::replace(&mut inner.paused, pause) == pause {
            return;
        }
        let all: Vec<Guest> = inner.here.values().cloned().collect();
        drop(inner);
        if !all.is_empty() {
            let (count, what) = (all.len(), if pause { "stand still" } else { "go on" });
            tracing::info!(count, "guests {what}, as the owner of this node wants it");
        }
        for guest in all {
            guest.pause(pause);
        }
    }

    /// Returns whether a process that was started here is a guest.
    pub(super) fn has(&self, pid: i32) -> bool {
        self.lock().here.values().any(|guest| guest.pid == pid)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no holder panics")
    }
}

impl Guest {
    fn pause(&self, pause: bool) {
        if let Some(Err(error)) = self.group.get().map(|group| group.pause(pause)) {
            tracing::warn!(pid = self.pid, pause, %error, "a guest does not do as the owner wants");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::group::Groups;
    use super::super::limits::Limits;
    use super::*;
    use std::fs;

    fn slot(groups: &Groups) -> GroupSlot {
        let group = groups.group(Limits::default(), false).expect("a group");
        let slot = GroupSlot::default();
        slot.set(group).expect("is empty");
        slot
    }

    fn frozen(slot: &GroupSlot) -> bool {
        let dir = slot.get().and_then(Group::dir).expect("has one");
        fs::read_to_string(dir.join("cgroup.freeze")).expect("reads") == "1\n"
    }

    #[test]
    fn guests_stand_still_as_long_as_the_owner_is_there() {
        let groups = Groups::new(&format!("pause-test-{}", std::process::id()));
        let own = slot(&groups);
        if own.get().and_then(Group::dir).is_none() {
            eprintln!("no cgroups here: nothing can be frozen");
            return;
        }
        let guests = Arc::<Guests>::default();
        let first = slot(&groups);
        let place = guests.enter(7, Its::Slot(Arc::clone(&first)));
        assert!(guests.has(7) && !guests.has(8));
        guests.pause(true);
        assert!(frozen(&first) && !frozen(&own));
        // One that was on its way.
        let late = slot(&groups);
        let _late = guests.enter(8, Its::Slot(Arc::clone(&late)));
        assert!(frozen(&late));
        // A move that fails has it go on, were it not for the owner.
        let group = late.get().expect("is set");
        group.freeze(true).expect("an empty one is frozen at once");
        group.freeze(false).expect("done");
        assert!(frozen(&late));
        // He goes while another one moves.
        let group = first.get().expect("is set");
        group.freeze(true).expect("done");
        guests.pause(false);
        assert!(frozen(&first) && !frozen(&late));
        group.freeze(false).expect("done");
        assert!(!frozen(&first));
        drop(place);
        guests.pause(true);
        assert!(!guests.has(7) && !frozen(&first));
    }

    #[test]
    fn a_frozen_guest_can_be_ended() {
        let groups = Groups::new(&format!("pause-end-test-{}", std::process::id()));
        let slot = slot(&groups);
        let group = slot.get().expect("is set");
        let Some(dir) = group.dir() else {
            eprintln!("no cgroups here: nothing can be frozen");
            return;
        };
        let mut child = std::process::Command::new("sleep").arg("600").spawn();
        let child = child.as_mut().expect("sleep starts");
        fs::write(dir.join("cgroup.procs"), child.id().to_string()).expect("moves it");
        let guests = Arc::<Guests>::default();
        let _place = guests.enter(7, Its::Slot(Arc::clone(&slot)));
        guests.pause(true);
        group.end();
        assert!(group.is_surely_empty());
        child.wait().expect("killed");
    }
}
