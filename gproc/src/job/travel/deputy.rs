//! Home's end of a job that moves: one task for each job. It holds the job's pipes to its owner and its pid, and decides
//! by the [rules](super::rules) who runs it.
//!
//! The original, or a copy that was at home since, stays on the process table after it has been ended ([`Remains`]): so
//! its pid is nobody else's until the job is over.

mod ahead;
mod hear;
mod offer;
mod original;
mod partly;
mod restart;

use super::super::frame::FrameSender;
use super::super::limits::Limits;
use super::super::private::Private;
use super::super::protocol::{Cost, Credentials, End, INPUT_WINDOW};
use super::super::spawn::GroupSlot;
use super::super::sys;
use super::super::terminal::WindowSize;
use super::dump::Memory;
use super::link::{Link, next_of};
use super::owner::{Input, Outlet, write_some};
use super::places::reached;
use super::remains::Remains;
use super::rules::{Action, Event, Home, NotMoved};
use super::terminal::AtHome;
use super::told::Meter;
use super::wire::{Carried, Image, InputAt, Pipe, ToGuest};
use super::{How, Order, Seat, Status, Travel};
use ahead::Ahead;
use bytes::Bytes;
use consistency::NodeId;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use nix::unistd::Pid;
use partly::Partly;
use restart::{Done, Restart};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

/// The job where it was started.
pub(in crate::job) struct Original {
    /// The program's.
    pub(in crate::job) pid: i32,
    /// Of the program, or of the leader of its session.
    pub(in crate::job) pidfd: OwnedFd,
    /// It is no child of this process.
    pub(in crate::job) forked: bool,
    pub(in crate::job) group: GroupSlot,
    pub(in crate::job) terminal: Option<AtHome>,
    /// The file that it has as input; its place is shared with the program.
    pub(in crate::job) input_file: Option<Arc<File>>,
}

/// Whose it is, and what that has asked for.
pub(super) struct Wanted {
    pub(super) user: Credentials,
    /// What it has to itself.
    pub(super) private: Private,
    /// What it may use at most.
    pub(super) limits: Limits,
    /// Where it may be started from a checkpoint; none: everywhere.
    pub(super) nodes: Vec<NodeId>,
    /// It goes on from its newest checkpoint when its node is lost.
    pub(super) restart: bool,
    /// For notes.
    pub(super) to_owner: Option<FrameSender>,
}

pub(super) struct Deputy {
    travel: Arc<Travel>,
    original: Original,
    seat: Arc<Seat>,
    remains: Arc<Remains>,
    status: Arc<watch::Sender<Status>>,
    home: Home,
    /// `None`: the original.
    source: Option<Link>,
    target: Option<Link>,
    asked: Option<oneshot::Sender<Result<Cost, NotMoved>>>,
    meter: Meter,
    images: Vec<Image>,
    /// Of a move by post-copy.
    partly: Partly,
    /// Of a move with pages that go ahead.
    ahead: Ahead,
    pipes: Vec<Pipe>,
    /// How the job's terminal was when it was last told.
    terminal: Option<Carried>,
    /// The same of the file that it has as input.
    input_file: Option<InputAt>,
    input: Input,
    outs: Vec<Outlet>,
    /// Whose turn it is.
    turn: usize,
    /// Signals that wait for the end of a move.
    signals: Vec<(i32, bool)>,
    end: Option<End>,
    user: Credentials,
    private: Private,
    limits: Limits,
    nodes: Vec<NodeId>,
    to_owner: Option<FrameSender>,
    wants_restart: bool,
    restart: Restart,
    waits: FuturesUnordered<BoxFuture<'static, Done>>,
    /// Starts from checkpoints that the user has been told of.
    told_restarts: u64,
}

/// Signals that wait for a job that is nowhere; more are lost, as they may be where a process takes none.
const SIGNALS_MAX: usize = 1024;

impl Deputy {
    pub(super) fn new(
        travel: Arc<Travel>,
        original: Original,
        seat: Arc<Seat>,
        remains: Arc<Remains>,
        status: Arc<watch::Sender<Status>>,
        wanted: Wanted,
    ) -> Self {
        Self {
            home: Home::new(travel.node).with_restart(wanted.restart),
            travel,
            original,
            seat,
            remains,
            status,
            source: None,
            target: None,
            asked: None,
            meter: Meter::default(),
            images: Vec::new(),
            partly: Partly::default(),
            ahead: Ahead::default(),
            pipes: Vec::new(),
            terminal: None,
            input_file: None,
            input: Input::default(),
            outs: Vec::new(),
            turn: 0,
            signals: Vec::new(),
            end: None,
            user: wanted.user,
            private: wanted.private,
            limits: wanted.limits,
            nodes: wanted.nodes,
            to_owner: wanted.to_owner,
            wants_restart: wanted.restart,
            restart: Restart::default(),
            waits: FuturesUnordered::new(),
            told_restarts: 0,
        }
    }

    /// Serves orders, and the job while it is elsewhere, until that has ended; dropped, it ends it there.
    pub(super) async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        while self.end.is_none() {
            let abroad = self.source.is_some() && self.home.runs();
            tokio::select! {
                order = orders.recv() => match order {
                    Some(Order::Go { to, how, answer }) => self.go(to, how, answer).await,
                    Some(Order::Signal { number, group }) => {
                        if !self.kill_lost(number).await {
                            self.signal(number, group).await;
                        }
                    }
                    Some(Order::Keep { answer }) => self.ask_to_keep(answer).await,
                    Some(Order::Resize(size)) => self.resize(size).await,
                    None => return,
                },
                Some(done) = self.waits.next() => self.done(done).await,
                gone = self.ahead.copied() => {
                    self.ahead.has_copied(gone);
                    self.on(Event::Copied).await;
                }
                heard = next_of(&mut self.source) => self.hear_source(heard).await,
                heard = next_of(&mut self.target) => self.hear_target(heard).await,
                heard = next_of(&mut self.partly.old) => self.hear_old(heard).await,
                read = self.input.read(), if abroad => self.send_input(read).await,
                (place, wrote) = write_some(&mut self.outs, self.turn) => self.wrote(place, wrote).await,
            }
        }
        self.let_pages_go().await;
        // What the job has written goes before the news of its end; the owner may take its time.
        while self.outs.iter().any(|out| !out.waiting.is_empty()) {
            let (place, wrote) = write_some(&mut self.outs, 0).await;
            if wrote.is_err() {
                self.outs.remove(place);
            }
        }
        self.outs.clear();
        self.input.pipe = None;
        if let Some(end) = self.end.take() {
            self.leave_terminal(matches!(end, End::Failed { .. }));
            self.bury().await;
            self.seat.end(end);
        }
    }

    async fn go(&mut self, to: NodeId, how: How, answer: oneshot::Sender<Result<Cost, NotMoved>>) {
        if self.asked.is_some() || !self.home.is_settled() {
            answer.send(Err(NotMoved::Busy)).ok();
            return;
        }
        self.asked = Some(answer);
        self.restart.is_wanted(how == How::Restart);
        let can = self.travel.knows_pages(to);
        self.partly.wanted = how == How::PostCopy && can;
        let ahead = how == How::Whole && can && self.source.as_ref().is_none_or(Link::knows_pages);
        self.ahead.begin(ahead);
        let asked = match ahead {
            true => Event::AskedAhead(to),
            false => Event::Asked(to),
        };
        self.on(asked).await;
    }

    async fn on(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            self.partly.hears_of(&event);
            self.ahead.hears_of(&event);
            self.meter.note(self.original.pid, &event);
            if event == Event::Running {
                self.meter.runs();
            }
            let actions = self.home.on(event);
            // Before a copy runs, which may ask where it is.
            self.show();
            for action in actions {
                events.extend(self.act(action).await);
            }
        }
        if self.home.runs() {
            for (number, group) in std::mem::take(&mut self.signals) {
                self.signal(number, group).await;
            }
        }
    }

    /// Has others see where the job is.
    fn show(&self) {
        let kept = self.home.kept();
        self.status.send_modify(|status| {
            *status = Status {
                at: self.home.at(),
                moves: self.home.moves(),
                restarts: self.home.restarts(),
                newest: self.restart.newest.filter(|of| Some(of.number) == kept),
                last: status.last,
                settled: self.home.is_settled(),
                lands: self.home.lands(),
            };
        });
    }

    async fn act(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::CopyAhead(to) => {
                reached("home: before pages go ahead");
                if let Err(why) = self.copy_ahead(to).await {
                    return Some(Event::TargetGone(why));
                }
            }
            Action::CopyNoMore => self.copy_no_more().await,
            Action::Freeze => {
                reached("home: before the freeze");
                self.images.clear();
                self.input.hold();
                self.meter.stands_still();
                match &self.source {
                    Some(link) => {
                        let freeze = match (self.ahead.wanted, self.partly.wanted) {
                            (true, _) => ToGuest::FreezeAhead,
                            (_, true) if link.knows_pages() => ToGuest::FreezePartly,
                            _ => ToGuest::Freeze,
                        };
                        link.sender.send(&freeze).await;
                        return None;
                    }
                    None => {
                        let memory = match self.has_gone_ahead() {
                            Some((gone, send)) => Memory::Ahead(gone, send),
                            None if self.partly.wanted => Memory::AtSource,
                            None => Memory::Here,
                        };
                        return Some(self.dump_original(memory).await);
                    }
                }
            }
            Action::Offer(to) => {
                reached("home: before the offer");
                if let Err(why) = self.take_back().await {
                    return Some(Event::TargetGone(why));
                }
                if let Err(why) = self.offer(to).await {
                    return Some(Event::TargetGone(why));
                }
                reached("home: after the offer");
            }
            Action::Run => {
                reached("home: before the copy may run");
                self.input_goes();
                self.input.credit = INPUT_WINDOW as usize;
                if let Some(link) = &self.target {
                    link.sender.send(&ToGuest::Run).await;
                }
                reached("home: after the copy may run");
            }
            Action::Follow => self.follow(),
            Action::EndCopy => {
                // It ends with its stream.
                self.source = None;
            }
            Action::Drop if self.partly.follows => self.let_pages_go().await,
            Action::Drop => match self.source.take() {
                Some(link) => {
                    link.sender.send(&ToGuest::End).await;
                }
                None => self.end_original().await,
            },
            Action::Thaw => {
                self.images.clear();
                self.input.stay();
                match &self.source {
                    Some(link) => {
                        link.sender.send(&ToGuest::Thaw).await;
                        self.tell_size().await;
                    }
                    None => self.thaw_original().await,
                }
            }
            Action::Abort => self.target = None,
            Action::Answer(answer) => {
                reached("home: before the answer");
                if answer.is_ok() && self.target.is_some() {
                    self.source = self.target.take();
                    self.images = Vec::new();
                }
                if let Some(asked) = self.asked.take() {
                    asked.send(answer.map(|()| self.meter.cost)).ok();
                }
            }
            Action::Image => return self.image().await,
            Action::Store => return self.store(),
            Action::TellKept(kept) => self.tell_kept(kept),
            Action::Fence(node) => self.fence(node),
            Action::Load => self.load(),
            Action::End => {
                let lost = || End::lost("the job was lost while it moved");
                self.end.get_or_insert_with(lost);
            }
        }
        None
    }

    async fn signal(&mut self, number: i32, group: bool) {
        if !self.home.runs() {
            if self.signals.len() < SIGNALS_MAX {
                self.signals.push((number, group));
            }
            return;
        }
        match &self.source {
            Some(link) => {
                link.sender.send(&ToGuest::Signal(number, group)).await;
            }
            None => {
                let pid = Pid::from_raw(self.original.pid);
                let sent = match (&self.original.terminal, group) {
                    (Some(terminal), group) => terminal.pty.signal(pid, number, group),
                    (None, true) => sys::signal_group(pid, number),
                    (None, false) => sys::signal(self.original.pidfd.as_fd(), number),
                };
                if let Err(error) = sent {
                    tracing::debug!(number, %error, "a signal found no process");
                }
            }
        }
    }

    async fn resize(&mut self, size: WindowSize) {
        if let Some(link) = self.source.as_ref().filter(|_| self.home.runs()) {
            link.sender.send(&ToGuest::Resize(size)).await;
        }
    }

    /// Tells a copy of the size of its terminal, which may have changed while it stood still.
    async fn tell_size(&mut self) {
        let terminal = self.original.terminal.as_ref();
        if let Some(Ok(size)) = terminal.map(|terminal| terminal.pty.size()) {
            self.resize(size).await;
        }
    }

    async fn send_input(&mut self, read: io::Result<Bytes>) {
        let Some(link) = &self.source else { return };
        match read {
            Ok(bytes) if !bytes.is_empty() => {
                self.input.credit = self.input.credit.saturating_sub(bytes.len());
                link.sender.send(&ToGuest::Input(bytes)).await;
            }
            _ => {
                self.input.pipe = None;
                link.sender.send(&ToGuest::InputEnd).await;
            }
        }
    }

    async fn wrote(&mut self, place: usize, wrote: io::Result<u32>) {
        let stream = self.outs[place].stream;
        self.turn = place + 1;
        let word = match wrote {
            Ok(len) => {
                self.outs.retain(|out| !out.is_over());
                ToGuest::Credit(stream, len)
            }
            Err(_) => {
                self.outs.remove(place);
                ToGuest::Closed(stream)
            }
        };
        if let Some(link) = &self.source {
            link.sender.send(&word).await;
        }
    }
}
