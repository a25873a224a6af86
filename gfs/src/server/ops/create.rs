//! Making an inode under a new name: files, directories, symbolic links, fifos, sockets, device nodes.

use super::acl::Acl;
use super::{Plan, acl, check_mode, check_owner, is_reserved};
use crate::server::state::{
    DIR_SIZE_BYTES, Directory, Dirent, FileContent, Inode, MetaState, Payload, fact,
};
use bytes::Bytes;
use consistency::wire::meta::{Attr, FileKind, FsError, Name, NewNode, OpReply, TARGET_BYTES_MAX};
use consistency::{InodeNo, Timestamp, Version};
use std::collections::BTreeMap;

const S_ISGID: u32 = 0o2000;

/// The request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Create<'a> {
    pub(super) parent: InodeNo,
    pub(super) name: &'a Name,
    pub(super) node: &'a NewNode,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) exclusive: bool,
}

impl Create<'_> {
    pub(super) fn plan(&self, state: &MetaState) -> Result<Plan, FsError> {
        // Also of a name that is there and stays: the answer must not cross a change of it.
        self.resolve(state)?;
        Ok(Plan::default().name(self.parent, self.name))
    }

    pub(super) fn apply(&self, state: &mut MetaState, now: Timestamp) -> Result<OpReply, FsError> {
        let there = self.resolve(state)?;
        let new = there.is_none();
        let ino = match there {
            Some(entry) => entry.ino,
            None => self.make(state, now)?,
        };
        Ok(OpReply::Created {
            dir: fact(&state.inode(self.parent)?.attr),
            entry: fact(&state.inode(ino)?.attr),
            new,
        })
    }

    /// Returns the file that is there already, if that is no error.
    fn resolve(&self, state: &MetaState) -> Result<Option<Dirent>, FsError> {
        check_mode(self.mode)?;
        check_owner(self.uid, self.gid)?;
        match self.node {
            NewNode::Symlink(target) => {
                if target.is_empty() || target.contains(&0) {
                    return Err(FsError::Invalid);
                }
                if target.len() > TARGET_BYTES_MAX {
                    return Err(FsError::NameTooLong);
                }
            }
            NewNode::Special { kind, .. } => match kind {
                FileKind::Fifo | FileKind::Socket | FileKind::Char | FileKind::Block => {}
                FileKind::File | FileKind::Dir | FileKind::Symlink => return Err(FsError::Invalid),
            },
            NewNode::File | NewNode::Dir => {}
        }
        let dir = state.dir_alive(self.parent)?;
        if is_reserved(self.parent, self.name) {
            return Err(FsError::Exists);
        }
        let Some(entry) = dir.entry(self.name) else {
            if *self.node == NewNode::Dir && state.inode(self.parent)?.attr.nlink == u32::MAX {
                return Err(FsError::TooManyLinks);
            }
            return Ok(None);
        };
        match (self.node, self.exclusive, entry.kind) {
            (NewNode::File, false, FileKind::File) => Ok(Some(entry)),
            (NewNode::File, false, FileKind::Dir) => Err(FsError::IsDir),
            // An open that finds something else here has to look the name up again.
            _ => Err(FsError::Exists),
        }
    }

    fn make(&self, state: &mut MetaState, now: Timestamp) -> Result<InodeNo, FsError> {
        let ino = state.next_ino;
        let inode = self.inode(state.inode(self.parent)?, ino, now);
        let kind = inode.attr.kind;
        state.next_ino = InodeNo(ino.0 + 1);
        state.inodes.insert(ino, Box::new(inode));
        state.dir_mut(self.parent).set(self.name, ino, kind);
        if kind == FileKind::Dir {
            state.inode_mut(self.parent).attr.nlink += 1;
        }
        state.changed(now, &[self.parent], &[]);
        Ok(ino)
    }

    fn inode(&self, parent: &Inode, ino: InodeNo, now: Timestamp) -> Inode {
        let (kind, payload, rdev, size) = match self.node {
            NewNode::File => (FileKind::File, Payload::File(FileContent::default()), 0, 0),
            NewNode::Dir => {
                let dir = Directory::new(self.parent);
                (
                    FileKind::Dir,
                    Payload::Dir(Box::new(dir)),
                    0,
                    DIR_SIZE_BYTES,
                )
            }
            NewNode::Symlink(target) => {
                let size = target.len() as u64;
                (FileKind::Symlink, Payload::Symlink(target.clone()), 0, size)
            }
            NewNode::Special { kind, rdev } => (*kind, Payload::Special, *rdev, 0),
        };
        let (mode, xattrs) = match kind {
            FileKind::Symlink => (0o777, BTreeMap::new()),
            _ => self.inherit(parent, kind),
        };
        // A setgid directory hands its group down, and itself to directories.
        let setgid = parent.attr.mode & S_ISGID != 0;
        let hands_on = setgid && kind == FileKind::Dir;
        let attr = Attr {
            ino,
            kind,
            mode: if hands_on { mode | S_ISGID } else { mode },
            nlink: if kind == FileKind::Dir { 2 } else { 1 },
            uid: self.uid,
            gid: if setgid { parent.attr.gid } else { self.gid },
            rdev,
            size,
            blocks: if kind == FileKind::Dir { size / 512 } else { 0 },
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            version: Version(1),
        };
        Inode {
            attr,
            payload,
            xattrs,
        }
    }

    /// Returns the mode and the ACLs that the default ACL of the directory leads to.
    fn inherit(&self, parent: &Inode, kind: FileKind) -> (u32, BTreeMap<Name, Bytes>) {
        let mut xattrs = BTreeMap::new();
        let Some(default) = parent.xattrs.get(&*acl::DEFAULT) else {
            return (self.mode, xattrs);
        };
        let mut access = Acl::decode(default).expect("only a valid ACL is ever stored");
        let mode = access.inherit(self.mode);
        if !access.is_minimal() {
            xattrs.insert(acl::ACCESS.clone(), access.encode());
        }
        if kind == FileKind::Dir {
            xattrs.insert(acl::DEFAULT.clone(), default.clone());
        }
        (mode, xattrs)
    }
}
