//! The devices that nodes before [`SESSIONS_SINCE`](crate::wire::SESSIONS_SINCE) can use, by calls that stand alone.

use crate::wire::{Device, Opening, RECORDS_BYTES_MAX};
use bytes::Bytes;
use gfs::error::Errno;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Longest record of the kernel's log.
const KMSG_RECORD_BYTES_MAX: usize = 8 << 10;

/// How a device is used for another node. `path` leads to the device itself; all methods may block.
pub(crate) trait Carried: Sync {
    /// Opens it; the caller's rights have been checked.
    fn open(&self, path: &Path, read: bool, write: bool) -> Result<Opening, Errno> {
        let opened = OpenOptions::new().read(read).write(write).open(path);
        opened.map(|_| Opening::Live).map_err(|error| errno(&error))
    }

    /// Reads up to `size` bytes.
    fn read(&self, path: &Path, size: usize) -> Result<Bytes, Errno> {
        let read = || {
            let mut data = vec![0; size];
            let len = File::open(path)?.read(&mut data)?;
            data.truncate(len);
            Ok(data.into())
        };
        read().map_err(|error: io::Error| errno(&error))
    }

    /// Writes and returns how many bytes were taken.
    fn write(&self, path: &Path, data: &[u8]) -> Result<usize, Errno> {
        let file = OpenOptions::new().write(true).open(path);
        let written = file.and_then(|mut file| file.write(data));
        written.map_err(|error| errno(&error))
    }
}

/// A device without state: each read and each write stands alone.
struct Plain;

/// The kernel's log. A reader gets what is there when it opens, so that it comes to an end.
struct Kmsg;

impl Carried for Plain {}

impl Carried for Kmsg {
    fn open(&self, path: &Path, read: bool, write: bool) -> Result<Opening, Errno> {
        if !read {
            return Plain.open(path, read, write);
        }
        records(path)
            .map(Opening::Records)
            .map_err(|error| errno(&error))
    }

    fn read(&self, _: &Path, _: usize) -> Result<Bytes, Errno> {
        // Its content came with the open.
        Err(Errno::EINVAL)
    }
}

const fn character(major: u32, minor: u32) -> Device {
    Device {
        block: false,
        major,
        minor,
    }
}

#[rustfmt::skip]
const CARRIED: &[(Device, &str, &dyn Carried)] = &[
    (character(1, 3),  "null",    &Plain),
    (character(1, 5),  "zero",    &Plain),
    (character(1, 7),  "full",    &Plain),
    (character(1, 8),  "random",  &Plain),
    (character(1, 9),  "urandom", &Plain),
    (character(1, 11), "kmsg",    &Kmsg),
];

/// Returns how a device is carried, if it is.
pub(crate) fn carried(device: Device) -> Option<&'static dyn Carried> {
    let row = CARRIED.iter().find(|(carried, ..)| *carried == device);
    row.map(|(.., carried)| *carried)
}

fn records(path: &Path) -> io::Result<Vec<Bytes>> {
    let mut log = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let mut record = [0; KMSG_RECORD_BYTES_MAX];
    let mut records = Vec::new();
    // Room for each record's length on the wire, too.
    let mut room = RECORDS_BYTES_MAX;
    loop {
        match log.read(&mut record) {
            Ok(0) => break,
            Ok(len) => {
                let Some(left) = room.checked_sub(len + 8) else {
                    break;
                };
                room = left;
                records.push(Bytes::copy_from_slice(&record[..len]));
            }
            // The writers have overtaken us: the next read goes on behind the gap.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(records)
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows() {
        assert!(carried(character(1, 3)).is_some());
        for other in [
            character(1, 1),
            character(4, 3),
            Device {
                block: true,
                ..character(1, 3)
            },
        ] {
            assert!(carried(other).is_none(), "{other}");
        }
    }

    #[track_caller]
    fn check_write(name: &str, expected: Result<usize, Errno>) {
        let (device, ..) = CARRIED
            .iter()
            .find(|(_, row, _)| *row == name)
            .expect("a row");
        let device = carried(*device).expect("carried");
        let path = Path::new("/dev").join(name);
        assert_eq!(device.write(&path, b"glu"), expected, "{name}");
    }

    #[test]
    fn writes() {
        check_write("null", Ok(3));
        check_write("zero", Ok(3));
        check_write("full", Err(Errno(libc::ENOSPC)));
        check_write("urandom", Ok(3));
    }
}
