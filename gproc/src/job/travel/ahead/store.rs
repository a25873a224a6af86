//! Pages that have come to the target ahead of a job: while it still runs they are made into images that those of the frozen job
//! are an increment of, as CRIU's `pre-dump` would have made them. So CRIU gets them where it always does.
//!
//! A file has the pages of a process in the order of their addresses, in which most come; what is newer takes its place there. The
//! few that come later and belong between others are kept aside, and go into the images of the frozen job.

use super::super::engine::Images;
use super::super::wire::{Content, PAGE_BYTES, Piece};
use super::pagemap::{At, Entry, Pagemap, extend, pagemap_of, pagemaps};
use bytes::Bytes;
use std::collections::btree_map::Entry as Place;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

/// Where they are, in the directory of the images.
const DIR: &str = "ahead";
/// What CRIU calls the images that others are an increment of.
const PARENT: &str = "parent";
const PAGE: u64 = PAGE_BYTES as u64;

/// Of one job; later pages take the place of earlier ones.
#[derive(Debug, Default)]
pub(in super::super) struct Store {
    processes: BTreeMap<i32, Pages>,
}

/// Of one process.
#[derive(Debug)]
struct Pages {
    pid: i32,
    path: PathBuf,
    file: File,
    /// What the file has, one behind the other.
    ranges: Vec<Held>,
    aside: HashMap<u64, Bytes>,
}

/// Pages that are in a file from this one on.
#[derive(Clone, Copy, Debug)]
struct Held {
    address: u64,
    pages: u64,
    first: u64,
}

impl Held {
    const fn ends_at(self) -> u64 {
        self.address + self.pages * PAGE
    }
}

impl Store {
    /// Takes what has come from another node.
    pub(in super::super) fn put(&mut self, images: &Images, piece: Piece) -> io::Result<()> {
        let pages = u64::from(piece.pages());
        let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
        if !piece.is_in_bounds() {
            return Err(wrong("no piece of memory"));
        }
        let len = piece.pages() as usize * PAGE_BYTES;
        let bytes = match piece.content {
            Content::Zeros(_) => Bytes::from(vec![0; len]),
            Content::Plain(bytes) => bytes,
            Content::Packed(_, packed) => {
                let bytes = lz4_flex::block::decompress(&packed, len);
                let bytes = bytes.map_err(|error| wrong(&format!("packed pages: {error}")))?;
                bytes.into()
            }
        };
        if bytes.len() != len {
            return Err(wrong("pages that are not whole"));
        }
        let of = match self.processes.entry(piece.pid) {
            Place::Occupied(of) => of.into_mut(),
            Place::Vacant(free) => free.insert(Pages::new(&images.dir().join(DIR), piece.pid)?),
        };
        of.put(piece.address, pages, &bytes)
    }

    /// Makes the images complete. Fails if there is a page that they lack and that has not come (MV11).
    pub(in super::super) fn complete(self, images: &Images) -> io::Result<()> {
        let (dir, parent) = (images.dir(), images.dir().join(DIR));
        for (pid, pagemap) in pagemaps(dir)? {
            let Some(pages) = self.processes.get(&pid) else {
                let mut entries = pagemap.entries.iter();
                match entries.find(|entry| entry.at == At::Nowhere) {
                    Some(lacking) => return Err(not_here(pid, lacking.address)),
                    None => continue,
                }
            };
            let entries = pages.complete(dir, &pagemap)?;
            let name = pagemap_of(pid);
            fs::write(dir.join(&name), pagemap.with(entries).write())?;
            let held = pages.ranges.iter().map(|held| Entry {
                address: held.address,
                pages: held.pages,
                at: At::File,
            });
            fs::write(parent.join(name), pagemap.with(held.collect()).write())?;
            fs::rename(&pages.path, parent.join(pagemap.file()))?;
        }
        if !self.processes.is_empty() {
            symlink(DIR, dir.join(PARENT))?;
        }
        Ok(())
    }
}

impl Pages {
    fn new(dir: &Path, pid: i32) -> io::Result<Self> {
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let path = dir.join(pid.to_string());
        let mut options = File::options();
        let options = options.read(true).write(true).create_new(true).mode(0o600);
        Ok(Self {
            pid,
            file: options.open(&path)?,
            path,
            ranges: Vec::new(),
            aside: HashMap::new(),
        })
    }

    fn put(&mut self, address: u64, pages: u64, bytes: &Bytes) -> io::Result<()> {
        let end = self.ranges.last().map_or(0, |last| last.ends_at());
        if address >= end {
            return self.append(address, pages, bytes);
        }
        for (address, page) in (address..)
            .step_by(PAGE_BYTES)
            .zip(bytes.chunks(PAGE_BYTES))
        {
            match self.place_of(address) {
                Some(place) => self.file.write_all_at(page, place * PAGE)?,
                None => drop(self.aside.insert(address, bytes.slice_ref(page))),
            }
        }
        Ok(())
    }

    fn append(&mut self, address: u64, pages: u64, bytes: &[u8]) -> io::Result<()> {
        let first = self.ranges.last().map_or(0, |last| last.first + last.pages);
        match self.ranges.last_mut() {
            Some(last) if last.ends_at() == address => last.pages += pages,
            _ => self.ranges.push(Held {
                address,
                pages,
                first,
            }),
        }
        self.file.write_all_at(bytes, first * PAGE)
    }

    /// Returns where a page is in the file.
    fn place_of(&self, address: u64) -> Option<u64> {
        let behind = self.ranges.partition_point(|held| held.address <= address);
        let held = self.ranges[..behind].last()?;
        let page = (address - held.address) / PAGE;
        (page < held.pages).then_some(held.first + page)
    }

    /// Adds what was kept aside to the images of a frozen process; returns where all of its pages are by then.
    fn complete(&self, dir: &Path, pagemap: &Pagemap) -> io::Result<Vec<Entry>> {
        let path = dir.join(pagemap.file());
        // Without a page among the images there is none.
        let mut old = File::open(&path).ok();
        let new = path.with_extension("new");
        let mut file = BufWriter::new(File::create(&new)?);
        let mut entries = Vec::new();
        for entry in &pagemap.entries {
            match entry.at {
                At::Parent => return Err(not_here(self.pid, entry.address)),
                At::File => {
                    let old = old.as_mut().ok_or(io::ErrorKind::NotFound)?;
                    let len = entry.pages * PAGE;
                    if io::copy(&mut old.take(len), &mut file)? != len {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    extend(&mut entries, entry.address, entry.pages, At::File);
                }
                At::Nowhere => {
                    let addresses = (entry.address..).step_by(PAGE_BYTES);
                    for (_, address) in (0..entry.pages).zip(addresses) {
                        let at = match self.aside.get(&address) {
                            Some(page) => {
                                file.write_all(page)?;
                                At::File
                            }
                            None if self.place_of(address).is_some() => At::Parent,
                            None => return Err(not_here(self.pid, address)),
                        };
                        extend(&mut entries, address, 1, at);
                    }
                }
            }
        }
        file.flush()?;
        fs::rename(new, path)?;
        Ok(entries)
    }
}

fn not_here(pid: i32, address: u64) -> io::Error {
    io::Error::other(format!("the page of {pid} at {address:#x} has not come"))
}
