//! Room and counts of the whole tree, or of one with a quota.

use crate::server::state::MetaState;
use consistency::InodeNo;
use consistency::wire::meta::{OpReply, StatFs};

/// The room on the disks is not part of the state: the leader adds it from the nodes' reports.
pub(super) fn reply(state: &MetaState, ino: InodeNo) -> OpReply {
    let whole = StatFs {
        inodes: state.counts().inodes,
        ..StatFs::default()
    };
    OpReply::StatFs(within_quota(state, ino, whole))
}

/// Narrows the numbers of everything to those of the tree with a quota that an inode is in, as ext4 does for a
/// project. A limit of bytes above what the disks have changes nothing.
pub(crate) fn within_quota(state: &MetaState, ino: InodeNo, whole: StatFs) -> StatFs {
    let Some(tree) = state.quotas.of(ino) else {
        return whole;
    };
    let mut within = StatFs {
        inodes: tree.used.inodes,
        inodes_free: tree.inodes_left(),
        ..whole
    };
    if let (Some(limit), Some(left)) = (tree.limits.bytes, tree.bytes_left())
        && limit < whole.bytes_total
    {
        within.bytes_total = limit;
        within.bytes_free = left.min(whole.bytes_free);
    }
    within
}
