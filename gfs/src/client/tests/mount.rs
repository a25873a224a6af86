//! A model of the kernel's side of a mount: dentries, attributes and pages, cached as the time-outs allow and
//! forgotten when told. A READ holds its page's lock, which a `forget_data` waits for. Looking into a directory holds
//! its lock shared, changing its names and `forget_name` hold it alone: so a LOOKUP's reply never crosses a change of
//! the same mount on its way into the cache.

use super::cluster::Faults;
use crate::client::Client;
use crate::error::Errno;
use crate::tree::{
    Caller, EntryReply, FileAt, Kernel, NewMode, OpenFlags, Opened, SetAttrRequest, Tree,
};
use bytes::Bytes;
use consistency::InodeNo;
use consistency::wire::meta::{Attr, Name, NewNode, RenameMode};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use tokio::sync::{Notify, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

pub(super) const ROOT: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 1,
};

/// A mount of one node.
#[derive(Clone, Debug)]
pub(super) struct Mount {
    pub(super) client: Arc<Client>,
    pub(super) kernel: Arc<Model>,
    pub(super) faults: Arc<Faults>,
}

#[derive(Debug, Default)]
pub(super) struct Model {
    cache: Mutex<Cache>,
    page_free: Condvar,
    page_free_async: Notify,
    /// Pages stored into through a mapping, and how they are written back.
    dirty: Mutex<HashMap<InodeNo, (Mount, Bytes)>>,
    /// Of the directories. Two are locked in the order of their inodes.
    dir_locks: Mutex<HashMap<InodeNo, Arc<RwLock<()>>>>,
    /// `forget_name` waits as long as this is set.
    pub(super) stuck_names: AtomicBool,
    deaf: Mutex<Option<Deaf>>,
}

/// What a broken kernel keeps although it was told to forget it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deaf {
    Attributes,
    Data,
    Names,
}

#[derive(Debug, Default)]
pub(super) struct Cache {
    epoch: u64,
    pub(super) dentries: HashMap<(InodeNo, Name), (Option<InodeNo>, u64)>,
    pub(super) attrs: HashMap<InodeNo, Attr>,
    /// The first MiB of a file.
    pub(super) pages: HashMap<InodeNo, Bytes>,
    /// Pages being read: locked.
    locked: BTreeSet<InodeNo>,
    /// Local changes of an inode: a reply to an older GETATTR is not cached.
    changes: HashMap<InodeNo, u64>,
    pub(super) told: Vec<String>,
}

impl Cache {
    fn changed(&mut self, ino: InodeNo) {
        *self.changes.entry(ino).or_default() += 1;
        self.attrs.remove(&ino);
    }
}

impl Model {
    pub(super) fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().expect("no holder panics")
    }

    /// Returns what the kernel was told since the last call.
    pub(super) fn told(&self) -> Vec<String> {
        std::mem::take(&mut self.cache().told)
    }

    pub(super) fn be_deaf(&self, deaf: Option<Deaf>) {
        *self.deaf.lock().expect("no holder panics") = deaf;
    }

    fn hears(&self, of: Deaf) -> bool {
        *self.deaf.lock().expect("no holder panics") != Some(of)
    }

    fn dir_lock(&self, dir: InodeNo) -> Arc<RwLock<()>> {
        let mut locks = self.dir_locks.lock().expect("no holder panics");
        Arc::clone(locks.entry(dir).or_default())
    }

    async fn look_into(&self, dir: InodeNo) -> OwnedRwLockReadGuard<()> {
        self.dir_lock(dir).read_owned().await
    }

    async fn change_names(&self, dir: InodeNo) -> OwnedRwLockWriteGuard<()> {
        self.dir_lock(dir).write_owned().await
    }

    async fn lock_page(&self, ino: InodeNo) -> Option<Bytes> {
        loop {
            let mut free = std::pin::pin!(self.page_free_async.notified());
            free.as_mut().enable();
            {
                let mut cache = self.cache();
                if let Some(page) = cache.pages.get(&ino) {
                    return Some(page.clone());
                }
                if cache.locked.insert(ino) {
                    return None;
                }
            }
            free.await;
        }
    }

    fn unlock_page(&self, ino: InodeNo, page: Option<Bytes>) {
        let mut cache = self.cache();
        cache.locked.remove(&ino);
        if let Some(page) = page {
            cache.pages.insert(ino, page);
        }
        drop(cache);
        self.page_free.notify_all();
        self.page_free_async.notify_waiters();
    }

    /// A program stores into a mapped page.
    pub(super) fn dirty_page(&self, mount: &Mount, ino: InodeNo, data: Bytes) {
        let mut dirty = self.dirty.lock().expect("no holder panics");
        dirty.insert(ino, (mount.clone(), data));
    }

    /// Writes a dirty page back, as an invalidation does.
    fn write_back(&self, ino: InodeNo) {
        let dirty = self.dirty.lock().expect("no holder panics").remove(&ino);
        if let Some((mount, data)) = dirty {
            let how = flags(libc::O_RDWR);
            let write = mount.client.write(ROOT, ino, 0, 0, data, how, true, false);
            futures::executor::block_on(write).expect("taken while the file is owned");
        }
    }

    /// A direct write invalidates the pages it covers.
    async fn drop_page(&self, ino: InodeNo) {
        loop {
            let mut free = std::pin::pin!(self.page_free_async.notified());
            free.as_mut().enable();
            {
                let mut cache = self.cache();
                if !cache.locked.contains(&ino) {
                    cache.pages.remove(&ino);
                    return;
                }
            }
            free.await;
        }
    }
}

impl Kernel for Model {
    fn forget_attr(&self, ino: InodeNo) -> io::Result<()> {
        let mut cache = self.cache();
        cache.told.push(format!("attr {ino}"));
        if self.hears(Deaf::Attributes) {
            cache.attrs.remove(&ino);
        }
        Ok(())
    }

    fn forget_data(&self, ino: InodeNo) -> io::Result<()> {
        let mut cache = self.cache();
        while cache.locked.contains(&ino) {
            cache = self.page_free.wait(cache).expect("no holder panics");
        }
        drop(cache);
        self.write_back(ino);
        let mut cache = self.cache();
        cache.told.push(format!("data {ino}"));
        if self.hears(Deaf::Attributes) {
            cache.attrs.remove(&ino);
        }
        if self.hears(Deaf::Data) {
            cache.pages.remove(&ino);
        }
        Ok(())
    }

    fn forget_name(&self, parent: InodeNo, name: &Name) -> io::Result<()> {
        while self.stuck_names.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        let lock = self.dir_lock(parent);
        let _alone = lock.blocking_write();
        let mut cache = self.cache();
        cache.told.push(format!("name {parent} {name:?}"));
        if self.hears(Deaf::Names) {
            cache.dentries.remove(&(parent, name.clone()));
        }
        Ok(())
    }

    /// It does not tell looks, which hold a directory as well here, from changes.
    fn may_hold(&self, _: InodeNo) -> bool {
        true
    }

    fn forget_all_names(&self) -> io::Result<()> {
        let mut cache = self.cache();
        cache.told.push("epoch".into());
        if self.hears(Deaf::Names) {
            cache.epoch += 1;
        }
        Ok(())
    }
}

pub(super) fn name(text: &str) -> Name {
    Name::new(text.as_bytes().to_vec()).expect("a name")
}

fn flags(flags: i32) -> OpenFlags {
    OpenFlags(flags)
}

impl Mount {
    pub(super) async fn new(client: Client, faults: Arc<Faults>) -> Self {
        let kernel = Arc::new(Model::default());
        client.mounted(kernel.clone()).await;
        Self {
            client: Arc::new(client),
            kernel,
            faults,
        }
    }

    /// Puts a name into the dentry cache as the reply allows, in place of what was there.
    fn keep_entry(&self, dir: InodeNo, name: &Name, epoch: u64, reply: &EntryReply) {
        let mut cache = self.kernel.cache();
        cache.dentries.remove(&(dir, name.clone()));
        if !reply.ttl.is_zero() {
            let child = reply.attr.as_ref().map(|attr| attr.ino);
            cache.dentries.insert((dir, name.clone()), (child, epoch));
        }
    }

    fn epoch(&self) -> u64 {
        self.kernel.cache().epoch
    }

    /// Returns what the dentry cache says.
    fn dentry(&self, dir: InodeNo, name: &Name) -> Option<Option<InodeNo>> {
        let cache = self.kernel.cache();
        let &(child, epoch) = cache.dentries.get(&(dir, name.clone()))?;
        (epoch == cache.epoch).then_some(child)
    }

    async fn lookup(&self, dir: InodeNo, name: &Name) -> Result<Option<InodeNo>, Errno> {
        if let Some(child) = self.dentry(dir, name) {
            return Ok(child);
        }
        let _looking = self.kernel.look_into(dir).await;
        if let Some(child) = self.dentry(dir, name) {
            return Ok(child);
        }
        let epoch = self.epoch();
        let reply = self.client.lookup(ROOT, dir, name).await?;
        // The way to the kernel takes time, in which others run.
        tokio::task::yield_now().await;
        self.keep_entry(dir, name, epoch, &reply);
        let child = reply.attr.as_ref().map(|attr| attr.ino);
        drop(reply.hold);
        Ok(child)
    }

    /// Walks a path like `a/b`.
    pub(super) async fn walk(&self, path: &str) -> Result<InodeNo, Errno> {
        let mut at = InodeNo::ROOT;
        for component in path.split('/').filter(|component| !component.is_empty()) {
            let child = self.lookup(at, &name(component)).await?;
            at = child.ok_or(Errno::ENOENT)?;
        }
        Ok(at)
    }

    async fn parent(&self, path: &str) -> Result<(InodeNo, Name), Errno> {
        let (dir, last) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.walk(dir).await?, name(last)))
    }

    pub(super) async fn stat(&self, path: &str) -> Result<Attr, Errno> {
        self.fstat(self.walk(path).await?).await
    }

    pub(super) async fn fstat(&self, ino: InodeNo) -> Result<Attr, Errno> {
        let before = {
            let cache = self.kernel.cache();
            if let Some(attr) = cache.attrs.get(&ino) {
                return Ok(attr.clone());
            }
            cache.changes.get(&ino).copied()
        };
        let reply = self.client.getattr(ROOT, ino, None).await?;
        if !reply.ttl.is_zero() {
            let mut cache = self.kernel.cache();
            if cache.changes.get(&ino).copied() == before {
                cache.attrs.insert(ino, reply.attr.clone());
            }
        }
        Ok(reply.attr)
    }

    pub(super) async fn exists(&self, path: &str) -> Result<bool, Errno> {
        match self.walk(path).await {
            Ok(_) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn open(&self, path: &str, how: i32) -> Result<(InodeNo, Opened), Errno> {
        let ino = self.walk(path).await?;
        let opened = self.client.open(ROOT, ino, flags(how)).await?;
        Ok((ino, opened))
    }

    /// Reads a file as a process does through the page cache.
    pub(super) async fn read(&self, path: &str) -> Result<Bytes, Errno> {
        let (ino, opened) = self.open(path, libc::O_RDONLY).await?;
        let data = self.read_page(ino, opened.fh).await;
        self.client.release(ino, opened.fh).await;
        data
    }

    pub(super) async fn read_page(&self, ino: InodeNo, fh: u64) -> Result<Bytes, Errno> {
        if let Some(page) = self.kernel.lock_page(ino).await {
            return Ok(page);
        }
        let how = flags(libc::O_RDONLY);
        match self.client.read(ROOT, ino, fh, 0, 1 << 20, how).await {
            Ok(reply) => {
                self.kernel.unlock_page(ino, Some(reply.data.clone()));
                drop(reply.hold);
                Ok(reply.data)
            }
            Err(error) => {
                self.kernel.unlock_page(ino, None);
                Err(error)
            }
        }
    }

    /// Reads past the page cache.
    pub(super) async fn read_at(&self, path: &str, at: u64, len: u32) -> Result<Bytes, Errno> {
        let (ino, opened) = self.open(path, libc::O_RDONLY).await?;
        let how = flags(libc::O_RDONLY);
        let read = self.client.read(ROOT, ino, opened.fh, at, len, how).await;
        self.client.release(ino, opened.fh).await;
        Ok(read?.data)
    }

    pub(super) async fn write(&self, path: &str, at: u64, data: &[u8]) -> Result<(), Errno> {
        self.write_with(path, libc::O_WRONLY, at, data).await
    }

    pub(super) async fn append(&self, path: &str, data: &[u8]) -> Result<(), Errno> {
        // The kernel may be wrong about the end.
        self.write_with(path, libc::O_WRONLY | libc::O_APPEND, 0, data)
            .await
    }

    pub(super) async fn write_with(
        &self,
        path: &str,
        how: i32,
        at: u64,
        data: &[u8],
    ) -> Result<(), Errno> {
        let (ino, opened) = self.open(path, how).await?;
        let written = self.pwrite(ino, opened.fh, how, at, data).await;
        self.client.release(ino, opened.fh).await;
        written
    }

    pub(super) async fn pwrite(
        &self,
        ino: InodeNo,
        fh: u64,
        how: i32,
        at: u64,
        data: &[u8],
    ) -> Result<(), Errno> {
        let data = Bytes::copy_from_slice(data);
        let len = data.len();
        let written = self
            .client
            .write(ROOT, ino, fh, at, data, flags(how), false, false)
            .await?;
        assert_eq!(written as usize, len, "short write");
        self.kernel.drop_page(ino).await;
        self.kernel.cache().changed(ino);
        Ok(())
    }

    /// Copies with one call.
    pub(super) async fn copy(
        &self,
        (from, source_at): (&str, u64),
        (to, target_at): (&str, u64),
        len: u64,
    ) -> Result<u64, Errno> {
        let (source, read) = self.open(from, libc::O_RDONLY).await?;
        let (target, write) = self.open(to, libc::O_WRONLY).await?;
        let at = |ino, handle, offset| FileAt {
            ino,
            handle,
            offset,
        };
        let source_at = at(source, read.fh, source_at);
        let target_at = at(target, write.fh, target_at);
        let copied = self
            .client
            .copy_file_range(ROOT, source_at, target_at, len)
            .await;
        self.kernel.drop_page(target).await;
        self.kernel.cache().changed(target);
        self.client.release(source, read.fh).await;
        self.client.release(target, write.fh).await;
        copied
    }

    /// Copies a whole range as the kernel does: what the tree does not do itself is read and written.
    pub(super) async fn copy_all(
        &self,
        (from, source_at): (&str, u64),
        (to, target_at): (&str, u64),
        len: u64,
    ) -> Result<u64, Errno> {
        let mut done = 0;
        while done < len {
            let source = (from, source_at + done);
            let target = (to, target_at + done);
            let copied = match self.copy(source, target, len - done).await {
                Err(Errno::ENOTSUP) => {
                    let some = (len - done).min(1 << 20) as u32;
                    let data = self.read_at(from, source.1, some).await?;
                    self.write(to, target.1, &data).await?;
                    data.len() as u64
                }
                copied => copied?,
            };
            if copied == 0 {
                break;
            }
            done += copied;
        }
        Ok(done)
    }

    pub(super) async fn create(&self, path: &str) -> Result<InodeNo, Errno> {
        let (dir, name) = self.parent(path).await?;
        let _alone = self.kernel.change_names(dir).await;
        let epoch = self.epoch();
        let how = flags(libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL);
        let (reply, opened) = self
            .client
            .create(ROOT, dir, &name, NewMode::exactly(0o644), how)
            .await?;
        self.keep_entry(dir, &name, epoch, &reply);
        self.kernel.cache().changed(dir);
        drop(reply.hold);
        let ino = reply.attr.expect("created").ino;
        self.client.release(ino, opened.fh).await;
        Ok(ino)
    }

    pub(super) async fn mkdir(&self, path: &str) -> Result<InodeNo, Errno> {
        let (dir, name) = self.parent(path).await?;
        let _alone = self.kernel.change_names(dir).await;
        let epoch = self.epoch();
        let made = self
            .client
            .make(ROOT, dir, &name, NewNode::Dir, NewMode::exactly(0o755));
        let reply = made.await?;
        self.keep_entry(dir, &name, epoch, &reply);
        self.kernel.cache().changed(dir);
        drop(reply.hold);
        Ok(reply.attr.expect("made").ino)
    }

    pub(super) async fn link(&self, path: &str, new: &str) -> Result<(), Errno> {
        let ino = self.walk(path).await?;
        let (dir, name) = self.parent(new).await?;
        let _alone = self.kernel.change_names(dir).await;
        let epoch = self.epoch();
        let reply = self.client.link(ROOT, ino, dir, &name).await?;
        self.keep_entry(dir, &name, epoch, &reply);
        self.kernel.cache().changed(dir);
        self.kernel.cache().changed(ino);
        Ok(())
    }

    pub(super) async fn unlink(&self, path: &str) -> Result<(), Errno> {
        let ino = self.walk(path).await?;
        let (dir, name) = self.parent(path).await?;
        let _alone = self.kernel.change_names(dir).await;
        self.client.unlink(ROOT, dir, &name, false).await?;
        let mut cache = self.kernel.cache();
        cache.dentries.remove(&(dir, name));
        cache.changed(dir);
        cache.changed(ino);
        Ok(())
    }

    pub(super) async fn rename(&self, path: &str, new: &str) -> Result<(), Errno> {
        let ino = self.walk(path).await?;
        let (from, old_name) = self.parent(path).await?;
        let (to, new_name) = self.parent(new).await?;
        let _alone = self.kernel.change_names(from.min(to)).await;
        let _other = match from == to {
            true => None,
            false => Some(self.kernel.change_names(from.max(to)).await),
        };
        let how = RenameMode::Replace;
        self.client
            .rename(ROOT, from, &old_name, to, &new_name, how)
            .await?;
        let mut cache = self.kernel.cache();
        cache.dentries.remove(&(to, new_name.clone()));
        if let Some(moved) = cache.dentries.remove(&(from, old_name)) {
            cache.dentries.insert((to, new_name), moved);
        }
        cache.changed(from);
        cache.changed(to);
        cache.changed(ino);
        Ok(())
    }

    pub(super) async fn setattr(&self, path: &str, set: SetAttrRequest) -> Result<Attr, Errno> {
        let ino = self.walk(path).await?;
        let reply = self.client.setattr(ROOT, ino, set).await?;
        if set.size.is_some() {
            self.kernel.drop_page(ino).await;
        }
        let mut cache = self.kernel.cache();
        cache.changed(ino);
        Ok(reply.attr)
    }

    pub(super) async fn truncate(&self, path: &str, size: u64) -> Result<Attr, Errno> {
        let set = SetAttrRequest {
            size: Some(size),
            ..SetAttrRequest::default()
        };
        self.setattr(path, set).await
    }

    pub(super) async fn chown(&self, path: &str, uid: u32) -> Result<Attr, Errno> {
        let set = SetAttrRequest {
            uid: Some(uid),
            ..SetAttrRequest::default()
        };
        self.setattr(path, set).await
    }

    pub(super) async fn fsync(&self, path: &str) -> Result<(), Errno> {
        let ino = self.walk(path).await?;
        self.client.fsync(ROOT, ino, 0, false).await
    }

    /// Lists names, in pages of a few.
    pub(super) async fn list(&self, path: &str, plus: bool) -> Result<Vec<String>, Errno> {
        let dir = self.walk(path).await?;
        let mut names = Vec::new();
        let mut after = 0;
        loop {
            let _looking = self.kernel.look_into(dir).await;
            let reply = self.client.readdir(ROOT, dir, after, 7, plus).await?;
            let Some(last) = reply.entries.last() else {
                return Ok(names);
            };
            after = last.cookie;
            for entry in reply.entries {
                names.push(String::from_utf8_lossy(entry.name.as_bytes()).into_owned());
                if entry.entry.is_some() {
                    self.client.forget(entry.ino, 1);
                }
            }
        }
    }
}
