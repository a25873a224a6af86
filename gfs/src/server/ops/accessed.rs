//! Recording when inodes were read.
//!
//! Nodes tell it late and many at a time. A read is not recorded if the inode was changed since: whoever set the times
//! meant them, and a time of access before the last change says no more than the one that is there.

use super::{Plan, check_time};
use crate::server::state::{MetaState, fact};
use consistency::wire::lease::Scope;
use consistency::wire::meta::{ACCESSES_MAX, FsError, OpReply};
use consistency::{InodeNo, Timestamp};

pub(super) fn plan(state: &MetaState, times: &[(InodeNo, Timestamp)]) -> Result<Plan, FsError> {
    check(times)?;
    let told = times.iter().filter(|&&(ino, at)| is_news(state, ino, at));
    Ok(told.fold(Plan::default(), |plan, &(ino, _)| {
        plan.claim(ino, Scope::Attr)
    }))
}

pub(super) fn apply(
    state: &mut MetaState,
    times: &[(InodeNo, Timestamp)],
) -> Result<OpReply, FsError> {
    check(times)?;
    let mut facts = Vec::new();
    for &(ino, at) in times {
        if is_news(state, ino, at) {
            let attr = &mut state.inode_mut(ino).attr;
            attr.atime = at;
            attr.version = attr.version.next();
            facts.push(fact(attr));
        }
    }
    Ok(OpReply::Changed(facts))
}

/// An inode that is told twice would be changed twice by one operation.
fn check(times: &[(InodeNo, Timestamp)]) -> Result<(), FsError> {
    let ascending = times.is_sorted_by(|(a, _), (b, _)| a < b);
    if times.len() > ACCESSES_MAX || !ascending {
        return Err(FsError::Invalid);
    }
    times.iter().try_for_each(|&(_, at)| check_time(at))
}

/// AT1
fn is_news(state: &MetaState, ino: InodeNo, at: Timestamp) -> bool {
    let inode = state.inode(ino);
    inode.is_ok_and(|inode| at > inode.attr.ctime && at > inode.attr.atime)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::ops::testing::World;
    use consistency::Duration;
    use consistency::wire::meta::{Op, SetAttr, SetTime};

    fn tell(world: &mut World, times: &[(&str, Timestamp)]) -> Result<usize, FsError> {
        let mut times: Vec<_> = times
            .iter()
            .map(|&(path, at)| (world.ino(path), at))
            .collect();
        times.sort_unstable();
        let reply = world.run(&Op::Accessed(times))?;
        let OpReply::Changed(facts) = reply else {
            panic!("{reply:?}");
        };
        Ok(facts.len())
    }

    #[test]
    fn a_read_is_recorded_and_nothing_else() {
        let mut world = World::new("touch f; mkdir d");
        let before = world.attr("f");
        let at = before.ctime.plus(Duration::from_millis(5));
        assert_eq!(tell(&mut world, &[("f", at), ("d", before.atime)]), Ok(1));
        let attr = world.attr("f");
        assert_eq!(attr.atime, at);
        assert_eq!([attr.mtime, attr.ctime], [before.mtime, before.ctime]);
        // The same again, and an older one.
        assert_eq!(tell(&mut world, &[("f", at)]), Ok(0));
        assert_eq!(tell(&mut world, &[("f", before.ctime.next())]), Ok(0));
    }

    #[test]
    fn a_change_since_keeps_its_times() {
        let mut world = World::new("touch f");
        let read = world.attr("f").ctime.next();
        let old = Timestamp::from_nanos(-7);
        let set = SetAttr {
            atime: Some(SetTime::At(old)),
            ..SetAttr::default()
        };
        let ino = world.ino("f");
        world.run(&Op::SetAttr { ino, set }).expect("sets");
        assert!(world.attr("f").ctime >= read);
        assert_eq!(tell(&mut world, &[("f", read)]), Ok(0));
        assert_eq!(world.attr("f").atime, old);
    }

    #[test]
    fn nonsense_is_refused() {
        let mut world = World::new("touch f");
        let mut run = |times| world.run(&Op::Accessed(times)).map(|_| ());
        let at = Timestamp::from_nanos(1 << 62);
        let f = world_ino();
        assert_eq!(run(vec![(InodeNo(99), at)]), Ok(()), "gone meanwhile");
        assert_eq!(run(vec![(f, at), (f, at)]), Err(FsError::Invalid));
        let impossible = Timestamp {
            secs: 0,
            nanos: 1_000_000_000,
        };
        assert_eq!(run(vec![(f, impossible)]), Err(FsError::Invalid));
        let many = (1..=ACCESSES_MAX as u64 + 1).map(|ino| (InodeNo(ino), at));
        assert_eq!(run(many.collect()), Err(FsError::Invalid));
    }

    const fn world_ino() -> InodeNo {
        InodeNo(InodeNo::ROOT.0 + 1)
    }
}
