//! What every chunk store does, whatever it keeps chunks on.
#![allow(clippy::cast_possible_truncation, reason = "the numbers are small")]

use super::{BLOCK_BYTES as BLOCK, ChunkStore};
use consistency::ChunkId;
use consistency::wire::chunk::{CHUNK_BYTES_MAX, ChunkFailure};
use std::thread;

/// Returns bytes that differ from block to block and by `seed`.
pub(super) fn pattern(len: u32, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8 ^ seed).collect()
}

pub(super) fn put(store: &dyn ChunkStore, id: u64, data: &[u8]) -> Result<(), ChunkFailure> {
    store.put(ChunkId(id), data, crc32fast::hash(data))
}

/// Checks all of it; `with_store` makes an empty store for each check.
pub(super) fn check(with_store: impl Fn(&dyn Fn(&dyn ChunkStore))) {
    with_store(&get_returns_what_was_put);
    with_store(&bad_puts_are_refused);
    with_store(&put_may_be_repeated_but_never_changes_a_chunk);
    with_store(&the_same_put_many_times_at_once);
    with_store(&ids_and_delete);
    with_store(&what_is_set_aside_is_gone);
}

fn get_returns_what_was_put(store: &dyn ChunkStore) {
    for (id, len) in [
        (1, 1),
        (2, BLOCK - 1),
        (3, BLOCK),
        (4, BLOCK + 1),
        (5, 3 * BLOCK + 7),
        (6, CHUNK_BYTES_MAX),
    ] {
        let data = pattern(len, 0);
        put(store, id, &data).expect("put");
        for (offset, count) in [
            (0, 1),
            (0, len),
            (len - 1, 1),
            (len / 2, len - len / 2),
            (len / 3, 5),
            (0, len + 1),
            (len - 1, u32::MAX),
        ] {
            let part = &data[offset as usize..offset.saturating_add(count).min(len) as usize];
            assert_eq!(
                store.get(ChunkId(id), offset, count).expect("get"),
                part,
                "{count} bytes at {offset} of {len}"
            );
        }
        for (offset, count) in [(0, 0), (len, 1), (u32::MAX, 1), (u32::MAX, u32::MAX)] {
            assert_eq!(
                store.get(ChunkId(id), offset, count),
                Err(ChunkFailure::BadRange)
            );
        }
    }
    assert_eq!(store.get(ChunkId(7), 0, 1), Err(ChunkFailure::Missing));
}

fn bad_puts_are_refused(store: &dyn ChunkStore) {
    assert_eq!(put(store, 1, &[]), Err(ChunkFailure::BadRange));
    assert_eq!(
        put(store, 1, &pattern(CHUNK_BYTES_MAX + 1, 0)),
        Err(ChunkFailure::BadRange)
    );
    assert_eq!(
        store.put(ChunkId(1), b"abc", crc32fast::hash(b"abd")),
        Err(ChunkFailure::Corrupt)
    );
    assert_eq!(store.ids(), Ok(vec![]));
}

fn put_may_be_repeated_but_never_changes_a_chunk(store: &dyn ChunkStore) {
    assert_eq!(put(store, 1, b"abc"), Ok(()));
    assert_eq!(put(store, 1, b"abc"), Ok(()));
    for other in [&b"abd"[..], b"ab", b"abcd"] {
        let refused = put(store, 1, other).expect_err("other bytes");
        assert_eq!(
            refused.to_string(),
            "disk error: chunk 1 is here already with other bytes"
        );
    }
    assert_eq!(store.get(ChunkId(1), 0, 9).expect("as it was"), &b"abc"[..]);
}

fn the_same_put_many_times_at_once(store: &dyn ChunkStore) {
    let data = pattern(BLOCK, 0);
    thread::scope(|scope| {
        let puts = [(); 8].map(|()| scope.spawn(|| put(store, 1, &data)));
        for result in puts {
            assert_eq!(result.join().expect("no panic"), Ok(()));
        }
    });
    assert_eq!(store.get(ChunkId(1), 0, BLOCK).expect("get"), data);
}

fn ids_and_delete(store: &dyn ChunkStore) {
    for id in [0x1_02_03, 1, 0xffff_ffff_ffff_ffff, 0x200] {
        put(store, id, b"x").expect("put");
    }
    let ids = [1, 0x200, 0x1_02_03, u64::MAX].map(ChunkId);
    assert_eq!(store.ids().expect("ids"), ids);
    assert_eq!(store.delete(&[ChunkId(1), ChunkId(77), ids[3]]), Ok(()));
    assert_eq!(store.ids().expect("ids"), ids[1..3]);
    assert_eq!(store.get(ChunkId(1), 0, 1), Err(ChunkFailure::Missing));
}

fn what_is_set_aside_is_gone(store: &dyn ChunkStore) {
    put(store, 1, b"abc").expect("put");
    assert_eq!(store.verify(ChunkId(1)), Ok(3));
    assert_eq!(store.quarantine(ChunkId(1)), Ok(()));
    assert_eq!(store.quarantine(ChunkId(1)), Ok(()), "repeated");
    assert_eq!(store.verify(ChunkId(1)), Err(ChunkFailure::Missing));
    assert_eq!(store.ids(), Ok(vec![]));
}
