//! Checkpoints of a job, and its start from one.

use super::super::super::frame::FrameSender;
use super::super::super::protocol::{End, Kept};
use super::super::checkpoint::{self, Checkpoints, Saved};
use super::super::dump::Memory;
use super::super::places::reached;
use super::super::rules::{Event, NotKept};
use super::super::wire::ToGuest;
use super::Deputy;
use consistency::NodeId;
use futures::future::BoxFuture;
use std::io;
use std::sync::Arc;
use tokio::sync::oneshot;

/// What home has waited for.
pub(super) enum Done {
    Stored(io::Result<Kept>),
    Fenced,
    Loaded(Result<(NodeId, Saved), String>),
}

/// What a job may be started from.
#[derive(Default)]
pub(super) struct Restart {
    /// Nothing until the first checkpoint is wanted.
    checkpoints: Option<Arc<Checkpoints>>,
    asked: Option<oneshot::Sender<Result<u64, NotKept>>>,
    /// Of the one that is being made.
    number: u64,
    /// The newest.
    pub(super) newest: Option<Kept>,
    /// Somebody wants it to go on as its newest checkpoint.
    by_hand: bool,
    /// The copy that waits is of a checkpoint.
    rewinds: bool,
    /// Why it was lost.
    why: String,
    /// Nodes that have not been able to run it since.
    tried: std::collections::BTreeSet<NodeId>,
}

impl Restart {
    /// Somebody wants it to move; `by_hand`: as its newest checkpoint.
    pub(super) const fn is_wanted(&mut self, by_hand: bool) {
        (self.by_hand, self.rewinds) = (by_hand, false);
    }
}

impl Deputy {
    pub(super) async fn ask_to_keep(&mut self, answer: oneshot::Sender<Result<u64, NotKept>>) {
        if self.restart.asked.is_some() {
            answer.send(Err(NotKept::Busy)).ok();
            return;
        }
        self.restart.asked = Some(answer);
        self.on(Event::Keep).await;
    }

    pub(super) fn tell_kept(&mut self, kept: Result<u64, NotKept>) {
        if let Some(asked) = self.restart.asked.take() {
            asked.send(kept).ok();
        }
    }

    /// Has the source make images that are to be kept.
    pub(super) async fn image(&mut self) -> Option<Event> {
        reached("home: before the checkpoint");
        self.images.clear();
        self.input.hold();
        let source = self.source.as_ref();
        match source.map(|link| (link.keeps(), link.sender.clone(), link.node())) {
            Some((true, sender, _)) => {
                sender.send(&ToGuest::Keep).await;
                None
            }
            Some((false, _, node)) => {
                self.input.stay();
                Some(Event::NotDumped(format!("the Glu of node {node} is older")))
            }
            None => Some(self.image_original().await),
        }
    }

    /// What the original reads it takes out of its owner's pipe itself, so there is nothing to be sent again.
    async fn image_original(&mut self) -> Event {
        if let Err(error) = self.travel.flush().await {
            return Event::NotDumped(format!("node {}: {error}", self.travel.node));
        }
        let imaged = self.dump_original(Memory::Here).await;
        // CK6
        let flushed = self.travel.flush().await;
        // CK2
        self.thaw_original().await;
        match (imaged, flushed) {
            (Event::Dumped, Err(error)) => {
                self.images.clear();
                Event::NotDumped(format!("node {}: {error}", self.travel.node))
            }
            (imaged, _) => imaged,
        }
    }

    /// Keeps the images that are here; the job has gone on.
    pub(super) fn store(&mut self) -> Option<Event> {
        self.input.imaged();
        let saved = Saved {
            pipes: self.pipes.clone(),
            terminal: self.terminal.clone(),
            input_file: self.input_file,
            images: std::mem::take(&mut self.images),
        };
        let made = checkpoint::now();
        self.restart.number += 1;
        let number = self.restart.number;
        let checkpoints = match &self.restart.checkpoints {
            Some(checkpoints) => Ok(Arc::clone(checkpoints)),
            None => self.travel.checkpoints(self.original.pid).map(Arc::new),
        };
        let checkpoints = match checkpoints {
            Ok(checkpoints) => checkpoints,
            Err(error) => return Some(self.stored(Err(error))),
        };
        self.restart.checkpoints = Some(Arc::clone(&checkpoints));
        self.wait_for(Box::pin(async move {
            let stored = checkpoints.put(number, saved).await;
            Done::Stored(stored.map(|bytes| Kept {
                number,
                made,
                bytes,
            }))
        }));
        None
    }

    fn stored(&mut self, stored: io::Result<Kept>) -> Event {
        self.input.replay.written(stored.is_ok());
        match stored {
            Ok(kept) => {
                self.restart.newest = Some(kept);
                Event::Stored(kept.number)
            }
            Err(error) => Event::NotStored(NotKept::NotWritten {
                errno: error.raw_os_error().unwrap_or(libc::EIO),
                why: error.to_string(),
            }),
        }
    }

    /// What the original has read of its owner's pipe since its last checkpoint nobody knows.
    pub(super) fn reads_pipe_itself(&self) -> bool {
        self.source.is_none() && self.input.pipe.is_some() && !self.seat.is_away()
    }

    pub(super) fn is_lost(&mut self, why: &str) {
        why.clone_into(&mut self.restart.why);
    }

    pub(super) fn fence(&mut self, node: NodeId) {
        self.restart.tried = [node].into();
        tracing::warn!(pid = self.original.pid, %node, why = %self.restart.why, "a job is lost and will be started from its checkpoint");
        let travel = Arc::clone(&self.travel);
        self.wait_for(Box::pin(async move {
            travel.fence().await;
            Done::Fenced
        }));
    }

    /// Gets the newest checkpoint, and a node for it.
    pub(super) fn load(&mut self) {
        let travel = Arc::clone(&self.travel);
        let (user, tried) = (self.user.clone(), self.restart.tried.clone());
        let (pid, nodes) = (self.original.pid, self.nodes.clone());
        let kept = self.home.kept().zip(self.restart.checkpoints.clone());
        let rewound = self.input.rewind();
        self.wait_for(Box::pin(async move {
            let load = async {
                let (number, checkpoints) = kept.ok_or("there is no checkpoint")?;
                if !rewound {
                    return Err("it has read too much input since its checkpoint".to_owned());
                }
                let node = travel.node_for(pid, &user, &nodes, &tried).await;
                let node = node.ok_or("no other node takes it")?;
                let saved = checkpoints.get(number).await;
                let saved =
                    saved.map_err(|error| format!("its checkpoint cannot be read: {error}"))?;
                Ok((node, saved))
            };
            Done::Loaded(load.await)
        }));
    }

    /// If somebody wants that, has its newest checkpoint go in the place of what it is now. It is a move but for that: where it
    /// fails the job goes on as it is.
    pub(super) async fn take_back(&mut self) -> Result<(), String> {
        if !std::mem::take(&mut self.restart.by_hand) {
            return Ok(());
        }
        let kept = self.home.kept().zip(self.restart.checkpoints.clone());
        let (number, checkpoints) = kept.ok_or("its checkpoint does not count any more")?;
        if self.reads_pipe_itself() {
            return Err("what it has read since its checkpoint is not known".to_owned());
        }
        if !self.input.can_rewind() {
            return Err("it has read too much input since its checkpoint".to_owned());
        }
        let saved = checkpoints.get(number).await;
        self.takes(saved.map_err(|error| error.to_string())?);
        self.restart.rewinds = true;
        Ok(())
    }

    /// The copy that runs now is sent what it is to read.
    pub(super) fn input_goes(&mut self) {
        if std::mem::take(&mut self.restart.rewinds) {
            self.input.rewind();
            return;
        }
        self.input.go();
    }

    fn takes(&mut self, saved: Saved) {
        self.images = saved.images;
        self.pipes = saved.pipes;
        self.terminal = saved.terminal;
        self.input_file = saved.input_file;
        for pipe in &mut self.pipes {
            let mut outs = self.outs.iter().map(|out| Some(out.stream));
            pipe.open = pipe.stream.is_none() || outs.any(|stream| stream == pipe.stream);
        }
    }

    pub(super) async fn done(&mut self, done: Done) {
        let event = match done {
            Done::Stored(stored) => self.stored(stored),
            Done::Fenced => Event::Fenced,
            Done::Loaded(Ok((node, saved))) => {
                self.restart.tried.insert(node);
                self.takes(saved);
                Event::Loaded(node)
            }
            Done::Loaded(Err(why)) => {
                let why = format!("{}, and it was not started again: {why}", self.restart.why);
                self.end = Some(End::lost(why));
                Event::NotLoaded
            }
        };
        self.on(event).await;
    }

    fn wait_for(&mut self, done: BoxFuture<'static, Done>) {
        self.waits.push(done);
    }

    /// Returns what the user is told once it runs again.
    pub(super) fn restart_note(&self) -> Option<(FrameSender, String)> {
        let (to_owner, kept) = (self.to_owner.clone()?, self.restart.newest?);
        let age = checkpoint::now().saturating_sub(kept.made);
        let note = format!(
            "{}; the job goes on on node {} from its checkpoint of {age} s ago",
            self.restart.why,
            self.home.at()
        );
        Some((to_owner, note))
    }

    /// Nobody runs it: there is nobody to be killed.
    pub(super) async fn kill_lost(&mut self, number: i32) -> bool {
        if number != libc::SIGKILL || !self.home.is_lost() {
            return false;
        }
        self.end = Some(End::Killed(number));
        self.on(Event::Killed).await;
        true
    }
}
