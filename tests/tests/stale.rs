//! S1: no stale observation. For every kind of change and every kind of look: the change is done on one node, then
//! another node, which had the old state in its kernel's caches, looks. `ROUNDS` sets the rounds of each kind.
//!
//! Needs root and /dev/fuse.

#[path = "stale/watchers.rs"]
mod watchers;

use nix::fcntl::FcntlArg;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::sys::time::TimeSpec;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Mutex;
use tests::Cluster;

/// A change, done in a directory that [`prepare`] made.
type Change = fn(&Path, usize);

const CHANGES: &[(&str, Change)] = &[
    ("write", |dir, round| {
        let file = OpenOptions::new()
            .write(true)
            .open(dir.join("f"))
            .expect("open");
        file.write_all_at(format!("{round:08}").as_bytes(), 4)
            .expect("write");
    }),
    ("append", |dir, _| {
        let mut file = OpenOptions::new()
            .append(true)
            .open(dir.join("f"))
            .expect("open");
        file.write_all(b"appended").expect("append");
    }),
    ("write beyond the end", |dir, _| {
        let file = OpenOptions::new()
            .write(true)
            .open(dir.join("f"))
            .expect("open");
        file.write_all_at(b"far", 70_000).expect("write");
    }),
    ("truncate down", |dir, _| truncate(dir, 3)),
    ("truncate up", |dir, _| truncate(dir, 5_000)),
    ("truncate to the same size", |dir, _| {
        let size = fs::metadata(dir.join("f")).expect("stat").len();
        truncate(dir, size);
    }),
    ("O_TRUNC", |dir, _| {
        drop(File::create(dir.join("f")).expect("open"));
    }),
    ("O_TRUNC of an empty file", |dir, _| {
        drop(File::create(dir.join("empty")).expect("open"));
    }),
    ("create", |dir, _| {
        fs::write(dir.join("absent"), "new").expect("create");
    }),
    ("O_EXCL create", |dir, _| {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(dir.join("absent"))
            .expect("create");
    }),
    ("mknod", |dir, _| {
        mknod(
            &dir.join("absent"),
            SFlag::S_IFIFO,
            Mode::from_bits_truncate(0o600),
            0,
        )
        .expect("mknod");
    }),
    ("unlink", |dir, _| {
        fs::remove_file(dir.join("f")).expect("unlink");
    }),
    ("mkdir", |dir, _| {
        fs::create_dir(dir.join("absent")).expect("mkdir");
    }),
    ("rmdir", |dir, _| {
        fs::remove_dir(dir.join("hollow")).expect("rmdir");
    }),
    ("rename", |dir, _| {
        fs::rename(dir.join("f"), dir.join("absent")).expect("rename");
    }),
    ("rename over", |dir, _| {
        fs::rename(dir.join("f"), dir.join("g")).expect("rename");
    }),
    ("rename into another directory", |dir, _| {
        fs::rename(dir.join("f"), dir.join("sub/f")).expect("rename");
    }),
    ("rename of a directory above", |dir, _| {
        fs::rename(dir.join("sub"), dir.join("absent")).expect("rename");
    }),
    ("link", |dir, _| {
        fs::hard_link(dir.join("f"), dir.join("absent")).expect("link");
    }),
    ("unlink of one of two names", |dir, _| {
        fs::remove_file(dir.join("twin")).expect("unlink");
    }),
    ("symlink swap", |dir, _| {
        symlink("g", dir.join("swap")).expect("symlink");
        fs::rename(dir.join("swap"), dir.join("link")).expect("rename");
    }),
    ("chmod", |dir, _| {
        fs::set_permissions(dir.join("f"), fs::Permissions::from_mode(0o640)).expect("chmod");
    }),
    ("chmod of the directory", |dir, _| {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o750)).expect("chmod");
    }),
    ("chown", |dir, _| {
        std::os::unix::fs::chown(dir.join("f"), Some(1234), Some(4321)).expect("chown");
    }),
    ("utimens", |dir, round| {
        let at = TimeSpec::new(
            1_000_000_000 + i64::try_from(round).expect("small"),
            123_456_789,
        );
        let path = dir.join("f");
        nix::sys::stat::utimensat(
            nix::fcntl::AT_FDCWD,
            &path,
            &at,
            &at,
            nix::sys::stat::UtimensatFlags::FollowSymlink,
        )
        .expect("utimens");
    }),
    ("setxattr", |dir, round| {
        setxattr(&dir.join("f"), TEST, round.to_string().as_bytes());
    }),
    ("removexattr", |dir, _| {
        removexattr(&dir.join("f"), GONE);
    }),
    ("set an access list", |dir, round| {
        set_acl(&dir.join("f"), ACL, round);
    }),
    ("set a default access list", |dir, round| {
        set_acl(dir, DEFAULT_ACL, round);
    }),
    ("lock", |dir, _| {
        let file = OpenOptions::new()
            .write(true)
            .open(dir.join("f"))
            .expect("open");
        let lock = whole_file(libc::F_WRLCK);
        nix::fcntl::fcntl(&file, FcntlArg::F_OFD_SETLK(&lock)).expect("lock");
        // Held until the next one is.
        *LOCKED.lock().expect("no panic") = Some(file);
    }),
    ("copy_file_range", |dir, round| {
        // Large enough to be shared.
        let data = vec![u8::try_from(round % 250).expect("small") + 1; 300 << 10];
        fs::write(dir.join("large"), &data).expect("write");
        let mut source = File::open(dir.join("large")).expect("open");
        let target = OpenOptions::new().write(true).open(dir.join("f"));
        let copied = std::io::copy(&mut source, &mut target.expect("open"));
        assert_eq!(copied.expect("copy"), data.len() as u64);
    }),
    ("write through a shared mapping", |dir, round| {
        map_and_store(&dir.join("f"), round);
    }),
];

/// The file that was locked last.
static LOCKED: Mutex<Option<File>> = Mutex::new(None);

/// Everything that can be seen in a directory, by kind of look.
type Seen = BTreeMap<String, String>;

/// One node's view: the directory, and descriptors opened before the change.
struct View {
    dir: PathBuf,
    f: File,
    g: File,
    mapped: Mapped,
}

impl View {
    fn open(dir: PathBuf) -> Self {
        let f = File::open(dir.join("f")).expect("open f");
        let g = File::open(dir.join("g")).expect("open g");
        let mapped = Mapped::new(&f, ProtFlags::PROT_READ);
        Self { dir, f, g, mapped }
    }

    fn look(&mut self) -> Seen {
        let mut seen = Seen::new();
        for name in [
            "", "f", "g", "twin", "empty", "absent", "sub", "sub/x", "sub/f", "absent/x", "hollow",
            "link",
        ] {
            let path = self.dir.join(name);
            seen.insert(
                format!("stat {name}"),
                shown(path.symlink_metadata().map(attributes)),
            );
            if path.metadata().is_ok_and(|attr| attr.is_file()) {
                seen.insert(format!("read {name}"), shown(fs::read(&path).map(digest)));
            }
        }
        for name in ["", "sub", "absent"] {
            let path = self.dir.join(name);
            if path.is_dir() {
                seen.insert(format!("readdir {name}"), shown(list(&path)));
            }
        }
        seen.insert(
            "readlink".into(),
            shown(fs::read_link(self.dir.join("link")).map(|to| format!("{to:?}"))),
        );
        for (path, name) in [("f", TEST), ("f", GONE), ("f", ACL), ("", DEFAULT_ACL)] {
            let value = getxattr(&self.dir.join(path), name).map(|value| format!("{value:?}"));
            seen.insert(format!("getxattr {name}"), shown(value));
        }
        seen.insert("lock".into(), shown(lock_of(&self.dir.join("f"))));
        // What is mapped behind the end of a file cannot be looked at.
        if self.f.metadata().expect("fstat").len() > 0 {
            seen.insert("load from a mapping".into(), self.mapped.load().to_string());
        }
        for (name, file) in [("f", &mut self.f), ("g", &mut self.g)] {
            seen.insert(
                format!("fstat of open {name}"),
                shown(file.metadata().map(attributes)),
            );
            let mut bytes = Vec::new();
            file.seek(SeekFrom::Start(0)).expect("seek");
            let read = file.read_to_end(&mut bytes).map(|_| digest(bytes));
            seen.insert(format!("read of open {name}"), shown(read));
        }
        seen
    }
}

#[test]
fn s1_no_stale_observation() {
    let rounds =
        std::env::var("ROUNDS").map_or(20, |rounds| rounds.parse().expect("ROUNDS is a number"));
    let cluster = Cluster::up(2);
    let (one, two) = (cluster.path(1), cluster.path(2));
    let mut stale = Vec::new();
    for (kind, change) in CHANGES {
        let began = std::time::Instant::now();
        for round in 0..rounds {
            let name = format!("{}-{round}", kind.replace(' ', "-"));
            let t0 = std::time::Instant::now();
            // Either node changes, either node made the files.
            let (here, there) = if round % 2 == 0 {
                (&one, &two)
            } else {
                (&two, &one)
            };
            let maker = if round % 4 < 2 { here } else { there };
            prepare(&maker.join(&name));
            println!("  {round} prepared {:?}", t0.elapsed());
            let mut near = View::open(here.join(&name));
            let mut far = View::open(there.join(&name));
            let before = far.look();
            assert_eq!(
                before,
                near.look(),
                "{kind}, round {round}: the nodes differ before the change"
            );
            println!("  {round} looked {:?}", t0.elapsed());
            change(&here.join(&name), round);
            println!("  {round} changed {:?}", t0.elapsed());
            let (there_sees, here_sees) = (far.look(), near.look());
            assert_ne!(
                before, here_sees,
                "{kind}, round {round}: the change does not show where it was made"
            );
            for (look, truth) in &here_sees {
                if there_sees.get(look) != Some(truth) {
                    stale.push(format!(
                        "{kind}, round {round}, {look}: {:?}, not {truth:?}",
                        there_sees.get(look)
                    ));
                }
            }
            println!("  {round} looked again {:?}", t0.elapsed());
            fs::remove_dir_all(maker.join(&name)).expect("clean up");
            println!("  {round} removed {:?}", t0.elapsed());
        }
        println!("{kind}: {rounds} rounds in {:?}", began.elapsed());
    }
    println!(
        "{} kinds of change, {rounds} rounds each, {} stale",
        CHANGES.len(),
        stale.len()
    );
    assert!(
        stale.is_empty(),
        "{} stale observations:\n{}",
        stale.len(),
        stale.join("\n")
    );
}

/// O_EXCL decides one winner, whatever the nodes have cached about the name.
#[test]
fn s1_exclusive_create_has_one_winner() {
    let cluster = Cluster::up(2);
    let paths = [cluster.path(1), cluster.path(2)];
    for round in 0..100 {
        let name = format!("race-{round}");
        for path in &paths {
            assert!(!path.join(&name).exists());
        }
        let race = |path: &PathBuf| {
            let path = path.join(&name);
            std::thread::spawn(move || {
                OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .open(path)
                    .is_ok()
            })
        };
        let racers: Vec<_> = paths.iter().map(race).collect();
        let winners = racers
            .into_iter()
            .map(|racer| racer.join().expect("no panic"));
        assert_eq!(winners.filter(|won| *won).count(), 1, "round {round}");
        assert!(
            paths.iter().all(|path| path.join(&name).exists()),
            "round {round}"
        );
    }
}

fn prepare(dir: &Path) {
    fs::create_dir(dir).expect("mkdir");
    fs::write(dir.join("f"), "the old content").expect("write");
    setxattr(&dir.join("f"), GONE, b"not yet");
    fs::write(dir.join("g"), "another file").expect("write");
    fs::write(dir.join("empty"), "").expect("write");
    fs::create_dir(dir.join("sub")).expect("mkdir");
    fs::write(dir.join("sub/x"), "below").expect("write");
    fs::create_dir(dir.join("hollow")).expect("mkdir");
    fs::hard_link(dir.join("g"), dir.join("twin")).expect("link");
    symlink("f", dir.join("link")).expect("symlink");
}

fn truncate(dir: &Path, size: u64) {
    OpenOptions::new()
        .write(true)
        .open(dir.join("f"))
        .expect("open")
        .set_len(size)
        .expect("truncate");
}

fn attributes(attr: fs::Metadata) -> String {
    format!(
        "ino {} mode {:o} nlink {} uid {} gid {} size {} mtime {}.{:09} ctime {}.{:09}",
        attr.ino(),
        attr.mode(),
        attr.nlink(),
        attr.uid(),
        attr.gid(),
        attr.size(),
        attr.mtime(),
        attr.mtime_nsec(),
        attr.ctime(),
        attr.ctime_nsec(),
    )
}

fn digest(bytes: Vec<u8>) -> String {
    if bytes.len() <= 100 {
        return String::from_utf8_lossy(&bytes).into_owned();
    }
    let sum = bytes.iter().fold(0_u64, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(u64::from(*byte))
    });
    format!("{} bytes, digest {sum:x}", bytes.len())
}

fn list(dir: &Path) -> std::io::Result<String> {
    let names: std::io::Result<Vec<_>> = fs::read_dir(dir)?
        .map(|entry| Ok(entry?.file_name()))
        .collect();
    let mut names = names?;
    names.sort();
    Ok(format!("{names:?}"))
}

fn shown<T: ToString>(result: std::io::Result<T>) -> String {
    match result {
        Ok(seen) => seen.to_string(),
        Err(error) => format!("error {:?}", error.raw_os_error()),
    }
}

const TEST: &str = "user.test";
/// There until it is removed.
const GONE: &str = "user.gone";
const ACL: &str = "system.posix_acl_access";
const DEFAULT_ACL: &str = "system.posix_acl_default";

fn c_string(bytes: &[u8]) -> CString {
    CString::new(bytes).expect("no NUL")
}

#[allow(unsafe_code)]
fn setxattr(path: &Path, name: &str, value: &[u8]) {
    let (path, name) = (
        c_string(path.as_os_str().as_bytes()),
        c_string(name.as_bytes()),
    );
    let (value, len) = (value.as_ptr().cast(), value.len());
    // SAFETY: all pointers are to live buffers of the lengths given.
    let done = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value, len, 0) };
    assert_eq!(done, 0, "setxattr: {}", std::io::Error::last_os_error());
}

#[allow(unsafe_code)]
fn removexattr(path: &Path, name: &str) {
    let (path, name) = (
        c_string(path.as_os_str().as_bytes()),
        c_string(name.as_bytes()),
    );
    // SAFETY: both are strings that live through the call.
    let done = unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) };
    assert_eq!(done, 0, "removexattr: {}", std::io::Error::last_os_error());
}

#[allow(unsafe_code)]
fn getxattr(path: &Path, name: &str) -> std::io::Result<Vec<u8>> {
    let (path, name) = (
        c_string(path.as_os_str().as_bytes()),
        c_string(name.as_bytes()),
    );
    let mut value = [0_u8; 64];
    let (to, len) = (value.as_mut_ptr().cast(), value.len());
    // SAFETY: all pointers are to live buffers of the lengths given.
    let len = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), to, len) };
    let len = usize::try_from(len).map_err(|_| std::io::Error::last_os_error())?;
    Ok(value[..len].to_vec())
}

/// Sets an access list that names a user.
fn set_acl(path: &Path, which: &str, round: usize) {
    let user = u32::try_from(1_000 + round).expect("small");
    let none = u32::MAX;
    let mut value = 2_u32.to_le_bytes().to_vec();
    let entries = [
        (1, 6, none),
        (2, 4, user),
        (4, 4, none),
        (0x10, 4, none),
        (0x20, 0, none),
    ];
    for (tag, bits, id) in entries {
        value.extend(u16::to_le_bytes(tag));
        value.extend(u16::to_le_bytes(bits));
        value.extend(u32::to_le_bytes(id));
    }
    setxattr(path, which, &value);
}

fn whole_file(kind: i32) -> libc::flock {
    libc::flock {
        l_type: kind.try_into().expect("small"),
        l_whence: libc::SEEK_SET.try_into().expect("small"),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// Says which lock would be in the way of one on the whole file.
fn lock_of(path: &Path) -> std::io::Result<String> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut lock = whole_file(libc::F_WRLCK);
    nix::fcntl::fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(format!(
        "{} from {}, {}",
        lock.l_type, lock.l_start, lock.l_len
    ))
}

/// The first page of a file in memory.
struct Mapped(NonNull<u8>);

impl Mapped {
    const LEN: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

    #[allow(unsafe_code)]
    fn new(file: &File, protection: ProtFlags) -> Self {
        // SAFETY: a fresh mapping that nothing else in this process refers to.
        let map = unsafe { mmap(None, Self::LEN, protection, MapFlags::MAP_SHARED, file, 0) };
        Self(map.expect("mmap").cast())
    }

    /// Loads the first byte of a file that is not empty.
    #[allow(unsafe_code)]
    fn load(&self) -> u8 {
        // SAFETY: the page is mapped for reading, and the caller says that the file has it.
        unsafe { self.0.as_ptr().read_volatile() }
    }

    /// Stores the first byte of a file that is not empty, mapped for writing.
    #[allow(unsafe_code)]
    fn store(&self, byte: u8) {
        // SAFETY: the page is mapped for writing, and the caller says that the file has it.
        unsafe { self.0.as_ptr().write_volatile(byte) }
    }
}

impl Drop for Mapped {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: unmaps what `new` has mapped, once.
        unsafe { munmap(self.0.cast(), Self::LEN.get()) }.expect("munmap");
    }
}

fn map_and_store(path: &Path, round: usize) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .expect("open");
    let map = Mapped::new(&file, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE);
    map.store(b'0' + u8::try_from(round % 10).expect("a digit"));
}
