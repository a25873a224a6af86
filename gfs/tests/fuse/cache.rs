//! What the kernel keeps and when it asks again.

use super::memtree::name;
use super::{DEADLINE, Fs, sys, wait_until, within};
use consistency::InodeNo;
use gfs::tree::{Hold, Kernel};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

/// Counts how often the tree is asked for `operation` while `run` runs.
fn asked(fs: &Fs, operation: &str, run: impl FnOnce() + Send + 'static) -> usize {
    let before = fs.tree.began(operation);
    within(operation, run);
    fs.tree.began(operation) - before
}

fn stat(path: &Path, times: usize) -> impl FnOnce() + Send + 'static {
    let path = path.to_owned();
    move || (0..times).for_each(|_| drop(fs::metadata(&path)))
}

fn read(path: &Path) -> impl FnOnce() + Send + 'static {
    let path = path.to_owned();
    move || drop(fs::read(path).expect("the file can be read"))
}

fn notify(fs: &Fs, run: impl FnOnce(&dyn Kernel) -> std::io::Result<()> + Send + 'static) {
    let notifier = fs.mounted().notifier();
    within("notification", move || run(&*notifier)).expect("the kernel takes it");
}

#[test]
fn attributes_are_asked_for_once_until_forgotten() {
    let fs = Fs::new();
    let (path, ino) = (fs.path("file"), fs.tree.put("file", b"1"));
    // Not by the path: its name is asked for anew when the kernel's size was looked at (K2), and attributes with it.
    let file = Arc::new(File::open(path).expect("it is there"));
    let stat = || {
        let file = Arc::clone(&file);
        move || (0..20).for_each(|_| drop(file.metadata()))
    };
    assert_eq!(asked(&fs, "getattr", stat()), 1);
    notify(&fs, move |kernel| kernel.forget_attr(ino));
    assert_eq!(asked(&fs, "getattr", stat()), 1);
    fs.tree.put("file", b"1234");
    notify(&fs, move |kernel| kernel.forget_attr(ino));
    assert_eq!(file.metadata().expect("it is there").len(), 4);
}

#[test]
fn attributes_of_entries_and_of_setattr_are_not_kept() {
    let fs = Fs::new();
    let path = fs.path("new");
    let create = path.clone();
    within("create", move || drop(File::create(create)));
    // The way there needs the root's attributes too. GETATTR, with which the open began, tells no time of birth.
    stat(&fs.path(""), 1)();
    assert_eq!(asked(&fs, "getattr", stat(&path, 3)), 1);
    let chmod = path.clone();
    within("chmod", move || {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(chmod, fs::Permissions::from_mode(0o600))
    })
    .expect("chmod works");
    assert_eq!(asked(&fs, "getattr", stat(&path, 3)), 1);
}

#[test]
fn content_is_read_once_until_forgotten() {
    let fs = Fs::new();
    let (path, ino) = (fs.path("file"), fs.tree.put("file", &[b'a'; 100]));
    assert_eq!(asked(&fs, "read", read(&path)), 1);
    assert_eq!(asked(&fs, "read", read(&path)), 0);
    fs.tree.put("file", &[b'b'; 100]);
    notify(&fs, move |kernel| kernel.forget_attr(ino));
    assert_eq!(asked(&fs, "read", read(&path)), 0);
    notify(&fs, move |kernel| kernel.forget_data(ino));
    assert_eq!(asked(&fs, "read", read(&path)), 1);
    assert_eq!(
        within("read", move || fs::read(path)).expect("read"),
        [b'b'; 100]
    );
}

#[test]
fn names_are_asked_for_once_until_forgotten() {
    let fs = Fs::new();
    fs.tree.put("file", b"");
    let path = fs.path("file");
    assert_eq!(asked(&fs, "lookup", stat(&path, 20)), 1);
    notify(&fs, |kernel| {
        kernel.forget_name(InodeNo::ROOT, &name("file"))
    });
    assert_eq!(asked(&fs, "lookup", stat(&path, 20)), 1);
}

#[test]
fn absence_is_asked_for_once_until_forgotten() {
    let fs = Fs::new();
    let path = fs.path("absent");
    assert_eq!(asked(&fs, "lookup", stat(&path, 20)), 1);
    fs.tree.put("absent", b"");
    assert!(fs::metadata(&path).is_err(), "absence is remembered");
    notify(&fs, |kernel| {
        kernel.forget_name(InodeNo::ROOT, &name("absent"))
    });
    assert!(fs::metadata(&path).is_ok(), "absence is forgotten");
}

#[test]
fn absence_without_a_lease_is_asked_for_each_time() {
    let fs = Fs::new();
    assert_eq!(asked(&fs, "lookup", stat(&fs.path("volatile"), 5)), 5);
}

#[test]
fn every_listing_asks_the_tree() {
    let fs = Fs::new();
    let root = fs.path("");
    let list = |root: PathBuf| move || drop(fs::read_dir(root).map(Iterator::count));
    let once = asked(&fs, "readdir", list(root.clone()));
    assert!(once > 0);
    assert_eq!(asked(&fs, "readdir", list(root)), once);
}

#[test]
fn an_epoch_forgets_all_names_while_a_lookup_holds_up_the_rest() {
    let fs = Fs::new();
    assert!(
        fs.mounted().notifier().epoch_supported(),
        "this test needs Linux 6.16"
    );
    fs.tree.put("known", b"");
    let known = fs.path("known");
    stat(&known, 1)();
    assert_eq!(asked(&fs, "lookup", stat(&known, 1)), 0);

    fs.tree.block("lookup");
    let pending = fs.path("pending");
    let lookup = thread::spawn(move || drop(fs::metadata(pending)));
    wait_until("the lookup is with the tree", || {
        fs.mounted().waiting().len() == 1
    });
    let (send, forgotten) = mpsc::channel();
    let notifier = fs.mounted().notifier();
    thread::spawn(move || send.send(notifier.forget_name(InodeNo::ROOT, &name("pending"))));
    notify(&fs, |kernel| kernel.forget_all_names());
    assert!(
        forgotten.try_recv().is_err(),
        "a name of a directory with a pending lookup cannot be forgotten"
    );
    fs.tree.unblock("lookup");
    let forgotten = forgotten.recv_timeout(DEADLINE).expect("it ends now");
    forgotten.expect("the kernel takes it");
    within("lookup", move || lookup.join()).expect("the lookup ends");
    assert_eq!(asked(&fs, "lookup", stat(&known, 1)), 1);
}

#[test]
fn a_stored_byte_grows_what_the_kernel_knows() {
    let fs = Fs::new();
    let (path, ino) = (fs.path("file"), fs.tree.put("file", &[1; 4096]));
    read(&path)();
    stat(&path, 1)();
    fs.tree.put("file", &[2; 8192]);
    notify(&fs, move |kernel| kernel.forget_data(ino));
    let notifier = fs.mounted().notifier();
    within("store", move || notifier.store(ino, 8191, &[2])).expect("the kernel takes it");
    let file = File::open(&path).expect("it is there");
    let mut byte = [0];
    file.read_exact_at(&mut byte, 8191).expect("it has grown");
    assert_eq!(byte, [2]);
    assert_eq!(file.metadata().expect("it is there").len(), 8192);
}

/// K2: the kernel is told to forget while the tree looks.
#[test]
fn a_size_that_is_shown_can_be_mapped() {
    let fs = Fs::new();
    let (path, ino) = (fs.path("file"), fs.tree.put("file", &[1; 4096]));
    read(&path)();
    let file = Arc::new(File::open(&path).expect("it is there"));
    for pages in 2..6 {
        fs.tree.put("file", &vec![1; pages * 4096]);
        let look = look(&fs, &file, || {});
        notify(&fs, move |kernel| kernel.forget_attr(ino));
        fs.tree.unblock("getattr");
        check_mapped(&file, look, pages);
    }
}

/// K2: the kernel is told to forget when the reply has left, and who asked is late to take it up.
#[test]
fn a_size_that_is_being_shown_can_be_mapped() {
    let over = Arc::new(AtomicBool::new(false));
    let hogging = Arc::clone(&over);
    let hog = thread::spawn(move || {
        sys::run_on(0);
        while !hogging.load(Ordering::Relaxed) {}
    });
    for _ in 0..10 {
        // Anew: nothing was told lately.
        let fs = Fs::new();
        let (path, ino) = (fs.path("file"), fs.tree.put("file", &[1; 4096]));
        read(&path)();
        let file = Arc::new(File::open(&path).expect("it is there"));
        let (left, leaves) = mpsc::channel();
        *fs.tree.hold.lock().expect("no test panics under it") =
            Some(Box::new(move || Hold::new(Leaving(left.clone()))));
        fs.tree.put("file", &[1; 8192]);
        let look = look(&fs, &file, || sys::run_last_on(0));
        let notifier = fs.mounted().notifier();
        let forget = thread::spawn(move || {
            leaves.recv().expect("the look is answered");
            notifier.forget_attr(ino)
        });
        fs.tree.unblock("getattr");
        let forgotten = within("notification", move || forget.join()).expect("it ends");
        forgotten.expect("the kernel takes it");
        check_mapped(&file, look, 2);
    }
    over.store(true, Ordering::Relaxed);
    within("the hog ends", move || hog.join()).expect("it just spins");
}

/// Tells when a reply has left.
struct Leaving(mpsc::Sender<()>);

impl Drop for Leaving {
    fn drop(&mut self) {
        let _later_ones_are_not_listened_to = self.0.send(());
    }
}

/// Returns a thread whose look at the size of a file waits for the tree.
fn look(fs: &Fs, file: &Arc<File>, begin: fn()) -> JoinHandle<u64> {
    fs.tree.block("getattr");
    let before = fs.tree.began("getattr");
    let looking = Arc::clone(file);
    let look = thread::spawn(move || {
        begin();
        sys::size_asked_for(&looking).expect("it is there")
    });
    wait_until("the look is with the tree", || {
        fs.tree.began("getattr") > before
    });
    look
}

/// Checks that what was seen can be loaded through a mapping.
fn check_mapped(file: &Arc<File>, look: JoinHandle<u64>, pages: usize) {
    let seen = within("look", move || look.join()).expect("it ends");
    assert_eq!(seen, pages as u64 * 4096);
    let last = u32::try_from(seen - 4096).expect("small");
    let mapped = Arc::clone(file);
    within("load", move || sys::load_page(&mapped, last)).expect("the kernel has that size");
}

#[test]
fn notifications_about_nothing_succeed() {
    let fs = Fs::new();
    let nobody = InodeNo(4711);
    let all = move |kernel: &dyn Kernel| {
        kernel.forget_attr(nobody)?;
        kernel.forget_data(nobody)?;
        kernel.forget_name(nobody, &name("x"))?;
        kernel.forget_name(InodeNo::ROOT, &name("x"))?;
        kernel.forget_all_names()
    };
    notify(&fs, all);
    let notifier = fs.mounted().notifier();
    fs.mounted().unmount().expect("nobody uses it");
    within("notifications to nobody", move || all(&*notifier)).expect("nothing is left to do");
}

/// K1: the hold of a reply ends when the kernel has it. This one ends only when the caller has it; were it dropped
/// before the reply is sent that would never happen.
#[test]
fn a_hold_ends_after_its_reply() {
    struct Ends(mpsc::Receiver<()>, mpsc::Sender<bool>);
    impl Drop for Ends {
        fn drop(&mut self) {
            let replied = self.0.recv_timeout(DEADLINE).is_ok();
            // Nobody listens once the test has failed.
            self.1.send(replied).unwrap_or(());
        }
    }
    let fs = Fs::new();
    let (replied, reply_seen) = mpsc::channel();
    let (ended, hold_ended) = mpsc::channel();
    let hold = std::sync::Mutex::new(Some(Ends(reply_seen, ended)));
    let made = Arc::new(hold);
    *fs.tree.hold.lock().expect("nobody panics under it") = Some(Box::new(move || {
        let first = made.lock().expect("nobody panics under it").take();
        first.map_or_else(Hold::none, Hold::new)
    }));
    let root = fs.path("");
    within("stat", move || fs::metadata(root)).expect("the root is there");
    replied.send(()).expect("the hold waits");
    let in_order = hold_ended.recv_timeout(DEADLINE).expect("the hold ends");
    assert!(in_order, "the hold ended before its reply was sent");
}
