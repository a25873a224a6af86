use super::*;
use crate::batch::job::{Dependency, Kind};
use crate::nodes::NodeSet;
use std::path::PathBuf;

const ALICE: User = User {
    uid: 1000,
    gid: 1000,
};
const BOB: User = User {
    uid: 1001,
    gid: 1001,
};
const ROOT: User = User { uid: 0, gid: 0 };

fn spec() -> Spec {
    Spec {
        name: "x".into(),
        command: vec!["true".into()],
        directory: PathBuf::from("/"),
        umask: 0o22,
        output: "out".into(),
        error: None,
        count: 1,
        cpus: 1,
        mem_mib: 0,
        cpus_max: None,
        gang: false,
        private: None,
        nodes: None,
        exclude: None,
        partition: None,
        time: None,
        begin: None,
        priority: 0,
        after: Vec::new(),
        array: Vec::new(),
        array_limit: None,
        when_idle: false,
        again: true,
        held: false,
    }
}

fn machine(node: u16) -> Machine {
    Machine {
        node: NodeId(node),
        up: true,
        cpus: 2,
        runnable: 0.0,
        mem_free_mib: 1_000,
        closed_to: BTreeSet::new(),
    }
}

fn set(text: &str) -> NodeSet {
    text.parse().expect("is a set")
}

fn id(text: &str) -> JobId {
    text.parse().expect("names a job")
}

/// A queue, and what it has running, as the scheduler sees it. Checks B1 to B3 at each step.
struct World {
    queue: Queue,
    machines: Vec<Machine>,
    now: Seconds,
    running: BTreeMap<JobId, Vec<NodeId>>,
    ending: BTreeSet<JobId>,
    /// What a scheduler that is gone has left running, until then.
    ghosts: BTreeMap<JobId, Seconds>,
    mutant: Option<Mutant>,
}

/// A scheduler that breaks a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    /// B1: another scheduler's jobs are believed to be gone at once.
    NoFence,
    /// B2: nodes are believed to have more processors than they have.
    Oversold,
    /// B3: jobs that are to end go on.
    NeverEnd,
}

impl World {
    fn new(nodes: u16) -> Self {
        Self {
            queue: Queue::default(),
            machines: (1..=nodes).map(machine).collect(),
            now: 1_000,
            running: BTreeMap::new(),
            ending: BTreeSet::new(),
            ghosts: BTreeMap::new(),
            mutant: None,
        }
    }

    fn ask(&mut self, user: User, request: Request) -> Answer {
        let mut actions = Vec::new();
        let answer = self.queue.ask(self.now, user, request, &mut actions);
        self.act(actions).expect("a request starts nothing");
        answer
    }

    #[track_caller]
    fn submit_as(&mut self, user: User, change: impl FnOnce(&mut Spec)) -> u64 {
        let mut spec = spec();
        change(&mut spec);
        match self.ask(user, Request::Submit(Box::new(spec))) {
            Answer::Submitted(number) => number,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn submit(&mut self, change: impl FnOnce(&mut Spec)) -> u64 {
        self.submit_as(ALICE, change)
    }

    #[track_caller]
    fn refused(&mut self, user: User, request: Request, part: &str) {
        let before = format!("{:?}", self.queue.jobs);
        match self.ask(user, request) {
            Answer::Refused(why) if why.contains(part) => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(format!("{:?}", self.queue.jobs), before);
    }

    fn act(&mut self, actions: Vec<Action>) -> Result<(), String> {
        for action in actions {
            match action {
                Action::Start(id, on) => {
                    let ghost = self.ghosts.get(&id).is_some_and(|until| self.now < *until);
                    if self.running.insert(id, on).is_some() || ghost {
                        return Err(format!("B1: {id} runs already"));
                    }
                }
                Action::End(id) if self.running.contains_key(&id) => {
                    self.ending.insert(id);
                }
                Action::End(id) => return Err(format!("{id} does not run")),
            }
        }
        Ok(())
    }

    #[track_caller]
    fn step(&mut self, seconds: Seconds) {
        self.try_step(seconds).expect("the rules hold");
    }

    /// One step, after which what was to end has ended.
    fn try_step(&mut self, seconds: Seconds) -> Result<(), String> {
        self.now += seconds;
        let mut machines = self.machines.clone();
        if self.mutant == Some(Mutant::Oversold) {
            machines.iter_mut().for_each(|of| of.cpus += 1);
        }
        let actions = self.queue.step(self.now, &machines);
        self.act(actions)?;
        if self.mutant == Some(Mutant::NeverEnd) {
            self.ending.clear();
        }
        for machine in &self.machines {
            let mut in_use = 0;
            for (id, on) in &self.running {
                let job = self.queue.job(*id).expect("it is known");
                let here = on.iter().filter(|node| **node == machine.node).count();
                in_use += job.spec.cpus * u32::try_from(here).expect("few");
                for (name, of) in &self.queue.rules.reservations {
                    let excluded = of.excludes(job.user.uid, machine.node, self.now, self.now);
                    if here > 0 && excluded && !self.ending.contains(id) {
                        return Err(format!("B3: {id} is in {name}"));
                    }
                }
            }
            if in_use > machine.cpus {
                return Err(format!("B2: {in_use} processors of {}", machine.node));
            }
        }
        for id in std::mem::take(&mut self.ending) {
            self.running.remove(&id);
            let outcome = Outcome::Killed(15);
            self.queue.ended(self.now, id, outcome, String::new());
        }
        Ok(())
    }

    /// Another scheduler takes over; what the old one has started runs on for as long as it may.
    fn take_over(&mut self) {
        let jobs: Vec<Job> = self.queue.jobs.values().cloned().collect();
        self.queue = Queue::new(jobs, self.queue.rules.clone(), self.queue.last);
        let until = self.now + FENCE;
        let left = std::mem::take(&mut self.running).into_keys();
        self.ghosts.extend(left.map(|id| (id, until)));
        self.ending.clear();
        let wrong = self.mutant == Some(Mutant::NoFence);
        self.queue.recover(self.now - if wrong { FENCE } else { 0 });
    }

    fn end(&mut self, job: &str, outcome: Outcome) {
        self.running.remove(&id(job)).expect("it runs");
        self.queue.ended(self.now, id(job), outcome, String::new());
    }

    fn runs(&self) -> String {
        let jobs: Vec<String> = self.running.keys().map(JobId::to_string).collect();
        jobs.join(" ")
    }

    fn state(&self, job: &str) -> String {
        self.queue
            .job(id(job))
            .map_or_else(|| "none".into(), |job| job.state.word())
    }

    fn reason(&self, job: &str) -> &str {
        &self.queue.job(id(job)).expect("it is known").reason
    }
}

#[test]
fn jobs_start_by_priority_and_number_when_processors_are_free() {
    let mut world = World::new(1);
    world.submit(|_| ());
    world.submit(|spec| spec.cpus = 2);
    world.submit(|_| ());
    world.submit(|spec| spec.priority = 5);
    world.step(0);
    assert_eq!(world.runs(), "1 4", "the big one lets others pass");
    assert_eq!(world.reason("2"), "waits for 2 free processors");
    world.end("4", Outcome::Exited(0));
    world.step(1);
    assert_eq!(world.runs(), "1 3");
    // But not for ever.
    world.submit(|_| ());
    world.end("1", Outcome::Exited(0));
    world.step(600);
    assert_eq!(world.runs(), "3");
    world.end("3", Outcome::Exited(1));
    world.step(1);
    assert_eq!(
        (world.runs(), world.state("3")),
        ("2".into(), "exit 1".into())
    );
}

#[test]
fn processes_are_spread_over_the_nodes_that_are_meant() {
    let mut world = World::new(3);
    world.submit(|spec| spec.count = 3);
    world.step(0);
    let nodes = |ids: &[u16]| ids.iter().copied().map(NodeId).collect::<Vec<_>>();
    assert_eq!(world.running[&id("1")], nodes(&[1, 2, 3]));
    world.submit(|spec| spec.nodes = Some(set("2")));
    world.submit(|spec| spec.exclude = Some(set("1,2")));
    world.submit(|spec| spec.mem_mib = 2_000);
    world.submit(|spec| (spec.count, spec.cpus) = (2, 2));
    world.submit(|spec| spec.count = 7);
    world.step(1);
    assert_eq!(world.running[&id("2")], nodes(&[2]));
    assert_eq!(world.running[&id("3")], nodes(&[3]));
    assert_eq!(world.runs(), "1 2 3");
    assert_eq!(
        world.reason("6"),
        "needs 7 processors, the nodes that it may use have 6"
    );
    // A node that is down has nothing.
    world.machines[0].up = false;
    world.submit(|_| ());
    world.step(1);
    assert_eq!(world.state("7"), "waiting");
}

#[test]
fn arrays_run_so_many_at_a_time() {
    let mut world = World::new(3);
    world.submit(|spec| (spec.array, spec.array_limit) = (vec![1, 4, 7], Some(2)));
    world.step(0);
    assert_eq!(world.runs(), "1_1 1_4");
    assert_eq!(world.reason("1_7"), "2 of its array run");
    world.end("1_1", Outcome::Exited(0));
    world.step(1);
    assert_eq!(world.runs(), "1_4 1_7");
    assert_eq!(
        world.ask(ALICE, Request::Cancel(vec![id("1")])),
        Answer::Done
    );
    world.step(1);
    assert_eq!(
        (world.state("1_1"), world.state("1_7")),
        ("done".into(), "cancelled".into())
    );
}

#[test]
fn jobs_wait_for_others() {
    let mut world = World::new(3);
    world.submit(|spec| spec.cpus = 2);
    let wait = |kind| move |spec: &mut Spec| spec.after = vec![Dependency { kind, job: 1 }];
    world.submit(wait(Kind::After));
    world.submit(wait(Kind::AfterOk));
    world.submit(wait(Kind::AfterNotOk));
    world.submit(wait(Kind::AfterAny));
    world.step(0);
    assert_eq!(world.runs(), "1 2");
    world.end("1", Outcome::Exited(3));
    world.step(1);
    assert_eq!(world.runs(), "2 4 5");
    assert_eq!(world.state("3"), "never");
    let mut unknown = spec();
    wait(Kind::AfterOk)(&mut unknown);
    unknown.after[0].job = 99;
    world.refused(ALICE, Request::Submit(Box::new(unknown)), "no job 99");
}

#[test]
fn only_owners_and_root_change_a_job() {
    let mut world = World::new(1);
    world.submit(|spec| spec.held = true);
    for request in [Request::Cancel, Request::Hold, Request::Release] {
        world.refused(BOB, request(vec![id("1")]), "not yours");
        world.refused(ALICE, request(vec![id("1"), id("9")]), "no job 9");
    }
    world.step(1);
    assert_eq!(world.state("1"), "held");
    assert_eq!(
        world.ask(ALICE, Request::Release(vec![id("1")])),
        Answer::Done
    );
    world.step(1);
    assert_eq!(world.runs(), "1");
    assert_eq!(
        world.ask(ROOT, Request::Cancel(vec![id("1")])),
        Answer::Done
    );
    world.step(1);
    assert_eq!(world.state("1"), "cancelled");
}

#[test]
fn times_are_kept() {
    let mut world = World::new(1);
    world.submit(|spec| spec.time = Some(60));
    world.submit(|spec| spec.begin = Some(1_100));
    world.step(0);
    world.step(59);
    assert_eq!(world.runs(), "1");
    world.step(1);
    assert_eq!(world.state("1"), "timeout");
    assert_eq!(world.runs(), "");
    world.step(40);
    assert_eq!(world.runs(), "2");
}

#[test]
fn a_lost_node_s_jobs_begin_again_but_not_at_once() {
    let mut world = World::new(2);
    world.submit(|_| ());
    world.submit(|spec| spec.again = false);
    world.submit(|_| ());
    world.step(0);
    world.end("1", Outcome::Lost);
    world.step(1);
    assert_eq!(
        (world.runs(), world.queue.jobs[&id("1")].starts),
        ("1 2 3".into(), 2)
    );
    assert_eq!(
        world.ask(ALICE, Request::Cancel(vec![id("3")])),
        Answer::Done
    );

    // Another scheduler goes on with what was kept.
    world.take_over();
    world.step(FENCE - 1);
    assert_eq!(world.runs(), "", "the old ones may still run");
    assert_eq!(
        (world.state("2"), world.state("3")),
        ("lost".into(), "cancelled".into())
    );
    world.step(1);
    assert_eq!(world.runs(), "1");
    for _ in 0..STARTS_MAX {
        if world.runs() == "1" {
            world.end("1", Outcome::Lost);
            world.step(1);
        }
    }
    assert_eq!(world.state("1"), "lost", "and not for ever");
    assert_eq!(world.submit(|_| ()), 4, "no number is given twice");
}

#[test]
fn reserved_nodes_are_for_their_users() {
    let mut world = World::new(2);
    let reserve = |nodes, from, until, uid| Reservation {
        nodes: set(nodes),
        from,
        until,
        users: vec![uid],
        owner: 0,
    };
    let make = |name: &str, of| Request::Reservation(name.into(), Some(of));
    let of_bob = || reserve("1", 1_100, 1_200, BOB.uid);
    world.refused(ALICE, make("r", of_bob()), "no partition that you own");
    assert_eq!(world.ask(ROOT, make("r", of_bob())), Answer::Done);
    world.refused(
        ROOT,
        make("s", reserve("1-2", 1_150, 1_300, 1)),
        "`r` has some",
    );
    world.refused(ROOT, make("s", reserve("2", 900, 1_000, 1)), "is over");

    world.submit(|spec| spec.nodes = Some(set("1")));
    world.submit(|spec| (spec.nodes, spec.time) = (Some(set("1")), Some(200)));
    world.step(0);
    assert_eq!(world.runs(), "1", "the second would not be through before");
    world.submit_as(BOB, |spec| (spec.count, spec.nodes) = (2, Some(set("1"))));
    world.step(100);
    assert_eq!(world.state("1"), "waiting", "{}", world.reason("1"));
    world.step(1);
    assert_eq!(world.runs(), "3");
    world.end("3", Outcome::Exited(0));
    world.step(99);
    assert_eq!(world.runs(), "1 2");
    assert_eq!(
        world.queue.rules.reservations.len(),
        0,
        "what is over is gone"
    );
}

#[test]
fn partitions_have_rules() {
    let mut world = World::new(2);
    let fast = Partition {
        nodes: Some(set("2")),
        users: vec![ALICE.uid],
        owners: vec![BOB.uid],
        priority: 10,
        time_max: Some(60),
        jobs_per_user: Some(1),
    };
    let make = Request::Partition("fast".into(), Some(fast));
    world.refused(BOB, make.clone(), "only root");
    assert_eq!(world.ask(ROOT, make), Answer::Done);
    let in_fast = |spec: &mut Spec| spec.partition = Some("fast".into());
    for _ in 0..2 {
        world.submit(in_fast);
    }
    world.step(0);
    assert_eq!(world.running[&id("1")], [NodeId(2)]);
    assert_eq!(
        (world.runs(), world.reason("2")),
        ("1".into(), "1 jobs of its owner run in fast")
    );
    assert_eq!(world.queue.jobs[&id("1")].spec.time, Some(60));
    let mut too_long = spec();
    in_fast(&mut too_long);
    too_long.time = Some(61);
    let submit = |spec: Spec| Request::Submit(Box::new(spec));
    world.refused(ALICE, submit(too_long.clone()), "at most 60 s");
    too_long.time = None;
    let carol = User { uid: 1002, ..BOB };
    world.refused(carol, submit(too_long.clone()), "not for you");
    too_long.partition = Some("slow".into());
    world.refused(ALICE, submit(too_long), "no partition `slow`");
    // Its owners reserve its nodes, and no others.
    let reservation = |nodes| Reservation {
        nodes: set(nodes),
        from: 2_000,
        until: 3_000,
        users: vec![BOB.uid],
        owner: 0,
    };
    let make = |nodes| Request::Reservation("r".into(), Some(reservation(nodes)));
    world.refused(BOB, make("1-2"), "node 1");
    assert_eq!(world.ask(BOB, make("2")), Answer::Done);
    world.refused(ALICE, Request::Reservation("r".into(), None), "not yours");
}

#[test]
fn who_runs_on_idle_nodes_leaves_them_to_others() {
    let mut world = World::new(2);
    world.machines[0].runnable = 1.5;
    world.submit(|spec| (spec.when_idle, spec.count, spec.cpus) = (true, 1, 2));
    world.step(0);
    assert_eq!(world.running[&id("1")], [NodeId(2)]);
    // Its own programs are not others'.
    world.machines[1].runnable = 2.5;
    world.step(1);
    world.step(60);
    assert_eq!(world.runs(), "1");
    world.machines[1].runnable = 3.5;
    world.step(1);
    assert_eq!(world.runs(), "1", "a moment is no reason");
    world.step(5);
    assert_eq!(world.state("1"), "waiting");
    assert!(
        world.reason("1").contains("node 2"),
        "{}",
        world.reason("1")
    );
    world.machines[0].runnable = 0.0;
    world.step(1);
    assert_eq!(world.running[&id("1")], [NodeId(1)]);
}

#[test]
fn what_ended_long_ago_is_history() {
    let mut world = World::new(2);
    world.submit(|_| ());
    world.submit(|_| ());
    world.submit(|spec| {
        spec.held = true;
        spec.after = vec![Dependency {
            kind: Kind::AfterOk,
            job: 2,
        }];
    });
    world.step(0);
    for job in ["1", "2"] {
        world.end(job, Outcome::Exited(0));
    }
    assert_eq!(world.queue.forget(world.now + KEPT - 1), []);
    let old = world.queue.forget(world.now + KEPT);
    let old: Vec<String> = old.iter().map(|job| job.id.to_string()).collect();
    assert_eq!(old, ["1"], "the other is waited for");
}

#[test]
fn a_long_array_waits_for_its_limit() {
    let mut world = World::new(3);
    let many: Vec<u32> = (0..10_000).collect();
    world.submit(|spec| (spec.array, spec.array_limit) = (many, Some(2)));
    world.submit(|spec| {
        spec.after = vec![Dependency {
            kind: Kind::AfterOk,
            job: 1,
        }];
    });
    world.step(0);
    assert_eq!(world.runs(), "1_0 1_1");
    assert_eq!(world.reason("1_9999"), "2 of its array run");
    assert_eq!(world.reason("2"), "waits for other jobs");
}

/// Jobs that come, end and are lost as a seed says; tells which rule was broken.
fn history(seed: u64, mutant: Option<Mutant>) -> Result<(), String> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut draw = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let small = |number| u32::try_from(number).expect("small");
    let mut world = World::new(3);
    world.mutant = mutant;
    for _ in 0..100 {
        match draw(12) {
            0..4 => {
                let (count, cpus) = (small(draw(3) + 1), small(draw(2) + 1));
                let (idle, again) = (draw(2) == 0, draw(2) == 0);
                let time = (draw(2) == 0).then(|| draw(30) + 1);
                let user = if draw(2) == 0 { ALICE } else { BOB };
                world.submit_as(user, |spec| {
                    (spec.count, spec.cpus) = (count, cpus);
                    (spec.when_idle, spec.again, spec.time) = (idle, again, time);
                });
            }
            4..6 if !world.running.is_empty() => {
                let at = usize::try_from(draw(10)).expect("small") % world.running.len();
                let id = world.running.keys().nth(at).expect("it is there");
                let outcome = [Outcome::Exited(0), Outcome::Lost][usize::from(draw(2) == 0)];
                world.end(&id.to_string(), outcome);
            }
            6..8 => {
                let from = world.now + draw(20);
                let of = Reservation {
                    nodes: set(["1", "2", "2-3"][usize::try_from(draw(3)).expect("small")]),
                    from,
                    until: from + 1 + draw(20),
                    users: vec![ALICE.uid],
                    owner: 0,
                };
                let name = format!("r{}", draw(4));
                world.ask(ROOT, Request::Reservation(name, Some(of)));
            }
            8..10 => {
                let at = usize::try_from(draw(3)).expect("small");
                world.machines[at].up = draw(4) > 0;
                world.machines[at].runnable = if draw(2) == 0 { 0.0 } else { 3.0 };
            }
            10 => world.take_over(),
            _ => {}
        }
        world.try_step(draw(4))?;
    }
    Ok(())
}

#[test]
fn no_history_breaks_the_rules() {
    for seed in 1..=200 {
        history(seed, None).unwrap_or_else(|rule| panic!("seed {seed}: {rule}"));
    }
}

#[test]
fn each_mutant_is_caught() {
    for (mutant, rule) in [
        (Mutant::NoFence, "B1"),
        (Mutant::Oversold, "B2"),
        (Mutant::NeverEnd, "B3"),
    ] {
        let caught = (1..=20).filter_map(|seed| history(seed, Some(mutant)).err());
        let found: Vec<String> = caught.collect();
        let named = found.iter().all(|why| why.starts_with(rule));
        assert!(!found.is_empty() && named, "{mutant:?}: {found:?}");
    }
}
