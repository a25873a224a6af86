use super::*;
use gfs::net::Service;
use gfs::net::mem::{MemNet, MemTransport};
use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use tempfile::TempDir;

const ROOT_USER: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 1,
};
const USER: Caller = Caller {
    uid: 9,
    gid: 9,
    pid: 1,
};
const RDONLY: i32 = libc::O_RDONLY;

/// Three nodes; the first two show the real `/dev`, the third a directory of files, links and pipes.
struct Fake {
    net: MemNet,
    dir: TempDir,
    tree: DevTree,
}

impl Fake {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("disk/by-id")).expect("made");
        std::fs::write(at("file"), "x").expect("written");
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(at("file"), private).expect("set");
        symlink("/dev/sr0", at("cdrom")).expect("linked");
        symlink("../../sr0", at("disk/by-id/relative")).expect("linked");
        symlink("/dev/sr0", at("disk/by-id/absolute")).expect("linked");
        symlink("/proc/self/fd", at("fd")).expect("linked");
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRUSR).expect("made");
        let net = MemNet::default();
        let join = |id, path: &std::path::Path| {
            let (transport, router) = net.join(NodeId(id));
            let agent = Arc::new(DevAgent::new(NodeId(id), path));
            crate::register(&router, Arc::clone(&agent));
            (transport, agent)
        };
        let (transport, agent) = join(1, "/dev".as_ref());
        join(2, "/dev".as_ref());
        join(3, dir.path());
        let transport: Arc<MemTransport> = transport;
        Self {
            net,
            tree: DevTree::new(transport, agent),
            dir,
        }
    }

    async fn find(&self, owner: u16, path: &str) -> Result<Attr, Errno> {
        let mut found = self
            .tree
            .getattr(USER, DevTree::root(NodeId(owner)), None)
            .await?
            .attr;
        for name in path.split('/') {
            let name = Name::new(name.to_owned())?;
            let entry = self.tree.lookup(USER, found.ino, &name).await?;
            found = entry.attr.ok_or(Errno::ENOENT)?;
        }
        Ok(found)
    }

    async fn open(&self, caller: Caller, owner: u16, path: &str, flags: i32) -> Result<u64, Errno> {
        let ino = self.find(owner, path).await?.ino;
        let opened = self.tree.open(caller, ino, OpenFlags(flags)).await?;
        assert!(opened.direct_io);
        Ok(opened.fh)
    }

    async fn read(&self, fh: u64, size: u32) -> Result<Bytes, Errno> {
        let root = DevTree::root(NodeId(1));
        let reply = self
            .tree
            .read(USER, root, fh, 0, size, OpenFlags(RDONLY))
            .await?;
        Ok(reply.data)
    }

    async fn write(&self, caller: Caller, path: &str, len: usize) -> Result<u32, Errno> {
        let fh = self.open(caller, 2, path, libc::O_WRONLY).await?;
        let root = DevTree::root(NodeId(1));
        let data = vec![b'x'; len].into();
        let flags = OpenFlags(libc::O_WRONLY);
        self.tree
            .write(caller, root, fh, 0, data, flags, false, false)
            .await
    }

    async fn xattr(&self, owner: u16, path: &str, name: &'static [u8]) -> Result<String, Errno> {
        let ino = self.find(owner, path).await?.ino;
        let value = self.tree.getxattr(USER, ino, &Name::new(name)?).await?;
        let listed = self.tree.listxattr(USER, ino).await?;
        assert!(listed.iter().any(|listed| listed.as_bytes() == name));
        Ok(String::from_utf8(value.to_vec()).expect("text"))
    }

    /// Lists page by page.
    async fn ls(&self, ino: InodeNo, limit: usize, plus: bool) -> BTreeMap<String, FileKind> {
        let (mut names, mut after) = (BTreeMap::new(), 0);
        loop {
            let page = self
                .tree
                .readdir(USER, ino, after, limit, plus)
                .await
                .expect("listed");
            let Some(last) = page.entries.last() else {
                return names;
            };
            assert!(last.cookie > after && page.entries.len() <= limit);
            after = last.cookie;
            for entry in page.entries {
                let name = String::from_utf8(entry.name.as_bytes().into()).expect("text");
                assert_eq!(names.insert(name, entry.kind), None, "listed once");
                if let Some(entry) = entry.entry {
                    self.tree.forget(entry.attr.expect("there").ino, 1);
                }
            }
        }
    }
}

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
async fn reads() {
    let fake = Fake::new();
    for owner in [1, 2] {
        let read = async |name, size| {
            let fh = fake.open(USER, owner, name, RDONLY).await.expect("opened");
            let data = fake.read(fh, size).await.expect("read");
            fake.tree.release(DevTree::root(NodeId(1)), fh).await;
            assert_eq!(fake.read(fh, 1).await, Err(Errno(libc::EBADF)));
            data
        };
        assert_eq!(read("null", 100).await, "");
        assert_eq!(read("zero", 1 << 20).await, vec![0; 1 << 20]);
        assert_eq!(read("zero", 2 << 20).await.len(), 1 << 20);
        assert_eq!(read("full", 10).await, vec![0; 10]);
        let random = [read("urandom", 4096).await, read("random", 4096).await];
        assert!(random.iter().all(|data| data.len() == 4096) && random[0] != random[1]);
    }
}

#[tokio::test]
async fn writes() {
    let fake = Fake::new();
    assert_eq!(fake.write(USER, "null", 1 << 20).await, Ok(1 << 20));
    assert_eq!(
        fake.write(USER, "null", (1 << 20) + 5).await,
        Ok(1 << 20),
        "the rest comes again"
    );
    assert_eq!(fake.write(USER, "zero", 5).await, Ok(5));
    assert_eq!(fake.write(USER, "random", 5).await, Ok(5));
    assert_eq!(fake.write(USER, "full", 5).await, Err(Errno(libc::ENOSPC)));
    // Its mode lets root only.
    assert_eq!(fake.write(USER, "kmsg", 5).await, Err(Errno::EACCES));
    let null = fake.find(2, "null").await.expect("there").ino;
    let truncate = SetAttrRequest {
        size: Some(0),
        ..SetAttrRequest::default()
    };
    assert!(fake.tree.setattr(USER, null, truncate).await.is_ok());
    let chmod = SetAttrRequest {
        mode: Some(0),
        ..SetAttrRequest::default()
    };
    let refused = fake.tree.setattr(ROOT_USER, null, chmod).await;
    assert_eq!(refused.expect_err("it is the owner's"), Errno::EPERM);
}

#[tokio::test]
async fn the_log_comes_to_an_end() {
    let fake = Fake::new();
    let local = std::fs::File::open("/dev/kmsg").map(drop);
    let opened = fake.open(ROOT_USER, 2, "kmsg", RDONLY).await;
    let fh = match (local, opened) {
        (Ok(()), Ok(fh)) => fh,
        // Where nobody may read the log, nobody may read it from afar.
        (local, opened) => {
            assert_eq!(
                local
                    .err()
                    .and_then(|error| error.raw_os_error())
                    .map(Errno),
                opened.err()
            );
            return;
        }
    };
    let first = fake.read(fh, 8192).await.expect("read");
    if !first.is_empty() {
        let text = String::from_utf8_lossy(&first).into_owned();
        assert!(
            text.ends_with('\n')
                && text.split(';').next().expect("a head").matches(',').count() >= 3,
            "{text}"
        );
    }
    for _ in 0..10_000_000 {
        if fake.read(fh, 100).await.expect("read").is_empty() {
            return;
        }
    }
    panic!("the log never ends");
}

#[test]
fn records_are_read_one_by_one() {
    let records = Mutex::new(vec![Bytes::from("second"), Bytes::from("first")]);
    let read = |size| next_record(&records, size);
    assert_eq!(
        ["fir", "st", "second", ""].map(|_| read(3)),
        ["fir", "st", "sec", "ond"]
    );
    assert_eq!(read(3), "");
}

#[tokio::test]
async fn what_is_not_carried_says_why() {
    let fake = Fake::new();
    let refused = Err(Errno::ENOTSUP);
    for (owner, path, device, why) in [
        (2, "tty", Ok("c 5:0"), "not carried to other nodes yet"),
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

#[tokio::test]
async fn a_node_that_is_down_is_told_so() {
    let fake = Fake::new();
    let fh = fake.open(USER, 2, "zero", RDONLY).await.expect("opened");
    fake.net.cut(NodeId(2));
    let down = Errno(libc::EHOSTDOWN);
    assert_eq!(fake.read(fh, 1).await, Err(down));
    assert_eq!(fake.find(2, "null").await, Err(down));
    let root = DevTree::root(NodeId(2));
    let listed = fake.tree.readdir(USER, root, 0, 10, true).await;
    assert_eq!(listed.expect_err("nobody answers"), down);
    assert!(fake.tree.getattr(USER, root, None).await.is_ok());
    assert!(fake.find(1, "null").await.is_ok());
    fake.net.heal(NodeId(2));
    assert_eq!(fake.read(fh, 1).await.expect("read"), vec![0]);
}

#[tokio::test]
async fn hostile_requests_are_refused() {
    let agent = DevAgent::new(NodeId(1), "/dev");
    for body in [
        &b""[..],
        b"\0\x02..",
        b"\0\x0b/etc/passwd",
        b"\0\x09null/../x",
        b"\x63",
    ] {
        let reply = agent.call(NodeId(2), Bytes::copy_from_slice(body)).await;
        assert_eq!(reply, None, "{body:?}");
    }
    let path = |path: &'static str| DevPath::try_from(Bytes::from(path)).expect("a path");
    let device = |minor| Device {
        block: false,
        major: 1,
        minor,
    };
    let read = async |name, minor, size| {
        let request = DevRequest::Read {
            path: path(name),
            device: device(minor),
            who: Who { uid: 0, gid: 0 },
            size,
        };
        agent.answer(request).await
    };
    assert_eq!(read("zero", 5, 1).await, DevReply::Data(vec![0].into()));
    assert_eq!(
        read("zero", 5, (1 << 20) + 1).await,
        DevReply::Failed(libc::EINVAL)
    );
    // Another device than the one that is there.
    assert_eq!(read("zero", 3, 1).await, DevReply::Failed(libc::ESTALE));
    // Links are not followed, be it to a device.
    assert_eq!(read("fd/0", 3, 1).await, DevReply::Failed(libc::ENOENT));
    assert_eq!(read("stdin", 3, 1).await, DevReply::Failed(libc::ESTALE));
}
