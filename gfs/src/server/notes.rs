//! The leader tells the other voters what its own node holds, and asks them what its predecessor's held (L10).
//!
//! Both sides are state machines in `consistency::lease`; this module carries their messages.

use super::barriers::Ended;
use super::service::MetaServer;
use crate::net::{Router, Service, ServiceId};
use async_trait::async_trait;
use bytes::Bytes;
use consistency::lease::{Notes, longest};
use consistency::wire::lease::Mode;
use consistency::wire::notes::{Noted, NotesReply, NotesRequest, Told};
use consistency::wire::{decode, encode};
use consistency::{Epoch, InodeNo, NodeId, SessionId};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long a voter may take to say what it has noted; then the new leader waits for the sessions themselves.
const ASK_WITHIN: Duration = Duration::from_millis(200);
/// How long a voter may take to note something, until it is told again.
const TELL_WITHIN: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(20);

/// A session, and what it holds at most.
pub(super) type Inherited = (SessionId, Vec<(InodeNo, Mode)>);

/// Registers the notes of this node, which are empty: no start has the memory of another.
pub(super) fn register(router: &Router) {
    let life = RandomState::new().build_hasher().finish();
    let notes = Mutex::new(Notes::new(life));
    router.register(ServiceId::Notes, Arc::new(Voter(notes)));
}

struct Voter(Mutex<Notes>);

#[async_trait]
impl Service for Voter {
    async fn call(&self, from: NodeId, body: Bytes) -> Option<Bytes> {
        let request = decode(&body).ok()?;
        let mut notes = self.0.lock().expect("no holder panics");
        let reply = match request {
            NotesRequest::Tell(tell) => NotesReply::Told(notes.take(from, tell)),
            NotesRequest::Close { by, of } => NotesReply::Closed(notes.close(by, of)),
            NotesRequest::Page { of, after } => NotesReply::Page(notes.page(of, after)),
        };
        Some(encode(&reply).into())
    }

    fn is_prompt(&self) -> bool {
        true
    }
}

impl MetaServer {
    /// Asks the voters what the node of the last leader may hold, and to note nothing more for it. `None`: nobody knows
    /// for sure, or it is this node, which tells by itself.
    pub(super) async fn inherited(&self, of: Epoch) -> Option<Inherited> {
        let by = Epoch(of.0 + 1);
        let me = self.transport.local();
        let until = tokio::time::Instant::now() + ASK_WITHIN;
        let voters = self.log.voters();
        let close = |voter: NodeId| async move {
            match self.ask(voter, &NotesRequest::Close { by, of }).await? {
                NotesReply::Closed(noted) => Some((voter, noted?)),
                NotesReply::Told(_) | NotesReply::Page(_) => None,
            }
        };
        // This node's own notes say whom it is useless to ask.
        let mut answers: Vec<(NodeId, Noted)> = close(me).await.into_iter().collect();
        let lost = answers.first().map(|(_, noted)| noted.leader);
        let asked = voters
            .into_iter()
            .filter(|voter| *voter != me && Some(*voter) != lost);
        let mut closing: FuturesUnordered<_> = asked.map(close).collect();
        while longest(&answers).is_none() {
            let next = tokio::time::timeout_at(until, closing.next()).await;
            answers.extend(next.ok()??);
        }
        let (voter, noted) = longest(&answers)?;
        let session = noted.session.filter(|_| noted.leader != me)?;
        let mut held: Vec<(InodeNo, Mode)> = Vec::new();
        loop {
            let after = held.last().map(|&(ino, _)| ino);
            match self.ask(voter, &NotesRequest::Page { of, after }).await? {
                NotesReply::Page(page) if page.is_empty() => break,
                NotesReply::Page(page) => held.extend(page),
                NotesReply::Told(_) | NotesReply::Closed(_) => return None,
            }
        }
        tracing::info!(
            node = noted.leader.0,
            session = session.0,
            inodes = held.len(),
            "the last leader's node may hold what voters have noted"
        );
        Some((session, held))
    }

    async fn ask(&self, voter: NodeId, request: &NotesRequest) -> Option<NotesReply> {
        let body = Bytes::from(encode(request));
        let reply = self
            .transport
            .call(voter, ServiceId::Notes, body, ASK_WITHIN);
        decode(&reply.await.ok()?).ok()
    }

    /// Tells a voter what this node's session holds, for as long as the reign lasts.
    pub(super) async fn tell(self: Arc<Self>, voter: NodeId, reign: Epoch) {
        loop {
            let tell = match self.barriers.next_tell(reign, voter).await {
                Ok(tell) => tell,
                Err(Ended::Reign | Ended::Session | Ended::TooManyOps) => return,
            };
            let body = Bytes::from(encode(&NotesRequest::Tell(tell)));
            let reply = self
                .transport
                .call(voter, ServiceId::Notes, body, TELL_WITHIN);
            let told = reply.await.ok().and_then(|reply| decode(&reply).ok());
            match told {
                Some(NotesReply::Told(told)) => {
                    if told == Told::Closed {
                        tracing::warn!(voter = voter.0, "a voter follows another leader");
                    }
                    self.barriers.handle_told(reign, voter, told);
                }
                Some(_) | None => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}
