//! What a job has in memory, as proc(5) shows it.

use super::super::wire::PAGE_BYTES;
use super::{Range, Reader};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

/// In `/proc/<pid>/pagemap`: the page is there, or is swapped out, or is not the process's own.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const SHARED: u64 = 1 << 61;
/// Bytes of one page in that file.
const ENTRY_BYTES: usize = 8;
/// Entries that are read in one go.
const ENTRIES: u64 = 8192;
/// Larger mappings are mostly empty, and take long to be looked through; their pages go last.
const MAPPING_PAGES_MAX: u64 = 64 << 18;

/// The memory of processes of this node.
#[derive(Debug)]
pub(super) struct Processes(Vec<(i32, File)>);

impl Processes {
    /// Those that are not gone.
    pub(super) fn open(members: &BTreeSet<i32>) -> Self {
        let open = |pid: &i32| Some((*pid, File::open(format!("/proc/{pid}/mem")).ok()?));
        Self(members.iter().filter_map(open).collect())
    }
}

impl Reader for Processes {
    fn read(&self, pid: i32, address: u64, into: &mut [u8]) -> io::Result<()> {
        let file = self.0.iter().find(|(of, _)| *of == pid);
        let (_, file) = file.ok_or(io::ErrorKind::NotFound)?;
        file.read_exact_at(into, address)
    }
}

/// A mapping with pages of a process's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mapping {
    start: u64,
    pages: u64,
    /// Of these so many are there.
    own: u64,
}

/// Returns the pages that a process has to itself.
pub(super) fn own_pages(pid: i32) -> io::Result<Vec<Range>> {
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    let mut ranges: Vec<Range> = Vec::new();
    for mapping in mappings(pid)? {
        if mapping.pages > MAPPING_PAGES_MAX {
            continue;
        }
        let mut page = 0;
        while page < mapping.pages {
            let count = ENTRIES.min(mapping.pages - page);
            let first = mapping.start / PAGE_BYTES as u64 + page;
            let mut entries = vec![0; usize::try_from(count).expect("a few") * ENTRY_BYTES];
            pagemap.read_exact_at(&mut entries, first * ENTRY_BYTES as u64)?;
            for (entry, address) in entries
                .chunks_exact(ENTRY_BYTES)
                .zip((first * PAGE_BYTES as u64..).step_by(PAGE_BYTES))
            {
                let entry = u64::from_ne_bytes(entry.try_into().expect("8 bytes"));
                if entry & (PRESENT | SWAPPED) == 0 || entry & SHARED != 0 {
                    continue;
                }
                match ranges.last_mut() {
                    Some(last) if last.ends_at() == address => last.pages += 1,
                    _ => ranges.push(Range {
                        pid,
                        address,
                        pages: 1,
                    }),
                }
            }
            page += count;
        }
    }
    Ok(ranges)
}

/// Returns how many pages a process has to itself.
pub(super) fn count(pid: i32) -> io::Result<u64> {
    Ok(mappings(pid)?.iter().map(|mapping| mapping.own).sum())
}

fn mappings(pid: i32) -> io::Result<Vec<Mapping>> {
    Ok(parse(&fs::read_to_string(format!("/proc/{pid}/smaps"))?))
}

/// Returns the private mappings of `/proc/<pid>/smaps` that have pages of their own.
fn parse(smaps: &str) -> Vec<Mapping> {
    let mut mappings = Vec::new();
    let mut current: Option<Mapping> = None;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else {
            continue;
        };
        if let Some(field) = first.strip_suffix(':') {
            let pages = second.parse::<u64>().unwrap_or(0) * 1024 / PAGE_BYTES as u64;
            if let (Some(mapping), "Anonymous" | "Swap") = (&mut current, field) {
                mapping.own += pages;
            }
        } else {
            mappings.extend(current.take());
            let range = first.split_once('-').and_then(|(start, end)| {
                let number = |text| u64::from_str_radix(text, 16).ok();
                Some((number(start)?, number(end)?))
            });
            current = range
                .filter(|_| second.ends_with('p'))
                .map(|(start, end)| Mapping {
                    start,
                    pages: (end - start) / PAGE_BYTES as u64,
                    own: 0,
                });
        }
    }
    mappings.extend(current);
    mappings.retain(|mapping| mapping.own > 0);
    mappings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_with_pages_of_their_own() {
        let smaps = "\
5560a000-5560c000 r--p 00000000 fe:00 77 /usr/bin/a b: c
Size:                  8 kB
Anonymous:             0 kB
VmFlags: rd mr mw me
7f0000000000-7f0000400000 rw-p 00000000 00:00 0
Rss:                  40 kB
Anonymous:            36 kB
Swap:                  4 kB
7f0000400000-7f0000800000 rw-s 00000000 00:05 9 /memfd:x (deleted)
Anonymous:            12 kB
";
        let found = Mapping {
            start: 0x7f00_0000_0000,
            pages: 1024,
            own: 10,
        };
        assert_eq!(parse(smaps), [found]);
    }

    #[test]
    fn what_is_written_is_found() {
        let pid = std::process::id().cast_signed();
        let memory = vec![7_u8; 16 * PAGE_BYTES];
        let page = (memory.as_ptr() as u64).next_multiple_of(PAGE_BYTES as u64);
        let ranges = own_pages(pid).expect("this process");
        let has = |range: &Range| range.address <= page && page < range.ends_at();
        assert!(ranges.iter().any(has), "{page:#x} is not in {ranges:x?}");
        assert!(count(pid).expect("this process") >= 15);
        let mut read = vec![0; PAGE_BYTES];
        let processes = Processes::open(&BTreeSet::from([pid]));
        processes.read(pid, page, &mut read).expect("it is there");
        assert!(read.iter().all(|byte| *byte == 7));
    }
}
