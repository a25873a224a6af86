//! What happens in the cluster, for readers of `/cluster/proc/cluster/events`: a line each.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// So many lines are kept for readers that are behind; who is further behind misses some.
pub const EVENTS_KEPT: usize = 1024;

/// The events since the daemon started.
#[derive(Debug)]
pub struct Events {
    kept: Mutex<VecDeque<String>>,
    /// How many there have been.
    count: watch::Sender<u64>,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            kept: Mutex::default(),
            count: watch::Sender::new(0),
        }
    }
}

impl Events {
    /// Tells the readers; `what` is one line.
    pub fn tell(&self, what: &str) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let line = format!("{} {what}\n", now.unwrap_or_default().as_secs());
        let mut kept = self.lock();
        if kept.len() == EVENTS_KEPT {
            kept.pop_front();
        }
        kept.push_back(line);
        // Counted with the lock held: a reader who sees the count finds the line.
        self.count.send_modify(|count| *count += 1);
    }

    /// Returns where a reader begins who wants what comes.
    pub(crate) fn position(&self) -> u64 {
        *self.count.borrow()
    }

    /// Waits until there is something behind a position; returns it, with the position behind it.
    pub(crate) async fn behind(&self, position: u64) -> (String, u64) {
        let mut count = self.count.subscribe();
        let told = count.wait_for(|count| *count > position).await;
        told.expect("the sender lives as long as this");
        let kept = self.lock();
        let count = *self.count.borrow();
        let missed = usize::try_from(count - position).unwrap_or(usize::MAX);
        let from = kept.len().saturating_sub(missed);
        (kept.range(from..).map(String::as_str).collect(), count)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.kept.lock().expect("no holder panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(lines: &str) -> Vec<&str> {
        let lines = lines.lines();
        lines
            .map(|line| line.split_once(' ').expect("a time").1)
            .collect()
    }

    #[tokio::test]
    async fn a_reader_gets_what_comes_after_it_began() {
        let events = Events::default();
        events.tell("node 1 up");
        let began = events.position();
        let (told, ()) = tokio::join!(events.behind(began), async {
            events.tell("node 2 up");
            events.tell("node 2 down");
        });
        let (lines, position) = told;
        let (rest, end) = if texts(&lines).len() == 1 {
            events.behind(position).await
        } else {
            (String::new(), position)
        };
        assert_eq!(texts(&(lines + &rest)), ["node 2 up", "node 2 down"]);
        assert_eq!(end, events.position());
    }

    #[tokio::test]
    async fn who_is_far_behind_misses_some() {
        let events = Events::default();
        for number in 0..EVENTS_KEPT + 10 {
            events.tell(&number.to_string());
        }
        let (lines, end) = events.behind(0).await;
        assert_eq!((texts(&lines)[0], texts(&lines).len()), ("10", EVENTS_KEPT));
        assert_eq!(end, EVENTS_KEPT as u64 + 10);
    }
}
