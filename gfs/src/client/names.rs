//! Names of a directory as this node knows them, including names that do not exist.
//!
//! A name stays in the map as [`Known::Unknown`] when its fact is dropped but the kernel may still have it (its
//! `kernel` flag), or when the listing is otherwise complete: then every name that is not in the map at all is
//! known not to exist.

use consistency::InodeNo;
use consistency::wire::meta::{FileKind, Name};
use std::collections::{BTreeMap, BTreeSet};

/// Names remembered for one directory; above this nothing more is cached for it, neither here nor in the kernel
/// (lookups of endless absent names must not fill the memory).
pub(super) const NAMES_MAX: usize = 1 << 17;

/// What is known about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    Unknown,
    Absent,
    Present(InodeNo, FileKind),
}

#[derive(Debug, Default)]
pub(super) struct Names {
    names: BTreeMap<Name, Entry>,
    /// Every name that exists is in `names`.
    total: bool,
    listing: Option<Listing>,
    /// Changes of ours in flight.
    pending: BTreeMap<Name, Pending>,
}

#[derive(Debug)]
struct Entry {
    known: Known,
    /// The kernel may have it.
    kernel: bool,
}

#[derive(Debug, Default)]
struct Pending {
    count: u32,
    /// Two at a time: which one came last is not known here.
    overlapped: bool,
}

/// The order of a listing; the facts are in the names.
#[derive(Debug)]
struct Listing {
    parent: InodeNo,
    cookies: BTreeMap<u64, Name>,
    /// Cookie up to which the pages are complete, `u64::MAX` to the end.
    upto: u64,
}

/// A page of the cached listing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) parent: InodeNo,
    pub(super) entries: Vec<(u64, Name, InodeNo, FileKind)>,
}

impl Names {
    /// Returns what is known about a name.
    pub(super) fn find(&self, name: &Name) -> Known {
        if self.pending.contains_key(name) {
            return Known::Unknown;
        }
        match self.names.get(name) {
            Some(entry) => entry.known,
            None if self.total => Known::Absent,
            None => Known::Unknown,
        }
    }

    /// Remembers a fact that a lease covers; false if there is no room for it.
    pub(super) fn learn(&mut self, name: &Name, known: Known) -> bool {
        if self.pending.contains_key(name) {
            return false;
        }
        self.set(name, known)
    }

    fn set(&mut self, name: &Name, known: Known) -> bool {
        if let Some(entry) = self.names.get_mut(name) {
            entry.known = known;
            return true;
        }
        let room = self.names.len() < NAMES_MAX;
        if room {
            let entry = Entry {
                known,
                kernel: false,
            };
            self.names.insert(name.clone(), entry);
        } else {
            self.total = false;
        }
        room
    }

    /// Notes that the kernel gets the name with a time-out; false if that cannot be remembered.
    pub(super) fn give_to_kernel(&mut self, name: &Name) -> bool {
        if self.pending.contains_key(name) {
            return false;
        }
        let total = self.total;
        if let Some(entry) = self.names.get_mut(name) {
            entry.kernel = true;
            return true;
        }
        let known = if total { Known::Absent } else { Known::Unknown };
        self.set(name, known)
            && self.names.get_mut(name).is_some_and(|entry| {
                entry.kernel = true;
                true
            })
    }

    /// Notes a change of ours that is about to be sent: its name is not served until it is answered.
    pub(super) fn begin_change(&mut self, name: &Name) {
        let pending = self.pending.entry(name.clone()).or_default();
        pending.count += 1;
        pending.overlapped |= pending.count > 1;
    }

    /// Ends a change of ours; `known` is the new fact if a lease covers it and the change succeeded.
    pub(super) fn end_change(&mut self, name: &Name, outcome: Option<Known>) {
        let Some(pending) = self.pending.get_mut(name) else {
            return;
        };
        pending.count -= 1;
        let overlapped = pending.overlapped;
        if pending.count == 0 {
            self.pending.remove(name);
        }
        match outcome {
            Some(known) if !overlapped => {
                self.set(name, known);
            }
            _ => self.forget(name),
        }
        self.unlist(name, outcome.filter(|_| !overlapped));
    }

    /// Keeps the listing's order in step with a change of ours.
    fn unlist(&mut self, name: &Name, known: Option<Known>) {
        match (known, &mut self.listing) {
            (_, None) => {}
            (Some(Known::Absent), Some(listing)) => listing.cookies.retain(|_, n| n != name),
            // A new name's cookie is not known.
            _ => self.listing = None,
        }
    }

    /// Drops a fact.
    pub(super) fn forget(&mut self, name: &Name) {
        match self.names.get_mut(name) {
            Some(entry) => entry.known = Known::Unknown,
            None if self.total => {
                self.set(name, Known::Unknown);
            }
            None => {}
        }
        if !self.total && self.names.get(name).is_some_and(|entry| !entry.kernel) {
            self.names.remove(name);
        }
        self.listing = None;
    }

    /// Drops all facts; what the kernel may have is remembered.
    pub(super) fn forget_all(&mut self) {
        self.total = false;
        self.listing = None;
        self.names.retain(|_, entry| {
            entry.known = Known::Unknown;
            entry.kernel
        });
    }

    /// The kernel has forgotten a name.
    pub(super) fn taken_from_kernel(&mut self, name: &Name) {
        if let Some(entry) = self.names.get_mut(name) {
            entry.kernel = false;
            if entry.known == Known::Unknown && !self.total {
                self.names.remove(name);
            }
        }
    }

    /// Returns the names that the kernel may have.
    pub(super) fn in_kernel(&self) -> Vec<Name> {
        let held = self.names.iter().filter(|(_, entry)| entry.kernel);
        held.map(|(name, _)| name.clone()).collect()
    }

    /// Takes a page of a listing under a lease: entries after cookie `after`.
    pub(super) fn learn_page(
        &mut self,
        parent: InodeNo,
        after: u64,
        entries: &[(u64, Name, InodeNo, FileKind)],
        end: bool,
    ) {
        if after == 0 {
            self.listing = Some(Listing {
                parent,
                cookies: BTreeMap::new(),
                upto: 0,
            });
        }
        let mut room = self.pending.is_empty();
        for (_, name, ino, kind) in entries {
            room &= self.learn(name, Known::Present(*ino, *kind));
        }
        let Some(listing) = self.listing.as_mut().filter(|l| room && l.upto == after) else {
            self.listing = None;
            return;
        };
        let cookies = entries
            .iter()
            .map(|(cookie, name, ..)| (*cookie, name.clone()));
        listing.cookies.extend(cookies);
        listing.upto = match entries.last() {
            _ if end => u64::MAX,
            Some((cookie, ..)) => *cookie,
            None => after,
        };
        if end {
            self.complete();
        }
    }

    /// The listing reached its end: what is not in it does not exist.
    fn complete(&mut self) {
        let Some(listing) = &self.listing else { return };
        let listed: BTreeSet<&Name> = listing.cookies.values().collect();
        for (name, entry) in &mut self.names {
            if !listed.contains(name) && !self.pending.contains_key(name) {
                entry.known = Known::Absent;
            }
        }
        self.total = true;
    }

    /// Returns up to `limit` entries after a cookie, if the listing is complete.
    pub(super) fn page(&self, after: u64, limit: usize) -> Option<Page> {
        let listing = self.listing.as_ref()?;
        if listing.upto != u64::MAX || !self.pending.is_empty() {
            return None;
        }
        let range = listing.cookies.range(after.checked_add(1)?..);
        let entry = |(&cookie, name): (&u64, &Name)| match self.find(name) {
            Known::Present(ino, kind) => Some((cookie, name.clone(), ino, kind)),
            Known::Absent | Known::Unknown => None,
        };
        let entries = range.take(limit).map(entry).collect::<Option<_>>()?;
        Some(Page {
            parent: listing.parent,
            entries,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text.as_bytes().to_vec()).expect("a name")
    }

    const A: Known = Known::Present(InodeNo(2), FileKind::File);

    fn listed() -> Names {
        let mut names = Names::default();
        let entries = [
            (5, name("a"), InodeNo(2), FileKind::File),
            (9, name("b"), InodeNo(3), FileKind::File),
        ];
        names.learn_page(InodeNo::ROOT, 0, &entries[..1], false);
        assert_eq!(names.find(&name("z")), Known::Unknown);
        assert_eq!(names.page(0, 10), None);
        names.learn_page(InodeNo::ROOT, 5, &entries[1..], true);
        names
    }

    fn cookies(names: &Names, after: u64) -> Option<Vec<u64>> {
        let page = names.page(after, 10)?;
        Some(page.entries.iter().map(|entry| entry.0).collect())
    }

    #[test]
    fn a_complete_listing_knows_absence() {
        let mut names = listed();
        assert_eq!(names.find(&name("z")), Known::Absent);
        assert_eq!(cookies(&names, 0), Some(vec![5, 9]));
        assert_eq!(cookies(&names, 5), Some(vec![9]));
        names.forget(&name("z"));
        assert_eq!(names.find(&name("z")), Known::Unknown);
        assert_eq!(names.find(&name("y")), Known::Absent);
        assert_eq!(names.page(0, 10), None, "z may have come to exist");
    }

    #[test]
    fn own_changes_patch() {
        let mut names = listed();
        names.begin_change(&name("a"));
        assert_eq!(names.find(&name("a")), Known::Unknown);
        assert_eq!(names.page(0, 10), None);
        assert!(!names.learn(&name("a"), A), "a crossing reply is ignored");
        names.end_change(&name("a"), Some(Known::Absent));
        assert_eq!(names.find(&name("a")), Known::Absent);
        assert_eq!(cookies(&names, 0), Some(vec![9]));
    }

    #[test]
    fn overlapping_changes_are_forgotten() {
        let mut names = listed();
        names.begin_change(&name("a"));
        names.begin_change(&name("a"));
        names.end_change(&name("a"), Some(Known::Absent));
        names.end_change(&name("a"), Some(A));
        assert_eq!(names.find(&name("a")), Known::Unknown);
    }

    #[test]
    fn what_the_kernel_has_is_remembered() {
        let mut names = Names::default();
        names.learn(&name("a"), A);
        assert!(names.give_to_kernel(&name("a")));
        names.learn(&name("b"), A);
        names.forget_all();
        assert_eq!(names.in_kernel(), vec![name("a")]);
        names.taken_from_kernel(&name("a"));
        assert!(names.names.is_empty());
    }

    #[test]
    fn a_page_out_of_order_is_no_listing() {
        let mut names = Names::default();
        names.learn_page(InodeNo::ROOT, 7, &[], true);
        assert_eq!(names.page(0, 10), None);
        assert_eq!(names.find(&name("z")), Known::Unknown);
    }
}
