//! Messages of the process service. Variants are part of the protocol: append, never reorder.
//!
//! All pids in them are cluster pids; the texts of `stat` and `status` have been rewritten to them by the node.

#[cfg(test)]
mod golden;

use crate::pids::ClusterPid;
use crate::procfs::BIRTH_TICKS_BITS;
use bytes::Bytes;
use consistency::wire::node::NodeLoad;
use serde::{Deserialize, Serialize};

/// Upper limit of the bytes in one page of a snapshot, with room for what is around them.
pub const PAGE_BYTES_MAX: usize = 4 << 20;
/// Upper limit of a command line in a snapshot; a longer one is read when somebody opens it.
pub const SNAPSHOT_CMDLINE_BYTES_MAX: usize = 16 << 10;
/// Upper limit of one file of a process; what is longer is cut off.
pub const FILE_BYTES_MAX: usize = 4 << 20;

/// Tells the lives of a pid apart: the time the process started, in ticks since its node booted, and in the upper 20
/// bits a hash of that boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Birth(pub u64);

impl Birth {
    /// Returns the hash of the boot.
    pub(crate) const fn boot(self) -> u64 {
        self.0 >> BIRTH_TICKS_BITS
    }
}

/// A process, as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its number.
    pub pid: ClusterPid,
    /// Which process of that number.
    pub birth: Birth,
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Its node hides it (hidepid) from users other than its own, but for this group.
    pub hidden: Option<u32>,
}

impl Identity {
    /// Returns whether somebody may know of it.
    #[must_use]
    pub fn is_shown_to(&self, who: Who) -> bool {
        let own = who.uid == self.uid && who.gid == self.gid;
        self.hidden
            .is_none_or(|group| who.uid == 0 || who.gid == group || own)
    }
}

/// Who wants something done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Who {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
}

/// A process and what readers of the whole table want to know of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Who it is.
    pub identity: Identity,
    /// Its `stat`.
    pub stat: Bytes,
    /// Its `status`.
    pub status: Bytes,
    /// Its `cmdline`; `None` above [`SNAPSHOT_CMDLINE_BYTES_MAX`], and when its memory could not be read at once.
    pub cmdline: Option<Bytes>,
}

/// A file, link or directory of a process, or of a thread of it, that its node reads from procfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ProcFile {
    /// `stat`
    Stat,
    /// `status`
    Status,
    /// `cmdline`
    Cmdline,
    /// `statm`
    Statm,
    /// `environ`
    Environ,
    /// `io`
    Io,
    /// `limits`
    Limits,
    /// `wchan`
    Wchan,
    /// `cgroup`
    Cgroup,
    /// `maps`
    Maps,
    /// `smaps`
    Smaps,
    /// `smaps_rollup`
    SmapsRollup,
    /// `mounts`
    Mounts,
    /// `mountinfo`
    Mountinfo,
    /// `schedstat`
    Schedstat,
    /// `oom_score`
    OomScore,
    /// `oom_score_adj`
    OomScoreAdj,
    /// `loginuid`
    Loginuid,
    /// `sessionid`
    Sessionid,
    /// Target of `exe`
    Exe,
    /// Target of `cwd`
    Cwd,
    /// Target of `root`
    Root,
    /// Target of a link in `ns`
    Namespace(Namespace),
    /// Target of a link in `fd`
    Fd(u32),
    /// A file in `fdinfo`
    FdInfo(u32),
    /// Names in `fd`, a line each
    Fds,
    /// Names in `task`, a line each
    Tasks,
    /// Whether it must stay where it is: 0 or 1
    Lock,
}

/// A link in `ns`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Namespace {
    /// `cgroup`
    Cgroup,
    /// `ipc`
    Ipc,
    /// `mnt`
    Mnt,
    /// `net`
    Net,
    /// `pid`
    Pid,
    /// `pid_for_children`
    PidForChildren,
    /// `time`
    Time,
    /// `time_for_children`
    TimeForChildren,
    /// `user`
    User,
    /// `uts`
    Uts,
}

/// A file of procfs about the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MachineFile {
    /// `stat`
    Stat,
    /// `loadavg`
    Loadavg,
    /// `meminfo`
    Meminfo,
    /// `uptime`
    Uptime,
    /// `cpuinfo`
    Cpuinfo,
    /// `vmstat`
    Vmstat,
    /// `diskstats`
    Diskstats,
    /// `net/dev`
    NetDev,
    /// `version`
    Version,
    /// `filesystems`
    Filesystems,
    /// `swaps`
    Swaps,
    /// `cmdline`
    Cmdline,
    /// `sys/kernel/osrelease`
    Osrelease,
    /// `sys/kernel/ostype`
    Ostype,
    /// `sys/kernel/version`
    KernelVersion,
    /// `sys/kernel/hostname`
    Hostname,
    /// `sys/kernel/pid_max`
    PidMax,
    /// `sys/kernel/ns_last_pid`
    LastPid,
    /// `sys/kernel/cap_last_cap`
    LastCap,
    /// `sys/kernel/random/boot_id`
    BootId,
}

/// A file of one of all processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// Whose.
    pub pid: ClusterPid,
    /// Which process of that number.
    pub birth: Birth,
    /// The content, or why there is none.
    pub content: Result<Bytes, i32>,
}

/// A request to a node about its processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcRequest {
    /// All processes in ascending order; answered by [`ProcReply::Snapshot`].
    Snapshot {
        /// `None`: the first page, as of now. Else the page behind that process, out of the last snapshot made.
        after: Option<ClusterPid>,
    },
    /// Who has this pid; answered by [`ProcReply::Identity`].
    Identify(ClusterPid),
    /// Content of a file; answered by [`ProcReply::Content`].
    Read {
        /// Whose.
        pid: ClusterPid,
        /// Which process of that number.
        birth: Birth,
        /// Which thread of it, if not the process itself.
        thread: Option<ClusterPid>,
        /// Which file.
        file: ProcFile,
        /// For whom.
        who: Who,
    },
    /// Load of the node; answered by [`ProcReply::Load`].
    Load,
    /// Send a signal to a process; answered by [`ProcReply::Done`].
    Signal {
        /// To whom.
        pid: ClusterPid,
        /// Which process of that number.
        birth: Birth,
        /// Which signal; 0 only asks.
        number: i32,
        /// For whom.
        who: Who,
    },
    /// Send a signal to the process group with this number; answered by [`ProcReply::Done`].
    SignalGroup {
        /// The process that leads it, or has.
        group: ClusterPid,
        /// Which process of that number; `None`: its leader has ended.
        birth: Option<Birth>,
        /// Which signal; 0 only asks.
        number: i32,
        /// For whom.
        who: Who,
    },
    /// A file of all processes, in ascending order of them; answered by [`ProcReply::Column`].
    Column {
        /// Which file.
        file: ProcFile,
        /// For whom.
        who: Who,
        /// `None`: from the first process on. Else those behind that process.
        after: Option<ClusterPid>,
    },
    /// How a process has ended, when it has; answered by [`ProcReply::Content`], with EAGAIN if it still lives after
    /// [`crate::WAIT_MAX`].
    Wait {
        /// Which one.
        pid: ClusterPid,
        /// Which process of that number.
        birth: Birth,
        /// For whom.
        who: Who,
    },
    /// A file about the machine; answered by [`ProcReply::Machine`].
    Machine(MachineFile),
    /// Keep a process where it is, or not; answered by [`ProcReply::Done`].
    Lock {
        /// Which one.
        pid: ClusterPid,
        /// Which process of that number.
        birth: Birth,
        /// Whether.
        lock: bool,
        /// For whom.
        who: Who,
    },
    /// What the daemon counts; answered by [`ProcReply::Machine`].
    Metrics,
}

/// Answer to a [`ProcRequest`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ProcReply {
    /// Snapshot.
    Snapshot {
        /// Processes in ascending order, at least one if there is one.
        records: Vec<Record>,
        /// Another page follows.
        more: bool,
    },
    /// Identify; `None`: nobody.
    Identity(Option<Identity>),
    /// Read, or the errno that says why not: ESRCH if that process is gone.
    Content(Result<Bytes, i32>),
    /// Load.
    Load(NodeLoad),
    /// The node could not read its own procfs; its log says why.
    Failed,
    /// What was asked for has been done, or not: the errno says why.
    Done(Result<(), i32>),
    /// Column.
    Column {
        /// In ascending order, at least one if there is one. What cannot be read at once is left out.
        cells: Vec<Cell>,
        /// Those behind this process follow in another page.
        more: Option<ClusterPid>,
    },
    /// Machine.
    Machine(Bytes),
}

#[cfg(test)]
mod tests {
    use super::*;
    use consistency::wire::decode;

    #[test]
    fn what_is_no_pid_does_not_decode() {
        assert!(decode::<ProcRequest>(&[1, 2]).is_err());
        assert!(decode::<ProcRequest>(&[1, 1]).is_err());
    }
}
