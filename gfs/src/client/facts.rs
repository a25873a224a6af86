//! What replies tell: installing grants, merging attributes, and letting the kernel cache.

use super::call::Ticket;
use super::names::Known;
use super::node::{Delivery, Node, State};
use super::{Core, Pin};
use crate::tree::{AttrReply, CACHE, EntryReply, Hold, NO_CACHE};
use consistency::InodeNo;
use consistency::wire::lease::{Grant, Mode};
use consistency::wire::meta::{Attr, Fact, FileKind, Name};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How the attributes of a node may be used.
pub(super) enum Usable {
    /// Under a lease: the kernel may keep them.
    Covered(Attr),
    /// They are the truth now, and may be about to change.
    Now(Attr),
}

impl Usable {
    pub(super) fn attr(self) -> Attr {
        match self {
            Self::Covered(attr) | Self::Now(attr) => attr,
        }
    }
}

impl Core {
    /// Tells whether facts of the inode may be served and cached now. S5: `mode` knows the term.
    pub(super) fn covered(&self, state: &State, ino: InodeNo) -> bool {
        state.breaking.is_none() && self.leases().mode(self.clock.now(), ino) >= Some(Mode::Shared)
    }

    /// Tells whether this node is the master of the file, be it for the last moments before the ack of a break.
    pub(super) fn owned(&self, ino: InodeNo) -> bool {
        self.is_master(ino) && self.leases().mode(self.clock.now(), ino).is_some()
    }

    /// Returns whether the leader takes a file for owned by this node, as it does until a break is acknowledged.
    pub(super) fn is_master(&self, ino: InodeNo) -> bool {
        self.leases().held(ino) == Some(Mode::Exclusive)
    }

    /// Installs a grant; true if the facts that came with it may be cached.
    fn install(&self, state: &State, ticket: &Ticket, ino: InodeNo, grant: Option<Grant>) -> bool {
        let Some(grant) = grant else { return false };
        let mut leases = self.leases();
        leases.install(self.clock.now(), ticket.stamp, ino, grant) && state.breaking.is_none()
    }

    /// Takes the new name of a grant, whatever its facts are good for.
    pub(super) fn installed(
        &self,
        state: &State,
        ticket: &Ticket,
        ino: InodeNo,
        grant: Option<Grant>,
    ) {
        let _cacheable = self.install(state, ticket, ino, grant);
    }

    /// Takes the attributes out of a reply to a question; returns those to show.
    pub(super) fn learn(&self, node: &Pin, ticket: &Ticket, fact: &Fact) -> Attr {
        let mut state = node.state();
        self.learn_into(&mut state, node.ino, ticket, fact);
        let mut attr = shown(&state, &fact.attr);
        self.accesses.add_to(&mut attr);
        attr
    }

    /// See [`Self::learn`]; true if the fact is covered.
    pub(super) fn learn_into(
        &self,
        state: &mut State,
        ino: InodeNo,
        ticket: &Ticket,
        fact: &Fact,
    ) -> bool {
        self.clock.seen(fact.attr.ctime);
        let covered = self.install(state, ticket, ino, fact.grant);
        if covered {
            let mut attr = fact.attr.clone();
            self.accesses.add_to(&mut attr);
            merge_attr(state, &attr);
        }
        covered
    }

    /// Takes the attributes out of the reply to a change of ours. If they are covered, returns the number of breaks
    /// answered so far, by which one that comes later is noticed.
    fn learn_changed(&self, node: &Pin, ticket: &Ticket, fact: &Fact) -> Option<u32> {
        self.clock.seen(fact.attr.ctime);
        let mut state = node.state();
        let covered = self.install(&state, ticket, node.ino, fact.grant);
        if covered || state.is_dirty() {
            merge_attr(&mut state, &fact.attr);
        } else {
            // What is cached is from before the change.
            state.attr = None;
        }
        covered.then_some(state.breaks_done)
    }

    /// Takes a name, or its absence, out of the reply to a question.
    pub(super) fn learn_name(
        &self,
        dir: &Pin,
        ticket: &Ticket,
        grant: Option<Grant>,
        name: &Name,
        known: Known,
    ) {
        let mut state = dir.state();
        let covered = self.install(&state, ticket, dir.ino, grant);
        if covered {
            state.names.learn(name, known);
        }
    }

    /// Takes a page of a listing.
    pub(super) fn learn_page(
        &self,
        dir: &Pin,
        ticket: &Ticket,
        grant: Option<Grant>,
        learn: impl FnOnce(&mut State),
    ) {
        let bytes = {
            let mut state = dir.state();
            if !self.install(&state, ticket, dir.ino, grant) {
                return;
            }
            learn(&mut state);
            state.names.bytes()
        };
        self.clean_loaded(dir.ino, bytes);
    }

    /// Returns the attributes of a node without asking, if it may.
    pub(super) fn usable_attr(&self, state: &State, ino: InodeNo) -> Option<Usable> {
        let attr = state.attr.clone()?;
        // What a change of ours makes of a directory others may have seen already (L9).
        let changing = state.attr_pending > 0;
        if self.covered(state, ino) && !changing {
            Some(Usable::Covered(attr))
        } else if self.owned(ino) && !(changing && attr.kind == FileKind::Dir) {
            Some(Usable::Now(attr))
        } else {
            None
        }
    }

    /// Answers GETATTR and SETATTR from the cache.
    pub(super) fn cached_attr(&self, node: &Arc<Node>) -> Option<AttrReply> {
        let mut state = node.state();
        let usable = self.usable_attr(&state, node.ino)?;
        state.size_shown();
        match usable {
            Usable::Covered(attr) if self.kernel.caches() => Some(AttrReply {
                attr,
                ttl: CACHE,
                // K1
                hold: Hold::new(Delivery::leased(node, &mut state)),
            }),
            Usable::Covered(attr) | Usable::Now(attr) => Some(AttrReply::uncached(attr)),
        }
    }

    /// Makes a name for the kernel, and counts it as a lookup of the child. The time-out depends on whether the
    /// names known under the directory's lease say the same.
    pub(super) fn entry(&self, dir: &Pin, name: &Name, child: Option<(&Pin, Attr)>) -> EntryReply {
        if let Some((child, _)) = &child {
            child.state().lookups += 1;
        }
        let attr = child.map(|(_, attr)| attr);
        let known = attr
            .as_ref()
            .map_or(Known::Absent, |attr| Known::Present(attr.ino, attr.kind));
        let mut state = dir.state();
        // E1
        let cache = self.kernel.caches_names()
            && self.covered(&state, dir.ino)
            && state.names.find(name) == known
            && state.names.give_to_kernel(name);
        if cache {
            EntryReply {
                attr,
                ttl: CACHE,
                attr_ttl: NO_CACHE,
                // K1
                hold: Hold::new(Delivery::leased(dir, &mut state)),
            }
        } else {
            EntryReply {
                attr,
                ttl: NO_CACHE,
                attr_ttl: NO_CACHE,
                hold: Hold::none(),
            }
        }
    }
}

impl AttrReply {
    /// Returns a reply that the kernel does not keep.
    pub(super) const fn uncached(attr: Attr) -> Self {
        Self {
            attr,
            ttl: NO_CACHE,
            hold: Hold::none(),
        }
    }
}

/// Returns what a caller sees of an inode about which a reply said `attr`: local changes are on top of it.
fn shown(state: &State, attr: &Attr) -> Attr {
    match &state.attr {
        Some(own) if state.is_dirty() || own.version > attr.version => own.clone(),
        _ => attr.clone(),
    }
}

/// Takes younger attributes; what was changed locally stays.
fn merge_attr(state: &mut State, new: &Attr) {
    let dirty = state.is_dirty();
    match &mut state.attr {
        Some(own) if own.version > new.version => {}
        Some(own) if dirty => {
            own.nlink = new.nlink;
            own.version = new.version;
            own.ctime = own.ctime.max(new.ctime);
        }
        slot => *slot = Some(new.clone()),
    }
}

/// A change of ours that was sent. L9: until it ends the names it touches are neither served nor learned from other
/// replies, and the attributes are not served.
pub(super) struct Change {
    core: Arc<Core>,
    names: Vec<(Pin, Name, Option<Known>)>,
    attrs: Vec<Pin>,
    /// Inodes whose new facts are covered, and the breaks answered before.
    covered: BTreeMap<InodeNo, u32>,
    /// Inodes that the reply has named a grant of: what older replies tell of them is refused by that name (L2).
    told: BTreeSet<InodeNo>,
}

impl Change {
    /// Begins a change of `names` and of the attributes of `attrs`.
    pub(super) fn begin(core: &Arc<Core>, names: &[(&Pin, &Name)], attrs: &[&Pin]) -> Self {
        for (dir, name) in names {
            dir.state().names.begin_change(name);
        }
        for node in attrs {
            node.state().attr_pending += 1;
        }
        let names = names.iter();
        Self {
            core: Arc::clone(core),
            names: names
                .map(|&(dir, name)| (dir.clone(), name.clone(), None))
                .collect(),
            attrs: attrs.iter().map(|&node| node.clone()).collect(),
            covered: BTreeMap::new(),
            told: BTreeSet::new(),
        }
    }

    /// Says what a name stands for after the change.
    pub(super) fn outcome(&mut self, dir: InodeNo, name: &Name, known: Known) {
        let ours = self.names.iter_mut();
        for (_, _, outcome) in ours.filter(|(pin, n, _)| pin.ino == dir && n == name) {
            *outcome = Some(known);
        }
    }

    /// Takes the facts of the reply. An inode of ours without one does not exist any more.
    pub(super) fn changed(&mut self, ticket: &Ticket, facts: &[Fact]) {
        for node in &self.attrs {
            if facts.iter().all(|fact| fact.attr.ino != node.ino) {
                let mut state = node.state();
                if !state.is_dirty() {
                    state.attr = None;
                } else if let Some(attr) = &mut state.attr {
                    attr.nlink = 0;
                }
            }
        }
        for fact in facts {
            let node = self.core.pin(fact.attr.ino);
            if let Some(breaks) = self.core.learn_changed(&node, ticket, fact) {
                self.covered.insert(node.ino, breaks);
            }
            let lapsed = || {
                self.core
                    .leases()
                    .mode(self.core.clock.now(), node.ino)
                    .is_none()
            };
            if fact.grant.is_some() && !lapsed() {
                self.told.insert(node.ino);
            }
        }
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        for (dir, name, known) in &self.names {
            let mut state = dir.state();
            // A break that crossed the reply, or came since, leaves nothing to remember.
            let whole = self.covered.get(&dir.ino) == Some(&state.breaks_done);
            let known = known.filter(|_| whole && self.core.covered(&state, dir.ino));
            state.names.end_change(name, known);
            self.untold(&state, dir.ino);
        }
        for node in &self.attrs {
            let mut state = node.state();
            if self.untold(&state, node.ino) && !state.is_dirty() {
                // Learned meanwhile from a reply that may be from before the change.
                state.attr = None;
            }
            state.attr_pending -= 1;
        }
    }
}

impl Change {
    /// L9: the change may have been made, and its reply was lost, or was a record without grants. Returns whether it
    /// was so; replies from before it are not cached from here on.
    fn untold(&self, _locked: &State, ino: InodeNo) -> bool {
        let untold = !self.told.contains(&ino);
        if untold {
            self.core.leases().changed_untold(ino);
        }
        untold
    }
}
