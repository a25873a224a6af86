//! A mount with one process, whose kernel caches names and pages as it is allowed to.
//!
//! As in the model of `client::tests::mount`, with two differences that a world of one thread asks for: notifications
//! are carried out at once, and who would hold a lock meanwhile (the page of a READ, the directory of a LOOKUP) finds
//! instead that its answer is not to be kept.

use crate::client::Client;
use crate::error::Errno;
use crate::tree::{Caller, EntryReply, Kernel, NewMode, OpenFlags, Opened, Tree};
use bytes::Bytes;
use consistency::wire::meta::{Name, NewNode, RenameMode};
use consistency::{InodeNo, SessionId};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

const ROOT: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 1,
};
const DIR: InodeNo = InodeNo::ROOT;

#[derive(Debug)]
pub(super) struct Mount {
    client: Arc<Client>,
    kernel: Arc<Model>,
}

#[derive(Debug, Default)]
struct Model(Mutex<Cache>);

#[derive(Debug, Default)]
struct Cache {
    dentries: BTreeMap<(InodeNo, Name), Option<InodeNo>>,
    pages: BTreeMap<InodeNo, Bytes>,
    /// How often names and pages were forgotten.
    names_told: u64,
    pages_told: u64,
}

impl Model {
    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.0.lock().expect("no holder panics")
    }

    fn drop_page(&self, ino: InodeNo) {
        let mut cache = self.cache();
        cache.pages_told += 1;
        cache.pages.remove(&ino);
    }
}

impl Kernel for Model {
    fn forget_attr(&self, _: InodeNo) -> io::Result<()> {
        Ok(())
    }

    fn forget_data(&self, ino: InodeNo) -> io::Result<()> {
        self.drop_page(ino);
        Ok(())
    }

    fn forget_name(&self, dir: InodeNo, name: &Name) -> io::Result<()> {
        let mut cache = self.cache();
        cache.names_told += 1;
        cache.dentries.remove(&(dir, name.clone()));
        Ok(())
    }

    fn may_hold(&self, _: InodeNo) -> bool {
        false
    }

    fn forget_all_names(&self) -> io::Result<()> {
        let mut cache = self.cache();
        cache.names_told += 1;
        cache.dentries.clear();
        Ok(())
    }

    fn is_prompt(&self) -> bool {
        true
    }
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes().to_vec()).expect("a name")
}

const fn flags(flags: i32) -> OpenFlags {
    OpenFlags(flags)
}

/// The largest file.
const BYTES_MAX: u32 = 1 << 20;

impl Mount {
    pub(super) async fn new(client: Arc<Client>) -> Self {
        let kernel = Arc::new(Model::default());
        client.mounted(Arc::<Model>::clone(&kernel)).await;
        Self { client, kernel }
    }

    pub(super) async fn lookup(&self, path: &str) -> Result<InodeNo, Errno> {
        self.lookup_in(DIR, path).await
    }

    pub(super) async fn lookup_in(&self, dir: InodeNo, path: &str) -> Result<InodeNo, Errno> {
        let name = name(path);
        let told = {
            let cache = self.kernel.cache();
            if let Some(child) = cache.dentries.get(&(dir, name.clone())) {
                return child.ok_or(Errno::ENOENT);
            }
            cache.names_told
        };
        let reply = self.client.lookup(ROOT, dir, &name).await?;
        // The way to the kernel takes time, in which others run.
        tokio::task::yield_now().await;
        self.keep((dir, name), told, &reply);
        let child = reply.attr.as_ref().map(|attr| attr.ino);
        drop(reply.hold);
        child.ok_or(Errno::ENOENT)
    }

    fn keep(&self, name: (InodeNo, Name), told: u64, reply: &EntryReply) {
        let mut cache = self.kernel.cache();
        cache.dentries.remove(&name);
        if !reply.ttl.is_zero() && cache.names_told == told {
            let child = reply.attr.as_ref().map(|attr| attr.ino);
            cache.dentries.insert(name, child);
        }
    }

    pub(super) fn session(&self) -> Option<SessionId> {
        self.client.session()
    }

    async fn open(&self, dir: InodeNo, path: &str, how: i32) -> Result<(InodeNo, Opened), Errno> {
        let ino = self.lookup_in(dir, path).await?;
        let opened = self.client.open(ROOT, ino, flags(how)).await?;
        if !opened.keep_cache {
            self.kernel.drop_page(ino);
        }
        Ok((ino, opened))
    }

    pub(super) async fn read(&self, path: &str) -> Result<Bytes, Errno> {
        self.read_in(DIR, path).await
    }

    pub(super) async fn read_in(&self, dir: InodeNo, path: &str) -> Result<Bytes, Errno> {
        let (ino, opened) = self.open(dir, path, libc::O_RDONLY).await?;
        let data = self.read_page(ino, opened).await;
        self.client.release(ino, opened.fh).await;
        data
    }

    async fn read_page(&self, ino: InodeNo, opened: Opened) -> Result<Bytes, Errno> {
        let told = {
            let cache = self.kernel.cache();
            if let Some(page) = cache.pages.get(&ino).filter(|_| !opened.direct_io) {
                return Ok(page.clone());
            }
            cache.pages_told
        };
        let how = flags(libc::O_RDONLY);
        let read = self.client.read(ROOT, ino, opened.fh, 0, BYTES_MAX, how);
        let reply = read.await?;
        tokio::task::yield_now().await;
        let mut cache = self.kernel.cache();
        if !opened.direct_io && cache.pages_told == told {
            cache.pages.insert(ino, reply.data.clone());
        }
        drop(cache);
        drop(reply.hold);
        Ok(reply.data)
    }

    pub(super) async fn write(&self, path: &str, data: Bytes) -> Result<(), Errno> {
        self.write_in(DIR, path, data).await
    }

    pub(super) async fn write_in(
        &self,
        dir: InodeNo,
        path: &str,
        data: Bytes,
    ) -> Result<(), Errno> {
        let how = libc::O_WRONLY;
        let (ino, opened) = self.open(dir, path, how).await?;
        let len = data.len();
        let written = self
            .client
            .write(ROOT, ino, opened.fh, 0, data, flags(how), false, false)
            .await;
        self.kernel.drop_page(ino);
        self.client.release(ino, opened.fh).await;
        assert_eq!(written? as usize, len, "a short write");
        Ok(())
    }

    pub(super) async fn fsync(&self, path: &str) -> Result<(), Errno> {
        self.fsync_in(DIR, path).await
    }

    pub(super) async fn fsync_in(&self, dir: InodeNo, path: &str) -> Result<(), Errno> {
        let ino = self.lookup_in(dir, path).await?;
        self.client.fsync(ROOT, ino, 0, false).await
    }

    pub(super) async fn create(&self, path: &str) -> Result<InodeNo, Errno> {
        self.create_in(DIR, path).await
    }

    /// Makes a directory beside the files.
    pub(super) async fn mkdir(&self, path: &str) -> Result<InodeNo, Errno> {
        let name = name(path);
        let told = self.kernel.cache().names_told;
        let mode = NewMode::exactly(0o755);
        let made = self.client.make(ROOT, DIR, &name, NewNode::Dir, mode);
        let reply = made.await?;
        self.keep((DIR, name), told, &reply);
        drop(reply.hold);
        Ok(reply.attr.expect("made").ino)
    }

    pub(super) async fn fsyncdir(&self, dir: InodeNo) -> Result<(), Errno> {
        self.client.fsyncdir(ROOT, dir).await
    }

    pub(super) async fn create_in(&self, dir: InodeNo, path: &str) -> Result<InodeNo, Errno> {
        let name = name(path);
        let told = self.kernel.cache().names_told;
        let how = flags(libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL);
        let made = self
            .client
            .create(ROOT, dir, &name, NewMode::exactly(0o644), how);
        let (reply, opened) = made.await?;
        self.keep((dir, name), told, &reply);
        drop(reply.hold);
        let ino = reply.attr.expect("created").ino;
        self.client.release(ino, opened.fh).await;
        Ok(ino)
    }

    pub(super) async fn unlink(&self, path: &str) -> Result<(), Errno> {
        self.unlink_in(DIR, path).await
    }

    pub(super) async fn unlink_in(&self, dir: InodeNo, path: &str) -> Result<(), Errno> {
        self.lookup_in(dir, path).await?;
        let name = name(path);
        self.client.unlink(ROOT, dir, &name, false).await?;
        self.kernel.cache().dentries.remove(&(dir, name));
        Ok(())
    }

    pub(super) async fn rename(&self, path: &str, new: &str) -> Result<(), Errno> {
        self.lookup(path).await?;
        let (old, new) = (name(path), name(new));
        let told = self.kernel.cache().names_told;
        self.client
            .rename(ROOT, DIR, &old, DIR, &new, RenameMode::Replace)
            .await?;
        let mut cache = self.kernel.cache();
        cache.dentries.remove(&(DIR, new.clone()));
        if let Some(moved) = cache.dentries.remove(&(DIR, old))
            && cache.names_told == told
        {
            cache.dentries.insert((DIR, new), moved);
        }
        Ok(())
    }
}
