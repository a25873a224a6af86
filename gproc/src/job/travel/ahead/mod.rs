//! Pages of a job that go ahead of it (pre-copy; Theimer, Lantz and Cheriton, 1985): the source sends what the job has in memory
//! while that runs, freezes it, and sends again what has changed since. The target makes images of all that ([`Store`]), which those
//! of the frozen job are an increment of.
//!
//! What has changed is found by what is there ([`Gone`] keeps a checksum of each page that was sent), not by who has written: the
//! kernel tells that only where it is built so (CONFIG_MEM_SOFT_DIRTY), and looking at all of a job's memory takes less time than
//! CRIU takes for its images.
//!
//! MV11 **What went ahead is what the job has.** A copy is made only when for each page that its images lack there is the one
//! that the frozen job has.

mod copying;
mod memory;
mod packing;
mod pagemap;
mod store;
#[cfg(test)]
mod tests;

pub(super) use copying::{Copying, Sink, by, copied, dump};
pub(super) use store::Store;

use super::wire::{Content, PAGE_BYTES, PIECE_PAGES_MAX, Piece};
use bytes::Bytes;
use packing::Packing;
use std::collections::HashMap;
use std::io;
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use xxhash_rust::xxh3::xxh3_128_with_seed;

/// Pages that are looked at in one go.
const WINDOW_PAGES: u64 = 256;
/// Of so many windows one is looked at to see what the others are like.
const SAMPLE_EVERY: usize = 16;
/// Pieces that may wait to be sent.
const PIECES_QUEUED_MAX: usize = 16;

/// Pages of a process, one behind the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    pid: i32,
    address: u64,
    pages: u64,
}

impl Range {
    fn windows(self) -> impl Iterator<Item = Self> {
        let windows = 0..self.pages.div_ceil(WINDOW_PAGES);
        windows.map(move |n| Self {
            address: self.address + n * WINDOW_PAGES * PAGE_BYTES as u64,
            pages: WINDOW_PAGES.min(self.pages - n * WINDOW_PAGES),
            ..self
        })
    }

    const fn ends_at(self) -> u64 {
        self.address + self.pages * PAGE_BYTES as u64
    }

    const fn address_of(self, page: usize) -> u64 {
        self.address + (page * PAGE_BYTES) as u64
    }
}

/// The memory of processes.
trait Reader: Sync {
    fn read(&self, pid: i32, address: u64, into: &mut [u8]) -> io::Result<()>;
}

/// What of a job's memory has been sent, and what it was.
#[derive(Debug)]
pub(super) struct Gone {
    /// Of the checksums: they are not to be known before.
    seed: u64,
    sums: HashMap<(i32, u64), Sum>,
    packing: Packing,
    /// What has been sent in all, in bytes.
    pub(super) bytes: u64,
}

/// What tells a page from what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sum {
    Zeros,
    Of(u128),
}

/// Pages that are not what was sent of them.
struct Found {
    piece: Piece,
    sums: Vec<Sum>,
}

impl Gone {
    fn new(seed: u64) -> Self {
        Self {
            seed,
            sums: HashMap::new(),
            packing: Packing::default(),
            bytes: 0,
        }
    }

    /// Sends the pages that are not there as they are now; so many threads look at them. `runs`: ranges may be gone meanwhile.
    fn send_changed(
        &mut self,
        ranges: &[Range],
        workers: NonZero<usize>,
        memory: &impl Reader,
        runs: bool,
        mut send: impl FnMut(Piece) -> io::Result<()>,
    ) -> io::Result<()> {
        let windows: Vec<Range> = ranges.iter().copied().flat_map(Range::windows).collect();
        let next = AtomicUsize::new(0);
        let mut packing = std::mem::take(&mut self.packing);
        let (mut new, mut bytes) = (Vec::new(), 0);
        let known = &*self;
        let look = |tell: mpsc::SyncSender<Found>| {
            let mut buffer = vec![0; bytes_of(WINDOW_PAGES)];
            while let Some(window) = windows.get(next.fetch_add(1, Ordering::Relaxed)) {
                let buffer = &mut buffer[..bytes_of(window.pages)];
                match memory.read(window.pid, window.address, buffer) {
                    Ok(()) => {}
                    Err(_) if runs => continue,
                    Err(error) => return Err(error),
                }
                for found in known.changed(*window, buffer) {
                    if tell.send(found).is_err() {
                        return Ok(());
                    }
                }
            }
            Ok(())
        };
        let done = std::thread::scope(|scope| {
            let (tell, found) = mpsc::sync_channel(PIECES_QUEUED_MAX);
            let start = |_| {
                scope.spawn({
                    let tell = tell.clone();
                    || look(tell)
                })
            };
            let workers: Vec<_> = (0..workers.get()).map(start).collect();
            // It ends with the last of them.
            drop(tell);
            let sent = found.iter().try_for_each(|Found { piece, sums }| {
                let (pid, address) = (piece.pid, piece.address);
                bytes += packing.send(piece, &mut send)?;
                new.push((pid, address, sums));
                Ok(())
            });
            // Whoever looks on need not.
            drop(found);
            let mut ends = workers.into_iter().map(|worker| worker.join());
            let looked = ends.try_for_each(|end| end.expect("it does not panic"));
            sent.and(looked)
        });
        self.packing = packing;
        self.bytes += bytes;
        for (pid, address, sums) in new {
            let pages = (address..).step_by(PAGE_BYTES).zip(sums);
            self.sums
                .extend(pages.map(|(address, sum)| ((pid, address), sum)));
        }
        done
    }

    /// Looks at one window in [`SAMPLE_EVERY`]; returns what is there.
    fn sample(&self, ranges: &[Range], memory: &impl Reader) -> HashMap<(i32, u64), Sum> {
        let windows = ranges.iter().copied().flat_map(Range::windows);
        let mut buffer = vec![0; bytes_of(WINDOW_PAGES)];
        let mut sums = HashMap::new();
        for window in windows.step_by(SAMPLE_EVERY) {
            let buffer = &mut buffer[..bytes_of(window.pages)];
            if memory.read(window.pid, window.address, buffer).is_err() {
                continue;
            }
            let pages = buffer.chunks_exact(PAGE_BYTES).enumerate();
            sums.extend(
                pages.map(|(at, page)| ((window.pid, window.address_of(at)), self.sum(page))),
            );
        }
        sums
    }

    /// Returns about how many bytes are to be sent, by what is there in a sample.
    fn estimate(&self, sample: &HashMap<(i32, u64), Sum>) -> u64 {
        let changed = sample
            .iter()
            .filter(|(at, sum)| self.sums.get(at) != Some(sum));
        (changed.count() * SAMPLE_EVERY * PAGE_BYTES) as u64
    }

    /// Returns what of a window is to be sent, by what is there.
    fn changed(&self, window: Range, bytes: &[u8]) -> Vec<Found> {
        let mut runs: Vec<(usize, Vec<Sum>)> = Vec::new();
        for (at, page) in bytes.chunks_exact(PAGE_BYTES).enumerate() {
            let sum = self.sum(page);
            // MV11
            if self.sums.get(&(window.pid, window.address_of(at))) == Some(&sum) {
                continue;
            }
            match runs.last_mut() {
                Some((start, sums)) if *start + sums.len() == at && goes_with(sums, sum) => {
                    sums.push(sum);
                }
                _ => runs.push((at, vec![sum])),
            }
        }
        let found = runs.into_iter().map(|(start, sums)| {
            let content = match sums[0] {
                Sum::Zeros => Content::Zeros(u32::try_from(sums.len()).expect("a window")),
                Sum::Of(_) => {
                    let pages = start * PAGE_BYTES..(start + sums.len()) * PAGE_BYTES;
                    Content::Plain(Bytes::copy_from_slice(&bytes[pages]))
                }
            };
            let piece = Piece {
                pid: window.pid,
                address: window.address_of(start),
                content,
            };
            Found { piece, sums }
        });
        found.collect()
    }

    fn sum(&self, page: &[u8]) -> Sum {
        // By lines, which the processor compares as a whole.
        let mut lines = page.chunks(64);
        match lines.all(|line| line.iter().fold(0, |all, byte| all | byte) == 0) {
            true => Sum::Zeros,
            false => Sum::Of(xxh3_128_with_seed(page, self.seed)),
        }
    }
}

/// Returns whether a page may be in one piece with those before it.
fn goes_with(sums: &[Sum], sum: Sum) -> bool {
    match (sums[0], sum) {
        (Sum::Zeros, Sum::Zeros) => true,
        (Sum::Of(_), Sum::Of(_)) => sums.len() < PIECE_PAGES_MAX as usize,
        _ => false,
    }
}

fn bytes_of(pages: u64) -> usize {
    usize::try_from(pages).expect("a window") * PAGE_BYTES
}
