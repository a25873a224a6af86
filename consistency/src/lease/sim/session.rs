//! A node's side of sessions: opening, renewing, losing and reclaiming them.

use super::World;
use super::model::{Part, Request};
use super::node::{Node, Timer};
use super::{RETRY, TERM};
use crate::lease::Client;
use crate::lease::mutant::Mutant;
use crate::wire::lease::Mode;
use crate::{Epoch, InodeNo, Instant, LeaseId, NodeId, SessionId};

/// Leases per message of a reclaim: few, to have several parts.
const RECLAIM_PART: usize = 2;

#[derive(Debug)]
pub(super) struct Reclaim {
    pub(super) reign: Epoch,
    pub(super) leases: Vec<(InodeNo, Mode)>,
    pub(super) part: usize,
}

impl World {
    pub(super) fn start(&mut self, id: NodeId) {
        self.set_timer(id, 1, Timer::Renew);
        self.open_session(id);
    }

    /// Everything the node holds is void: its session is over, or the node itself.
    pub(super) fn lose_all(&mut self, id: NodeId) {
        self.void_dirty(id);
        let node = self.nodes.get_mut(&id).expect("a node");
        let (life, attempt) = (node.life, node.attempt);
        let (paused_until, muted_until) = (node.paused_until, node.muted_until);
        let mut client = std::mem::take(&mut node.client);
        client.drop_all();
        *node = Node::new(life, attempt, self.mutation);
        node.client = client;
        node.paused_until = paused_until;
        node.muted_until = muted_until;
    }

    pub(super) fn void_dirty(&mut self, id: NodeId) {
        for (&file, dirty) in &self.nodes[&id].dirty {
            let (flushed, value) = (dirty.flushed, dirty.value);
            self.oracle.void((file, Part::Data), flushed, value);
        }
    }

    /// The leader has ended a session, and its node, which may be paused, has lapsed by its own clock (S4). If it
    /// has not, what it wrote still counts, and L3 is broken.
    pub(super) fn lose_unflushed(&mut self, id: NodeId, session: SessionId) {
        let client = &self.nodes[&id].client;
        if client.session() == Some(session) && client.valid_until() <= self.clock(id) {
            self.void_dirty(id);
        }
    }

    pub(super) fn restart(&mut self, id: NodeId) {
        self.lose_all(id);
        let node = self.nodes.get_mut(&id).expect("a node");
        node.client = Client::new();
        node.client.mutation = self.mutation;
        node.life += 1;
        self.start(id);
    }

    pub(super) fn check_lapse(&mut self, id: NodeId) {
        let now = self.clock(id);
        let node = &self.nodes[&id];
        let over = now >= node.client.valid_until() && !self.mutation.is(Mutant::IgnoreExpiry);
        // Until its first renewal a session that was there already has no time.
        let used = node.client.valid_until() > Instant(0);
        if node.client.session().is_some() && used && over {
            if self.healed() {
                self.oracle
                    .fail(format!("liveness: {id:?} lapsed without a fault"));
            }
            self.lose_all(id);
            self.open_session(id);
        }
    }

    pub(super) fn open_session(&mut self, id: NodeId) {
        let now = self.clock(id);
        let node = self.nodes.get_mut(&id).expect("a node");
        node.attempt += 1;
        node.opening = Some(now);
        let attempt = node.attempt;
        self.send_leader(id, Request::Open { attempt });
        self.set_timer(id, RETRY, Timer::RetryOpen(attempt));
    }

    pub(super) fn renew(&mut self, id: NodeId) {
        let sent_at = self.clock(id);
        let node = &self.nodes[&id];
        if let Some(session) = node.client.session()
            && node.muted_until <= self.now
        {
            self.send_leader(id, Request::Renew { session, sent_at });
        }
    }

    pub(super) fn renewed(&mut self, id: NodeId, sent_at: Instant, reign: Epoch, reclaim: bool) {
        let now = self.clock(id);
        let heard = self.mutation.is(Mutant::CountFromReply);
        let node = self.nodes.get_mut(&id).expect("a node");
        if !reclaim {
            let from = if heard { now } else { sent_at };
            node.client.renewed(from, TERM);
            node.reign = node.reign.max(reign);
            return;
        }
        let begun = node.reclaim.as_ref().is_some_and(|r| r.reign >= reign);
        if node.reign >= reign || begun {
            return;
        }
        // A session that was there already before this node heard of it holds nothing and has no time.
        let leases = node.client.begin_reclaim(now, reign).unwrap_or_default();
        node.reclaim = Some(Reclaim {
            reign,
            leases,
            part: 0,
        });
        self.tell_part(id);
    }

    pub(super) fn tell_part(&mut self, id: NodeId) {
        let node = &self.nodes[&id];
        let (Some(reclaim), Some(session)) = (&node.reclaim, node.client.session()) else {
            return;
        };
        let (part, reign) = (reclaim.part, reclaim.reign);
        let rest = reclaim.leases.iter().skip(part * RECLAIM_PART);
        let leases: Vec<_> = rest.clone().take(RECLAIM_PART).copied().collect();
        let last = rest.count() <= RECLAIM_PART;
        let request = Request::Reclaim {
            session,
            reign,
            part,
            leases,
            last,
        };
        self.send_leader(id, request);
        self.set_timer(id, RETRY, Timer::RetryReclaim(reign, part));
    }

    pub(super) fn part_told(
        &mut self,
        id: NodeId,
        reign: Epoch,
        part: usize,
        names: &[Option<LeaseId>],
    ) {
        let node = self.nodes.get_mut(&id).expect("a node");
        let Some(reclaim) = &mut node.reclaim else {
            return;
        };
        let session = node.client.session().expect("a reclaim has a session");
        if (reclaim.reign, reclaim.part) != (reign, part) {
            return;
        }
        let told = reclaim.leases.iter().skip(part * RECLAIM_PART);
        let pairs: Vec<_> = told
            .zip(names)
            .map(|(&(ino, _), &name)| (ino, name))
            .collect();
        reclaim.part += 1;
        let done = reclaim.leases.len() <= reclaim.part * RECLAIM_PART;
        let released = node.client.reclaimed(&pairs);
        for &(ino, _) in pairs.iter().filter(|(_, name)| name.is_none()) {
            node.cache.remove(&ino);
            node.known.remove(&ino);
        }
        if done {
            node.reclaim = None;
            node.reign = reign;
        }
        for (ino, lease) in released {
            let release = Request::Release {
                session,
                ino,
                lease,
            };
            self.send_leader(id, release);
        }
        if done {
            self.renew(id);
        } else {
            self.tell_part(id);
        }
    }
}
