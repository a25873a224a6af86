//! The inodes of the device trees.
//!
//! ```text
//! DEV_BASE | node (16 bits) | serial (44 bits)
//! ```
//! Serial 0 is the node's `/dev`. Others are given out as the kernel asks and never again, one for each thing ever seen
//! at a path: when another type, device or link target takes its place, that is another inode. An inode goes when
//! the kernel has forgotten it.

use crate::path::DevPath;
use crate::wire::{Device, Seen};
use bytes::Bytes;
use consistency::wire::meta::FileKind;
use consistency::{InodeNo, NodeId};
use gfs::tree::DEV_BASE;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};
use std::time::Instant;

const SERIAL_BITS: u32 = 44;

/// What makes two inodes one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    owner: NodeId,
    path: DevPath,
    kind: FileKind,
    device: Option<Device>,
    target: Option<Bytes>,
}

/// An inode that the kernel knows.
#[derive(Clone, Debug)]
pub(super) struct Inode {
    pub(super) number: InodeNo,
    pub(super) owner: NodeId,
    pub(super) path: DevPath,
    pub(super) seen: Seen,
    /// When the owner was asked about it.
    pub(super) asked: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Inodes {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    by_number: HashMap<InodeNo, (Arc<Inode>, u64)>,
    by_key: HashMap<Key, InodeNo>,
    last_serial: u64,
}

/// Returns the root of a node's devices.
pub(super) const fn root(owner: NodeId) -> InodeNo {
    InodeNo(DEV_BASE | (owner.0 as u64) << SERIAL_BITS)
}

/// Returns the owner if the number is that of a root.
pub(super) fn owner_of_root(number: InodeNo) -> Option<NodeId> {
    let owner = NodeId(u16::try_from(number.0 >> SERIAL_BITS & 0xffff).ok()?);
    (root(owner) == number).then_some(owner)
}

/// Returns a number to list a name with that is not made known: half of the serials are for these.
pub(super) fn number_for_listing(owner: NodeId, path: &DevPath) -> InodeNo {
    let half = 1 << (SERIAL_BITS - 1);
    InodeNo(root(owner).0 | half | (hash(path) & (half - 1)))
}

/// Returns a hash that is the same as long as this process lives.
pub(super) fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

impl Inodes {
    /// Counts a lookup and returns the inode, with `seen` as its attributes.
    pub(super) fn look_up(&self, owner: NodeId, path: DevPath, seen: Seen) -> Arc<Inode> {
        let node = &seen.node;
        let key = Key {
            owner,
            path: path.clone(),
            kind: node.kind,
            device: node.device,
            target: node.target.clone(),
        };
        let mut table = self.table.lock().expect("no holder panics");
        let table = &mut *table;
        let number = *table.by_key.entry(key).or_insert_with(|| {
            table.last_serial += 1;
            InodeNo(root(owner).0 | table.last_serial)
        });
        let inode = Arc::new(Inode {
            number,
            owner,
            path,
            seen,
            asked: Instant::now(),
        });
        let lookups = table
            .by_number
            .get(&number)
            .map_or(0, |(_, lookups)| *lookups);
        let known = (Arc::clone(&inode), lookups + 1);
        table.by_number.insert(number, known);
        inode
    }

    /// Returns an inode that the kernel knows.
    pub(super) fn inode(&self, number: InodeNo) -> Option<Arc<Inode>> {
        let table = self.table.lock().expect("no holder panics");
        let (inode, _) = table.by_number.get(&number)?;
        Some(Arc::clone(inode))
    }

    /// Takes lookups back.
    pub(super) fn forget(&self, number: InodeNo, count: u64) {
        let mut table = self.table.lock().expect("no holder panics");
        let Some((inode, lookups)) = table.by_number.get_mut(&number) else {
            return;
        };
        *lookups = lookups.saturating_sub(count);
        if *lookups == 0 {
            let key = Key {
                owner: inode.owner,
                path: inode.path.clone(),
                kind: inode.seen.node.kind,
                device: inode.seen.node.device,
                target: inode.seen.node.target.clone(),
            };
            table.by_key.remove(&key);
            table.by_number.remove(&number);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let table = self.table.lock().expect("no holder panics");
        assert_eq!(table.by_key.len(), table.by_number.len());
        table.by_key.len()
    }
}
