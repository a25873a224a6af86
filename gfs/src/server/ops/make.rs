//! Committing what a session has made by itself in directories that it holds exclusively.
//!
//! That it holds them is the driver's to check; here each inode is made or refused by itself, in order, so that what is
//! made in a new directory comes after it. Until this is applied nobody else can have seen any of it.

use super::create::Create;
use super::flush::AHEAD_MAX;
use super::{acl, check_time};
use crate::server::state::{MetaState, fact};
use consistency::wire::meta::{Attr, FsError, MADE_MAX, Made, OpReply};
use consistency::{InodeNo, SessionId, Timestamp};
use std::collections::BTreeSet;

pub(super) fn apply(
    state: &mut MetaState,
    now: Timestamp,
    session: SessionId,
    made: &[Made],
) -> Result<OpReply, FsError> {
    if made.len() > MADE_MAX {
        return Err(FsError::Invalid);
    }
    let latest = now.plus(AHEAD_MAX);
    let results: Vec<_> = made
        .iter()
        .map(|one| make(state, latest, session, one))
        .collect();
    let facts = |ino: InodeNo| state.inode(ino).map(|inode| fact(&inode.attr));
    let told = results.into_iter().zip(made);
    let told = told.map(|(result, one)| result.and_then(|()| facts(one.ino)));
    Ok(OpReply::Made {
        made: told.collect(),
        dirs: parents(made).filter_map(|dir| facts(dir).ok()).collect(),
    })
}

/// Returns the directories that were there before, each once.
pub(crate) fn parents(made: &[Made]) -> impl Iterator<Item = InodeNo> {
    let new: BTreeSet<InodeNo> = made.iter().map(|one| one.ino).collect();
    let parents: BTreeSet<InodeNo> = made.iter().map(|one| one.parent).collect();
    parents.into_iter().filter(move |dir| !new.contains(dir))
}

fn make(
    state: &mut MetaState,
    latest: Timestamp,
    session: SessionId,
    made: &Made,
) -> Result<(), FsError> {
    let number = made.ino.number_of_session().ok_or(FsError::Invalid)?;
    if !state.sessions.owns_in(session, number) || state.inodes.contains_key(&made.ino) {
        return Err(FsError::Stale);
    }
    check_time(made.time)?;
    let create = Create {
        parent: made.parent,
        name: Some(&made.name),
        node: &made.node,
        mode: made.mode,
        umask: made.umask,
        uid: made.uid,
        gid: made.gid,
        exclusive: true,
    };
    if create.resolve(state)?.is_some() {
        return Err(FsError::Exists);
    }
    let at = made.time.min(latest);
    let before = state.inode(made.parent)?.attr.ctime;
    create.make(state, made.ino, at)?;
    // S6: what was shown is not taken back.
    let dir = &mut state.inode_mut(made.parent).attr;
    dir.ctime = dir.ctime.max(before);
    state.now = state.now.max(at);
    Ok(())
}

/// Returns whether a node may make inodes in a directory by itself: only where it can foresee all that the leader would
/// do. A quota refuses, a default ACL and a number of copies are handed down.
pub(crate) fn is_foreseeable(state: &MetaState, dir: &Attr) -> bool {
    let Ok(inode) = state.inode(dir.ino) else {
        return false;
    };
    dir.ino != InodeNo::ROOT
        && inode.copies == 0
        && state.quotas.of(dir.ino).is_none()
        && !inode.xattrs.contains_key(&*acl::DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::ops::testing::World;
    use consistency::ChunkId;
    use consistency::wire::meta::{Name, NewNode, Op};

    fn one(parent: InodeNo, name: &str, number: u64, node: NewNode) -> Made {
        Made {
            parent,
            name: Name::new(name.to_owned()).expect("a name"),
            ino: InodeNo::by_session(ChunkId(number)).expect("small"),
            node,
            mode: 0o644,
            umask: 0,
            uid: 0,
            gid: 0,
            time: Timestamp::from_nanos(5),
        }
    }

    fn run(world: &mut World, made: Vec<Made>) -> Vec<Result<InodeNo, FsError>> {
        let Ok(OpReply::Made { made, .. }) = world.run(&Op::Make(made)) else {
            panic!("refused as a whole");
        };
        let numbers = made.into_iter();
        numbers.map(|fact| fact.map(|fact| fact.attr.ino)).collect()
    }

    fn world(setup: &str) -> World {
        let mut world = World::new(setup);
        world
            .run(&Op::AllocateChunks { count: 8 })
            .expect("allocates");
        world
    }

    #[test]
    fn makes_in_order() {
        let mut world = world("mkdir d");
        let d = world.ino("d");
        let e = one(d, "e", 1, NewNode::Dir);
        let f = one(e.ino, "f", 2, NewNode::File);
        let made = run(&mut world, vec![e.clone(), f.clone()]);
        assert_eq!(made, [Ok(e.ino), Ok(f.ino)]);
        assert_eq!(world.tree(), "d/ d/e/ d/e/f");
        assert_eq!(world.state.check(), Ok(()));
    }

    #[test]
    fn each_is_refused_by_itself() {
        let mut world = world("mkdir d; touch d/there");
        let d = world.ino("d");
        let good = one(d, "good", 3, NewNode::File);
        let foreign = one(d, "foreign", 9, NewNode::File);
        let mut leaders = one(d, "leaders", 4, NewNode::File);
        leaders.ino = InodeNo(77);
        let made = vec![
            one(d, "there", 1, NewNode::File),
            foreign,
            leaders,
            one(InodeNo(55), "nowhere", 2, NewNode::File),
            good.clone(),
            one(d, "again", 3, NewNode::File),
        ];
        let expected = [
            Err(FsError::Exists),
            Err(FsError::Stale),
            Err(FsError::Invalid),
            Err(FsError::Stale),
            Ok(good.ino),
            Err(FsError::Stale),
        ];
        assert_eq!(run(&mut world, made), expected);
        assert_eq!(world.tree(), "d/ d/good d/there");
        assert_eq!(world.state.check(), Ok(()));
        let many = vec![good; MADE_MAX + 1];
        assert_eq!(world.run(&Op::Make(many)), Err(FsError::Invalid));
    }

    #[test]
    fn s6_the_clock_goes_along_and_times_do_not_go_back() {
        let mut world = world("mkdir d");
        let d = world.ino("d");
        let before = world.attr("d").ctime;
        let now = world.state.now();
        let old = one(d, "old", 1, NewNode::File);
        let mut far = one(d, "far", 2, NewNode::File);
        far.time = now.plus(consistency::Duration::from_millis(3_600_000));
        run(&mut world, vec![old, far]);
        assert!(world.attr("d").ctime >= before);
        assert!(world.attr("d/far").ctime < now.plus(consistency::Duration::from_millis(60_000)));
        assert!(world.state.now() >= world.attr("d/far").ctime);
        assert_eq!(world.state.check(), Ok(()));
    }

    #[test]
    fn what_cannot_be_foreseen() {
        let foreseeable = |setup: &str| {
            let world = World::new(setup);
            is_foreseeable(&world.state, &world.attr("d"))
        };
        assert!(foreseeable("mkdir d"));
        let mut world = World::new("mkdir d");
        let root = world.state.attr(InodeNo::ROOT).expect("there");
        assert!(
            !is_foreseeable(&world.state, &root),
            "it has reserved names"
        );
        let set = Op::SetXattr {
            ino: world.ino("d"),
            name: Name::new(consistency::wire::meta::QUOTA_INODES).expect("a name"),
            value: "9".into(),
            mode: consistency::wire::meta::XattrMode::Any,
            kill_sgid: false,
        };
        world.run(&set).expect("sets");
        world.setup("mkdir d/e");
        for path in ["d", "d/e"] {
            assert!(!is_foreseeable(&world.state, &world.attr(path)), "{path}");
        }
    }
}
