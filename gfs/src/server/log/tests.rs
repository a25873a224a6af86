//! The log as its user sees it: on a toy state machine, on real files, on a network in memory.

mod disks;

use super::*;
use crate::net::mem::MemNet;
use crate::server::machine::Unreadable;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tempfile::TempDir;

/// Appends numbers and keeps their sum; answers with its length and the sum.
#[derive(Clone, Debug, Default, PartialEq)]
struct Sum {
    values: Vec<u64>,
    sum: u64,
}

impl StateMachine for Sum {
    type Command = Vec<u64>;
    type Reply = (usize, u64);

    fn apply(&mut self, command: &Vec<u64>) -> (usize, u64) {
        let value = command[0];
        self.values.push(value);
        self.sum = self.sum.wrapping_add(value);
        (self.values.len(), self.sum)
    }

    fn snapshot(&self) -> Vec<u8> {
        if self.values.contains(&LONG) {
            BEGUN.store(true, Ordering::SeqCst);
            drop(ENCODING.lock().expect("no holder panics"));
        }
        wire::encode(&self.values)
    }

    fn restore(bytes: &[u8]) -> Result<Self, Unreadable> {
        let values: Vec<u64> = wire::decode(bytes).map_err(|error| error.to_string())?;
        let sum = values
            .iter()
            .fold(0, |sum: u64, value| sum.wrapping_add(*value));
        Ok(Self { values, sum })
    }
}

/// Of a state with this number a snapshot takes as long as the lock is held.
const LONG: u64 = u64::MAX;
static ENCODING: Mutex<()> = Mutex::new(());
static BEGUN: AtomicBool = AtomicBool::new(false);

type Log = Replicated<Sum>;

const HEARTBEAT: Duration = Duration::from_millis(50);
const ELECTION: (Duration, Duration) = (Duration::from_millis(250), Duration::from_millis(500));
const DEADLINE: Duration = Duration::from_secs(60);

fn config(node: u16, voters: &[u16], dir: &Path) -> LogConfig {
    LogConfig {
        node: NodeId(node),
        voters: voters.iter().copied().map(NodeId).collect(),
        dir: dir.into(),
        heartbeat: HEARTBEAT,
        election: ELECTION,
        snapshot_every: LogConfig::SNAPSHOT_EVERY,
        snapshot_bytes: LogConfig::SNAPSHOT_BYTES,
    }
}

async fn start(net: &MemNet, config: LogConfig) -> Result<Log, OpenError> {
    let (transport, router) = net.join(config.node);
    Replicated::open(config, transport, &router).await
}

/// Opens the log of a lone voter and waits until it leads.
async fn alone(dir: &Path) -> Log {
    alone_with(config(1, &[1], dir)).await
}

async fn alone_with(config: LogConfig) -> Log {
    let log = start(&MemNet::default(), config)
        .await
        .expect("the directory is sound");
    wait("the lone voter leads", || log.leadership().borrow().ready).await;
    log
}

async fn wait(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "waited {DEADLINE:?} in vain until {what}"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn push(log: &Log, value: u64) -> Result<(usize, u64), ProposeError> {
    log.propose(vec![value]).await
}

fn values(log: &Log) -> Vec<u64> {
    log.read(|sum| sum.values.clone())
}

/// Copies a log's directory as it lies on disk: what a killed process leaves.
fn crash_copy(dir: &Path) -> TempDir {
    let copy = tempfile::tempdir().expect("a temporary directory");
    copy_tree(dir, copy.path()).expect("the directory can be copied");
    copy
}

fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for file in std::fs::read_dir(from)? {
        let file = file?;
        let target = to.join(file.file_name());
        if file.file_type()?.is_dir() {
            copy_tree(&file.path(), &target)?;
        } else {
            std::fs::copy(file.path(), &target)?;
        }
    }
    Ok(())
}

/// Returns fjall's journal of a short log and where its contents end (it is preallocated with zeros).
fn journal(dir: &Path) -> (PathBuf, u64) {
    let path = dir.join(FOLDER).join("0.jnl");
    let bytes = std::fs::read(&path).expect("a short log has one journal");
    let end = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .expect("it is not empty")
        + 1;
    (path, end as u64)
}

/// Makes a directory with a log of the numbers 1 to `count`, as a crash leaves it.
async fn crashed(count: u64) -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = alone(dir.path()).await;
    for value in 1..=count {
        push(&log, value).await.expect("it leads");
    }
    let copy = crash_copy(dir.path());
    log.shutdown().await;
    copy
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_voter_answers_and_survives_a_crash_and_a_restart() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = alone(dir.path()).await;
    assert_eq!(push(&log, 5).await, Ok((1, 5)));
    assert_eq!(push(&log, 7).await, Ok((2, 12)));
    log.confirm_leader().await.expect("it leads");
    let epoch = log.leadership().borrow().epoch;

    let copy = crash_copy(dir.path());
    let crashed = alone(copy.path()).await;
    assert_eq!(values(&crashed), [5, 7]);
    assert_eq!(push(&crashed, 1).await, Ok((3, 13)));
    assert!(
        crashed.leadership().borrow().epoch > epoch,
        "a new life is a new reign"
    );

    log.shutdown().await;
    let refused = push(&log, 1).await;
    assert!(
        matches!(refused, Err(ProposeError::Unavailable(_))),
        "{refused:?}"
    );
    let again = alone(dir.path()).await;
    assert_eq!(values(&again), [5, 7]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_serves_one_log_of_one_node() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = alone(dir.path()).await;
    let net = MemNet::default();
    let second = start(&net, config(1, &[1], dir.path())).await;
    assert!(matches!(second, Err(OpenError::InUse { .. })), "{second:?}");
    log.shutdown().await;
    let other = start(&net, config(2, &[2], dir.path())).await;
    assert!(matches!(other, Err(OpenError::Foreign { .. })), "{other:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_promised_is_there_or_the_log_does_not_start() {
    /// Damages a log of ten numbers and starts it.
    async fn check(what: &str, damage: impl FnOnce(&Path), corrupt: bool) {
        let dir = crashed(10).await;
        damage(dir.path());
        let opened = start(&MemNet::default(), config(1, &[1], dir.path())).await;
        match opened {
            Ok(log) => {
                assert!(!corrupt, "{what}: started");
                wait("the lone voter leads", || log.leadership().borrow().ready).await;
                assert_eq!(values(&log), Vec::from_iter(1..=10), "{what}");
            }
            Err(OpenError::Corrupt { .. }) => assert!(corrupt, "{what}: {opened:?}"),
            Err(error) => panic!("{what}: {error}"),
        }
    }
    let cut = |bytes: u64| {
        move |dir: &Path| {
            let (path, end) = journal(dir);
            let file = File::options().write(true).open(path).expect("it is there");
            file.set_len(end - bytes).expect("it can be cut");
        }
    };
    let write = |at: fn(u64) -> u64, bytes: &'static [u8]| {
        move |dir: &Path| {
            let (path, end) = journal(dir);
            let file = File::options().write(true).open(path).expect("it is there");
            file.write_all_at(bytes, at(end))
                .expect("it can be written");
        }
    };
    let remove = |name: &'static str| {
        move |dir: &Path| {
            let path = dir.join(name);
            let removed = std::fs::remove_dir_all(&path);
            removed
                .or_else(|_| std::fs::remove_file(&path))
                .expect("it is there");
        }
    };
    check("nothing", |_| (), false).await;
    check("the preallocated rest is gone", cut(0), false).await;
    check("the last byte is gone", cut(1), true).await;
    check("the last entry is gone", cut(40), true).await;
    check("most of it is gone", cut(500), true).await;
    check(
        "a write that was never answered is torn",
        write(|end| end, b"\x01\0\0"),
        false,
    )
    .await;
    check(
        "a byte in the middle is flipped",
        write(|end| end / 2, b"\xa5\xa5"),
        true,
    )
    .await;
    check("the store is gone", remove("log"), true).await;
    check("the mark is gone", remove("MARK"), true).await;
}

/// On one thread, so that all of them wait before any is proposed.
#[tokio::test]
async fn waiting_commands_share_an_entry_and_keep_their_order() {
    const COUNT: u64 = 2_000;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = alone(dir.path()).await;
    let last = |log: &Log| {
        log.inner
            .raft
            .metrics()
            .borrow()
            .last_log_index
            .expect("there are entries")
    };
    let before = last(&log);
    let proposals = (0..COUNT).map(|value| push(&log, value));
    let replies = tokio::task::unconstrained(futures::future::join_all(proposals)).await;
    for (at, reply) in replies.into_iter().enumerate() {
        assert_eq!(reply.expect("it leads").0, at + 1);
    }
    assert_eq!(values(&log), Vec::from_iter(0..COUNT));
    let entries = last(&log) - before;
    assert!(
        entries <= COUNT / 100,
        "{COUNT} commands made {entries} entries"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_may_be_large_but_not_too_large() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = alone(dir.path()).await;
    let refused = log.propose(vec![u64::MAX; 1 << 20]).await;
    assert!(
        matches!(refused, Err(ProposeError::TooLarge { .. })),
        "{refused:?}"
    );
    let large = vec![u64::MAX; COMMAND_BYTES_MAX / 9 - 1];
    let replies = futures::future::join_all((0..20).map(|_| log.propose(large.clone()))).await;
    assert!(replies.iter().all(Result::is_ok), "{replies:?}");
    log.shutdown().await;
    let again = alone(dir.path()).await;
    assert_eq!(again.read(|sum| sum.values.len()), 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_shorten_the_log_and_a_damaged_one_is_not_used() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut config = config(1, &[1], dir.path());
    config.snapshot_every = 20;
    let log = alone_with(config.clone()).await;
    for value in 0..100 {
        push(&log, value).await.expect("it leads");
    }
    let metrics = log.inner.raft.metrics();
    wait("the log is purged", || metrics.borrow().purged.is_some()).await;
    log.shutdown().await;

    let copy = crash_copy(dir.path());
    config.dir = copy.path().into();
    let log = alone_with(config.clone()).await;
    assert_eq!(values(&log), Vec::from_iter(0..100));
    log.shutdown().await;

    let snapshots: Vec<_> = std::fs::read_dir(dir.path())
        .expect("it is there")
        .filter_map(|file| Some(file.ok()?.path()))
        .filter(|path| path.to_string_lossy().contains("/snapshot-"))
        .collect();
    assert_eq!(snapshots.len(), 1, "{snapshots:?}");
    let snapshot = File::options()
        .write(true)
        .open(&snapshots[0])
        .expect("it is there");
    snapshot.write_all_at(b"?", 60).expect("it can be written");
    config.dir = dir.path().into();
    let opened = start(&MemNet::default(), config).await;
    match opened {
        Err(OpenError::Corrupt { path, .. }) => assert_eq!(path, snapshots[0]),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(
    clippy::await_holding_lock,
    reason = "who waits for it is no task of the runtime's"
)]
async fn commands_do_not_wait_for_a_snapshot_to_be_encoded() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut config = config(1, &[1], dir.path());
    config.snapshot_every = 20;
    let log = alone_with(config.clone()).await;
    let encoding = ENCODING.lock().expect("no holder panics");
    push(&log, LONG).await.expect("it leads");
    let mut numbers = vec![LONG];
    while !BEGUN.load(Ordering::SeqCst) {
        assert!(numbers.len() < 1_000, "no snapshot is made");
        numbers.push(1);
        push(&log, 1).await.expect("it leads");
    }
    let during = numbers.len();
    for value in 0..50 {
        numbers.push(value);
        push(&log, value).await.expect("a command waits");
    }
    drop(encoding);
    let metrics = log.inner.raft.metrics();
    wait("the snapshot is made", || {
        metrics.borrow().snapshot.is_some()
    })
    .await;
    log.shutdown().await;
    // It was of one entry, to which what came meanwhile is added.
    let log = alone_with(config).await;
    assert_eq!(values(&log), numbers, "{during} were there before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_large_entries_are_bounded_as_well() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut config = config(1, &[1], dir.path());
    config.snapshot_bytes = 20_000;
    let log = alone_with(config.clone()).await;
    let large = vec![u64::MAX; 1_000];
    let metrics = log.inner.raft.metrics();
    for _ in 0..20 {
        log.propose(large.clone()).await.expect("it leads");
    }
    wait("the log is purged", || metrics.borrow().purged.is_some()).await;
    let made = log.read(|sum| sum.values.len());
    log.shutdown().await;
    drop(log);

    // What is applied anew is less than what asks for a snapshot, and what came while it was made.
    let log = alone_with(config).await;
    assert_eq!(log.read(|sum| sum.values.len()), made);
    let metrics = log.inner.raft.metrics();
    let (first, last) = {
        let metrics = metrics.borrow();
        (metrics.purged, metrics.last_applied)
    };
    let kept = last.map(|last| last.index) > first.map(|first| first.index + 2);
    assert!(
        first.is_some() && kept,
        "what came since the last snapshot but one is kept: {first:?} to {last:?}"
    );
    log.shutdown().await;
}

/// Three voters on one network.
struct Three {
    net: MemNet,
    dirs: Vec<TempDir>,
    logs: Vec<Log>,
    snapshot_every: u64,
}

impl Three {
    async fn start(snapshot_every: u64) -> Self {
        let dirs =
            Vec::from_iter((0..3).map(|_| tempfile::tempdir().expect("a temporary directory")));
        let mut this = Self {
            net: MemNet::default(),
            dirs,
            logs: Vec::new(),
            snapshot_every,
        };
        for at in 0..3 {
            let log = this.open(at).await;
            this.logs.push(log);
        }
        this
    }

    async fn open(&self, at: u16) -> Log {
        let mut config = config(at + 1, &[1, 2, 3], self.dirs[usize::from(at)].path());
        config.snapshot_every = self.snapshot_every;
        start(&self.net, config)
            .await
            .expect("the directory is sound")
    }

    /// Waits for a leader other than `not` and returns its position.
    async fn leader(&self, not: Option<usize>) -> usize {
        let found = AtomicU64::new(u64::MAX);
        wait("a voter leads", || {
            let leads = |at: &usize| Some(*at) != not && self.logs[*at].leadership().borrow().ready;
            let leader = (0..3).find(leads);
            found.store(leader.map_or(u64::MAX, |at| at as u64), Ordering::Relaxed);
            leader.is_some()
        })
        .await;
        usize::try_from(found.into_inner()).expect("it was found")
    }

    async fn agree(&self, expected: &[u64]) {
        for log in &self.logs {
            wait("all voters have the same", || values(log) == expected).await;
        }
    }

    async fn stop(self) {
        for log in &self.logs {
            log.shutdown().await;
        }
    }
}

fn id(at: usize) -> NodeId {
    NodeId(u16::try_from(at + 1).expect("there are three"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_leader_refuses_and_its_successor_has_all_that_was_acknowledged() {
    let three = Three::start(LogConfig::SNAPSHOT_EVERY).await;
    let old = three.leader(None).await;
    for value in 0..10 {
        push(&three.logs[old], value).await.expect("it leads");
    }
    three.logs[old].confirm_leader().await.expect("it leads");
    assert!(three.logs[old].lease_holds());
    let follower = (old + 1) % 3;
    // The other one is a majority with the leader: this one may not have heard of anything yet.
    wait("the follower knows who leads", || {
        three.logs[follower].leadership().borrow().leader == Some(id(old))
    })
    .await;
    let refused = push(&three.logs[follower], 99).await;
    assert_eq!(refused, Err(ProposeError::NotLeader(Some(id(old)))));
    let refused = three.logs[follower].confirm_leader().await;
    assert_eq!(refused, Err(ProposeError::NotLeader(Some(id(old)))));

    three.net.cut(id(old));
    // It cannot know yet that it is cut off: the outcome is open, and it says so, in time.
    let cut = Instant::now();
    let open = push(&three.logs[old], 77).await;
    assert!(
        cut.elapsed() < PROPOSE_DEADLINE / 2,
        "took {:?}",
        cut.elapsed()
    );
    assert!(matches!(open, Err(ProposeError::Unknown(_))), "{open:?}");
    let refused = push(&three.logs[old], 78).await;
    assert_eq!(refused, Err(ProposeError::NotLeader(None)));
    let refused = three.logs[old].confirm_leader().await;
    assert!(
        matches!(refused, Err(ProposeError::Unavailable(_))),
        "{refused:?}"
    );

    let new = three.leader(Some(old)).await;
    assert!(!three.logs[old].lease_holds() && three.logs[new].lease_holds());
    let epoch = |at: usize| three.logs[at].leadership().borrow().epoch;
    assert!(epoch(new) > epoch(old));
    assert_eq!(values(&three.logs[new]), Vec::from_iter(0..10));
    push(&three.logs[new], 10).await.expect("it leads");

    three.net.heal(id(old));
    // 77 never had a majority, and the successor's log wins.
    three.agree(&Vec::from_iter(0..11)).await;
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_comes_back_deposes_nobody() {
    let three = Three::start(LogConfig::SNAPSHOT_EVERY).await;
    let leader = three.leader(None).await;
    let epoch = three.logs[leader].leadership().borrow().epoch;
    push(&three.logs[leader], 1).await.expect("it leads");
    let away = (leader + 1) % 3;
    three.net.cut(id(away));
    // Alone it would have stood for election several times.
    let until = Instant::now() + ELECTION.1 * 5;
    while Instant::now() < until {
        push(&three.logs[leader], 2).await.expect("it leads");
        tokio::time::sleep(HEARTBEAT).await;
    }
    three.net.heal(id(away));
    wait("the one that was away has caught up", || {
        values(&three.logs[away]) == values(&three.logs[leader])
    })
    .await;
    push(&three.logs[leader], 3).await.expect("it leads");
    assert_eq!(three.logs[leader].leadership().borrow().epoch, epoch);
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_voter_grows_to_three_and_a_lost_one_is_replaced() {
    let net = MemNet::default();
    let dirs = Vec::from_iter((0..4).map(|_| tempfile::tempdir().expect("a temporary directory")));
    let open = async |node: u16, voters: &[u16]| {
        let config = config(node, voters, dirs[usize::from(node - 1)].path());
        start(&net, config).await.expect("the directory is sound")
    };
    let set = |ids: &[u16]| ids.iter().copied().map(NodeId).collect::<BTreeSet<_>>();
    let one = open(1, &[1]).await;
    wait("the lone voter leads", || one.leadership().borrow().ready).await;
    for value in 0..10 {
        push(&one, value).await.expect("it leads");
    }
    // The others know of the first one alone, and stand by.
    let two = open(2, &[1]).await;
    let three = open(3, &[1]).await;
    // Commands go on while the set changes.
    let grown = set(&[1, 2, 3]);
    let (changed, pushed) = tokio::join!(one.set_voters(&grown), push(&one, 10));
    changed.expect("the set changes");
    pushed.expect("it leads");
    assert_eq!(one.voters(), [1, 2, 3].map(NodeId));
    for log in [&two, &three] {
        wait("the new voters have all", || {
            values(log) == Vec::from_iter(0..=10)
        })
        .await;
    }
    // The first one is lost for good; the others go on and take another in its place.
    one.shutdown().await;
    net.cut(NodeId(1));
    let leads = |log: &Log| log.leadership().borrow().ready;
    wait("one of the others leads", || leads(&two) || leads(&three)).await;
    // This one has never heard of those that there are by now.
    let four = open(4, &[1]).await;
    let leader = if leads(&two) { &two } else { &three };
    leader
        .set_voters(&set(&[2, 3, 4]))
        .await
        .expect("the set changes");
    push(leader, 11).await.expect("it leads");
    wait("the new voter has all", || {
        values(&four) == Vec::from_iter(0..=11)
    })
    .await;
    assert_eq!(four.voters(), [2, 3, 4].map(NodeId));
    let refused = four.set_voters(&set(&[4])).await;
    assert!(
        matches!(refused, Err(ProposeError::NotLeader(_))),
        "{refused:?}"
    );
    // Two of the new three are a majority.
    let other = if leads(&two) { &three } else { &two };
    other.shutdown().await;
    push(leader, 12).await.expect("a majority is left");
    // The first one comes back, does not know that it is none, and deposes nobody. It can be made a voter again.
    net.heal(NodeId(1));
    let one = open(1, &[1]).await;
    let without = if leads(&two) { 3 } else { 2 };
    let again = set(&[1, 2, 3, 4]).into_iter();
    let again = again.filter(|id| id.0 != without).collect();
    let epoch = leader.leadership().borrow().epoch;
    leader.set_voters(&again).await.expect("the set changes");
    assert_eq!(leader.leadership().borrow().epoch, epoch);
    push(leader, 13).await.expect("it leads");
    wait("the first one has all", || {
        values(&one) == Vec::from_iter(0..=13)
    })
    .await;
    one.shutdown().await;
    for log in [&two, &three, &four] {
        log.shutdown().await;
    }
}

/// It was away while the voters changed twice, and is one of the two of the new three that are left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_was_away_votes_for_one_that_it_does_not_know() {
    let mut nodes = Three::start(LogConfig::SNAPSHOT_EVERY).await;
    let first = nodes.leader(None).await;
    let (other, away) = ((first + 1) % 3, (first + 2) % 3);
    push(&nodes.logs[first], 1).await.expect("it leads");
    nodes
        .dirs
        .push(tempfile::tempdir().expect("a temporary directory"));
    let four = nodes.open(3).await;
    nodes.net.cut(id(away));
    for three in [[first, other, 3], [first, away, 3]] {
        let voters = three.map(id).into();
        let changed = nodes.logs[first].set_voters(&voters).await;
        changed.expect("the set changes");
    }
    push(&nodes.logs[first], 2).await.expect("it leads");
    wait("the fourth has all", || values(&four) == [1, 2]).await;

    nodes.logs[first].shutdown().await;
    nodes.net.cut(id(first));
    nodes.net.heal(id(away));
    wait("the fourth leads", || four.leadership().borrow().ready).await;
    push(&four, 3).await.expect("a majority is left");
    wait("the one that was away has all", || {
        values(&nodes.logs[away]) == [1, 2, 3]
    })
    .await;
    four.shutdown().await;
    nodes.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_was_away_for_long_gets_a_snapshot() {
    let mut three = Three::start(30).await;
    let leader = three.leader(None).await;
    let away = (leader + 1) % 3;
    three.logs[away].shutdown().await;
    for value in 0..150 {
        push(&three.logs[leader], value).await.expect("it leads");
    }
    let metrics = three.logs[leader].inner.raft.metrics();
    wait("the log is purged", || metrics.borrow().purged.is_some()).await;
    three.logs[away] = three.open(id(away).0 - 1).await;
    three.agree(&Vec::from_iter(0..150)).await;
    push(&three.logs[leader], 150).await.expect("it leads");
    three.agree(&Vec::from_iter(0..151)).await;
    three.stop().await;
}

/// Tells the ignored tests below, which run as processes of their own, which directory to use.
const CHILD_DIR: &str = "GLU_LOG_TEST_DIR";

/// Runs an ignored test of this file as a process, through a shell that may set limits first.
/// T5: all voters have the same state at an entry, while commands come all the time; one that has another is found.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voters_are_compared_at_one_entry() {
    let three = Three::start(LogConfig::SNAPSHOT_EVERY).await;
    let leader = three.leader(None).await;
    push(&three.logs[leader], 1).await.expect("it leads");
    let index = three.logs[leader].applied_index();
    let passed = three.logs[leader].state_at(index).await;
    assert!(passed.is_none(), "entry {index} is applied already");
    let wanted = index + 20;
    let mut states = Vec::new();
    for log in &three.logs {
        states.push(log.state_at(wanted).await.expect("it is to come"));
    }
    for value in 0..40 {
        push(&three.logs[leader], value).await.expect("it leads");
    }
    let mut sums = Vec::new();
    for state in states {
        let state = timeout_at(Instant::now() + DEADLINE, state).await;
        sums.push(state.expect("in time").expect("it was there"));
    }
    assert_eq!(sums[0], sums[1]);
    assert_eq!(sums[0], sums[2]);
    let values = sums[0].values.len();
    assert!((2..40).contains(&values), "between two commands");

    let odd = (leader + 1) % 3;
    let tampered = |applied: &mut Applied<Sum>| applied.machine.values.push(77);
    tampered(&mut three.logs[odd].inner.applied.write().expect("no panic"));
    let wanted = three.logs[leader].applied_index() + 3;
    let (own, other) = (
        three.logs[leader].state_at(wanted).await.expect("to come"),
        three.logs[odd].state_at(wanted).await.expect("to come"),
    );
    for value in 0..3 {
        push(&three.logs[leader], value).await.expect("it leads");
    }
    assert_ne!(own.await.expect("it was there"), other.await.expect("too"));
}

fn child(test: &str, dir: &Path, limits: &str) -> std::process::Command {
    let program = std::env::current_exe().expect("a test has a program");
    let script = format!("{limits} exec \"$0\" --exact --ignored --nocapture \"$1\"");
    let mut command = std::process::Command::new("sh");
    let path = format!("{}::{test}", module_path!().trim_start_matches("gfs::"));
    command.args(["-c", &script]).arg(program).arg(path);
    command
        .env(CHILD_DIR, dir)
        .stdout(std::process::Stdio::piped());
    command
}

fn child_dir() -> PathBuf {
    std::env::var_os(CHILD_DIR)
        .expect("only run by another test")
        .into()
}

/// Returns the number behind the last whole "acked" line.
fn last_acked(output: &str) -> u64 {
    let whole = output.rfind('\n').map_or("", |end| &output[..end]);
    let mut acked = whole.lines().filter_map(|line| line.strip_prefix("acked "));
    let last = acked.next_back();
    last.map_or(0, |number| number.parse().expect("it is a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a process of its own, started by the next test"]
async fn child_that_pushes_until_it_is_killed() {
    let mut config = config(1, &[1], &child_dir());
    config.snapshot_every = 50;
    let log = alone_with(config).await;
    let begun = log.read(|sum| sum.values.len() as u64);
    for value in begun + 1.. {
        push(&log, value).await.expect("it leads");
        println!("acked {value}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_loses_nothing_it_acknowledged() {
    use std::io::{BufRead, BufReader, Read};
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut acked = 0;
    for round in 0..3 {
        let mut child = child("child_that_pushes_until_it_is_killed", dir.path(), "");
        let mut child = child.spawn().expect("it starts");
        let mut output = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut text = String::new();
        let enough = acked + 100 + round * 37;
        while last_acked(&text) < enough {
            let read = output.read_line(&mut text).expect("it writes text");
            assert!(read > 0, "the child ended by itself: {text}");
        }
        child.kill().expect("it runs");
        child.wait().expect("it ends");
        output.read_to_string(&mut text).expect("it writes text");
        acked = last_acked(&text);
    }
    let log = alone(dir.path()).await;
    let values = values(&log);
    // What was under way when the process died may be there as well.
    assert!(
        values.len() as u64 >= acked,
        "{acked} acknowledged, {} there",
        values.len()
    );
    assert_eq!(values, Vec::from_iter(1..=values.len() as u64));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a process of its own, started by the next test"]
async fn child_that_runs_out_of_disk() {
    let log = alone(&child_dir()).await;
    let begun = log.read(|sum| sum.values.len() as u64);
    for value in begun + 1.. {
        let mut command = vec![u64::MAX; 1024];
        command[0] = value;
        match log.propose(command).await {
            Ok(_) => println!("acked {value}"),
            Err(error) => {
                println!("failed {error}");
                break;
            }
        }
    }
    let refused = push(&log, 0).await;
    println!("refused {}", refused.expect_err("the log has failed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_an_error_and_loses_nothing() {
    let dir = crashed(10).await;
    // The first restart cuts the preallocated rest of the journal, so that the limit is met soon.
    alone(dir.path()).await.shutdown().await;
    let limits = "trap '' XFSZ; ulimit -f 400;";
    let output = child("child_that_runs_out_of_disk", dir.path(), limits).output();
    let output = String::from_utf8(output.expect("it runs").stdout).expect("it writes text");
    let acked = last_acked(&output);
    assert!(acked > 10, "{output}");
    let line = |start: &str| {
        output
            .lines()
            .find(|line| line.starts_with(start))
            .unwrap_or("")
    };
    assert!(
        line("failed ").contains("outcome of the command is unknown"),
        "{output}"
    );
    assert!(line("failed ").contains("cannot be written"), "{output}");
    assert!(line("refused ").contains("takes no commands"), "{output}");
    let log = alone(dir.path()).await;
    let values = values(&log);
    assert!(
        values.len() as u64 >= acked,
        "{acked} acknowledged, {} there",
        values.len()
    );
    assert_eq!(values, Vec::from_iter(1..=values.len() as u64));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn speed_is_printed() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = alone(dir.path()).await;
    let mut times = Vec::new();
    for value in 0..300 {
        let begin = std::time::Instant::now();
        push(&log, value).await.expect("it leads");
        times.push(begin.elapsed());
    }
    times.sort();
    println!(
        "one command at a time: median {:?}, p95 {:?}",
        times[150], times[285]
    );

    let synced = dir.path().join("fsync");
    let file = File::create(&synced).expect("it can be made");
    let mut fsyncs = Vec::new();
    for at in 0..300 {
        let begin = std::time::Instant::now();
        file.write_all_at(&[1; 128], at * 128)
            .expect("there is room");
        file.sync_data().expect("the disk works");
        fsyncs.push(begin.elapsed());
    }
    fsyncs.sort();
    println!(
        "append and fdatasync alone: median {:?}, p95 {:?}",
        fsyncs[150], fsyncs[285]
    );

    let begin = std::time::Instant::now();
    let clients = (0..64).map(|client| {
        let log = log.clone();
        tokio::spawn(async move {
            for value in 0..50 {
                push(&log, client * 100 + value).await.expect("it leads");
            }
        })
    });
    futures::future::join_all(clients.collect::<Vec<_>>()).await;
    let rate = 3_200.0 / begin.elapsed().as_secs_f64();
    println!("64 clients: {rate:.0} commands/s");
    assert_eq!(log.read(|sum| sum.values.len()), 3_500);
}
