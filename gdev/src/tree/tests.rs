use super::*;
use crate::wire::{Device, Who};
use crate::{Grant, Rules};
use gfs::net::Service;
use gfs::net::mem::{MemNet, MemTransport};
use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
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

fn open_rules() -> Rules {
    Rules {
        terminal: Grant::Write,
        block: Grant::Write,
        ..Rules::default()
    }
}

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
            let agent = Arc::new(DevAgent::new(NodeId(id), path, open_rules()));
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
        let data: Bytes = vec![b'x'; len].into();
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
async fn the_log_is_read_record_by_record() {
    let fake = Fake::new();
    let opened = fake.open(ROOT_USER, 2, "kmsg", RDONLY).await;
    if let Err(error) = std::fs::File::open("/dev/kmsg") {
        // Where nobody may read the log, nobody may read it from afar.
        assert_eq!(opened.err().map(|errno| errno.0), error.raw_os_error());
        return;
    }
    let fh = opened.expect("opened");
    let root = DevTree::root(NodeId(1));
    let flags = OpenFlags(RDONLY | libc::O_NONBLOCK);
    let read = async |offset, size| {
        let read = fake.tree.read(USER, root, fh, offset, size, flags);
        read.await.map(|reply| reply.data)
    };
    let first = read(0, 8192).await.expect("a record");
    let text = String::from_utf8_lossy(&first).into_owned();
    let head = text.split(';').next().expect("a head");
    assert!(head.matches(',').count() >= 3, "{text}");
    // At the beginning again; but a record that does not fit is not read.
    let mut position = first.len() as u64;
    assert_ne!(read(position, 8192).await, Ok(first.clone()));
    assert_eq!(read(0, 1).await, Err(Errno::EINVAL));
    assert_eq!(read(0, 8192).await.map(|again| again == first), Ok(true));
    for _ in 0..10_000_000 {
        match read(position, 8192).await {
            Ok(record) => position += record.len() as u64,
            Err(Errno(libc::EAGAIN)) => return,
            // Its writers have overtaken us.
            Err(Errno(libc::EPIPE)) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
    panic!("the log never ends");
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

#[tokio::test]
async fn a_node_that_is_down_is_told_so() {
    let fake = Fake::new();
    let fh = fake.open(USER, 2, "zero", RDONLY).await.expect("opened");
    fake.net.cut(NodeId(2));
    let down = Errno(libc::EHOSTDOWN);
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
    let agent = DevAgent::new(NodeId(1), "/dev", Rules::default());
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
        agent.answer(NodeId(2), request).await
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

#[tokio::test]
async fn a_terminal_is_waited_for() {
    let fake = Fake::new();
    let pty = nix::pty::openpty(None, None).expect("a terminal");
    let name = nix::unistd::ttyname(&pty.slave).expect("it has a name");
    let mut raw = nix::sys::termios::tcgetattr(&pty.slave).expect("termios");
    nix::sys::termios::cfmakeraw(&mut raw);
    let now = nix::sys::termios::SetArg::TCSANOW;
    nix::sys::termios::tcsetattr(&pty.slave, now, &raw).expect("set");
    let path = name.strip_prefix("/dev").expect("below /dev");
    let path = path.to_str().expect("text");
    let other = fake.open(USER, 2, path, libc::O_RDWR).await;
    assert_eq!(other, Err(Errno::EACCES), "its mode is for its user");
    let fh = fake.open(ROOT_USER, 2, path, libc::O_RDWR).await;
    let fh = fh.expect("opened");
    let root = DevTree::root(NodeId(1));
    let read = |flags| {
        let flags = OpenFlags(libc::O_RDWR | flags);
        fake.tree.read(ROOT_USER, root, fh, 0, 100, flags)
    };
    let type_in = |text: &str| {
        let typed = nix::unistd::write(&pty.master, text.as_bytes());
        assert_eq!(typed, Ok(text.len()));
    };
    let nothing = read(libc::O_NONBLOCK).await;
    assert_eq!(nothing.expect_err("nothing typed"), Errno(libc::EAGAIN));
    // Whoever gives up waiting takes nothing with him.
    for _ in 0..50 {
        let given_up = tokio::time::timeout(Duration::from_micros(300), read(0)).await;
        assert!(given_up.is_err());
    }
    let (reply, ()) = tokio::join!(read(0), async { type_in("typed") });
    assert_eq!(reply.expect("read").data, "typed");
    // Not even what comes just as he goes.
    let mut got = Vec::new();
    for number in 0..200_u8 {
        type_in(&char::from(b'a' + number % 26).to_string());
        let patience = Duration::from_micros(u64::from(number) * 2);
        if let Ok(reply) = tokio::time::timeout(patience, read(0)).await {
            got.extend(reply.expect("read").data);
        }
    }
    while let Ok(reply) = read(libc::O_NONBLOCK).await {
        got.extend(reply.data);
    }
    let typed = (0..200_u8).map(|number| b'a' + number % 26);
    assert_eq!(got, Vec::from_iter(typed));
    // What is written waits for room.
    let flood: Bytes = vec![b'x'; 100_000].into();
    let flags = OpenFlags(libc::O_RDWR);
    let write = |data| {
        fake.tree
            .write(ROOT_USER, root, fh, 0, data, flags, false, false)
    };
    let master = pty.master.try_clone().expect("a copy");
    let drain = tokio::task::spawn_blocking(move || {
        let (mut drained, mut bytes) = (0, [0; 4096]);
        while drained < 100_000 {
            drained += nix::unistd::read(&master, &mut bytes).expect("read");
        }
    });
    assert_eq!(write(flood).await, Ok(100_000));
    drain.await.expect("drained");
    // TCGETS2 tells that it is raw; TCGETS says nothing of its size.
    let ioctl = |command, size| {
        fake.tree
            .ioctl(ROOT_USER, root, fh, command, Bytes::new(), size)
    };
    let termios = ioctl(0x802c_542a, 44).await.expect("termios");
    assert_eq!((termios.len(), termios[12] & 0x0a), (44, 0));
    assert_eq!(ioctl(0x5401, 0).await, Err(Errno(libc::ENOTTY)));
    drop(pty);
    let hung_up = read(0).await;
    assert!(matches!(&hung_up, Err(Errno(libc::EIO))) || hung_up.expect("read").data.is_empty());
}

#[tokio::test]
async fn who_polls_is_woken() {
    let fake = Fake::new();
    let pty = nix::pty::openpty(None, None).expect("a terminal");
    let name = nix::unistd::ttyname(&pty.slave).expect("it has a name");
    let path = name.strip_prefix("/dev").expect("below /dev").to_owned();
    let path = path.to_str().expect("text");
    let fh = fake.open(ROOT_USER, 2, path, libc::O_RDWR).await;
    let fh = fh.expect("opened");
    let root = DevTree::root(NodeId(1));
    let readable = libc::POLLIN as u32;
    let poll = async |wake| fake.tree.poll(root, fh, wake).await.expect("polled");
    let arm = || {
        let (woken, told) = tokio::sync::oneshot::channel();
        (
            Wake::new(move || woken.send(()).expect("somebody waits")),
            told,
        )
    };
    assert_eq!(poll(None).await & readable, 0);
    let (wake, mut told) = arm();
    assert_eq!(poll(Some(wake)).await & readable, 0);
    // A terminal that stays writable wakes nobody.
    let early = tokio::time::timeout(Duration::from_millis(50), &mut told).await;
    assert!(early.is_err());
    assert_eq!(nix::unistd::write(&pty.master, b"line\n"), Ok(5));
    let patience = Duration::from_secs(10);
    let woken = tokio::time::timeout(patience, told).await;
    woken.expect("in time").expect("woken");
    assert_eq!(poll(None).await & readable, readable);
    // An edge is told, be it as readable as before.
    let (wake, told) = arm();
    assert_eq!(poll(Some(wake)).await & readable, readable);
    assert_eq!(nix::unistd::write(&pty.master, b"more\n"), Ok(5));
    let woken = tokio::time::timeout(patience, told).await;
    woken.expect("in time").expect("woken");
    // The disks of this world are always ready.
    let null = fake.open(USER, 2, "null", RDONLY).await.expect("opened");
    assert_eq!(fake.tree.poll(root, null, None).await, Ok(gfs::tree::READY));
}

#[test]
fn groups_are_in_the_status() {
    let status = "Name:\tx\nGid:\t5\t5\t5\t5\nGroups:\t4 24 1000 \nNStgid:\t7\n";
    assert_eq!(groups_of(status), [4, 24, 1000]);
    assert_eq!(groups_of("Groups:\t \n"), [0_u32; 0]);
    assert_eq!(groups_of(""), [0_u32; 0]);
}

/// A file as a disk of this machine.
struct Disk {
    backing: tempfile::NamedTempFile,
    device: String,
}

impl Disk {
    fn new(bytes: u64) -> Self {
        let backing = tempfile::NamedTempFile::new().expect("a file");
        backing.as_file().set_len(bytes).expect("room");
        let made = std::process::Command::new("losetup")
            .args(["--find", "--show"])
            .arg(backing.path())
            .output()
            .expect("losetup");
        assert!(made.status.success(), "{made:?}");
        let device = String::from_utf8(made.stdout).expect("text");
        let device = device.trim().strip_prefix("/dev/").expect("below /dev");
        Self {
            backing,
            device: device.to_owned(),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let device = format!("/dev/{}", self.device);
        let mut end = std::process::Command::new("losetup");
        drop(end.args(["-d", &device]).status());
    }
}

#[tokio::test]
async fn disks() {
    const BYTES: u64 = 1 << 20;
    let fake = Fake::new();
    let disk = Disk::new(BYTES);
    let at = disk.device.as_str();
    assert_eq!(fake.find(2, at).await.expect("there").size, BYTES);
    let refused = fake.open(USER, 2, at, libc::O_RDONLY).await;
    assert_eq!(refused, Err(Errno::EACCES));
    let fh = fake.open(ROOT_USER, 2, at, libc::O_RDWR).await;
    let fh = fh.expect("opened");
    let root = DevTree::root(NodeId(1));
    let flags = OpenFlags(libc::O_RDWR);
    let write = async |offset, data: Vec<u8>| {
        fake.tree
            .write(
                ROOT_USER,
                root,
                fh,
                offset,
                data.into(),
                flags,
                false,
                false,
            )
            .await
    };
    let read = async |offset, size| {
        let read = fake.tree.read(ROOT_USER, root, fh, offset, size, flags);
        read.await.map(|reply| reply.data.to_vec())
    };
    // Any alignment, and the end.
    let mut model = vec![0_u8; 1 << 20];
    for (offset, len) in [
        (0, 1),
        (511, 514),
        (4095, 8194),
        (777_777, 100_001),
        (1 << 19, 1 << 18),
    ] {
        let data: Vec<u8> = (0..len)
            .map(|byte: usize| (byte * 7 + offset).to_le_bytes()[0])
            .collect();
        model[offset..offset + len].copy_from_slice(&data);
        let written = write(offset as u64, data).await;
        assert_eq!(written.map(|taken| taken as usize), Ok(len));
    }
    assert_eq!(write(BYTES - 2, vec![9; 4]).await, Ok(2));
    model[(1 << 20) - 2..].fill(9);
    assert_eq!(write(BYTES, vec![9; 4]).await, Err(Errno(libc::ENOSPC)));
    assert_eq!(read(BYTES, 4).await, Ok(vec![]));
    assert_eq!(read(BYTES - 3, 9).await.map(|data| data.len()), Ok(3));
    // Zeroes and holes.
    let keep = libc::FALLOC_FL_KEEP_SIZE;
    let allocate = |mode, offset, len| fake.tree.fallocate(ROOT_USER, root, fh, offset, len, mode);
    let zero = allocate(libc::FALLOC_FL_ZERO_RANGE | keep, 4096, 4096).await;
    assert_eq!(zero, Ok(()));
    let punch = allocate(libc::FALLOC_FL_PUNCH_HOLE | keep, 1 << 19, 8192).await;
    assert_eq!(punch, Ok(()));
    model[4096..8192].fill(0);
    model[1 << 19..(1 << 19) + 8192].fill(0);
    for mode in [0, libc::FALLOC_FL_COLLAPSE_RANGE, -1] {
        assert_eq!(allocate(mode, 0, 4096).await, Err(Errno::ENOTSUP));
    }
    assert_eq!(
        allocate(libc::FALLOC_FL_ZERO_RANGE, u64::MAX, 1).await,
        Err(Errno::EINVAL)
    );
    assert_eq!(fake.tree.fsync(ROOT_USER, root, fh, true).await, Ok(()));
    assert!(
        std::fs::read(disk.backing.path()).expect("read") == model,
        "it is on its owner"
    );
    assert!(read(0, 1 << 20).await.expect("read") == model);
    // What it says of itself.
    let size = fake
        .tree
        .ioctl(ROOT_USER, root, fh, 0x8008_1272, Bytes::new(), 8);
    assert_eq!(
        size.await.expect("BLKGETSIZE64").as_ref(),
        BYTES.to_ne_bytes()
    );
    let seek = |offset, whence| fake.tree.lseek(ROOT_USER, root, fh, offset, whence);
    assert_eq!(seek(5, libc::SEEK_HOLE).await, Ok(BYTES));
    assert_eq!(seek(5, libc::SEEK_DATA).await, Ok(5));
    assert_eq!(seek(BYTES, libc::SEEK_DATA).await, Err(Errno(libc::ENXIO)));
    // This node may open it again, its own kernel may not claim it, and only one is alone.
    let busy = Err(Errno(libc::EBUSY));
    let alone = libc::O_RDWR | libc::O_EXCL;
    let again = fake.open(ROOT_USER, 2, at, alone).await.expect("opened");
    assert_eq!(fake.open(ROOT_USER, 2, at, alone).await, busy);
    let claim = |path: String| {
        std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_EXCL)
            .open(path)
    };
    let device = format!("/dev/{at}");
    let claimed = claim(device.clone()).map(drop);
    assert_eq!(claimed.expect_err("busy").raw_os_error(), Some(libc::EBUSY));
    for fh in [fh, again] {
        fake.tree.release(root, fh).await;
    }
    // It is given back as soon as its owner has heard of that.
    let end = std::time::Instant::now() + Duration::from_secs(10);
    let own = loop {
        match claim(device.clone()) {
            Ok(own) => break own,
            Err(error) => assert!(std::time::Instant::now() < end, "{error}"),
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(fake.open(ROOT_USER, 2, at, libc::O_WRONLY).await, busy);
    let root_user = Name::new(XATTR_WHY).expect("a name");
    let ino = fake.find(2, at).await.expect("there").ino;
    let why = fake.tree.getxattr(ROOT_USER, ino, &root_user).await;
    let why = String::from_utf8(why.expect("told").to_vec()).expect("text");
    assert!(why.starts_with("to write: it is in use"), "{why}");
    drop(own);
}

#[tokio::test]
async fn hostile_ioctls() {
    let fake = Fake::new();
    let pty = nix::pty::openpty(None, None).expect("a terminal");
    let name = nix::unistd::ttyname(&pty.slave).expect("it has a name");
    let path = name.strip_prefix("/dev").expect("below /dev");
    let path = path.to_str().expect("text");
    let disk = Disk::new(1 << 20);
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut dice = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for path in ["null", "urandom", path, &disk.device] {
        let fh = fake.open(ROOT_USER, 2, path, libc::O_RDWR).await;
        let fh = fh.expect("opened");
        let root = DevTree::root(NodeId(1));
        for round in 0..2_000_u32 {
            let [number, letter, a, b, low, high, one, two] = dice().to_le_bytes();
            // Half of them with the letters and sizes that drivers know.
            let command = match round % 2 {
                0 => u32::from_le_bytes([number, letter, a, b]),
                _ => {
                    let letter = b"T\x12REHWp"[usize::from(letter % 7)];
                    let size = [4, 8, 36, 40, 44, 24, low, high][usize::from(one % 8)];
                    u32::from_le_bytes([number, letter, size, a & 0xc0])
                }
            };
            let size = [0, 1, 4, 8, 36, 44, 4096, 0x3fff][usize::from(two % 8)];
            let input = vec![0xff_u8; size].into();
            let ioctl = fake.tree.ioctl(ROOT_USER, root, fh, command, input, 0x3fff);
            let told = match ioctl.await {
                Ok(output) => output.len() == command as usize >> 16 & 0x3fff || output.is_empty(),
                Err(Errno(errno)) => errno != libc::EIO && errno != libc::ENODEV,
            };
            assert!(told, "{path} {command:#x}");
        }
        fake.tree.release(root, fh).await;
        let again = fake.open(ROOT_USER, 2, path, libc::O_RDWR).await;
        again.expect("the agent goes on");
    }
}
