//! Copies that share chunks (W4), and what becomes of them when their source changes.

use super::cluster::Cluster;
use super::files::{Twin, limit_bytes};
use super::mount::Mount;
use super::{wait, within};
use crate::error::Errno;
use crate::tree::SetAttrRequest;
use std::sync::atomic::Ordering;

const MIB: usize = 1 << 20;

/// Returns bytes that differ from MiB to MiB.
fn bytes(len: usize, seed: u8) -> Vec<u8> {
    let byte = |at: usize| {
        seed.wrapping_add((at / MIB) as u8)
            .wrapping_add((at % 251) as u8)
    };
    (0..len).map(byte).collect()
}

/// Makes a file of `len` bytes that is flushed.
async fn source(mount: &Mount, path: &str, len: usize) -> Vec<u8> {
    let data = bytes(len, 1);
    mount.create(path).await.expect("created");
    mount.write(path, 0, &data).await.expect("written");
    mount.fsync(path).await.expect("synced");
    data
}

#[track_caller]
fn same(got: &[u8], expected: &[u8], what: &str) {
    assert!(
        got == expected,
        "{what}: {} bytes of {}",
        got.len(),
        expected.len()
    );
}

async fn check(mount: &Mount, path: &str, expected: &[u8], what: &str) {
    let size = mount.stat(path).await.expect("there").size;
    assert_eq!(size, expected.len() as u64, "{what}");
    let read = mount.read_at(path, 0, expected.len() as u32).await;
    same(&read.expect("readable"), expected, what);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w4_a_copy_writes_no_chunks_and_outlives_its_source() {
    let cluster = Cluster::start().await;
    let [one, two] = [cluster.node(2).await, cluster.node(3).await];
    let data = source(&one, "f", 10 * MIB + 5).await;
    one.create("g").await.expect("created");
    let chunks = cluster.chunks.count();
    let reads = cluster.chunks.reads.load(Ordering::SeqCst);
    let len = 10 * MIB as u64;
    assert_eq!(one.copy(("f", 0), ("g", 0), len).await, Ok(len));
    assert_eq!(cluster.chunks.count(), chunks, "nothing is written");
    assert_eq!(cluster.chunks.reads.load(Ordering::SeqCst), reads);
    let blocks = two.stat("g").await.expect("there").blocks;
    assert_eq!(blocks, len / 512);
    // Too little is left to be worth it.
    assert_eq!(
        one.copy(("f", len), ("g", len), 5).await,
        Err(Errno::ENOTSUP)
    );
    assert_eq!(one.copy(("f", len + 5), ("g", 0), len).await, Ok(0));
    check(&two, "g", &data[..10 * MIB], "elsewhere").await;
    two.write("f", 0, &vec![9; 5 * MIB]).await.expect("written");
    two.fsync("f").await.expect("synced");
    check(&one, "g", &data[..10 * MIB], "the source was changed").await;
    two.unlink("f").await.expect("removed");
    check(&two, "g", &data[..10 * MIB], "the source is gone").await;
    check(&one, "g", &data[..10 * MIB], "the source is gone").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_flushed_is_copied_as_well() {
    let cluster = Cluster::start().await;
    let [one, two] = [cluster.node(2).await, cluster.node(3).await];
    let mut data = source(&two, "f", 8 * MIB).await;
    one.create("g").await.expect("created");
    one.write("g", 0, b"old").await.expect("written");
    for mount in [&one, &two] {
        mount.write("f", 1000, b"new").await.expect("written");
        data[1000..1003].copy_from_slice(b"new");
        let copied = one.copy(("f", 0), ("g", 3), 8 * MIB as u64).await;
        assert_eq!(copied, Ok(8 * MIB as u64));
        check(&two, "g", &[b"old", &data[..]].concat(), "copied").await;
    }
}

/// A copy is that of one state of its source: a writer elsewhere comes before it or after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_does_not_change_under_its_copy() {
    let cluster = Cluster::start().await;
    let [one, two] = [cluster.node(2).await, cluster.node(3).await];
    let data = source(&one, "f", 4 * MIB).await;
    one.create("g").await.expect("created");
    for round in 0..20 {
        let writer = two.clone();
        let writes = tokio::spawn(async move {
            writer.truncate("f", 0).await?;
            writer.fsync("f").await
        });
        let copied = one.copy_all(("f", 0), ("g", 0), 4 * MIB as u64).await;
        within("the writer ends", writes)
            .await
            .expect("runs")
            .expect("truncated");
        let copied = copied.expect("copied") as usize;
        assert!(copied == 0 || copied == 4 * MIB, "round {round}: {copied}");
        check(&two, "g", &data[..copied], "copied").await;
        one.truncate("g", 0).await.expect("truncated");
        two.write("f", 0, &data).await.expect("written");
    }
}

/// Copies `f` to `g` with a chunk store that is so slow that the source can be emptied before the copy is flushed.
async fn copy_what_dies(
    cluster: &Cluster,
    one: &Mount,
    two: &Mount,
    lose: bool,
) -> Result<u64, Errno> {
    let shut = cluster.chunks.gate.write().await;
    let mount = one.clone();
    // A small piece between the large ones has to be written.
    let copying =
        tokio::spawn(async move { mount.copy(("f", 0), ("g", 0), 20 * MIB as u64).await });
    let target = one.walk("g").await.expect("there");
    let core = &one.client.core;
    wait("the copy is being flushed", || {
        let pin = core.pin(target);
        let state = pin.state();
        let content = state.content.as_ref();
        state.flushing && content.is_some_and(|content| content.shared_bytes() > 0)
    })
    .await;
    two.truncate("f", 0).await.expect("truncated");
    two.fsync("f").await.expect("synced");
    if lose {
        cluster.chunks.lose();
    }
    drop(shut);
    within("the copy ends", copying).await.expect("runs")
}

/// Makes a file of two large pieces with a small one between them.
async fn three_pieces(mount: &Mount) -> Vec<u8> {
    let mut data = source(mount, "f", 8 * MIB).await;
    mount
        .write("f", 4 * MIB as u64 + 100, b"small")
        .await
        .expect("written");
    data[4 * MIB + 100..4 * MIB + 105].copy_from_slice(b"small");
    mount.fsync("f").await.expect("synced");
    data
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m8_chunks_that_died_are_written_anew() {
    let cluster = Cluster::start().await;
    let [one, two] = [cluster.node(2).await, cluster.node(3).await];
    let data = three_pieces(&one).await;
    one.create("g").await.expect("created");
    one.write("g", 0, b"old").await.expect("written");
    one.fsync("g").await.expect("synced");
    let chunks = cluster.chunks.count();
    let copied = copy_what_dies(&cluster, &one, &two, false).await;
    assert_eq!(copied, Ok(8 * MIB as u64));
    assert!(cluster.chunks.count() >= chunks + 3, "all of it is written");
    check(&two, "g", &data, "elsewhere").await;
    check(&one, "g", &data, "here").await;
    assert_eq!(two.stat("f").await.expect("there").size, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m8_what_cannot_be_read_any_more_is_an_error_and_changes_nothing() {
    let cluster = Cluster::start().await;
    let [one, two] = [cluster.node(2).await, cluster.node(3).await];
    three_pieces(&one).await;
    one.create("g").await.expect("created");
    one.write("g", 0, b"old").await.expect("written");
    assert_eq!(&one.read("g").await.expect("readable")[..], b"old");
    let copied = copy_what_dies(&cluster, &one, &two, true).await;
    assert_eq!(copied, Err(Errno::EIO));
    for mount in [&one, &two] {
        check(mount, "g", b"old", "as before").await;
        assert_eq!(&mount.read("g").await.expect("readable")[..], b"old");
    }
    assert_eq!(one.fsync("g").await, Ok(()), "it was told");
    one.write("g", 3, b"er").await.expect("the node goes on");
    check(&two, "g", b"older", "later").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn q3_a_copy_counts_against_a_quota() {
    let cluster = Cluster::start().await;
    let one = cluster.node(2).await;
    let data = source(&one, "f", 4 * MIB).await;
    one.mkdir("d").await.expect("made");
    one.create("d/g").await.expect("created");
    limit_bytes(&one, "d", 3 * MIB as u64).await.expect("set");
    let len = 4 * MIB as u64;
    assert_eq!(
        one.copy(("f", 0), ("d/g", 0), len).await,
        Err(Errno::EDQUOT)
    );
    check(&one, "d/g", b"", "as before").await;
    assert_eq!(one.copy(("f", 0), ("d/g", 0), len / 2).await, Ok(len / 2));
    check(&one, "d/g", &data[..2 * MIB], "what fits").await;
}

/// A map stays as coarse as that of the source, however small the steps are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_steps_leave_no_small_extents() {
    let cluster = Cluster::start().await;
    let [one, two] = [cluster.node(2).await, cluster.node(3).await];
    let data = source(&one, "f", 16 * MIB).await;
    one.create("g").await.expect("created");
    let step = 256_u64 << 10;
    // Forwards, then backwards over it.
    let steps = (0..64).chain((0..64).rev());
    for at in steps.map(|number| number * step) {
        assert_eq!(one.copy(("f", at), ("g", at), step).await, Ok(step));
    }
    let ino = one.walk("g").await.expect("there");
    let extents = |mount: &Mount| {
        let pin = mount.client.core.pin(ino);
        let state = pin.state();
        let content = state.content.as_ref();
        content.map(|content| content.base().extents())
    };
    assert_eq!(extents(&one), Some(4));
    check(&two, "g", &data, "elsewhere").await;
    assert_eq!(extents(&two), Some(4), "the leader says the same");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_a_write() {
    let cluster = Cluster::start().await;
    let [one, two] = [cluster.node(2).await, cluster.node(3).await];
    source(&one, "f", MIB).await;
    one.create("g").await.expect("created");
    let set = SetAttrRequest {
        mode: Some(0o6755),
        ..SetAttrRequest::default()
    };
    let before = one.setattr("g", set).await.expect("changed");
    let len = MIB as u64;
    assert_eq!(one.copy(("f", 0), ("g", len), len).await, Ok(len));
    let after = two.stat("g").await.expect("there");
    assert_eq!((after.mode, after.size), (0o755, 2 * len));
    assert!(after.mtime > before.mtime && after.ctime > before.ctime);
    let far = (1 << 63) - len;
    assert_eq!(
        one.copy(("f", 0), ("g", far), len).await,
        Err(Errno(libc::EFBIG))
    );
}

/// Each node owns what the other one reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_to_and_fro_end() {
    let cluster = Cluster::start().await;
    let [one, two] = [cluster.node(2).await, cluster.node(3).await];
    let data = source(&one, "f", 2 * MIB).await;
    source(&two, "g", 2 * MIB).await;
    let ways = [(one.clone(), "f", "g"), (two.clone(), "g", "f")];
    let copies = ways.map(|(mount, from, to)| {
        tokio::spawn(async move {
            for _ in 0..20 {
                let copied = mount.copy_all((from, 0), (to, 0), 2 * MIB as u64).await;
                assert_eq!(copied, Ok(2 * MIB as u64));
            }
        })
    });
    for copy in copies {
        within("the copies end", copy).await.expect("copies");
    }
    check(&one, "f", &data, "f").await;
    check(&two, "g", &data, "g").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_copies_agree_with_an_array() {
    let cluster = Cluster::start().await;
    let [one, two] = [cluster.node(2).await, cluster.node(3).await];
    let s = source(&two, "s", 5 * MIB).await;
    let only = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    for seed in only.map_or(1..4, |seed: u64| seed..seed + 1) {
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
        for step in 0..50_u8 {
            let what = format!("SEED={seed} step {step}");
            let len = [roll(10_000), roll(MIB), 3 * MIB][roll(3)];
            let at = roll(6 * MIB);
            match roll(9) {
                0 => twin.truncate(at).await,
                1 => twin.punch(at, len + 1).await,
                2 => one.fsync("f").await.expect("synced"),
                3 => twin.check(&two, &what).await,
                4 => twin.write(at, &vec![step + 1; len / 4]).await,
                5 => {
                    // Within the file, where the two ranges do not overlap.
                    let half = twin.model.len() / 2;
                    let (from, len) = (roll(half + 1), len.min(half));
                    let (from, len) = (from, len.min(half - from));
                    let copied = one.copy_all(("f", from as u64), ("f", half as u64), len as u64);
                    assert_eq!(copied.await, Ok(len as u64), "{what}");
                    twin.model.copy_within(from..from + len, half);
                }
                _ => {
                    let from = roll(5 * MIB);
                    let len = len.min(5 * MIB - from);
                    let copied = one.copy_all(("s", from as u64), ("f", at as u64), len as u64);
                    assert_eq!(copied.await, Ok(len as u64), "{what}");
                    let end = at + len;
                    if len > 0 {
                        twin.model.resize(twin.model.len().max(end), 0);
                        twin.model[at..end].copy_from_slice(&s[from..from + len]);
                    }
                }
            }
        }
        twin.check(&one, &format!("SEED={seed} at the end")).await;
        twin.check(&two, &format!("SEED={seed} at the end, elsewhere"))
            .await;
        two.unlink("f").await.expect("removed");
    }
}
