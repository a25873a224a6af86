//! What goes wrong in a world, and how that ends.

use super::life::VOTERS;
use super::shared::{Doom, Doomed, Host, Weather};
use super::world::{MS, NODES, Plan, World};
use crate::data::simulated::ChunkFault;
use crate::server::log::DiskFault;
use consistency::NodeId;
use std::collections::BTreeSet;
use std::time::Duration;

impl World {
    /// Returns a node that believes to lead.
    fn leader(&self) -> Option<NodeId> {
        let state = self.shared.state();
        let leads = |host: &Host| {
            let log = host.log.as_ref();
            log.is_some_and(|log| log.leadership().borrow().leading)
        };
        let mut hosts = state.hosts.iter();
        hosts.find_map(|(node, host)| leads(host).then_some(*node))
    }

    pub(super) fn kill(&mut self, node: NodeId) {
        let mut state = self.shared.state();
        if state.hosts[&node].up {
            state.kill(node);
        }
        // What runs there ends when the node is looked at next.
        drop(state);
        self.nodes.get_mut(&node).expect("a node").paused_until = 0;
    }

    fn any_node(&mut self) -> NodeId {
        NodeId(1 + self.dice.below(NODES))
    }

    pub(super) fn fault(&mut self) {
        let (mut node, now) = (self.any_node(), self.now());
        if self.dice.below(3_u8) == 0 {
            node = self.leader().unwrap_or(node);
        }
        match self.dice.below(24_u8) {
            0 => self.kill(node),
            1 => {
                // Power loss.
                let spared = self.dice.below(3_u16);
                for node in self.ids().into_iter().skip(spared.into()) {
                    self.kill(node);
                }
            }
            2..8 => {
                let mut state = self.shared.state();
                let places: Vec<_> = state.points.keys().copied().collect();
                let (who, left) = match self.dice.below(3_u8) {
                    0 => (Doomed::Any(node), self.dice.below(200)),
                    _ => {
                        // Of two the one that is passed less often: else the seldom ones never come.
                        let two = [(); 2].map(|()| places[self.dice.below(places.len())]);
                        let [first, second] = two;
                        let place = if state.points[first] < state.points[second] {
                            first
                        } else {
                            second
                        };
                        (Doomed::At(place), self.dice.below(3))
                    }
                };
                state.dooms.push(Doom { who, left });
            }
            8..11 => {
                let mut state = self.shared.state();
                state.tell(node, || "is cut off".into());
                let (inwards, outwards) = match self.dice.below(4_u8) {
                    0 => (true, false),
                    1 => (false, true),
                    _ => (true, true),
                };
                // Whom nobody but the voters miss is asked on by the others.
                let others = match self.dice.below(2_u8) {
                    0 => VOTERS,
                    _ => NODES,
                };
                for other in (1..=others).map(NodeId).filter(|other| *other != node) {
                    if inwards {
                        state.cuts.insert((other, node));
                    }
                    if outwards {
                        state.cuts.insert((node, other));
                    }
                }
                drop(state);
                let until = now + self.dice.below(4_500 * MS);
                self.plan(until, Plan::Connect);
            }
            11..14 => {
                let until = now + self.dice.below(3_500 * MS);
                let state = self.shared.state();
                state.tell(node, || format!("is stopped until {} ms", until / MS));
                self.nodes.get_mut(&node).expect("a node").paused_until = until;
            }
            14 => {
                let fault = match self.dice.below(2_u8) {
                    0 => DiskFault::SyncFails,
                    _ => DiskFault::Full,
                };
                let state = self.shared.state();
                state.tell(node, || format!("has a disk that fails: {fault:?}"));
                state.hosts[&node].disk.fail(fault);
                drop(state);
                let after = self.dice.below(2_000 * MS);
                self.plan(now + after, Plan::Mend(node));
                self.plan(now + after + 1, Plan::Kill(node));
            }
            15..18 => self.fault_of_chunks(node),
            18 | 19 => self.damage(),
            20 | 21 => self.change_voters(),
            _ => {
                let most = self.dice.below(4_u32);
                self.shared.state().weather = Weather {
                    lost_per_mille: self.dice.below(1 + most * 50),
                    late_per_mille: self.dice.below(1 + most * 100),
                    late_ms: self.dice.below(1 + most * 500),
                };
            }
        }
    }

    /// The leader is told to make all nodes but one voters; something else may go wrong meanwhile.
    fn change_voters(&mut self) {
        let out = self.any_node();
        let Some(leader) = self.leader() else { return };
        let voters: BTreeSet<NodeId> = self.ids().into_iter().filter(|id| *id != out).collect();
        let state = self.shared.state();
        state.tell(leader, || format!("is to make all but node {out} voters"));
        let log = state.hosts[&leader].log.clone();
        drop(state);
        let runtime = self.nodes[&leader].runtime.as_ref();
        if let (Some(log), Some(runtime)) = (log, runtime) {
            // It may fail as everything may.
            drop(runtime.spawn(async move { log.set_voters(&voters).await }));
        }
    }

    /// A copy is damaged, and sometimes the other one cannot be read for a while then.
    fn damage(&mut self) {
        let state = self.shared.state();
        let damage = self.copies.damage(&state, &mut self.dice);
        let Some((chunk, node, other)) = damage else {
            return;
        };
        state.tell(node, || format!("has chunk {chunk} damaged"));
        drop(state);
        if self.dice.below(2_u8) == 0 {
            let until = self.now() + self.dice.below(3_000 * MS);
            self.fail_chunks(other, ChunkFault::ReadsFail, 0, until);
        }
    }

    /// Disks of chunks fail or are slow for a while.
    fn fault_of_chunks(&mut self, node: NodeId) {
        let mut on = vec![node];
        let fault = match self.dice.below(5_u8) {
            0 => {
                on = self.ids();
                ChunkFault::Full
            }
            1 => ChunkFault::Full,
            2 => ChunkFault::WritesFail,
            3 => ChunkFault::ReadsFail,
            _ => ChunkFault::None,
        };
        let slow = match fault {
            ChunkFault::None => 1 + self.dice.below(3_000),
            _ => 0,
        };
        let until = self.now() + self.dice.below(3_000 * MS);
        for node in on {
            self.fail_chunks(node, fault, slow, until);
        }
    }

    /// A disk of chunks fails, or takes so many milliseconds for a request.
    fn fail_chunks(&mut self, node: NodeId, fault: ChunkFault, slow: u64, until: u64) {
        if fault == ChunkFault::ReadsFail {
            self.copies.unread(node);
        }
        let state = self.shared.state();
        state.tell(node, || {
            format!("has a disk of chunks that fails: {fault:?}, {slow} ms")
        });
        let chunks = &state.hosts[&node].chunks;
        chunks.fail(fault);
        chunks.slow_down(Duration::from_millis(slow));
        drop(state);
        self.plan(until, Plan::MendChunks(node));
    }

    /// Ends all faults; what is down starts.
    pub(super) fn heal(&mut self) {
        let mut state = self.shared.state();
        state.weather = Weather::default();
        state.cuts.clear();
        state.dooms.clear();
        for host in state.hosts.values() {
            host.disk.fail(DiskFault::None);
            host.chunks.fail(ChunkFault::None);
            host.chunks.slow_down(Duration::ZERO);
        }
        drop(state);
        let now = self.now();
        self.plans
            .retain(|_, plan| matches!(plan, Plan::Start(_) | Plan::Kill(_)));
        for node in self.nodes.values_mut() {
            node.paused_until = node.paused_until.min(now);
        }
        let plans = std::mem::take(&mut self.plans);
        for plan in plans.into_values() {
            self.plan(now, plan);
        }
    }
}
