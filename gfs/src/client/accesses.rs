//! When inodes were read: shown here at once, told to the leader later and many at a time.
//!
//! A read costs no round trip: where the rule of relatime wants a new time of access, it is put into the attributes
//! that are cached here and noted for the leader. Until it is told, another node sees the old one. What a change of
//! the inode overtakes is not told: who changes an inode sets its times, or makes them older than the change anyway.
//!
//! Seen are the reads that reach the daemon. What the kernel answers from its pages does not, so that an open for
//! reading counts as a read where the kernel may have pages.

use super::Core;
use super::node::State;
use super::session::Phase;
use consistency::wire::meta::{ACCESSES_MAX, Attr, Op, OpReply};
use consistency::{InodeNo, Timestamp};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// Times that wait; a read beyond them is not recorded, the next one of the inode may be.
const WAITING_MAX: usize = 1 << 16;

#[derive(Debug)]
pub(super) struct Accesses {
    enabled: bool,
    waiting: Mutex<BTreeMap<InodeNo, Timestamp>>,
}

impl Accesses {
    pub(super) const fn new(enabled: bool) -> Self {
        Self {
            enabled,
            waiting: Mutex::new(BTreeMap::new()),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<InodeNo, Timestamp>> {
        self.waiting.lock().expect("no holder panics")
    }

    /// Returns whether there was room for it.
    fn note(&self, ino: InodeNo, at: Timestamp) -> bool {
        let mut waiting = self.waiting();
        let room = waiting.len() < WAITING_MAX || waiting.contains_key(&ino);
        if room {
            waiting.insert(ino, at);
        }
        room
    }

    /// Puts what was not told yet into attributes that the leader has told.
    pub(super) fn add_to(&self, attr: &mut Attr) {
        if let Some(&at) = self.waiting().get(&attr.ino)
            && at > attr.ctime
        {
            attr.atime = attr.atime.max(at);
        }
    }

    /// AT1: another node has changed the inode, or is about to.
    pub(super) fn overtaken(&self, ino: InodeNo) {
        self.waiting().remove(&ino);
    }

    /// Returns the first of those that wait; they go on waiting until they are told.
    fn first(&self) -> Vec<(InodeNo, Timestamp)> {
        let waiting = self.waiting();
        let first = waiting.iter().take(ACCESSES_MAX);
        first.map(|(&ino, &at)| (ino, at)).collect()
    }

    /// What was read again in the meantime goes on waiting.
    fn done(&self, told: &[(InodeNo, Timestamp)]) {
        let mut waiting = self.waiting();
        for (ino, at) in told {
            if waiting.get(ino) == Some(at) {
                waiting.remove(ino);
            }
        }
    }
}

/// Tells the leader from time to time, until the client stops.
pub(super) async fn run(core: Arc<Core>) {
    let mut phase = core.phase.subscribe();
    loop {
        tokio::select! {
            _ = phase.wait_for(|phase| *phase == Phase::Stopped) => return,
            () = tokio::time::sleep(core.config.flush_after) => {}
        }
        core.tell_accesses().await;
    }
}

impl Core {
    /// Notes that the inode was read, if its time of access is to change and is cached here. Returns whether it did.
    pub(super) fn accessed(&self, state: &mut State, ino: InodeNo) -> bool {
        if !self.accesses.enabled || state.breaking.is_some() {
            return false;
        }
        let Some(attr) = &mut state.attr else {
            return false;
        };
        let at = self.clock.stamp();
        let due = attr.is_access_due(at) && self.accesses.note(ino, at);
        if due {
            attr.atime = at;
        }
        due
    }

    /// Tells the leader everything that waits. What it does not take is forgotten: it is a hint, and the next read of
    /// the inode makes another.
    pub(super) async fn tell_accesses(self: &Arc<Self>) {
        loop {
            let times = self.accesses.first();
            if times.is_empty() {
                return;
            }
            match self.op(Op::Accessed(times.clone())).await {
                Ok((OpReply::Changed(facts), ticket)) => {
                    for fact in facts {
                        if let Some(node) = self.pin_known(fact.attr.ino) {
                            self.learn(&node, &ticket, &fact);
                        }
                    }
                }
                Ok((reply, _)) => drop(super::ops::unexpected(&reply)),
                Err(error) => tracing::debug!(%error, "times of access were not recorded"),
            }
            self.accesses.done(&times);
        }
    }
}
