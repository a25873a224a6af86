//! What the kernel is answered.

use super::shown::{attr, cookie, device_of, on_its_node, shown_kind};
use super::{DevTree, OPEN_FILES_MAX, ROOT, XATTR_DEVICE, XATTR_WHY, inodes};
use crate::wire::session::{Access, Answer, Ask};
use crate::wire::{IO_BYTES_MAX, Seen};
use async_trait::async_trait;
use bytes::Bytes;
use consistency::InodeNo;
use consistency::wire::meta::Name;
use gfs::error::Errno;
use gfs::tree::{
    AttrReply, CACHE, Caller, EntryReply, Hold, ListEntry, ListReply, NO_CACHE, OpenFlags, Opened,
    ReadReply, SetAttrRequest, Tree, Wake,
};
use std::sync::Arc;
use std::sync::atomic::Ordering;

#[async_trait]
impl Tree for DevTree {
    async fn lookup(&self, _: Caller, parent: InodeNo, name: &Name) -> Result<EntryReply, Errno> {
        let (owner, dir) = self.place(parent)?;
        let path = dir.join(name)?;
        match self.look(owner, path.clone()).await {
            Ok(seen) => Ok(self.entry(owner, path, seen)),
            Err(Errno::ENOENT) => Ok(EntryReply {
                attr: None,
                ttl: NO_CACHE,
                attr_ttl: NO_CACHE,
                hold: Hold::none(),
            }),
            Err(error) => Err(error),
        }
    }

    fn forget(&self, ino: InodeNo, count: u64) {
        self.inodes.forget(ino, count);
    }

    async fn getattr(&self, _: Caller, ino: InodeNo, _: Option<u64>) -> Result<AttrReply, Errno> {
        let (attr, ttl) = match inodes::owner_of_root(ino) {
            // Not the owner's: it is there whether the owner is up or down, and on the way to every device.
            Some(_) => (
                attr(
                    ino,
                    &Seen {
                        node: ROOT,
                        size: 0,
                    },
                ),
                CACHE,
            ),
            None => {
                let inode = self.inodes.inode(ino).ok_or(Errno::ESTALE)?;
                (self.attr(&inode).await?, NO_CACHE)
            }
        };
        Ok(AttrReply {
            attr,
            ttl,
            hold: Hold::none(),
        })
    }

    async fn setattr(
        &self,
        caller: Caller,
        ino: InodeNo,
        set: SetAttrRequest,
    ) -> Result<AttrReply, Errno> {
        // Opening with O_TRUNC changes nothing in a device; anything else would change the owner's directory.
        if set.size.is_none() || set.mode.is_some() || set.uid.is_some() || set.gid.is_some() {
            return Err(Errno::EPERM);
        }
        self.getattr(caller, ino, set.fh).await
    }

    async fn readlink(&self, _: Caller, ino: InodeNo) -> Result<Bytes, Errno> {
        let inode = self.inodes.inode(ino).ok_or(Errno::EINVAL)?;
        inode.seen.node.target.clone().ok_or(Errno::EINVAL)
    }

    async fn open(&self, caller: Caller, ino: InodeNo, flags: OpenFlags) -> Result<Opened, Errno> {
        let device = self.open_device(caller, ino, flags).await?;
        let stream = device.access() == Access::Stream;
        let fh = self.next_fh.fetch_add(1, Ordering::Relaxed);
        let mut open = self.open.lock().expect("no holder panics");
        if open.len() >= OPEN_FILES_MAX {
            return Err(Errno(libc::ENFILE));
        }
        open.insert(fh, Arc::new(device));
        Ok(Opened {
            fh,
            direct_io: true,
            stream,
            noflush: true,
            ..Opened::default()
        })
    }

    async fn read(
        &self,
        _: Caller,
        _: InodeNo,
        fh: u64,
        offset: u64,
        size: u32,
        flags: OpenFlags,
    ) -> Result<ReadReply, Errno> {
        let open = self.opened(fh)?;
        let wait = flags.0 & libc::O_NONBLOCK == 0;
        let data = open.read(offset, size.min(IO_BYTES_MAX), wait).await?;
        Ok(ReadReply {
            data,
            grown: None,
            hold: Hold::none(),
        })
    }

    async fn write(
        &self,
        _: Caller,
        _: InodeNo,
        fh: u64,
        offset: u64,
        mut data: Bytes,
        flags: OpenFlags,
        _: bool,
        _: bool,
    ) -> Result<u32, Errno> {
        let open = self.opened(fh)?;
        data.truncate(IO_BYTES_MAX as usize);
        let len = data.len() as u64;
        let wait = flags.0 & libc::O_NONBLOCK == 0;
        match open.other(Ask::Write { offset, data, wait }).await? {
            Answer::Count(taken) if taken <= len => {
                Ok(u32::try_from(taken).expect("no more than was given"))
            }
            _ => Err(open.malformed()),
        }
    }

    async fn fsync(&self, _: Caller, _: InodeNo, fh: u64, _: bool) -> Result<(), Errno> {
        self.done(fh, Ask::Sync).await
    }

    async fn fallocate(
        &self,
        _: Caller,
        _: InodeNo,
        fh: u64,
        offset: u64,
        len: u64,
        mode: i32,
    ) -> Result<(), Errno> {
        self.done(fh, Ask::Allocate { mode, offset, len }).await
    }

    async fn lseek(
        &self,
        _: Caller,
        _: InodeNo,
        fh: u64,
        offset: u64,
        whence: i32,
    ) -> Result<u64, Errno> {
        let open = self.opened(fh)?;
        match open.other(Ask::Seek { offset, whence }).await? {
            Answer::Count(position) => Ok(position),
            _ => Err(open.malformed()),
        }
    }

    async fn ioctl(
        &self,
        _: Caller,
        _: InodeNo,
        fh: u64,
        command: u32,
        input: Bytes,
        out_size: u32,
    ) -> Result<Bytes, Errno> {
        let open = self.opened(fh)?;
        match open.other(Ask::Control { command, input }).await? {
            Answer::Data(output) if output.len() <= out_size as usize => Ok(output),
            _ => Err(open.malformed()),
        }
    }

    async fn poll(&self, _: InodeNo, fh: u64, wake: Option<Wake>) -> Result<u32, Errno> {
        self.opened(fh)?.poll(wake).await
    }

    async fn release(&self, _: InodeNo, fh: u64) {
        self.open.lock().expect("no holder panics").remove(&fh);
    }

    async fn readdir(
        &self,
        _: Caller,
        ino: InodeNo,
        after: u64,
        limit: usize,
        plus: bool,
    ) -> Result<ListReply, Errno> {
        let (owner, dir) = self.place(ino)?;
        let mut names = self.names(owner, &dir).await?;
        // A cookie has to stay with its name while others come and go: it is made of the name alone.
        names.retain(|(name, _)| cookie(name) > after);
        names.sort_by_key(|(name, _)| cookie(name));
        names.truncate(limit.max(1));
        let enter = |(name, seen): (Name, Seen)| {
            let path = dir.join(&name)?;
            let kind = shown_kind(seen.node.kind);
            let number = inodes::number_for_listing(owner, &path);
            let seen = on_its_node(&path, seen);
            let entry = plus.then(|| self.entry(owner, path, seen));
            let made = entry.as_ref().and_then(|entry| entry.attr.as_ref());
            Ok(ListEntry {
                cookie: cookie(&name),
                ino: made.map_or(number, |attr| attr.ino),
                name,
                kind,
                entry,
            })
        };
        // What is too deep or long for a path cannot be named, so it is not shown.
        let entries = names.into_iter().map(enter);
        let entries = entries.filter_map(|entry: Result<_, Errno>| entry.ok());
        Ok(ListReply {
            // Deeper down the number depends on who has looked it up; that of the root's parent is known to who has
            // joined the trees.
            parent: (dir.depth() == 1).then(|| Self::root(owner)),
            entries: entries.collect(),
        })
    }

    async fn getxattr(&self, caller: Caller, ino: InodeNo, name: &Name) -> Result<Bytes, Errno> {
        let value = match name.as_bytes() {
            XATTR_DEVICE => self.inodes.inode(ino).and_then(|inode| device_of(&inode)),
            XATTR_WHY => self.why(caller, ino).await?,
            _ => None,
        };
        value.map(Bytes::from).ok_or(Errno(libc::ENODATA))
    }

    async fn listxattr(&self, caller: Caller, ino: InodeNo) -> Result<Vec<Name>, Errno> {
        let device = self.inodes.inode(ino).and_then(|inode| device_of(&inode));
        let why = self.why(caller, ino).await?;
        let names = [device.map(|_| XATTR_DEVICE), why.map(|_| XATTR_WHY)];
        let names = names.into_iter().flatten();
        names.map(|name| Ok(Name::new(name)?)).collect()
    }
}
