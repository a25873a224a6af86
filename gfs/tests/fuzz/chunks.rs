//! The chunk service, in front of a store in memory.

use crate::dice::{Dice, cases};
use bytes::Bytes;
use consistency::wire::chunk::{ChunkFailure, ChunkReply, ChunkRequest};
use consistency::wire::{decode, encode};
use consistency::{ChunkId, NodeId};
use gfs::data::disk::Disk;
use gfs::data::service::ChunkService;
use gfs::data::{ChunkStore, Space};
use gfs::net::Service;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Chunks in memory; refuses what [`ChunkStore`] says that a store refuses.
#[derive(Clone, Debug, Default)]
struct MemStore(Arc<Mutex<BTreeMap<ChunkId, Bytes>>>);

impl ChunkStore for MemStore {
    fn put(&self, id: ChunkId, data: &[u8], crc: u32) -> Result<(), ChunkFailure> {
        if crc != crc32fast::hash(data) {
            return Err(ChunkFailure::Corrupt);
        }
        let mut chunks = self.0.lock().expect("no holder panics");
        chunks.insert(id, Bytes::copy_from_slice(data));
        Ok(())
    }

    fn get(&self, id: ChunkId, offset: u32, len: u32) -> Result<Bytes, ChunkFailure> {
        let chunks = self.0.lock().expect("no holder panics");
        let data = chunks.get(&id).ok_or(ChunkFailure::Missing)?;
        let offset = offset as usize;
        if len == 0 || offset >= data.len() {
            return Err(ChunkFailure::BadRange);
        }
        let end = (offset + len as usize).min(data.len());
        Ok(data.slice(offset..end))
    }

    fn delete(&self, ids: &[ChunkId]) -> Result<(), ChunkFailure> {
        let mut chunks = self.0.lock().expect("no holder panics");
        for id in ids {
            chunks.remove(id);
        }
        Ok(())
    }

    fn quarantine(&self, id: ChunkId) -> Result<(), ChunkFailure> {
        self.delete(&[id])
    }

    fn space(&self) -> Result<Space, ChunkFailure> {
        Ok(Space { total: 9, free: 1 })
    }

    fn ids(&self) -> Result<Vec<ChunkId>, ChunkFailure> {
        let chunks = self.0.lock().expect("no holder panics");
        Ok(chunks.keys().copied().collect())
    }
}

fn request(dice: &mut Dice) -> ChunkRequest {
    let id = ChunkId(if dice.one_in(8) {
        dice.u64()
    } else {
        dice.below(5)
    });
    match dice.below(6) {
        0 | 1 => {
            let data = Bytes::from(dice.bytes(200));
            let crc = if dice.one_in(4) {
                dice.u32()
            } else {
                crc32fast::hash(&data)
            };
            ChunkRequest::Put { id, data, crc }
        }
        2 | 3 => ChunkRequest::Get {
            id,
            offset: if dice.one_in(2) { dice.u32() } else { 0 },
            len: dice.u32(),
        },
        4 => ChunkRequest::Delete((0..dice.below(9)).map(|_| ChunkId(dice.below(9))).collect()),
        _ => ChunkRequest::Space,
    }
}

/// Every message is answered, or refused as malformed; what is read is what was put.
#[tokio::test]
async fn hostile_requests() {
    let mut dice = Dice::new("hostile_requests");
    let store = MemStore::default();
    let service = ChunkService::new(Disk::new(store.clone()));
    for _ in 0..cases(30_000) {
        let mut bytes = encode(&request(&mut dice));
        if dice.one_in(2) {
            dice.spoil(&mut bytes);
        }
        let request = decode::<ChunkRequest>(&bytes);
        let reply = service.call(NodeId(7), bytes.into()).await;
        let reply = reply.map(|reply| decode::<ChunkReply>(&reply).expect("a reply decodes"));
        match (request, reply) {
            (Err(_), None) | (Ok(_), Some(ChunkReply::Failed(_))) => {}
            (Ok(ChunkRequest::Put { .. } | ChunkRequest::Delete(_)), Some(ChunkReply::Done))
            | (Ok(ChunkRequest::Space), Some(ChunkReply::Space { .. })) => {}
            (Ok(ChunkRequest::Get { id, offset, len }), Some(ChunkReply::Data { data, crc })) => {
                assert_eq!(crc, crc32fast::hash(&data));
                assert_eq!(store.get(id, offset, len).as_ref(), Ok(&data));
            }
            (Ok(ChunkRequest::Verify(asked)), Some(ChunkReply::Bad(bad))) => {
                let is_bad = |id: &&ChunkId| store.verify(**id).is_err();
                let expected: Vec<ChunkId> = asked.iter().filter(is_bad).copied().collect();
                assert_eq!(bad, expected);
            }
            (request, reply) => panic!("{request:?} was answered with {reply:?}"),
        }
    }
}
