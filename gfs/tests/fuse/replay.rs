//! What a kernel tells its watchers when a daemon replays, through its own mount, a change that another node has made:
//! the daemon knows its own thread and answers as if the change were just being made, and nothing is changed.
//!
//! `docs/decisions/0007-remote-events.md` builds on each of these.

use super::fanotify::Fanotify;
use super::memtree::name;
use super::{sys, within};
use async_trait::async_trait;
use consistency::wire::meta::{Attr, FileKind, Name, NewNode, RenameMode};
use consistency::{InodeNo, Timestamp, Version};
use gfs::error::Errno;
use gfs::fuse::{Config, Connection, Mounted};
use gfs::tree::*;
use nix::fcntl::OFlag;
use nix::sys::inotify::{AddWatchFlags as Event, InitFlags, Inotify};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

const DIR: InodeNo = InodeNo(2);
const SUB: InodeNo = InodeNo(3);
const FILE: InodeNo = InodeNo(4);

/// A tree whose facts a test changes behind the kernel's back.
#[derive(Default)]
struct Facts {
    names: Mutex<HashMap<(InodeNo, Name), InodeNo>>,
    replay: Mutex<Option<Replay>>,
    asked: Mutex<Vec<&'static str>>,
}

/// What the replaying thread is told instead of the facts.
struct Replay {
    thread: u32,
    names: HashMap<(InodeNo, Name), Option<InodeNo>>,
}

fn attr(ino: InodeNo) -> Attr {
    let kind = if ino < FILE {
        FileKind::Dir
    } else {
        FileKind::File
    };
    let time = Timestamp {
        secs: 1_700_000_000,
        nanos: 5,
    };
    Attr {
        ino,
        kind,
        mode: 0o755,
        nlink: if kind == FileKind::Dir { 2 } else { 1 },
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 7,
        blocks: 1,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
        version: Version(1),
    }
}

fn entry(ino: Option<InodeNo>, ttl: std::time::Duration) -> EntryReply {
    EntryReply {
        attr: ino.map(attr),
        ttl,
        attr_ttl: NO_CACHE,
        hold: Hold::none(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder panics")
}

impl Facts {
    /// Lets a change pass that the replaying thread makes, and nobody else.
    fn replayed(&self, caller: Caller, what: &'static str) -> Result<(), Errno> {
        let replay = lock(&self.replay);
        if replay.as_ref().is_some_and(|r| r.thread == caller.pid) {
            lock(&self.asked).push(what);
            Ok(())
        } else {
            Err(Errno::EPERM)
        }
    }
}

#[async_trait]
impl Tree for Facts {
    async fn lookup(&self, caller: Caller, dir: InodeNo, name: &Name) -> Result<EntryReply, Errno> {
        let key = (dir, name.clone());
        if let Some(replay) = &*lock(&self.replay)
            && replay.thread == caller.pid
            && let Some(told) = replay.names.get(&key)
        {
            return Ok(entry(*told, NO_CACHE));
        }
        let replayed = lock(&self.replay)
            .as_ref()
            .is_some_and(|replay| replay.names.contains_key(&key));
        // The replaying thread has to ask for itself, whatever others have looked up meanwhile.
        let ttl = if replayed { NO_CACHE } else { CACHE };
        Ok(entry(lock(&self.names).get(&key).copied(), ttl))
    }

    fn forget(&self, _: InodeNo, _: u64) {}

    async fn getattr(&self, _: Caller, ino: InodeNo, _: Option<u64>) -> Result<AttrReply, Errno> {
        Ok(AttrReply {
            attr: attr(ino),
            ttl: CACHE,
            hold: Hold::none(),
        })
    }

    async fn setattr(
        &self,
        caller: Caller,
        ino: InodeNo,
        _: SetAttrRequest,
    ) -> Result<AttrReply, Errno> {
        self.replayed(caller, "setattr")?;
        self.getattr(caller, ino, None).await
    }

    async fn make(
        &self,
        caller: Caller,
        dir: InodeNo,
        name: &Name,
        _: NewNode,
        _: NewMode,
    ) -> Result<EntryReply, Errno> {
        self.replayed(caller, "make")?;
        let made = lock(&self.names).get(&(dir, name.clone())).copied();
        Ok(entry(made, CACHE))
    }

    async fn unlink(&self, caller: Caller, _: InodeNo, _: &Name, _: bool) -> Result<(), Errno> {
        self.replayed(caller, "unlink")
    }

    async fn rename(
        &self,
        caller: Caller,
        _: InodeNo,
        _: &Name,
        _: InodeNo,
        _: &Name,
        _: RenameMode,
    ) -> Result<(), Errno> {
        self.replayed(caller, "rename")
    }

    async fn open(&self, _: Caller, _: InodeNo, _: OpenFlags) -> Result<Opened, Errno> {
        Ok(Opened::default())
    }

    async fn read(
        &self,
        _: Caller,
        _: InodeNo,
        _: u64,
        _: u64,
        _: u32,
        _: OpenFlags,
    ) -> Result<ReadReply, Errno> {
        Err(Errno::EIO)
    }

    async fn readdir(
        &self,
        _: Caller,
        _: InodeNo,
        _: u64,
        _: usize,
        _: bool,
    ) -> Result<ListReply, Errno> {
        Ok(ListReply::default())
    }
}

/// A mount of [`Facts`] with `/dir`, and watches on it.
struct Watched {
    facts: Arc<Facts>,
    inotify: Inotify,
    mounted: Mounted,
    _runtime: Runtime,
    dir: TempDir,
}

type Told = Vec<(Event, String, bool)>;

impl Watched {
    /// Mounts a tree with these names, and watches `watched` of it.
    fn new(names: &[(InodeNo, &str, InodeNo)], watched: &[&str]) -> Self {
        let dir = TempDir::with_prefix("glu-replay-").expect("a directory for the mount");
        let facts = Arc::new(Facts::default());
        let root = (InodeNo::ROOT, "dir", DIR);
        for (parent, child, ino) in names.iter().chain([&root]) {
            lock(&facts.names).insert((*parent, name(child)), *ino);
        }
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_time()
            .build()
            .expect("a runtime");
        let connection = Connection::open(dir.path(), &Config::default());
        let mounted = connection
            .expect("these tests need root and /dev/fuse")
            .serve(Arc::clone(&facts) as _, runtime.handle())
            .expect("threads");
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC);
        let watched_at = Self {
            facts,
            inotify: inotify.expect("inotify"),
            mounted,
            _runtime: runtime,
            dir,
        };
        for path in watched {
            let path = watched_at.path(path);
            watched_at
                .inotify
                .add_watch(&path, Event::IN_ALL_EVENTS)
                .expect("it is there");
        }
        watched_at
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// Has the other nodes change a name.
    fn change(&self, dir: InodeNo, child: &str, now: Option<InodeNo>) {
        let mut names = lock(&self.facts.names);
        match now {
            Some(ino) => names.insert((dir, name(child)), ino),
            None => names.remove(&(dir, name(child))),
        };
        drop(names);
        let notifier = self.mounted.notifier();
        let child = name(child);
        within("notification", move || notifier.forget_name(dir, &child)).ok();
    }

    /// Replays: a thread of ours is told `names` as they were before; of the others' answers for them nothing is kept
    /// from now on, and the kernel forgets what it kept before.
    fn replay(
        &self,
        names: &[(InodeNo, &str, Option<InodeNo>)],
        run: impl FnOnce(OwnedFd) -> nix::Result<()> + Send + 'static,
    ) {
        // By number, not by path: the daemon knows no paths, and a watched inode is in the kernel's memory.
        let root = fs::File::open(self.dir.path()).expect("the root");
        let dir = sys::open_fuse_inode(&root, DIR.0, OFlag::O_PATH.bits()).expect("it is watched");
        let forget: Vec<_> = names
            .iter()
            .map(|(dir, child, _)| (*dir, name(child)))
            .collect();
        let told = names
            .iter()
            .map(|(dir, child, ino)| ((*dir, name(child)), *ino));
        let (facts, told) = (Arc::clone(&self.facts), told.collect());
        let notifier = self.mounted.notifier();
        within("replay", move || {
            let thread = nix::unistd::gettid().as_raw().cast_unsigned();
            *lock(&facts.replay) = Some(Replay {
                thread,
                names: told,
            });
            for (dir, child) in forget {
                // ENOENT: the kernel does not know the name.
                notifier.forget_name(dir, &child).ok();
            }
            let result = run(dir);
            *lock(&facts.replay) = None;
            result
        })
        .expect("the replay works");
    }

    /// Returns what the watchers were told.
    fn told(&self) -> Told {
        let events = self.inotify.read_events().unwrap_or_default();
        let mut cookies = Vec::new();
        let told = events
            .into_iter()
            .map(|event| {
                if event.cookie != 0 {
                    cookies.push(event.cookie);
                }
                let name = event.name.map(|name| name.to_string_lossy().into_owned());
                let dir = event.mask.contains(Event::IN_ISDIR);
                (event.mask - Event::IN_ISDIR, name.unwrap_or_default(), dir)
            })
            .collect();
        cookies.dedup();
        assert!(
            cookies.len() <= 1,
            "the halves of a move match: {cookies:?}"
        );
        told
    }

    #[track_caller]
    fn check(&self, expected: &[(Event, &str, bool)]) {
        let expected: Told = expected
            .iter()
            .map(|(mask, name, dir)| (*mask, (*name).to_owned(), *dir))
            .collect();
        assert_eq!(self.told(), expected);
        assert_eq!(lock(&self.facts.asked).len(), 1, "one request replays it");
    }
}

/// Somebody here looks a name up before its event is replayed, as a watcher may.
fn look(watched: &Watched, path: &str) -> bool {
    let path = watched.path(path);
    within("stat", move || path.exists())
}

#[test]
fn a_name_that_appears() {
    let watched = Watched::new(&[], &["dir"]);
    assert!(!look(&watched, "dir/new"));
    watched.change(DIR, "new", Some(FILE));
    assert!(look(&watched, "dir/new"), "it is seen before it is told");
    watched.replay(&[(DIR, "new", None)], |dir| {
        mknodat(&dir, "new", SFlag::S_IFREG, Mode::S_IRUSR, 0)
    });
    watched.check(&[(Event::IN_CREATE, "new", false)]);
    assert_eq!(
        fs::metadata(watched.path("dir/new")).expect("there").len(),
        7
    );

    let watched = Watched::new(&[], &["dir"]);
    watched.change(DIR, "sub", Some(SUB));
    watched.replay(&[(DIR, "sub", None)], |dir| {
        mkdirat(&dir, "sub", Mode::S_IRWXU)
    });
    watched.check(&[(Event::IN_CREATE, "sub", true)]);
}

#[test]
fn a_name_that_goes() {
    let watched = Watched::new(&[(DIR, "old", FILE)], &["dir", "dir/old"]);
    watched.change(DIR, "old", None);
    assert!(!look(&watched, "dir/old"), "it is gone before it is told");
    watched.replay(&[(DIR, "old", Some(FILE))], |dir| {
        unlinkat(&dir, "old", UnlinkatFlags::NoRemoveDir)
    });
    watched.check(&[
        (Event::IN_ATTRIB, "", false),
        (Event::IN_DELETE_SELF, "", false),
        (Event::IN_IGNORED, "", false),
        (Event::IN_DELETE, "old", false),
    ]);
    assert!(!look(&watched, "dir/old"));

    let watched = Watched::new(&[(DIR, "sub", SUB)], &["dir", "dir/sub"]);
    watched.change(DIR, "sub", None);
    watched.replay(&[(DIR, "sub", Some(SUB))], |dir| {
        unlinkat(&dir, "sub", UnlinkatFlags::RemoveDir)
    });
    watched.check(&[
        (Event::IN_DELETE_SELF, "", false),
        (Event::IN_IGNORED, "", false),
        (Event::IN_DELETE, "sub", true),
    ]);
}

#[test]
fn a_name_that_moves() {
    let names = [(DIR, "old", FILE), (DIR, "sub", SUB)];
    let watched = Watched::new(&names, &["dir", "dir/sub", "dir/old"]);
    watched.change(DIR, "old", None);
    watched.change(SUB, "new", Some(FILE));
    assert!(look(&watched, "dir/sub/new") && !look(&watched, "dir/old"));
    let before = [(DIR, "old", Some(FILE)), (SUB, "new", None)];
    watched.replay(&before, |dir| {
        nix::fcntl::renameat(&dir, "old", &dir, "sub/new")
    });
    watched.check(&[
        (Event::IN_MOVED_FROM, "old", false),
        (Event::IN_MOVED_TO, "new", false),
        (Event::IN_MOVE_SELF, "", false),
    ]);
    assert!(look(&watched, "dir/sub/new") && !look(&watched, "dir/old"));
}

#[test]
fn changes_of_attributes_and_content() {
    let names = [(DIR, "f", FILE)];
    let watched = Watched::new(&names, &["dir"]);
    let now = TimeSpec::UTIME_NOW;
    let follow = UtimensatFlags::FollowSymlink;
    watched.replay(&[], move |dir| utimensat(&dir, "f", &now, &now, follow));
    watched.check(&[(Event::IN_ATTRIB, "f", false)]);

    let watched = Watched::new(&names, &["dir", "dir/f"]);
    let omit = TimeSpec::UTIME_OMIT;
    watched.replay(&[], move |dir| utimensat(&dir, "f", &omit, &now, follow));
    watched.check(&[
        (Event::IN_MODIFY, "f", false),
        (Event::IN_MODIFY, "", false),
    ]);

    // The one that cannot come alone: who closes a file has opened it.
    let watched = Watched::new(&names, &["dir"]);
    watched.replay(&[], |dir| {
        nix::fcntl::openat(&dir, "f", OFlag::O_WRONLY, Mode::empty()).map(drop)
    });
    assert_eq!(
        watched.told(),
        [
            (Event::IN_OPEN, "f".to_owned(), false),
            (Event::IN_CLOSE_WRITE, "f".to_owned(), false)
        ]
    );
}

/// The kernel shows what is watched: inode, file system, and the handle that opens it.
#[test]
fn watches_can_be_found() {
    let watched = Watched::new(&[(DIR, "f", FILE)], &["dir", "dir/f"]);
    let info = fs::read_to_string(format!(
        "/proc/self/fdinfo/{}",
        std::os::fd::AsFd::as_fd(&watched.inotify).as_raw_fd()
    ))
    .expect("an open descriptor");
    let inodes: Vec<&str> = info
        .lines()
        .filter_map(|line| {
            line.strip_prefix("inotify ")?
                .split("ino:")
                .nth(1)?
                .split(' ')
                .next()
        })
        .collect();
    let mut numbers: Vec<u64> = inodes
        .iter()
        .map(|text| u64::from_str_radix(text, 16).expect("hexadecimal"))
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [DIR.0, FILE.0], "{info}");
    assert!(
        info.contains("fhandle-type:81"),
        "nodeid and generation: {info}"
    );
}

/// A watch keeps the inode of a directory in memory, and not the dentry that a handle needs. Who has it open does.
#[test]
fn a_watched_directory_whose_name_is_forgotten() {
    let watched = Watched::new(&[], &["dir"]);
    let root = fs::File::open(watched.path("")).expect("the root");
    let open = || sys::open_fuse_inode(&root, DIR.0, OFlag::O_PATH.bits());
    let kept = open().expect("it was just looked up");
    watched.change(InodeNo::ROOT, "dir", Some(DIR));
    open().expect("somebody has it open");
    drop(kept);
    let error = open().expect_err("nobody has it open");
    assert_eq!(error.raw_os_error(), Some(libc::ESTALE));
}

#[test]
fn a_name_that_takes_another_one_s_place() {
    let other = InodeNo(5);
    let names = [(DIR, "new", FILE), (DIR, "target", other)];
    let watched = Watched::new(&names, &["dir", "dir/target"]);
    watched.change(DIR, "new", None);
    watched.change(DIR, "target", Some(FILE));
    let before = [(DIR, "new", Some(FILE)), (DIR, "target", Some(other))];
    watched.replay(&before, |dir| {
        nix::fcntl::renameat(&dir, "new", &dir, "target")
    });
    watched.check(&[
        (Event::IN_MOVED_FROM, "new", false),
        (Event::IN_MOVED_TO, "target", false),
        (Event::IN_ATTRIB, "", false),
        (Event::IN_DELETE_SELF, "", false),
        (Event::IN_IGNORED, "", false),
    ]);
}

/// fanotify is told the same by the same replays.
#[test]
fn marks_of_fanotify() {
    let watched = Watched::new(&[(DIR, "f", FILE)], &["dir"]);
    let mut fanotify = Fanotify::on(&watched.path("dir")).expect("a mark on a FUSE directory");
    let now = TimeSpec::UTIME_NOW;
    let omit = TimeSpec::UTIME_OMIT;
    let follow = UtimensatFlags::FollowSymlink;
    watched.replay(&[], move |dir| utimensat(&dir, "f", &omit, &now, follow));
    assert_eq!(fanotify.told(), ["MODIFY f"]);
    watched.replay(&[], |dir| {
        nix::fcntl::openat(&dir, "f", OFlag::O_WRONLY, Mode::empty()).map(drop)
    });
    assert_eq!(fanotify.told(), ["CLOSE_WRITE f"]);
    watched.replay(&[], move |dir| utimensat(&dir, "f", &now, &now, follow));
    assert_eq!(fanotify.told(), ["ATTRIB f"]);
    watched.change(DIR, "f", None);
    watched.change(DIR, "g", Some(FILE));
    let before = [(DIR, "f", Some(FILE)), (DIR, "g", None)];
    watched.replay(&before, |dir| nix::fcntl::renameat(&dir, "f", &dir, "g"));
    assert_eq!(fanotify.told(), ["MOVED_FROM f", "MOVED_TO g"]);
    watched.change(DIR, "g", None);
    watched.replay(&[(DIR, "g", Some(FILE))], |dir| {
        unlinkat(&dir, "g", UnlinkatFlags::NoRemoveDir)
    });
    assert_eq!(fanotify.told(), ["DELETE g"]);
    watched.change(DIR, "sub", Some(SUB));
    watched.replay(&[(DIR, "sub", None)], |dir| {
        mkdirat(&dir, "sub", Mode::S_IRWXU)
    });
    assert_eq!(fanotify.told(), ["CREATE sub"]);
}

/// A further name of an inode is made by link(2) elsewhere; here mknod(2) tells the same.
#[test]
fn a_further_name() {
    let watched = Watched::new(&[(SUB, "first", FILE)], &["dir"]);
    watched.change(DIR, "second", Some(FILE));
    watched.replay(&[(DIR, "second", None)], |dir| {
        mknodat(&dir, "second", SFlag::S_IFREG, Mode::S_IRUSR, 0)
    });
    watched.check(&[(Event::IN_CREATE, "second", false)]);
}

/// While one thread replays what was, the others see what is; and each event comes once.
#[test]
fn nobody_else_sees_the_past() {
    const ROUNDS: usize = 200;
    const CHANGING: usize = usize::MAX;
    let watched = Watched::new(&[], &["dir"]);
    // Counts the changes that are complete. Odd: the name is there.
    let changes = Arc::new(AtomicUsize::new(0));
    let looks: Vec<_> = (0..2)
        .map(|_| {
            let (changes, path) = (Arc::clone(&changes), watched.path("dir/x"));
            std::thread::spawn(move || {
                let mut looks = 0;
                loop {
                    let before = changes.load(SeqCst);
                    let seen = path.exists();
                    if before == 2 * ROUNDS {
                        return looks;
                    }
                    // Nothing is said about a look that a change overlaps.
                    if before != CHANGING && changes.load(SeqCst) == before {
                        assert_eq!(seen, before % 2 == 1, "after {before} changes");
                        looks += 1;
                    }
                }
            })
        })
        .collect();
    let mut told = Told::new();
    for round in 0..ROUNDS {
        changes.store(CHANGING, SeqCst);
        watched.change(DIR, "x", Some(FILE));
        changes.store(2 * round + 1, SeqCst);
        watched.replay(&[(DIR, "x", None)], |dir| {
            mknodat(&dir, "x", SFlag::S_IFREG, Mode::S_IRUSR, 0)
        });
        told.extend(watched.told());
        changes.store(CHANGING, SeqCst);
        watched.change(DIR, "x", None);
        changes.store(2 * round + 2, SeqCst);
        watched.replay(&[(DIR, "x", Some(FILE))], |dir| {
            unlinkat(&dir, "x", UnlinkatFlags::NoRemoveDir)
        });
        told.extend(watched.told());
    }
    for look in looks {
        assert!(look.join().expect("no look was stale") > 0, "it looked");
    }
    let events: Vec<Event> = told.iter().map(|(event, ..)| *event).collect();
    assert_eq!(events, [Event::IN_CREATE, Event::IN_DELETE].repeat(ROUNDS));
}

/// Why marks on all of a mount are not served (decision 7): those that tell names are refused, for FUSE has no number for a
/// file system; of those with descriptors a replay reaches what goes through an open file alone.
#[test]
fn marks_on_all_of_a_mount_tell_the_end_of_writing_alone() {
    // Watched, so that the directory is in memory: a mark on all of a mount does not keep it there.
    let watched = Watched::new(&[(DIR, "f", FILE)], &["dir"]);
    let wholes = [libc::FAN_MARK_MOUNT, libc::FAN_MARK_FILESYSTEM];
    for whole in wholes {
        let root = watched.path("");
        let named = Fanotify::mark(
            &root,
            libc::FAN_REPORT_DFID_NAME,
            whole,
            libc::FAN_CLOSE_WRITE,
        );
        let refused = named.expect_err("names are told").raw_os_error();
        assert_eq!(refused, Some(libc::ENODEV));
        let nameless = Fanotify::mark(&root, 0, whole, libc::FAN_CREATE);
        let refused = nameless.expect_err("names are told").raw_os_error();
        assert_eq!(refused, Some(libc::EINVAL));
    }
    for whole in wholes {
        let mask = libc::FAN_MODIFY | libc::FAN_CLOSE_WRITE;
        let marked = Fanotify::mark(&watched.path(""), 0, whole, mask);
        let mut marked = marked.expect("a mark without names");
        let (now, omit) = (TimeSpec::UTIME_NOW, TimeSpec::UTIME_OMIT);
        let follow = UtimensatFlags::FollowSymlink;
        watched.replay(&[], move |dir| utimensat(&dir, "f", &omit, &now, follow));
        assert_eq!(marked.told_of_files(), 0, "content");
        watched.replay(&[], |dir| {
            nix::fcntl::openat(&dir, "f", OFlag::O_WRONLY, Mode::empty()).map(drop)
        });
        assert_eq!(marked.told_of_files(), libc::FAN_CLOSE_WRITE);
    }
}
