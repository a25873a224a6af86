//! Worlds of a job that writes while its pages go ahead of it, and what its copy must have then (MV11).

use super::super::engine::Images;
use super::pagemap::{At, Entry, Pagemap, extend, pagemap_of, pagemaps};
use super::*;
use std::collections::BTreeMap;
use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

/// A rule that is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    Nothing,
    /// The frozen job is looked at.
    LastLook,
    /// Later pages take the place of earlier ones.
    NewestWins,
    /// A page counts as sent when it has been.
    NotedWhenSent,
    /// Without a page that has not come there is no copy.
    Complete,
}

/// Random numbers that come again with their seed (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % bound
    }
}

/// What processes have; pages that are not there cannot be read.
#[derive(Clone, Default)]
struct Job(BTreeMap<(i32, u64), Vec<u8>>);

impl Reader for Job {
    fn read(&self, pid: i32, address: u64, into: &mut [u8]) -> io::Result<()> {
        let addresses = (address..).step_by(PAGE_BYTES);
        for (address, into) in addresses.zip(into.chunks_exact_mut(PAGE_BYTES)) {
            let page = self.0.get(&(pid, address));
            into.copy_from_slice(page.ok_or(io::ErrorKind::NotFound)?);
        }
        Ok(())
    }
}

impl Job {
    fn ranges(&self) -> Vec<Range> {
        let mut ranges: Vec<Range> = Vec::new();
        for (pid, address) in self.0.keys().copied() {
            match ranges.last_mut() {
                Some(last) if last.pid == pid && last.ends_at() == address => last.pages += 1,
                _ => ranges.push(Range {
                    pid,
                    address,
                    pages: 1,
                }),
            }
        }
        ranges
    }

    /// Something writes, maps, unmaps, forks or ends.
    fn goes_on(&mut self, random: &mut Random) {
        for _ in 0..random.below(40) {
            let pid = i32::try_from(7 + random.below(3)).expect("a few");
            let address = (1 + random.below(600)) * PAGE_BYTES as u64;
            match random.below(8) {
                0 => drop(self.0.remove(&(pid, address))),
                1 => drop(self.0.insert((pid, address), vec![0; PAGE_BYTES])),
                _ => {
                    let mut page = vec![0; PAGE_BYTES];
                    for _ in 0..=random.below(3) {
                        let at = usize::try_from(random.below(PAGE_BYTES as u64)).expect("a page");
                        page[at] = u8::try_from(random.below(4)).expect("a byte");
                    }
                    self.0.insert((pid, address), page);
                }
            }
        }
        if random.below(10) == 0 {
            let child: Vec<_> = self.0.range((7, 0)..(8, 0)).collect();
            let child: Vec<_> = child
                .into_iter()
                .map(|((_, at), page)| ((9, *at), page.clone()))
                .collect();
            self.0.extend(child);
        }
    }
}

/// Makes images of a frozen job as CRIU does, which lack all pages but some.
fn make_images(dir: &Path, job: &Job, random: &mut Random) {
    let mut entries = BTreeMap::<i32, (Vec<Entry>, Vec<u8>)>::new();
    for ((pid, address), page) in &job.0 {
        let (entries, pages) = entries.entry(*pid).or_default();
        let at = match random.below(10) {
            0 => At::File,
            _ => At::Nowhere,
        };
        if at == At::File {
            pages.extend(page);
        }
        extend(entries, *address, 1, at);
    }
    for (pid, (entries, pages)) in entries {
        let pagemap = Pagemap::new(u64::from(pid.unsigned_abs()), entries);
        fs::write(dir.join(pagemap_of(pid)), pagemap.write()).expect("written");
        fs::write(dir.join(pagemap.file()), pages).expect("written");
    }
}

/// Returns what a copy has that CRIU makes of images.
fn copy_of(dir: &Path) -> BTreeMap<(i32, u64), Vec<u8>> {
    let mut copy = BTreeMap::new();
    let parent = dir.join("parent");
    let before = match parent.exists() {
        true => copy_of(&parent),
        false => BTreeMap::new(),
    };
    for (pid, pagemap) in pagemaps(dir).expect("images") {
        let pages = fs::read(dir.join(pagemap.file())).expect("pages");
        let mut pages = pages.chunks_exact(PAGE_BYTES);
        for entry in pagemap.entries {
            for n in 0..entry.pages {
                let key = (pid, entry.address + n * PAGE_BYTES as u64);
                let page = match entry.at {
                    At::File => pages.next().expect("a page").to_vec(),
                    At::Parent => before[&key].clone(),
                    At::Nowhere => unreachable!("MV11: a page of {key:?} is nowhere"),
                };
                copy.insert(key, page);
            }
        }
        assert!(pages.next().is_none(), "pages of nobody");
    }
    copy
}

fn world(seed: u64, missing: Missing) {
    let mut random = Random(seed);
    let images = Images::new("test-ahead").expect("made");
    let mut job = Job::default();
    for _ in 0..20 {
        job.goes_on(&mut random);
    }
    let mut gone = Gone::new(seed);
    let mut store = Store::default();
    let mut seen = std::collections::HashSet::new();
    let workers = NonZero::new(1 + usize::try_from(random.below(3)).expect("a few")).expect("one");
    let rounds = random.below(4);
    for round in 0..=rounds {
        let runs = round < rounds;
        if !runs && missing == Missing::LastLook {
            break;
        }
        // Pages are gone that were there when the ranges were looked for.
        let ranges = job.ranges();
        if runs {
            job.goes_on(&mut random);
        }
        let mut left = match runs && random.below(4) == 0 {
            true => random.below(20),
            false => u64::MAX,
        };
        let sent = gone.send_changed(&ranges, workers, &job, runs, |piece| {
            if left == 0 {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            left -= 1;
            let first = seen.insert((piece.pid, piece.address));
            let lost = missing == Missing::Complete && seen.len() == 50;
            if !lost && (first || missing != Missing::NewestWins) {
                store.put(&images, piece).expect("a piece");
            }
            Ok(())
        });
        assert!(sent.is_ok() || runs, "{sent:?}");
        if missing == Missing::NotedWhenSent {
            let all = job.0.iter().map(|(at, page)| (*at, gone.sum(page)));
            let all: Vec<_> = all.collect();
            gone.sums.extend(all);
        }
        if runs {
            job.goes_on(&mut random);
        }
    }
    make_images(images.dir(), &job, &mut random);
    let complete = store.complete(&images);
    complete.expect("MV11: all pages have gone");
    let copy = copy_of(images.dir());
    assert!(copy.keys().eq(job.0.keys()), "MV11: other pages");
    for (at, page) in &job.0 {
        assert!(copy[at] == *page, "MV11: {at:x?} is not what it was");
    }
}

#[test]
fn mv11_a_copy_has_what_the_job_had() {
    for seed in 1..200 {
        world(seed, Missing::Nothing);
    }
}

#[test]
fn mv11_a_missing_rule_is_noticed() {
    for missing in [
        Missing::LastLook,
        Missing::NewestWins,
        Missing::NotedWhenSent,
        Missing::Complete,
    ] {
        let noticed = (1..40).any(|seed| catch_unwind(|| world(seed, missing)).is_err());
        assert!(noticed, "{missing:?} is not noticed");
    }
}

#[test]
fn what_no_source_sends_is_refused() {
    let piece = |address, content| Piece {
        pid: 1,
        address,
        content,
    };
    let images = Images::new("test-ahead").expect("made");
    let page = Bytes::from(vec![1; PAGE_BYTES]);
    let packed = Bytes::from(lz4_flex::block::compress(&page));
    let long = Bytes::from(vec![1; (PIECE_PAGES_MAX as usize + 1) * PAGE_BYTES]);
    for wrong in [
        piece(1, Content::Plain(page.clone())),
        piece(u64::MAX - 4095, Content::Plain(page.clone())),
        piece(0, Content::Plain(page.slice(1..))),
        piece(0, Content::Plain(Bytes::new())),
        piece(0, Content::Plain(long)),
        piece(0, Content::Zeros(0)),
        piece(0, Content::Zeros(u32::MAX)),
        piece(0, Content::Packed(2, packed.clone())),
        piece(0, Content::Packed(u32::MAX, packed.clone())),
        piece(0, Content::Packed(1, packed.slice(1..))),
    ] {
        let told = format!("{wrong:?}");
        Store::default().put(&images, wrong).expect_err(&told);
    }
    let mut store = Store::default();
    let packed = piece(4096, Content::Packed(1, packed));
    store.put(&images, packed).expect("a page");
    let entries = vec![Entry {
        address: 4096,
        pages: 1,
        at: At::Nowhere,
    }];
    let pagemap = Pagemap::new(1, entries);
    fs::write(images.dir().join(pagemap_of(1)), pagemap.write()).expect("written");
    store.complete(&images).expect("all is there");
    assert_eq!(copy_of(images.dir())[&(1, 4096)], page);
}

#[test]
fn a_sample_tells_what_is_left() {
    let page = |byte| vec![byte; PAGE_BYTES];
    let pages = 4 * WINDOW_PAGES * SAMPLE_EVERY as u64;
    let key = |n: u64| (7, (1 + n) * PAGE_BYTES as u64);
    let mut job = Job((0..pages).map(|n| (key(n), page(1))).collect());
    let mut gone = Gone::new(1);
    let estimate = |gone: &Gone, job: &Job| gone.estimate(&gone.sample(&job.ranges(), job));
    let all = pages * PAGE_BYTES as u64;
    assert_eq!(estimate(&gone, &job), all);
    let sent = gone.send_changed(&job.ranges(), NonZero::<usize>::MIN, &job, true, |_| Ok(()));
    sent.expect("all is sent");
    assert_eq!(estimate(&gone, &job), 0);
    for n in (0..pages).step_by(2) {
        job.0.insert(key(n), page(2));
    }
    assert_eq!(estimate(&gone, &job), all / 2);
}
