//! What is shown.

use super::*;

#[tokio::test]
async fn devices_are_files_with_the_mode_and_owner_of_their_node() {
    let fake = Fake::new();
    for (name, device) in [("null", "c 1:3"), ("urandom", "c 1:9"), ("full", "c 1:7")] {
        let real = std::fs::metadata(format!("/dev/{name}")).expect("a device");
        for owner in [1, 2] {
            let attr = fake.find(owner, name).await.expect("there");
            let seen = (attr.kind, attr.mode, attr.uid, attr.gid, attr.size);
            assert_eq!(
                seen,
                (
                    FileKind::File,
                    real.mode() & 0o7777,
                    real.uid(),
                    real.gid(),
                    0
                )
            );
            assert_eq!(
                fake.xattr(owner, name, XATTR_DEVICE).await,
                Ok(device.into())
            );
            let why = fake.xattr(owner, name, XATTR_WHY).await;
            assert_eq!(why, Err(Errno(libc::ENODATA)), "it is carried");
        }
    }
}

#[tokio::test]
async fn listings_show_what_is_there() {
    use FileKind::{Dir, File, Symlink};
    let fake = Fake::new();
    let expected = [
        ("cdrom", Symlink),
        ("disk", Dir),
        ("fd", Symlink),
        ("file", File),
        ("pipe", File),
    ];
    let expected = BTreeMap::from(expected.map(|(name, kind)| (name.to_owned(), kind)));
    for (limit, plus) in [(1, true), (2, false), (100, true)] {
        assert_eq!(
            fake.ls(DevTree::root(NodeId(3)), limit, plus).await,
            expected
        );
    }
    assert_eq!(fake.tree.inodes.len(), 0, "all lookups were given back");
    let disk = fake.find(3, "disk").await.expect("there").ino;
    let below = fake.ls(disk, 10, true).await;
    assert_eq!(below, BTreeMap::from([("by-id".to_owned(), Dir)]));
    let real = fake.ls(DevTree::root(NodeId(2)), 7, true).await;
    assert_eq!(real.get("null"), Some(&File));
    assert!(!real.contains_key("shm"));
    assert_eq!(fake.find(2, "shm").await, Err(Errno::ENOENT));
}

#[tokio::test]
async fn links_stay_on_their_node() {
    let fake = Fake::new();
    let check = async |path, expected: &str| {
        let link = fake.find(3, path).await.expect("there");
        let target = fake.tree.readlink(USER, link.ino).await.expect("a link");
        assert_eq!(
            (target.as_ref(), link.size),
            (expected.as_bytes(), expected.len() as u64)
        );
    };
    check("cdrom", "sr0").await;
    check("disk/by-id/absolute", "../../sr0").await;
    check("disk/by-id/relative", "../../sr0").await;
    check("fd", "/proc/self/fd").await;
    // The kernel caches targets, so another target is another inode.
    let old = fake.find(3, "fd").await.expect("there").ino;
    std::fs::remove_file(fake.dir.path().join("fd")).expect("removed");
    symlink("elsewhere", fake.dir.path().join("fd")).expect("linked");
    assert_ne!(fake.find(3, "fd").await.expect("there").ino, old);
    check("fd", "elsewhere").await;
}

#[tokio::test]
async fn what_is_not_carried_says_why() {
    let fake = Fake::new();
    let refused = Err(Errno::ENOTSUP);
    for (owner, path, device, why) in [
        (
            2,
            "tty",
            Ok("c 5:0"),
            "the terminal of the process that opens it",
        ),
        (3, "pipe", Ok("p"), "a named pipe"),
        (3, "file", Err(Errno(libc::ENODATA)), "not a device"),
    ] {
        assert_eq!(
            fake.open(ROOT_USER, owner, path, RDONLY).await,
            refused,
            "{path}"
        );
        let told = fake.xattr(owner, path, XATTR_WHY).await.expect("told");
        assert!(told.contains(why), "{told}");
        let told = fake.xattr(owner, path, XATTR_DEVICE).await;
        assert_eq!(told, device.map(String::from), "{path}");
    }
    assert_eq!(
        fake.open(USER, 3, "disk", RDONLY).await,
        Err(Errno(libc::EISDIR))
    );
}
