//! Counts of the whole tree.

use crate::server::state::MetaState;
use consistency::wire::meta::{OpReply, StatFs};

/// The room on the disks is not part of the state: the leader adds it from the nodes' reports.
pub(super) fn reply(state: &MetaState) -> OpReply {
    OpReply::StatFs(StatFs {
        inodes: state.counts().inodes,
        ..StatFs::default()
    })
}
