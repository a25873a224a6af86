//! The network of a world.

use super::model::Who;
use super::shared::{Message, Packet, Shared};
use crate::net::{ByteStream, NetError, Router, ServiceId, Transport};
use async_trait::async_trait;
use bytes::Bytes;
use consistency::NodeId;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A node's access to it, for one life.
pub(super) struct SimTransport {
    pub(super) shared: Arc<Shared>,
    pub(super) who: Who,
    pub(super) router: Arc<Router>,
}

impl fmt::Debug for SimTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SimTransport").field(&self.who).finish()
    }
}

/// Gives the answer up when the caller does.
struct Call<'a> {
    shared: &'a Shared,
    call: u64,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.shared.give_up(self.call);
    }
}

#[async_trait]
impl Transport for SimTransport {
    fn local(&self) -> NodeId {
        NodeId(self.who.node)
    }

    fn nodes(&self) -> Vec<NodeId> {
        self.shared.state().hosts.keys().copied().collect()
    }

    async fn call(
        &self,
        to: NodeId,
        service: ServiceId,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, NetError> {
        let late = NetError::Deadline {
            to,
            service,
            after: deadline,
        };
        let answer = async {
            if to == self.local() {
                let there = self.router.service(service);
                let there = there.ok_or_else(|| unreachable(to, service))?;
                let reply = there.call(to, body).await;
                return reply.ok_or_else(|| unreachable(to, service));
            }
            let (call, answered) = self.shared.ask(self.who, to, service, body);
            let _waiting = Call {
                shared: &self.shared,
                call,
            };
            match answered.await {
                Ok(reply) => reply,
                // This node is dead, and does not know it yet.
                Err(_) => std::future::pending().await,
            }
        };
        tokio::time::timeout(deadline, answer)
            .await
            .unwrap_or(Err(late))
    }

    async fn open(&self, to: NodeId, service: ServiceId) -> Result<ByteStream, NetError> {
        Err(unreachable(to, service))
    }
}

fn unreachable(to: NodeId, service: ServiceId) -> NetError {
    NetError::Unreachable {
        to,
        why: format!("no {service:?} there"),
    }
}

/// Takes a message that has arrived at a node; call it within the node's runtime.
pub(super) fn arrive(shared: &Arc<Shared>, router: &Router, packet: Packet) {
    match packet.message {
        Message::Reply { call, reply } => shared.answered(call, reply),
        Message::Request {
            call,
            service,
            body,
        } => {
            let me = Who {
                node: packet.to.0,
                life: packet.life,
            };
            let (from, shared) = (packet.from, Arc::clone(shared));
            let Some(service) = router.service(service) else {
                shared.answer(me, from, call, None);
                return;
            };
            tokio::spawn(async move {
                let reply = service.call(from, body).await;
                shared.answer(me, from, call, reply);
            });
        }
    }
}
