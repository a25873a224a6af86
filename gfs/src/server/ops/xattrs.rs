//! Extended attributes: reading, setting, removing.
//!
//! The access ACL and the permission bits are two views of one thing: setting one sets the other. An access
//! ACL that says no more than the bits is not kept.

use super::Plan;
use super::acl::{self, Acl};
use super::{copies, quota};
use crate::server::state::{Inode, MetaState};
use bytes::Bytes;
use consistency::wire::lease::Scope;
use consistency::wire::meta::{FileKind, FsError, Name, OpReply, XattrMode, is_quota};
use consistency::{InodeNo, Timestamp};
use std::collections::BTreeMap;

/// Largest value, as on Linux.
pub(super) const XATTR_VALUE_BYTES_MAX: usize = 64 << 10;
/// Most bytes of names and values of one inode, so that they fit in one message with room to spare.
pub(super) const XATTRS_BYTES_MAX: usize = 1 << 20;

impl MetaState {
    /// Returns all extended attributes of an inode.
    ///
    /// # Errors
    /// [`FsError::Stale`] if there is no such inode.
    pub fn xattrs(&self, ino: InodeNo) -> Result<&BTreeMap<Name, Bytes>, FsError> {
        Ok(&self.inode(ino)?.xattrs)
    }
}

pub(super) fn reply(state: &MetaState, ino: InodeNo) -> Result<OpReply, FsError> {
    Ok(OpReply::Xattrs {
        grant: None,
        xattrs: state.xattrs(ino)?.clone(),
    })
}

pub(super) fn plan_set(
    state: &MetaState,
    ino: InodeNo,
    name: &Name,
    value: &Bytes,
    mode: XattrMode,
) -> Result<Plan, FsError> {
    resolve_set(state, ino, name, value, mode)?;
    Ok(Plan::default().claim(ino, Scope::Attr))
}

pub(super) fn apply_set(
    state: &mut MetaState,
    now: Timestamp,
    ino: InodeNo,
    name: &Name,
    value: &Bytes,
    (mode, kill_sgid): (XattrMode, bool),
) -> Result<OpReply, FsError> {
    let meaning = resolve_set(state, ino, name, value, mode)?;
    let inode = state.inode_mut(ino);
    match meaning {
        Meaning::Plain => {
            inode.xattrs.insert(name.clone(), value.clone());
        }
        Meaning::Acl(acl) => {
            if *name == *acl::ACCESS {
                inode.attr.mode = inode.attr.mode & !0o777 | acl.mode();
                if kill_sgid {
                    inode.attr.mode &= !0o2000;
                }
            }
            if *name == *acl::ACCESS && acl.is_minimal() {
                inode.xattrs.remove(name);
            } else {
                inode.xattrs.insert(name.clone(), value.clone());
            }
        }
        Meaning::NoAcl => {
            inode.xattrs.remove(name);
        }
        Meaning::Limit(change) => {
            inode.xattrs.insert(name.clone(), value.clone());
            change.apply(state, ino);
        }
        Meaning::Copies(change) => {
            inode.xattrs.insert(name.clone(), value.clone());
            change.apply(state);
        }
    }
    Ok(state.changed(now, &[], &[ino]))
}

pub(super) fn plan_remove(state: &MetaState, ino: InodeNo, name: &Name) -> Result<Plan, FsError> {
    resolve_remove(state, ino, name)?;
    Ok(Plan::default().claim(ino, Scope::Attr))
}

pub(super) fn apply_remove(
    state: &mut MetaState,
    now: Timestamp,
    ino: InodeNo,
    name: &Name,
) -> Result<OpReply, FsError> {
    let meaning = resolve_remove(state, ino, name)?;
    state.inode_mut(ino).xattrs.remove(name);
    match meaning {
        Meaning::Limit(change) => change.apply(state, ino),
        Meaning::Copies(change) => change.apply(state),
        Meaning::Plain | Meaning::Acl(_) | Meaning::NoAcl => {}
    }
    Ok(state.changed(now, &[], &[ino]))
}

/// What a value means to the file system itself.
enum Meaning {
    Plain,
    Acl(Acl),
    /// An ACL without entries: the attribute is removed.
    NoAcl,
    /// A limit of a tree.
    Limit(quota::Change),
    /// Copies of a tree's chunks.
    Copies(copies::Change),
}

fn resolve_set(
    state: &MetaState,
    ino: InodeNo,
    name: &Name,
    value: &Bytes,
    mode: XattrMode,
) -> Result<Meaning, FsError> {
    let inode = state.inode(ino)?;
    check_name(name)?;
    if value.len() > XATTR_VALUE_BYTES_MAX {
        return Err(FsError::AttrTooLarge);
    }
    match (mode, inode.xattrs.contains_key(name)) {
        (XattrMode::Create, true) => return Err(FsError::Exists),
        (XattrMode::Replace, false) => return Err(FsError::NoData),
        (XattrMode::Any | XattrMode::Create | XattrMode::Replace, _) => {}
    }
    if size_without(inode, name) + name.as_bytes().len() + value.len() > XATTRS_BYTES_MAX {
        return Err(FsError::NoSpace);
    }
    if is_quota(name) {
        return quota::Change::resolve(state, ino, name, Some(value)).map(Meaning::Limit);
    }
    if copies::is_name(name) {
        return copies::Change::resolve(state, ino, Some(value)).map(Meaning::Copies);
    }
    if *name != *acl::ACCESS && *name != *acl::DEFAULT {
        return Ok(Meaning::Plain);
    }
    match inode.attr.kind {
        FileKind::Symlink => return Err(FsError::NotSupported),
        FileKind::Dir => {}
        // Nothing is made in a file that could inherit.
        _ if *name == *acl::DEFAULT => return Err(FsError::Access),
        _ => {}
    }
    let acl = Acl::decode(value)?;
    Ok(if acl.is_empty() {
        Meaning::NoAcl
    } else {
        Meaning::Acl(acl)
    })
}

/// Returns what the removal of an attribute comes to.
fn resolve_remove(state: &MetaState, ino: InodeNo, name: &Name) -> Result<Meaning, FsError> {
    let inode = state.inode(ino)?;
    check_name(name)?;
    if !inode.xattrs.contains_key(name) {
        return Err(FsError::NoData);
    }
    if is_quota(name) {
        return quota::Change::resolve(state, ino, name, None).map(Meaning::Limit);
    }
    if copies::is_name(name) {
        return copies::Change::resolve(state, ino, None).map(Meaning::Copies);
    }
    Ok(Meaning::Plain)
}

fn size_without(inode: &Inode, name: &Name) -> usize {
    let others = inode.xattrs.iter().filter(|(other, _)| *other != name);
    others
        .map(|(name, value)| name.as_bytes().len() + value.len())
        .sum()
}

/// Accepts the namespaces that are kept for others, and of `system` what the file system understands.
fn check_name(name: &Name) -> Result<(), FsError> {
    if *name == *acl::ACCESS || *name == *acl::DEFAULT {
        return Ok(());
    }
    let prefixes: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    match prefixes
        .iter()
        .find_map(|prefix| name.as_bytes().strip_prefix(*prefix))
    {
        Some(b"") => Err(FsError::Invalid),
        Some(_) => Ok(()),
        None => Err(FsError::NotSupported),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::ops::acl::tests::acl;
    use crate::server::ops::testing::{World, check_plan, check_stamps};
    use consistency::wire::meta::Op;

    fn set(
        world: &mut World,
        path: &str,
        name: &str,
        value: impl Into<Bytes>,
        mode: XattrMode,
    ) -> Result<(), FsError> {
        let op = Op::SetXattr {
            ino: world.ino(path),
            name: Name::new(name.as_bytes().to_vec())?,
            value: value.into(),
            mode,
            kill_sgid: false,
        };
        world.run(&op).map(|_| ())
    }

    #[track_caller]
    fn check(setup: &str, name: &str, mode: XattrMode, expected: Result<(), FsError>) {
        let mut world = World::new(&format!("touch f; {setup}"));
        assert_eq!(
            set(&mut world, "f", name, "value", mode),
            expected,
            "{setup}; {name}"
        );
    }

    #[test]
    fn namespaces() {
        use XattrMode::Any;
        for name in ["user.a", "trusted.a", "security.a", "user.a.b"] {
            check("", name, Any, Ok(()));
        }
        for name in ["user", "a", "system.a", "system.posix_acl", "USER.a"] {
            check("", name, Any, Err(FsError::NotSupported));
        }
        check("", "user.", Any, Err(FsError::Invalid));
    }

    #[test]
    fn an_acl_of_a_stranger_to_the_group_takes_setgid_away() {
        for (name, kill_sgid, expected) in [
            (&*acl::ACCESS, true, 0o4670),
            (&*acl::ACCESS, false, 0o6670),
            (&*acl::DEFAULT, true, 0o6755),
        ] {
            let mut world = World::new("mkdir f; chmod 6755 f");
            let op = Op::SetXattr {
                ino: world.ino("f"),
                name: name.clone(),
                value: acl("u::rw-,u:5:rwx,g::r-x,m::rwx,o::---"),
                mode: XattrMode::Any,
                kill_sgid,
            };
            world.run(&op).expect("sets");
            assert_eq!(world.attr("f").mode, expected, "{name:?}");
        }
    }

    #[test]
    fn modes() {
        let there = "chattr user.a=x f";
        check("", "user.a", XattrMode::Create, Ok(()));
        check(there, "user.a", XattrMode::Create, Err(FsError::Exists));
        check(there, "user.a", XattrMode::Replace, Ok(()));
        check("", "user.a", XattrMode::Replace, Err(FsError::NoData));
        check(there, "user.a", XattrMode::Any, Ok(()));
        check("rm f", "user.a", XattrMode::Any, Ok(()));
        check(
            "rm f; reap f",
            "user.a",
            XattrMode::Any,
            Err(FsError::Stale),
        );
    }

    #[test]
    fn sizes() {
        let mut world = World::new("touch f");
        let mut put = |name: String, len| set(&mut world, "f", &name, vec![0; len], XattrMode::Any);
        assert_eq!(
            put("user.a".into(), XATTR_VALUE_BYTES_MAX + 1),
            Err(FsError::AttrTooLarge)
        );
        for n in 10..25 {
            assert_eq!(put(format!("user.{n}"), XATTR_VALUE_BYTES_MAX), Ok(()));
        }
        assert_eq!(
            put("user.a".into(), XATTR_VALUE_BYTES_MAX),
            Err(FsError::NoSpace)
        );
        // Replacing one needs no room for the old one.
        assert_eq!(put("user.10".into(), XATTR_VALUE_BYTES_MAX), Ok(()));
        assert_eq!(put("user.a".into(), XATTR_VALUE_BYTES_MAX / 2), Ok(()));
    }

    #[test]
    fn removing() {
        let mut world = World::new("touch f; chattr user.a=x f");
        let ino = world.ino("f");
        let mut remove = |name: &'static str| {
            let name = Name::new(name).expect("valid");
            world.run(&Op::RemoveXattr { ino, name }).map(|_| ())
        };
        assert_eq!(remove("user.b"), Err(FsError::NoData));
        assert_eq!(remove("user.a"), Ok(()));
        assert_eq!(remove("user.a"), Err(FsError::NoData));
        assert_eq!(remove("nothing"), Err(FsError::NotSupported));
        assert_eq!(world.state.xattrs(ino), Ok(&BTreeMap::new()));
    }

    #[test]
    fn stamps_and_plan() {
        check_stamps("touch f", "chattr user.a=x f", "f:c");
        check_plan("touch f", "chattr user.a=x f", "f");
    }

    #[test]
    fn the_access_acl_is_the_mode() {
        let mut world = World::new("touch f; chmod 4600 f; mkdir d; symlink x l");
        let mut put = |path, name, text: &str| {
            let name = format!("system.posix_acl_{name}");
            set(&mut world, path, &name, acl(text), XattrMode::Any)?;
            let kept = world.state.xattrs(world.ino(path)).expect("there").len();
            Ok::<_, FsError>((world.attr(path).mode, kept))
        };
        let named = "u::rwx,u:5:rw-,g::r--,m::r-x,o::--x";
        assert_eq!(put("f", "access", named), Ok((0o4751, 1)));
        assert_eq!(put("f", "access", "u::rw-,g::r--,o::---"), Ok((0o4640, 0)));
        assert_eq!(put("f", "access", named), Ok((0o4751, 1)));
        assert_eq!(put("f", "access", ""), Ok((0o4751, 0)));
        assert_eq!(put("d", "default", named), Ok((0o644, 1)));
        assert_eq!(put("f", "default", named), Err(FsError::Access));
        assert_eq!(put("l", "access", named), Err(FsError::NotSupported));
        assert_eq!(put("f", "access", "u::rwx"), Err(FsError::Invalid));
    }
}
