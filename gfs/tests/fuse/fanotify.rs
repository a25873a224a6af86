//! Marks of fanotify(7) on directories, with names (FAN_REPORT_DFID_NAME): what watchman and indexers use.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::FromRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What is asked for: everything that inotify tells of a directory's entries.
const EVENTS: &[(u64, &str)] = &[
    (libc::FAN_CREATE, "CREATE"),
    (libc::FAN_DELETE, "DELETE"),
    (libc::FAN_MOVED_FROM, "MOVED_FROM"),
    (libc::FAN_MOVED_TO, "MOVED_TO"),
    (libc::FAN_ATTRIB, "ATTRIB"),
    (libc::FAN_MODIFY, "MODIFY"),
    (libc::FAN_CLOSE_WRITE, "CLOSE_WRITE"),
];
/// `struct fanotify_event_metadata`: its length, and where the mask and the descriptor are.
const EVENT_BYTES: usize = 24;
const MASK_AT: usize = 8;
const FD_AT: usize = 16;
/// In an information record: header, file system and the length of the handle come before the handle.
const HANDLE_BYTES_AT: usize = 12;
const HANDLE_AT: usize = 20;

#[derive(Debug)]
pub struct Fanotify(File);

impl Fanotify {
    /// Watches a directory.
    pub fn on(dir: &Path) -> io::Result<Self> {
        let mask = EVENTS.iter().fold(0, |mask, (event, _)| mask | event);
        let mask = mask | libc::FAN_ONDIR | libc::FAN_EVENT_ON_CHILD;
        Self::mark(dir, libc::FAN_REPORT_DFID_NAME, 0, mask)
    }

    /// Watches `mask` of what is at `path`, or of all that `whole` says (FAN_MARK_MOUNT, FAN_MARK_FILESYSTEM).
    pub fn mark(path: &Path, report: u32, whole: u32, mask: u64) -> io::Result<Self> {
        let flags = libc::FAN_CLASS_NOTIF | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK | report;
        let path = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: no memory is passed.
        let fd = unsafe { libc::fanotify_init(flags, libc::O_RDONLY.cast_unsigned()) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else has.
        let group = unsafe { File::from_raw_fd(fd) };
        let how = libc::FAN_MARK_ADD | whole;
        // SAFETY: `path` is a string that lives through the call.
        let marked = unsafe { libc::fanotify_mark(fd, how, mask, libc::AT_FDCWD, path.as_ptr()) };
        if marked < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(group))
    }

    /// Returns the kinds of what was told, each once, of a group that reports descriptors; closes those.
    pub fn told_of_files(&mut self) -> u64 {
        let mut buffer = vec![0; 16 << 10];
        let len = match self.0.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            read => read.expect("read the events"),
        };
        let mut masks = 0;
        for event in buffer[..len].chunks_exact(EVENT_BYTES) {
            masks |= number(event, MASK_AT, 8) as u64;
            let fd = i32::try_from(number(event, FD_AT, 4)).expect("a descriptor");
            // SAFETY: a new descriptor that nobody else has.
            drop(unsafe { File::from_raw_fd(fd) });
        }
        masks
    }

    /// Returns what was told: `EVENT name`. Events of one name may come as one.
    pub fn told(&mut self) -> Vec<String> {
        let mut buffer = vec![0; 16 << 10];
        let len = match self.0.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            read => read.expect("read the events"),
        };
        let mut events = &buffer[..len];
        let mut told = Vec::new();
        while !events.is_empty() {
            let (event, rest) = events.split_at(number(events, 0, 4));
            let mask = number(event, MASK_AT, 8) as u64;
            let info = &event[EVENT_BYTES..];
            let name = &info[HANDLE_AT + number(info, HANDLE_BYTES_AT, 4)..];
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            let name = String::from_utf8_lossy(name);
            let words = EVENTS.iter().filter(|(bit, _)| mask & bit != 0);
            told.extend(words.map(|(_, word)| format!("{word} {name}")));
            events = rest;
        }
        told
    }
}

/// Returns a number of some bytes.
fn number(bytes: &[u8], at: usize, len: usize) -> usize {
    let mut whole = [0; 8];
    whole[..len].copy_from_slice(&bytes[at..at + len]);
    usize::try_from(u64::from_le_bytes(whole)).expect("64-bit machines")
}
