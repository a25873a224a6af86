//! What the kernel is answered.

use super::shown::{bits, change, cookie_of, device_of, place_of, shown, shown_kind};
use super::{ExportTree, XATTR_DEVICE, inodes, malformed, open};
use crate::caller::user;
use crate::export::place::made_up_dir;
use crate::export::wire::{Entry, PAGE_ENTRIES_MAX, Reply, What};
use crate::wire::IO_BYTES_MAX;
use crate::wire::session::{Answer, Ask};
use async_trait::async_trait;
use bytes::Bytes;
use consistency::InodeNo;
use consistency::wire::meta::{Name, NewNode, RenameMode, StatFs, XattrMode};
use gfs::error::Errno;
use gfs::tree::{
    AttrReply, CACHE, Caller, EntryReply, Hold, ListEntry, ListReply, Lock, NO_CACHE, NewMode,
    OpenFlags, Opened, ReadReply, SetAttrRequest, Tree,
};
use std::time::Instant;

#[async_trait]
impl Tree for ExportTree {
    async fn lookup(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: &Name,
    ) -> Result<EntryReply, Errno> {
        let (owner, dir) = self.at(parent)?;
        let path = dir.path.join(name)?;
        let name = name.clone();
        let what = What::Lookup { dir, name };
        match self.stat(owner, caller, what).await {
            Ok(stat) => Ok(self.entry(owner, path, &stat, caller)),
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
        self.inodes().forget(ino, count);
    }

    async fn getattr(
        &self,
        caller: Caller,
        ino: InodeNo,
        _: Option<u64>,
    ) -> Result<AttrReply, Errno> {
        let reply = |attr, ttl| AttrReply {
            attr,
            ttl,
            hold: Hold::none(),
        };
        if inodes::owner_of_root(ino).is_some() {
            // Not the owner's: it is there whether the owner is up or down.
            return Ok(reply(made_up_dir(ino), CACHE));
        }
        let told = self.inodes().take_fresh(ino, caller.pid, Instant::now());
        let attr = match told {
            Some(attr) => attr,
            None => {
                let inode = self.inode(ino)?;
                self.stat_file(caller, ino, &inode, None).await?.attr
            }
        };
        Ok(reply(shown(ino, &attr), NO_CACHE))
    }

    async fn setattr(
        &self,
        caller: Caller,
        ino: InodeNo,
        set: SetAttrRequest,
    ) -> Result<AttrReply, Errno> {
        self.inodes().changing(ino);
        let inode = self.inode(ino).map_err(|_| Errno(libc::EROFS))?;
        let change = change(set);
        // Who has it open to write may set its size, whatever its mode is by now.
        let by_handle = set.fh.filter(|_| set.size.is_some());
        let stat = match by_handle.and_then(|fh| self.files.get(fh).ok()) {
            Some(open) => {
                let who = user(caller);
                match open.other(Ask::Change { who, change }).await? {
                    Answer::Stat(stat) => *stat,
                    _ => return Err(open.malformed()),
                }
            }
            None => self.stat_file(caller, ino, &inode, Some(change)).await?,
        };
        self.inodes().changing(ino);
        Ok(AttrReply {
            attr: shown(ino, &stat.attr),
            ttl: NO_CACHE,
            hold: Hold::none(),
        })
    }

    async fn readlink(&self, caller: Caller, ino: InodeNo) -> Result<Bytes, Errno> {
        let (owner, at) = self.at(ino)?;
        match self.ask(owner, caller, What::Readlink(at)).await? {
            Reply::Data(target) => Ok(target),
            _ => Err(malformed(owner, "no target of a link")),
        }
    }

    async fn make(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: &Name,
        node: NewNode,
        mode: NewMode,
    ) -> Result<EntryReply, Errno> {
        let (owner, dir) = self.at(parent)?;
        let path = dir.path.join(name)?;
        let what = What::Make {
            dir,
            name: name.clone(),
            node,
            mode: bits(mode),
        };
        let stat = self.stat(owner, caller, what).await?;
        Ok(self.entry(owner, path, &stat, caller))
    }

    async fn create(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: &Name,
        mode: NewMode,
        flags: OpenFlags,
    ) -> Result<(EntryReply, Opened), Errno> {
        let (owner, dir) = self.at(parent)?;
        let path = dir.path.join(name)?;
        let create = open::create(name, bits(mode), flags);
        let (remote, stat) = self
            .open_file(owner, caller, dir, flags, Some(create))
            .await?;
        let entry = self.entry(owner, path, &stat, caller);
        let number = entry.attr.as_ref().map_or(InodeNo(0), |attr| attr.ino);
        match self.files.add(number, remote) {
            Ok(fh) => Ok((entry, open::opened(fh))),
            Err(error) => {
                self.forget(number, 1);
                Err(error)
            }
        }
    }

    async fn link(
        &self,
        caller: Caller,
        ino: InodeNo,
        parent: InodeNo,
        name: &Name,
    ) -> Result<EntryReply, Errno> {
        let ((owner, at), (other, dir)) = (self.at(ino)?, self.at(parent)?);
        if owner != other {
            return Err(Errno::EXDEV);
        }
        let path = dir.path.join(name)?;
        let name = name.clone();
        self.inodes().changing(ino);
        let stat = self
            .stat(owner, caller, What::Link { at, dir, name })
            .await?;
        Ok(self.entry(owner, path, &stat, caller))
    }

    async fn unlink(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: &Name,
        is_dir: bool,
    ) -> Result<(), Errno> {
        let (owner, dir) = self.at(parent)?;
        let path = dir.path.join(name)?;
        let name = name.clone();
        let what = What::Unlink { dir, name, is_dir };
        self.done(owner, caller, what).await?;
        self.inodes().unlinked(owner, &path);
        Ok(())
    }

    async fn rename(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: &Name,
        new_parent: InodeNo,
        new_name: &Name,
        mode: RenameMode,
    ) -> Result<(), Errno> {
        let ((owner, dir), (other, to)) = (self.at(parent)?, self.at(new_parent)?);
        if owner != other {
            return Err(Errno::EXDEV);
        }
        let (from_path, to_path) = (dir.path.join(name)?, to.path.join(new_name)?);
        let what = What::Rename {
            dir,
            name: name.clone(),
            to,
            to_name: new_name.clone(),
            mode,
        };
        self.done(owner, caller, what).await?;
        let exchange = mode == RenameMode::Exchange;
        self.inodes().renamed(owner, &from_path, &to_path, exchange);
        Ok(())
    }

    async fn open(&self, caller: Caller, ino: InodeNo, flags: OpenFlags) -> Result<Opened, Errno> {
        let (owner, at) = self.at(ino)?;
        let (remote, _) = self.open_file(owner, caller, at, flags, None).await?;
        self.files.add(ino, remote).map(open::opened)
    }

    async fn read(
        &self,
        _: Caller,
        _: InodeNo,
        fh: u64,
        offset: u64,
        size: u32,
        _: OpenFlags,
    ) -> Result<ReadReply, Errno> {
        let open = self.files.get(fh)?;
        let data = open.read(offset, size.min(IO_BYTES_MAX), true).await?;
        Ok(ReadReply {
            data,
            grown: None,
            hold: Hold::none(),
        })
    }

    async fn write(
        &self,
        _: Caller,
        ino: InodeNo,
        fh: u64,
        offset: u64,
        mut data: Bytes,
        flags: OpenFlags,
        from_cache: bool,
        _: bool,
    ) -> Result<u32, Errno> {
        let open = self.files.get(fh)?;
        data.truncate(IO_BYTES_MAX as usize);
        let len = data.len() as u64;
        self.inodes().changing(ino);
        // What is mapped has its place.
        let what = if flags.append() && !from_cache {
            Ask::Append { data }
        } else {
            let wait = true;
            Ask::Write { offset, data, wait }
        };
        match open.other(what).await? {
            Answer::Count(taken) if taken <= len => {
                Ok(u32::try_from(taken).expect("no more than was given"))
            }
            _ => Err(open.malformed()),
        }
    }

    async fn flush(&self, _: Caller, _: InodeNo, fh: u64, _: u64) -> Result<(), Errno> {
        self.files.unlock(fh).await
    }

    async fn release(&self, _: InodeNo, fh: u64) {
        self.files.close(fh);
    }

    async fn fsync(&self, _: Caller, _: InodeNo, fh: u64, _: bool) -> Result<(), Errno> {
        self.files.done(fh, Ask::Sync).await
    }

    async fn fallocate(
        &self,
        _: Caller,
        ino: InodeNo,
        fh: u64,
        offset: u64,
        len: u64,
        mode: i32,
    ) -> Result<(), Errno> {
        self.inodes().changing(ino);
        let what = Ask::Allocate { mode, offset, len };
        self.files.done(fh, what).await
    }

    async fn lseek(
        &self,
        _: Caller,
        _: InodeNo,
        fh: u64,
        offset: u64,
        whence: i32,
    ) -> Result<u64, Errno> {
        let open = self.files.get(fh)?;
        match open.other(Ask::Seek { offset, whence }).await? {
            Answer::Count(position) => Ok(position),
            _ => Err(open.malformed()),
        }
    }

    async fn readdir(
        &self,
        caller: Caller,
        ino: InodeNo,
        after: u64,
        limit: usize,
        _: bool,
    ) -> Result<ListReply, Errno> {
        let (owner, dir) = self.at(ino)?;
        let parent = dir.path.split().map(|(parent, _)| parent);
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        let what = What::List {
            dir,
            after: place_of(after),
            limit: limit.clamp(1, PAGE_ENTRIES_MAX),
        };
        let Reply::Listing(entries) = self.ask(owner, caller, what).await? else {
            return Err(malformed(owner, "no listing"));
        };
        let enter = |entry: Entry| ListEntry {
            cookie: cookie_of(entry.cookie),
            ino: inodes::number(owner, entry.ident),
            name: entry.name,
            kind: shown_kind(entry.kind),
            // The kernel would keep neither the name nor the attributes.
            entry: None,
        };
        Ok(ListReply {
            parent: parent.and_then(|path| self.inodes().number_at(owner, &path)),
            entries: entries.into_iter().map(enter).collect(),
        })
    }

    async fn fsyncdir(&self, caller: Caller, ino: InodeNo) -> Result<(), Errno> {
        let (owner, at) = self.at(ino)?;
        match self.done(owner, caller, What::SyncDir(at)).await {
            // Of a made-up directory nothing can be lost.
            Err(Errno(libc::EROFS)) => Ok(()),
            done => done,
        }
    }

    async fn statfs(&self, caller: Caller, ino: InodeNo) -> Result<StatFs, Errno> {
        let (owner, at) = self.at(ino)?;
        match self.ask(owner, caller, What::StatFs(at)).await? {
            Reply::StatFs(room) => Ok(room),
            _ => Err(malformed(owner, "no word of its room")),
        }
    }

    async fn getxattr(&self, caller: Caller, ino: InodeNo, name: &Name) -> Result<Bytes, Errno> {
        if name.as_bytes() == XATTR_DEVICE {
            let device = self.inode(ino).ok().and_then(|inode| device_of(&inode));
            return device.map(Bytes::from).ok_or(Errno(libc::ENODATA));
        }
        let (owner, at) = self.at(ino)?;
        let name = name.clone();
        match self.ask(owner, caller, What::Getxattr { at, name }).await? {
            Reply::Data(value) => Ok(value),
            _ => Err(malformed(owner, "no value of an attribute")),
        }
    }

    async fn listxattr(&self, caller: Caller, ino: InodeNo) -> Result<Vec<Name>, Errno> {
        let device = self.inode(ino).ok().and_then(|inode| device_of(&inode));
        let device = device.and_then(|_| Name::new(XATTR_DEVICE).ok());
        let (owner, at) = self.at(ino)?;
        match self.ask(owner, caller, What::Listxattr(at)).await? {
            Reply::Names(names) => Ok(names.into_iter().chain(device).collect()),
            _ => Err(malformed(owner, "no names of attributes")),
        }
    }

    async fn setxattr(
        &self,
        caller: Caller,
        ino: InodeNo,
        name: &Name,
        value: Bytes,
        mode: XattrMode,
        _: bool,
    ) -> Result<(), Errno> {
        let (owner, at) = self.at(ino)?;
        self.inodes().changing(ino);
        let what = What::Setxattr {
            at,
            name: name.clone(),
            value,
            mode,
        };
        self.done(owner, caller, what).await
    }

    async fn removexattr(&self, caller: Caller, ino: InodeNo, name: &Name) -> Result<(), Errno> {
        let (owner, at) = self.at(ino)?;
        self.inodes().changing(ino);
        let name = name.clone();
        let what = What::Removexattr { at, name };
        self.done(owner, caller, what).await
    }

    async fn getlk(
        &self,
        _: Caller,
        _: InodeNo,
        fh: u64,
        _: u64,
        lock: Lock,
    ) -> Result<Option<Lock>, Errno> {
        self.files.test_lock(fh, lock).await
    }

    async fn setlk(
        &self,
        _: Caller,
        _: InodeNo,
        fh: u64,
        _: u64,
        lock: Lock,
        wait: bool,
        flock: bool,
    ) -> Result<(), Errno> {
        self.files.lock(fh, lock, wait, flock).await
    }
}
