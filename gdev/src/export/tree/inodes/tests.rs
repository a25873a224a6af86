use super::*;
use bytes::Bytes;
use consistency::{Timestamp, Version};

const OWNER: NodeId = NodeId(2);

fn path(text: &str) -> FilePath {
    FilePath::try_from(Bytes::copy_from_slice(text.as_bytes())).expect("a path")
}

fn stat(ino: u64) -> Stat {
    Stat {
        ident: Ident {
            dev: 5,
            ino,
            born: 9,
        },
        attr: Attr {
            ino: InodeNo(ino),
            kind: FileKind::File,
            mode: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: ino,
            blocks: 0,
            atime: Timestamp::default(),
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            btime: Timestamp::default(),
            version: Version(1),
        },
    }
}

/// Looks up files, by path and inode.
fn known(files: &[(&str, u64)]) -> Inodes {
    let mut inodes = Inodes::default();
    for (at, ino) in files {
        inodes.look_up(OWNER, path(at), &stat(*ino), 1, Instant::now());
    }
    inodes
}

/// Shows where inodes are.
fn places(inodes: &Inodes, inos: &[u64]) -> Vec<String> {
    inodes.len();
    let place = |ino: &u64| {
        let inode = inodes.get(number(OWNER, stat(*ino).ident)).expect("known");
        let paths = inode.places().map(|at| format!("{:?}", at.path));
        Vec::from_iter(paths).join(" ")
    };
    inos.iter().map(place).collect()
}

#[test]
fn one_file_has_one_number_and_many_paths() {
    let mut inodes = known(&[("a", 1), ("b", 1), ("c", 2)]);
    assert_eq!(places(&inodes, &[1, 2]), ["b a", "c"]);
    // Another file took its place.
    inodes.look_up(OWNER, path("b"), &stat(3), 1, Instant::now());
    assert_eq!(places(&inodes, &[1, 2, 3]), ["a", "c", "b"]);
    inodes.unlinked(OWNER, &path("a"));
    assert_eq!(places(&inodes, &[1]), [""]);
    let first = number(OWNER, stat(1).ident);
    inodes.forget(first, 1);
    assert_eq!(inodes.len(), 3);
    inodes.forget(first, 1);
    assert_eq!(inodes.len(), 2);
    // It comes back as what it was.
    let again = inodes.look_up(OWNER, path("a"), &stat(1), 1, Instant::now());
    assert_eq!(again, first);
    assert_eq!(owner_of_root(root(OWNER)), Some(OWNER));
    assert_eq!(owner_of_root(first), None);
}

#[test]
fn a_number_that_is_taken_is_not_given_again() {
    let mut inodes = Inodes::default();
    let taken = number(OWNER, stat(1).ident);
    let other = Inode {
        owner: OWNER,
        ident: stat(7).ident,
        kind: FileKind::File,
        rdev: 0,
        paths: Vec::new(),
        lookups: 1,
        fresh: None,
    };
    inodes.by_number.insert(taken, other);
    inodes.by_ident.insert((OWNER, stat(7).ident), taken);
    let given = inodes.look_up(OWNER, path("a"), &stat(1), 1, Instant::now());
    assert_ne!(given, taken);
    assert_eq!(given.0 >> SERIAL_BITS, taken.0 >> SERIAL_BITS);
}

#[test]
fn a_rename_takes_along_what_is_below() {
    let files = [
        ("d", 1),
        ("d/x", 2),
        ("d/e", 3),
        ("d/e/y", 4),
        ("dz", 5),
        ("e", 6),
        ("e/x", 7),
    ];
    let mut inodes = known(&files);
    inodes.renamed(OWNER, &path("d"), &path("e"), false);
    let all = [1, 2, 3, 4, 5, 6, 7];
    let expected = ["e", "e/x", "e/e", "e/e/y", "dz", "", ""];
    assert_eq!(places(&inodes, &all), expected);
    let mut inodes = known(&files);
    inodes.renamed(OWNER, &path("d"), &path("e"), true);
    let expected = ["e", "e/x", "e/e", "e/e/y", "dz", "d", "d/x"];
    assert_eq!(places(&inodes, &all), expected);
    // Of another node nothing has changed.
    let mut inodes = known(&files);
    inodes.renamed(NodeId(3), &path("d"), &path("e"), false);
    assert_eq!(places(&inodes, &[1]), ["d"]);
}

#[test]
fn attributes_of_a_lookup_serve_its_thread_once_and_soon() {
    let now = Instant::now();
    let look = |check: &dyn Fn(&mut Inodes, InodeNo) -> bool| {
        let mut inodes = Inodes::default();
        let number = inodes.look_up(OWNER, path("a"), &stat(1), 7, now);
        check(&mut inodes, number)
    };
    assert!(look(&|inodes, at| inodes.take_fresh(at, 7, now).is_some()));
    assert!(!look(&|inodes, at| inodes.take_fresh(at, 8, now).is_some()));
    let late = now + FRESH_MAX;
    assert!(!look(&|inodes, at| inodes
        .take_fresh(at, 7, late)
        .is_some()));
    assert!(!look(&|inodes, at| {
        let first = inodes.take_fresh(at, 7, now);
        first.is_none() || inodes.take_fresh(at, 7, now).is_some()
    }));
    assert!(!look(&|inodes, at| {
        inodes.changing(at);
        inodes.take_fresh(at, 7, now).is_some()
    }));
}
