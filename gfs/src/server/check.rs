//! The leader checks the cluster while it serves.
//!
//! 1. Every voter sums its state up as of one entry of the log that is still to come; commands that do nothing take the
//!    log there. Encoding the state holds commands up as a snapshot does, nothing else does.
//! 2. The leader's copy of that state is checked with itself, and tells which copies of chunks there should be.
//! 3. Each node is asked for a block of each of its copies, or to read all of them. What is bad and still listed there is
//!    told, and handed to the repair.
//! 4. Each node lists what it has: what no file has there, though a sweep should have deleted it by now, is told.

mod stores;

use super::service::MetaServer;
use super::state::{Body, FAULTS_MAX, Listed, MetaState};
use super::stream::{self, Checked, CheckedNode, StateSum, StreamReply, StreamRequest};
use crate::fsck;
use crate::net::{ByteStream, ServiceId};
use crate::server::machine::StateMachine;
use bytes::Bytes;
use consistency::wire::chunk::{ChunkFailure, ChunkReply, ChunkRequest};
use consistency::wire::{decode, encode};
use consistency::{ChunkId, NodeId};
use futures::StreamExt;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// How far ahead the entry is at which the states are compared; more and more, in case the log is there first.
const AHEAD: [u64; 4] = [4, 32, 256, 2_048];
/// How long a voter may take to answer, and to encode its state.
const ANSWER: Duration = Duration::from_secs(5);
const SUM: Duration = Duration::from_secs(60);
/// Copies that are looked at at one time, over all nodes.
const AT_ONCE: usize = 16;
/// How long one may take.
const LOOK: Duration = Duration::from_secs(60);
/// How often a node that is busy is asked again.
const BUSY_TRIES: u32 = 50;
const BUSY_PAUSE: Duration = Duration::from_millis(100);
/// Copies between two words to who waits.
const PROGRESS_EVERY: u64 = 256;
/// And how long without one.
const PROGRESS_WITHIN: Duration = Duration::from_secs(2);

/// Checks, and tells `stream` how it goes.
pub(super) async fn run(
    server: &MetaServer,
    data: bool,
    with_stores: bool,
    stream: &mut ByteStream,
) -> io::Result<()> {
    let Ok(_alone) = server.checking.try_lock() else {
        let why = "another check is under way".to_owned();
        return stream::send(&mut stream.writer, &StreamReply::Failed(why)).await;
    };
    let compared = async {
        let (index, state, voters) = compare_voters(server).await?;
        let copy = tokio::task::spawn_blocking(move || {
            let state = MetaState::restore(&state).map_err(|error| error.to_string())?;
            let faults = state.faults();
            Ok::<_, String>((state, faults))
        });
        let (state, faults) = copy.await.expect("checking does not panic")?;
        Ok::<_, String>((index, state, faults, voters))
    };
    let compared = with_word(compared, &mut stream.writer).await?;
    let (index, state, faults, voters) = match compared {
        Ok(compared) => compared,
        Err(why) => return stream::send(&mut stream.writer, &StreamReply::Failed(why)).await,
    };
    let mut checked = Checked {
        index,
        inodes: state.counts().inodes,
        ..Checked::default()
    };
    for fault in faults {
        checked.note("metadata", fault.rule, fault.what);
    }
    for what in disagreements(&voters) {
        checked.note("voters", "T5", what);
    }
    checked.voters = voters;
    check_copies(server, &state, data, &mut checked, stream).await?;
    let reply = if with_stores {
        let compared = stores::compare(server, &mut checked);
        let stores = with_word(compared, &mut stream.writer).await?;
        StreamReply::CheckedStores(checked, stores)
    } else {
        StreamReply::Checked(checked)
    };
    stream::send(&mut stream.writer, &reply).await
}

impl Checked {
    fn note(&mut self, part: &str, rule: &str, what: String) {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push((part.to_owned(), rule.to_owned(), what));
        }
    }
}

/// Waits for something and says meanwhile that it is still under way.
async fn with_word<T>(
    work: impl Future<Output = T>,
    writer: &mut (impl tokio::io::AsyncWrite + Unpin + Send),
) -> io::Result<T> {
    tokio::pin!(work);
    loop {
        match timeout(PROGRESS_WITHIN, &mut work).await {
            Ok(done) => return Ok(done),
            Err(_) => stream::send(writer, &StreamReply::Checking(0)).await?,
        }
    }
}

type Voters = Vec<(NodeId, Result<StateSum, String>)>;

/// Returns an entry, the state as of it, and the sums of all voters there.
async fn compare_voters(server: &MetaServer) -> Result<(u64, Vec<u8>, Voters), String> {
    let me = server.transport.local();
    for ahead in AHEAD {
        let index = server.log.applied_index() + ahead;
        let Some(own) = server.log.state_at(index).await else {
            continue;
        };
        let others = server.voters().into_iter().filter(|voter| *voter != me);
        let asked = others.map(|voter| async move { (voter, ask(server, voter, index).await) });
        let asked = futures::future::join_all(asked).await;
        if asked.iter().any(|(_, asked)| matches!(asked, Ok(None))) {
            continue;
        }
        // They all wait for the entry: now it may come.
        while server.log.applied_index() < index {
            let nothing = Body::ForgetDead(Vec::new());
            let done = server.commit(nothing).await;
            done.map_err(|error| format!("the log takes no command: {error}"))?;
        }
        let Ok(Ok(own)) = timeout(SUM, own).await else {
            continue;
        };
        let own = own.encoded().await;
        let mut voters = vec![(me, Ok(StateSum::of(&own)))];
        for (voter, asked) in asked {
            let sum = match asked {
                Ok(Some(stream)) => sum_of(stream).await,
                Ok(None) => unreachable!("looked for above"),
                Err(why) => Err(why),
            };
            voters.push((voter, sum));
        }
        voters.sort_by_key(|(voter, _)| *voter);
        return Ok((index, own, voters));
    }
    Err("the log was faster than the check each time: try again".to_owned())
}

/// Has a voter wait for an entry; `None` if it is past it.
async fn ask(server: &MetaServer, voter: NodeId, index: u64) -> Result<Option<ByteStream>, String> {
    let asked = async {
        let opened = server.transport.open(voter, ServiceId::Meta).await;
        let mut stream = opened.map_err(|error| error.to_string())?;
        let request = StreamRequest::SumAt { index };
        let sent = stream::send(&mut stream.writer, &request).await;
        sent.map_err(|error| error.to_string())?;
        match stream::receive(&mut stream.reader).await {
            Ok(StreamReply::Waiting) => Ok(Some(stream)),
            Ok(StreamReply::Passed) => Ok(None),
            Ok(other) => Err(format!("it answers {other:?}")),
            Err(error) => Err(format!(
                "it does not tell ({error}): is it of an older version?"
            )),
        }
    };
    let late = || Err(format!("no answer within {ANSWER:?}"));
    timeout(ANSWER, asked).await.unwrap_or_else(|_| late())
}

async fn sum_of(mut stream: ByteStream) -> Result<StateSum, String> {
    match timeout(SUM, stream::receive(&mut stream.reader)).await {
        Ok(Ok(StreamReply::Sum(sum))) => Ok(sum),
        Ok(Ok(other)) => Err(format!("it answers {other:?}")),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("it was not there within {SUM:?}")),
    }
}

/// Answers another leader: sums this voter's state up as of an entry.
pub(super) async fn sum_at(
    server: &MetaServer,
    index: u64,
    stream: &mut ByteStream,
) -> io::Result<()> {
    let Some(state) = server.log.state_at(index).await else {
        return stream::send(&mut stream.writer, &StreamReply::Passed).await;
    };
    stream::send(&mut stream.writer, &StreamReply::Waiting).await?;
    if let Ok(Ok(state)) = timeout(SUM, state).await {
        let sum = StateSum::of(&state.encoded().await);
        stream::send(&mut stream.writer, &StreamReply::Sum(sum)).await?;
    }
    Ok(())
}

/// Says which voters have another state than most; nobody is right if there is no majority.
fn disagreements(voters: &Voters) -> Vec<String> {
    let mut counts: BTreeMap<(u32, u64), usize> = BTreeMap::new();
    for sum in voters.iter().filter_map(|(_, sum)| sum.as_ref().ok()) {
        *counts.entry((sum.crc, sum.bytes)).or_default() += 1;
    }
    if counts.len() <= 1 {
        return Vec::new();
    }
    let most = counts.iter().find(|(_, count)| 2 * **count > voters.len());
    let most = most.map(|(sum, _)| *sum);
    let differs = |(voter, sum): &(NodeId, Result<StateSum, String>)| {
        let sum = sum.as_ref().ok()?;
        (Some((sum.crc, sum.bytes)) != most).then(|| {
            format!(
                "node {voter} has another state than {} ({:08x} of {} bytes): take it out of the voters, empty its meta and add it again",
                if most.is_some() { "most voters" } else { "the others" },
                sum.crc,
                sum.bytes
            )
        })
    };
    voters.iter().filter_map(differs).collect()
}

/// Looks at every copy of every chunk of `state`.
async fn check_copies(
    server: &MetaServer,
    state: &MetaState,
    data: bool,
    checked: &mut Checked,
    stream: &mut ByteStream,
) -> io::Result<()> {
    let up = server.barriers.nodes_up();
    let mut nodes: BTreeMap<NodeId, CheckedNode> = BTreeMap::new();
    for (node, held) in state.held() {
        let none = CheckedNode {
            node: *node,
            copies: held.chunks,
            good: 0,
            bad: 0,
        };
        nodes.insert(*node, none);
    }
    let copies = state.listed_from(ChunkId(0)).flat_map(|chunk| {
        let nodes = chunk.replicas.clone();
        let reached = |node: &NodeId| *node == NodeId::BUCKET || up.contains(node);
        let there = nodes.into_iter().filter(reached);
        there
            .map(move |node| (chunk.clone(), node))
            .collect::<Vec<_>>()
    });
    let looks = copies.map(|(chunk, node)| async move {
        // What is dropped after that is not deleted before a sweep of its node; what is dead is.
        let listed = server.log.read(|state| state.is_listed_on(chunk.id, node));
        let found = if listed {
            look(server, node, &chunk, data).await
        } else {
            None
        };
        (chunk, node, found)
    });
    let mut looks = futures::stream::iter(looks).buffer_unordered(AT_ONCE);
    let mut bad: Vec<(Listed, NodeId, String)> = Vec::new();
    let mut done = 0;
    loop {
        let (chunk, node, found) = match timeout(PROGRESS_WITHIN, looks.next()).await {
            Ok(None) => break,
            Ok(Some(look)) => look,
            Err(_) => {
                stream::send(&mut stream.writer, &StreamReply::Checking(done)).await?;
                continue;
            }
        };
        done += 1;
        if done % PROGRESS_EVERY == 0 {
            stream::send(&mut stream.writer, &StreamReply::Checking(done)).await?;
        }
        let Some(counts) = nodes.get_mut(&node) else {
            continue;
        };
        match found {
            Some(Ok(())) => counts.good += 1,
            Some(Err(why)) if is_live(server, chunk.id) => {
                counts.bad += 1;
                if bad.len() < FAULTS_MAX {
                    bad.push((chunk, node, why));
                }
            }
            // Deleted or moved since, or the node does not answer.
            Some(Err(_)) | None => {}
        }
    }
    let ids: BTreeSet<ChunkId> = bad.iter().map(|(chunk, _, _)| chunk.id).collect();
    let files = state.files_of(&ids);
    bad.sort_by_key(|(chunk, node, _)| (chunk.id, *node));
    for (chunk, node, why) in bad {
        let files = files.get(&chunk.id).map_or(&[][..], Vec::as_slice);
        let what = fsck::describe(&chunk, node, &why, files);
        checked.note("chunks", "D1", format!("node {node}: {what}"));
        server.repair.report(node, vec![chunk.id]);
    }
    checked.nodes = nodes.into_values().collect();
    Ok(())
}

/// A chunk may have died since the check began. Its node may have told of a bad copy meanwhile, so that it is no longer
/// listed there: that it was bad is true all the same.
fn is_live(server: &MetaServer, chunk: ChunkId) -> bool {
    server.log.read(|state| state.listed(chunk)).is_some()
}

/// Looks at a copy; `None` if its node does not say.
async fn look(
    server: &MetaServer,
    node: NodeId,
    chunk: &Listed,
    data: bool,
) -> Option<Result<(), String>> {
    let request = if data {
        ChunkRequest::Verify(vec![chunk.id])
    } else {
        // The last byte is there only if all others are; with it comes the check of the header and of a block.
        ChunkRequest::Get {
            id: chunk.id,
            offset: chunk.len.saturating_sub(1),
            len: 1,
        }
    };
    match ask_store(server, node, &request).await? {
        ChunkReply::Data { .. } => Some(Ok(())),
        ChunkReply::Bad(bad) if bad.is_empty() => Some(Ok(())),
        ChunkReply::Bad(_) => Some(Err("it is damaged or missing".to_owned())),
        ChunkReply::Failed(
            failure @ (ChunkFailure::Missing | ChunkFailure::Corrupt | ChunkFailure::BadRange),
        ) => Some(Err(failure.to_string())),
        _ => None,
    }
}

/// Asks a node's store, again and again if it is busy; `None` if it does not answer.
async fn ask_store(
    server: &MetaServer,
    node: NodeId,
    request: &ChunkRequest,
) -> Option<ChunkReply> {
    let body = Bytes::from(encode(request));
    for _ in 0..BUSY_TRIES {
        let transport = &server.transport;
        let reply = transport.call(node, ServiceId::Chunk, body.clone(), LOOK);
        match decode(&reply.await.ok()?).ok()? {
            ChunkReply::Failed(ChunkFailure::Busy) => sleep(BUSY_PAUSE).await,
            reply => return Some(reply),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voters(sums: &[Option<u32>]) -> Voters {
        let voter = |(at, crc): (usize, &Option<u32>)| {
            let node = NodeId(u16::try_from(at + 1).expect("few"));
            let sum = crc.map(|crc| StateSum { crc, bytes: 1 });
            (node, sum.ok_or_else(|| "away".to_owned()))
        };
        sums.iter().enumerate().map(voter).collect()
    }

    #[track_caller]
    fn check(sums: &[Option<u32>], named: &[&str]) {
        let found = disagreements(&voters(sums));
        let names: Vec<_> = found.iter().map(|what| &what[..6]).collect();
        assert_eq!(names, named, "{found:?}");
    }

    #[test]
    fn who_has_another_state_is_named() {
        check(&[Some(1)], &[]);
        check(&[Some(1), Some(1), Some(1)], &[]);
        check(&[Some(1), None, Some(1)], &[]);
        check(&[Some(1), Some(2), Some(1)], &["node 2"]);
        check(&[Some(1), Some(2), None], &["node 1", "node 2"]);
        check(
            &[Some(1), Some(2), Some(3)],
            &["node 1", "node 2", "node 3"],
        );
    }
}
