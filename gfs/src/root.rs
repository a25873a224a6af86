//! The root of `/cluster`: which tree answers for which inode.
//!
//! The number of an inode says whose it is, by its upper bits:
//!
//! | from | tree |
//! | --- | --- |
//! | 0 | the files |
//! | [`PROC_BASE`], [`DEV_BASE`] | a tree that was put there with [`Root::with`] or [`Root::with_per_node`] |
//! | [`JOINT_BASE`] | the directories `node<N>`, which are made here |
//!
//! Names of other trees (`proc`, `node<N>`) are reserved in the root directory: the files tree is never asked for
//! them, and nobody can make, remove or move them. A *branch* is the root directory of such a tree.
//!
//! Listings of the root show the files first and the reserved names last, behind cookies of their own
//! ([`RESERVED_COOKIE`] and up); the files tree must stay below those.

use crate::error::Errno;
use crate::tree::{
    AttrReply, CACHE, Caller, DEV_BASE, EntryReply, JOINT_BASE, ListEntry, ListReply, NO_CACHE,
    PROC_BASE, Tree,
};
use consistency::wire::meta::{Attr, FileKind, Name};
use consistency::{InodeNo, NodeId, Timestamp, Version};
use dashmap::DashMap;
use std::fmt;
use std::sync::Arc;

pub mod inside;
mod rights;
mod routes;

pub use rights::{NodeRights, Rights};

/// Cookies of the reserved names in a listing of the root start here.
pub const RESERVED_COOKIE: u64 = 1 << 62;
/// Largest number of a node.
const NODE_MAX: u16 = 9_999;
/// Trees are told apart by the bits of an inode number from here up.
const TREE_SHIFT: u32 = 60;
/// So many values have those bits.
const TREES: usize = 1 << (u64::BITS - TREE_SHIFT);

const _: () = assert!(PROC_BASE >> TREE_SHIFT == 1);
const _: () = assert!(DEV_BASE >> TREE_SHIFT == 2);
const _: () = assert!(JOINT_BASE >> TREE_SHIFT == 3);

/// Tells which nodes there are.
pub type Nodes = Box<dyn Fn() -> Vec<NodeId> + Send + Sync>;

/// A name in the root.
struct Reserved {
    name: Name,
    branch: InodeNo,
}

/// A name in every `node<N>`.
struct PerNode {
    name: Name,
    branch: fn(NodeId) -> InodeNo,
}

/// What a name in the root stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// A file's name.
    Files,
    /// The root of another tree.
    Branch(InodeNo),
    /// The directory of a node.
    Joint(NodeId),
    /// Reserved for a node that is not there.
    Nothing,
}

/// Joins the trees.
pub struct Root {
    /// By the upper bits of an inode number.
    trees: [Option<Arc<dyn Tree>>; TREES],
    reserved: Vec<Reserved>,
    per_node: Vec<PerNode>,
    nodes: Nodes,
    rights: NodeRights,
    /// Branches that the kernel may know, with the directory each lies in.
    branches: DashMap<InodeNo, InodeNo>,
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |name: &Name| format!("{name:?}");
        f.debug_struct("Root")
            .field(
                "reserved",
                &Vec::from_iter(self.reserved.iter().map(|r| names(&r.name))),
            )
            .field(
                "per_node",
                &Vec::from_iter(self.per_node.iter().map(|p| names(&p.name))),
            )
            .finish_non_exhaustive()
    }
}

impl Root {
    /// Returns a root with the files alone.
    #[must_use]
    pub fn new(files: Arc<dyn Tree>) -> Self {
        let mut trees = [const { None }; TREES];
        trees[0] = Some(Arc::clone(&files));
        Self {
            trees,
            rights: NodeRights::new(files),
            reserved: Vec::new(),
            per_node: Vec::new(),
            nodes: Box::new(Vec::new),
            branches: DashMap::new(),
        }
    }

    /// Puts a tree at `name` in the root; `branch` is its root directory, and its inode numbers are those with the
    /// same upper bits.
    ///
    /// # Panics
    /// If the name or those numbers are taken.
    #[must_use]
    pub fn with(mut self, name: Name, tree: Arc<dyn Tree>, branch: InodeNo) -> Self {
        assert_eq!(self.place(&name), Place::Files, "{name:?} is reserved once");
        self.plant(tree, branch);
        self.branches.insert(branch, InodeNo::ROOT);
        self.reserved.push(Reserved { name, branch });
        self
    }

    /// Makes a directory `node<N>` in the root for every node that `nodes` tells.
    #[must_use]
    pub fn with_nodes(mut self, nodes: impl Fn() -> Vec<NodeId> + Send + Sync + 'static) -> Self {
        self.nodes = Box::new(nodes);
        self
    }

    /// Puts a tree at `name` in every `node<N>`; `branch` tells the directory for a node.
    ///
    /// # Panics
    /// If the numbers belong to a tree put at another place.
    #[must_use]
    pub fn with_per_node(
        mut self,
        name: Name,
        tree: Arc<dyn Tree>,
        branch: fn(NodeId) -> InodeNo,
    ) -> Self {
        assert!(
            self.per_node.iter().all(|per_node| per_node.name != name),
            "{name:?} is reserved once"
        );
        self.plant(tree, branch(NodeId(1)));
        self.per_node.push(PerNode { name, branch });
        self
    }

    /// Enters a tree. One tree may have several branches.
    fn plant(&mut self, tree: Arc<dyn Tree>, branch: InodeNo) {
        let slot = tree_index(branch);
        assert!(
            slot != 0 && slot != tree_index(InodeNo(JOINT_BASE)),
            "the numbers of {branch:?} belong to the files or to the joints"
        );
        let taken = self.trees[slot].replace(Arc::clone(&tree));
        assert!(
            taken.is_none_or(|old| Arc::ptr_eq(&old, &tree)),
            "the numbers of {branch:?} belong to one tree"
        );
    }

    /// Returns the tree that answers for an inode, or an error for one that nobody has made.
    fn tree(&self, ino: InodeNo) -> Result<&Arc<dyn Tree>, Errno> {
        self.trees[tree_index(ino)].as_ref().ok_or(Errno::ESTALE)
    }

    /// Returns the tree for something that is not done to joints.
    fn owner(&self, ino: InodeNo) -> Result<&Arc<dyn Tree>, Errno> {
        if joint(ino).is_some() {
            return Err(Errno::EPERM);
        }
        self.tree(ino)
    }

    fn place(&self, name: &Name) -> Place {
        if let Some(reserved) = self.reserved.iter().find(|r| r.name == *name) {
            return Place::Branch(reserved.branch);
        }
        match node_of(name) {
            None => Place::Files,
            Some(node) if (self.nodes)().contains(&node) => Place::Joint(node),
            Some(_) => Place::Nothing,
        }
    }

    fn place_in(&self, parent: InodeNo, name: &Name) -> Place {
        if parent == InodeNo::ROOT {
            self.place(name)
        } else {
            Place::Files
        }
    }

    /// Refuses to make what is reserved.
    fn may_make(&self, parent: InodeNo, name: &Name) -> Result<(), Errno> {
        match self.place_in(parent, name) {
            Place::Files => Ok(()),
            Place::Branch(_) | Place::Joint(_) => Err(Errno(libc::EEXIST)),
            Place::Nothing => Err(Errno::EPERM),
        }
    }

    /// Refuses to remove or move what is reserved, as if it were a mount point.
    fn may_take(&self, parent: InodeNo, name: &Name) -> Result<(), Errno> {
        match self.place_in(parent, name) {
            Place::Files => Ok(()),
            Place::Branch(_) | Place::Joint(_) => Err(Errno(libc::EBUSY)),
            Place::Nothing => Err(Errno::ENOENT),
        }
    }

    /// Returns the directory that a branch lies in; `None` for what is no branch.
    fn parent_of_branch(&self, ino: InodeNo) -> Option<InodeNo> {
        self.branches.get(&ino).map(|parent| *parent)
    }

    async fn branch_entry(&self, caller: Caller, branch: InodeNo) -> Result<EntryReply, Errno> {
        let AttrReply { attr, hold, .. } = self.tree(branch)?.getattr(caller, branch, None).await?;
        // The name stands for this directory as long as the mount lives.
        Ok(EntryReply {
            attr: Some(attr),
            ttl: CACHE,
            attr_ttl: NO_CACHE,
            hold,
        })
    }

    async fn joint_attr(&self, node: NodeId) -> Result<Attr, Errno> {
        let rights = self.rights.shown(node).await?;
        Ok(self.joint_attr_with(node, rights))
    }

    fn joint_attr_with(&self, node: NodeId, rights: Rights) -> Attr {
        let branches = u32::try_from(self.per_node.len()).unwrap_or(u32::MAX);
        Attr {
            ino: joint_ino(node),
            kind: FileKind::Dir,
            mode: rights.mode,
            nlink: 2 + branches,
            uid: rights.uid,
            gid: rights.gid,
            rdev: 0,
            size: 0,
            blocks: 0,
            // The same on every node.
            atime: Timestamp::default(),
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            btime: Timestamp::default(),
            version: Version(1),
        }
    }

    async fn list_root(
        &self,
        caller: Caller,
        after: u64,
        limit: usize,
        plus: bool,
    ) -> Result<ListReply, Errno> {
        let files = self.tree(InodeNo::ROOT)?;
        let mut next = after;
        while next < RESERVED_COOKIE {
            let mut page = files
                .readdir(caller, InodeNo::ROOT, next, limit, plus)
                .await?;
            let Some(last) = page.entries.last() else {
                break;
            };
            next = last.cookie;
            // What lies below a reserved name cannot be reached and is not shown.
            for hidden in page
                .entries
                .extract_if(.., |entry| self.place(&entry.name) != Place::Files)
            {
                if let Some(attr) = hidden.entry.and_then(|entry| entry.attr) {
                    files.forget(attr.ino, 1);
                }
            }
            if !page.entries.is_empty() {
                return Ok(page);
            }
        }
        let reserved = self.reserved.iter().zip(0..).map(|(reserved, index)| {
            let cookie = RESERVED_COOKIE + index;
            (reserved.name.clone(), reserved.branch, cookie)
        });
        let mut nodes = (self.nodes)();
        nodes.sort_unstable();
        let first_node = RESERVED_COOKIE + self.reserved.len() as u64;
        let nodes = nodes.into_iter().filter_map(|node| {
            let cookie = first_node + u64::from(node.0);
            Some((node_name(node)?, joint_ino(node), cookie))
        });
        Ok(listing(
            InodeNo::ROOT,
            reserved.chain(nodes),
            next.max(after),
            limit,
        ))
    }
}

/// Makes a page of directories that the kernel does not get to know by it.
fn listing(
    parent: InodeNo,
    names: impl Iterator<Item = (Name, InodeNo, u64)>,
    after: u64,
    limit: usize,
) -> ListReply {
    let entries = names
        .filter(|(_, _, cookie)| *cookie > after || after < RESERVED_COOKIE)
        .take(limit)
        .map(|(name, ino, cookie)| ListEntry {
            name,
            ino,
            kind: FileKind::Dir,
            cookie,
            entry: None,
        })
        .collect();
    ListReply {
        parent: Some(parent),
        entries,
    }
}

fn tree_index(ino: InodeNo) -> usize {
    // Four bits.
    (ino.0 >> TREE_SHIFT) as usize
}

fn joint_ino(node: NodeId) -> InodeNo {
    InodeNo(JOINT_BASE + u64::from(node.0))
}

/// Returns the node whose directory an inode is.
fn joint(ino: InodeNo) -> Option<NodeId> {
    let number = ino.0.checked_sub(JOINT_BASE)?;
    u16::try_from(number).ok().map(NodeId)
}

fn node_name(node: NodeId) -> Option<Name> {
    Name::new(format!("node{}", node.0)).ok()
}

/// Returns the node that a name is reserved for: `node1` to `node9999`, without leading zeros.
fn node_of(name: &Name) -> Option<NodeId> {
    let digits = name.as_bytes().strip_prefix(b"node")?;
    let number = std::str::from_utf8(digits).ok()?;
    let plain = number.bytes().all(|byte| byte.is_ascii_digit()) && !number.starts_with('0');
    let node = number.parse().ok().filter(|_| plain)?;
    (1..=NODE_MAX).contains(&node).then_some(NodeId(node))
}

#[cfg(test)]
mod tests;
