//! What the system calls do.

use super::memtree::name;
use super::{Fs, wait_until, within};
use consistency::InodeNo;
use gfs::tree::Kernel;
use nix::fcntl::{OFlag, RenameFlags, renameat2};
use nix::sys::stat::Mode;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Runs a test's system calls under a deadline.
fn check(run: impl FnOnce(&Path) + Send + 'static) {
    let fs = Fs::new();
    let root = fs.path("");
    within("system calls", move || run(&root));
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn content_is_written_read_and_cut() {
    check(|root| {
        let path = root.join("file");
        let big: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        fs::write(&path, &big).unwrap();
        assert!(fs::read(&path).unwrap() == big);
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"end").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 3_000_003);
        OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(5)
            .unwrap();
        assert_eq!(fs::read(&path).unwrap(), big[..5]);
        fs::write(&path, b"").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
    });
}

#[test]
fn the_time_of_birth_is_told() {
    check(|root| {
        let path = root.join("file");
        fs::write(&path, b"content").unwrap();
        let first = fs::metadata(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4711)).unwrap();
        let attr = fs::metadata(&path).unwrap();
        assert_eq!(attr.created().unwrap(), first.created().unwrap());
        assert_eq!((attr.mode(), attr.len()), (0o104_711, 7));
        assert_eq!((attr.nlink(), attr.mtime()), (1, first.mtime()));
    });
}

#[test]
fn names_are_made_moved_and_removed() {
    check(|root| {
        let (a, b, dir) = (root.join("a"), root.join("b"), root.join("dir"));
        fs::write(&a, b"a").unwrap();
        fs::create_dir(&dir).unwrap();
        assert_eq!(errno(fs::create_dir(&dir)), Some(libc::EEXIST));
        fs::rename(&a, dir.join("a")).unwrap();
        fs::hard_link(dir.join("a"), &b).unwrap();
        assert_eq!(fs::metadata(&b).unwrap().nlink(), 2);
        std::os::unix::fs::symlink("dir/a", root.join("link")).unwrap();
        assert_eq!(
            fs::read_link(root.join("link")).unwrap(),
            Path::new("dir/a")
        );
        assert_eq!(fs::read(root.join("link")).unwrap(), b"a");
        assert_eq!(errno(fs::remove_dir(&dir)), Some(libc::ENOTEMPTY));
        fs::remove_file(dir.join("a")).unwrap();
        fs::remove_dir(&dir).unwrap();
        assert_eq!(errno(fs::metadata(&dir)), Some(libc::ENOENT));
        nix::unistd::mkfifo(&root.join("fifo"), Mode::S_IRWXU).unwrap();
        assert!(
            fs::metadata(root.join("fifo"))
                .unwrap()
                .file_type()
                .is_fifo()
        );
    });
}

#[test]
fn renameat2_knows_two_flags() {
    check(|root| {
        let (a, b) = (root.join("a"), root.join("b"));
        fs::write(&a, b"a").unwrap();
        fs::write(&b, b"b").unwrap();
        let here = nix::fcntl::AT_FDCWD;
        let rename = |flags| renameat2(here, &a, here, &b, flags);
        assert_eq!(
            rename(RenameFlags::RENAME_NOREPLACE),
            Err(nix::errno::Errno::EEXIST)
        );
        rename(RenameFlags::RENAME_EXCHANGE).unwrap();
        assert_eq!(fs::read(&a).unwrap(), b"b");
        assert_eq!(
            rename(RenameFlags::RENAME_WHITEOUT),
            Err(nix::errno::Errno::EINVAL)
        );
    });
}

#[test]
fn attributes_are_shown_and_set() {
    check(|root| {
        let path = root.join("file");
        let file = File::create(&path).unwrap();
        file.set_permissions(fs::Permissions::from_mode(0o4751))
            .unwrap();
        std::os::unix::fs::chown(&path, Some(7), Some(8)).unwrap();
        let before_1970 = SystemTime::UNIX_EPOCH - Duration::from_nanos(1_500_000_001);
        file.set_modified(before_1970).unwrap();
        let meta = fs::metadata(&path).unwrap();
        assert_eq!(meta.mode(), libc::S_IFREG | 0o4751);
        assert_eq!((meta.uid(), meta.gid()), (7, 8));
        assert_eq!(meta.modified().unwrap(), before_1970);
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (-2, 499_999_999));
        let room = nix::sys::statvfs::statvfs(&path).unwrap();
        assert_eq!(room.blocks() * room.fragment_size(), 8 << 30);
        assert_eq!(room.blocks_available() * room.fragment_size(), 2 << 30);
        assert_eq!(room.name_max(), 255);
    });
}

#[test]
fn a_listing_has_every_name_once() {
    let fs = Fs::new();
    for n in 0..3000 {
        fs.tree.put(&format!("file{n}"), b"");
    }
    let root = fs.path("");
    let list = move || {
        let mut names: Vec<_> = fs::read_dir(&root)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let mut expected: Vec<_> = (0..3000).map(|n| format!("file{n}")).collect();
    expected.push("stream".to_owned());
    expected.sort();
    assert_eq!(within("readdir", list), expected);
    // The tree has counted what it listed, also what did not fit. Once the kernel has forgotten every name nothing is
    // left: it has given back what it got, the adapter the rest.
    let notifier = fs.mounted().notifier();
    within("notifications", move || {
        (0..3000).try_for_each(|n| notifier.forget_name(InodeNo::ROOT, &name(&format!("file{n}"))))
    })
    .expect("the kernel takes them");
    wait_until("every lookup is given back", || {
        (2..3002).all(|ino| fs.tree.lookups(InodeNo(ino)) == 0)
    });
}

#[test]
fn a_listing_shows_dots_and_parents() {
    check(|root| {
        fs::create_dir(root.join("dir")).unwrap();
        let mut dir =
            nix::dir::Dir::open(&root.join("dir"), OFlag::O_RDONLY, Mode::empty()).unwrap();
        let entries: Vec<_> = dir
            .iter()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().to_owned(), entry.ino()))
            .collect();
        let own = fs::metadata(root.join("dir")).unwrap().ino();
        assert_eq!(entries, [(c".".to_owned(), own), (c"..".to_owned(), 1)]);
    });
}

#[test]
fn names_have_255_bytes_at_most() {
    check(|root| {
        let (fits, long) = (root.join("x".repeat(255)), root.join("x".repeat(256)));
        fs::write(&fits, b"").unwrap();
        assert!(fs::metadata(&fits).is_ok());
        let too_long = Some(libc::ENAMETOOLONG);
        assert_eq!(errno(fs::write(&long, b"")), too_long);
        assert_eq!(errno(fs::metadata(&long)), too_long);
        assert_eq!(errno(fs::create_dir(&long)), too_long);
        assert_eq!(errno(fs::rename(&fits, &long)), too_long);
    });
}

#[test]
fn a_file_without_holes_is_data_to_its_end() {
    check(|root| {
        let path = root.join("file");
        fs::write(&path, b"12345").unwrap();
        let file = File::open(&path).unwrap();
        let seek = |offset, whence| nix::unistd::lseek(&file, offset, whence).map_err(|e| e as i32);
        use nix::unistd::Whence::{SeekData, SeekHole};
        assert_eq!(seek(2, SeekData), Ok(2));
        assert_eq!(seek(2, SeekHole), Ok(5));
        assert_eq!(seek(5, SeekData), Err(libc::ENXIO));
    });
}

#[test]
fn copies_and_extended_attributes_work() {
    check(|root| {
        fs::write(root.join("a"), vec![7; 100_000]).unwrap();
        fs::copy(root.join("a"), root.join("b")).unwrap();
        assert_eq!(fs::read(root.join("b")).unwrap(), vec![7; 100_000]);
        let a = root.join("a").display().to_string();
        let run = |program: &str, args: &[&str]| {
            let output = std::process::Command::new(program).args(args).output();
            output.unwrap_or_else(|error| panic!("{program}: {error}"))
        };
        // Python's os module has the calls themselves.
        let script = "import os,sys; p=sys.argv[1]\n\
            os.setxattr(p,'user.a',b'1234'); os.setxattr(p,'user.b',b'')\n\
            assert os.getxattr(p,'user.a')==b'1234' and os.getxattr(p,'user.b')==b''\n\
            assert sorted(os.listxattr(p))==['user.a','user.b'], os.listxattr(p)\n\
            os.removexattr(p,'user.a')\n\
            def no(f,*a):\n\
            \x20try: f(*a)\n\
            \x20except OSError as e: return e.errno\n\
            assert no(os.getxattr,p,'user.a')==61 and no(os.getxattr,p,'user.a/b')==61\n\
            assert no(os.setxattr,p,'user.b',b'',os.XATTR_CREATE)==17\n";
        let output = run("python3", &["-c", script, &a]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
    });
}

#[test]
fn no_file_is_a_terminal_and_none_is_nameless() {
    check(|root| {
        let path = root.join("file");
        fs::write(&path, b"").unwrap();
        let file = File::open(&path).unwrap();
        assert!(!io::IsTerminal::is_terminal(&file));
        let nameless = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .open(root);
        assert_eq!(errno(nameless), Some(libc::EOPNOTSUPP));
    });
}

#[test]
fn what_one_tree_does_not_do_is_asked_again() {
    let fs = Fs::new();
    let path = fs.path("file");
    let twice = within("fsync", move || {
        let file = File::create(path).unwrap();
        [errno(file.sync_all()), errno(file.sync_all())]
    });
    assert_eq!(twice, [Some(libc::EOPNOTSUPP); 2]);
    assert_eq!(fs.tree.began("fsync"), 2);
}

#[test]
fn a_panic_in_a_tree_is_an_error() {
    check(|root| {
        assert_eq!(errno(fs::metadata(root.join("panic"))), Some(libc::EIO));
        fs::write(root.join("file"), b"still there").unwrap();
        let mut file = File::open(root.join("file")).unwrap();
        file.seek(SeekFrom::Start(6)).unwrap();
        let mut rest = String::new();
        file.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "there");
    });
}
