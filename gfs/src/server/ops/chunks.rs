//! Giving out chunk numbers.

use crate::server::state::MetaState;
use consistency::SessionId;
use consistency::wire::meta::{FsError, OpReply};

/// Most numbers given out at once.
const COUNT_MAX: u32 = 65_536;

/// Gives numbers to a session. What it has not flushed when it ends is garbage in the chunk stores, see
/// [`MetaState::is_garbage`].
pub(super) fn apply(
    state: &mut MetaState,
    session: SessionId,
    count: u32,
) -> Result<OpReply, FsError> {
    if !(1..=COUNT_MAX).contains(&count) {
        return Err(FsError::Invalid);
    }
    let owner = state.sessions.record_mut(session).ok_or(FsError::Stale)?;
    let (first, end) = state.chunks.allocate(count);
    owner.own(first, end);
    Ok(OpReply::ChunkIds(first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::ops::testing::World;
    use crate::server::state::{Body, Reply};
    use consistency::ChunkId;
    use consistency::wire::meta::Op;

    #[test]
    fn numbers_are_never_given_twice() {
        let mut world = World::new("");
        let mut next = |count| world.run(&Op::AllocateChunks { count });
        assert_eq!(next(3), Ok(OpReply::ChunkIds(ChunkId(1))));
        assert_eq!(next(1), Ok(OpReply::ChunkIds(ChunkId(4))));
        assert_eq!(next(COUNT_MAX), Ok(OpReply::ChunkIds(ChunkId(5))));
        assert_eq!(next(0), Err(FsError::Invalid));
        assert_eq!(next(COUNT_MAX + 1), Err(FsError::Invalid));
    }

    #[test]
    fn unflushed_numbers_of_an_ended_session_are_garbage() {
        let mut world = World::new("");
        world
            .run(&Op::AllocateChunks { count: 2 })
            .expect("allocates");
        assert!(!world.state.is_garbage(ChunkId(2)));
        let session = world.session;
        assert_eq!(world.apply(Body::EndSession(session)), Reply::Done);
        assert!(world.state.is_garbage(ChunkId(2)));
        // Not given out yet: may belong to an allocation that this state has not seen.
        assert!(!world.state.is_garbage(ChunkId(3)));
    }
}
