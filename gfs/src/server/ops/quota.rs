//! The extended attributes of a directory that limit its tree.

use crate::server::state::{Limits, MetaState};
use bytes::Bytes;
use consistency::InodeNo;
use consistency::wire::meta::{FsError, Name, QUOTA_BYTES, QUOTA_INODES};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

static BYTES: LazyLock<Name> = LazyLock::new(|| Name::new(QUOTA_BYTES).expect("a valid name"));
static INODES: LazyLock<Name> = LazyLock::new(|| Name::new(QUOTA_INODES).expect("a valid name"));

/// What a change of a limit comes to.
pub(super) struct Change {
    limits: Limits,
    members: Option<BTreeSet<InodeNo>>,
}

impl Change {
    /// Checks a change of an attribute that is a limit; `None`: it is removed.
    ///
    /// # Errors
    /// [`FsError::Invalid`] for a value that is no number, and those of [`MetaState::count_tree`].
    pub(super) fn resolve(
        state: &MetaState,
        ino: InodeNo,
        name: &Name,
        value: Option<&Bytes>,
    ) -> Result<Self, FsError> {
        let limit = match value {
            Some(value) => Some(parse(value).ok_or(FsError::Invalid)?),
            None => None,
        };
        let members = state.count_tree(ino)?;
        let mut limits = state.limits(ino);
        if *name == *BYTES {
            limits.bytes = limit;
        } else {
            limits.inodes = limit;
        }
        Ok(Self { limits, members })
    }

    pub(super) fn apply(self, state: &mut MetaState, ino: InodeNo) {
        state.set_limits(ino, self.limits, self.members);
    }
}

/// Returns the limits that the attributes of an inode say.
pub(crate) fn limits_in(xattrs: &BTreeMap<Name, Bytes>) -> Limits {
    let limit = |name: &Name| parse(xattrs.get(name)?);
    Limits {
        bytes: limit(&BYTES),
        inodes: limit(&INODES),
    }
}

/// Takes digits only: no sign, no blank, no unit.
fn parse(value: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(value).ok()?;
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::machine::StateMachine;
    use crate::server::ops::testing::{World, check, check_plan, check_stamps};
    use crate::server::state::{Body, Command, Reply};
    use consistency::wire::meta::StatFs;

    /// Limits of 3 inodes and of 8 KiB: two directories.
    const INODES: &str = "chattr user.glu.quota.inodes=3 d";
    const BYTES: &str = "chattr user.glu.quota.bytes=8192 d";
    const OFF: &str = "chattr-d user.glu.quota.inodes d";

    #[test]
    fn q3_no_inodes_beyond_the_limit() {
        let two = format!("mkdir d; {INODES}; touch d/f; touch d/g");
        for make in ["touch d/h", "mkdir d/h", "symlink x d/h", "mkfifo d/h"] {
            check(&two, make, "Quota");
        }
        check_plan(&two, "touch d/h", "Quota");
        check(&two, "open d/f", "d/ d/f d/g");
        check(&two, "touch h", "d/ d/f d/g h");
        check(&two, "mv d/f d/g", "d/ d/g !1");
        // An open file counts until it is gone.
        check(&format!("{two}; rm d/f"), "touch d/h", "Quota");
        check(
            &format!("{two}; rm d/f; reap d/f"),
            "touch d/h",
            "d/ d/g d/h",
        );
        check(
            &format!("{two}; chattr user.glu.quota.inodes=4 d"),
            "touch d/h",
            "d/ d/f d/g d/h",
        );
        // Less than there is: nothing goes, nothing comes.
        check(
            &format!("{two}; chattr user.glu.quota.inodes=1 d"),
            "touch d/h",
            "Quota",
        );
    }

    #[test]
    fn q3_directories_cost_a_block() {
        check(&format!("mkdir d; {BYTES}"), "mkdir d/e", "d/ d/e/");
        check(
            &format!("mkdir d; {BYTES}; mkdir d/e"),
            "mkdir d/f",
            "Quota",
        );
        check(
            &format!("mkdir d; {BYTES}; mkdir d/e"),
            "touch d/e/f",
            "d/ d/e/ d/e/f",
        );
        check(
            &format!("mkdir d; {BYTES}; mkdir d/e; rmdir d/e; reap d/e"),
            "mkdir d/f",
            "d/ d/f/",
        );
    }

    #[test]
    fn q2_no_name_crosses() {
        let world = format!("mkdir d; mkdir d/e; touch d/e/f; touch g; mkdir o; {BYTES}");
        for cross in [
            "mv d/e/f f",
            "mv g d/g",
            "mv d/e e",
            "mv o d/o",
            "ln g d/g",
            "ln d/e/f f",
        ] {
            check(&world, cross, "CrossDevice");
            check_plan(&world, cross, "CrossDevice");
        }
        check(&world, "swap d/e/f g", "CrossDevice");
        check(&world, "swap g d/e/f", "CrossDevice");
        check(&world, "mv d/e/f d/f", "d/ d/e/ d/f g o/");
        check(&world, "ln d/e/f d/f", "d/ d/e/ d/e/f*2 d/f*2 g o/");
        // The directory itself has its name outside.
        check(&world, "mv d o/d", "g o/ o/d/ o/d/e/ o/d/e/f");
        check(&world, "swap d o", "d/ g o/ o/e/ o/e/f");
        let two = format!("{world}; chattr user.glu.quota.bytes=9999 o");
        check(&two, "mv d o/d", "CrossDevice");
    }

    #[test]
    fn q2_trees_do_not_nest() {
        let inner = "mkdir d; mkdir d/e; chattr user.glu.quota.bytes=9999 d/e";
        check(inner, BYTES, "Busy");
        let outer = format!("mkdir d; mkdir d/e; {BYTES}");
        check(&outer, "chattr user.glu.quota.bytes=9999 d/e", "Busy");
        check("touch f; mkdir d; ln f d/f", BYTES, "CrossDevice");
        check("mkdir d; touch d/f; ln d/f d/g", BYTES, "d/ d/f*2 d/g*2");
    }

    #[test]
    fn values() {
        for (value, expected) in [
            ("0", "d/"),
            ("18446744073709551615", "d/"),
            ("18446744073709551616", "Invalid"),
            ("", "Invalid"),
            ("-1", "Invalid"),
            ("+1", "Invalid"),
            ("1k", "Invalid"),
        ] {
            let set = format!("chattr user.glu.quota.bytes={value} d");
            check("mkdir d", &set, expected);
        }
        check("touch f", "chattr user.glu.quota.bytes=1 f", "NotDir");
        check("mkdir d", OFF, "NoData");
        check_stamps("mkdir d; touch d/f", INODES, "d:c");
    }

    fn room(world: &World, path: &str) -> StatFs {
        let whole = StatFs {
            bytes_total: 1 << 40,
            bytes_free: 1 << 30,
            inodes: 99,
            inodes_free: None,
        };
        crate::server::ops::within_quota(&world.state, world.ino(path), whole)
    }

    #[test]
    fn statfs_within_a_tree() {
        let mut world = World::new("mkdir d; mkdir d/e; touch d/f; mkdir o");
        let show = |world: &World, path: &str| {
            let room = room(world, path);
            (
                room.bytes_total,
                room.bytes_free,
                room.inodes,
                room.inodes_free,
            )
        };
        let whole = (1 << 40, 1 << 30, 99, None);
        assert_eq!(show(&world, "d/f"), whole);
        world.setup("chattr user.glu.quota.bytes=10000 d");
        for path in ["d", "d/e", "d/f"] {
            assert_eq!(show(&world, path), (10_000, 1808, 3, None), "{path}");
        }
        assert_eq!(show(&world, "o"), whole);
        world.setup("chattr user.glu.quota.inodes=7 d");
        assert_eq!(show(&world, "d"), (10_000, 1808, 3, Some(4)));
        world.setup("chattr-d user.glu.quota.bytes d");
        assert_eq!(show(&world, "d"), (1 << 40, 1 << 30, 3, Some(4)));
        // More than there is limits nothing.
        world.setup(&format!(
            "chattr user.glu.quota.bytes={} d; {OFF}",
            2_u64 << 40
        ));
        assert_eq!(show(&world, "d"), (1 << 40, 1 << 30, 3, None));
        world.setup("chattr-d user.glu.quota.bytes d");
        assert_eq!(show(&world, "d"), whole);
    }

    #[test]
    fn survives_a_snapshot_and_its_directory() {
        let mut world = World::new(&format!(
            "mkdir d; touch d/f; {INODES}; rm d/f; rmdir d; reap d"
        ));
        // The file may still be open.
        assert_eq!(room(&world, "d/f").inodes, 1);
        let mut restored = MetaState::restore(&world.state.snapshot()).expect("restores");
        assert_eq!(restored, world.state);
        let reap = Command {
            now: restored.now(),
            body: Body::Reap(vec![world.ino("d/f")]),
        };
        assert_eq!(restored.apply(&reap), Reply::Dead(Vec::new()));
        assert_eq!(restored.check(), Ok(()));
        world.setup("reap d/f");
        assert_eq!(restored.quotas, crate::server::state::Quotas::default());
    }
}
