//! Jobs that move: the program and all its descendants go on on another node, with the same pid, files and pipes.
//!
//! A job's *home* here is the node that started it, whose range its pid is of. Home has a [`deputy`] for it, which
//! decides ([`rules`]) who runs it: the original, or the copy of a *guest* of another node ([`guest`]), or of home itself
//! when it has come back. All there is between home and a host goes by one stream ([`wire`]); when that ends the host
//! ends its copy.

mod ahead;
mod checkpoint;
mod deputy;
mod dump;
mod engine;
mod features;
mod fetch;
mod go;
mod guest;
mod input_file;
mod level;
mod link;
mod locks;
mod owner;
mod pages;
mod pipes;
mod places;
mod remains;
mod rules;
mod seat;
mod tcp;
mod terminal;
mod ticket;
mod tied;
mod ties;
mod timers;
mod told;
mod unix;
pub(super) mod wire;

pub use checkpoint::{Flush, Keeping, forget_homes};
pub(super) use deputy::Original;
pub(super) use engine::Engine;
pub(super) use guest::host;
pub use level::Levelling;
pub(super) use level::run as level;
pub(super) use locks::FileLocks;
pub use locks::Locked;
use rules::NotKept;
pub(super) use rules::NotMoved;
use seat::Seat;
pub(super) use terminal::AtHome;
pub(super) use ticket::Ticket;
pub use told::MovesCounted;

use super::admission::Admissions;
use super::frame::{FrameReader, FrameSender, FrameWriter};
use super::group::{Group, Groups};
use super::limits::Limits;
use super::pause::{Guests, Its, Place};
use super::private::Private;
use super::protocol::{
    Asked, Checkpoint, Cost, Credentials, FRAME_BYTES_MAX, FromJob, Kept, Level, Moved, ToJob, Told,
};
use super::spawn::GroupSlot;
use super::terminal::{Checkpoints, WindowSize};
use crate::events::Events;
use consistency::NodeId;
use deputy::{Deputy, Wanted};
use features::Programs;
use gfs::net::{ServiceId, Transport};
use go::Why;
use nix::errno::Errno;
use remains::{Body, Remains};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::{OnceCell, mpsc, oneshot, watch};

/// How long a node may take to say something.
const TOLD_WITHIN: Duration = Duration::from_secs(2);
/// How long a move may take: as long as both hosts may work at it.
const MOVED_WITHIN: Duration = Duration::from_secs(180);

/// How long CRIU may take to be done with a copy that runs.
const LANDED_WITHIN: Duration = Duration::from_secs(5);

/// What `cantmove` says where processes stay at home.
const STAY: &str = "stay";

/// Orders that may wait for a deputy.
const ORDERS_MAX: usize = 64;

/// What moves jobs on this node.
#[derive(Debug)]
pub(super) struct Travel {
    pub(super) node: NodeId,
    leader: Option<PathBuf>,
    pub(super) groups: Arc<Groups>,
    engine: OnceLock<Engine>,
    keeping: OnceLock<Keeping>,
    clearing: checkpoint::Clearing,
    transport: OnceLock<Arc<dyn Transport>>,
    /// Jobs of this node, by the pids of their programs.
    jobs: Mutex<HashMap<i32, Known>>,
    pub(super) admissions: Arc<Admissions>,
    levels: level::Levels,
    /// What the processors here offer.
    offered: OnceCell<Vec<String>>,
    guests: Arc<Guests>,
    /// Hear of moves.
    events: OnceLock<Arc<Events>>,
    counted: told::Counted,
}

/// A job that may move.
#[derive(Clone, Debug)]
struct Known {
    orders: mpsc::Sender<Order>,
    seat: Arc<Seat>,
    remains: Arc<Remains>,
    status: Arc<watch::Sender<Status>>,
    group: GroupSlot,
    /// What keeps it here for its whole life.
    tied: Option<&'static str>,
    user: Credentials,
    since: Instant,
    level: Level,
    programs: Arc<Mutex<Programs>>,
}

impl Known {
    /// Returns whether there is a checkpoint of it.
    fn is_kept(&self) -> bool {
        self.status.borrow().newest.is_some()
    }

    fn programs(&self) -> MutexGuard<'_, Programs> {
        self.programs.lock().expect("no holder panics")
    }

    /// Waits for the end of a move that has been decided, for as long as that may take.
    async fn landed(&self) {
        let mut status = self.status.subscribe();
        let landed = status.wait_for(|status| !status.lands);
        tokio::time::timeout(LANDED_WITHIN, landed).await.ok();
    }
}

/// Where a job is.
#[derive(Clone, Copy, Debug)]
struct Status {
    at: NodeId,
    moves: u64,
    restarts: u64,
    newest: Option<Kept>,
    /// How it has moved last.
    last: Option<(Moved, Cost)>,
    /// It neither moves, nor are images made of it.
    settled: bool,
    /// It has moved, but for the word of its host that it runs.
    lands: bool,
}

impl Status {
    const fn new(at: NodeId) -> Self {
        Self {
            at,
            moves: 0,
            restarts: 0,
            newest: None,
            last: None,
            settled: true,
            lands: false,
        }
    }
}

/// What the owner wants of a job that may move.
#[derive(Debug)]
pub(super) struct Wishes {
    pub(super) levelled: bool,
    pub(super) checkpoints: Option<Checkpoints>,
    /// What it has to itself.
    pub(super) private: Private,
    /// What it may use at most.
    pub(super) limits: Limits,
    /// Where it may run; none: everywhere.
    pub(super) nodes: Vec<NodeId>,
    /// For notes about it.
    pub(super) to_owner: FrameSender,
}

/// What a job that moves takes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// All.
    Whole,
    /// Its memory follows once it runs, where that can be.
    PostCopy,
    /// Its newest checkpoint, in the place of what it is.
    Restart,
}

/// For a deputy.
#[derive(Debug)]
enum Order {
    Go {
        to: NodeId,
        how: How,
        answer: oneshot::Sender<Result<Cost, NotMoved>>,
    },
    Signal {
        number: i32,
        group: bool,
    },
    Keep {
        answer: oneshot::Sender<Result<u64, NotKept>>,
    },
    Resize(WindowSize),
}

impl Travel {
    pub(super) fn new(
        node: NodeId,
        groups: Arc<Groups>,
        admissions: Arc<Admissions>,
        guests: Arc<Guests>,
        leader: Option<&Path>,
    ) -> Self {
        Self {
            node,
            leader: leader.map(ToOwned::to_owned),
            groups,
            engine: OnceLock::new(),
            keeping: OnceLock::new(),
            clearing: Arc::default(),
            transport: OnceLock::new(),
            jobs: Mutex::default(),
            admissions,
            levels: level::Levels::default(),
            offered: OnceCell::new(),
            guests,
            events: OnceLock::new(),
            counted: told::Counted::default(),
        }
    }

    /// Lets jobs move, from now on.
    pub(super) fn enable(&self, engine: Engine, transport: Arc<dyn Transport>) {
        self.engine.set(engine).ok();
        self.transport.set(transport).ok();
    }

    fn engine(&self) -> io::Result<&Engine> {
        self.engine
            .get()
            .ok_or_else(|| io::Error::other("processes do not move here"))
    }

    /// Returns the program that leads sessions with a terminal.
    fn leader(&self) -> io::Result<PathBuf> {
        let leader = self.leader.clone();
        leader.ok_or_else(|| io::Error::other("there are no terminals here"))
    }

    fn transport(&self) -> io::Result<&Arc<dyn Transport>> {
        self.transport
            .get()
            .ok_or_else(|| io::Error::other("processes do not move here"))
    }

    /// Returns whether a node gives and takes pages after the images.
    fn knows_pages(&self, node: NodeId) -> bool {
        let version = self.transport.get().and_then(|to| to.version_of(node));
        version.is_none_or(|version| version >= link::NEW_SINCE)
    }

    fn jobs(&self) -> MutexGuard<'_, HashMap<i32, Known>> {
        self.jobs.lock().expect("no holder panics")
    }

    /// Returns whether a job of this pid has been started here, and is not over.
    fn is_home_of(&self, pid: i32) -> bool {
        self.jobs().contains_key(&pid)
    }

    /// Has a copy that runs here wait for the owner of this node, if it is a guest: it is none if it has come back to the node
    /// of its owner.
    fn is_guest(self: &Arc<Self>, pid: i32, group: &Arc<Group>) -> Option<Place> {
        let guest = !self.is_home_of(pid) || self.guests.has(pid);
        guest.then(|| self.guests.enter(pid, Its::Group(Arc::clone(group))))
    }

    /// Frees the pid of a job of this node that comes home.
    async fn make_room(&self, pid: i32) {
        let remains = self
            .jobs()
            .get(&pid)
            .map(|known| Arc::clone(&known.remains));
        if let Some(body) = remains.and_then(|remains| remains.take()) {
            remains::bury(pid, body).await;
        }
    }

    /// Keeps a copy that has been ended here on the process table while its job goes on elsewhere, if it is a job of
    /// this node; else buries it.
    async fn keep_or_bury(&self, pid: i32, body: Body) {
        let not_kept = match self.jobs().get(&pid) {
            Some(known) => {
                known.remains.keep(body);
                None
            }
            None => Some(body),
        };
        if let Some(body) = not_kept {
            remains::bury(pid, body).await;
        }
    }

    /// Makes a job known whose program has just started.
    pub(super) fn register(
        self: &Arc<Self>,
        original: Original,
        tied: Option<&'static str>,
        user: Credentials,
        wishes: Wishes,
    ) -> Ticket {
        let pid = original.pid;
        let (orders, queue) = mpsc::channel(ORDERS_MAX);
        let known = Known {
            orders,
            seat: Arc::new(Seat::new(original.forked)),
            remains: Arc::default(),
            status: Arc::new(watch::Sender::new(Status::new(self.node))),
            group: Arc::clone(&original.group),
            tied,
            user: user.clone(),
            since: Instant::now(),
            level: Level {
                locked: false,
                asked: wishes.levelled,
            },
            programs: Arc::default(),
        };
        let seat = Arc::clone(&known.seat);
        let remains = Arc::clone(&known.remains);
        let deputy = Deputy::new(
            Arc::clone(self),
            original,
            Arc::clone(&seat),
            Arc::clone(&remains),
            Arc::clone(&known.status),
            Wanted {
                user,
                private: wishes.private,
                limits: wishes.limits,
                nodes: wishes.nodes,
                restart: wishes.checkpoints.is_some_and(|of| of.restart),
                to_owner: wishes.checkpoints.map(|_| wishes.to_owner.clone()),
            },
        );
        self.jobs().insert(pid, known.clone());
        let every = wishes.checkpoints.and_then(|of| of.every_s);
        let keeper = every.map(|every| {
            let every = Duration::from_secs(every.into());
            let travel = Arc::clone(self);
            tokio::spawn(travel.checkpoint_every(pid, every, wishes.to_owner))
        });
        Ticket {
            travel: Arc::clone(self),
            pid,
            orders: known.orders,
            seat,
            remains,
            deputy: tokio::spawn(deputy.run(queue)),
            keeper,
        }
    }

    /// Answers what another node, or this one, asks about a process.
    pub(super) async fn ask(self: &Arc<Self>, pid: i32, asked: Asked) -> Told {
        let known = self.jobs().get(&pid).cloned();
        match asked {
            Asked::Where => {
                let status = known.map(|known| *known.status.borrow());
                let status = status.unwrap_or_else(|| Status::new(self.node));
                Told::Where {
                    at: status.at,
                    moves: status.moves,
                }
            }
            Asked::Keep => self.told_kept(known, pid).await,
            Asked::Checkpoint => {
                let status = known.map(|known| *known.status.borrow());
                let of = |status: Status| Checkpoint {
                    newest: status.newest,
                    restarts: status.restarts,
                };
                Told::Checkpoint(status.map(of).unwrap_or_default())
            }
            Asked::Ties => {
                let ties = self.ties(known.as_ref(), pid).await;
                Told::Ties(ties.into_iter().map(ToOwned::to_owned).collect())
            }
            Asked::Go(to) => Told::Gone(self.go(known, pid, to, Why::Asked).await),
            Asked::GoFor(to, because) => {
                let why = Why::Levelled(because);
                Told::Gone(self.go(known, pid, to, why).await)
            }
            Asked::Restart(to) => Told::Gone(self.go(known, pid, to, Why::Restart).await),
            Asked::GoFirst(to) => Told::Gone(self.go(known, pid, to, Why::PostCopy).await),
            Asked::Level => Told::Level(known.map(|known| known.level).unwrap_or_default()),
            Asked::Why => Told::Why(self.levels.why(pid, known.is_some())),
            Asked::Heard(moved) => {
                self.hear_of(pid, moved, None);
                Told::Heard
            }
            Asked::HeardOf(moved, cost) => {
                self.hear_of(pid, moved, Some(cost));
                Told::Heard
            }
            Asked::LastMove => {
                let status = known.map(|known| *known.status.borrow());
                Told::LastMove(status.and_then(|status| status.last))
            }
            Asked::Processors => self.processors(known.as_ref(), pid).await,
            Asked::TiesThere => {
                let ties = match self.levels.dir_of(pid) {
                    Some(dir) => self.ties_of_processes(dir, pid).await,
                    None => BTreeSet::new(),
                };
                Told::Ties(ties.into_iter().map(ToOwned::to_owned).collect())
            }
        }
    }

    /// Takes a signal for a process that moves or has moved, also for one that is back: what has its pid here is dead,
    /// or about to be, or the deputy's to signal (MV5). `None`: the kernel is to send it. 0 is not sent.
    pub(super) fn forward(&self, pid: i32, number: i32, group: bool) -> Option<Result<(), Errno>> {
        let jobs = self.jobs();
        let known = jobs.get(&pid)?;
        if !known.seat.is_away_or_moves() {
            return None;
        }
        if number == 0 {
            return Some(Ok(()));
        }
        let sent = known.orders.try_send(Order::Signal { number, group });
        Some(sent.map_err(|_| Errno::EAGAIN))
    }
}

/// Asks a node about a process of it.
pub(crate) async fn ask(
    transport: &dyn Transport,
    node: NodeId,
    pid: i32,
    asked: Asked,
) -> io::Result<Told> {
    let version = transport.version_of(node);
    if version.is_some_and(|version| version < asked.since()) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let stream = transport.open(node, ServiceId::Job).await;
    let stream = stream.map_err(io::Error::other)?;
    let writer = FrameWriter::new(stream.writer);
    writer.sender().send(&ToJob::Ask { pid, asked }).await;
    let mut reader = FrameReader::new(stream.reader);
    let within = match asked {
        Asked::Go(_) | Asked::GoFor(..) | Asked::GoFirst(_) | Asked::Keep | Asked::Restart(_) => {
            MOVED_WITHIN
        }
        Asked::Where
        | Asked::Ties
        | Asked::Level
        | Asked::Why
        | Asked::Heard(_)
        | Asked::HeardOf(..)
        | Asked::LastMove
        | Asked::Processors
        | Asked::TiesThere
        | Asked::Checkpoint => TOLD_WITHIN,
    };
    match tokio::time::timeout(within, reader.next(FRAME_BYTES_MAX)).await?? {
        Some(FromJob::Told(told)) => Ok(told),
        // Of an older revision.
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}
