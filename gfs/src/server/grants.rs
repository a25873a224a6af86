//! The last step of an operation: facts from the state, grants from the lease core (rule M1).

use super::barriers::{Barrier, Core, with_stale};
use super::ops::is_foreseeable;
use super::state::MetaState;
use consistency::InodeNo;
use consistency::wire::lease::{Grant, Mode};
use consistency::wire::meta::{Attr, Fact, FileKind, FsError, Op, OpReply, StatFs};

/// Answers an operation that changes nothing and ends it.
pub(super) fn look(
    state: &MetaState,
    core: &mut Core,
    barrier: &mut Barrier<'_>,
    op: &Op,
    statfs: impl FnOnce(InodeNo) -> StatFs,
) -> Result<OpReply, FsError> {
    let mut reply = match op {
        Op::StatFs { ino } => OpReply::StatFs(statfs(*ino)),
        op => state.read(op)?,
    };
    let session = barrier.session();
    match &mut reply {
        OpReply::Found { dir, entry } => {
            let Op::Lookup { parent, .. } = op else {
                unreachable!("only a lookup finds")
            };
            let mut wants = vec![(*parent, Mode::Shared)];
            wants.extend(entry.as_ref().map(|fact| (fact.attr.ino, Mode::Shared)));
            let mut grants = core.finish(barrier, &wants).into_iter();
            *dir = grants.next().flatten();
            if let Some(fact) = entry {
                fact.grant = grants.next().flatten();
            }
        }
        OpReply::Attr(fact) => fact.grant = finish_one(core, barrier, fact.attr.ino, Mode::Shared),
        OpReply::Loaded { file, .. } => {
            let Op::Load { mode, .. } = op else {
                unreachable!("only a load loads")
            };
            file.grant = finish_one(core, barrier, file.attr.ino, *mode);
        }
        OpReply::Xattrs { grant, .. } => {
            let Op::GetXattrs { ino } = op else {
                unreachable!("only GetXattrs returns them")
            };
            *grant = finish_one(core, barrier, *ino, Mode::Shared);
        }
        OpReply::Listing { dir, entries, .. } => {
            let Op::ReadDir { ino, .. } = op else {
                unreachable!("only a readdir lists")
            };
            let mut wants = vec![(*ino, Mode::Shared)];
            for entry in entries.iter_mut() {
                // Its master knows better; asking for each would make a listing wait for every writer.
                if core.held_elsewhere(session, entry.ino) {
                    entry.fact = None;
                }
                wants.extend(
                    entry
                        .fact
                        .as_ref()
                        .map(|fact| (fact.attr.ino, Mode::Shared)),
                );
            }
            let mut grants = core.finish(barrier, &wants).into_iter();
            *dir = grants.next().flatten();
            for fact in entries.iter_mut().filter_map(|entry| entry.fact.as_mut()) {
                fact.grant = grants.next().flatten();
            }
        }
        OpReply::Target(_) | OpReply::StatFs(_) => drop(core.finish(barrier, &[])),
        OpReply::Created { .. }
        | OpReply::Changed(_)
        | OpReply::Flushed(_)
        | OpReply::Made { .. }
        | OpReply::ChunkIds(_) => {
            unreachable!("{reply:?} answers a change")
        }
    }
    Ok(reply)
}

/// Completes the reply to a committed change with grants and ends it. `stale` are the places of refused files of a
/// flush; `delegates`: the node may hold directories exclusively, and make inodes there by itself.
pub(super) fn change(
    state: &MetaState,
    core: &mut Core,
    barrier: &mut Barrier<'_>,
    reply: OpReply,
    stale: &[usize],
    delegates: bool,
) -> OpReply {
    // Who makes or removes one does more of it. A directory that somebody else knows is granted as before.
    let dir_mode = |dir: &Attr| {
        if delegates && is_foreseeable(state, dir) {
            Mode::Exclusive
        } else {
            Mode::Shared
        }
    };
    match reply {
        OpReply::Created {
            dir,
            entry,
            room,
            copies,
            new,
        } => {
            let mode = match entry.attr.kind {
                FileKind::File if new => Mode::Exclusive,
                FileKind::Dir if new => dir_mode(&entry.attr),
                _ => Mode::Shared,
            };
            let wants = [(dir.attr.ino, dir_mode(&dir.attr)), (entry.attr.ino, mode)];
            let grants = core.finish(barrier, &wants);
            OpReply::Created {
                dir: fresh(state, dir, grants[0]),
                entry: fresh(state, entry, grants[1]),
                room,
                copies,
                new,
            }
        }
        OpReply::Changed(facts) => {
            // What the session does not know it will not release either, so nothing is granted on it.
            let session = barrier.session();
            let known = |attr: &Attr| core.mode(session, attr.ino).is_some();
            let (told, silent): (Vec<_>, Vec<_>) =
                facts.into_iter().partition(|fact| known(&fact.attr));
            let wants: Vec<_> = told
                .iter()
                .map(|fact| match fact.attr.kind {
                    FileKind::Dir if fact.attr.nlink > 0 => (fact.attr.ino, dir_mode(&fact.attr)),
                    _ => (fact.attr.ino, Mode::Shared),
                })
                .collect();
            let grants = core.finish(barrier, &wants);
            let told = told
                .into_iter()
                .zip(grants)
                .map(|(fact, grant)| fresh(state, fact, grant));
            OpReply::Changed(told.chain(silent).collect())
        }
        OpReply::Flushed(done) => {
            core.finish(barrier, &[]);
            OpReply::Flushed(with_stale(done, stale))
        }
        OpReply::Made { made, dirs } => {
            let new = made.iter().flatten().map(|fact| fact.attr.ino);
            let old = dirs.iter().map(|fact| fact.attr.ino);
            let wants: Vec<_> = new.chain(old).map(|ino| (ino, Mode::Exclusive)).collect();
            let mut grants = core.finish(barrier, &wants).into_iter();
            let mut granted = |fact: Fact| fresh(state, fact, grants.next().flatten());
            OpReply::Made {
                made: made
                    .into_iter()
                    .map(|fact| fact.map(&mut granted))
                    .collect(),
                dirs: dirs.into_iter().map(&mut granted).collect(),
            }
        }
        reply @ OpReply::ChunkIds(_) => {
            core.finish(barrier, &[]);
            reply
        }
        OpReply::Found { .. }
        | OpReply::Attr(_)
        | OpReply::Loaded { .. }
        | OpReply::Listing { .. }
        | OpReply::Target(_)
        | OpReply::Xattrs { .. }
        | OpReply::StatFs(_) => unreachable!("{reply:?} answers no change"),
    }
}

/// Completes the recorded reply to a change that was made before. Of a flush of so many `files` it tells what became of
/// those that were not refused then; `stale` are those that would be now.
pub(super) fn again(reply: OpReply, files: usize, stale: &[usize]) -> OpReply {
    match reply {
        OpReply::Flushed(done) if done.len() + stale.len() == files => {
            OpReply::Flushed(with_stale(done, stale))
        }
        // Else what was refused has changed; a reply of another length tells the client that it cannot know.
        reply => reply,
    }
}

fn finish_one(
    core: &mut Core,
    barrier: &mut Barrier<'_>,
    ino: InodeNo,
    mode: Mode,
) -> Option<Grant> {
    core.finish(barrier, &[(ino, mode)]).pop().flatten()
}

/// M1: another change of the inode may have been committed since `fact` was written.
fn fresh(state: &MetaState, fact: Fact, grant: Option<Grant>) -> Fact {
    match state.attr(fact.attr.ino) {
        Ok(attr) => Fact { attr, grant },
        Err(_) => Fact {
            grant: None,
            ..fact
        },
    }
}
