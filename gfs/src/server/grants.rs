//! The last step of an operation: facts from the state, grants from the lease core (rule M1).

use super::barriers::{Barrier, Core, with_stale};
use super::state::MetaState;
use consistency::wire::lease::{Grant, Mode};
use consistency::wire::meta::{Attr, Fact, FsError, Op, OpReply, StatFs};
use consistency::InodeNo;

/// Answers an operation that changes nothing and ends it.
pub(super) fn look(
    state: &MetaState,
    core: &mut Core,
    barrier: &mut Barrier<'_>,
    op: &Op,
    statfs: impl FnOnce() -> StatFs,
) -> Result<OpReply, FsError> {
    match op {
        Op::Lookup { parent, name } => {
            let child = state.lookup(*parent, name)?;
            let mut wants = vec![(*parent, Mode::Shared)];
            wants.extend(child.as_ref().map(|attr| (attr.ino, Mode::Shared)));
            let grants = core.finish(barrier, &wants);
            let entry = child.map(|attr| Fact { attr, grant: grants[1] });
            Ok(OpReply::Found { dir: grants[0], entry })
        }
        Op::GetAttr { ino } => {
            let attr = state.attr(*ino)?;
            let grant = finish_one(core, barrier, *ino, Mode::Shared);
            Ok(OpReply::Attr(Fact { attr, grant }))
        }
        Op::GetXattrs { ino } => {
            let xattrs = state.xattrs(*ino)?;
            let grant = finish_one(core, barrier, *ino, Mode::Shared);
            Ok(OpReply::Xattrs { grant, xattrs })
        }
        Op::Load { ino, mode } => {
            let (attr, content) = state.load(*ino)?;
            let grant = finish_one(core, barrier, *ino, *mode);
            Ok(OpReply::Loaded { file: Fact { attr, grant }, content })
        }
        Op::ReadDir { ino, after, limit } => {
            let (parent, mut entries, end) = state.readdir(*ino, *after, *limit)?;
            let session = barrier.session();
            for entry in &mut entries {
                // Its master knows better; asking for each would make a listing wait for every writer.
                if core.exclusive_elsewhere(session, entry.ino) {
                    entry.fact = None;
                }
            }
            let told = entries.iter().filter(|entry| entry.fact.is_some());
            let mut wants = vec![(*ino, Mode::Shared)];
            wants.extend(told.map(|entry| (entry.ino, Mode::Shared)));
            let mut grants = core.finish(barrier, &wants).into_iter();
            let dir = grants.next().flatten();
            for fact in entries.iter_mut().filter_map(|entry| entry.fact.as_mut()) {
                fact.grant = grants.next().flatten();
            }
            Ok(OpReply::Listing { dir, parent, entries, end })
        }
        Op::ReadLink { ino } => {
            let target = state.readlink(*ino)?;
            core.finish(barrier, &[]);
            Ok(OpReply::Target(target))
        }
        Op::StatFs => {
            core.finish(barrier, &[]);
            Ok(OpReply::StatFs(statfs()))
        }
        Op::Create { .. }
        | Op::Link { .. }
        | Op::Unlink { .. }
        | Op::Rename { .. }
        | Op::SetAttr { .. }
        | Op::SetXattr { .. }
        | Op::RemoveXattr { .. }
        | Op::Flush(_)
        | Op::AllocateChunks { .. } => unreachable!("{op:?} changes the tree"),
    }
}

/// Completes the reply to a committed change with grants and ends it. `stale` are the places of refused files of a
/// flush.
pub(super) fn change(
    state: &MetaState,
    core: &mut Core,
    barrier: &mut Barrier<'_>,
    reply: OpReply,
    stale: &[usize],
) -> OpReply {
    match reply {
        OpReply::Created { dir, entry, new } => {
            let mode = if new && entry.attr.kind == consistency::wire::meta::FileKind::File {
                Mode::Exclusive
            } else {
                Mode::Shared
            };
            let wants = [(dir.attr.ino, Mode::Shared), (entry.attr.ino, mode)];
            let grants = core.finish(barrier, &wants);
            OpReply::Created { dir: fresh(state, dir, grants[0]), entry: fresh(state, entry, grants[1]), new }
        }
        OpReply::Changed(facts) => {
            // What the session does not know it will not release either, so nothing is granted on it.
            let session = barrier.session();
            let known = |attr: &Attr| core.mode(session, attr.ino).is_some();
            let (told, silent): (Vec<_>, Vec<_>) = facts.into_iter().partition(|fact| known(&fact.attr));
            let wants: Vec<_> = told.iter().map(|fact| (fact.attr.ino, Mode::Shared)).collect();
            let grants = core.finish(barrier, &wants);
            let told = told.into_iter().zip(grants).map(|(fact, grant)| fresh(state, fact, grant));
            OpReply::Changed(told.chain(silent).collect())
        }
        OpReply::Flushed(done) => {
            core.finish(barrier, &[]);
            OpReply::Flushed(with_stale(done, stale))
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

fn finish_one(core: &mut Core, barrier: &mut Barrier<'_>, ino: InodeNo, mode: Mode) -> Option<Grant> {
    core.finish(barrier, &[(ino, mode)]).pop().flatten()
}

/// M1: another change of the inode may have been committed since `fact` was written.
fn fresh(state: &MetaState, fact: Fact, grant: Option<Grant>) -> Fact {
    match state.attr(fact.attr.ino) {
        Ok(attr) => Fact { attr, grant },
        Err(_) => Fact { grant: None, ..fact },
    }
}
