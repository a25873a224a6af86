//! Committing what a session has made and removed by itself in directories that it holds exclusively.
//!
//! That it holds them, and what it has removed, is the driver's to check; here each is done or refused by itself, in
//! order, so that what is made in a new directory comes after it. Until this is applied nobody else can have seen any of
//! it.

use super::create::Create;
use super::flush::AHEAD_MAX;
use super::{acl, check_time, unlink};
use crate::server::state::{MetaState, fact};
use consistency::wire::meta::{
    Attr, FileKind, FsError, MADE_MAX, Made, NameChange, Op, OpReply, Removed,
};
use consistency::{InodeNo, SessionId, Timestamp};
use std::collections::BTreeSet;

pub(super) fn apply(
    state: &mut MetaState,
    now: Timestamp,
    session: SessionId,
    made: &[Made],
) -> Result<OpReply, FsError> {
    let changes: Vec<_> = made.iter().cloned().map(NameChange::Made).collect();
    apply_all(state, now, session, &changes)
}

pub(super) fn apply_all(
    state: &mut MetaState,
    now: Timestamp,
    session: SessionId,
    changes: &[NameChange],
) -> Result<OpReply, FsError> {
    if changes.len() > MADE_MAX {
        return Err(FsError::Invalid);
    }
    let latest = now.plus(AHEAD_MAX);
    let results: Vec<_> = changes
        .iter()
        .map(|change| match change {
            NameChange::Made(made) => make(state, latest, session, made),
            NameChange::Removed(removed) => remove(state, latest, removed),
        })
        .collect();
    let facts = |ino: InodeNo| state.inode(ino).map(|inode| fact(&inode.attr));
    let told = results.into_iter().zip(changes);
    let told = told.map(|(result, one)| result.and_then(|()| facts(one.ino())));
    let new = new(changes);
    let dirs: BTreeSet<_> = changes.iter().map(NameChange::parent).collect();
    let dirs = dirs.difference(&new);
    Ok(OpReply::Made {
        made: told.collect(),
        dirs: dirs.filter_map(|dir| facts(*dir).ok()).collect(),
    })
}

fn new(changes: &[NameChange]) -> BTreeSet<InodeNo> {
    let new = changes.iter().filter_map(|change| match change {
        NameChange::Made(made) => Some(made.ino),
        NameChange::Removed(_) => None,
    });
    new.collect()
}

/// Returns the inodes, each once, that the session of an operation must hold exclusively, if it commits what a session
/// has done by itself: the directories, and what was removed, but for what the operation makes.
pub(crate) fn held_by_session(op: &Op) -> Option<BTreeSet<InodeNo>> {
    let (mut held, new) = match op {
        Op::Make(made) => {
            let new: BTreeSet<_> = made.iter().map(|made| made.ino).collect();
            (made.iter().map(|made| made.parent).collect(), new)
        }
        Op::Names(changes) => {
            let mut held: BTreeSet<_> = changes.iter().map(NameChange::parent).collect();
            held.extend(changes.iter().map(NameChange::ino));
            (held, new(changes))
        }
        _ => return None,
    };
    held.retain(|ino| !new.contains(ino));
    Some(held)
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

fn remove(state: &mut MetaState, latest: Timestamp, removed: &Removed) -> Result<(), FsError> {
    check_time(removed.time)?;
    let (parent, ino) = (removed.parent, removed.ino);
    let is_dir = removed.kind == FileKind::Dir;
    let victim = unlink::resolve(state, parent, &removed.name, is_dir)?;
    if (victim.ino, victim.kind) != (ino, removed.kind) {
        return Err(FsError::Stale);
    }
    let at = removed.time.min(latest);
    if missing!(LoseRemoved) {
        return Ok(());
    }
    // S6: what was shown is not taken back.
    let before = [parent, ino].map(|ino| state.inode_mut(ino).attr.ctime);
    unlink::apply(state, at, parent, &removed.name, is_dir)?;
    for (ino, before) in [parent, ino].into_iter().zip(before) {
        let attr = &mut state.inode_mut(ino).attr;
        attr.ctime = attr.ctime.max(before);
    }
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

    fn gone(parent: InodeNo, name: &str, ino: InodeNo, kind: FileKind) -> NameChange {
        NameChange::Removed(Removed {
            parent,
            name: Name::new(name.to_owned()).expect("a name"),
            ino,
            kind,
            time: Timestamp::from_nanos(5),
        })
    }

    fn change(world: &mut World, changes: Vec<NameChange>) -> Vec<Result<u32, FsError>> {
        let Ok(OpReply::Made { made, .. }) = world.run(&Op::Names(changes)) else {
            panic!("refused as a whole");
        };
        let links = made.into_iter();
        links.map(|fact| fact.map(|fact| fact.attr.nlink)).collect()
    }

    #[test]
    fn removes_in_order() {
        let mut world = world("mkdir d; touch d/old");
        let (d, old) = (world.ino("d"), world.ino("d/old"));
        let e = one(d, "e", 1, NewNode::Dir);
        let f = one(e.ino, "f", 2, NewNode::File);
        let (e_ino, f_ino) = (e.ino, f.ino);
        let changes = vec![
            NameChange::Made(e),
            NameChange::Made(f),
            gone(e_ino, "f", f_ino, FileKind::File),
            gone(d, "e", e_ino, FileKind::Dir),
            gone(d, "old", old, FileKind::File),
        ];
        let op = Op::Names(changes.clone());
        assert_eq!(held_by_session(&op), Some(BTreeSet::from([d, old])));
        // Facts are those after all of it.
        assert_eq!(change(&mut world, changes), [Ok(0); 5]);
        assert_eq!(world.tree(), "d/ !3");
        assert_eq!(world.state.orphans().count(), 3);
        assert_eq!(world.state.check(), Ok(()));
    }

    #[test]
    fn each_removal_is_refused_by_itself() {
        let mut world = world("mkdir d; touch d/f; touch d/g; mkdir d/e; touch d/e/x");
        let [d, e, f, g] = ["d", "d/e", "d/f", "d/g"].map(|path| world.ino(path));
        let changes = vec![
            gone(d, "none", f, FileKind::File),
            gone(d, "f", g, FileKind::File),
            gone(d, "f", f, FileKind::Dir),
            gone(d, "f", f, FileKind::Symlink),
            gone(d, "e", e, FileKind::Dir),
            gone(d, "g", g, FileKind::File),
            gone(d, "g", g, FileKind::File),
        ];
        let expected = [
            Err(FsError::NotFound),
            Err(FsError::Stale),
            Err(FsError::NotDir),
            Err(FsError::Stale),
            Err(FsError::NotEmpty),
            Ok(0),
            Err(FsError::NotFound),
        ];
        assert_eq!(change(&mut world, changes), expected);
        assert_eq!(world.tree(), "d/ d/e/ d/e/x d/f !1");
        assert_eq!(world.state.check(), Ok(()));
    }

    #[test]
    fn s6_a_removal_takes_no_time_back() {
        let mut world = world("mkdir d; touch d/f; ln d/f d/g");
        let (d, f) = (world.ino("d"), world.ino("d/f"));
        let before = ["d", "d/f"].map(|path| world.attr(path).ctime);
        change(&mut world, vec![gone(d, "g", f, FileKind::File)]);
        assert_eq!(world.attr("d/f").nlink, 1);
        assert_eq!(world.attr("d").mtime, Timestamp::from_nanos(5));
        let after = ["d", "d/f"].map(|path| world.attr(path).ctime);
        assert!(after[0] >= before[0] && after[1] >= before[1]);
        assert_eq!(world.state.check(), Ok(()));
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
