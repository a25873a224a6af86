//! Every operation of [`Tree`], sent to the tree that its inode belongs to.

use super::{Place, RESERVED_COOKIE, Root, joint, listing, tree_index};
use crate::error::Errno;
use crate::tree::{
    AttrReply, Caller, EntryReply, FileAt, Hold, ListReply, Lock, NO_CACHE, NewMode, OpenFlags,
    Opened, ReadReply, SetAttrRequest, Tree, Wake,
};
use async_trait::async_trait;
use bytes::Bytes;
use consistency::InodeNo;
use consistency::wire::meta::{Name, NewNode, RenameMode, StatFs, XattrMode};

#[async_trait]
impl Tree for Root {
    async fn lookup(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: &Name,
    ) -> Result<EntryReply, Errno> {
        if let Some(node) = joint(parent) {
            let found = self.per_node.iter().find(|p| p.name == *name);
            let branch = (found.ok_or(Errno::ENOENT)?.branch)(node);
            self.branches.insert(branch, parent);
            return self.branch_entry(caller, branch).await;
        }
        match self.place_in(parent, name) {
            Place::Files => self.tree(parent)?.lookup(caller, parent, name).await,
            Place::Branch(branch) => self.branch_entry(caller, branch).await,
            // Nodes come and go without a callback.
            Place::Joint(node) => Ok(EntryReply {
                attr: Some(self.joint_attr(node).await?),
                ttl: NO_CACHE,
                attr_ttl: NO_CACHE,
                hold: Hold::none(),
            }),
            Place::Nothing => Err(Errno::ENOENT),
        }
    }

    fn forget(&self, ino: InodeNo, count: u64) {
        // Lookups of joints and branches were answered here, without a lookup in their tree.
        if joint(ino).is_some() || self.parent_of_branch(ino).is_some() {
            return;
        }
        if let Ok(tree) = self.tree(ino) {
            tree.forget(ino, count);
        }
    }

    async fn getattr(
        &self,
        caller: Caller,
        ino: InodeNo,
        fh: Option<u64>,
    ) -> Result<AttrReply, Errno> {
        match joint(ino) {
            Some(node) => Ok(AttrReply {
                attr: self.joint_attr(node).await?,
                ttl: NO_CACHE,
                hold: Hold::none(),
            }),
            None => self.tree(ino)?.getattr(caller, ino, fh).await,
        }
    }

    async fn readdir(
        &self,
        caller: Caller,
        ino: InodeNo,
        after: u64,
        limit: usize,
        plus: bool,
    ) -> Result<ListReply, Errno> {
        if ino == InodeNo::ROOT {
            return self.list_root(caller, after, limit, plus).await;
        }
        if let Some(node) = joint(ino) {
            let names = self.per_node.iter().zip(0..).map(|(per_node, index)| {
                let cookie = RESERVED_COOKIE + index;
                (per_node.name.clone(), (per_node.branch)(node), cookie)
            });
            return Ok(listing(InodeNo::ROOT, names, after, limit));
        }
        let mut page = self
            .tree(ino)?
            .readdir(caller, ino, after, limit, plus)
            .await?;
        if let Some(parent) = self.parent_of_branch(ino) {
            page.parent = Some(parent);
        }
        Ok(page)
    }

    async fn setattr(
        &self,
        caller: Caller,
        ino: InodeNo,
        set: SetAttrRequest,
    ) -> Result<AttrReply, Errno> {
        let Some(node) = joint(ino) else {
            return self.tree(ino)?.setattr(caller, ino, set).await;
        };
        let rights = self.rights.set(caller, node, set).await?;
        Ok(AttrReply {
            attr: self.joint_attr_with(node, rights),
            ttl: NO_CACHE,
            hold: Hold::none(),
        })
    }

    async fn readlink(&self, caller: Caller, ino: InodeNo) -> Result<Bytes, Errno> {
        self.owner(ino)?.readlink(caller, ino).await
    }

    async fn make(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: &Name,
        node: NewNode,
        mode: NewMode,
    ) -> Result<EntryReply, Errno> {
        self.may_make(parent, name)?;
        self.owner(parent)?
            .make(caller, parent, name, node, mode)
            .await
    }

    async fn create(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: &Name,
        mode: NewMode,
        flags: OpenFlags,
    ) -> Result<(EntryReply, Opened), Errno> {
        self.may_make(parent, name)?;
        self.owner(parent)?
            .create(caller, parent, name, mode, flags)
            .await
    }

    async fn tmpfile(
        &self,
        caller: Caller,
        parent: InodeNo,
        mode: NewMode,
        flags: OpenFlags,
    ) -> Result<(EntryReply, Opened), Errno> {
        self.owner(parent)?
            .tmpfile(caller, parent, mode, flags)
            .await
    }

    async fn link(
        &self,
        caller: Caller,
        ino: InodeNo,
        parent: InodeNo,
        name: &Name,
    ) -> Result<EntryReply, Errno> {
        self.may_make(parent, name)?;
        if tree_index(ino) != tree_index(parent) {
            return Err(Errno::EXDEV);
        }
        self.owner(parent)?.link(caller, ino, parent, name).await
    }

    async fn unlink(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: &Name,
        dir: bool,
    ) -> Result<(), Errno> {
        self.may_take(parent, name)?;
        self.owner(parent)?.unlink(caller, parent, name, dir).await
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
        self.may_take(parent, name)?;
        match self.place_in(new_parent, new_name) {
            Place::Files => {}
            Place::Branch(_) | Place::Joint(_) => return Err(Errno(libc::EBUSY)),
            Place::Nothing => return Err(Errno::EPERM),
        }
        if tree_index(parent) != tree_index(new_parent) {
            return Err(Errno::EXDEV);
        }
        self.owner(parent)?
            .rename(caller, parent, name, new_parent, new_name, mode)
            .await
    }

    async fn open(&self, caller: Caller, ino: InodeNo, flags: OpenFlags) -> Result<Opened, Errno> {
        self.owner(ino)?.open(caller, ino, flags).await
    }

    async fn read(
        &self,
        caller: Caller,
        ino: InodeNo,
        fh: u64,
        offset: u64,
        size: u32,
        flags: OpenFlags,
    ) -> Result<ReadReply, Errno> {
        self.owner(ino)?
            .read(caller, ino, fh, offset, size, flags)
            .await
    }

    async fn write(
        &self,
        caller: Caller,
        ino: InodeNo,
        fh: u64,
        offset: u64,
        data: Bytes,
        flags: OpenFlags,
        from_cache: bool,
        kill_suidgid: bool,
    ) -> Result<u32, Errno> {
        self.owner(ino)?
            .write(
                caller,
                ino,
                fh,
                offset,
                data,
                flags,
                from_cache,
                kill_suidgid,
            )
            .await
    }

    async fn flush(
        &self,
        caller: Caller,
        ino: InodeNo,
        fh: u64,
        lock_owner: u64,
    ) -> Result<(), Errno> {
        self.owner(ino)?.flush(caller, ino, fh, lock_owner).await
    }

    async fn release(&self, ino: InodeNo, fh: u64) {
        if let Ok(tree) = self.owner(ino) {
            tree.release(ino, fh).await;
        }
    }

    async fn fsync(
        &self,
        caller: Caller,
        ino: InodeNo,
        fh: u64,
        data_only: bool,
    ) -> Result<(), Errno> {
        self.owner(ino)?.fsync(caller, ino, fh, data_only).await
    }

    async fn fallocate(
        &self,
        caller: Caller,
        ino: InodeNo,
        fh: u64,
        offset: u64,
        len: u64,
        mode: i32,
    ) -> Result<(), Errno> {
        self.owner(ino)?
            .fallocate(caller, ino, fh, offset, len, mode)
            .await
    }

    async fn copy_file_range(
        &self,
        caller: Caller,
        from: FileAt,
        to: FileAt,
        len: u64,
    ) -> Result<u64, Errno> {
        if tree_index(from.ino) != tree_index(to.ino) {
            return Err(Errno::EXDEV);
        }
        self.owner(to.ino)?
            .copy_file_range(caller, from, to, len)
            .await
    }

    async fn lseek(
        &self,
        caller: Caller,
        ino: InodeNo,
        fh: u64,
        offset: u64,
        whence: i32,
    ) -> Result<u64, Errno> {
        self.owner(ino)?
            .lseek(caller, ino, fh, offset, whence)
            .await
    }

    async fn fsyncdir(&self, caller: Caller, ino: InodeNo) -> Result<(), Errno> {
        match joint(ino) {
            Some(_) => Ok(()),
            None => self.tree(ino)?.fsyncdir(caller, ino).await,
        }
    }

    async fn statfs(&self, caller: Caller, ino: InodeNo) -> Result<StatFs, Errno> {
        match joint(ino) {
            Some(_) => Ok(StatFs::default()),
            None => self.tree(ino)?.statfs(caller, ino).await,
        }
    }

    async fn getxattr(&self, caller: Caller, ino: InodeNo, name: &Name) -> Result<Bytes, Errno> {
        match joint(ino) {
            Some(_) => Err(Errno(libc::ENODATA)),
            None => self.tree(ino)?.getxattr(caller, ino, name).await,
        }
    }

    async fn listxattr(&self, caller: Caller, ino: InodeNo) -> Result<Vec<Name>, Errno> {
        match joint(ino) {
            Some(_) => Ok(Vec::new()),
            None => self.tree(ino)?.listxattr(caller, ino).await,
        }
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
        self.owner(ino)?
            .setxattr(caller, ino, name, value, mode, kill_sgid)
            .await
    }

    async fn removexattr(&self, caller: Caller, ino: InodeNo, name: &Name) -> Result<(), Errno> {
        self.owner(ino)?.removexattr(caller, ino, name).await
    }

    async fn getlk(
        &self,
        caller: Caller,
        ino: InodeNo,
        fh: u64,
        owner: u64,
        lock: Lock,
    ) -> Result<Option<Lock>, Errno> {
        self.owner(ino)?.getlk(caller, ino, fh, owner, lock).await
    }

    async fn setlk(
        &self,
        caller: Caller,
        ino: InodeNo,
        fh: u64,
        owner: u64,
        lock: Lock,
        wait: bool,
        flock: bool,
    ) -> Result<(), Errno> {
        self.owner(ino)?
            .setlk(caller, ino, fh, owner, lock, wait, flock)
            .await
    }

    async fn ioctl(
        &self,
        caller: Caller,
        ino: InodeNo,
        fh: u64,
        command: u32,
        input: Bytes,
        out_size: u32,
    ) -> Result<Bytes, Errno> {
        self.owner(ino)?
            .ioctl(caller, ino, fh, command, input, out_size)
            .await
    }

    async fn poll(&self, ino: InodeNo, fh: u64, wake: Option<Wake>) -> Result<u32, Errno> {
        self.owner(ino)?.poll(ino, fh, wake).await
    }
}
