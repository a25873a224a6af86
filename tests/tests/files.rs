//! Calls on files that ext4 answers, on real mounts of two nodes.
//!
//! Needs root and /dev/fuse.

use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open};
use nix::sys::stat::Mode;
use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
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

/// Sets an extended attribute.
#[allow(unsafe_code)]
fn set_xattr(path: &Path, name: &str, value: &[u8]) -> std::io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).expect("no NUL");
    let name = CString::new(name).expect("no NUL");
    let value = (value.as_ptr().cast(), value.len());
    // SAFETY: both strings end with NUL, the value is as long as said.
    let done = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.0, value.1, 0) };
    nix::errno::Errno::result(done)?;
    Ok(())
}

/// Sets an access or a default list: entries of tag, permissions and user.
fn set_acl(path: &Path, which: &str, entries: &[(u16, u16, u32)]) {
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, bits, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(bits.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    set_xattr(path, &format!("system.posix_acl_{which}"), &value).expect("set the access list");
}

const OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
const NOBODY: u32 = 65534;
const NO_ID: u32 = u32::MAX;

#[test]
fn access_lists_are_obeyed_on_every_node() {
    let cluster = Cluster::up(2);
    for (here, there) in [(1, 2), (2, 1)] {
        let dir = cluster.path(here).join(format!("acl{here}"));
        fs::create_dir(&dir).expect("mkdir");
        let file = dir.join("f");
        fs::write(&file, "secret").expect("write");
        let may = |node: u32, command: &str| {
            let command = format!(
                "setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups {command} /cluster/acl{here}/f"
            );
            cluster.sh(node, &command).status.success()
        };
        fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("chmod");
        assert!(!may(here, "cat") && !may(there, "cat"));
        let list = |bits, mask| {
            set_acl(
                &file,
                "access",
                &[
                    (OWNER, 6, NO_ID),
                    (USER, bits, NOBODY),
                    (GROUP, 0, NO_ID),
                    (MASK, mask, NO_ID),
                    (OTHER, 0, NO_ID),
                ],
            );
        };
        list(4, 4);
        assert!(may(here, "cat") && may(there, "cat"), "the user is named");
        assert!(!may(there, "truncate -s 0"), "for reading only");
        list(4, 0);
        assert!(!may(here, "cat") && !may(there, "cat"), "the mask hides it");
        // chmod sets the mask.
        fs::set_permissions(&file, Permissions::from_mode(0o640)).expect("chmod");
        assert!(may(here, "cat") && may(there, "cat"));
        list(0, 7);
        assert!(!may(here, "cat") && !may(there, "cat"), "taken back");
        fs::set_permissions(&file, Permissions::from_mode(0o666)).expect("chmod");
        assert!(!may(there, "cat"), "an entry goes before the others' bits");

        // The owning group has what its entry says, not the mask that stat shows.
        std::os::unix::fs::chown(&file, None, Some(NOBODY)).expect("chown");
        let entries = [
            (OWNER, 6, NO_ID),
            (USER, 7, 77),
            (GROUP, 0, NO_ID),
            (MASK, 7, NO_ID),
            (OTHER, 0, NO_ID),
        ];
        set_acl(&file, "access", &entries);
        assert_eq!(fs::metadata(&file).expect("stat").mode() & 0o777, 0o670);
        assert!(!may(here, "cat") && !may(there, "cat"));
    }
}

/// As chmod(2) does: who is not in a file's group cannot leave it running as that group.
#[test]
fn an_access_list_takes_setgid_away() {
    let cluster = Cluster::up(2);
    let (here, there) = (cluster.path(1).join("f"), cluster.path(2).join("f"));
    fs::write(&here, "").expect("write");
    std::os::unix::fs::chown(&here, Some(NOBODY), Some(77)).expect("chown");
    let set = |groups: &str| {
        fs::set_permissions(&here, Permissions::from_mode(0o2755)).expect("chmod");
        let script = format!(
            "python3 -c \"
import os, struct
os.setgroups([{groups}])
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
acl = [(1, 7, -1), (2, 7, 5), (4, 5, -1), (16, 7, -1), (32, 5, -1)]
value = struct.pack('<I', 2) + b''.join(struct.pack('<HHi', *entry) for entry in acl)
os.setxattr('/cluster/f', 'system.posix_acl_access', value)\""
        );
        cluster.sh(2, &script).ok();
        fs::metadata(&there).expect("stat").mode() & 0o7777
    };
    assert_eq!(set("77"), 0o2775);
    assert_eq!(set(""), 0o775);
}

#[test]
fn a_default_access_list_is_inherited_in_place_of_the_umask() {
    let cluster = Cluster::up(2);
    let dir = cluster.path(1).join("d");
    fs::create_dir(&dir).expect("mkdir");
    let entries = [
        (OWNER, 7, NO_ID),
        (USER, 6, NOBODY),
        (GROUP, 5, NO_ID),
        (MASK, 7, NO_ID),
        (OTHER, 4, NO_ID),
    ];
    set_acl(&dir, "default", &entries);
    let made = "umask 077; cd /cluster; touch d/f; mkdir d/sub; touch d/sub/g; touch h";
    cluster.sh(2, made).ok();
    let mode = |name: &str| {
        fs::metadata(cluster.path(1).join(name))
            .expect("stat")
            .mode()
            & 0o777
    };
    assert_eq!(
        (mode("d/f"), mode("d/sub"), mode("d/sub/g"), mode("h")),
        (0o664, 0o774, 0o664, 0o600)
    );
    let nobody = format!("setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups");
    let append = format!("{nobody} dd if=/dev/zero of=/cluster/d/f bs=1 count=1 conv=notrunc");
    cluster.sh(1, &append).ok();
    assert_eq!(fs::metadata(dir.join("f")).expect("stat").len(), 1);
}

#[test]
fn the_time_of_birth_stays() {
    let cluster = Cluster::up(2);
    let (one, two) = (cluster.path(1).join("f"), cluster.path(2).join("f"));
    fs::write(&one, "x").expect("write");
    let born = |path| fs::metadata(path).expect("statx").created().expect("known");
    let first = born(&one);
    fs::write(&two, "more").expect("write");
    fs::set_permissions(&two, Permissions::from_mode(0o600)).expect("chmod");
    assert_eq!((born(&one), born(&two)), (first, first));
    assert!(fs::metadata(&one).expect("stat").modified().expect("mtime") > first);
}
