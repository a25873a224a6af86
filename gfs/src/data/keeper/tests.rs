use super::*;
use crate::data::ChunkStore;
use crate::data::store::DirStore;
use bytes::Bytes;
use std::sync::Mutex;

const EVERY: Duration = Duration::from_secs(300);

/// Answers inventories: everything that is not kept is an orphan. Puts a chunk before it answers.
struct Leader {
    keep: Vec<ChunkId>,
    disk: Disk,
    put: Option<ChunkId>,
    asked: Mutex<Vec<MetaRequest>>,
}

fn crc(data: &[u8]) -> u32 {
    crc32fast::hash(data)
}

#[async_trait]
impl AskLeader for Leader {
    async fn ask(&self, request: MetaRequest) -> Option<MetaReply> {
        let reply = match &request {
            MetaRequest::Inventory { to, chunks, .. } => {
                if let Some(id) = self.put {
                    let data = Bytes::from_static(b"abc");
                    self.disk.put(id, data, crc(b"abc")).await.expect("put");
                }
                let orphan = |id: &ChunkId| !self.keep.contains(id);
                MetaReply::Inventory {
                    orphans: chunks.iter().copied().filter(orphan).collect(),
                    upto: *to,
                }
            }
            _ => MetaReply::Done,
        };
        self.asked.lock().expect("no holder panics").push(request);
        Some(reply)
    }
}

struct World {
    dir: tempfile::TempDir,
    disk: Disk,
}

impl World {
    /// A store with chunks 1, 2 and 3.
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = DirStore::open(dir.path()).expect("opens");
        for id in 1..=3 {
            store.put(ChunkId(id), b"abc", crc(b"abc")).expect("put");
        }
        let disk = Disk::new(store);
        Self { dir, disk }
    }

    fn leader(&self, keep: &[u64], put: Option<u64>) -> Leader {
        Leader {
            keep: keep.iter().copied().map(ChunkId).collect(),
            disk: self.disk.clone(),
            put: put.map(ChunkId),
            asked: Mutex::default(),
        }
    }

    async fn ids(&self) -> Vec<u64> {
        let ids = self.disk.ids().await.expect("lists");
        ids.into_iter().map(|id| id.0).collect()
    }

    fn damage(&self, id: u64) {
        let path = self.dir.path().join(format!("00/{id:016x}"));
        let mut bytes = std::fs::read(&path).expect("a chunk");
        *bytes.last_mut().expect("not empty") ^= 1;
        std::fs::write(path, bytes).expect("writes");
    }

    fn quarantined(&self) -> usize {
        let dir = self.dir.path().join("quarantine");
        std::fs::read_dir(dir).expect("there").count()
    }

    async fn sweep(&self, leader: &Leader) -> Option<usize> {
        self.disk.begin_sweep();
        let swept = sweep(&self.disk, leader, EVERY)
            .await
            .expect("the disk is good");
        self.disk.end_sweep();
        swept
    }
}

/// D3: also what was there before, if it was put again since.
#[tokio::test]
async fn orphans_go_but_not_what_was_put_since() {
    let world = World::new();
    let leader = world.leader(&[2], Some(3));
    assert_eq!(world.sweep(&leader).await, Some(1));
    assert_eq!(world.ids().await, [2, 3]);
    let leader = world.leader(&[2], None);
    assert_eq!(world.sweep(&leader).await, Some(1));
    assert_eq!(world.ids().await, [2]);
    assert_eq!(world.quarantined(), 0);
}

/// What is damaged is told to the leader, and set aside once it is nobody's.
#[tokio::test]
async fn damaged_chunks_are_told_and_set_aside() {
    let world = World::new();
    world.damage(2);
    scrub(
        &world.disk,
        &Pace::new(u64::MAX),
        world.disk.ids().await.expect("lists"),
    )
    .await;
    assert_eq!(world.disk.bad_untold(), [ChunkId(2)]);
    let leader = world.leader(&[1, 2, 3], None);
    let told = tokio::time::timeout(Duration::from_millis(200), tell(&world.disk, &leader));
    told.await.expect_err("runs for ever");
    let asked = std::mem::take(&mut *leader.asked.lock().expect("no holder panics"));
    assert_eq!(asked, [MetaRequest::BadCopies(vec![ChunkId(2)])]);
    assert_eq!(world.disk.bad_untold(), []);
    // As long as it is listed it stays: other blocks of it may be good.
    assert_eq!(world.sweep(&leader).await, Some(0));
    assert_eq!((world.ids().await.len(), world.quarantined()), (3, 0));
    assert_eq!(world.sweep(&world.leader(&[1, 3], None)).await, Some(1));
    assert_eq!((world.ids().await, world.quarantined()), (vec![1, 3], 1));
}

/// A good copy that takes the place of a damaged one leaves that behind, too.
#[tokio::test]
async fn a_put_over_a_damaged_chunk_sets_it_aside() {
    let world = World::new();
    world.damage(2);
    assert_eq!(
        world.disk.verify(ChunkId(2)).await,
        Err(ChunkFailure::Corrupt)
    );
    let data = Bytes::from_static(b"abc");
    let put = world.disk.put(ChunkId(2), data, crc(b"abc")).await;
    assert_eq!(put, Ok(()));
    assert_eq!(world.disk.verify(ChunkId(2)).await, Ok(3));
    assert_eq!(world.disk.bad_untold(), []);
    assert_eq!(world.quarantined(), 1);
}
