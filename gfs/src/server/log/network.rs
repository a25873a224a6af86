//! Raft's messages over [`Transport`], and two of our own, encoded with the wire codec.

use super::election::{Heard, Sign};
use super::raft::{Entry, LogId, Raft, Types, node};
use super::store::LogEnd;
use super::words::Words;
use crate::net::{NetError, Service, ServiceId, Transport};
use async_trait::async_trait;
use bytes::Bytes;
use consistency::{NodeId, wire};
use openraft::error::{
    Fatal, InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{EmptyNode, ServerState, Vote};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Bytes of a snapshot in one call.
pub(super) const SNAPSHOT_CHUNK_BYTES: usize = 1 << 20;
const _: () = assert!(SNAPSHOT_CHUNK_BYTES * 2 < wire::MESSAGE_BYTES_MAX);

/// What one voter asks of another. Part of the protocol: append, never reorder.
#[derive(Serialize, Deserialize)]
pub(super) enum Request {
    Append(AppendEntriesRequest<Types>),
    Vote(VoteRequest<u16>),
    Snapshot(InstallSnapshotRequest<Types>),
    /// Whether the other would vote for a node whose log ends here; answered by a truth value.
    WouldVote(Option<LogId>),
    /// Whether the other follows the leader that was elected with this vote; answered by a truth value.
    Follow(Vote<u16>),
}

type Failure<E> = RPCError<u16, EmptyNode, E>;

/// Makes connections to the other voters.
#[derive(Clone, Debug)]
pub(super) struct Network {
    pub transport: Arc<dyn Transport>,
    pub words: Words,
    /// How long to leave a voter alone that could not be reached; short, or it starts elections.
    pub backoff: Duration,
}

/// The way to one other voter.
#[derive(Debug)]
pub(super) struct Peer {
    network: Network,
    to: NodeId,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u16, _: &EmptyNode) -> Peer {
        Peer {
            network: self.clone(),
            to: node(target),
        }
    }
}

impl Peer {
    async fn call<R, E>(&self, request: &Request, option: &RPCOption) -> Result<R, Failure<E>>
    where
        R: DeserializeOwned,
        E: std::error::Error + DeserializeOwned,
    {
        let body = Bytes::from(wire::encode(request));
        let transport = &self.network.transport;
        let reply = transport.call(self.to, ServiceId::Raft, body, option.hard_ttl());
        let reply = reply.await.map_err(|error| match error {
            NetError::Unreachable { .. } => Failure::Unreachable(Unreachable::new(&error)),
            NetError::Deadline { .. } | NetError::Malformed { .. } => {
                Failure::Network(NetworkError::new(&error))
            }
        })?;
        let outcome: Result<R, E> =
            wire::decode(&reply).map_err(|error| Failure::Network(NetworkError::new(&error)))?;
        outcome.map_err(|error| Failure::RemoteError(RemoteError::new(self.to.0, error)))
    }
}

impl RaftNetwork<Types> for Peer {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u16>, Failure<RaftError<u16>>> {
        let (vote, asked) = (request.vote, Instant::now());
        let reply = self.call(&Request::Append(request), &option).await?;
        if !matches!(reply, AppendEntriesResponse::HigherVote(_)) {
            self.network.words.note(self.to.0, vote, asked);
        }
        Ok(reply)
    }

    async fn vote(
        &mut self,
        request: VoteRequest<u16>,
        option: RPCOption,
    ) -> Result<VoteResponse<u16>, Failure<RaftError<u16>>> {
        self.call(&Request::Vote(request), &option).await
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<Types>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u16>, Failure<RaftError<u16, InstallSnapshotError>>> {
        self.call(&Request::Snapshot(request), &option).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(self.network.backoff))
    }
}

/// Answers the other voters.
pub(super) struct RaftService {
    pub raft: Raft,
    /// The voters as configured; those of the log, once there is one, count as well.
    pub voters: BTreeSet<u16>,
    pub heard: Arc<Heard>,
    pub end: LogEnd,
    /// How long a voter keeps to a leader that it has heard.
    pub lease: Duration,
}

#[async_trait]
impl Service for RaftService {
    async fn call(&self, from: NodeId, body: Bytes) -> Option<Bytes> {
        let request = wire::decode(&body).ok()?;
        if !self.is_member(from) && !self.may_be_heard(from, &request) {
            return Some(self.refuse(&request));
        }
        // Nobody speaks for another: a vote or a reign is claimed by the node it belongs to.
        let claimed = match &request {
            Request::Append(request) => Some(request.vote),
            Request::Vote(request) => Some(request.vote),
            Request::Snapshot(request) => Some(request.vote),
            Request::Follow(vote) => Some(*vote),
            Request::WouldVote(_) => None,
        };
        if claimed.is_some_and(|vote| vote.leader_id.node_id != from.0) {
            return None;
        }
        // Noted when it comes: it may have to wait for a disk, and its sender leads all the same.
        let current = self.raft.server_metrics().borrow().vote;
        let leads = claimed.filter(|vote| vote.is_committed() && *vote >= current);
        let sign = leads.map(|vote| self.heard.hear(&vote));
        if sign == Some(Sign::Crossing) {
            return Some(self.refuse(&request));
        }
        let reply = match request {
            Request::Append(request) if !is_contiguous(&request.entries) => return None,
            Request::Append(request) => {
                let reply = self.raft.append_entries(request).await;
                fail_point!("log: before entries are acknowledged");
                wire::encode(&reply)
            }
            Request::Vote(_) if self.heard.is_bound(self.lease) => {
                return Some(self.refuse(&request));
            }
            Request::Vote(request) => {
                fail_point!("log: before a vote is given");
                wire::encode(&self.raft.vote(request).await)
            }
            Request::Snapshot(request) => wire::encode(&self.raft.install_snapshot(request).await),
            Request::WouldVote(last) => wire::encode(&self.would_vote(last)),
            Request::Follow(vote) => {
                let follows = sign == Some(Sign::Heard) && vote == current && !self.is_stopped();
                wire::encode(&follows)
            }
        };
        Some(reply.into())
    }
}

impl RaftService {
    fn would_vote(&self, last: Option<LogId>) -> bool {
        let leads = self.raft.server_metrics().borrow().state == ServerState::Leader;
        // A core that has stopped will not vote.
        if leads || self.is_stopped() || self.heard.age() < self.lease {
            return false;
        }
        self.end.get().is_some_and(|mine| mine <= last)
    }

    /// Answers what raft's core is not to hear of: that would vote, or follow.
    fn refuse(&self, request: &Request) -> Bytes {
        let stopped = || RaftError::<u16>::Fatal(Fatal::Stopped);
        let answer = match request {
            Request::Append(_) => wire::encode(&Err::<AppendEntriesResponse<u16>, _>(stopped())),
            Request::Snapshot(_) => {
                let stopped = RaftError::<u16, InstallSnapshotError>::Fatal(Fatal::Stopped);
                wire::encode(&Err::<InstallSnapshotResponse<u16>, _>(stopped))
            }
            Request::Vote(_) => {
                let vote = self.raft.server_metrics().borrow().vote;
                wire::encode(&Ok::<_, RaftError<u16>>(VoteResponse {
                    vote,
                    vote_granted: false,
                    last_log_id: self.end.get().flatten(),
                }))
            }
            Request::WouldVote(_) | Request::Follow(_) => wire::encode(&false),
        };
        answer.into()
    }

    fn is_stopped(&self) -> bool {
        self.raft.metrics().borrow().running_state.is_err()
    }

    /// The voters may have changed without this node: it was none, or was away. So a stranger that leads is heard by a
    /// node that follows nobody else, which is how a node becomes a voter that knew nothing of it before; and one that wants
    /// to lead gets its vote, without which there may be no majority (Ongaro 2014, 4.1).
    fn may_be_heard(&self, from: NodeId, request: &Request) -> bool {
        let metrics = self.raft.server_metrics();
        let (leads, vote) = {
            let metrics = metrics.borrow();
            (metrics.state == ServerState::Leader, metrics.vote)
        };
        let free = !leads && self.heard.age() >= self.lease;
        let followed = !leads && vote.leader_id.node_id == from.0 && vote.is_committed();
        match request {
            Request::Append(_) | Request::Snapshot(_) => free || followed,
            Request::Vote(_) | Request::WouldVote(_) => free,
            Request::Follow(_) => false,
        }
    }

    fn is_member(&self, from: NodeId) -> bool {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow();
        self.voters.contains(&from.0)
            || metrics
                .membership_config
                .membership()
                .get_node(&from.0)
                .is_some()
    }
}

/// Openraft trusts a leader to send no holes; its own log would have them for ever.
fn is_contiguous(entries: &[Entry]) -> bool {
    entries
        .windows(2)
        .all(|pair| pair[0].log_id.index.checked_add(1) == Some(pair[1].log_id.index))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::log::raft::Batch;
    use openraft::{EntryPayload, LeaderId, Membership, SnapshotMeta, StoredMembership};

    #[track_caller]
    fn check<T: Serialize>(what: &T, golden: &[u8]) {
        assert_eq!(wire::encode(what), golden, "changed on the wire or on disk");
    }

    fn id(index: u64) -> LogId {
        LogId {
            leader_id: LeaderId::new(2, 1),
            index,
        }
    }

    fn entry(payload: EntryPayload<Types>) -> Entry {
        Entry {
            log_id: id(300),
            payload,
        }
    }

    /// What the log has on disk is what the voters send each other.
    #[test]
    fn golden_bytes() {
        let vote = Vote::new_committed(2, 1);
        check(&vote, &[2, 1, 1]);
        check(&entry(EntryPayload::Blank), &[2, 1, 251, 44, 1, 0]);
        let batch = Batch {
            life: 7,
            number: 8,
            commands: vec![Bytes::from_static(b"xy")],
        };
        let normal = entry(EntryPayload::Normal(batch));
        let golden = [2, 1, 251, 44, 1, 1, 7, 8, 1, 2, b'x', b'y'];
        check(&normal, &golden);
        let members = Membership::new(vec![[1, 2].into()], None);
        check(
            &entry(EntryPayload::Membership(members.clone())),
            &[2, 1, 251, 44, 1, 2, 1, 2, 1, 2, 2, 1, 2],
        );
        let append = AppendEntriesRequest {
            vote,
            prev_log_id: Some(id(299)),
            entries: vec![normal],
            leader_commit: None,
        };
        check(
            &Request::Append(append),
            &[&[0, 2, 1, 1, 1, 2, 1, 251, 43, 1, 1], &golden[..], &[0]].concat(),
        );
        let ask = VoteRequest {
            vote,
            last_log_id: None,
        };
        check(&Request::Vote(ask), &[1, 2, 1, 1, 0]);
        let snapshot = InstallSnapshotRequest {
            vote,
            meta: SnapshotMeta {
                last_log_id: Some(id(5)),
                last_membership: StoredMembership::new(Some(id(4)), members),
                snapshot_id: "s".into(),
            },
            offset: 1,
            data: b"z".to_vec(),
            done: true,
        };
        check(
            &Request::Snapshot(snapshot),
            &[
                2, 2, 1, 1, 1, 2, 1, 5, 1, 2, 1, 4, 1, 2, 1, 2, 2, 1, 2, 1, b's', 1, 1, b'z', 1,
            ],
        );
        check(&Request::WouldVote(Some(id(6))), &[3, 1, 2, 1, 6]);
        check(&Request::Follow(vote), &[4, 2, 1, 1]);
    }
}
