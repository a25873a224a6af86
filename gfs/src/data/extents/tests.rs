#![allow(clippy::cast_possible_truncation, reason = "the numbers are small")]

use super::*;
use consistency::wire::{decode, encode};
use std::collections::BTreeMap;

fn extent(offset: u64, len: u32, chunk: u64, chunk_offset: u32) -> Extent {
    let chunk = ChunkId(chunk);
    Extent {
        offset,
        len,
        chunk_offset,
        chunk,
    }
}

fn map(extents: &[Extent]) -> ExtentMap {
    ExtentMap::try_from(extents.to_vec()).expect("valid")
}

/// Inserts chunk 9 at `offset` over `before`.
#[track_caller]
fn check_insert(before: &[Extent], (offset, len): (u64, u32), after: &[Extent], freed: &[Extent]) {
    let mut map = map(before);
    assert_eq!(map.insert(extent(offset, len, 9, 0)), freed);
    assert_eq!(map.0, after);
}

#[test]
fn insert_covers_and_splits() {
    let old = [extent(10, 10, 1, 100)];
    let new = |offset, len| extent(offset, len, 9, 0);
    check_insert(&[], (0, 5), &[new(0, 5)], &[]);
    check_insert(&old, (0, 10), &[new(0, 10), old[0]], &[]);
    check_insert(&old, (20, 5), &[old[0], new(20, 5)], &[]);
    check_insert(&old, (10, 10), &[new(10, 10)], &old);
    check_insert(&old, (0, 99), &[new(0, 99)], &old);
    check_insert(
        &old,
        (5, 8),
        &[new(5, 8), extent(13, 7, 1, 103)],
        &[extent(10, 3, 1, 100)],
    );
    check_insert(
        &old,
        (17, 8),
        &[extent(10, 7, 1, 100), new(17, 8)],
        &[extent(17, 3, 1, 107)],
    );
    let split = [extent(10, 2, 1, 100), new(12, 3), extent(15, 5, 1, 105)];
    check_insert(&old, (12, 3), &split, &[extent(12, 3, 1, 102)]);
    let two = [extent(0, 10, 1, 0), extent(15, 10, 2, 0)];
    let over = [extent(0, 5, 1, 0), new(5, 15), extent(20, 5, 2, 5)];
    check_insert(
        &two,
        (5, 15),
        &over,
        &[extent(5, 5, 1, 5), extent(15, 5, 2, 0)],
    );
}

#[track_caller]
fn check_range(offset: u64, len: u64, pieces: &[Piece]) {
    let map = map(&[
        extent(10, 10, 1, 100),
        extent(20, 5, 2, 0),
        extent(30, 5, 3, 0),
    ]);
    assert_eq!(map.range(offset, len).collect::<Vec<_>>(), pieces);
}

#[test]
fn range_is_cut_into_data_and_holes() {
    let hole = |offset, len| Piece::Hole { offset, len };
    check_range(0, 0, &[]);
    check_range(12, 0, &[]);
    check_range(0, 10, &[hole(0, 10)]);
    check_range(12, 3, &[Piece::Data(extent(12, 3, 1, 102))]);
    let across = [
        Piece::Data(extent(19, 1, 1, 109)),
        Piece::Data(extent(20, 5, 2, 0)),
        hole(25, 2),
    ];
    check_range(19, 8, &across);
    check_range(34, 10, &[Piece::Data(extent(34, 1, 3, 4)), hole(35, 9)]);
    check_range(u64::MAX, 10, &[]);
}

#[test]
fn seeks() {
    let map = map(&[
        extent(10, 10, 1, 0),
        extent(20, 5, 2, 0),
        extent(30, 5, 3, 0),
    ]);
    let data = |offset| map.next_data(offset);
    assert_eq!(
        (data(0), data(12), data(25), data(35)),
        (Some(10), Some(12), Some(30), None)
    );
    let hole = |offset| map.next_hole(offset, 33);
    assert_eq!((hole(0), hole(10), hole(22), hole(30)), (0, 25, 25, 33));
}

#[track_caller]
fn check_refused(extents: &[Extent], error: ExtentError) {
    assert_eq!(ExtentMap::try_from(extents.to_vec()), Err(error));
    assert!(
        decode::<ExtentMap>(&encode(&extents)).is_err(),
        "serde checks as well"
    );
}

#[test]
fn extents_from_outside_are_checked() {
    let out_of_bounds = |offset, len| ExtentError::OutOfBounds { offset, len };
    check_refused(&[extent(0, 0, 1, 0)], out_of_bounds(0, 0));
    check_refused(
        &[extent(0, CHUNK_BYTES_MAX + 1, 1, 0)],
        out_of_bounds(0, CHUNK_BYTES_MAX + 1),
    );
    check_refused(&[extent(0, 1, 1, CHUNK_BYTES_MAX)], out_of_bounds(0, 1));
    check_refused(&[extent(0, 1, 1, u32::MAX)], out_of_bounds(0, 1));
    check_refused(&[extent(u64::MAX, 1, 1, 0)], out_of_bounds(u64::MAX, 1));
    check_refused(
        &[extent(FILE_BYTES_MAX, 1, 1, 0)],
        out_of_bounds(FILE_BYTES_MAX, 1),
    );
    check_refused(
        &[extent(0, 2, 1, 0), extent(1, 2, 2, 0)],
        ExtentError::OutOfOrder { offset: 1 },
    );
    let map = map(&[extent(0, 2, 1, 0), extent(2, 2, 2, 0)]);
    assert_eq!(decode::<ExtentMap>(&encode(&map)).expect("decodes"), map);
}

#[test]
fn wire_and_back() {
    let map = map(&[extent(0, 2, 1, 7), extent(5, 2, 2, 0)]);
    let nodes = |chunk: ChunkId| vec![NodeId(u16::try_from(chunk.0).expect("small")), NodeId(9)];
    let mut learned = BTreeMap::new();
    let back = ExtentMap::from_wire(map.to_wire(nodes), |chunk, replicas| {
        learned.insert(chunk, replicas);
    });
    assert_eq!(back, Ok(map));
    assert_eq!(learned[&ChunkId(2)], [NodeId(2), NodeId(9)]);
}

/// splitmix64: enough randomness for a model test, the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// The model: which byte of which chunk each byte of the file is.
type Model = Vec<Option<(ChunkId, u32)>>;

const MODEL_BYTES: u64 = 512;

fn bytes_of(pieces: impl Iterator<Item = Piece>) -> Model {
    let mut bytes = Model::new();
    for piece in pieces {
        match piece {
            Piece::Data(extent) => bytes
                .extend((0..extent.len).map(|at| Some((extent.chunk, extent.chunk_offset + at)))),
            Piece::Hole { len, .. } => bytes.extend((0..len).map(|_| None)),
        }
    }
    bytes
}

fn replace_in_model(
    model: &mut Model,
    from: u64,
    to: u64,
    new: Option<Extent>,
) -> Vec<(ChunkId, u32)> {
    let (from, to) = (from.min(MODEL_BYTES) as usize, to.min(MODEL_BYTES) as usize);
    let byte = |at: usize| new.map(|new| (new.chunk, new.chunk_offset + at as u32));
    (from..to)
        .filter_map(|at| std::mem::replace(&mut model[at], byte(at - from)))
        .collect()
}

#[test]
fn agrees_with_a_byte_array() {
    let seed = std::env::var("SEED").map_or(1, |seed| seed.parse().expect("SEED is a number"));
    println!("SEED={seed} cargo test -p gfs agrees_with_a_byte_array");
    let mut random = Random(seed);
    let (mut map, mut model) = (ExtentMap::new(), vec![None; MODEL_BYTES as usize]);
    for step in 0..20_000 {
        let offset = random.below(MODEL_BYTES);
        let len = 1 + random.below((MODEL_BYTES - offset).min(64));
        let (freed, expected) = match random.below(16) {
            0 => (
                map.cut(offset),
                replace_in_model(&mut model, offset, MODEL_BYTES, None),
            ),
            1..4 => (
                map.punch(offset, len),
                replace_in_model(&mut model, offset, offset + len, None),
            ),
            _ => {
                let new = extent(offset, len as u32, step, random.below(100) as u32);
                (
                    map.insert(new),
                    replace_in_model(&mut model, offset, offset + len, Some(new)),
                )
            }
        };
        let freed = bytes_of(freed.into_iter().map(Piece::Data))
            .into_iter()
            .flatten()
            .collect::<Vec<_>>();
        assert_eq!(freed, expected, "freed in step {step}");
        assert_eq!(
            ExtentMap::try_from(map.0.clone()).as_ref(),
            Ok(&map),
            "rules E1 and E2 in step {step}"
        );
        let (at, size) = (random.below(MODEL_BYTES), random.below(MODEL_BYTES + 1));
        let part = &model[at as usize..(at + size).min(MODEL_BYTES) as usize];
        assert_eq!(
            bytes_of(map.range(at, part.len() as u64)),
            part,
            "range in step {step}"
        );
        let find = |is: fn(&Option<(ChunkId, u32)>) -> bool| {
            (at..MODEL_BYTES).find(|at| is(&model[*at as usize]))
        };
        assert_eq!(
            map.next_data(at),
            find(Option::is_some),
            "next_data in step {step}"
        );
        let hole = find(Option::is_none).unwrap_or(MODEL_BYTES);
        assert_eq!(
            map.next_hole(at, MODEL_BYTES),
            hole,
            "next_hole in step {step}"
        );
        let allocated = model.iter().flatten().count() as u64;
        assert_eq!(
            map.bytes_allocated(),
            allocated,
            "bytes_allocated in step {step}"
        );
    }
}

#[test]
fn a_hundred_thousand_extents_are_fine() {
    let count = 100_000;
    let mut map = ExtentMap::new();
    for at in 0..count {
        map.insert(extent(at * 10, 5, at, 0));
    }
    let start = std::time::Instant::now();
    for at in 0..1_000 {
        map.insert(extent(at * 10 + 7, 2, count + at, 0));
    }
    println!(
        "an insertion near the front of {} extents: {:?}",
        map.len(),
        start.elapsed() / 1_000
    );
    assert_eq!(map.len(), 101_000);
    assert_eq!(map.bytes_allocated(), 502_000);
}
