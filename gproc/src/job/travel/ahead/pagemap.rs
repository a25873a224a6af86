//! CRIU's `pagemap-<pid>.img`: which pages a process has, and where they are. Such a file is two words that say what it is, a head
//! with the number of the file of pages, and an entry for each range in ascending order, all of which are messages of protobuf behind their
//! lengths (images/pagemap.proto of CRIU 4.2). The file of pages has those of the entries that say so, one behind the other.

use super::super::wire::PAGE_BYTES;
use bytes::{Buf, BufMut};
use std::fs;
use std::io;
use std::path::Path;

/// What the file begins with.
const MAGIC: [u32; 2] = [0x5456_4319, 0x5608_4025];

/// The fields of the head and of an entry, which all are numbers.
const PAGES_ID: u64 = 1 << 3;
const ADDRESS: u64 = 1 << 3;
/// As CRIU before 4.1 has it; newer ones leave it 0.
const PAGES_OLD: u64 = 2 << 3;
const FLAGS: u64 = 4 << 3;
const PAGES: u64 = 5 << 3;

/// Where the pages of an entry are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// In the file of pages.
    File,
    /// Nowhere: CRIU has left them out (`--lazy-pages`).
    Nowhere,
    /// In the images that these are an increment of.
    Parent,
}

impl At {
    const fn flags(self) -> u64 {
        match self {
            Self::Parent => 1,
            Self::Nowhere => 1 << 1,
            Self::File => 1 << 2,
        }
    }

    /// What is in the file may be left out, too.
    const fn of(flags: u64) -> Option<Self> {
        match flags {
            0b100 | 0b110 => Some(Self::File),
            0b010 => Some(Self::Nowhere),
            0b001 => Some(Self::Parent),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) address: u64,
    pub(super) pages: u64,
    pub(super) at: At,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pagemap {
    /// The number of the file of pages.
    pub(super) pages_id: u64,
    pub(super) entries: Vec<Entry>,
    /// It is of a CRIU that counts pages in the old field.
    old: bool,
}

impl Pagemap {
    #[cfg(test)]
    pub(super) const fn new(pages_id: u64, entries: Vec<Entry>) -> Self {
        Self {
            pages_id,
            entries,
            old: false,
        }
    }

    /// Reads a file; `None`: it is something else.
    pub(super) fn read(mut file: &[u8]) -> Option<Self> {
        for word in MAGIC {
            (file.try_get_u32_le() == Ok(word)).then_some(())?;
        }
        let mut pages_id = None;
        for (field, value) in fields(&mut file)? {
            (field == PAGES_ID).then_some(())?;
            pages_id = Some(value);
        }
        let (mut entries, mut old) = (Vec::new(), false);
        while !file.is_empty() {
            let (mut address, mut pages, mut pages_old, mut flags) = (None, 0, 0, 0);
            for (field, value) in fields(&mut file)? {
                match field {
                    ADDRESS => address = Some(value),
                    PAGES => pages = value,
                    PAGES_OLD => pages_old = value,
                    FLAGS => flags = value,
                    _ => return None,
                }
            }
            old |= pages_old > 0;
            let entry = Entry {
                address: address?,
                pages: pages.max(pages_old),
                at: At::of(flags)?,
            };
            let aligned = entry.address.is_multiple_of(PAGE_BYTES as u64);
            (aligned && entry.pages > 0).then_some(())?;
            entries.push(entry);
        }
        Some(Self {
            pages_id: pages_id?,
            entries,
            old,
        })
    }

    /// Returns the name of the file of pages.
    pub(super) fn file(&self) -> String {
        format!("pages-{}.img", self.pages_id)
    }

    /// Returns one of the same kind with other entries.
    pub(super) fn with(&self, entries: Vec<Entry>) -> Self {
        Self { entries, ..*self }
    }

    pub(super) fn write(&self) -> Vec<u8> {
        let mut file = Vec::new();
        for word in MAGIC {
            file.put_u32_le(word);
        }
        put(&mut file, &[(PAGES_ID, self.pages_id)]);
        for entry in &self.entries {
            let address = (ADDRESS, entry.address);
            let flags = (FLAGS, entry.at.flags());
            match self.old {
                true => put(&mut file, &[address, (PAGES_OLD, entry.pages), flags]),
                false => put(
                    &mut file,
                    &[address, (PAGES_OLD, 0), flags, (PAGES, entry.pages)],
                ),
            }
        }
        file
    }
}

/// Returns the name of the file that is about a process.
pub(super) fn pagemap_of(pid: i32) -> String {
    format!("pagemap-{pid}.img")
}

/// Reads the files in a directory of images, and whom they are about: those of private memory, not of what is shared.
pub(super) fn pagemaps(dir: &Path) -> io::Result<Vec<(i32, Pagemap)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let pid = name.to_str().and_then(|name| {
            let pid = name.strip_prefix("pagemap-")?.strip_suffix(".img")?;
            pid.parse().ok()
        });
        let Some(pid) = pid else { continue };
        let pagemap = Pagemap::read(&fs::read(dir.join(&name))?);
        let pagemap = pagemap.ok_or_else(|| {
            let why = format!("{} is not of a CRIU that is known", name.display());
            io::Error::new(io::ErrorKind::InvalidData, why)
        })?;
        all.push((pid, pagemap));
    }
    Ok(all)
}

/// Adds pages behind the last ones, or to these.
pub(super) fn extend(entries: &mut Vec<Entry>, address: u64, pages: u64, at: At) {
    match entries.last_mut() {
        Some(last) if last.at == at && last.address + last.pages * PAGE_BYTES as u64 == address => {
            last.pages += pages;
        }
        _ => entries.push(Entry { address, pages, at }),
    }
}

/// Takes a message off a file; returns its fields and their values.
fn fields(file: &mut &[u8]) -> Option<Vec<(u64, u64)>> {
    let len = usize::try_from(file.try_get_u32_le().ok()?).ok()?;
    let (mut message, rest) = file.split_at_checked(len)?;
    *file = rest;
    let mut fields = Vec::new();
    while !message.is_empty() {
        let field = varint(&mut message)?;
        fields.push((field, varint(&mut message)?));
    }
    Some(fields)
}

fn put(file: &mut Vec<u8>, fields: &[(u64, u64)]) {
    let mut message = Vec::new();
    for (field, value) in fields {
        for mut number in [*field, *value] {
            loop {
                let [low, ..] = number.to_le_bytes();
                number >>= 7;
                if number == 0 {
                    message.put_u8(low);
                    break;
                }
                message.put_u8(0x80 | low);
            }
        }
    }
    file.put_u32_le(u32::try_from(message.len()).expect("a few bytes"));
    file.extend(message);
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = bytes.try_get_u8().ok()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The beginning of a file as CRIU 4.2.1 makes it.
    const FILE: [u8; 51] = [
        0x19, 0x43, 0x56, 0x54, 0x25, 0x40, 0x08, 0x56, 2, 0, 0, 0, 0x08, 0x01, 14, 0, 0, 0, 0x08,
        0x80, 0xa0, 0xbe, 0xc1, 0xdc, 0xc9, 0x15, 0x10, 0x00, 0x20, 0x04, 0x28, 0x01, 15, 0, 0, 0,
        0x08, 0x80, 0xc0, 0xb1, 0x96, 0xdf, 0xc9, 0x15, 0x10, 0x00, 0x20, 0x02, 0x28, 0x80, 0x02,
    ];

    #[test]
    fn a_file_of_criu_is_read_and_written() {
        let pagemap = Pagemap::read(&FILE).expect("a file of CRIU's");
        let entry = |address, pages, at| Entry { address, pages, at };
        let entries = [
            entry(0x564d_c82f_9000, 1, At::File),
            entry(0x564d_f2cc_6000, 0x100, At::Nowhere),
        ];
        assert_eq!(pagemap.pages_id, 1);
        assert_eq!(pagemap.entries, entries);
        assert_eq!(pagemap.write(), FILE);
    }

    #[test]
    fn pages_in_the_old_field_stay_there() {
        let mut file = FILE[..14].to_vec();
        put(
            &mut file,
            &[(ADDRESS, 4096), (PAGES_OLD, 7), (FLAGS, 0b010)],
        );
        let pagemap = Pagemap::read(&file).expect("a file of CRIU's");
        assert_eq!(pagemap.entries[0].pages, 7);
        assert_eq!(pagemap.write(), file);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for len in [0, 4, 7, 11, 13, 17, 20, 50] {
            assert!(Pagemap::read(&FILE[..len]).is_none(), "{len} bytes");
        }
        for (at, byte) in [(4, 0), (12, 0x10), (28, 0x30), (29, 0x08), (19, 0x81)] {
            let mut other = FILE;
            other[at] = byte;
            assert!(Pagemap::read(&other).is_none(), "{byte:#x} at {at}");
        }
    }

    #[test]
    fn entries_grow() {
        let mut entries = Vec::new();
        extend(&mut entries, 4096, 1, At::File);
        extend(&mut entries, 8192, 2, At::File);
        extend(&mut entries, 4 * 4096, 1, At::Parent);
        let pages: Vec<_> = entries.iter().map(|entry| entry.pages).collect();
        assert_eq!(pages, [3, 1]);
    }
}
