//! What programs expect of a file system, on real mounts of two nodes.
//!
//! Needs root and /dev/fuse.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;
use tests::{Cluster, with_deadline};

fn errno(result: std::io::Result<impl Sized>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn s7_posix_on_two_nodes() {
    let cluster = Cluster::up(2);
    let (one, two) = (cluster.path(1), cluster.path(2));
    names_and_paths(&one, &two);
    open_unlinked(&one, &two);
    rename_flags(&one, &two);
    sparse_and_large(&one, &two);
    directories(&one, &two);
    ownership(&cluster);
    statfs(&one);
    truncate_races_nothing(&one, &two);
}

fn names_and_paths(one: &Path, two: &Path) {
    let longest = "n".repeat(255);
    fs::write(one.join(&longest), "x").expect("a name of 255 bytes");
    assert_eq!(fs::read_to_string(two.join(&longest)).expect("read"), "x");
    assert_eq!(
        errno(fs::write(one.join("n".repeat(256)), "x")),
        Some(libc::ENAMETOOLONG)
    );
    let odd = std::ffi::OsStr::from_bytes(b"\xff\xfe new\nline");
    fs::write(one.join(odd), "x").expect("a name of any bytes");
    assert!(two.join(odd).exists());
    let mut deep = one.to_path_buf();
    let mut made = 0;
    while deep.as_os_str().len() < 3_000 {
        deep.push("d".repeat(200));
        fs::create_dir(&deep).expect("mkdir");
        made += 1;
    }
    assert!(made > 10);
    let too_long = one.join("p/".repeat(2_100));
    assert_eq!(errno(fs::metadata(too_long)), Some(libc::ENAMETOOLONG));
    assert_eq!(
        errno(fs::create_dir(one.join("proc"))),
        Some(libc::EEXIST),
        "a reserved name"
    );
}

fn open_unlinked(one: &Path, two: &Path) {
    for (maker, other) in [(one, two), (two, one)] {
        fs::write(maker.join("gone"), "still here").expect("write");
        let mut here = File::open(maker.join("gone")).expect("open");
        let mut there = OpenOptions::new()
            .read(true)
            .write(true)
            .open(other.join("gone"))
            .expect("open");
        fs::remove_file(other.join("gone")).expect("unlink");
        assert_eq!(errno(File::open(maker.join("gone"))), Some(libc::ENOENT));
        there
            .write_all_at(b"STILL", 0)
            .expect("write to an unlinked file");
        let mut content = String::new();
        here.read_to_string(&mut content)
            .expect("read an unlinked file");
        assert_eq!(content, "STILL here");
        assert_eq!(here.metadata().expect("fstat").nlink(), 0);
        content.clear();
        there
            .read_to_string(&mut content)
            .expect("read an unlinked file");
        assert_eq!(content, "STILL here");
    }
}

fn rename_flags(one: &Path, two: &Path) {
    fs::write(one.join("r1"), "1").expect("write");
    fs::write(one.join("r2"), "2").expect("write");
    let rename = |from: &str, to: &str, flags| {
        let (from, to) = (two.join(from), two.join(to));
        nix::fcntl::renameat2(
            nix::fcntl::AT_FDCWD,
            &from,
            nix::fcntl::AT_FDCWD,
            &to,
            flags,
        )
    };
    let no_replace = nix::fcntl::RenameFlags::RENAME_NOREPLACE;
    assert_eq!(
        rename("r1", "r2", no_replace),
        Err(nix::errno::Errno::EEXIST)
    );
    rename("r1", "r2", nix::fcntl::RenameFlags::RENAME_EXCHANGE).expect("exchange");
    assert_eq!(fs::read_to_string(one.join("r1")).expect("read"), "2");
    assert_eq!(fs::read_to_string(one.join("r2")).expect("read"), "1");
    fs::create_dir_all(one.join("above/below")).expect("mkdir");
    assert_eq!(
        errno(fs::rename(two.join("above"), two.join("above/below/x"))),
        Some(libc::EINVAL)
    );
    fs::create_dir(one.join("other")).expect("mkdir");
    assert_eq!(
        errno(fs::rename(two.join("other"), two.join("above"))),
        Some(libc::ENOTEMPTY)
    );
    assert_eq!(
        errno(fs::rename(two.join("other"), two.join("r1"))),
        Some(libc::ENOTDIR)
    );
}

fn sparse_and_large(one: &Path, two: &Path) {
    let file = File::create(one.join("sparse")).expect("create");
    let far = 1 << 40;
    file.write_all_at(b"end", far).expect("write far out");
    drop(file);
    let file = File::open(two.join("sparse")).expect("open");
    let attr = file.metadata().expect("fstat");
    assert_eq!(attr.len(), far + 3);
    assert!(
        attr.blocks() * 512 < 1 << 20,
        "{} blocks for three bytes",
        attr.blocks()
    );
    let mut bytes = [1_u8; 8];
    file.read_exact_at(&mut bytes, far - 5).expect("read");
    assert_eq!(&bytes, b"\0\0\0\0\0end");
    // Larger than a chunk, written in odd pieces, overwritten in the middle on the other node.
    let mut model: Vec<u8> = (0..9_000_001_u32)
        .map(|i| u8::try_from(i * 7 % 253).expect("a byte"))
        .collect();
    let mut file = File::create(one.join("large")).expect("create");
    for piece in model.chunks(70_001) {
        file.write_all(piece).expect("write");
    }
    drop(file);
    assert!(
        fs::read(two.join("large")).expect("read") == model,
        "the other node reads something else"
    );
    let file = OpenOptions::new()
        .write(true)
        .open(two.join("large"))
        .expect("open");
    file.write_all_at(&[0xAA; 12_345], 4_190_000)
        .expect("overwrite");
    model[4_190_000..4_202_345].fill(0xAA);
    assert!(
        fs::read(one.join("large")).expect("read") == model,
        "the overwrite is not seen"
    );
    file.set_len(5_000_000).expect("truncate");
    file.set_len(5_000_100).expect("grow");
    model.truncate(5_000_000);
    model.resize(5_000_100, 0);
    assert!(
        fs::read(one.join("large")).expect("read") == model,
        "the truncation is not seen"
    );
}

fn directories(one: &Path, two: &Path) {
    let dir = one.join("many");
    fs::create_dir(&dir).expect("mkdir");
    for i in 0..2_500 {
        fs::hard_link(one.join("r1"), dir.join(i.to_string())).expect("link");
    }
    assert_eq!(fs::metadata(two.join("r1")).expect("stat").nlink(), 2_501);
    // Removing while listing neither skips nor repeats what stays.
    let mut seen = std::collections::BTreeSet::new();
    for entry in fs::read_dir(two.join("many")).expect("readdir") {
        let name = entry
            .expect("entry")
            .file_name()
            .into_string()
            .expect("ASCII");
        let number: u32 = name.parse().expect("a number");
        assert!(seen.insert(number), "{number} is listed twice");
        if number % 2 == 1 {
            fs::remove_file(dir.join(name)).expect("unlink on the other node");
        }
    }
    assert!(
        (0..2_500).filter(|i| i % 2 == 0).all(|i| seen.contains(&i)),
        "an entry that stayed is missing"
    );
    assert_eq!(
        fs::read_dir(two.join("many")).expect("readdir").count(),
        1_250
    );
    assert_eq!(
        errno(fs::remove_dir(two.join("many"))),
        Some(libc::ENOTEMPTY)
    );
    fs::remove_dir_all(two.join("many")).expect("rm -r");
    assert!(!dir.exists());
    assert_eq!(fs::metadata(one.join("r1")).expect("stat").nlink(), 1);
}

/// The kernel checks permissions by attributes that are never stale.
fn ownership(cluster: &Cluster) {
    let one = cluster.path(1);
    fs::write(one.join("private"), "secret").expect("write");
    let as_nobody = |command: &str| {
        cluster.sh(
            2,
            &format!("setpriv --reuid 65534 --regid 65534 --clear-groups {command}"),
        )
    };
    assert!(as_nobody("cat /cluster/private").status.success());
    let mode = |mode| {
        fs::set_permissions(
            one.join("private"),
            std::os::unix::fs::PermissionsExt::from_mode(mode),
        )
    };
    mode(0o600).expect("chmod");
    assert!(
        !as_nobody("cat /cluster/private").status.success(),
        "readable after chmod 600 on the other node"
    );
    assert!(
        !as_nobody("touch /cluster/mine").status.success(),
        "the root directory is not theirs"
    );
    std::os::unix::fs::chown(one.join("private"), Some(65534), None).expect("chown");
    assert!(as_nobody("cat /cluster/private").status.success());
    fs::create_dir(one.join("open")).expect("mkdir");
    fs::set_permissions(
        one.join("open"),
        std::os::unix::fs::PermissionsExt::from_mode(0o1777),
    )
    .expect("chmod");
    assert!(as_nobody("touch /cluster/open/mine").status.success());
    let mine = fs::metadata(one.join("open/mine")).expect("stat");
    assert_eq!((mine.uid(), mine.gid()), (65534, 65534));
    fs::write(one.join("open/roots"), "").expect("write");
    assert!(
        !as_nobody("rm -f /cluster/open/roots").status.success(),
        "the sticky bit"
    );
    // The kernel leaves it to us to clear these (HANDLE_KILLPRIV_V2).
    let path = one.join("runs");
    let made = File::create(&path).expect("create");
    std::os::unix::fs::chown(&path, Some(65534), Some(65534)).expect("chown");
    for change in [
        "sh -c 'echo x >>/cluster/runs'",
        "truncate -s 9 /cluster/runs",
        "fallocate -l 99 /cluster/runs",
    ] {
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o6777))
            .expect("chmod");
        as_nobody(change).ok();
        let left = made.metadata().expect("fstat").mode();
        assert_eq!(left & 0o7777, 0o777, "after {change}");
    }
}

fn statfs(one: &Path) {
    let room = nix::sys::statvfs::statvfs(one).expect("statvfs");
    assert!(room.blocks() > 0 && room.blocks_free() <= room.blocks());
    assert_eq!(room.name_max(), 255);
}

fn truncate_races_nothing(one: &Path, two: &Path) {
    fs::write(one.join("t"), vec![b'x'; 50_000]).expect("write");
    let reader = {
        let path = two.join("t");
        std::thread::spawn(move || {
            for _ in 0..300 {
                let bytes = fs::read(&path).expect("read");
                // A read beside a truncation may see zeros up to the size it began with, as on a local file system:
                // the kernel copies by the size it knows. It never sees anything else.
                let kept = bytes.iter().take_while(|byte| **byte == b'x').count();
                assert!(kept > 40_000, "{kept} of {} bytes were kept", bytes.len());
                assert!(
                    bytes[kept..].iter().all(|byte| *byte == 0),
                    "bytes that were never written"
                );
            }
        })
    };
    for round in 0..300_u64 {
        OpenOptions::new()
            .write(true)
            .open(one.join("t"))
            .expect("open")
            .set_len(50_000 - round * 7)
            .expect("truncate");
    }
    with_deadline(
        "a reader beside a truncating writer",
        Duration::from_secs(60),
        move || {
            reader.join().expect("no stale bytes");
        },
    );
    let mut file = OpenOptions::new()
        .append(true)
        .open(two.join("t"))
        .expect("open");
    file.write_all(b"tail").expect("append");
    assert!(fs::read(one.join("t")).expect("read").ends_with(b"xtail"));
    assert_eq!(
        OpenOptions::new()
            .read(true)
            .open(one.join("none"))
            .err()
            .map(|e| e.kind()),
        Some(ErrorKind::NotFound)
    );
}
