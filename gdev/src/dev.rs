//! A node's own `/dev`. Names are followed beneath it only and never through a symbolic link, whoever changes the
//! directory meanwhile; devices are looked at before they are opened, since opening some of them does things.

use crate::path::DevPath;
use crate::wire::{Device, Node, PAGE_ENTRIES_MAX, Seen};
use bytes::Bytes;
use consistency::Timestamp;
use consistency::wire::meta::{FileKind, Name};
use gfs::error::Errno;
use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{FileStat, SFlag, fstat, fstatat, major, minor};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Names in `/dev` that hold no devices but memory and messages of the node's own processes.
const HIDDEN: &[&[u8]] = &[b"shm", b"mqueue", b"hugepages"];

/// The directory. Methods block.
#[derive(Debug)]
pub(crate) struct Dev {
    path: PathBuf,
}

/// What was found at a path.
pub(crate) struct Found {
    /// What it is, but for the target of a link.
    pub(crate) node: Node,
    /// Keeps it, but does not open it.
    held: OwnedFd,
}

impl Dev {
    pub(crate) const fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(crate) fn stat(&self, path: &DevPath) -> Result<Node, Errno> {
        let node = self.find(path, OFlag::O_PATH | OFlag::O_NOFOLLOW)?;
        let target = readlinkat(&node, "").ok();
        let stat = fstat(&node).map_err(errno)?;
        // What readlinkat says of anything but a link means nothing.
        Ok(node_of(&stat, || target.map(OsStringExt::into_vec)))
    }

    /// Returns a page of the names behind `after` with what they stand for, and whether more follow.
    pub(crate) fn list(
        &self,
        path: &DevPath,
        after: Option<&Name>,
    ) -> Result<(Vec<(Name, Node)>, bool), Errno> {
        let dir = self.find(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        let mut dir = Dir::from_fd(dir).map_err(errno)?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let name = Bytes::copy_from_slice(entry.map_err(errno)?.file_name().to_bytes());
            // `.` and `..` are no names.
            names.extend(Name::new(name));
        }
        let top = path.depth() == 0;
        names.retain(|name| !(top && HIDDEN.contains(&name.as_bytes())) && after < Some(name));
        names.sort_unstable();
        let more = names.len() > PAGE_ENTRIES_MAX;
        let page = names.into_iter().take(PAGE_ENTRIES_MAX);
        // A name that is gone by now is left out.
        let entries = page.filter_map(|name| {
            let node = entry_of(&dir, &name)?;
            Some((name, node))
        });
        Ok((entries.collect(), more))
    }

    /// Finds a device and checks that it is the one the caller means. It is not opened yet.
    pub(crate) fn device(&self, path: &DevPath, device: Device) -> Result<Found, Errno> {
        let found = self.look(path)?;
        if found.node.device == Some(device) {
            Ok(found)
        } else {
            Err(Errno::ESTALE)
        }
    }

    /// Finds whatever there is.
    pub(crate) fn look(&self, path: &DevPath) -> Result<Found, Errno> {
        let held = self.find(path, OFlag::O_PATH | OFlag::O_NOFOLLOW)?;
        let node = node_of(&fstat(&held).map_err(errno)?, || None);
        Ok(Found { node, held })
    }

    fn find(&self, path: &DevPath, flags: OFlag) -> Result<OwnedFd, Errno> {
        if path.first().is_some_and(|first| HIDDEN.contains(&first)) {
            return Err(Errno::ENOENT);
        }
        let base = File::open(&self.path).map_err(|error| io_errno(&error))?;
        let resolve = ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(resolve);
        openat2(&base, path.relative(), how).map_err(errno)
    }
}

impl Found {
    /// Returns a path that leads to the very device that was found.
    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/proc/self/fd").join(self.held.as_raw_fd().to_string())
    }
}

fn entry_of(dir: &Dir, name: &Name) -> Option<Node> {
    let stat = fstatat(dir, name.as_bytes(), AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
    let target = || {
        readlinkat(dir.as_fd(), name.as_bytes())
            .ok()
            .map(OsStringExt::into_vec)
    };
    Some(node_of(&stat, target))
}

fn node_of(stat: &FileStat, target: impl FnOnce() -> Option<Vec<u8>>) -> Node {
    let kind = kind_of(stat);
    let number = |block| Device {
        block,
        major: u32::try_from(major(stat.st_rdev)).unwrap_or(u32::MAX),
        minor: u32::try_from(minor(stat.st_rdev)).unwrap_or(u32::MAX),
    };
    let time = |secs, nanos| Timestamp {
        secs,
        nanos: u32::try_from(nanos).unwrap_or(0),
    };
    Node {
        kind,
        mode: stat.st_mode & 0o7777,
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        device: match kind {
            FileKind::Char => Some(number(false)),
            FileKind::Block => Some(number(true)),
            FileKind::File
            | FileKind::Dir
            | FileKind::Symlink
            | FileKind::Fifo
            | FileKind::Socket => None,
        },
        target: (kind == FileKind::Symlink)
            .then(target)
            .flatten()
            .map(Bytes::from),
        times: [
            time(stat.st_atime, stat.st_atime_nsec),
            time(stat.st_mtime, stat.st_mtime_nsec),
            time(stat.st_ctime, stat.st_ctime_nsec),
        ],
    }
}

fn kind_of(stat: &FileStat) -> FileKind {
    match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFDIR => FileKind::Dir,
        SFlag::S_IFLNK => FileKind::Symlink,
        SFlag::S_IFCHR => FileKind::Char,
        SFlag::S_IFBLK => FileKind::Block,
        SFlag::S_IFIFO => FileKind::Fifo,
        SFlag::S_IFSOCK => FileKind::Socket,
        _ => FileKind::File,
    }
}

/// Adds what a node does not say by itself.
pub(crate) fn seen(node: Node) -> Seen {
    let size = node.device.and_then(size_of).unwrap_or(0);
    Seen { node, size }
}

/// Returns the size of a disk, without opening it.
fn size_of(device: Device) -> Option<u64> {
    if !device.block {
        return None;
    }
    let Device { major, minor, .. } = device;
    let path = format!("/sys/dev/block/{major}:{minor}/size");
    let sectors: u64 = std::fs::read_to_string(path).ok()?.trim().parse().ok()?;
    // Of 512 bytes, whatever the disk's own are.
    sectors.checked_mul(512)
}

fn errno(error: nix::Error) -> Errno {
    match error {
        // A symbolic link in the way, or one that leads out: there is no such name for us.
        nix::Error::ELOOP | nix::Error::EXDEV => Errno::ENOENT,
        other => Errno(other as i32),
    }
}

fn io_errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn path(text: &str) -> DevPath {
        DevPath::try_from(Bytes::copy_from_slice(text.as_bytes())).expect("a path")
    }

    #[test]
    fn names_lead_nowhere_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("dev/sub")).expect("made");
        std::fs::create_dir_all(at("dev/shm")).expect("made");
        std::fs::create_dir_all(at("out")).expect("made");
        std::fs::write(at("out/secret"), "x").expect("written");
        std::fs::write(at("dev/shm/memory"), "x").expect("written");
        symlink("../out", at("dev/up")).expect("linked");
        symlink("/", at("dev/top")).expect("linked");
        symlink("sub", at("dev/inside")).expect("linked");
        nix::unistd::mkfifo(&at("dev/fifo"), nix::sys::stat::Mode::S_IRWXU).expect("made");
        let dev = Dev::new(at("dev"));
        let kind = |name| dev.stat(&path(name)).map(|node| node.kind);
        assert_eq!(kind(""), Ok(FileKind::Dir));
        assert_eq!(kind("sub"), Ok(FileKind::Dir));
        assert_eq!(kind("fifo"), Ok(FileKind::Fifo));
        let link = dev.stat(&path("up")).expect("there");
        assert_eq!(
            (link.kind, link.target),
            (FileKind::Symlink, Some("../out".into()))
        );
        for name in [
            "up/secret",
            "top/etc",
            "inside/x",
            "up/../out",
            "shm",
            "shm/memory",
            "none",
        ] {
            let Ok(path) = DevPath::try_from(Bytes::from(name)) else {
                continue;
            };
            assert_eq!(
                dev.stat(&path).map(|node| node.kind),
                Err(Errno::ENOENT),
                "{name}"
            );
        }
        for name in ["up", "top", "fifo"] {
            assert!(dev.list(&path(name), None).is_err(), "{name}");
        }
        let (entries, more) = dev.list(&path(""), None).expect("listed");
        let names = entries.iter().map(|(name, _)| name.as_bytes());
        assert_eq!(
            names.collect::<Vec<_>>(),
            [&b"fifo"[..], b"inside", b"sub", b"top", b"up"]
        );
        assert!(!more);
    }

    #[test]
    fn long_listings_come_in_pages() {
        let dir = tempfile::tempdir().expect("a directory");
        for number in 0..PAGE_ENTRIES_MAX + 1 {
            std::fs::write(dir.path().join(format!("{number:05}")), "").expect("written");
        }
        let dev = Dev::new(dir.path().into());
        let (page, more) = dev.list(&path(""), None).expect("listed");
        assert_eq!((page.len(), more), (PAGE_ENTRIES_MAX, true));
        let (last, _) = page.last().expect("full");
        let (page, more) = dev.list(&path(""), Some(last)).expect("listed");
        assert_eq!((page.len(), more), (1, false));
    }

    #[test]
    fn devices_are_told_apart() {
        let dev = Dev::new("/dev".into());
        let null = Device {
            block: false,
            major: 1,
            minor: 3,
        };
        let check = |name, expected: Result<(), Errno>| {
            let found = dev.device(&path(name), null);
            assert_eq!(found.map(|_| ()), expected, "{name}");
        };
        check("null", Ok(()));
        check("zero", Err(Errno::ESTALE));
        check("none", Err(Errno::ENOENT));
    }

    #[test]
    fn disks_have_their_size() {
        let disk = std::fs::read_dir("/sys/class/block").expect("sysfs");
        let disk = disk.filter_map(Result::ok).find_map(|entry| {
            let read = |name| std::fs::read_to_string(entry.path().join(name)).ok();
            let sectors: u64 = read("size")?.trim().parse().ok()?;
            let numbers = read("dev")?;
            let (major, minor) = numbers.trim().split_once(':')?;
            let device = Device {
                block: true,
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
            };
            (sectors > 0).then_some((device, sectors << 9))
        });
        let (device, bytes) = disk.expect("this machine has a disk");
        let mut node = dev_null();
        node.device = Some(device);
        assert_eq!(seen(node).size, bytes);
        assert_eq!(seen(dev_null()).size, 0);
    }

    fn dev_null() -> Node {
        let found = Dev::new("/dev".into()).look(&path("null"));
        found.expect("there").node
    }
}
