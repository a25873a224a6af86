//! Making an inode under a new name: files, directories, symbolic links, fifos, sockets, device nodes.

use super::acl::Acl;
use super::{Plan, acl, check_mode, check_owner, is_reserved};
use crate::birth::{self, Birth};
use crate::server::state::{Directory, Dirent, FileContent, Inode, MetaState, Payload, fact};
use bytes::Bytes;
use consistency::wire::meta::{FileKind, FsError, Name, NewNode, OpReply, TARGET_BYTES_MAX};
use consistency::{InodeNo, Timestamp};
use std::collections::BTreeMap;

/// The request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Create<'a> {
    pub(super) parent: InodeNo,
    /// None for a file that has no name (yet).
    pub(super) name: Option<&'a Name>,
    pub(super) node: &'a NewNode,
    pub(super) mode: u32,
    pub(super) umask: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) exclusive: bool,
}

impl Create<'_> {
    pub(super) fn plan(&self, state: &MetaState) -> Result<Plan, FsError> {
        // Also of a name that is there and stays: the answer must not cross a change of it.
        self.resolve(state)?;
        Ok(match self.name {
            Some(name) => Plan::default().name(self.parent, name),
            None => Plan::default(),
        })
    }

    pub(super) fn apply(&self, state: &mut MetaState, now: Timestamp) -> Result<OpReply, FsError> {
        let there = self.resolve(state)?;
        let new = there.is_none();
        let ino = match there {
            Some(entry) => entry.ino,
            None => {
                let ino = state.next_ino;
                state.next_ino = InodeNo(ino.0 + 1);
                self.make(state, ino, now)?;
                ino
            }
        };
        Ok(OpReply::Created {
            dir: fact(&state.inode(self.parent)?.attr),
            entry: fact(&state.inode(ino)?.attr),
            room: state.bytes_left(ino),
            copies: state.inode(ino)?.copies,
            new,
        })
    }

    /// Returns the file that is there already, if that is no error.
    pub(super) fn resolve(&self, state: &MetaState) -> Result<Option<Dirent>, FsError> {
        check_mode(self.mode | self.umask)?;
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
        let Some(name) = self.name else {
            return match self.node {
                NewNode::File => state.quotas.check_new(self.parent, 0).map(|()| None),
                NewNode::Dir | NewNode::Symlink(_) | NewNode::Special { .. } => {
                    Err(FsError::Invalid)
                }
            };
        };
        if is_reserved(self.parent, name) {
            return Err(FsError::Exists);
        }
        let Some(entry) = dir.entry(name) else {
            if *self.node == NewNode::Dir && state.inode(self.parent)?.attr.nlink == u32::MAX {
                return Err(FsError::TooManyLinks);
            }
            state
                .quotas
                .check_new(self.parent, birth::blocks(self.node))?;
            return Ok(None);
        };
        match (self.node, self.exclusive, entry.kind) {
            (NewNode::File, false, FileKind::File) => Ok(Some(entry)),
            (NewNode::File, false, FileKind::Dir) => Err(FsError::IsDir),
            // An open that finds something else here has to look the name up again.
            _ => Err(FsError::Exists),
        }
    }

    /// Makes it, under a number that nothing has.
    pub(super) fn make(
        &self,
        state: &mut MetaState,
        ino: InodeNo,
        now: Timestamp,
    ) -> Result<(), FsError> {
        let inode = self.inode(state.inode(self.parent)?, ino, now);
        let kind = inode.attr.kind;
        let blocks = inode.attr.blocks;
        state.quotas.enter(self.parent, ino, blocks);
        state.inodes.insert(ino, inode.into());
        let Some(name) = self.name else {
            state.orphans.insert(ino);
            state.unnamed.insert(ino);
            return Ok(());
        };
        state.dir_mut(self.parent).set(name, ino, kind);
        if kind == FileKind::Dir {
            state.inode_mut(self.parent).attr.nlink += 1;
        }
        state.changed(now, &[self.parent], &[]);
        Ok(())
    }

    fn inode(&self, parent: &Inode, ino: InodeNo, now: Timestamp) -> Inode {
        let payload = match self.node {
            NewNode::File => Payload::File(FileContent::default()),
            NewNode::Dir => Payload::Dir(Box::new(Directory::new(self.parent))),
            NewNode::Symlink(target) => Payload::Symlink(target.clone()),
            NewNode::Special { .. } => Payload::Special,
        };
        let (mode, xattrs) = match self.node {
            NewNode::Symlink(_) => (0o777, BTreeMap::new()),
            NewNode::Dir => self.inherit(parent, FileKind::Dir),
            NewNode::File | NewNode::Special { .. } => self.inherit(parent, FileKind::File),
        };
        let birth = Birth {
            ino,
            node: self.node,
            mode,
            uid: self.uid,
            gid: self.gid,
            named: self.name.is_some(),
            at: now,
        };
        Inode {
            attr: birth.attr(&parent.attr),
            payload,
            xattrs,
            copies: parent.copies,
        }
    }

    /// Returns the mode and the ACLs that the default ACL of the directory leads to.
    fn inherit(&self, parent: &Inode, kind: FileKind) -> (u32, BTreeMap<Name, Bytes>) {
        let mut xattrs = BTreeMap::new();
        let Some(default) = parent.xattrs.get(&*acl::DEFAULT) else {
            return (self.mode & !self.umask, xattrs);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::ops::acl::tests::acl;
    use crate::server::ops::testing::{World, check, check_plan, check_stamps};
    use consistency::wire::meta::Op;

    #[test]
    fn makes_every_kind() {
        check("", "touch f", "f");
        check("", "mkdir d", "d/");
        check("", "symlink x l", "l");
        check("", "mkfifo p", "p");
        check("mkdir d; touch d/f", "touch d/g", "d/ d/f d/g");
    }

    #[test]
    fn what_is_there_already() {
        for make in ["touch f", "mkdir f", "symlink x f", "mkfifo f"] {
            for there in ["touch f", "mkdir f", "symlink x f", "mkfifo f"] {
                check(there, make, "Exists");
            }
        }
        check("touch f", "open f", "f");
        check("mkdir f", "open f", "IsDir");
        check("symlink x f", "open f", "Exists");
        check("mkfifo f", "open f", "Exists");
    }

    #[test]
    fn where_it_cannot_be() {
        check("touch f", "touch f/g", "NotDir");
        check("mkdir d; rmdir d", "touch d/f", "NotFound");
        check("mkdir d; rmdir d; reap d", "touch d/f", "Stale");
        for name in ["proc", "node1"] {
            for make in ["touch", "mkdir", "mkfifo", "open", "symlink x"] {
                check("", &format!("{make} {name}"), "Exists");
            }
        }
        check("mkdir d", "touch d/proc", "d/ d/proc");
    }

    #[test]
    fn stamps_and_plan() {
        check_stamps("mkdir d", "touch d/f", "d:mc");
        check_stamps("mkdir d", "mkdir d/e", "d:mcn");
        check_stamps("mkdir d; touch d/f", "open d/f", "");
        check_plan("mkdir d", "touch d/f", "d[f]");
        check_plan("mkdir d; touch d/f", "open d/f", "d[f]");
        check_plan("mkdir d; touch d/f", "touch d/f", "Exists");
    }

    #[test]
    fn without_a_name() {
        check("", "tmpfile t", "!1");
        check_stamps("", "tmpfile t", "");
        check_plan("", "tmpfile t", "");
        let world = World::new("tmpfile t");
        assert_eq!((world.attr("t").nlink, world.attr("t").mode), (0, 0o644));
    }

    #[test]
    fn a_nameless_file_is_being_made_until_its_maker_goes_on() {
        let mut world = World::new("tmpfile t");
        let ino = world.ino("t");
        assert!(world.state.is_being_made(ino));
        world.setup("touch f");
        assert!(!world.state.is_being_made(ino));
        let mut world = World::new("touch f; rm f");
        assert!(!world.state.is_being_made(world.ino("f")));
        world.setup("tmpfile t; ln t g");
        assert!(!world.state.is_being_made(world.ino("t")));
    }

    #[test]
    fn an_open_tells_whether_it_made_the_file() {
        let mut world = World::new("");
        let mut open = || match world.sh("open f") {
            Ok(OpReply::Created {
                dir, entry, new, ..
            }) => {
                assert_eq!(world.attr("/"), dir.attr);
                assert_eq!(world.attr("f"), entry.attr);
                new
            }
            other => panic!("{other:?}"),
        };
        assert_eq!([open(), open()], [true, false]);
    }

    #[test]
    fn attributes_of_the_new() {
        let world = World::new("touch f; mkdir d; symlink 12345 l; mkfifo p");
        let show = |path| {
            let attr = world.attr(path);
            (
                attr.mode,
                attr.nlink,
                attr.uid,
                attr.gid,
                attr.size,
                attr.blocks,
            )
        };
        assert_eq!(show("f"), (0o644, 1, 7, 8, 0, 0));
        assert_eq!(show("d"), (0o644, 2, 7, 8, 4096, 8));
        assert_eq!(show("l"), (0o777, 1, 7, 8, 5, 0));
        assert_eq!(show("p"), (0o644, 1, 7, 8, 0, 0));
        let attr = world.attr("f");
        assert_eq!([attr.atime, attr.mtime, attr.ctime], [attr.btime; 3]);
    }

    #[test]
    fn setgid_directories_hand_their_group_down() {
        let world = World::new(
            "mkdir d; chown 1:99 d; chmod 2755 d; touch d/f; mkdir d/e; mkdir d/e/g; symlink x d/l",
        );
        let show = |path| (world.attr(path).gid, world.attr(path).mode);
        assert_eq!(show("d/f"), (99, 0o644));
        assert_eq!(show("d/e"), (99, 0o2644));
        assert_eq!(show("d/e/g"), (99, 0o2644));
        assert_eq!(show("d/l"), (99, 0o777));
    }

    #[test]
    fn default_acls_are_inherited() {
        let mut world = World::new("mkdir d");
        let default = acl("u::rwx,u:5:rwx,g::r-x,m::rwx,o::r--");
        let set = Op::SetXattr {
            ino: world.ino("d"),
            name: acl::DEFAULT.clone(),
            value: default.clone(),
            mode: consistency::wire::meta::XattrMode::Any,
            kill_sgid: false,
        };
        world.run(&set).expect("sets");
        world.setup("touch d/f; mkdir d/e; symlink x d/l");
        let access = acl("u::rw-,u:5:rwx,g::r-x,m::r--,o::r--");
        let show = |path| {
            let xattrs = world.state.xattrs(world.ino(path)).expect("there");
            (
                xattrs.get(&*acl::ACCESS).cloned(),
                xattrs.get(&*acl::DEFAULT).cloned(),
            )
        };
        assert_eq!(show("d/f"), (Some(access.clone()), None));
        assert_eq!(show("d/e"), (Some(access), Some(default)));
        assert_eq!(show("d/l"), (None, None));
        assert_eq!(world.attr("d/f").mode, 0o644);
        world.setup("chmod 600 d/f");
        assert_eq!(
            show_access(&world),
            acl("u::rw-,u:5:rwx,g::r-x,m::---,o::---")
        );
    }

    #[test]
    fn a_default_acl_takes_the_place_of_the_umask() {
        #[track_caller]
        fn check(default: Option<&str>, node: NewNode, expected: u32) {
            let mut world = World::new("mkdir d");
            let parent = world.ino("d");
            if let Some(default) = default {
                let set = Op::SetXattr {
                    ino: parent,
                    name: acl::DEFAULT.clone(),
                    value: acl(default),
                    mode: consistency::wire::meta::XattrMode::Any,
                    kill_sgid: false,
                };
                world.run(&set).expect("sets");
            }
            let create = Op::Create {
                parent,
                name: Some(Name::new("f").expect("valid")),
                node,
                mode: 0o666,
                umask: 0o077,
                uid: 0,
                gid: 0,
                exclusive: true,
            };
            world.run(&create).expect("creates");
            assert_eq!(world.attr("d/f").mode, expected);
        }
        let default = Some("u::rwx,g::r-x,o::r--");
        check(None, NewNode::File, 0o600);
        check(None, NewNode::Dir, 0o600);
        check(default, NewNode::File, 0o644);
        check(default, NewNode::Dir, 0o644);
        check(default, NewNode::Symlink("x".into()), 0o777);
    }

    fn show_access(world: &World) -> Bytes {
        world.state.xattrs(world.ino("d/f")).expect("there")[&*acl::ACCESS].clone()
    }

    #[test]
    fn nonsense_is_refused() {
        #[track_caller]
        fn refused(node: NewNode, mode: u32, uid: u32, gid: u32, expected: FsError) {
            let mut world = World::new("");
            let result = world.run(&Op::Create {
                parent: InodeNo::ROOT,
                name: Some(Name::new("f").expect("valid")),
                node,
                mode,
                umask: 0,
                uid,
                gid,
                exclusive: true,
            });
            assert_eq!(result, Err(expected));
        }
        let symlink = |len| NewNode::Symlink(vec![b'x'; len].into());
        let special = |kind| NewNode::Special { kind, rdev: 0 };
        refused(NewNode::File, 0o10_000, 0, 0, FsError::Invalid);
        refused(NewNode::File, 0, u32::MAX, 0, FsError::Invalid);
        refused(NewNode::File, 0, 0, u32::MAX, FsError::Invalid);
        refused(symlink(0), 0, 0, 0, FsError::Invalid);
        refused(symlink(TARGET_BYTES_MAX + 1), 0, 0, 0, FsError::NameTooLong);
        refused(NewNode::Symlink("a\0b".into()), 0, 0, 0, FsError::Invalid);
        refused(special(FileKind::Dir), 0, 0, 0, FsError::Invalid);
        refused(special(FileKind::File), 0, 0, 0, FsError::Invalid);
        refused(special(FileKind::Symlink), 0, 0, 0, FsError::Invalid);
    }
}
