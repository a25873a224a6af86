//! What a file holds after it was changed in many ways, here and on another node.

use super::cluster::Cluster;
use super::mount::{Mount, ROOT, name};
use crate::error::Errno;
use crate::tree::{Caller, NewMode, OpenFlags, SetAttrRequest, Tree};
use bytes::Bytes;
use consistency::wire::meta::{FileKind, QUOTA_BYTES, XattrMode};
use std::sync::atomic::Ordering;

/// A file as an array, changed like the one in the cluster.
pub(super) struct Twin<'a> {
    pub(super) mount: &'a Mount,
    pub(super) model: Vec<u8>,
}

impl Twin<'_> {
    pub(super) async fn write(&mut self, at: usize, data: &[u8]) {
        let end = at + data.len();
        self.model.resize(self.model.len().max(end), 0);
        self.model[at..end].copy_from_slice(data);
        self.mount
            .write("f", at as u64, data)
            .await
            .expect("written");
    }

    pub(super) async fn truncate(&mut self, size: usize) {
        self.model.resize(size, 0);
        self.mount
            .truncate("f", size as u64)
            .await
            .expect("truncated");
    }

    pub(super) async fn punch(&mut self, at: usize, len: usize) {
        let end = (at + len).min(self.model.len());
        if at < end {
            self.model[at..end].fill(0);
        }
        let ino = self.mount.walk("f").await.expect("there");
        let how = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let client = &self.mount.client;
        let punched = client.fallocate(ROOT, ino, 0, at as u64, len as u64, how);
        punched.await.expect("punched");
    }

    pub(super) async fn check(&self, reader: &Mount, what: &str) {
        let size = reader.stat("f").await.expect("there").size;
        assert_eq!(size, self.model.len() as u64, "size {what}");
        for at in (0..self.model.len()).step_by(300_000) {
            let len = 300_000.min(self.model.len() - at);
            let read = reader.read_at("f", at as u64, len as u32).await;
            let read = read.expect("readable");
            assert!(read == self.model[at..at + len], "content at {at} {what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_changes_agree_with_an_array() {
    let cluster = Cluster::start().await;
    let [one, two] = [cluster.node(2).await, cluster.node(3).await];
    for (seed, range) in [(1_u64, 3_000), (2, 40_000), (3, 3_000_000), (4, 200_000)] {
        one.create("f").await.expect("created");
        let mut dice = seed;
        let mut roll = |limit: usize| {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (dice >> 33) as usize % limit
        };
        let mut twin = Twin {
            mount: &one,
            model: Vec::new(),
        };
        for step in 0..60_u8 {
            let what = format!("seed {seed} range {range} step {step}");
            match roll(12) {
                0 => twin.truncate(roll(range)).await,
                1 => twin.punch(roll(range), roll(range / 3) + 1).await,
                2 => one.fsync("f").await.expect("synced"),
                3 => twin.check(&one, &what).await,
                4 => {
                    let what = format!("on the other node, {what}");
                    twin.check(&two, &what).await;
                }
                5 => {
                    let data = vec![step + 1; roll(range / 2)];
                    twin.write(roll(range), &data).await;
                }
                _ => {
                    let data = vec![step + 1; roll(5_000)];
                    twin.write(roll(range), &data).await;
                }
            }
        }
        twin.check(&one, "at the end").await;
        twin.check(&two, "at the end, on the other node").await;
        two.unlink("f").await.expect("removed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_file_is_written_without_the_leader() {
    let cluster = Cluster::start().await;
    let [one, two] = [cluster.node(2).await, cluster.node(3).await];
    one.create("f").await.expect("created");
    one.faults.ops();
    for n in 0..100 {
        one.append("f", b"0123456789").await.expect("written");
        assert_eq!(one.stat("f").await.expect("there").size, (n + 1) * 10);
    }
    one.truncate("f", 500).await.expect("truncated");
    one.chown("f", 7).await.expect("changed");
    assert_eq!(one.read("f").await.expect("readable").len(), 500);
    assert_eq!(one.faults.ops(), 0, "all of it is local");
    let seen = two.stat("f").await.expect("there");
    assert_eq!((seen.size, seen.uid), (500, 7));
    assert_eq!(two.read("f").await.expect("readable").len(), 500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_cached_needs_no_leader() {
    let cluster = Cluster::start().await;
    let [one, two] = [cluster.node(2).await, cluster.node(3).await];
    one.mkdir("d").await.expect("made");
    one.create("d/f").await.expect("created");
    one.write("d/f", 0, b"hello").await.expect("written");
    let look = async || {
        assert_eq!(&two.read("d/f").await.expect("readable")[..], b"hello");
        assert_eq!(two.stat("d/f").await.expect("there").size, 5);
        assert!(!two.exists("d/none").await.expect("looked up"));
        assert_eq!(two.list("d", false).await.expect("listed"), ["f"]);
    };
    look().await;
    two.faults.ops();
    look().await;
    // The daemon's caches, without the kernel's.
    {
        let mut cache = two.kernel.cache();
        cache.attrs.clear();
        cache.pages.clear();
        cache.dentries.clear();
    }
    look().await;
    assert_eq!(two.faults.ops(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_from_two_nodes_do_not_overlap() {
    let cluster = Cluster::start().await;
    let nodes = [cluster.node(2).await, cluster.node(3).await];
    nodes[0].create("f").await.expect("created");
    let writers = nodes.clone().map(|mount| {
        tokio::spawn(async move {
            for _ in 0..50 {
                mount.append("f", b"0123456789").await.expect("written");
            }
        })
    });
    for writer in writers {
        super::within("a writer ends", writer)
            .await
            .expect("writes");
    }
    // By reference: a node that is dropped here has lost power, and what it alone knew.
    for mount in &nodes {
        let read = mount.read("f").await.expect("readable");
        assert_eq!(read.len(), 1_000);
        assert!(read.chunks(10).all(|line| line == b"0123456789"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn truncating_an_empty_file_makes_it_newer() {
    let cluster = Cluster::start().await;
    let [one, two] = [cluster.node(2).await, cluster.node(3).await];
    one.create("f").await.expect("created");
    let before = two.stat("f").await.expect("there").mtime;
    one.truncate("f", 0).await.expect("truncated");
    assert!(two.stat("f").await.expect("there").mtime > before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_do_not_run_backwards_between_nodes() {
    let cluster = Cluster::start().await;
    let nodes = [cluster.node(2).await, cluster.node(3).await];
    let mut last = None;
    for n in 0..40 {
        let mount = &nodes[n % 2];
        let path = format!("f{n}");
        mount.create(&path).await.expect("created");
        mount.write(&path, 0, b"x").await.expect("written");
        let seen = nodes[(n + 1) % 2].stat(&path).await.expect("there").mtime;
        assert!(Some(seen) > last, "file {n} is older than the one before");
        last = Some(seen);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unlinked_file_lives_while_it_is_open_anywhere() {
    let cluster = Cluster::start().await;
    let [one, two] = [cluster.node(2).await, cluster.node(3).await];
    one.create("f").await.expect("created");
    one.write("f", 0, b"still here").await.expect("written");
    let (ino, opened) = two.open("f", libc::O_RDONLY).await.expect("opened");
    one.unlink("f").await.expect("removed");
    assert!(!two.exists("f").await.expect("looked up"));
    one.client.forget(ino, 1);
    assert_eq!(
        &two.read_page(ino, opened.fh).await.expect("readable")[..],
        b"still here"
    );
    assert_eq!(two.fstat(ino).await.expect("there").nlink, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_store_is_told_by_fsync_and_nothing_is_lost() {
    let cluster = Cluster::start().await;
    let one = cluster.node(2).await;
    one.create("f").await.expect("created");
    one.write("f", 0, &[5; 100_000]).await.expect("written");
    cluster.chunks.full.store(true, Ordering::SeqCst);
    assert_eq!(one.fsync("f").await, Err(Errno(libc::ENOSPC)));
    assert_eq!(one.read("f").await.expect("readable"), vec![5; 100_000]);
    cluster.chunks.full.store(false, Ordering::SeqCst);
    assert_eq!(one.fsync("f").await, Ok(()));
    let two = cluster.node(3).await;
    assert_eq!(two.read("f").await.expect("readable"), vec![5; 100_000]);
}

pub(super) async fn limit_bytes(mount: &Mount, path: &str, bytes: u64) -> Result<(), Errno> {
    let ino = mount.walk(path).await?;
    let (limit, value) = (name(QUOTA_BYTES), bytes.to_string().into());
    let set = mount
        .client
        .setxattr(ROOT, ino, &limit, value, XattrMode::Any, false);
    set.await
}

async fn close(mount: &Mount, path: &str) -> Result<(), Errno> {
    let ino = mount.walk(path).await?;
    let (_, writer) = mount.open(path, libc::O_WRONLY).await.expect("opened");
    let closed = mount.client.flush(ROOT, ino, writer.fh, 0).await;
    mount.client.release(ino, writer.fh).await;
    closed
}

/// Q4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_hears_of_its_quota() {
    let full = Err(Errno::EDQUOT);
    let cluster = Cluster::start().await;
    let [one, two] = [cluster.node(2).await, cluster.node(3).await];
    two.mkdir("d").await.expect("made");
    limit_bytes(&two, "d", 204_800 + 4096).await.expect("set");
    one.create("d/f").await.expect("created");
    one.write("d/f", 0, &[1; 100_000]).await.expect("fits");
    one.write("d/f", 100_000, &[2; 100_000])
        .await
        .expect("fits");
    assert_eq!(one.write("d/f", 200_000, &[3; 10_000]).await, full);
    assert_eq!(close(&one, "d/f").await, Ok(()), "what was taken is kept");
    assert_eq!(two.stat("d/f").await.expect("there").size, 200_000);
    one.write("d/f", 0, &[4; 100_000])
        .await
        .expect("no more than before");
    assert_eq!(one.fsync("d/f").await, Ok(()));
    // Two files that together are too large: the second one hears of it, at the close at the latest, and is as before.
    one.truncate("d/f", 0).await.expect("always works");
    assert_eq!(one.fsync("d/f").await, Ok(()));
    one.create("d/g").await.expect("created");
    one.create("d/h").await.expect("created");
    one.write("d/g", 0, &[5; 150_000]).await.expect("fits");
    one.write("d/h", 0, &[6; 150_000])
        .await
        .expect("fits alone");
    assert_eq!(close(&one, "d/g").await, Ok(()));
    assert_eq!(close(&one, "d/h").await, full);
    assert_eq!(one.stat("d/h").await.expect("there").size, 0);
    assert_eq!(one.read("d/g").await.expect("readable"), vec![5; 150_000]);
    // The node goes on with the file.
    one.write("d/h", 0, &[7; 50_000]).await.expect("fits");
    assert_eq!(close(&one, "d/h").await, Ok(()));
    assert_eq!(two.read("d/h").await.expect("readable"), vec![7; 50_000]);
    // Another node made room.
    two.unlink("d/g").await.expect("removed");
    limit_bytes(&two, "d", 1 << 20).await.expect("set");
    one.write("d/h", 50_000, &[8; 250_000]).await.expect("fits");
    assert_eq!(close(&one, "d/h").await, Ok(()));
}

/// A file that was open when the limit came is refused only when it is flushed; others see it as it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_quota_refuses_is_gone_for_all() {
    let cluster = Cluster::start().await;
    let [one, two] = [cluster.node(2).await, cluster.node(3).await];
    one.mkdir("d").await.expect("made");
    one.create("d/f").await.expect("created");
    one.write("d/f", 0, b"kept").await.expect("written");
    assert_eq!(one.fsync("d/f").await, Ok(()));
    limit_bytes(&two, "d", 8192).await.expect("set");
    one.write("d/f", 0, &[1; 100_000])
        .await
        .expect("not known yet");
    assert_eq!(&two.read("d/f").await.expect("readable")[..], b"kept");
    assert_eq!(&one.read("d/f").await.expect("readable")[..], b"kept");
    assert_eq!(close(&one, "d/f").await, Err(Errno::EDQUOT));
    let user = Caller { uid: 7, ..ROOT };
    let ino = one.walk("d").await.expect("there");
    let limit = name(QUOTA_BYTES);
    let removed = one.client.removexattr(user, ino, &limit).await;
    assert_eq!(removed, Err(Errno::EPERM));
    let set = one
        .client
        .setxattr(user, ino, &limit, "9".into(), XattrMode::Any, false);
    assert_eq!(set.await, Err(Errno::EPERM));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn setuid_goes_with_a_write() {
    let cluster = Cluster::start().await;
    let [one, two] = [cluster.node(2).await, cluster.node(3).await];
    let ino = one.create("f").await.expect("created");
    let set = SetAttrRequest {
        mode: Some(0o6755),
        ..SetAttrRequest::default()
    };
    one.setattr("f", set).await.expect("changed");
    let how = OpenFlags(libc::O_WRONLY);
    let data = Bytes::from_static(b"x");
    let written = one.client.write(ROOT, ino, 0, 0, data, how, false, true);
    written.await.expect("written");
    assert_eq!(two.stat("f").await.expect("there").mode, 0o755);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn create_opens_what_another_node_made() {
    let cluster = Cluster::start().await;
    let [one, two] = [cluster.node(2).await, cluster.node(3).await];
    one.create("f").await.expect("created");
    one.write("f", 0, b"abc").await.expect("written");
    let name = name("f");
    let root = consistency::InodeNo::ROOT;
    let how = OpenFlags(libc::O_RDWR | libc::O_CREAT);
    let opened = two
        .client
        .create(ROOT, root, &name, NewMode::exactly(0o600), how)
        .await;
    let (entry, _) = opened.expect("opened");
    let attr = entry.attr.expect("there");
    assert_eq!(
        (attr.size, attr.mode, attr.kind),
        (3, 0o644, FileKind::File)
    );
    let exclusive = OpenFlags(how.0 | libc::O_EXCL);
    let refused = two
        .client
        .create(ROOT, root, &name, NewMode::exactly(0o600), exclusive)
        .await;
    assert_eq!(refused.expect_err("it exists"), Errno(libc::EEXIST));
    let truncating = OpenFlags(how.0 | libc::O_TRUNC);
    let opened = two
        .client
        .create(ROOT, root, &name, NewMode::exactly(0o600), truncating)
        .await;
    assert_eq!(opened.expect("opened").0.attr.expect("there").size, 0);
    assert_eq!(one.stat("f").await.expect("there").size, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mapped_page_is_written_back_before_another_node_reads() {
    let cluster = Cluster::start().await;
    let [one, two] = [cluster.node(2).await, cluster.node(3).await];
    one.create("f").await.expect("created");
    one.write("f", 0, b"aaaa").await.expect("written");
    let (ino, opened) = one.open("f", libc::O_RDWR).await.expect("opened");
    assert_eq!(
        &one.read_page(ino, opened.fh).await.expect("mapped")[..],
        b"aaaa"
    );
    // The program stores into the page; the kernel writes it back when it is told to forget it.
    one.kernel
        .dirty_page(&one, ino, Bytes::from_static(b"bbbb"));
    assert_eq!(&two.read("f").await.expect("readable")[..], b"bbbb");
    assert!(
        !one.kernel.cache().pages.contains_key(&ino),
        "owned or not at all"
    );
    // Read again, the page is owned again: what is stored now is not missed either.
    let page = one.read_page(ino, opened.fh).await;
    assert_eq!(&page.expect("mapped")[..], b"bbbb");
    let page = Bytes::from_static(b"cccc");
    one.kernel.dirty_page(&one, ino, page);
    assert_eq!(&two.read("f").await.expect("readable")[..], b"cccc");
    one.client.release(ino, opened.fh).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_read_under_a_shared_lease_cannot_be_mapped_writable() {
    // W1: storing into such a page would tell nobody.
    let cluster = Cluster::start().await;
    let [one, two] = [cluster.node(2).await, cluster.node(3).await];
    one.create("f").await.expect("created");
    one.write("f", 0, b"aaaa").await.expect("written");
    two.read("f").await.expect("readable");
    let (ino, opened) = two.open("f", libc::O_RDWR).await.expect("opened");
    assert!(!two.kernel.cache().pages.contains_key(&ino));
    let page = two.read_page(ino, opened.fh).await;
    assert_eq!(&page.expect("mapped")[..], b"aaaa");
    let page = Bytes::from_static(b"bbbb");
    two.kernel.dirty_page(&two, ino, page);
    assert_eq!(&one.read("f").await.expect("readable")[..], b"bbbb");
    two.client.release(ino, opened.fh).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_leaves_the_writer_what_it_wrote() {
    let cluster = Cluster::start().await;
    let [one, two] = [cluster.node(2).await, cluster.node(3).await];
    one.create("f").await.expect("created");
    one.write("f", 0, b"new").await.expect("written");
    assert_eq!(two.read("f").await.expect("readable"), "new");
    one.faults.ops();
    assert_eq!(one.read("f").await.expect("readable"), "new");
    assert_eq!(one.stat("f").await.expect("there").size, 3);
    assert_eq!(one.faults.ops(), 0, "the leader was asked again");

    one.write("f", 3, b"er").await.expect("written");
    assert_eq!(two.read("f").await.expect("readable"), "newer");
}
