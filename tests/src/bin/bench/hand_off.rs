//! What goes to and fro between two nodes: leases, locks, pages.

use super::{Bench, Row};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::fs::{self, File, OpenOptions};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

const PAGE_BYTES: usize = 4096;

impl Bench {
    /// One exclusive hand-off: each node in turn changes the same byte. The control is a change of a byte that the node
    /// holds already.
    pub(super) fn hand_off(&mut self) {
        let paths = [
            self.cluster.path(1).join("handoff"),
            self.cluster.path(2).join("handoff"),
        ];
        fs::write(&paths[0], "x").expect("write");
        let open = |path: &PathBuf| OpenOptions::new().write(true).open(path).expect("open");
        let files = [open(&paths[0]), open(&paths[1])];
        let change = |file: &File| file.write_all_at(b"y", 0).expect("write");
        let in_turns = || (0..200).for_each(|i| change(&files[i % 2]));
        let alone = || (0..200).for_each(|_| change(&files[0]));
        self.row_pair(
            "exclusive hand-off between two nodes",
            "<= 2 round trips",
            200,
            in_turns,
            alone,
        );
    }

    /// From the unlock on one node to the return of the wait on another, which was there before. The control is the same
    /// on one local file.
    pub(super) fn lock_hand_off(&mut self) {
        const ROUNDS: usize = 100;
        let hand_offs = |holder: &Path, waiter: &Path| {
            let files = [holder, waiter].map(|dir| dir.join("lock-handoff"));
            fs::write(&files[0], "x").expect("write");
            let [holder, waiter] = files.map(|path| {
                let file = OpenOptions::new().read(true).write(true).open(path);
                file.expect("open")
            });
            lock(&holder, libc::F_WRLCK);
            (0..ROUNDS)
                .map(|_| hand_over(&holder, &waiter))
                .collect::<Vec<_>>()
        };
        let (one, two) = (self.cluster.path(1), self.cluster.path(2));
        self.add(Row {
            name: "fcntl lock hand-off between two nodes",
            goal: "",
            here: hand_offs(&one, &two),
            control: hand_offs(&self.local, &self.local),
            ops: 1,
        });
    }

    /// Two nodes store by turns into one page that both have mapped, and see each other's stores. The control are two
    /// mappings on one node.
    pub(super) fn page_hand_off(&mut self) {
        let turns = self.scaled(200);
        let stores = |first: &Path, second: &Path| {
            let files = [first, second].map(|dir| dir.join("page-handoff"));
            fs::write(&files[0], [0; PAGE_BYTES]).expect("write");
            let pages = files.map(|file| Page::map(&file));
            let began = Instant::now();
            for turn in 0..turns {
                let page = &pages[turn as usize % 2];
                assert_eq!(page.load(), turn, "the store before is seen");
                page.store(turn + 1);
            }
            began.elapsed()
        };
        let (one, two) = (self.cluster.path(1), self.cluster.path(2));
        let (mut here, mut control) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            here.push(stores(&one, &two));
            control.push(stores(&one, &one));
        }
        self.add(Row {
            name: "page hand-off, stores of two nodes by turns",
            goal: "",
            here,
            control,
            ops: turns,
        });
    }
}

/// A page of a file, mapped shared and writable.
struct Page(NonNull<AtomicU32>);

#[allow(unsafe_code, reason = "a mapping is plain memory")]
impl Page {
    fn map(path: &Path) -> Self {
        let file = OpenOptions::new().read(true).write(true).open(path);
        let how = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let len = NonZeroUsize::new(PAGE_BYTES).expect("not 0");
        // SAFETY: the kernel chooses the place; the mapping lives as long as the file says nothing else.
        let page = unsafe { mmap(None, len, how, MapFlags::MAP_SHARED, file.expect("open"), 0) };
        Self(page.expect("mmap").cast())
    }

    fn load(&self) -> u32 {
        // SAFETY: the page is mapped until the drop, and holds a number at its beginning.
        unsafe { self.0.as_ref() }.load(Ordering::SeqCst)
    }

    fn store(&self, number: u32) {
        // SAFETY: as in `load`.
        unsafe { self.0.as_ref() }.store(number, Ordering::SeqCst);
    }
}

#[allow(unsafe_code, reason = "see `Page::map`")]
impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and nothing refers to it any more.
        unsafe { munmap(self.0.cast(), PAGE_BYTES) }.expect("munmap");
    }
}

/// Locks all of a file for its open file (OFD), or unlocks it; waits for the lock.
fn lock(file: &File, kind: i32) {
    let range = libc::flock {
        l_type: i16::try_from(kind).expect("a lock type"),
        l_whence: 0,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLKW(&range)).expect("lock");
}

/// Unlocks what `holder` has when another thread waits for it, and locks it again; returns how long the lock took.
fn hand_over(holder: &File, waiter: &File) -> Duration {
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        let waiting = scope.spawn(move || {
            sender
                .send(nix::unistd::gettid())
                .expect("somebody listens");
            lock(waiter, libc::F_WRLCK);
            let locked = Instant::now();
            lock(waiter, libc::F_UNLCK);
            locked
        });
        let tid = receiver.recv().expect("the thread runs");
        let call = format!("/proc/self/task/{tid}/syscall");
        let in_fcntl = format!("{} ", libc::SYS_fcntl);
        tests::wait_until("the thread to wait in fcntl", tests::DEADLINE, || {
            fs::read_to_string(&call).is_ok_and(|call| call.starts_with(&in_fcntl))
        });
        let unlocked = Instant::now();
        lock(holder, libc::F_UNLCK);
        let locked = waiting.join().expect("it locks");
        lock(holder, libc::F_WRLCK);
        locked.duration_since(unlocked)
    })
}
