//! Every move is told to every node, for those who read `cluster/events` there. Home tells: it alone knows of all moves of
//! its jobs. A node that cannot be reached just then misses the line.

use super::super::protocol::{Asked, Moved};
use super::{Travel, ask};
use crate::events::Events;
use std::sync::Arc;

impl Travel {
    /// Has moves be told here.
    pub(in crate::job) fn tell_moves(&self, events: Arc<Events>) {
        self.events.set(events).ok();
    }

    /// Tells every node of a move.
    pub(super) async fn tell_of(&self, pid: i32, moved: Moved) {
        self.hear_of(pid, moved);
        let Ok(transport) = self.transport() else {
            return;
        };
        let others = transport
            .nodes()
            .into_iter()
            .filter(|node| *node != self.node);
        let told = others.map(|node| async move {
            if let Err(error) = ask(&**transport, node, pid, Asked::Heard(moved)).await {
                tracing::debug!(pid, %node, %error, "a node does not hear of a move");
            }
        });
        futures::future::join_all(told).await;
    }

    /// Tells those who read here.
    pub(super) fn hear_of(&self, pid: i32, moved: Moved) {
        if let Some(events) = self.events.get() {
            events.tell(&line(pid, moved));
        }
    }
}

fn line(pid: i32, moved: Moved) -> String {
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
    format!("process {pid} moved {from} {to} {why} {took_ms} ms")
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
        assert_eq!(line(7, moved(None)), "process 7 moved 1 2 asked 812 ms");
        let levelled = line(7, moved(Some(Because::Crowded)));
        assert_eq!(levelled, "process 7 moved 1 2 levelling crowded 812 ms");
    }
}
