use super::*;
use crate::data::testing::{MemStore, bytes};
use consistency::ChunkId;
use std::sync::Arc;

const ID: ChunkId = ChunkId(1);

fn service() -> (Arc<MemStore>, ChunkService) {
    let store = Arc::<MemStore>::default();
    (Arc::clone(&store), ChunkService::new(Disk::new(store)))
}

async fn ask(service: &ChunkService, request: &ChunkRequest) -> ChunkReply {
    let reply = service
        .call(NodeId(2), encode(request).into())
        .await
        .expect("an answer");
    decode(&reply).expect("a chunk reply")
}

fn put(data: Bytes) -> ChunkRequest {
    let crc = crc32fast::hash(&data);
    ChunkRequest::Put { id: ID, data, crc }
}

fn get(offset: u32, len: u32) -> ChunkRequest {
    ChunkRequest::Get {
        id: ID,
        offset,
        len,
    }
}

#[tokio::test]
async fn put_get_delete_space() {
    let (_store, service) = service();
    let data = bytes(100_000);
    assert_eq!(ask(&service, &put(data.clone())).await, ChunkReply::Done);
    let part = data.slice(50_000..50_100);
    let crc = crc32fast::hash(&part);
    assert_eq!(
        ask(&service, &get(50_000, 100)).await,
        ChunkReply::Data { data: part, crc }
    );
    let rest = data.slice(99_999..);
    let crc = crc32fast::hash(&rest);
    assert_eq!(
        ask(&service, &get(99_999, 100)).await,
        ChunkReply::Data { data: rest, crc }
    );
    assert_eq!(
        ask(&service, &ChunkRequest::Space).await,
        ChunkReply::Space {
            total: 1000,
            free: 10
        }
    );
    assert_eq!(
        ask(&service, &ChunkRequest::Delete(vec![ID, ChunkId(7)])).await,
        ChunkReply::Done
    );
    assert_eq!(
        ask(&service, &get(0, 1)).await,
        ChunkReply::Failed(ChunkFailure::Missing)
    );
}

#[track_caller]
fn refused(failure: ChunkFailure) -> ChunkReply {
    ChunkReply::Failed(failure)
}

#[tokio::test]
async fn hostile_requests_are_refused() {
    let (_store, service) = service();
    ask(&service, &put(bytes(10))).await;
    let bad_range = refused(ChunkFailure::BadRange);
    for (offset, len) in [
        (0, 0),
        (10, 1),
        (0, CHUNK_BYTES_MAX + 1),
        (0, u32::MAX),
        (u32::MAX, 1),
        (u32::MAX, u32::MAX),
        (CHUNK_BYTES_MAX, 1),
    ] {
        assert_eq!(
            ask(&service, &get(offset, len)).await,
            bad_range,
            "get {len} at {offset}"
        );
    }
    assert_eq!(ask(&service, &put(Bytes::new())).await, bad_range);
    assert_eq!(
        ask(&service, &put(bytes(CHUNK_BYTES_MAX + 1))).await,
        bad_range
    );
    let many = vec![ID; DELETE_CHUNKS_MAX + 1];
    assert_eq!(ask(&service, &ChunkRequest::Delete(many)).await, bad_range);
    assert!(
        matches!(ask(&service, &get(0, 10)).await, ChunkReply::Data { .. }),
        "the chunk is unharmed"
    );
}

#[tokio::test]
async fn a_put_that_was_damaged_on_the_way_is_corrupt() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = crate::data::store::DirStore::open(dir.path()).expect("a new store");
    let service = ChunkService::new(Disk::new(store));
    let request = ChunkRequest::Put {
        id: ID,
        data: bytes(10),
        crc: 0,
    };
    assert_eq!(
        ask(&service, &request).await,
        refused(ChunkFailure::Corrupt)
    );
    assert_eq!(
        ask(&service, &get(0, 1)).await,
        refused(ChunkFailure::Missing)
    );
}

#[tokio::test]
async fn malformed_requests_cost_the_connection() {
    let (_store, service) = service();
    let mut truncated = encode(&put(bytes(100)));
    truncated.truncate(50);
    // A put whose data claim to have 2^64 - 1 bytes.
    let huge = [&[0, 1, 253][..], &[0xff; 8]].concat();
    let mut trailing = encode(&get(0, 1));
    trailing.push(0);
    for body in [vec![], vec![99], truncated, huge, trailing] {
        assert_eq!(
            service.call(NodeId(2), body.clone().into()).await,
            None,
            "{body:?}"
        );
    }
}

#[tokio::test]
async fn too_many_requests_are_answered_with_busy() {
    let (store, service) = service();
    ask(&service, &put(bytes(10))).await;
    store.shut();
    let service = Arc::new(service);
    let waiting = (0..SERVICE_REQUESTS_MAX).map(|_| {
        let service = Arc::clone(&service);
        tokio::spawn(async move { ask(&service, &get(0, 1)).await })
    });
    let waiting = waiting.collect::<Vec<_>>();
    crate::data::testing::eventually("all requests are admitted", || {
        service.admission.available_permits() == 0
    })
    .await;
    assert_eq!(ask(&service, &get(0, 1)).await, refused(ChunkFailure::Busy));
    store.open();
    for answer in waiting {
        assert!(matches!(
            answer.await.expect("no panic"),
            ChunkReply::Data { .. }
        ));
    }
    assert!(
        matches!(ask(&service, &get(0, 1)).await, ChunkReply::Data { .. }),
        "there is room again"
    );
}
