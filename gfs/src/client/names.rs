//! Names of a directory as this node knows them, including names that do not exist.
//!
//! A name stays in the map as [`Known::Unknown`] when its fact is dropped but the kernel may still have it (its
//! `kernel` flag), or when the listing is otherwise complete: then every name that is not in the map at all is
//! known not to exist.

use bytes::Bytes;
use consistency::wire::meta::{FileKind, Name};
use consistency::{Duration, InodeNo, Instant};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// Names remembered for one directory; above this nothing more is cached for it, neither here nor in the kernel
/// (lookups of endless absent names must not fill the memory).
pub(super) const NAMES_MAX: usize = 1 << 17;
/// The same for names that this node makes by itself: each of them has an inode, of which it knows more.
const MADE_NAMES_MAX: usize = 1 << 21;

/// So many changes of others ...
const BREAKS: u32 = 16;
/// ... within this time make names not worth keeping, as the leader sees it, too (`lease::server::contention`).
const WINDOW: Duration = Duration(100_000);

/// After so many questions for names that do not exist the names that do are asked for at once: who makes many files
/// looks for each of them first, as a compiler does for a header in each of its directories.
const ABSENT_ASKED: u8 = 8;

/// The kernel keeps absence from this look on. Who makes a name has looked for it once or twice: were its absence kept,
/// the kernel would have to drop it for another node that makes the same name just then, but holds the directory's lock
/// for its own attempt; all names would have to go, and with them what is mounted below (E2).
const ABSENT_KEPT: u8 = 3;

/// What a name costs in one of the maps, about.
const NAME_BYTES: usize = 100;

/// The names of an inode; of one that is no directory, nothing at all.
#[derive(Debug, Default)]
pub(super) struct DirNames(Option<Box<Names>>);

impl Deref for DirNames {
    type Target = Names;

    fn deref(&self) -> &Names {
        static NONE: Names = Names {
            names: BTreeMap::new(),
            total: false,
            listing: None,
            pending: BTreeMap::new(),
            breaks: None,
            foreseeable: false,
            uncommitted: 0,
            absent_asked: 0,
        };
        self.0.as_deref().unwrap_or(&NONE)
    }
}

impl DerefMut for DirNames {
    fn deref_mut(&mut self) -> &mut Names {
        self.0.get_or_insert_default()
    }
}

impl DirNames {
    /// See [`Names::forget_all`].
    pub(super) fn forget_all(&mut self) {
        if let Some(names) = &mut self.0 {
            names.forget_all();
        }
    }

    /// The session is over, and with it what was made here and not committed.
    pub(super) fn lose_made(&mut self) {
        if let Some(names) = &mut self.0 {
            names.uncommitted = 0;
            names.foreseeable = false;
        }
    }

    /// From now on the leader is asked before a name is made (G1).
    pub(super) fn set_unforeseeable(&mut self) {
        if let Some(names) = &mut self.0 {
            names.foreseeable = false;
        }
    }

    /// Returns whether it is certainly a directory.
    pub(super) const fn any(&self) -> bool {
        self.0.is_some()
    }
}

/// What is known about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    Unknown,
    Absent,
    Present(InodeNo, FileKind),
}

#[derive(Debug, Default)]
pub(super) struct Names {
    names: BTreeMap<Key, Entry>,
    /// Every name that exists is in `names`.
    total: bool,
    listing: Option<Listing>,
    /// Changes of ours in flight.
    pending: BTreeMap<Name, Pending>,
    /// Changes of others: since when, and how many.
    breaks: Option<(Instant, u32)>,
    /// The leader has said that names may be made here without asking (G1).
    foreseeable: bool,
    /// Names made here of which the leader does not know yet.
    uncommitted: usize,
    /// Questions for names that turned out not to exist, since all were forgotten.
    absent_asked: u8,
}

/// The bytes of a name, once for both maps: the message that a [`Name`] came with would be kept along with it.
type Key = Arc<[u8]>;

fn name_of(key: &Key) -> Name {
    Name::new(Bytes::copy_from_slice(key)).expect("it was a name")
}

/// A [`Known`], packed, for there may be a million of them.
#[derive(Debug)]
struct Entry {
    ino: InodeNo,
    is: Is,
    /// The kernel may have it.
    kernel: bool,
    /// How often the kernel has asked for it while it did not exist.
    looks: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    Unknown,
    Absent,
    Present(FileKind),
}

impl Entry {
    fn known(&self) -> Known {
        match self.is {
            Is::Unknown => Known::Unknown,
            Is::Absent => Known::Absent,
            Is::Present(kind) => Known::Present(self.ino, kind),
        }
    }

    fn set(&mut self, known: Known) {
        if known != Known::Absent {
            self.looks = 0;
        }
        (self.ino, self.is) = match known {
            Known::Unknown => (InodeNo(0), Is::Unknown),
            Known::Absent => (InodeNo(0), Is::Absent),
            Known::Present(ino, kind) => (ino, Is::Present(kind)),
        };
    }
}

#[derive(Debug, Default)]
struct Pending {
    count: u32,
    /// Two at a time, or one of another node's in between: which one came last is not known here.
    overlapped: bool,
}

/// The order of a listing; the facts are in the names.
#[derive(Debug)]
struct Listing {
    parent: InodeNo,
    cookies: BTreeMap<u64, Key>,
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
        self.listed(name.as_bytes())
    }

    fn listed(&self, name: &[u8]) -> Known {
        match self.names.get(name) {
            Some(entry) => entry.known(),
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

    /// Notes that the leader was asked for a name that does not exist; returns whether a listing would be worth more
    /// than the next such question.
    pub(super) fn asked_in_vain(&mut self) -> bool {
        self.absent_asked = self.absent_asked.saturating_add(1);
        self.absent_asked == ABSENT_ASKED && !self.total && self.listing.is_none()
    }

    fn set(&mut self, name: &Name, known: Known) -> bool {
        self.set_within(NAMES_MAX, name, known)
    }

    fn set_within(&mut self, most: usize, name: &Name, known: Known) -> bool {
        if let Some(entry) = self.names.get_mut(name.as_bytes()) {
            entry.set(known);
            return true;
        }
        let room = self.names.len() < most;
        if room {
            let mut entry = Entry {
                ino: InodeNo(0),
                is: Is::Unknown,
                kernel: false,
                looks: 0,
            };
            entry.set(known);
            self.names.insert(name.as_bytes().into(), entry);
        } else if known != Known::Absent {
            // Of absence nothing is lost: where all names are known, the others do not exist.
            self.total = false;
        }
        room
    }

    /// Notes that the kernel gets the name with a time-out; false if that cannot be remembered, or is not worth it yet.
    pub(super) fn give_to_kernel(&mut self, name: &Name) -> bool {
        if self.pending.contains_key(name) {
            return false;
        }
        let key = name.as_bytes();
        if !self.names.contains_key(key) {
            let known = if self.total {
                Known::Absent
            } else {
                Known::Unknown
            };
            self.set(name, known);
        }
        let Some(entry) = self.names.get_mut(key) else {
            return false;
        };
        if entry.is == Is::Absent {
            entry.looks = entry.looks.saturating_add(1);
            entry.kernel |= entry.looks >= ABSENT_KEPT;
        } else {
            entry.kernel = true;
        }
        entry.kernel
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
        // A removed name stays in the order of the listing, where it is passed over: to look for its cookie would
        // make the removal of a whole directory cost the square of its size. A new name's cookie is not known.
        if overlapped || outcome != Some(Known::Absent) {
            self.listing = None;
        }
    }

    /// Notes that the directory was made just now: it has no names.
    pub(super) const fn begin_empty(&mut self) {
        self.total = true;
        self.foreseeable = true;
    }

    /// Returns whether names may be made here without asking (G1).
    pub(super) const fn is_foreseeable(&self) -> bool {
        self.foreseeable
    }

    /// The leader says that names may be made here without asking (G1).
    pub(super) const fn set_foreseeable(&mut self) {
        self.foreseeable = true;
    }

    /// Takes a name that was made here.
    pub(super) fn make(&mut self, name: &Name, known: Known) {
        self.set_within(MADE_NAMES_MAX, name, known);
        self.uncommitted += 1;
        self.listing = None;
    }

    /// Forgets a name that was removed here. Whatever the kernel had of it went with the removal.
    pub(super) fn remove(&mut self, name: &Name) {
        if self.total {
            self.names.remove(name.as_bytes());
        } else {
            self.set(name, Known::Absent);
        }
        self.uncommitted += 1;
    }

    /// Returns whether it is certain that there is no name.
    pub(super) fn is_empty(&self) -> bool {
        let absent = |entry: &Entry| entry.is == Is::Absent;
        self.total && self.pending.is_empty() && self.names.values().all(absent)
    }

    /// The leader knows of so many more of them, or they are lost.
    pub(super) const fn committed(&mut self, count: usize) {
        self.uncommitted = self.uncommitted.saturating_sub(count);
    }

    /// Returns how many names were made here of which the leader does not know yet.
    pub(super) const fn uncommitted(&self) -> usize {
        self.uncommitted
    }

    /// Drops a fact.
    pub(super) fn forget(&mut self, name: &Name) {
        if let Some(pending) = self.pending.get_mut(name) {
            pending.overlapped = true;
        }
        let key = name.as_bytes();
        match self.names.get_mut(key) {
            Some(entry) => entry.set(Known::Unknown),
            None if self.total => {
                self.set(name, Known::Unknown);
            }
            None => {}
        }
        if !self.total && self.names.get(key).is_some_and(|entry| !entry.kernel) {
            self.names.remove(key);
        }
        self.listing = None;
    }

    /// Drops all facts; what the kernel may have is remembered.
    pub(super) fn forget_all(&mut self) {
        for pending in self.pending.values_mut() {
            pending.overlapped = true;
        }
        self.total = false;
        self.listing = None;
        self.absent_asked = 0;
        self.names.retain(|_, entry| {
            entry.set(Known::Unknown);
            entry.kernel
        });
    }

    /// Drops what only answers faster, and returns the memory of it.
    pub(super) fn forget_unused(&mut self) {
        if self.uncommitted > 0 {
            return;
        }
        self.total = false;
        self.listing = None;
        self.names.retain(|_, entry| entry.kernel);
    }

    /// Returns the memory it is charged for, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let listed = self.listing.as_ref().map_or(0, |l| l.cookies.len());
        (self.names.len() + listed) * NAME_BYTES
    }

    /// Notes that another node changes names; returns whether all names are better given up now. Never those of
    /// directories in the kernel: with the name goes what is mounted below it, and the path of who works there.
    pub(super) fn give_up(&mut self, now: Instant) -> bool {
        let recent = self.breaks.filter(|(first, _)| now.since(*first) <= WINDOW);
        let (first, breaks) = recent.unwrap_or((now, 0));
        self.breaks = Some((first, breaks + 1));
        let may_be_dir = |entry: &Entry| {
            entry.kernel && matches!(entry.is, Is::Unknown | Is::Present(FileKind::Dir))
        };
        breaks + 1 >= BREAKS && !self.names.values().any(may_be_dir)
    }

    /// The kernel has forgotten a name.
    pub(super) fn taken_from_kernel(&mut self, name: &Name) {
        let key = name.as_bytes();
        if let Some(entry) = self.names.get_mut(key) {
            entry.kernel = false;
            if entry.is == Is::Unknown && !self.total {
                self.names.remove(key);
            }
        }
    }

    /// Returns whether the kernel may have a name.
    pub(super) fn is_in_kernel(&self, name: &Name) -> bool {
        let entry = self.names.get(name.as_bytes());
        entry.is_some_and(|entry| entry.kernel)
    }

    /// Returns the names that the kernel may have.
    pub(super) fn in_kernel(&self) -> Vec<Name> {
        let held = self.names.iter().filter(|(_, entry)| entry.kernel);
        held.map(|(key, _)| name_of(key)).collect()
    }

    /// Returns whether there is room for another name that is made here.
    pub(super) fn has_room(&self) -> bool {
        self.names.len() < MADE_NAMES_MAX
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
        let names = &self.names;
        let cookies = entries.iter().filter_map(|(cookie, name, ..)| {
            let (key, _) = names.get_key_value(name.as_bytes())?;
            Some((*cookie, Arc::clone(key)))
        });
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
        let listed: BTreeSet<&Key> = listing.cookies.values().collect();
        // Nothing is pending where a listing is kept.
        for (key, entry) in &mut self.names {
            if !listed.contains(key) {
                entry.set(Known::Absent);
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
        // Nothing is pending.
        let entry = |(&cookie, key): (&u64, &Key)| match self.listed(key) {
            Known::Present(ino, kind) => Some(Some((cookie, name_of(key), ino, kind))),
            // Removed since, by this node.
            Known::Absent => None,
            Known::Unknown => Some(None),
        };
        let entries = range.filter_map(entry).take(limit);
        let entries = entries.collect::<Option<_>>()?;
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
    fn names_that_others_fight_for_are_given_up_but_for_directories() {
        let at = |ms| Instant(0) + Duration::from_millis(ms);
        let mut names = Names::default();
        assert!((1..u64::from(BREAKS)).all(|n| !names.give_up(at(n))));
        assert!(names.give_up(at(50)));
        assert!(!names.give_up(at(200)), "it is quiet by now");
        assert!((1..u64::from(BREAKS) - 1).all(|n| !names.give_up(at(200 + n))));
        let dir = Entry {
            ino: InodeNo(2),
            is: Is::Present(FileKind::Dir),
            kernel: true,
            looks: 0,
        };
        names.names.insert(Arc::from(&b"dir"[..]), dir);
        assert!(!names.give_up(at(250)));
        names.names.clear();
        assert!(names.give_up(at(251)));
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
    fn a_question_in_a_full_directory_takes_no_knowledge_away() {
        let mut names = Names::default();
        names.begin_empty();
        for number in 0..=NAMES_MAX {
            let name = name(&number.to_string());
            // The kernel asks for each before it has it made.
            let kept = (0..ABSENT_KEPT).map(|_| names.give_to_kernel(&name)).last();
            assert_eq!(kept, Some(number < NAMES_MAX));
            assert_eq!(names.find(&name), Known::Absent);
            names.make(&name, A);
        }
        assert!(!names.learn(&name("z"), A), "there is no room");
        assert_eq!(names.find(&name("y")), Known::Unknown);
    }

    #[test]
    fn the_kernel_keeps_absence_that_is_asked_for_again_and_again() {
        let mut names = listed();
        let mut kept = |times: u8| -> Vec<bool> {
            let looks = (0..times).map(|_| names.give_to_kernel(&name("z")));
            looks.collect()
        };
        assert_eq!(kept(ABSENT_KEPT), [false, false, true]);
        assert_eq!(kept(1), [true]);
        assert!(names.is_in_kernel(&name("z")));
        // It came to be, and went.
        names.set(&name("z"), A);
        names.taken_from_kernel(&name("z"));
        names.set(&name("z"), Known::Absent);
        assert!(!names.give_to_kernel(&name("z")));
        assert!(!names.is_in_kernel(&name("z")));
        assert!(
            names.give_to_kernel(&name("a")),
            "what exists is kept at once"
        );
    }

    #[test]
    fn many_questions_in_vain_call_for_a_listing_once() {
        let mut names = Names::default();
        let calls = |names: &mut Names| (0..40).filter(|_| names.asked_in_vain()).count();
        assert!((1..ABSENT_ASKED).all(|_| !names.asked_in_vain()));
        assert!(names.asked_in_vain());
        assert_eq!(calls(&mut names), 0, "it may be too long");
        names.forget_all();
        assert_eq!(calls(&mut names), 1);
        assert_eq!(calls(&mut listed()), 0);
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
    fn what_was_known_before_a_break_is_no_outcome() {
        for all in [false, true] {
            let mut names = listed();
            names.begin_change(&name("a"));
            if all {
                names.forget_all();
            } else {
                names.forget(&name("a"));
            }
            names.end_change(&name("a"), Some(A));
            assert_eq!(names.find(&name("a")), Known::Unknown);
            names.begin_change(&name("a"));
            names.end_change(&name("a"), Some(A));
            assert_eq!(names.find(&name("a")), A);
        }
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
