mod hostile;
mod old;
mod rights;

use super::wire::{At, FileHow, FileOpened, OpenFile, Reply, Request, What};
use super::*;
use crate::path::FilePath;
use crate::wire::User;
use bytes::Bytes;
use consistency::wire::encode;
use consistency::wire::meta::{Attr, FileKind, Name, NewNode, RenameMode};
use consistency::{InodeNo, NodeId};
use gfs::error::Errno;
use gfs::net::mem::MemNet;
use gfs::net::{Service, Transport, frames};
use gfs::tree::{Caller, Lock, NewMode, OpenFlags, SetAttrRequest, Tree};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use tempfile::TempDir;

const ROOT: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 0,
};
const USER: Caller = Caller {
    uid: 4321,
    gid: 4321,
    pid: 0,
};
const OWNER: NodeId = NodeId(2);

/// Two nodes; the second exports `open` and, as another export, `deep/er` of a directory.
struct Fake {
    net: MemNet,
    dir: TempDir,
    tree: ExportTree,
    agent: Arc<ExportAgent>,
}

impl Fake {
    fn new(read_only: bool) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        // Whoever the tests act for has to come here.
        let mode = |name: &str, mode| {
            let mode = fs::Permissions::from_mode(mode);
            fs::set_permissions(at(name), mode).expect("set");
        };
        mode("", 0o755);
        for made in ["open/sub", "deep/er", "secret"] {
            fs::create_dir_all(at(made)).expect("made");
        }
        mode("open", 0o777);
        fs::write(at("open/file"), "content").expect("written");
        fs::write(at("secret/file"), "secret").expect("written");
        fs::write(at("open/private"), "private").expect("written");
        mode("open/private", 0o600);
        symlink(at("secret"), at("open/absolute")).expect("linked");
        symlink("../secret", at("open/relative")).expect("linked");
        let net = MemNet::default();
        let join = |id, export: Vec<std::path::PathBuf>| {
            let (transport, router) = net.join(NodeId(id));
            let config = RootConfig { export, read_only };
            let agent = Arc::new(ExportAgent::new(NodeId(id), &config));
            register(&router, Arc::clone(&agent));
            (transport, agent)
        };
        let (transport, own) = join(1, Vec::new());
        let (_, agent) = join(2, vec![at("open"), at("deep/er")]);
        Self {
            tree: ExportTree::new(transport, own),
            net,
            dir,
            agent,
        }
    }

    fn at(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// Finds what lies at a path below the directory of the test.
    async fn find(&self, caller: Caller, path: &str) -> Result<Attr, Errno> {
        let dir = self.dir.path().strip_prefix("/").expect("absolute");
        let whole = dir.join(path);
        let mut found = self
            .tree
            .getattr(ROOT, ExportTree::root(OWNER), None)
            .await?;
        for name in whole.to_str().expect("text").split('/') {
            if !name.is_empty() {
                let name = Name::new(name.to_owned())?;
                let entry = self.tree.lookup(caller, found.attr.ino, &name).await?;
                found.attr = entry.attr.ok_or(Errno::ENOENT)?;
            }
        }
        Ok(found.attr)
    }

    async fn ino(&self, path: &str) -> InodeNo {
        self.find(ROOT, path).await.expect(path).ino
    }

    async fn open(&self, caller: Caller, path: &str, flags: i32) -> Result<u64, Errno> {
        let ino = self.find(ROOT, path).await?.ino;
        let opened = self.tree.open(caller, ino, OpenFlags(flags)).await?;
        assert!(opened.direct_io && !opened.noflush);
        Ok(opened.fh)
    }

    async fn read(&self, fh: u64, offset: u64, size: u32) -> Result<Bytes, Errno> {
        let read = self
            .tree
            .read(ROOT, InodeNo(0), fh, offset, size, OpenFlags(0));
        read.await.map(|reply| reply.data)
    }

    async fn write(&self, fh: u64, offset: u64, data: &str, flags: i32) -> Result<u32, Errno> {
        let data = Bytes::copy_from_slice(data.as_bytes());
        let flags = OpenFlags(flags);
        let written = self
            .tree
            .write(ROOT, InodeNo(0), fh, offset, data, flags, false, false);
        written.await
    }

    async fn ls(&self, ino: InodeNo, limit: usize) -> BTreeSet<String> {
        let (mut names, mut after) = (BTreeSet::new(), 0);
        loop {
            let page = self.tree.readdir(ROOT, ino, after, limit, true).await;
            let page = page.expect("listed");
            let Some(last) = page.entries.last() else {
                return names;
            };
            assert!(last.cookie >= 3 && page.entries.len() <= limit);
            after = last.cookie;
            for entry in page.entries {
                let name = String::from_utf8(entry.name.as_bytes().into()).expect("text");
                assert!(names.insert(name), "listed once");
            }
        }
    }
}

fn name(text: &str) -> Name {
    Name::new(text.to_owned()).expect("a name")
}

#[tokio::test]
async fn what_is_exported_is_shown_and_nothing_else() {
    let fake = Fake::new(false);
    let set = |names: &[&str]| BTreeSet::from_iter(names.iter().map(|name| (*name).to_owned()));
    for limit in [1, 2, 100] {
        let all = ["absolute", "file", "private", "relative", "sub"];
        assert_eq!(fake.ls(fake.ino("open").await, limit).await, set(&all));
        // On the way there only what leads to an export.
        assert_eq!(
            fake.ls(fake.ino("").await, limit).await,
            set(&["deep", "open"])
        );
        assert_eq!(fake.ls(fake.ino("deep").await, limit).await, set(&["er"]));
    }
    assert_eq!(fake.find(ROOT, "secret").await, Err(Errno::ENOENT));
    assert_eq!(
        fake.find(ROOT, "open/absolute/file").await,
        Err(Errno::ENOTDIR)
    );
    let top = ExportTree::root(NodeId(1));
    assert_eq!(fake.ls(top, 9).await, set(&[]), "nothing by default");
    let real = fs::metadata(fake.at("open/file")).expect("there");
    let seen = fake.find(ROOT, "open/file").await.expect("there");
    let expected = (real.mode() & 0o7777, real.uid(), real.nlink(), real.size());
    assert_eq!(
        (seen.mode, seen.uid, u64::from(seen.nlink), seen.size),
        expected
    );
    assert_eq!(seen.mtime.secs, real.mtime());
    // Made up is made up.
    let way = fake.ino("deep").await;
    let made = fake
        .tree
        .make(ROOT, way, &name("x"), NewNode::Dir, NewMode::exactly(0o755))
        .await;
    assert_eq!(made.expect_err("refused"), Errno(libc::EROFS));
    // What is mounted below is not shown.
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read");
    assert!(!mounts.contains(fake.dir.path().to_str().expect("text")));
}

#[tokio::test]
async fn names_and_inodes() {
    let fake = Fake::new(false);
    let open = fake.ino("open").await;
    let dir = fake
        .tree
        .make(
            ROOT,
            open,
            &name("d"),
            NewNode::Dir,
            NewMode::exactly(0o755),
        )
        .await;
    let dir = dir.expect("made").attr.expect("there").ino;
    let target = NewNode::Symlink(Bytes::from_static(b"../file"));
    let link = fake
        .tree
        .make(ROOT, dir, &name("l"), target, NewMode::exactly(0o777))
        .await;
    let link = link.expect("made").attr.expect("there").ino;
    assert_eq!(
        fake.tree.readlink(ROOT, link).await.expect("a link"),
        "../file"
    );
    let device = NewNode::Special {
        kind: FileKind::Char,
        rdev: 0x103,
    };
    let refused = fake
        .tree
        .make(ROOT, dir, &name("c"), device, NewMode::exactly(0o666))
        .await;
    assert_eq!(refused.expect_err("no devices"), Errno::EPERM);
    // A second name, and a move of what lies around.
    let file = fake.ino("open/file").await;
    let linked = fake.tree.link(ROOT, file, dir, &name("second")).await;
    let linked = linked.expect("linked").attr.expect("there");
    assert_eq!((linked.ino, linked.nlink), (file, 2));
    let replace = RenameMode::Replace;
    let moved = fake
        .tree
        .rename(ROOT, open, &name("d"), open, &name("e"), replace)
        .await;
    assert_eq!(moved, Ok(()));
    let seen = fake.tree.getattr(ROOT, link, None).await;
    assert!(seen.is_ok(), "known below a directory that was moved");
    assert_eq!(fake.find(ROOT, "open/d").await, Err(Errno::ENOENT));
    assert_eq!(fake.ino("open/e/l").await, link);
    // What is moved beside is found again, and never taken for another.
    fs::rename(fake.at("open/e"), fake.at("open/f")).expect("moved");
    let seen = fake.tree.getattr(ROOT, link, None).await;
    assert_eq!(seen.expect_err("not there"), Errno::ESTALE);
    fs::create_dir(fake.at("open/e")).expect("made");
    fs::write(fake.at("open/e/l"), "another").expect("written");
    let seen = fake.tree.getattr(ROOT, link, None).await;
    assert_eq!(seen.expect_err("another"), Errno::ESTALE);
    assert_eq!(fake.ino("open/f/l").await, link);
    assert!(fake.tree.getattr(ROOT, link, None).await.is_ok());
    // An open file outlives its names.
    let fh = fake
        .open(ROOT, "open/file", libc::O_RDWR)
        .await
        .expect("opened");
    for (dir, file) in [("open", "file"), ("open/f", "second")] {
        let dir = fake.ino(dir).await;
        let gone = fake.tree.unlink(ROOT, dir, &name(file), false).await;
        assert_eq!(gone, Ok(()));
    }
    let attr = fake
        .tree
        .getattr(ROOT, file, Some(fh))
        .await
        .expect("open")
        .attr;
    assert_eq!((attr.nlink, attr.size), (0, 7));
    assert_eq!(fake.read(fh, 0, 9).await.expect("read"), "content");
    fake.tree.release(file, fh).await;
    assert_eq!(fake.read(fh, 0, 9).await, Err(Errno(libc::EBADF)));
    let gone = fake.tree.getattr(ROOT, file, None).await;
    assert_eq!(gone.expect_err("closed"), Errno::ESTALE);
}

#[tokio::test]
async fn devices_are_without_effect() {
    let fake = Fake::new(false);
    let device = nix::sys::stat::makedev(1, 5);
    let kind = nix::sys::stat::SFlag::S_IFCHR;
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
    nix::sys::stat::mknod(&fake.at("open/zero"), kind, mode, device).expect("made");
    let attr = fake.find(ROOT, "open/zero").await.expect("there");
    assert_eq!((attr.kind, attr.rdev, attr.size), (FileKind::File, 0, 0));
    let device = fake
        .tree
        .getxattr(ROOT, attr.ino, &name("user.glu.device"))
        .await;
    assert_eq!(device.expect("told"), "c 1:5");
    let refused = fake.open(ROOT, "open/zero", libc::O_RDONLY).await;
    assert_eq!(refused, Err(Errno::EACCES));
    let open = fake.ino("open").await;
    let flags = OpenFlags(libc::O_RDWR | libc::O_CREAT);
    let mode = NewMode::exactly(0o644);
    let refused = fake
        .tree
        .create(ROOT, open, &name("zero"), mode, flags)
        .await;
    assert_eq!(refused.expect_err("a device"), Errno::EACCES);
    let flags = OpenFlags(libc::O_RDWR | libc::O_CREAT | libc::O_EXCL);
    let refused = fake
        .tree
        .create(ROOT, open, &name("file"), mode, flags)
        .await;
    assert_eq!(refused.expect_err("it is there"), Errno(libc::EEXIST));
}

#[tokio::test]
async fn locks_are_between_open_files() {
    let fake = Fake::new(false);
    let open = async || {
        fake.open(ROOT, "open/file", libc::O_RDWR)
            .await
            .expect("opened")
    };
    let (one, two) = (open().await, open().await);
    let lock = |kind| Lock {
        start: 2,
        end: 5,
        kind,
        pid: 1,
    };
    let set = |fh, kind, wait, flock| {
        fake.tree
            .setlk(ROOT, InodeNo(0), fh, 1, lock(kind), wait, flock)
    };
    let busy = Err(Errno(libc::EAGAIN));
    for flock in [false, true] {
        assert_eq!(set(one, libc::F_WRLCK, false, flock).await, Ok(()));
        assert_eq!(set(two, libc::F_RDLCK, false, flock).await, busy);
        if !flock {
            let found = fake
                .tree
                .getlk(ROOT, InodeNo(0), two, 1, lock(libc::F_RDLCK));
            let found = found.await.expect("asked").expect("in the way");
            assert_eq!((found.start, found.end, found.kind), (2, 5, libc::F_WRLCK));
        }
        let (waited, given) = tokio::join!(
            set(two, libc::F_WRLCK, true, flock),
            set(one, libc::F_UNLCK, false, flock)
        );
        assert_eq!((waited, given), (Ok(()), Ok(())));
        assert_eq!(set(one, libc::F_WRLCK, false, flock).await, busy);
        assert_eq!(set(two, libc::F_UNLCK, false, flock).await, Ok(()));
    }
    // A close gives back those of fcntl(2).
    assert_eq!(set(one, libc::F_WRLCK, false, false).await, Ok(()));
    assert_eq!(fake.tree.flush(ROOT, InodeNo(0), one, 1).await, Ok(()));
    assert_eq!(set(two, libc::F_WRLCK, false, false).await, Ok(()));
}

#[tokio::test]
async fn an_owner_that_is_down_is_an_error() {
    let fake = Fake::new(false);
    let fh = fake
        .open(ROOT, "open/file", libc::O_RDWR)
        .await
        .expect("opened");
    fake.net.cut(OWNER);
    assert_eq!(fake.find(ROOT, "open").await, Err(Errno::EIO));
    assert!(
        fake.tree
            .getattr(ROOT, ExportTree::root(OWNER), None)
            .await
            .is_ok()
    );
    fake.net.heal(OWNER);
    assert_eq!(fake.read(fh, 0, 9).await.expect("read"), "content");
}
