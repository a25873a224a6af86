//! What a node's store has, for the leader that checks the cluster: a stream of [`frames`].
//!
//! The node says as well what of it a sweep should have decided about by now. It compares its store with the leader's lists
//! every `sweep_every`; what has been there for twice as long without a sweep that came to its end is *overdue*. All else
//! that no file has is waste of a moment.

use super::disk::Disk;
use crate::net::{ByteStream, frames};
use consistency::ChunkId;
use consistency::wire::request::COPIES_PER_MESSAGE;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

/// What is asked of the chunk service on a stream. Part of the protocol: append, never reorder. Who does not know one ends
/// the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ListRequest {
    /// All chunks: [`ListReply::Chunks`] as often as it takes, then [`ListReply::End`].
    All,
}

/// The answers. Part of the protocol: append, never reorder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ListReply {
    /// Some of the chunks.
    Chunks {
        /// Which.
        ids: Vec<ChunkId>,
        /// A sweep should have decided about them.
        overdue: bool,
    },
    /// Those were all.
    End,
    /// The store cannot be listed, and why.
    Failed(String),
}

/// What was there when the first sweep began that has not come to its end.
#[derive(Debug, Default)]
pub(super) struct Unswept(Option<(Instant, Duration, Vec<ChunkId>)>);

impl Unswept {
    /// A sweep has listed the store; another is to come `every` so often.
    pub(super) fn listed(&mut self, now: Instant, every: Duration, ids: &[ChunkId]) {
        if self.0.is_none() {
            self.0 = Some((now, every, ids.to_vec()));
        }
    }

    /// It has come to its end.
    pub(super) fn swept(&mut self) {
        self.0 = None;
    }

    /// Returns what is overdue.
    pub(super) fn overdue(&self, now: Instant) -> BTreeSet<ChunkId> {
        match &self.0 {
            Some((since, every, ids)) if now.duration_since(*since) >= 2 * *every => {
                ids.iter().copied().collect()
            }
            Some(_) | None => BTreeSet::new(),
        }
    }
}

/// Answers a stream.
pub(super) async fn answer(disk: &Disk, stream: &mut ByteStream) -> io::Result<()> {
    let ListRequest::All = frames::receive(&mut stream.reader).await?;
    let ids = match disk.ids().await {
        Ok(ids) => ids,
        Err(failure) => {
            let why = failure.to_string();
            return frames::send(&mut stream.writer, &ListReply::Failed(why)).await;
        }
    };
    let overdue = disk.overdue();
    let (late, rest) = ids
        .into_iter()
        .partition::<Vec<_>, _>(|id| overdue.contains(id));
    for (ids, overdue) in [(late, true), (rest, false)] {
        for ids in ids.chunks(COPIES_PER_MESSAGE) {
            let ids = ids.to_vec();
            frames::send(&mut stream.writer, &ListReply::Chunks { ids, overdue }).await?;
        }
    }
    frames::send(&mut stream.writer, &ListReply::End).await?;
    stream.writer.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::frames::check_golden as check;

    #[test]
    fn golden_bytes() {
        check(&ListRequest::All, &[0]);
        let ids = vec![ChunkId(7)];
        let overdue = true;
        check(&ListReply::Chunks { ids, overdue }, &[0, 1, 7, 1]);
        check(&ListReply::End, &[1]);
        check(&ListReply::Failed("x".into()), &[2, 1, b'x']);
    }

    /// What a sweep has decided about is not overdue, nor what came later than the one that failed.
    #[test]
    fn overdue_is_what_no_sweep_has_decided_about() {
        let every = Duration::from_secs(300);
        let at = |start: Instant, s| start + Duration::from_secs(s);
        let (start, mut unswept) = (Instant::now(), Unswept::default());
        unswept.listed(start, every, &[ChunkId(1)]);
        unswept.listed(at(start, 300), every, &[ChunkId(1), ChunkId(2)]);
        assert_eq!(unswept.overdue(at(start, 599)), BTreeSet::new());
        assert_eq!(unswept.overdue(at(start, 600)), [ChunkId(1)].into());
        unswept.swept();
        assert_eq!(unswept.overdue(at(start, 10_000)), BTreeSet::new());
        unswept.listed(at(start, 10_000), every, &[ChunkId(2)]);
        assert_eq!(unswept.overdue(at(start, 10_599)), BTreeSet::new());
        assert_eq!(unswept.overdue(at(start, 10_600)), [ChunkId(2)].into());
    }
}
