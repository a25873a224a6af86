//! The operations, one file each; this page is their table.

mod content;
mod copy;
mod create;
pub(super) mod getattr;
mod link;
mod lock;
mod lookup;
mod open;
pub(super) mod readdir;
mod rename;
mod setattr;
pub(super) mod statfs;
mod sync;
mod unlink;
mod write;
mod xattr;

use super::Client;
use crate::error::Errno;
use crate::tree::{
    AttrReply, Caller, EntryReply, FileAt, ListReply, Lock, NO_CACHE, NewMode, OpenFlags, Opened,
    ReadReply, SetAttrRequest, Tree,
};
use async_trait::async_trait;
use bytes::Bytes;
use consistency::InodeNo;
use consistency::wire::lock::{LocalOwner, LockKind};
use consistency::wire::meta::{Name, NewNode, OpReply, RenameMode, StatFs, XattrMode};

/// A reply of the wrong kind: a leader of another version, or a bug there.
pub(super) fn unexpected(reply: &OpReply) -> Errno {
    tracing::error!(?reply, "the metadata service answered another question");
    Errno::EIO
}

#[async_trait]
impl Tree for Client {
    async fn lookup(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: &Name,
    ) -> Result<EntryReply, Errno> {
        if let Some(past) = self.core.replayed_lookup(caller, parent, name).await {
            return Ok(past);
        }
        let mut reply = lookup::lookup(&self.core, parent, name).await?;
        // N3
        if self.core.replays.concerns(parent, name) {
            reply.ttl = NO_CACHE;
        }
        Ok(reply)
    }

    fn forget(&self, ino: InodeNo, count: u64) {
        lookup::forget(&self.core, ino, count);
    }

    async fn getattr(
        &self,
        _caller: Caller,
        ino: InodeNo,
        _fh: Option<u64>,
    ) -> Result<AttrReply, Errno> {
        getattr::getattr(&self.core, ino).await
    }

    async fn setattr(
        &self,
        caller: Caller,
        ino: InodeNo,
        set: SetAttrRequest,
    ) -> Result<AttrReply, Errno> {
        if self.core.replays.is_by(caller) {
            return self.core.replayed_attr(caller).await;
        }
        setattr::setattr(&self.core, ino, set).await
    }

    async fn readlink(&self, _caller: Caller, ino: InodeNo) -> Result<Bytes, Errno> {
        link::readlink(&self.core, ino).await
    }

    async fn make(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: &Name,
        node: NewNode,
        mode: NewMode,
    ) -> Result<EntryReply, Errno> {
        if self.core.replays.is_by(caller) {
            return self.core.replayed_make(caller).await;
        }
        create::make(&self.core, caller, parent, name, node, mode).await
    }

    async fn create(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: &Name,
        mode: NewMode,
        flags: OpenFlags,
    ) -> Result<(EntryReply, Opened), Errno> {
        create::create(&self.core, caller, parent, name, mode, flags).await
    }

    async fn tmpfile(
        &self,
        caller: Caller,
        parent: InodeNo,
        mode: NewMode,
        flags: OpenFlags,
    ) -> Result<(EntryReply, Opened), Errno> {
        create::tmpfile(&self.core, caller, parent, mode, flags).await
    }

    async fn link(
        &self,
        _caller: Caller,
        ino: InodeNo,
        parent: InodeNo,
        name: &Name,
    ) -> Result<EntryReply, Errno> {
        link::link(&self.core, ino, parent, name).await
    }

    async fn unlink(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: &Name,
        dir: bool,
    ) -> Result<(), Errno> {
        if self.core.replays.is_by(caller) {
            return Ok(());
        }
        unlink::unlink(&self.core, parent, name, dir).await
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
        if self.core.replays.is_by(caller) {
            return Ok(());
        }
        rename::rename(&self.core, parent, name, new_parent, new_name, mode).await
    }

    async fn open(&self, caller: Caller, ino: InodeNo, flags: OpenFlags) -> Result<Opened, Errno> {
        // It writes nothing.
        let replayed = self.core.replays.is_by(caller);
        let flags = if replayed {
            OpenFlags(libc::O_RDONLY)
        } else {
            flags
        };
        let opened = open::open(&self.core, ino, flags).await?;
        if !replayed {
            open::accessed(&self.core, ino, flags);
        }
        Ok(opened)
    }

    async fn read(
        &self,
        _caller: Caller,
        ino: InodeNo,
        fh: u64,
        offset: u64,
        size: u32,
        flags: OpenFlags,
    ) -> Result<ReadReply, Errno> {
        let read = self.core.read_pages(ino, offset, size, flags).await?;
        // LK8: what was read under a new session must not pass for what the lock covers.
        self.core.locks.check(fh)?;
        Ok(read)
    }

    async fn write(
        &self,
        _caller: Caller,
        ino: InodeNo,
        fh: u64,
        offset: u64,
        data: Bytes,
        flags: OpenFlags,
        from_cache: bool,
        kill_suidgid: bool,
    ) -> Result<u32, Errno> {
        let write = write::Write {
            handle: fh,
            offset,
            data,
            append: flags.append() && !from_cache,
            from_cache,
            kill_suidgid,
        };
        write::write(&self.core, ino, write).await
    }

    async fn flush(
        &self,
        caller: Caller,
        ino: InodeNo,
        fh: u64,
        lock_owner: u64,
    ) -> Result<(), Errno> {
        if self.core.replays.is_by(caller) {
            return Ok(());
        }
        lock::close(&self.core, ino, lock_owner).await;
        sync::close(&self.core, ino, fh).await
    }

    async fn release(&self, ino: InodeNo, fh: u64) {
        lock::release(&self.core, ino, fh);
        open::release(&self.core, ino, fh);
    }

    async fn getlk(
        &self,
        _caller: Caller,
        ino: InodeNo,
        _fh: u64,
        owner: u64,
        lock: Lock,
    ) -> Result<Option<Lock>, Errno> {
        lock::getlk(&self.core, ino, owner, lock).await
    }

    async fn setlk(
        &self,
        _caller: Caller,
        ino: InodeNo,
        fh: u64,
        owner: u64,
        lock: Lock,
        wait: bool,
        flock: bool,
    ) -> Result<(), Errno> {
        let kind = if flock {
            LockKind::Flock
        } else {
            LockKind::Posix
        };
        let owner = LocalOwner { kind, id: owner };
        lock::setlk(&self.core, ino, fh, owner, lock, wait).await
    }

    async fn fsync(
        &self,
        _caller: Caller,
        ino: InodeNo,
        fh: u64,
        _data_only: bool,
    ) -> Result<(), Errno> {
        sync::fsync(&self.core, ino, fh).await?;
        self.core.locks.check(fh)
    }

    async fn fallocate(
        &self,
        _caller: Caller,
        ino: InodeNo,
        fh: u64,
        offset: u64,
        len: u64,
        mode: i32,
    ) -> Result<(), Errno> {
        content::fallocate(&self.core, ino, fh, offset, len, mode).await
    }

    async fn copy_file_range(
        &self,
        _caller: Caller,
        from: FileAt,
        to: FileAt,
        len: u64,
    ) -> Result<u64, Errno> {
        copy::copy_file_range(&self.core, copy::Copy { from, to, len }).await
    }

    async fn lseek(
        &self,
        _caller: Caller,
        ino: InodeNo,
        _fh: u64,
        offset: u64,
        whence: i32,
    ) -> Result<u64, Errno> {
        content::lseek(&self.core, ino, offset, whence).await
    }

    async fn readdir(
        &self,
        _caller: Caller,
        ino: InodeNo,
        after: u64,
        limit: usize,
        plus: bool,
    ) -> Result<ListReply, Errno> {
        let mut list = readdir::readdir(&self.core, ino, after, limit, plus).await?;
        // N3
        self.core.replays.keep_from(ino, &mut list);
        Ok(list)
    }

    async fn fsyncdir(&self, _caller: Caller, ino: InodeNo) -> Result<(), Errno> {
        sync::fsyncdir(&self.core, ino).await
    }

    async fn statfs(&self, _caller: Caller, ino: InodeNo) -> Result<StatFs, Errno> {
        statfs::statfs(&self.core, ino).await
    }

    async fn getxattr(&self, _caller: Caller, ino: InodeNo, name: &Name) -> Result<Bytes, Errno> {
        xattr::get(&self.core, ino, name).await
    }

    async fn listxattr(&self, _caller: Caller, ino: InodeNo) -> Result<Vec<Name>, Errno> {
        xattr::list(&self.core, ino).await
    }

    async fn setxattr(
        &self,
        caller: Caller,
        ino: InodeNo,
        name: &Name,
        value: Bytes,
        mode: XattrMode,
        kill_sgid: bool,
    ) -> Result<(), Errno> {
        xattr::check_caller(caller, name)?;
        xattr::set(&self.core, ino, name, value, mode, kill_sgid).await
    }

    async fn removexattr(&self, caller: Caller, ino: InodeNo, name: &Name) -> Result<(), Errno> {
        xattr::check_caller(caller, name)?;
        xattr::remove(&self.core, ino, name).await
    }
}
