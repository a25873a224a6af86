//! STATFS, answered from what was heard within the last second of the same inode.

use super::unexpected;
use crate::client::Core;
use crate::error::Errno;
use consistency::InodeNo;
use consistency::wire::meta::{Op, OpReply, StatFs};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Numbers of free bytes are estimates; no rule covers them.
const FRESH: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(in crate::client) struct StatFsCache(Mutex<Option<(Instant, InodeNo, StatFs)>>);

pub(super) async fn statfs(core: &Arc<Core>, ino: InodeNo) -> Result<StatFs, Errno> {
    let known = *core.statfs.0.lock().expect("no holder panics");
    if let Some((_, _, numbers)) = known.filter(|(at, of, _)| *of == ino && at.elapsed() < FRESH) {
        return Ok(numbers);
    }
    let task = {
        let core = Arc::clone(core);
        async move {
            let (reply, _ticket) = core.op(Op::StatFs { ino }).await?;
            let OpReply::StatFs(numbers) = reply else {
                return Err(unexpected(&reply));
            };
            *core.statfs.0.lock().expect("no holder panics") = Some((Instant::now(), ino, numbers));
            Ok(numbers)
        }
    };
    core.detached(task).await
}
