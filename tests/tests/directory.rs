//! Large directories that change while they are listed, on real mounts of two nodes.
//!
//! Needs root and /dev/fuse.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Instant;
use tests::Cluster;

const WRITERS: u32 = 16;
const NAMES_PER_FILE: u32 = 50_000;

#[test]
fn a_large_directory_is_listed_while_it_changes() {
    listed_while_it_changes(5_000);
}

#[test]
fn a_directory_is_filled_here_and_emptied_there() {
    filled_and_emptied(500);
}

#[test]
#[ignore = "many more files, LARGE_DIRECTORY of them: in make test-long"]
fn a_larger_directory_is_filled_here_and_emptied_there() {
    let files = std::env::var("LARGE_DIRECTORY").map(|n| n.parse().expect("a number"));
    filled_and_emptied(files.unwrap_or(100_000));
}

/// What is read ahead of who reads small files one after the other is no older than what is read (S1).
#[test]
fn small_files_are_read_ahead_and_never_old() {
    const FILES: u32 = 300;
    const CHANGED_AHEAD: u32 = 10;
    let cluster = Cluster::up(2);
    let (here, there) = (cluster.path(1).join("d"), cluster.path(2).join("d"));
    fs::create_dir(&here).expect("mkdir");
    let write = |round: u32, i: u32| {
        let text = format!("{round:04} {}", "x".repeat(1_000));
        fs::write(here.join(i.to_string()), text).expect("write");
    };
    let read = |i: u32| -> u32 {
        let text = fs::read_to_string(there.join(i.to_string())).expect("read");
        assert_eq!(text.len(), 1_005, "{i}");
        text[..4].parse().expect("a number")
    };
    (0..FILES).for_each(|i| write(0, i));
    for round in 1..4 {
        for i in 0..FILES {
            let last = if i < CHANGED_AHEAD { round - 1 } else { round };
            assert_eq!(read(i), last, "{i}");
            // It may have been read ahead.
            write(round, (i + CHANGED_AHEAD) % FILES);
        }
    }
}

#[test]
fn a_directory_is_filled_and_emptied_by_one_node() {
    filled_and_emptied_alone(2_000);
}

#[test]
#[ignore = "many more files, LARGE_DIRECTORY of them: in make test-long"]
fn a_larger_directory_is_filled_and_emptied_by_one_node() {
    let files = std::env::var("LARGE_DIRECTORY").map(|n| n.parse().expect("a number"));
    filled_and_emptied_alone(files.unwrap_or(200_000));
}

/// One node makes files and removes all but the last few, of which the other one has some open; that lists what is left.
fn filled_and_emptied_alone(files: u32) {
    const LEFT: u32 = 10;
    let cluster = Cluster::up(2);
    let (here, there) = (cluster.path(1).join("d"), cluster.path(2).join("d"));
    fs::create_dir(&here).expect("mkdir");
    let timed = |what: &str, began: Instant| println!("{files} {what} in {:?}", began.elapsed());
    let began = Instant::now();
    for i in 0..files {
        File::create(here.join(i.to_string())).expect("create");
    }
    timed("made", began);
    let began = Instant::now();
    for i in 0..files - LEFT {
        fs::remove_file(here.join(i.to_string())).expect("unlink");
    }
    timed("removed", began);
    let expected: BTreeSet<String> = (files - LEFT..files).map(|i| i.to_string()).collect();
    assert_eq!(list(&there), expected);
    let open = File::open(there.join((files - 1).to_string())).expect("open");
    for i in files - LEFT..files {
        fs::remove_file(here.join(i.to_string())).expect("unlink");
        assert!(!there.join(i.to_string()).exists(), "{i} is still seen");
    }
    assert_eq!(open.metadata().expect("fstat").nlink(), 0);
    fs::remove_dir(&here).expect("rmdir");
    assert!(!there.exists());
    fs::create_dir(&there).expect("the name is free");
}

/// One node makes files, another one lists them, looks at some and removes them, if they are not too many.
fn filled_and_emptied(files: u32) {
    const LOOKED_AT: u32 = 500;
    /// One name of a directory goes at a time, each with a sync of the log.
    const REMOVED_MAX: u32 = 10_000;
    let removed = files.min(REMOVED_MAX);
    let cluster = Cluster::up(2);
    let (here, there) = (cluster.path(1).join("d"), cluster.path(2).join("d"));
    fs::create_dir(&here).expect("mkdir");
    let timed =
        |what: &str, began: Instant| println!("{files} files: {what} in {:?}", began.elapsed());
    let began = Instant::now();
    for i in 0..files {
        File::create(here.join(i.to_string())).expect("create");
    }
    timed("made", began);
    let names = list(&there);
    assert_eq!(names.len(), files as usize);
    assert!((0..files).all(|i| names.contains(&i.to_string())));
    let began = Instant::now();
    for i in (0..files).step_by((files / LOOKED_AT).max(1) as usize) {
        assert!(
            there
                .join(i.to_string())
                .metadata()
                .expect("stat")
                .is_file()
        );
    }
    timed("500 looked at", began);
    let began = Instant::now();
    let next = AtomicU32::new(0);
    thread::scope(|scope| {
        for _ in 0..WRITERS {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= removed {
                        return;
                    }
                    fs::remove_file(there.join(i.to_string())).expect("unlink");
                }
            });
        }
    });
    timed(&format!("{removed} removed"), began);
    assert_eq!(list(&here).len(), (files - removed) as usize);
    if removed == files {
        fs::remove_dir(&here).expect("rmdir");
        assert!(!there.exists());
    }
}

#[test]
#[ignore = "many more names, LARGE_DIRECTORY of them: in make test-long"]
fn a_larger_directory_is_listed_while_it_changes() {
    let entries = std::env::var("LARGE_DIRECTORY").map(|n| n.parse().expect("a number"));
    listed_while_it_changes(entries.unwrap_or(100_000));
}

/// Every entry that is there the whole time is seen exactly once, whatever another node makes and removes.
fn listed_while_it_changes(entries: u32) {
    let cluster = Cluster::up(2);
    let (one, two) = (cluster.path(1), cluster.path(2));
    fs::create_dir(one.join("d")).expect("mkdir");
    File::create(one.join("f")).expect("create");
    let began = Instant::now();
    fill(&one, entries);
    println!("{entries} names: made in {:?}", began.elapsed());
    let stop = AtomicBool::new(false);
    let listings = thread::scope(|scope| {
        let changes = scope.spawn(|| change(&two, &stop));
        // On the node that made the names, and on the one that is changing them.
        let listings = [&one, &two, &one].map(|root| list(&root.join("d")));
        stop.store(true, Ordering::Relaxed);
        let changed = changes.join().expect("no panic");
        assert!(changed > 0, "nothing changed beside the listings");
        listings
    });
    for listing in listings {
        let stayed = listing.iter().filter(|name| !name.starts_with("other"));
        let stayed: BTreeSet<_> = stayed.collect();
        for i in 0..entries {
            assert!(stayed.contains(&i.to_string()), "{i} is missing");
        }
        assert_eq!(stayed.len(), entries as usize);
    }
    // What is left is what is there, on both.
    let (here, there) = (list(&one.join("d")), list(&two.join("d")));
    assert_eq!(here, there);
    assert_eq!(here.len(), entries as usize);
}

/// Makes names in `d`, several at a time so that they share the log's syncs.
fn fill(root: &Path, entries: u32) {
    let next = AtomicU32::new(0);
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let next = &next;
            scope.spawn(move || {
                let mut made = 0;
                let mut target = root.join("f");
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= entries {
                        return;
                    }
                    // A file has 65,000 names at most.
                    if made % NAMES_PER_FILE == 0 {
                        target = root.join(format!("f{writer}-{made}"));
                        File::create(&target).expect("create");
                    }
                    made += 1;
                    fs::hard_link(&target, root.join("d").join(i.to_string())).expect("link");
                }
            });
        }
    });
}

/// Makes and removes names until told to stop; returns how many.
fn change(root: &Path, stop: &AtomicBool) -> u32 {
    let mut changed = 0;
    while !stop.load(Ordering::Relaxed) {
        let names: Vec<_> = (0..10)
            .map(|i| root.join(format!("d/other{changed}-{i}")))
            .collect();
        for name in &names {
            fs::hard_link(root.join("f"), name).expect("link");
        }
        for name in &names {
            fs::remove_file(name).expect("unlink");
        }
        changed += 1;
    }
    changed
}

/// Lists a directory; a name that comes twice is an error.
fn list(dir: &Path) -> BTreeSet<String> {
    let began = Instant::now();
    let mut seen = BTreeSet::new();
    for entry in fs::read_dir(dir).expect("opendir") {
        let name = entry.expect("readdir").file_name();
        let name = name.into_string().expect("ASCII");
        assert!(!seen.contains(&name), "{name} is listed twice");
        seen.insert(name);
    }
    println!("{} names: listed in {:?}", seen.len(), began.elapsed());
    seen
}
