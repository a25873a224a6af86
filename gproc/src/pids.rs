//! Cluster pids: one number for every process of the cluster.
//!
//! Node `k` owns the kernel pids `[k * 65,536, (k + 1) * 65,536)` of its pid namespace (see [`crate::keeper`]); a
//! process with such a pid has it as its cluster pid too, so that `getpid`, `ps` and the cluster agree. There is
//! room for 63 such ranges below the kernel's limit of 4,194,304.
//!
//! A process with any other pid (older than the daemon, such as pid 1, or overrun) has a *synthetic* cluster pid
//! above that limit: `node * 4,194,304 + pid`. It is unique, can be taken apart again, and stays below 2^31 up to
//! node 511, the last one whose processes the process tree shows.

use consistency::NodeId;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;

/// How many pids one node owns.
pub const RANGE_PIDS: i32 = 1 << RANGE_BITS;
/// The largest `pid_max` of a kernel; all its pids are below.
pub const KERNEL_PID_MAX: i32 = 1 << KERNEL_BITS;
/// The first synthetic cluster pid.
pub const SYNTHETIC_BASE: i32 = KERNEL_PID_MAX;
/// The last node whose processes have cluster pids.
pub const NODE_MAX: NodeId = NodeId(511);

const RANGE_BITS: u32 = 16;
const KERNEL_BITS: u32 = 22;

// The largest synthetic number is the largest pid_t.
const _: () = assert!((NODE_MAX.0 as i64 + 1) << KERNEL_BITS == 1 << 31);

/// The number of a process in the cluster; names its node as well.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "i32", into = "i32")]
pub struct ClusterPid(i32);

/// A number that is no cluster pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no cluster pid")]
pub struct NoClusterPid(i32);

impl ClusterPid {
    /// Returns the cluster pid of the process that has pid `kernel` in the namespace of `node`. There is none for
    /// what is no pid, and on nodes above [`NODE_MAX`].
    #[must_use]
    pub fn of(node: NodeId, kernel: i32) -> Option<Self> {
        if !(1..KERNEL_PID_MAX).contains(&kernel) || !(NodeId(1)..=NODE_MAX).contains(&node) {
            None
        } else if range(node).is_some_and(|range| range.contains(&kernel)) {
            Some(Self(kernel))
        } else {
            Some(Self((i32::from(node.0) << KERNEL_BITS) | kernel))
        }
    }

    /// Returns the number that stands for the processes of `node` while nothing is known of them: that of the last pid
    /// that a kernel can give, which is in the guard of node 63 and behind the range of all others.
    #[must_use]
    pub fn stand_in(node: NodeId) -> Option<Self> {
        Self::of(node, KERNEL_PID_MAX - 1)
    }

    /// Returns whether this is the number of a stand-in; a process may have it, too.
    #[must_use]
    pub fn may_be_stand_in(self) -> bool {
        Self::stand_in(self.home()) == Some(self)
    }

    /// Reads a name of the process tree: decimal digits without leading zeros.
    #[must_use]
    pub fn parse(name: &[u8]) -> Option<Self> {
        let digits = name.first()? != &b'0' && name.iter().all(u8::is_ascii_digit);
        let number = digits.then(|| std::str::from_utf8(name).ok())??;
        Self::try_from(number.parse::<i32>().ok()?).ok()
    }

    /// Returns the node that gave the process its pid.
    #[must_use]
    pub fn home(self) -> NodeId {
        let bits = if self.0 < SYNTHETIC_BASE {
            RANGE_BITS
        } else {
            KERNEL_BITS
        };
        NodeId(u16::try_from(self.0 >> bits).expect("a node number is below 512"))
    }

    /// Returns the pid of the process in the namespace of its [`Self::home`].
    #[must_use]
    pub const fn kernel(self) -> i32 {
        if self.0 < SYNTHETIC_BASE {
            self.0
        } else {
            self.0 & (KERNEL_PID_MAX - 1)
        }
    }

    /// Returns the number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0.unsigned_abs()
    }
}

impl TryFrom<i32> for ClusterPid {
    type Error = NoClusterPid;

    fn try_from(number: i32) -> Result<Self, NoClusterPid> {
        let pid = Self(number);
        // The way there and back also refuses a synthetic number for a pid that is shown as it is.
        if number >= RANGE_PIDS && Self::of(pid.home(), pid.kernel()) == Some(pid) {
            Ok(pid)
        } else {
            Err(NoClusterPid(number))
        }
    }
}

impl From<ClusterPid> for i32 {
    fn from(pid: ClusterPid) -> Self {
        pid.0
    }
}

impl fmt::Display for ClusterPid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ClusterPid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p{}", self.0)
    }
}

/// Returns the kernel pids that a node owns; nodes above 63 own none.
#[must_use]
pub fn range(node: NodeId) -> Option<Range<i32>> {
    let start = i32::from(node.0) << RANGE_BITS;
    (RANGE_PIDS..KERNEL_PID_MAX)
        .contains(&start)
        .then(|| start..start + RANGE_PIDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(node: u16, kernel: i32, expected: Option<i32>) {
        let pid = ClusterPid::of(NodeId(node), kernel);
        assert_eq!(pid.map(i32::from), expected);
        if let Some(pid) = pid {
            assert_eq!((pid.home(), pid.kernel()), (NodeId(node), kernel));
            assert_eq!(ClusterPid::try_from(i32::from(pid)), Ok(pid));
            assert_eq!(ClusterPid::parse(pid.to_string().as_bytes()), Some(pid));
        }
    }

    #[test]
    fn pids_of_the_own_range_stay_and_others_are_told_apart() {
        check(1, 65_536, Some(65_536));
        check(1, 131_071, Some(131_071));
        check(1, 131_072, Some(4_194_304 + 131_072));
        check(1, 1, Some(4_194_305));
        check(2, 1, Some(8_388_609));
        check(2, 70_000, Some(8_388_608 + 70_000));
        check(63, 4_194_303, Some(4_194_303));
        check(64, 4_194_303, Some(64 * 4_194_304 + 4_194_303));
        check(511, 4_194_303, Some(i32::MAX));
        for (node, kernel) in [(0, 1), (512, 1), (1, 0), (1, -1), (1, 4_194_304)] {
            check(node, kernel, None);
        }
    }

    #[test]
    fn other_numbers_and_spellings_are_refused() {
        for number in [-1, 0, 1, 65_535, 4_194_304, 4_194_304 + 65_536, i32::MIN] {
            assert!(ClusterPid::try_from(number).is_err(), "{number}");
        }
        for name in [
            "",
            "0",
            "065536",
            "+65536",
            "65536 ",
            "4294967296",
            "x",
            "1",
        ] {
            assert_eq!(ClusterPid::parse(name.as_bytes()), None, "{name:?}");
        }
    }

    #[test]
    fn ranges_do_not_meet() {
        assert_eq!(range(NodeId(1)), Some(65_536..131_072));
        assert_eq!(range(NodeId(63)), Some(4_128_768..4_194_304));
        assert_eq!(range(NodeId(0)), None);
        assert_eq!(range(NodeId(64)), None);
        assert_eq!(range(NodeId(u16::MAX)), None);
    }
}
