//! Calls on files that ext4 answers, on real mounts of two nodes.
//!
//! Needs root and /dev/fuse.

use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open};
use nix::sys::stat::Mode;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use tests::Cluster;

fn tmpfile(dir: &Path, flags: OFlag) -> File {
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | flags;
    let file = open(dir, flags, Mode::from_bits_truncate(0o640)).expect("O_TMPFILE");
    File::from(file)
}

fn link(file: &File, path: &Path) -> nix::Result<()> {
    let from = format!("/proc/self/fd/{}", file.as_raw_fd());
    nix::unistd::linkat(
        AT_FDCWD,
        from.as_str(),
        AT_FDCWD,
        path,
        AtFlags::AT_SYMLINK_FOLLOW,
    )
}

#[test]
fn a_file_made_without_a_name() {
    let cluster = Cluster::up(2);
    for (here, there) in [(1, 2), (2, 1)] {
        let (here, there) = (cluster.path(here), cluster.path(there));
        let dir = here.join("d");
        fs::create_dir(&dir).expect("mkdir");
        let mut file = tmpfile(&dir, OFlag::empty());
        file.write_all(b"content").expect("write");
        assert_eq!(file.metadata().expect("fstat").nlink(), 0);
        assert_eq!(fs::read_dir(there.join("d")).expect("readdir").count(), 0);
        file.sync_all().expect("fsync");
        link(&file, &dir.join("named")).expect("linkat");
        let attr = fs::metadata(there.join("d/named")).expect("stat");
        assert_eq!(
            (attr.nlink(), attr.mode() & 0o777, attr.len()),
            (1, 0o640, 7)
        );
        let read = fs::read(there.join("d/named"));
        assert_eq!(read.expect("read"), b"content");
        // Once it has had a name it is like any other.
        fs::remove_file(there.join("d/named")).expect("unlink");
        assert_eq!(
            link(&file, &dir.join("again")),
            Err(nix::errno::Errno::ENOENT)
        );
        file.write_all_at(b"still", 0)
            .expect("write without a name");
        let never = tmpfile(&dir, OFlag::O_EXCL);
        assert_eq!(link(&never, &dir.join("x")), Err(nix::errno::Errno::ENOENT));
        fs::remove_dir(&dir).expect("rmdir");
    }
}
