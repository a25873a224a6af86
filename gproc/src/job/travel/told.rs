//! Every move is told to every node, for those who read `cluster/events` there. Home tells: it alone knows of all moves of
//! its jobs. A node that cannot be reached just then misses the line.

use super::super::protocol::{Asked, Cost, Moved, Went};
use super::rules::Event;
use super::wire::Image;
use super::{Travel, ask};
use crate::events::Events;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Of all moves of a home's jobs since its daemon started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MovesCounted {
    /// How many.
    pub moves: u64,
    /// How many of them by post-copy.
    pub post_copies: u64,
    /// How many with pages that went ahead.
    pub pre_copies: u64,
    /// For how long their jobs stood still, in milliseconds.
    pub pause_ms: u64,
    /// What was sent, in bytes.
    pub bytes: u64,
}

/// As [`MovesCounted`], while they happen.
#[derive(Debug, Default)]
pub(super) struct Counted {
    moves: AtomicU64,
    post_copies: AtomicU64,
    pre_copies: AtomicU64,
    pause_ms: AtomicU64,
    bytes: AtomicU64,
}

impl Counted {
    fn add(&self, cost: Cost) {
        let add = |to: &AtomicU64, much| {
            to.fetch_add(much, Ordering::Relaxed);
        };
        add(&self.moves, 1);
        match cost.memory {
            Went::Whole => {}
            Went::PostCopy => add(&self.post_copies, 1),
            Went::PreCopy => add(&self.pre_copies, 1),
        }
        add(&self.pause_ms, cost.pause_ms.into());
        add(&self.bytes, cost.bytes);
    }
}

/// Measures a move, at home.
#[derive(Debug, Default)]
pub(super) struct Meter {
    still_since: Option<Instant>,
    pub(super) cost: Cost,
}

impl Meter {
    pub(super) fn stands_still(&mut self) {
        *self = Self {
            still_since: Some(Instant::now()),
            cost: Cost::default(),
        };
    }

    /// For who looks for what takes its time.
    pub(super) fn note(&self, pid: i32, event: &Event) {
        if let Some(since) = self.still_since {
            let after = since.elapsed();
            tracing::debug!(pid, ?event, ?after, "a job moves");
        }
    }

    /// `ahead`: so many bytes have gone before.
    pub(super) fn sends(&mut self, memory: Went, images: &[Image], ahead: u64) {
        self.cost.memory = memory;
        let images = images.iter().map(|image| image.bytes.len() as u64);
        self.cost.bytes = ahead + images.sum::<u64>();
    }

    pub(super) fn runs(&mut self) {
        if let Some(since) = self.still_since.take() {
            let pause = since.elapsed().as_millis();
            self.cost.pause_ms = u32::try_from(pause).unwrap_or(u32::MAX);
        }
    }
}

impl Travel {
    /// Has moves be told here.
    pub(in crate::job) fn tell_moves(&self, events: Arc<Events>) {
        self.events.set(events).ok();
    }

    /// Tells every node of a move.
    pub(super) async fn tell_of(&self, pid: i32, moved: Moved, cost: Cost) {
        self.counted.add(cost);
        self.hear_of(pid, moved, Some(cost));
        let Ok(transport) = self.transport() else {
            return;
        };
        let others = transport
            .nodes()
            .into_iter()
            .filter(|node| *node != self.node);
        let told = others.map(|node| async move {
            let asked = Asked::HeardOf(moved, cost);
            let version = transport.version_of(node);
            let asked = match version {
                Some(version) if version < asked.since() => Asked::Heard(moved),
                _ => asked,
            };
            if let Err(error) = ask(&**transport, node, pid, asked).await {
                tracing::debug!(pid, %node, %error, "a node does not hear of a move");
            }
        });
        futures::future::join_all(told).await;
    }

    /// Tells those who read here.
    pub(super) fn hear_of(&self, pid: i32, moved: Moved, cost: Option<Cost>) {
        if let Some(events) = self.events.get() {
            events.tell(&line(pid, moved, cost));
        }
    }

    pub(in crate::job) fn moves_counted(&self) -> MovesCounted {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        MovesCounted {
            moves: count(&self.counted.moves),
            post_copies: count(&self.counted.post_copies),
            pre_copies: count(&self.counted.pre_copies),
            pause_ms: count(&self.counted.pause_ms),
            bytes: count(&self.counted.bytes),
        }
    }
}

/// `cost`: a home of version 11 does not tell it.
fn line(pid: i32, moved: Moved, cost: Option<Cost>) -> String {
    let Moved {
        from,
        to,
        because,
        took_ms,
    } = moved;
    let why = because.map_or_else(
        || "asked".to_owned(),
        |because| format!("levelling {}", because.word()),
    );
    let cost = cost.map_or_else(String::new, |cost| {
        let Cost {
            pause_ms,
            bytes,
            memory,
        } = cost;
        format!(" pause {pause_ms} ms {bytes} bytes {}", memory.word())
    });
    format!("process {pid} moved {from} {to} {why} {took_ms} ms{cost}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::level::Because;
    use consistency::NodeId;

    #[test]
    fn lines() {
        let moved = |because| Moved {
            from: NodeId(1),
            to: NodeId(2),
            because,
            took_ms: 812,
        };
        assert_eq!(
            line(7, moved(None), None),
            "process 7 moved 1 2 asked 812 ms"
        );
        let mut cost = Cost {
            pause_ms: 90,
            bytes: 4096,
            memory: Went::Whole,
        };
        let levelled = line(7, moved(Some(Because::Crowded)), Some(cost));
        assert_eq!(
            levelled,
            "process 7 moved 1 2 levelling crowded 812 ms pause 90 ms 4096 bytes whole"
        );
        cost.memory = Went::PostCopy;
        assert_eq!(
            line(7, moved(None), Some(cost)),
            "process 7 moved 1 2 asked 812 ms pause 90 ms 4096 bytes post-copy"
        );
    }
}
