//! Gets small files that a reader will want next, many at a time.
//!
//! Who reads the files of a directory one after the other waits for each: for the leader, for the break of who has written
//! it, and for that one's flush. After a few such reads the directory is listed, and the content of those that follow in
//! the listing is loaded ahead of the reader. What is loaded is cached under the same leases, and within the same bound, as
//! what is read; nothing is loaded of files that are longer than their inode's record.

use super::Core;
use super::call::Patience;
use super::ops::readdir;
use consistency::wire::lease::Mode;
use consistency::wire::meta::{DirEntry, FileKind, INLINE_BYTES_MAX};
use consistency::{Duration, InodeNo, Instant};
use futures::StreamExt;
use lru::LruCache;
use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard};

/// So many files read that were not cached, each so soon after the one before, call for the next.
const COLD: u32 = 3;
const SOON: Duration = Duration::from_millis(1_000);
/// Files loaded at a time.
const WINDOW: usize = 64;
/// Pages of listings that are remembered.
const PAGES_MAX: usize = 8;
/// Directories whose reads are counted, and files whose directory is remembered.
const RECENT_MAX: NonZeroUsize = NonZeroUsize::new(256).expect("some");

/// What is being read one after the other.
#[derive(Debug)]
pub(super) struct Ahead(Mutex<Readers>);

#[derive(Debug)]
struct Readers {
    /// By last use.
    pages: VecDeque<Page>,
    dirs: LruCache<InodeNo, Dir>,
    /// In which directory a file was looked up.
    looked_up: LruCache<InodeNo, InodeNo>,
}

/// Small files of a page of a listing, in its order.
#[derive(Debug)]
struct Page {
    dir: InodeNo,
    files: Vec<InodeNo>,
    places: HashMap<InodeNo, usize>,
    /// Those before were loaded, or are being loaded.
    upto: usize,
    /// Some are.
    busy: bool,
}

#[derive(Debug, Default)]
struct Dir {
    /// Files read that were not cached, and when the last was.
    cold: u32,
    last: Option<Instant>,
    listed: Listed,
}

/// How far a directory was listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Listed {
    /// Up to this cookie.
    Upto(u64),
    /// The next page is on its way, or could not be had.
    Asked,
    #[default]
    Nothing,
    Whole,
}

/// What to get.
#[derive(Debug, PartialEq, Eq)]
enum Get {
    Files(InodeNo, Vec<InodeNo>),
    /// The page behind a cookie.
    Page(InodeNo, u64),
}

impl Default for Ahead {
    fn default() -> Self {
        Self(Mutex::new(Readers {
            pages: VecDeque::new(),
            dirs: LruCache::new(RECENT_MAX),
            looked_up: LruCache::new(RECENT_MAX),
        }))
    }
}

impl Ahead {
    fn readers(&self) -> MutexGuard<'_, Readers> {
        self.0.lock().expect("no holder panics")
    }

    /// Notes that the leader was asked for the name of a file.
    pub(super) fn looked_up(&self, dir: InodeNo, file: InodeNo) {
        self.readers().looked_up.put(file, dir);
    }

    /// Notes a page of a listing, that behind the cookie `after`.
    pub(super) fn listed(&self, dir: InodeNo, after: u64, entries: &[DirEntry], end: bool) {
        self.readers().listed(dir, after, entries, end);
    }
}

fn is_small(entry: &DirEntry) -> bool {
    let short = |size| size <= INLINE_BYTES_MAX as u64;
    // Of what has an owner elsewhere nothing is known.
    let may_be_short = entry.fact.as_ref().is_none_or(|fact| short(fact.attr.size));
    entry.kind == FileKind::File && may_be_short
}

impl Readers {
    fn listed(&mut self, dir: InodeNo, after: u64, entries: &[DirEntry], end: bool) {
        let known = self.dirs.get_or_insert_mut(dir, Dir::default);
        let further = match known.listed {
            Listed::Nothing | Listed::Asked => true,
            Listed::Upto(cookie) => after >= cookie,
            Listed::Whole => false,
        };
        if further {
            let last = entries.last().filter(|_| !end);
            known.listed = last.map_or(Listed::Whole, |last| Listed::Upto(last.cookie));
        }
        let files: Vec<_> = entries.iter().filter(|entry| is_small(entry)).collect();
        let files: Vec<_> = files.into_iter().map(|entry| entry.ino).collect();
        let Some(first) = files.first() else { return };
        self.pages.retain(|page| !page.places.contains_key(first));
        let places = files.iter().enumerate().map(|(at, &ino)| (ino, at));
        self.pages.push_front(Page {
            dir,
            places: places.collect(),
            files,
            upto: 0,
            busy: false,
        });
        self.pages.truncate(PAGES_MAX);
    }

    /// Notes that a file was opened for reading; says what to get.
    fn opened(&mut self, now: Instant, file: InodeNo, cached: bool) -> Option<Get> {
        let place = |page: &Page| page.places.get(&file).copied();
        let found = self.pages.iter().position(|page| place(page).is_some());
        let Some(found) = found else {
            let dir = self.looked_up.pop(&file).filter(|_| !cached)?;
            return self.count(now, dir).then(|| self.next_page(dir)).flatten();
        };
        if found > 0 {
            let page = self.pages.remove(found).expect("it was found");
            self.pages.push_front(page);
        }
        let dir = self.pages[0].dir;
        if !cached && !self.count(now, dir) {
            return None;
        }
        let page = &mut self.pages[0];
        let at = place(page).expect("it was found");
        let begin = if cached {
            // Within what was loaded, and near its end.
            (at < page.upto && at + WINDOW / 2 >= page.upto).then_some(page.upto)
        } else {
            Some(at + 1)
        };
        let begin = begin.filter(|_| !page.busy)?;
        if begin >= page.files.len() {
            // That page comes before the reader has read this one.
            return self.next_page(dir);
        }
        page.upto = page.files.len().min(begin + WINDOW);
        page.busy = true;
        Some(Get::Files(dir, page.files[begin..page.upto].to_vec()))
    }

    /// Counts a file of a directory that was not cached; returns whether it is one of many.
    fn count(&mut self, now: Instant, dir: InodeNo) -> bool {
        let dir = self.dirs.get_or_insert_mut(dir, Dir::default);
        let soon = dir.last.is_some_and(|last| now.since(last) <= SOON);
        dir.cold = if soon { dir.cold.saturating_add(1) } else { 1 };
        dir.last = Some(now);
        dir.cold >= COLD
    }

    fn next_page(&mut self, dir: InodeNo) -> Option<Get> {
        let known = self.dirs.get_or_insert_mut(dir, Dir::default);
        let after = match known.listed {
            Listed::Nothing => 0,
            Listed::Upto(cookie) => cookie,
            Listed::Asked | Listed::Whole => return None,
        };
        known.listed = Listed::Asked;
        Some(Get::Page(dir, after))
    }

    /// Files of a page were got.
    fn got(&mut self, dir: InodeNo, first: InodeNo) {
        let has = |page: &&mut Page| page.dir == dir && page.places.contains_key(&first);
        if let Some(page) = self.pages.iter_mut().find(has) {
            page.busy = false;
        }
    }
}

impl Core {
    /// Gets what a reader who has opened a file will want next.
    pub(super) fn read_ahead(self: &Arc<Self>, file: InodeNo, cached: bool) {
        let get = self.ahead.readers().opened(self.clock.now(), file, cached);
        if let Some(get) = get {
            let core = Arc::clone(self);
            tokio::spawn(async move { core.get(get).await });
        }
    }

    async fn get(self: &Arc<Self>, get: Get) {
        match get {
            Get::Page(dir, after) => {
                let page = readdir::ask(Arc::clone(self), self.pin(dir), after, readdir::PAGE_MAX);
                if let Err(error) = page.await {
                    tracing::debug!(%dir, %error, "a directory could not be listed ahead");
                }
            }
            Get::Files(dir, files) => {
                let first = files[0];
                let loads = futures::stream::iter(files);
                loads
                    .for_each_concurrent(WINDOW, |ino| self.load_ahead(ino))
                    .await;
                self.ahead.readers().got(dir, first);
            }
        }
    }

    async fn load_ahead(self: &Arc<Self>, ino: InodeNo) {
        let node = self.pin(ino);
        let wanted = {
            let state = node.state();
            state.content.is_none() && state.breaking.is_none()
        };
        if wanted {
            // As a READ does, which may come to wait for this. Who reads the file hears of errors.
            let _hint = self.load(&node, Mode::Shared, Patience::PageLock).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use consistency::wire::meta::Name;

    const DIR: InodeNo = InodeNo(1);

    fn ms(ms: u64) -> Instant {
        Instant(0) + Duration::from_millis(ms)
    }

    fn entries(files: std::ops::Range<u64>) -> Vec<DirEntry> {
        let entry = |ino: u64| DirEntry {
            cookie: ino,
            name: Name::new(ino.to_string()).expect("a name"),
            ino: InodeNo(ino),
            kind: FileKind::File,
            fact: None,
        };
        files.map(entry).collect()
    }

    fn files(files: std::ops::Range<u64>) -> Option<Get> {
        Some(Get::Files(DIR, files.map(InodeNo).collect()))
    }

    fn readers() -> Readers {
        let Ahead(readers) = Ahead::default();
        readers.into_inner().expect("nobody panics")
    }

    /// Opens files that are not cached, and were looked up, at such times.
    #[track_caller]
    fn check_cold(times: &[u64], expected: Option<Get>) {
        let mut readers = readers();
        let mut got = None;
        for (ino, &at) in times.iter().enumerate() {
            let ino = InodeNo(10 + ino as u64);
            readers.looked_up.put(ino, DIR);
            got = readers.opened(ms(at), ino, false);
        }
        assert_eq!(got, expected, "{times:?}");
    }

    #[test]
    fn a_few_files_in_a_row_call_for_a_listing() {
        check_cold(&[0, 1], None);
        check_cold(&[0, 1, 2], Some(Get::Page(DIR, 0)));
        check_cold(&[0, 1, 2, 3], None);
        check_cold(&[0, 1, 1_002], None);
    }

    #[test]
    fn files_are_got_ahead_of_the_reader() {
        let mut readers = readers();
        readers.listed(DIR, 0, &entries(100..200), false);
        assert_eq!(readers.opened(ms(0), InodeNo(100), false), None);
        assert_eq!(readers.opened(ms(0), InodeNo(101), false), None);
        assert_eq!(
            readers.opened(ms(0), InodeNo(102), false),
            files(103..103 + 64)
        );
        assert_eq!(
            readers.opened(ms(1), InodeNo(103), false),
            None,
            "it is on its way"
        );
        readers.got(DIR, InodeNo(103));
        assert_eq!(readers.opened(ms(2), InodeNo(104), true), None, "not yet");
        assert_eq!(
            readers.opened(ms(3), InodeNo(135), true),
            files(167..200),
            "half are read"
        );
        readers.got(DIR, InodeNo(167));
        let next = Some(Get::Page(DIR, 199));
        assert_eq!(readers.opened(ms(4), InodeNo(180), true), next);
        assert_eq!(readers.opened(ms(4), InodeNo(181), true), None, "once");
        readers.listed(DIR, 199, &entries(200..202), false);
        assert_eq!(readers.opened(ms(5), InodeNo(200), false), files(201..202));
        readers.got(DIR, InodeNo(201));
        let next = Some(Get::Page(DIR, 201));
        assert_eq!(readers.opened(ms(6), InodeNo(201), true), next);
        readers.listed(DIR, 201, &[], true);
        assert_eq!(readers.opened(ms(7), InodeNo(201), true), None, "the end");
    }

    #[test]
    fn what_was_lost_is_got_again() {
        let mut readers = readers();
        readers.listed(DIR, 0, &entries(10..20), true);
        for ino in 10..12 {
            assert_eq!(readers.opened(ms(0), InodeNo(ino), false), None);
        }
        assert_eq!(readers.opened(ms(0), InodeNo(12), false), files(13..20));
        readers.got(DIR, InodeNo(13));
        assert_eq!(readers.opened(ms(1), InodeNo(14), false), files(15..20));
    }

    #[test]
    fn long_files_and_directories_are_left_alone() {
        let mut entries = entries(10..13);
        entries[1].kind = FileKind::Dir;
        assert!(is_small(&entries[0]));
        let small: Vec<_> = entries.iter().filter(|entry| is_small(entry)).collect();
        assert_eq!(small.len(), 2);
    }

    #[test]
    fn memory_is_bounded() {
        let mut readers = readers();
        for dir in 1_000..2_000 {
            readers.looked_up.put(InodeNo(dir), InodeNo(dir));
            readers.listed(InodeNo(dir), 0, &entries(dir * 10..dir * 10 + 5), true);
        }
        assert_eq!(readers.pages.len(), PAGES_MAX);
        assert_eq!(readers.looked_up.len(), RECENT_MAX.get());
        assert_eq!(readers.dirs.len(), RECENT_MAX.get());
    }
}
