//! The processes of all nodes, asked for in parallel.

use crate::agent::{ProcAgent, READ_PATIENCE};
use crate::pids::{ClusterPid, NODE_MAX};
use crate::view::More;
use crate::wire::{Birth, Identity, MachineFile, ProcFile, ProcReply, ProcRequest, Record, Who};
use bytes::Bytes;
use consistency::NodeId;
use consistency::wire::node::NodeLoad;
use consistency::wire::{decode, encode};
use gfs::net::{NetError, ServiceId, Transport};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// How long a node has to answer a small question before it counts as down.
pub const PATIENCE: Duration = Duration::from_millis(200);
/// How long a node that is not down has for one page of a snapshot: a busy one with many processes is slow, not dead.
pub const PAGE_DEADLINE: Duration = Duration::from_secs(2);
// A node says that it cannot read a process before it is taken for dead.
const _: () = assert!(READ_PATIENCE.as_millis() < PAGE_DEADLINE.as_millis());
/// Upper limit of the pages taken from one node (128 MiB of processes); what follows is not shown.
pub const PAGES_MAX: usize = 32;

/// No answer from a node.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error(transparent)]
    Net(#[from] NetError),
    #[error("node {0} answered another question than was asked")]
    Confused(NodeId),
    #[error("node {0} could not read its procfs: see its log")]
    Failed(NodeId),
}

/// Asks the agents of all nodes.
#[derive(Debug)]
pub(crate) struct Cluster {
    transport: Arc<dyn Transport>,
    agent: Arc<ProcAgent>,
}

/// A file of each process of a node.
pub(crate) type Column = HashMap<ClusterPid, (Birth, Result<Bytes, i32>)>;

/// The processes of the cluster at one time.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) processes: BTreeMap<ClusterPid, Record>,
    /// What has been asked for besides.
    pub(crate) more: More,
}

impl Cluster {
    pub(crate) fn new(transport: Arc<dyn Transport>, agent: Arc<ProcAgent>) -> Self {
        Self { transport, agent }
    }

    pub(crate) fn agent(&self) -> &ProcAgent {
        &self.agent
    }

    /// Returns all nodes, up or down.
    pub(crate) fn nodes(&self) -> Vec<NodeId> {
        self.transport.nodes()
    }

    /// Returns the processes of all nodes that are up, none of them as it was before the call.
    pub(crate) async fn view(&self) -> View {
        let nodes = self.nodes().into_iter().filter(|node| *node <= NODE_MAX);
        let answers = nodes.map(|node| async move { (node, self.snapshot(node).await) });
        let mut view = View::default();
        for (node, answer) in futures::future::join_all(answers).await {
            let records = answer.unwrap_or_else(|error| {
                tracing::debug!(%node, %error, "its processes are not shown");
                Vec::new()
            });
            for record in records {
                // A node speaks for its own processes only.
                if record.identity.pid.home() == node {
                    view.processes.insert(record.identity.pid, record);
                }
            }
        }
        view
    }

    /// Returns the load of each node; `None` of one that is down.
    pub(crate) async fn loads(&self) -> Vec<(NodeId, Option<NodeLoad>)> {
        let ask = |node| async move { (node, self.load(node).await.ok()) };
        futures::future::join_all(self.nodes().into_iter().map(ask)).await
    }

    pub(crate) async fn load(&self, node: NodeId) -> Result<NodeLoad, AskError> {
        match self.ask(node, ProcRequest::Load, PATIENCE).await? {
            ProcReply::Load(load) => Ok(load),
            other => Err(unexpected(node, &other)),
        }
    }

    /// Returns who has a pid.
    pub(crate) async fn identify(&self, pid: ClusterPid) -> Result<Option<Identity>, AskError> {
        let node = pid.home();
        match self.ask(node, ProcRequest::Identify(pid), PATIENCE).await? {
            ProcReply::Identity(identity) => Ok(identity.filter(|identity| identity.pid == pid)),
            other => Err(unexpected(node, &other)),
        }
    }

    /// Returns a file of a process or of a thread of it, or the errno that says why not.
    pub(crate) async fn read(
        &self,
        of: &Identity,
        thread: Option<ClusterPid>,
        file: ProcFile,
        who: Who,
    ) -> Result<Result<Bytes, i32>, AskError> {
        let Identity { pid, birth, .. } = *of;
        let request = ProcRequest::Read {
            pid,
            birth,
            thread,
            file,
            who,
        };
        let node = pid.home();
        match self.ask(node, request, PAGE_DEADLINE).await? {
            ProcReply::Content(content) => Ok(content),
            other => Err(unexpected(node, &other)),
        }
    }

    /// Returns a file of each process of a node, as far as that can be had at once.
    pub(crate) async fn column(
        &self,
        node: NodeId,
        file: ProcFile,
        who: Who,
    ) -> Result<Column, AskError> {
        let (mut column, mut after) = (Column::new(), None);
        for _ in 0..PAGES_MAX {
            let request = ProcRequest::Column { file, who, after };
            match self.ask(node, request, PAGE_DEADLINE).await? {
                ProcReply::Column { cells, more } => {
                    let cells = cells.into_iter();
                    column.extend(cells.map(|cell| (cell.pid, (cell.birth, cell.content))));
                    if more.is_none() || more <= after {
                        break;
                    }
                    after = more;
                }
                other => return Err(unexpected(node, &other)),
            }
        }
        Ok(column)
    }

    /// Returns a file about each machine that is up.
    pub(crate) async fn machines(&self, file: MachineFile) -> Vec<(NodeId, Bytes)> {
        let ask = |node| async move { Some((node, self.machine(node, file).await.ok()?)) };
        let all = futures::future::join_all(self.nodes().into_iter().map(ask)).await;
        all.into_iter().flatten().collect()
    }

    /// Returns a file about a machine.
    pub(crate) async fn machine(&self, node: NodeId, file: MachineFile) -> Result<Bytes, AskError> {
        match self.ask(node, ProcRequest::Machine(file), PATIENCE).await? {
            ProcReply::Machine(content) => Ok(content),
            other => Err(unexpected(node, &other)),
        }
    }

    /// Has a node do something; says what came of it.
    pub(crate) async fn act(
        &self,
        node: NodeId,
        request: ProcRequest,
    ) -> Result<Result<(), i32>, AskError> {
        match self.ask(node, request, PAGE_DEADLINE).await? {
            ProcReply::Done(done) => Ok(done),
            other => Err(unexpected(node, &other)),
        }
    }

    async fn snapshot(&self, node: NodeId) -> Result<Vec<Record>, AskError> {
        if node == self.agent.node() {
            let records = tokio::time::timeout(PAGE_DEADLINE, self.agent.processes()).await;
            let records = records.map_err(|_| late(node, PAGE_DEADLINE))?;
            return records
                .map(|records| records.to_vec())
                .map_err(|_| AskError::Failed(node));
        }
        // Both at once: the small answer ends the wait for a dead node early, the large one comes in one round trip.
        let (_, (mut records, mut more)) =
            futures::future::try_join(self.load(node), self.page(node, None)).await?;
        let mut pages = 1;
        while let (true, Some(last)) = (more, records.last()) {
            if pages == PAGES_MAX {
                tracing::warn!(%node, pages, "it has more processes than are shown");
                break;
            }
            let after = last.identity.pid;
            let (page, again) = self.page(node, Some(after)).await?;
            if page
                .first()
                .is_some_and(|first| first.identity.pid <= after)
            {
                return Err(AskError::Confused(node));
            }
            records.extend(page);
            // An empty page ends it, whatever the peer says.
            more = again && records.last().is_some_and(|last| last.identity.pid > after);
            pages += 1;
        }
        Ok(records)
    }

    async fn page(
        &self,
        node: NodeId,
        after: Option<ClusterPid>,
    ) -> Result<(Vec<Record>, bool), AskError> {
        let request = ProcRequest::Snapshot { after };
        match self.ask(node, request, PAGE_DEADLINE).await? {
            ProcReply::Snapshot { records, more } => Ok((records, more)),
            other => Err(unexpected(node, &other)),
        }
    }

    async fn ask(
        &self,
        node: NodeId,
        request: ProcRequest,
        deadline: Duration,
    ) -> Result<ProcReply, AskError> {
        if node == self.agent.node() {
            let answer = tokio::time::timeout(deadline, self.agent.answer(request)).await;
            return Ok(answer.map_err(|_| late(node, deadline))?);
        }
        let body = encode(&request).into();
        let call = self
            .transport
            .call(node, ServiceId::Process, body, deadline);
        let reply = call.await?;
        Ok(decode(&reply).map_err(|error| NetError::Malformed {
            to: node,
            why: error.to_string(),
        })?)
    }
}

fn late(node: NodeId, after: Duration) -> NetError {
    NetError::Deadline {
        to: node,
        service: ServiceId::Process,
        after,
    }
}

fn unexpected(node: NodeId, reply: &ProcReply) -> AskError {
    match reply {
        ProcReply::Failed => AskError::Failed(node),
        ProcReply::Snapshot { .. }
        | ProcReply::Identity(_)
        | ProcReply::Content(_)
        | ProcReply::Load(_)
        | ProcReply::Done(_)
        | ProcReply::Column { .. }
        | ProcReply::Machine(_) => AskError::Confused(node),
    }
}
