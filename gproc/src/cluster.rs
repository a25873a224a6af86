//! The processes of all nodes, asked for in parallel.

use crate::agent::{ProcAgent, READ_PATIENCE};
use crate::boots::Boots;
use crate::job::{self, Asked, Told};
use crate::pids::{ClusterPid, NODE_MAX};
use crate::silent::Heard;
use crate::view::More;
use crate::wait::WAIT_MAX;
use crate::wire::{Birth, Identity, MachineFile, ProcFile, ProcReply, ProcRequest, Record, Who};
use bytes::Bytes;
use consistency::NodeId;
use consistency::wire::node::NodeLoad;
use consistency::wire::{decode, encode};
use gfs::error::Errno;
use gfs::net::{NetError, ServiceId, Transport};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How long a node has to answer a small question before it counts as down.
pub const PATIENCE: Duration = Duration::from_millis(200);
/// How long a node that is not down has for what may take long.
pub const LONG_DEADLINE: Duration = Duration::from_secs(2);
/// How long it has for one page of a snapshot or a column: a busy one with many processes is slow, not dead.
pub const PAGE_DEADLINE: Duration = Duration::from_secs(20);
/// How often it is asked meanwhile whether it still lives, and how long it has to answer that.
const STILL_THERE: Duration = Duration::from_secs(1);
/// How long a node that did not answer is not asked again for what is shown of all nodes.
const ASKED_AGAIN: Duration = Duration::from_secs(1);
// A node says that it cannot read a process before it is taken for dead.
const _: () = assert!(READ_PATIENCE.as_millis() < LONG_DEADLINE.as_millis());
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
    /// What nodes said last. A leaf.
    heard: Mutex<HashMap<NodeId, Heard>>,
    boots: Boots,
    started: Instant,
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
        Self {
            transport,
            agent,
            heard: Mutex::default(),
            boots: Boots::default(),
            started: Instant::now(),
        }
    }

    pub(crate) fn agent(&self) -> &ProcAgent {
        &self.agent
    }

    /// Returns all nodes, up or down.
    pub(crate) fn nodes(&self) -> Vec<NodeId> {
        self.transport.nodes()
    }

    /// Returns the processes of all nodes, none of them as it was before the call. A node that does not answer costs
    /// [`PATIENCE`]; its processes are those it had last, marked as waiting for it, until it has been silent for
    /// [`SILENCE_MAX`]. Then, and if nothing was heard of it before, there is a stand-in for all of them.
    pub(crate) async fn view(&self) -> View {
        let nodes = self.nodes().into_iter().filter(|node| *node <= NODE_MAX);
        let answers = nodes.map(|node| async move { (node, self.processes(node).await) });
        let mut view = View::default();
        for (node, answer) in futures::future::join_all(answers).await {
            for record in answer {
                // A node speaks for its own processes only.
                if record.identity.pid.home() == node {
                    view.processes.insert(record.identity.pid, record);
                }
            }
        }
        view
    }

    async fn processes(&self, node: NodeId) -> Vec<Record> {
        let asked = Instant::now();
        if !self.may_be_silent(node) {
            match self.snapshot(node).await {
                Ok(records) => {
                    let kept = Arc::new(records.clone());
                    let mut heard = self.heard();
                    let heard = heard.entry(node).or_default();
                    heard.silent = None;
                    heard.processes = Some((asked, kept));
                    return records;
                }
                Err(error) => {
                    tracing::debug!(%node, %error, "its processes are shown as they were");
                    self.heard().entry(node).or_default().silent = Some(Instant::now());
                }
            }
        }
        let mut heard = self.heard();
        heard.entry(node).or_default().as_it_was(node)
    }

    /// Returns a process as its node had it last, if that did not answer since and may do so again.
    pub(crate) fn of_silent_node(&self, pid: ClusterPid) -> Option<Record> {
        self.heard().get(&pid.home())?.process_as_it_was(pid)
    }

    /// Returns whether a node did not answer a moment ago: it is not asked again at once for what is shown of all.
    pub(crate) fn may_be_silent(&self, node: NodeId) -> bool {
        let silent = self.heard().get(&node).and_then(|heard| heard.silent);
        silent.is_some_and(|since| since.elapsed() < ASKED_AGAIN)
    }

    fn note_silence<T>(&self, node: NodeId, answer: &Result<T, AskError>) {
        let silent = matches!(answer, Err(AskError::Net(_))).then(Instant::now);
        self.heard().entry(node).or_default().silent = silent;
    }

    fn heard(&self) -> MutexGuard<'_, HashMap<NodeId, Heard>> {
        self.heard.lock().expect("no holder panics")
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
        let answer = self.ask(node, ProcRequest::Identify(pid), PATIENCE).await;
        self.note_silence(node, &answer);
        match answer? {
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
        match self.ask_at_length(node, request, LONG_DEADLINE).await? {
            ProcReply::Content(content) => Ok(content),
            other => Err(unexpected(node, &other)),
        }
    }

    /// Waits for the end of a process and returns how it ended, or the errno that says why not.
    pub(crate) async fn wait(
        &self,
        of: &Identity,
        who: Who,
    ) -> Result<Result<Bytes, i32>, AskError> {
        let Identity { pid, birth, .. } = *of;
        let node = pid.home();
        loop {
            let request = ProcRequest::Wait { pid, birth, who };
            match self.ask(node, request, WAIT_MAX + LONG_DEADLINE).await? {
                // A peer that says so at once gets no thread of this node for itself.
                ProcReply::Content(Err(libc::EAGAIN)) => tokio::task::yield_now().await,
                ProcReply::Content(content) => return Ok(content),
                other => return Err(unexpected(node, &other)),
            }
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
            match self.ask_at_length(node, request, PAGE_DEADLINE).await? {
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
        let ask = |node| async move {
            if self.may_be_silent(node) {
                return None;
            }
            let answer = self.machine(node, file).await;
            self.note_silence(node, &answer);
            Some((node, answer.ok()?))
        };
        let all = futures::future::join_all(self.nodes().into_iter().map(ask)).await;
        all.into_iter().flatten().collect()
    }

    /// Returns how many ticks after the first node that of a process has booted.
    pub(crate) async fn behind_first(&self, of: &Identity) -> u64 {
        let node = of.pid.home();
        if let Some(behind) = self.boots.behind_first(node, of.birth) {
            return behind;
        }
        let asked = Instant::now();
        let said = self.machines(MachineFile::Uptime).await;
        let said: HashMap<NodeId, Bytes> = said.into_iter().collect();
        let up = |node: NodeId| {
            let text = std::str::from_utf8(said.get(&node)?).ok()?;
            text.split_whitespace().next()?.parse().ok()
        };
        // This one has not said if it is missing; others are asked when a process of theirs is looked at.
        let nodes = self.nodes().into_iter().chain([node]);
        let nodes = nodes.filter(|of| *of == node || said.contains_key(of));
        self.boots
            .measured(self.started, asked, nodes.map(|node| (node, up(node))));
        self.boots.behind_first(node, of.birth).unwrap_or(0)
    }

    /// Returns a file about a machine.
    pub(crate) async fn machine(&self, node: NodeId, file: MachineFile) -> Result<Bytes, AskError> {
        match self.ask(node, ProcRequest::Machine(file), PATIENCE).await? {
            ProcReply::Machine(content) => Ok(content),
            other => Err(unexpected(node, &other)),
        }
    }

    /// Returns what a node's daemon counts.
    pub(crate) async fn metrics(&self, node: NodeId) -> Result<Bytes, AskError> {
        match self.ask(node, ProcRequest::Metrics, PATIENCE).await? {
            ProcReply::Machine(content) => Ok(content),
            other => Err(unexpected(node, &other)),
        }
    }

    /// Asks about a process that may move, its home; `None`: that is of an older revision, where none does.
    pub(crate) async fn ask_of_moves(
        &self,
        pid: ClusterPid,
        asked: Asked,
    ) -> Result<Option<Told>, Errno> {
        self.ask_at(pid.home(), pid, asked).await
    }

    /// Asks about a process that may move, another node than its home.
    pub(crate) async fn ask_at(
        &self,
        node: NodeId,
        pid: ClusterPid,
        asked: Asked,
    ) -> Result<Option<Told>, Errno> {
        match job::ask(&*self.transport, node, pid.kernel(), asked).await {
            Ok(told) => Ok(Some(told)),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(None),
            Err(error) => {
                tracing::debug!(%pid, %error, "its node does not tell about it");
                Err(Errno(libc::EHOSTDOWN))
            }
        }
    }

    /// Has a node do something; says what came of it.
    pub(crate) async fn act(
        &self,
        node: NodeId,
        request: ProcRequest,
    ) -> Result<Result<(), i32>, AskError> {
        match self.ask_at_length(node, request, LONG_DEADLINE).await? {
            ProcReply::Done(done) => Ok(done),
            other => Err(unexpected(node, &other)),
        }
    }

    async fn snapshot(&self, node: NodeId) -> Result<Vec<Record>, AskError> {
        if node == self.agent.node() {
            // However long it takes: a scan goes on or passes by what it is stuck at, and without this node's own
            // processes there may be none at all, for which `ps` has no words.
            let records = self.agent.processes().await;
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
        tokio::select! {
            answer = self.ask(node, request, PAGE_DEADLINE) => match answer? {
                ProcReply::Snapshot { records, more } => Ok((records, more)),
                other => Err(unexpected(node, &other)),
            },
            error = self.falls_silent(node) => Err(error),
        }
    }

    /// Asks what may take long. A node that does not answer a small question meanwhile is not waited for.
    async fn ask_at_length(
        &self,
        node: NodeId,
        request: ProcRequest,
        deadline: Duration,
    ) -> Result<ProcReply, AskError> {
        let down = async {
            tokio::time::sleep(PATIENCE / 4).await;
            let error = match self.load(node).await {
                Ok(_) => self.falls_silent(node).await,
                Err(error) => error,
            };
            self.heard().entry(node).or_default().silent = Some(Instant::now());
            error
        };
        tokio::select! {
            answer = self.ask(node, request, deadline) => answer,
            error = down => Err(error),
        }
    }

    /// Waits until a node that has answered does not any more.
    async fn falls_silent(&self, node: NodeId) -> AskError {
        loop {
            tokio::time::sleep(STILL_THERE).await;
            if let Err(error) = self.ask(node, ProcRequest::Load, STILL_THERE).await {
                return error;
            }
        }
    }

    async fn ask(
        &self,
        node: NodeId,
        request: ProcRequest,
        deadline: Duration,
    ) -> Result<ProcReply, AskError> {
        if node == self.agent.node() {
            // It is busy then, not dead, and a program that does not find itself gives up.
            let deadline = deadline.max(LONG_DEADLINE);
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
