//! Locks of programs on two nodes.

use super::cluster::Cluster;
use super::mount::{Mount, ROOT};
use super::{wait, within};
use crate::client::Config;
use crate::error::Errno;
use crate::tree::{Lock, Tree};
use consistency::wire::lock::{LocalOwner, LockKind};
use consistency::{InodeNo, NodeId};
use std::time::Duration;

const TERM: Duration = Duration::from_millis(600);
const LOCKED: Errno = Errno(libc::EAGAIN);
/// Any process.
const OWNER: u64 = 77;

fn whole(kind: i32) -> Lock {
    Lock {
        start: 0,
        end: i64::MAX as u64,
        kind,
        pid: 1,
    }
}

/// An open file.
#[derive(Clone, Debug)]
struct Open {
    mount: Mount,
    ino: InodeNo,
    fh: u64,
}

impl Open {
    async fn new(mount: &Mount, path: &str) -> Self {
        let (ino, opened) = mount.open(path, libc::O_RDWR).await.expect("opened");
        Self {
            mount: mount.clone(),
            ino,
            fh: opened.fh,
        }
    }

    async fn lock(&self, kind: i32, wait: bool) -> Result<(), Errno> {
        let client = &self.mount.client;
        client
            .setlk(ROOT, self.ino, self.fh, OWNER, whole(kind), wait, false)
            .await
    }

    async fn flock(&self, kind: i32) -> Result<(), Errno> {
        let client = &self.mount.client;
        // The kernel names an open file here.
        client
            .setlk(ROOT, self.ino, self.fh, self.fh, whole(kind), false, true)
            .await
    }

    async fn write(&self, data: &[u8]) -> Result<(), Errno> {
        let how = libc::O_RDWR;
        self.mount.pwrite(self.ino, self.fh, how, 0, data).await
    }

    async fn close(self) -> Result<(), Errno> {
        let client = &self.mount.client;
        let flushed = client.flush(ROOT, self.ino, self.fh, OWNER).await;
        client.release(self.ino, self.fh).await;
        flushed
    }
}

/// Whether the process asks for a lock, or has one.
fn asks(open: &Open) -> bool {
    let owner = LocalOwner {
        kind: LockKind::Posix,
        id: OWNER,
    };
    open.mount.client.core.locks.has(open.ino, owner)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_who_locks_pays_for_locks() {
    let cluster = Cluster::start().await;
    let one = cluster.node(2).await;
    one.create("f").await.expect("created");
    let holder = Open::new(&one, "f").await;
    holder.lock(libc::F_WRLCK, false).await.expect("locked");
    let other = Open::new(&one, "f").await;
    one.faults.lock_requests();
    // Another process: what is locked is not its own.
    let client = &one.client;
    let flushed = client.flush(ROOT, other.ino, other.fh, OWNER + 1).await;
    assert_eq!(flushed, Ok(()));
    client.release(other.ino, other.fh).await;
    assert_eq!(one.faults.lock_requests(), 0);
    assert_eq!(holder.close().await, Ok(()));
    assert_eq!(one.faults.lock_requests(), 1);
    // It is given back once.
    let again = Open::new(&one, "f").await;
    assert_eq!(again.close().await, Ok(()));
    assert_eq!(one.faults.lock_requests(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_ends_with_the_lock_or_with_its_caller() {
    let cluster = Cluster::start().await;
    let (one, two) = (cluster.node(2).await, cluster.node(3).await);
    one.create("f").await.expect("created");
    let (a, b) = (Open::new(&one, "f").await, Open::new(&two, "f").await);
    assert_eq!(a.lock(libc::F_WRLCK, true).await, Ok(()));
    assert_eq!(b.lock(libc::F_WRLCK, false).await, Err(LOCKED));
    let waiting = tokio::spawn({
        let b = b.clone();
        async move { b.lock(libc::F_WRLCK, true).await }
    });
    wait("it asks", || asks(&b)).await;
    assert_eq!(a.lock(libc::F_UNLCK, false).await, Ok(()));
    let locked = within("the wait ends", waiting).await.expect("no panic");
    assert_eq!(locked, Ok(()));
    assert_eq!(a.lock(libc::F_WRLCK, false).await, Err(LOCKED));
    // The caller of this one is killed.
    let waiting = tokio::spawn({
        let a = a.clone();
        async move { a.lock(libc::F_WRLCK, true).await }
    });
    wait("it asks", || asks(&a)).await;
    waiting.abort();
    waiting.await.expect_err("aborted");
    assert_eq!(b.lock(libc::F_UNLCK, false).await, Ok(()));
    within("nobody holds the lock", async {
        while b.lock(libc::F_WRLCK, false).await == Err(LOCKED) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lk8_who_lost_a_lock_is_told_by_everything_it_does() {
    let cluster = Cluster::with_term(TERM).await;
    let impatient = Config {
        request_deadline: Duration::from_millis(1_500),
        ..Config::default()
    };
    let one = cluster.node_with(2, impatient).await;
    let two = cluster.node(3).await;
    one.create("f").await.expect("created");
    one.write("f", 0, b"first").await.expect("written");
    one.fsync("f").await.expect("synced");
    let (fcntl, flock) = (Open::new(&one, "f").await, Open::new(&one, "f").await);
    let free = Open::new(&one, "f").await;
    fcntl.lock(libc::F_WRLCK, false).await.expect("locked");
    flock.flock(libc::F_WRLCK).await.expect("locked");
    let session = one.client.session();
    cluster.net.cut(NodeId(2));
    // A lock of a node that is cut off goes with its session.
    let other = Open::new(&two, "f").await;
    let locked = within("the lock is free", other.lock(libc::F_WRLCK, true));
    assert_eq!(locked.await, Ok(()));
    cluster.net.heal(NodeId(2));
    let renewed = || one.client.session().is_some_and(|new| Some(new) != session);
    wait("there is a new session", renewed).await;
    for lost in [&fcntl, &flock] {
        assert_eq!(lost.write(b"wrong").await, Err(Errno::EIO));
        let how = crate::tree::OpenFlags(libc::O_RDWR);
        let read = one.client.read(ROOT, lost.ino, lost.fh, 0, 5, how).await;
        assert_eq!(read.map(|read| read.data), Err(Errno::EIO));
        assert_eq!(lost.lock(libc::F_WRLCK, false).await, Err(Errno::EIO));
    }
    assert_eq!(&two.read("f").await.expect("readable")[..], b"first");
    // Others are not concerned.
    assert_eq!(free.write(b"other").await, Ok(()));
    assert_eq!(free.lock(libc::F_WRLCK, false).await, Err(LOCKED));
    assert_eq!(other.close().await, Ok(()));
    for lost in [fcntl, flock] {
        let _told = lost.close().await;
    }
    assert_eq!(free.lock(libc::F_WRLCK, false).await, Ok(()));
    assert_eq!(&two.read("f").await.expect("readable")[..], b"other");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lk6_locks_and_waits_outlive_the_leader() {
    let cluster = Cluster::start().await;
    let (one, two) = (cluster.node(2).await, cluster.node(3).await);
    one.create("f").await.expect("created");
    let (a, b) = (Open::new(&one, "f").await, Open::new(&two, "f").await);
    assert_eq!(a.lock(libc::F_WRLCK, false).await, Ok(()));
    assert_eq!(b.flock(libc::F_WRLCK).await, Ok(()));
    let waiting = tokio::spawn({
        let b = b.clone();
        async move { b.lock(libc::F_WRLCK, true).await }
    });
    wait("it asks", || asks(&b)).await;
    let sessions = (one.client.session(), two.client.session());
    cluster.replace_leader();
    let tried = within("the new leader answers", b.lock(libc::F_RDLCK, false));
    assert_eq!(tried.await, Err(LOCKED));
    assert_eq!(a.flock(libc::F_RDLCK).await, Err(LOCKED));
    assert!(!waiting.is_finished());
    assert_eq!(a.write(b"still alone").await, Ok(()));
    assert_eq!(a.lock(libc::F_UNLCK, false).await, Ok(()));
    let locked = within("the wait ends", waiting).await.expect("no panic");
    assert_eq!(locked, Ok(()));
    assert_eq!((one.client.session(), two.client.session()), sessions);
}
