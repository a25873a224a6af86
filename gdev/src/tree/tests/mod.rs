mod access;
mod disks;
mod names;
mod terminals;

use super::*;
use crate::wire::{Device, Who};
use crate::{Grant, Rules};
use bytes::Bytes;
use gfs::net::Service;
use gfs::net::mem::{MemNet, MemTransport};
use gfs::tree::{SetAttrRequest, Tree, Wake};
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
