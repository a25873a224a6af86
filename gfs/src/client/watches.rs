//! Tells this node's watchers (inotify, fanotify) of what other nodes did: finds what is watched, asks the leader what
//! has happened to it, and replays that (`docs/protocol.md`, Watches).
//!
//! N3: the replaying thread sees the names that an event concerns as they were before it; everybody else sees them as
//! they are, and keeps nothing of them meanwhile, so that the kernel asks for the replaying thread.
//!
//! | phase of a replay | what the replaying thread is answered | others |
//! | --- | --- | --- |
//! | LOOKUP of a name of the event | the past | the present, not to be kept |
//! | MKNOD, MKDIR, SYMLINK | the inode that was made elsewhere | - |
//! | UNLINK, RMDIR, RENAME, SETATTR | done; nothing is | - |

use super::Core;
use super::ops::getattr;
use super::session::Phase;
use crate::error::Errno;
use crate::tree::{AttrReply, Caller, EntryReply, Hold, ListReply, NO_CACHE, Watching};
use consistency::wire::meta::{Attr, FileKind, Name};
use consistency::wire::request::{MetaReply, MetaRequest, WATCH_SINCE};
use consistency::wire::watch::{Event, Happened, Place};
use consistency::{InodeNo, SessionId, Timestamp, Version};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// Pause between two looks for watches: a watch counts for remote changes from the next look on.
const LOOK_PAUSE_MIN: Duration = Duration::from_millis(500);
/// The same where a look takes long, or nobody uses the tree.
const LOOK_PAUSE_MAX: Duration = Duration::from_secs(5);
/// A look may take this part (one in this many) of one processor.
const LOOK_PART: u32 = 200;
/// How long one question to the leader may take, which answers within 5 s.
const ASK_WITHIN: Duration = Duration::from_secs(9);
/// Pause after a question that was not answered.
const ASK_PAUSE: Duration = Duration::from_millis(100);
/// Attempts at one event: others may look the name up in between and keep what they learn (READDIRPLUS).
const ATTEMPTS: u32 = 10;

/// The replay under way.
#[derive(Debug, Default)]
pub(super) struct Replays(Mutex<Option<Replay>>);

#[derive(Debug)]
struct Replay {
    /// `None` until it begins: 0 is the number of every caller outside of this node's namespace of processes.
    thread: Option<u32>,
    /// The inode of the event.
    inode: Inode,
    /// The names of the event, as they were.
    names: BTreeMap<(InodeNo, Name), Option<Inode>>,
}

#[derive(Clone, Copy, Debug)]
struct Inode {
    ino: InodeNo,
    kind: FileKind,
    /// It has a name less than before: the kernel counts that name off what it is told.
    unlinked: bool,
}

impl Replays {
    /// Tells whether a request comes from the replaying thread.
    pub(super) fn is_by(&self, caller: Caller) -> bool {
        self.current()
            .as_ref()
            .is_some_and(|r| r.thread == Some(caller.pid))
    }

    /// Tells whether a name is being replayed.
    pub(super) fn concerns(&self, dir: InodeNo, name: &Name) -> bool {
        let current = self.current();
        let names = current.as_ref().map(|replay| &replay.names);
        names.is_some_and(|names| names.contains_key(&(dir, name.clone())))
    }

    /// Has the kernel keep nothing of the names being replayed.
    pub(super) fn keep_from(&self, dir: InodeNo, list: &mut ListReply) {
        for found in &mut list.entries {
            if let Some(entry) = &mut found.entry
                && self.concerns(dir, &found.name)
            {
                entry.ttl = NO_CACHE;
            }
        }
    }

    /// Returns what a name was, for the replaying thread (N3).
    fn past(&self, caller: Caller, dir: InodeNo, name: &Name) -> Option<Option<Inode>> {
        let current = self.current();
        let replay = current.as_ref().filter(|r| r.thread == Some(caller.pid))?;
        replay.names.get(&(dir, name.clone())).copied()
    }

    fn inode(&self, caller: Caller) -> Option<Inode> {
        let current = self.current();
        let replay = current.as_ref().filter(|r| r.thread == Some(caller.pid));
        replay.map(|replay| replay.inode)
    }

    fn current(&self) -> MutexGuard<'_, Option<Replay>> {
        self.0.lock().expect("no holder panics")
    }
}

impl Core {
    /// Answers a LOOKUP of the replaying thread; `None`: like everybody's.
    pub(super) async fn replayed_lookup(
        self: &Arc<Self>,
        caller: Caller,
        dir: InodeNo,
        name: &Name,
    ) -> Option<EntryReply> {
        match self.replays.past(caller, dir, name)? {
            Some(past) => Some(self.replayed_entry(past).await),
            None => Some(EntryReply {
                attr: None,
                ttl: NO_CACHE,
                attr_ttl: NO_CACHE,
                hold: Hold::none(),
            }),
        }
    }

    /// Answers a MKNOD, MKDIR or SYMLINK of the replaying thread.
    pub(super) async fn replayed_make(
        self: &Arc<Self>,
        caller: Caller,
    ) -> Result<EntryReply, Errno> {
        let made = self.replays.inode(caller).ok_or(Errno::EIO)?;
        Ok(self.replayed_entry(made).await)
    }

    /// Answers a SETATTR of the replaying thread.
    pub(super) async fn replayed_attr(
        self: &Arc<Self>,
        caller: Caller,
    ) -> Result<AttrReply, Errno> {
        let inode = self.replays.inode(caller).ok_or(Errno::EIO)?;
        Ok(AttrReply::uncached(self.present(inode).await))
    }

    async fn replayed_entry(self: &Arc<Self>, inode: Inode) -> EntryReply {
        // Asked for now: the kernel takes the size for that of after its question.
        let attr = self.present(inode).await;
        self.pin(inode.ino).state().lookups += 1;
        EntryReply {
            attr: Some(attr),
            ttl: NO_CACHE,
            attr_ttl: NO_CACHE,
            hold: Hold::none(),
        }
    }

    /// Tells the leader that the last writer of a file has closed it, for the watchers of other nodes.
    pub(super) fn tell_close(self: &Arc<Self>, ino: InodeNo) {
        let session = self.phase.borrow().session();
        let Some(session) = session.filter(|_| self.watched.load(Ordering::Relaxed)) else {
            return;
        };
        let core = Arc::clone(self);
        tokio::spawn(async move {
            let files = vec![ino];
            let request = MetaRequest::Closed { session, files };
            if let Err(error) = core.meta(&request, Instant::now() + ASK_WITHIN).await {
                tracing::warn!(%ino, %error, "watchers are not told of a close");
            }
        });
    }

    /// Replays an event.
    async fn replay(self: &Arc<Self>, watching: &Arc<dyn Watching>, event: Event) {
        let inode = Inode {
            ino: event.ino,
            kind: event.kind,
            unlinked: event.what == Happened::Deleted,
        };
        let mut names = BTreeMap::new();
        if let Some(place) = &event.place {
            let before = (event.what != Happened::Created).then_some(inode);
            names.insert(place.clone(), before);
        }
        if let Happened::Moved {
            dir,
            name,
            replaced,
        } = &event.what
        {
            let before = replaced.map(|(ino, kind)| Inode {
                ino,
                kind,
                unlinked: true,
            });
            names.insert((*dir, name.clone()), before);
        }
        let mut failed = None;
        for _ in 0..ATTEMPTS {
            let replay = Replay {
                thread: None,
                inode,
                names: names.clone(),
            };
            *self.replays.current() = Some(replay);
            // Not for a change of what stays: to forget a directory's name takes it from those who are in it.
            let stays = matches!(
                event.what,
                Happened::Attributes | Happened::Content | Happened::Closed
            );
            if !stays || failed.is_some() {
                for (dir, name) in names.keys() {
                    self.kernel.forget_names(*dir, vec![name.clone()]).await;
                }
            }
            let (core, watching, event) = (Arc::clone(self), Arc::clone(watching), event.clone());
            let replayed = tokio::task::spawn_blocking(move || {
                if let Some(replay) = &mut *core.replays.current() {
                    replay.thread = Some(watching.thread());
                }
                let replayed = watching.replay(&event);
                *core.replays.current() = None;
                replayed
            });
            match replayed.await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => failed = Some(error),
                Err(_) => return,
            }
        }
        tracing::warn!(?event, error = ?failed, "an event could not be told");
    }

    /// Returns an inode as it is; what is gone by now, as far as it matters.
    async fn present(self: &Arc<Self>, inode: Inode) -> Attr {
        let mut attr = match getattr::getattr(self, inode.ino).await {
            Ok(reply) => reply.attr,
            Err(_) => gone(inode),
        };
        if inode.unlinked {
            attr.nlink = attr.nlink.saturating_add(1);
        }
        attr
    }

    async fn live_session(&self) -> Option<SessionId> {
        let mut phases = self.phase.subscribe();
        let settled = |phase: &Phase| matches!(phase, Phase::Live(_) | Phase::Stopped);
        let phase = phases.wait_for(settled).await.ok()?;
        phase.session()
    }
}

fn gone(inode: Inode) -> Attr {
    let time = Timestamp::default();
    Attr {
        ino: inode.ino,
        kind: inode.kind,
        mode: 0o600,
        nlink: u32::from(!inode.unlinked),
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
        version: Version(1),
    }
}

/// Looks for watches and tells them, until the client stops.
pub(super) async fn run(core: Arc<Core>, watching: Arc<dyn Watching>) {
    let mut phases = core.phase.subscribe();
    let watched = watch::Sender::new(BTreeSet::new());
    let asks = ask(&core, &watching, watched.subscribe());
    tokio::select! {
        () = look(&watching, &watched) => {}
        () = asks => {}
        _ = phases.wait_for(|phase| *phase == Phase::Stopped) => {}
    }
}

async fn look(watching: &Arc<dyn Watching>, watched: &watch::Sender<BTreeSet<InodeNo>>) {
    let mut rest = Rest::new(Instant::now());
    loop {
        let looking = Arc::clone(watching);
        let mut cost = Duration::ZERO;
        match tokio::task::spawn_blocking(move || looking.watched()).await {
            Ok(Ok(look)) => {
                watched.send_if_modified(|before| {
                    let changed = *before != look.inodes;
                    *before = look.inodes;
                    changed
                });
                cost = look.cost;
            }
            Ok(Err(error)) => tracing::warn!(%error, "cannot look for watches"),
            Err(_) => return,
        }
        rest.begin(Instant::now());
        loop {
            sleep(LOOK_PAUSE_MIN).await;
            if rest.is_over(Instant::now(), watching.was_used(), cost) {
                break;
            }
        }
    }
}

/// The time between two looks.
#[derive(Debug)]
struct Rest {
    begun: Instant,
    /// When the tree was used last: who begins to watch something looks it up or lists it about then, as a rule. If not,
    /// the watch is found after [`LOOK_PAUSE_MAX`].
    used: Instant,
}

impl Rest {
    fn new(now: Instant) -> Self {
        Self {
            begun: now,
            used: now,
        }
    }

    /// A look has ended.
    fn begin(&mut self, now: Instant) {
        self.begun = now;
    }

    /// Tells whether the next look is due, if the last one has cost so much.
    fn is_over(&mut self, now: Instant, was_used: bool, cost: Duration) -> bool {
        if was_used {
            self.used = now;
        }
        let unused = self.begun.saturating_duration_since(self.used);
        now - self.begun >= pause(cost, unused)
    }
}

/// Returns how long to wait after a look that has cost so much, if the tree had not been used for so long.
fn pause(cost: Duration, unused: Duration) -> Duration {
    let pause = cost.saturating_mul(LOOK_PART).max(unused);
    pause.clamp(LOOK_PAUSE_MIN, LOOK_PAUSE_MAX)
}

async fn ask(
    core: &Arc<Core>,
    watching: &Arc<dyn Watching>,
    mut watched: watch::Receiver<BTreeSet<InodeNo>>,
) {
    let mut asker = Asker::default();
    loop {
        let any = watched.wait_for(|watched| !watched.is_empty() || asker.known.is_some());
        let Ok(now) = any.await.map(|watched| watched.clone()) else {
            return;
        };
        let Some(session) = core.live_session().await else {
            return;
        };
        let request = asker.request(session, &now);
        let answered = tokio::select! {
            answered = asker.ask(core, &request) => answered,
            // The answer, if any, comes again: it was not acknowledged.
            _ = watched.changed() => continue,
        };
        match answered {
            Some(MetaReply::Events {
                known: true,
                events,
            }) => {
                asker.replay(core, watching, events).await;
                asker.is_known(session, now, None);
            }
            Some(MetaReply::EventsUpTo {
                known: true,
                events,
                upto,
                lost,
            }) => {
                if lost {
                    tracing::warn!(
                        "watchers miss events: the present leader does not know all that happened"
                    );
                }
                asker.replay(core, watching, events).await;
                asker.is_known(session, now, Some(upto));
            }
            Some(MetaReply::Events { .. } | MetaReply::EventsUpTo { .. }) => asker.known = None,
            Some(MetaReply::SessionEnded) => core.session_ended(session),
            Some(_) | None => sleep(ASK_PAUSE).await,
        }
    }
}

/// What was asked of the leader, and heard.
#[derive(Debug, Default)]
struct Asker {
    /// What the leader knows, and of which session.
    known: Option<(SessionId, BTreeSet<InodeNo>)>,
    session: Option<SessionId>,
    set: u64,
    /// The number of the last event of this session.
    after: u64,
    /// Up to where all events were replayed, whichever leader told them (N6); `None` while nothing is watched.
    since: Option<Place>,
    /// The leader is of an older version, which goes on from no place.
    older: bool,
}

impl Asker {
    /// Returns what to ask.
    fn request(&mut self, session: SessionId, now: &BTreeSet<InodeNo>) -> MetaRequest {
        if self.session.replace(session) != Some(session) {
            self.known = None;
            self.after = 0;
        }
        let same = self.known.as_ref().is_some_and(|(_, told)| told == now);
        if !same {
            self.set += 1;
        }
        let (set, after, since) = (self.set, self.after, self.since);
        let inodes = (!same).then(|| now.iter().copied().collect());
        if self.older {
            MetaRequest::Watch {
                session,
                set,
                inodes,
                after,
            }
        } else {
            MetaRequest::WatchSince {
                session,
                set,
                inodes,
                after,
                since,
            }
        }
    }

    async fn ask(&mut self, core: &Core, request: &MetaRequest) -> Option<MetaReply> {
        let until = Instant::now() + ASK_WITHIN;
        let since = if self.older { 0 } else { WATCH_SINCE };
        let reply = core.meta_since(request, since, until).await.ok()?.reply;
        // An older one is asked once more in each turn, in case it is not that one any more.
        self.older = !self.older && matches!(reply, MetaReply::Op { .. });
        Some(reply)
    }

    async fn replay(
        &mut self,
        core: &Arc<Core>,
        watching: &Arc<dyn Watching>,
        events: Vec<(u64, Event)>,
    ) {
        for (number, event) in events {
            // N1
            if number <= self.after {
                continue;
            }
            if number > self.after + 1 {
                let lost = number - self.after - 1;
                tracing::warn!(lost, "watchers miss events: the leader's queue was full");
            }
            tracing::debug!(number, ?event, "told");
            core.replay(watching, event).await;
            self.after = number;
        }
    }

    /// The leader knows what is watched, and all events up to a place were replayed.
    fn is_known(&mut self, session: SessionId, now: BTreeSet<InodeNo>, upto: Option<Place>) {
        self.known = (!now.is_empty()).then_some((session, now));
        self.since = upto.filter(|_| self.known.is_some());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn n6_a_place_is_kept_over_leaders_and_sessions_while_something_is_watched() {
        let place = Place::behind(Timestamp::from_nanos(7));
        let watched = BTreeSet::from([InodeNo::ROOT]);
        let mut asker = Asker::default();
        let asked = |asker: &mut Asker, session, now: &BTreeSet<_>| match asker
            .request(SessionId(session), now)
        {
            MetaRequest::WatchSince {
                inodes,
                after,
                since,
                ..
            } => (inodes.is_some(), after, since),
            other => panic!("{other:?}"),
        };
        assert_eq!(asked(&mut asker, 1, &watched), (true, 0, None));
        asker.after = 3;
        asker.is_known(SessionId(1), watched.clone(), Some(place));
        assert_eq!(asked(&mut asker, 1, &watched), (false, 3, Some(place)));
        // Another leader does not know the set.
        asker.known = None;
        assert_eq!(asked(&mut asker, 1, &watched), (true, 3, Some(place)));
        asker.is_known(SessionId(1), watched.clone(), Some(place));
        assert_eq!(asked(&mut asker, 2, &watched), (true, 0, Some(place)));
        // What happens while nothing is watched is not told later.
        asker.is_known(SessionId(2), BTreeSet::new(), Some(place));
        assert_eq!(asked(&mut asker, 2, &watched), (true, 0, None));
    }

    #[test]
    fn a_look_costs_a_small_part_of_a_processor() {
        assert_eq!(pause(MS, Duration::ZERO), LOOK_PAUSE_MIN);
        assert_eq!(pause(10 * MS, Duration::ZERO), 2_000 * MS);
        assert_eq!(pause(Duration::MAX, Duration::ZERO), LOOK_PAUSE_MAX);
        assert_eq!(pause(MS, Duration::MAX), LOOK_PAUSE_MAX);
    }

    /// Returns how long a rest takes in which the tree is used after so long.
    fn take(
        rest: &mut Rest,
        now: &mut Instant,
        used_after: Option<Duration>,
        cost: Duration,
    ) -> u128 {
        let begun = *now;
        rest.begin(begun);
        let mut used_at = used_after.map(|after| begun + after);
        loop {
            *now += LOOK_PAUSE_MIN;
            let was_used = used_at.take_if(|at| *at <= *now).is_some();
            if rest.is_over(*now, was_used, cost) {
                return (*now - begun).as_millis();
            }
        }
    }

    #[test]
    fn where_nothing_happens_looks_are_rare() {
        let mut now = Instant::now();
        let mut rest = Rest::new(now);
        let rests = [(); 7].map(|()| take(&mut rest, &mut now, None, MS));
        assert_eq!(rests, [500, 500, 1_000, 2_000, 4_000, 5_000, 5_000]);
    }

    #[test]
    fn who_uses_the_tree_is_looked_at_soon() {
        let mut now = Instant::now();
        let mut rest = Rest::new(now);
        now += 60_000 * MS;
        assert_eq!(take(&mut rest, &mut now, Some(1_200 * MS), MS), 1_500);
        // What looks cost is bounded all the same.
        assert_eq!(take(&mut rest, &mut now, Some(MS), 10 * MS), 2_000);
        assert_eq!(take(&mut rest, &mut now, None, MS), 1_500);
    }
}
