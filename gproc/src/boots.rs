//! When nodes booted, compared with each other. A process's start is counted from the boot of its node; who sees all nodes as
//! one machine needs it from the boot of that one, which is the boot of the first node, as its `uptime` is.
//!
//! Nodes are compared by their uptimes at one moment, not by their clocks. Each is measured once a boot, so that the start of
//! a process does not waver; what lies closer together than a measurement is exact is the same moment.

use crate::wire::Birth;
use consistency::NodeId;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Ticks of procfs in a second, the same on every Linux.
const HERTZ: f64 = 100.0;
/// How long a node that did not say is not asked again.
const ASKED_AGAIN: Duration = Duration::from_secs(10);

/// What is known of the boots. Its lock is a leaf.
#[derive(Debug, Default)]
pub(crate) struct Boots(Mutex<BTreeMap<NodeId, Boot>>);

#[derive(Clone, Copy, Debug)]
struct Boot {
    /// Which one, once a process of it was seen.
    which: Option<u64>,
    asked: Instant,
    /// In seconds before an arbitrary moment, the same for all nodes; `None`: it did not say.
    before: Option<f64>,
}

impl Boots {
    /// Returns how many ticks after the first node the node of a process has booted; `None` if that has to be measured.
    pub(crate) fn behind_first(&self, node: NodeId, birth: Birth) -> Option<u64> {
        let which = birth.boot();
        let mut boots = self.lock();
        let boot = boots.get_mut(&node)?;
        match boot.before {
            None => return (boot.asked.elapsed() < ASKED_AGAIN).then_some(0),
            Some(_) if *boot.which.get_or_insert(which) != which => {
                // It has booted again.
                boots.remove(&node);
                return None;
            }
            Some(_) => {}
        }
        let own = boot.before?;
        let first = boots.values().filter_map(|boot| boot.before);
        let behind = first.fold(own, f64::max) - own;
        // Saturates, also of what a peer made up.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let seconds = behind.round() as u64;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let hertz = HERTZ as u64;
        Some(seconds.saturating_mul(hertz))
    }

    /// Takes what nodes said of their uptime when they were asked; `None` of one that did not.
    pub(crate) fn measured(
        &self,
        since: Instant,
        asked: Instant,
        said: impl IntoIterator<Item = (NodeId, Option<f64>)>,
    ) {
        let passed = asked.duration_since(since).as_secs_f64();
        let mut boots = self.lock();
        for (node, up) in said {
            let before = up.filter(|up| up.is_finite()).map(|up| up - passed);
            let known = boots.get(&node).is_some_and(|boot| boot.before.is_some());
            if !known {
                let boot = Boot {
                    which: None,
                    asked,
                    before,
                };
                boots.insert(node, boot);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Boot>> {
        self.0.lock().expect("no holder panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BIRTH: Birth = Birth(7 << 44 | 5);

    #[test]
    fn starts_are_counted_from_the_first_boot() {
        let (boots, since) = (Boots::default(), Instant::now());
        let later = since + Duration::from_secs(10);
        let behind = |node| boots.behind_first(NodeId(node), BIRTH);
        assert_eq!(behind(1), None);
        boots.measured(since, since, [(NodeId(1), Some(400.0)), (NodeId(3), None)]);
        assert_eq!((behind(1), behind(3)), (Some(0), Some(0)));
        // Asked ten seconds later, it has been up for 1,000 s: it was first, by 590 s.
        boots.measured(since, later, [(NodeId(2), Some(1000.004))]);
        assert_eq!((behind(1), behind(2)), (Some(59_000), Some(0)));
        // What is known stays, until the node has booted again.
        boots.measured(since, later, [(NodeId(1), Some(411.0))]);
        assert_eq!(behind(1), Some(59_000));
        let next = Birth(8 << 44);
        assert_eq!(boots.behind_first(NodeId(1), next), None);
        boots.measured(since, later, [(NodeId(1), Some(2.0))]);
        assert_eq!(boots.behind_first(NodeId(1), next), Some(99_800));
        boots.measured(since, later, [(NodeId(4), Some(f64::NAN))]);
        assert_eq!(behind(4), Some(0));
    }
}
