//! All worlds of a job with two moves between three nodes, or with a move and two checkpoints, in which connections break
//! and hosts die at any step, and what must hold in each of them. Exhaustive: every order of deliveries and faults is one
//! path.

mod kept;

use super::{Action, Copy, Event, Home, NotMoved, State, Word};
use consistency::NodeId;
use std::collections::{BTreeSet, HashSet, VecDeque};

const NODES: usize = 3;
const FAULTS_MAX: u8 = 2;

/// What may be asked of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Wishes {
    moves: u8,
    keeps: u8,
    restart: bool,
    /// By post-copy.
    partly: bool,
    /// Pages go ahead.
    ahead: bool,
}

const MOVES: Wishes = Wishes {
    moves: 2,
    keeps: 0,
    restart: false,
    partly: false,
    ahead: false,
};
const CHECKPOINTS: Wishes = Wishes {
    moves: 1,
    keeps: 2,
    restart: true,
    partly: false,
    ahead: false,
};
const POST_COPY: Wishes = Wishes {
    partly: true,
    ..MOVES
};
const POST_COPY_CHECKPOINTS: Wishes = Wishes {
    keeps: 1,
    partly: true,
    ..CHECKPOINTS
};
const AHEAD: Wishes = Wishes {
    ahead: true,
    ..MOVES
};
const AHEAD_CHECKPOINTS: Wishes = Wishes {
    keeps: 1,
    ahead: true,
    ..CHECKPOINTS
};

/// A rule that is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    Nothing,
    /// A copy waits for home's word (MV1).
    Wait,
    /// Once the new copy may run the old one never does again (MV1).
    Decide,
    /// A failed move lets the old copy go on (MV2).
    GoOn,
    /// A host that has lost home ends its copy (MV4).
    EndWithHome,
    /// A host that could not make images goes on (MV2).
    ThawItself,
    /// Nothing starts from a checkpoint before the one that ran has ended (CK1).
    Fence,
    /// A host that has made images that are to be kept goes on (CK2).
    GoOnAtOnce,
    /// What could not be written whole is no checkpoint (CK3).
    Whole,
    /// The source keeps its pages until the copy has them (MV10).
    KeepPages,
    /// A copy whose pages are lost ends (MV10).
    EndWithPages,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Down {
    Offer { partly: bool },
    CopyAhead,
    Keep,
    Word(Word),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Up {
    Copied,
    Dumped,
    DumpedPartly,
    Whole,
    NotDumped,
    Restored,
    NotRestored,
    Running,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
struct Host {
    copy: Option<Copy>,
    /// How often the job had moved when this copy was made.
    age: u64,
    /// Each attempt has a connection of its own; the home's own never breaks.
    linked: bool,
    down: VecDeque<Down>,
    up: VecDeque<Up>,
    /// Home has not noticed yet that the connection is gone.
    unseen: bool,
    /// Its copy lacks pages, which this host keeps.
    lacks: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    wishes: Wishes,
    home: Home,
    hosts: [Host; NODES],
    source: usize,
    target: Option<usize>,
    /// Keeps pages of the copy that runs.
    old: Option<usize>,
    asked: u8,
    answered: u8,
    faults: u8,
    over: bool,
    /// Home's node has died.
    homeless: bool,
    /// The age of the youngest copy that has run.
    ran: u64,
    keeps: u8,
    told_kept: u8,
    /// What home waits for: the end of a copy, images to be written, images to be read.
    fence: Option<usize>,
    writes: bool,
    reads: bool,
    /// Checkpoints that are whole, and whether there is one.
    written: u64,
}

impl World {
    fn new(wishes: Wishes) -> Self {
        let mut hosts: [Host; NODES] = Default::default();
        hosts[0].copy = Some(Copy::Running);
        hosts[0].linked = true;
        Self {
            wishes,
            home: Home::new(NodeId(0)).with_restart(wishes.restart),
            hosts,
            source: 0,
            target: None,
            old: None,
            asked: 0,
            answered: 0,
            faults: 0,
            over: false,
            homeless: false,
            ran: 0,
            keeps: 0,
            told_kept: 0,
            fence: None,
            writes: false,
            reads: false,
            written: 0,
        }
    }

    /// Home takes an event and acts.
    fn at_home(&mut self, event: Event, missing: Missing) {
        let landing =
            matches!(event, Event::TargetGone(_)) && self.home.moves() > self.ran_at_home();
        let partly = event == Event::DumpedPartly;
        let mut actions = self.home.on(event);
        if missing == Missing::GoOn {
            actions.retain(|action| *action != Action::Thaw);
        }
        if missing == Missing::Decide && landing && actions.contains(&Action::End) {
            actions = vec![Action::Thaw];
        }
        for action in actions {
            match action {
                Action::CopyAhead(to) => {
                    let to = usize::from(to.0);
                    self.target = Some(to);
                    self.hosts[to] = self.arrival();
                    self.tell(self.source, Down::CopyAhead);
                }
                Action::CopyNoMore => self.tell(self.source, Down::Word(Word::Thaw)),
                Action::Freeze => self.tell(self.source, Down::Word(Word::Freeze)),
                Action::Thaw => self.tell(self.source, Down::Word(Word::Thaw)),
                Action::Drop if missing == Missing::Decide => {}
                Action::Drop => {
                    let old = self.old.take().unwrap_or(self.source);
                    self.tell(old, Down::Word(Word::End));
                }
                Action::Follow => {
                    self.old = Some(self.source);
                    self.source = self.target.take().expect("it has arrived");
                }
                Action::EndCopy if missing == Missing::EndWithPages => {}
                Action::EndCopy => self.break_link(self.source, false),
                Action::Offer(to) => {
                    let to = usize::from(to.0);
                    if !self.wishes.ahead || matches!(self.home.state, State::Starting { .. }) {
                        self.target = Some(to);
                        // The old copy on the same node is another connection's; it is gone before home can be a target.
                        self.hosts[to] = self.arrival();
                    }
                    // It may be gone since pages began to go there.
                    if self.target.is_none() {
                        self.at_home(Event::TargetGone(String::new()), missing);
                    } else {
                        self.tell(to, Down::Offer { partly });
                    }
                }
                Action::Run => {
                    let target = self.target.expect("offered");
                    self.tell(target, Down::Word(Word::Run));
                    if missing == Missing::KeepPages {
                        self.tell(self.source, Down::Word(Word::End));
                    }
                }
                Action::Abort => {
                    if let Some(target) = self.target.take() {
                        self.break_link(target, false);
                    }
                }
                Action::Answer(answer) => {
                    let goes_on = !matches!(answer, Err(NotMoved::Ended));
                    assert_eq!(
                        goes_on,
                        self.home.state != State::Over,
                        "MV2: {answer:?} is not how it is"
                    );
                    // Nobody has asked for a start from a checkpoint.
                    self.answered = (self.answered + 1).min(self.asked);
                    if self.home.is_settled() && usize::from(self.home.at().0) != self.source {
                        self.source = self.target.take().expect("it has arrived");
                    }
                }
                Action::End => self.over = true,
                Action::Image => self.tell(self.source, Down::Keep),
                Action::Store => self.writes = true,
                Action::TellKept(_) => self.told_kept += 1,
                Action::Fence(node) => {
                    // One that was let run is the source from then on.
                    self.source = usize::from(node.0);
                    self.target = None;
                    self.fence = Some(self.source);
                }
                Action::Load => {
                    assert!(self.written > 0, "CK3: no checkpoint is whole");
                    self.reads = true;
                }
            }
        }
    }

    /// A host that is to get a copy.
    fn arrival(&self) -> Host {
        Host {
            linked: true,
            age: self.home.moves() + self.home.restarts() + 1,
            ..Host::default()
        }
    }

    /// As home hears of it.
    fn target_gone(&mut self, missing: Missing) {
        if let Some(target) = self.target.take() {
            self.break_link(target, false);
        }
        self.at_home(Event::TargetGone(String::new()), missing);
    }

    /// What the mutant needs: moves of which the copy is known to run.
    fn ran_at_home(&self) -> u64 {
        self.hosts[self.source].age
    }

    fn tell(&mut self, host: usize, message: Down) {
        if self.hosts[host].linked {
            self.hosts[host].down.push_back(message);
        }
    }

    fn break_link(&mut self, host: usize, unseen: bool) {
        let host = &mut self.hosts[host];
        host.linked = false;
        host.down.clear();
        host.up.clear();
        host.unseen = unseen;
    }

    fn set(&mut self, host: usize, copy: Copy) {
        let runs = copy == Copy::Running && self.hosts[host].copy != Some(Copy::Running);
        self.hosts[host].copy = Some(copy);
        if runs {
            let age = self.hosts[host].age;
            assert!(
                age >= self.ran,
                "MV1: a copy goes on that a younger one has replaced"
            );
            self.ran = age;
        }
        let running = self
            .hosts
            .iter()
            .filter(|host| host.copy == Some(Copy::Running));
        assert!(running.count() <= 1, "MV1: two copies run");
    }

    /// Returns all worlds that may come next.
    fn next(&self, missing: Missing) -> Vec<Self> {
        let mut worlds = Vec::new();
        if self.homeless {
            return self.next_without_home(missing);
        }
        let mut add = |change: &dyn Fn(&mut Self)| {
            let mut world = self.clone();
            change(&mut world);
            worlds.push(world);
        };
        self.next_of_checkpoints(missing, &mut add);
        if self.asked < self.wishes.moves {
            for to in 0..NODES {
                // A target has no old copy left: home frees the number, and another host's has ended.
                let free = self.hosts[to].copy.is_none_or(|copy| copy == Copy::Gone);
                if free || to == usize::from(self.home.at().0) {
                    let to = NodeId(u16::try_from(to).expect("a handful"));
                    add(&|world| {
                        world.asked += 1;
                        let asked = match world.wishes.ahead {
                            true => Event::AskedAhead(to),
                            false => Event::Asked(to),
                        };
                        world.at_home(asked, missing);
                    });
                }
            }
        }
        for host in 0..NODES {
            let is_source = Some(host) != self.target && host == self.source;
            if let Some(message) = self.hosts[host].down.front().copied() {
                for well in [true, false] {
                    add(&|world| {
                        world.hosts[host].down.pop_front();
                        world.arrive(host, message, well, missing);
                    });
                }
            }
            if let Some(message) = self.hosts[host].up.front().copied() {
                add(&|world| {
                    world.hosts[host].up.pop_front();
                    let event = match message {
                        Up::NotRestored => return world.target_gone(missing),
                        Up::Copied => Event::Copied,
                        Up::Dumped => Event::Dumped,
                        Up::DumpedPartly => Event::DumpedPartly,
                        Up::Whole => Event::Whole,
                        Up::NotDumped => Event::NotDumped(String::new()),
                        Up::Restored => Event::Restored,
                        Up::Running => Event::Running,
                    };
                    world.at_home(event, missing);
                });
            }
            if self.hosts[host].unseen {
                add(&|world| {
                    world.hosts[host].unseen = false;
                    if is_source {
                        world.at_home(Event::SourceGone, missing);
                    } else if Some(host) == world.target {
                        world.target_gone(missing);
                    } else if Some(host) == world.old {
                        world.at_home(Event::PagesGone(String::new()), missing);
                    }
                });
            }
            if self.can_fetch(host) {
                add(&|world| {
                    world.hosts[host].lacks = None;
                    world.hosts[host].up.push_back(Up::Whole);
                });
            }
            // A host that has lost home notices at some time, or dies.
            let lost = !self.hosts[host].linked && missing != Missing::EndWithHome;
            let alive = self.hosts[host].copy.is_some_and(|copy| copy != Copy::Gone);
            if lost && alive {
                add(&|world| world.set(host, Copy::Gone));
            }
            if self.faults < FAULTS_MAX && host == 0 {
                add(&|world| {
                    world.faults += 1;
                    world.die_at_home();
                });
            }
            if self.faults < FAULTS_MAX && self.hosts[host].linked && host != 0 {
                for dies in [true, false] {
                    add(&|world| {
                        world.faults += 1;
                        world.break_link(host, true);
                        if dies && world.hosts[host].copy.is_some() {
                            world.set(host, Copy::Gone);
                        }
                    });
                }
            }
        }
        worlds
    }

    /// Returns whether a copy that runs gets the pages that it lacks.
    fn can_fetch(&self, host: usize) -> bool {
        let lacks = self.hosts[host].lacks.map(|from| &self.hosts[from]);
        let kept = lacks.is_some_and(|from| from.linked && from.copy == Some(Copy::Frozen));
        kept && self.hosts[host].linked && self.hosts[host].copy == Some(Copy::Running)
    }

    /// With home goes whatever runs there, and every stream.
    fn die_at_home(&mut self) {
        self.homeless = true;
        for host in 0..NODES {
            self.break_link(host, false);
        }
        if self.hosts[0].copy.is_some() {
            self.set(0, Copy::Gone);
        }
    }

    /// Each host that has a copy notices at some time.
    fn next_without_home(&self, missing: Missing) -> Vec<Self> {
        let alive = |host: &usize| {
            self.hosts[*host]
                .copy
                .is_some_and(|copy| copy != Copy::Gone)
        };
        let hosts = (0..NODES).filter(alive);
        let hosts = hosts.filter(|_| missing != Missing::EndWithHome);
        hosts
            .map(|host| {
                let mut world = self.clone();
                world.set(host, Copy::Gone);
                world
            })
            .collect()
    }

    fn arrive(&mut self, host: usize, message: Down, well: bool, missing: Missing) {
        let up = match (message, well) {
            (Down::Offer { partly }, true) => {
                self.hosts[host].lacks = partly.then_some(self.source);
                let copy = if missing == Missing::Wait {
                    Copy::Running
                } else {
                    Copy::Ready
                };
                self.set(host, copy);
                Up::Restored
            }
            (Down::Offer { .. }, false) => Up::NotRestored,
            // Or none have gone: then it goes whole.
            (Down::CopyAhead, _) => Up::Copied,
            (Down::Keep, well) => {
                if self.hosts[host].copy != Some(Copy::Running) {
                    return;
                }
                if missing == Missing::GoOnAtOnce {
                    self.set(host, Copy::Frozen);
                }
                if well { Up::Dumped } else { Up::NotDumped }
            }
            (Down::Word(word), well) => {
                let Some(copy) = self.hosts[host].copy else {
                    return;
                };
                let next = copy.after(word);
                match (word, well) {
                    (Word::Freeze, false) if missing == Missing::ThawItself => {
                        self.set(host, next);
                        Up::NotDumped
                    }
                    (Word::Freeze, false) => Up::NotDumped,
                    (Word::Freeze, true) => {
                        self.set(host, next);
                        if self.wishes.partly {
                            Up::DumpedPartly
                        } else {
                            Up::Dumped
                        }
                    }
                    (Word::Run, _) => {
                        self.set(host, next);
                        Up::Running
                    }
                    (Word::Thaw | Word::End, _) => return self.set(host, next),
                }
            }
        };
        self.hosts[host].up.push_back(up);
    }

    /// Where nothing is left to happen but what somebody asks, or breaks.
    fn check_rest(&self, missing: Missing) {
        let rests = self
            .hosts
            .iter()
            .all(|host| host.down.is_empty() && host.up.is_empty() && !host.unseen);
        let rests = rests && self.fence.is_none() && !self.writes && !self.reads;
        let rests = rests && !(0..NODES).any(|host| !self.homeless && self.can_fetch(host));
        let left = missing != Missing::EndWithHome
            && self
                .hosts
                .iter()
                .any(|host| !host.linked && host.copy.is_some_and(|copy| copy != Copy::Gone));
        if !rests {
            return;
        }
        let running = |host: &&Host| host.copy == Some(Copy::Running);
        let running = self.hosts.iter().filter(running).count();
        if self.homeless || self.over {
            assert!(running == 0 || left, "MV4: a copy outlives its job");
        } else {
            assert_eq!(self.answered, self.asked, "who asked waits for ever");
            assert_eq!(self.told_kept, self.keeps, "who asked waits for ever");
            assert_eq!(running, 1, "MV2, CK2: the job is lost on its way");
            let whole = |host: &Host| host.copy != Some(Copy::Running) || host.lacks.is_none();
            assert!(
                self.hosts.iter().all(whole),
                "MV10: a copy waits for pages that nobody has"
            );
        }
        if self.faults == 0 {
            assert!(!self.over, "MV2, CK2: the job ends without a fault");
        }
    }
}

/// Visits all worlds; returns how many there are, or panics at one in which a rule is broken.
fn visit(wishes: Wishes, missing: Missing) -> usize {
    let mut seen = HashSet::from([World::new(wishes)]);
    let mut open = vec![World::new(wishes)];
    while let Some(world) = open.pop() {
        world.check_rest(missing);
        for next in world.next(missing) {
            if seen.insert(next.clone()) {
                open.push(next);
            }
        }
    }
    seen.len()
}

#[test]
fn exactly_one_copy_runs_in_all_worlds() {
    for wishes in [
        MOVES,
        CHECKPOINTS,
        POST_COPY,
        POST_COPY_CHECKPOINTS,
        AHEAD,
        AHEAD_CHECKPOINTS,
    ] {
        let worlds = visit(wishes, Missing::Nothing);
        println!("{worlds} worlds");
        assert!(worlds > 1_000, "only {worlds} worlds were visited");
    }
}

#[test]
fn a_missing_rule_is_noticed() {
    for (wishes, missing) in [
        (MOVES, Missing::Wait),
        (MOVES, Missing::Decide),
        (MOVES, Missing::GoOn),
        (MOVES, Missing::EndWithHome),
        (MOVES, Missing::ThawItself),
        (CHECKPOINTS, Missing::Fence),
        (CHECKPOINTS, Missing::GoOnAtOnce),
        (CHECKPOINTS, Missing::Whole),
        (POST_COPY, Missing::Wait),
        (POST_COPY, Missing::Decide),
        (POST_COPY, Missing::GoOn),
        (POST_COPY, Missing::EndWithHome),
        (POST_COPY, Missing::KeepPages),
        (POST_COPY, Missing::EndWithPages),
        (POST_COPY_CHECKPOINTS, Missing::Fence),
        (AHEAD, Missing::Wait),
        (AHEAD, Missing::Decide),
        (AHEAD, Missing::GoOn),
        (AHEAD, Missing::EndWithHome),
        (AHEAD_CHECKPOINTS, Missing::Fence),
    ] {
        let broken = std::panic::catch_unwind(|| visit(wishes, missing));
        assert!(broken.is_err(), "{missing:?} is not noticed");
    }
}

#[test]
fn words_that_are_not_due_change_nothing() {
    let all = [Word::Run, Word::Freeze, Word::Thaw, Word::End];
    let moved: BTreeSet<_> = all.map(|word| (word, Copy::Gone.after(word))).into();
    assert!(moved.iter().all(|(_, copy)| *copy == Copy::Gone));
    assert_eq!(Copy::Frozen.after(Word::Run), Copy::Frozen);
    assert_eq!(Copy::Ready.after(Word::Thaw), Copy::Ready);
    assert_eq!(Copy::Ready.after(Word::Freeze), Copy::Ready);
}
