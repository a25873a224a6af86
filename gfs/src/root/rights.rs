//! Whose the nodes are: owner, group and mode of `/cluster/node<N>`.
//!
//! They are those of the directory `/.glu/nodes/node<N>` of the files tree, so they are replicated, leased and backed up
//! as all files are; without it they are [`Rights::DEFAULT`]. Attributes of it say what root has switched. As in BProc,
//! who may execute the directory may run processes on the node (rule J5, upheld by `gproc::job`).

use super::inside::{self, Found, SELF, find};
use crate::error::Errno;
use crate::tree::{Caller, NewMode, SetAttrRequest, Tree};
use bytes::Bytes;
use consistency::wire::meta::{Attr, Name, NewNode, XattrMode};
use consistency::{InodeNo, NodeId};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Where they are kept.
const PATH: [&str; 2] = [".glu", "nodes"];
const DIRS: [(&str, u32); 2] = [(PATH[0], 0o755), (PATH[1], 0o755)];
/// Attribute of the directory of all nodes: names of programs.
const LIST: &str = "loadlevellist";
/// Values of what is switched.
const ON: &[u8] = b"1";
const OFF: &[u8] = b"0";
/// How long they are asked for by who would rather have those of before than none.
const PATIENCE: Duration = Duration::from_millis(500);

/// Who may do what with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits; those to execute say who may run processes there.
    pub mode: u32,
}

impl Rights {
    /// Of a node whose rights nobody has set: everybody may run processes there.
    pub const DEFAULT: Self = Self {
        uid: 0,
        gid: 0,
        mode: 0o555,
    };

    const fn of(attr: &Attr) -> Self {
        Self {
            uid: attr.uid,
            gid: attr.gid,
            mode: attr.mode,
        }
    }

    /// Returns whether a user may run processes there.
    #[must_use]
    pub fn admit(&self, uid: u32, gid: u32, groups: &[u32]) -> bool {
        let bit = if uid == 0 {
            return true;
        } else if uid == self.uid {
            0o100
        } else if gid == self.gid || groups.contains(&self.gid) {
            0o010
        } else {
            0o001
        };
        self.mode & bit != 0
    }
}

/// The rights of all nodes.
pub struct NodeRights {
    files: Arc<dyn Tree>,
    /// As they were last seen. A leaf.
    seen: Mutex<BTreeMap<NodeId, Rights>>,
}

impl fmt::Debug for NodeRights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeRights")
            .field("seen", &*self.seen())
            .finish_non_exhaustive()
    }
}

impl NodeRights {
    /// Looks for them in the files tree.
    #[must_use]
    pub fn new(files: Arc<dyn Tree>) -> Self {
        Self {
            files,
            seen: Mutex::default(),
        }
    }

    /// Returns those of a node.
    ///
    /// # Errors
    /// If the tree cannot be asked.
    pub async fn of(&self, node: NodeId) -> Result<Rights, Errno> {
        let dir = self.dir(node).await?;
        let rights = dir.map_or(Rights::DEFAULT, |dir| Rights::of(&dir.attr));
        self.seen().insert(node, rights);
        Ok(rights)
    }

    /// As [`Self::of`], but rather what was so before than nothing: paths through `node<N>` are to work also while no
    /// leader can be asked.
    ///
    /// # Errors
    /// If the tree cannot be asked, and never could.
    pub(super) async fn shown(&self, node: NodeId) -> Result<Rights, Errno> {
        let before = self.seen().get(&node).copied();
        let asked = tokio::time::timeout(PATIENCE, self.of(node)).await;
        asked
            .unwrap_or(Err(Errno::EIO))
            .or_else(|error| before.ok_or(error))
    }

    /// Changes those of a node; the kernel has checked that the caller may.
    ///
    /// # Errors
    /// EPERM for what is no right, and those of the files tree.
    pub(super) async fn set(
        &self,
        caller: Caller,
        node: NodeId,
        set: SetAttrRequest,
    ) -> Result<Rights, Errno> {
        if set.size.is_some() || set.atime.is_some() || set.mtime.is_some() {
            return Err(Errno::EPERM);
        }
        let dir = self.make(node).await?.attr.ino;
        let changed = self.files.setattr(caller, dir, set).await?;
        let rights = Rights::of(&changed.attr);
        self.seen().insert(node, rights);
        Ok(rights)
    }

    /// Returns whether something about a node is switched on.
    ///
    /// # Errors
    /// If the tree cannot be asked.
    pub async fn is_on(&self, node: NodeId, switch: &str) -> Result<bool, Errno> {
        let Some(dir) = self.dir(node).await? else {
            return Ok(false);
        };
        let name = attribute(switch)?;
        match self.files.getxattr(SELF, dir.attr.ino, &name).await {
            Ok(value) => Ok(&value[..] == ON),
            Err(Errno(libc::ENODATA)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Switches something about a node.
    ///
    /// # Errors
    /// Of the files tree.
    pub async fn switch(&self, node: NodeId, switch: &str, on: bool) -> Result<(), Errno> {
        let (dir, name) = (self.make(node).await?.attr.ino, attribute(switch)?);
        let value = Bytes::from_static(if on { ON } else { OFF });
        let set = self
            .files
            .setxattr(SELF, dir, &name, value, XattrMode::Any, false);
        set.await
    }

    /// Returns the programs that are levelled, as they were set.
    ///
    /// # Errors
    /// If the tree cannot be asked.
    pub async fn list(&self) -> Result<Bytes, Errno> {
        let Some(dir) = find(&*self.files, &PATH).await? else {
            return Ok(Bytes::new());
        };
        match self
            .files
            .getxattr(SELF, dir.attr.ino, &attribute(LIST)?)
            .await
        {
            Err(Errno(libc::ENODATA)) => Ok(Bytes::new()),
            list => list,
        }
    }

    /// Sets them.
    ///
    /// # Errors
    /// Of the files tree.
    pub async fn set_list(&self, list: Bytes) -> Result<(), Errno> {
        let dir = self.make_dirs(&DIRS).await?;
        let (ino, name) = (dir.attr.ino, attribute(LIST)?);
        let set = self
            .files
            .setxattr(SELF, ino, &name, list, XattrMode::Any, false);
        set.await
    }

    /// Returns the directory of a node, if there is one.
    async fn dir(&self, node: NodeId) -> Result<Option<Found<'_>>, Errno> {
        let name = format!("node{node}");
        find(&*self.files, &[PATH[0], PATH[1], &name]).await
    }

    /// Makes the directory of a node, unless it is there.
    async fn make(&self, node: NodeId) -> Result<Found<'_>, Errno> {
        if let Some(dir) = self.dir(node).await? {
            return Ok(dir);
        }
        let node_name = format!("node{node}");
        let [all, nodes] = DIRS;
        let dirs = [all, nodes, (&*node_name, Rights::DEFAULT.mode)];
        self.make_dirs(&dirs).await
    }

    /// Makes directories, each in the one before, unless they are there; returns the last.
    async fn make_dirs(&self, dirs: &[(&str, u32)]) -> Result<Found<'_>, Errno> {
        let mut parent = InodeNo::ROOT;
        let mut made = Vec::new();
        for (name, mode) in dirs.iter().copied() {
            let (name, mode) = (inside::name(name)?, NewMode::exactly(mode));
            let entry = self.files.make(SELF, parent, &name, NewNode::Dir, mode);
            let entry = match entry.await {
                Err(Errno(libc::EEXIST)) => self.files.lookup(SELF, parent, &name).await?,
                entry => entry?,
            };
            // Kept until what is in it is made.
            let dir = Found::new(&*self.files, entry.attr.ok_or(Errno::ENOENT)?);
            parent = dir.attr.ino;
            made.push(dir);
        }
        Ok(made.pop().expect("there are some"))
    }

    fn seen(&self) -> MutexGuard<'_, BTreeMap<NodeId, Rights>> {
        self.seen.lock().expect("no holder panics")
    }
}

/// Only root sees it.
fn attribute(switch: &str) -> Result<Name, Errno> {
    inside::name(&format!("trusted.glu.{switch}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may() {
        let check = |mode, uid, gid, groups: &[u32], expected| {
            let rights = Rights {
                uid: 7,
                gid: 8,
                mode,
            };
            let admitted = rights.admit(uid, gid, groups);
            assert_eq!(admitted, expected, "{mode:o} {uid} {gid} {groups:?}");
        };
        check(0o000, 0, 0, &[], true);
        check(0o100, 7, 9, &[], true);
        check(0o011, 7, 8, &[], false);
        check(0o010, 9, 8, &[], true);
        check(0o010, 9, 9, &[1, 8], true);
        check(0o101, 9, 9, &[1, 8], false);
        check(0o001, 9, 9, &[1], true);
        check(0o666, 9, 9, &[], false);
    }
}
