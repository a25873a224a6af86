//! Disks, and what is asked of drivers.

use super::*;
use crate::controls::DISK_CLAIMS;

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
    let claims = fake
        .tree
        .ioctl(ROOT_USER, root, fh, DISK_CLAIMS, Bytes::new(), 24);
    let claims = claims.await.expect("it is claimed");
    let told = [0_u64, 2].map(u64::to_ne_bytes).concat();
    assert_eq!(claims[8..], told, "no other node, opened twice");
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
