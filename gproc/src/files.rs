//! The files of a process: where procfs has them, and who may read them.

use crate::text::Credentials;
use crate::wire::{MachineFile, Namespace, ProcFile, Who};
use std::borrow::Cow;

/// How procfs is asked for a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// By reading it.
    Text,
    /// By reading where it leads.
    Link,
    /// By listing it.
    Names,
    /// Not at all: the agent keeps it.
    Kept,
}

/// Who may read a file. The agent has all rights, its callers have not: what the kernel would ask of them is asked of
/// this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    Anybody,
    /// Who may trace the process for reading (PTRACE_MODE_READ).
    Tracer,
    /// Anybody, but only who may trace the process sees more than "0".
    TracerElseZero,
}

impl ProcFile {
    /// Returns the path below the process's directory.
    pub(crate) fn path(self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Stat => "stat",
            Self::Status => "status",
            Self::Cmdline => "cmdline",
            Self::Statm => "statm",
            Self::Environ => "environ",
            Self::Io => "io",
            Self::Limits => "limits",
            Self::Wchan => "wchan",
            Self::Cgroup => "cgroup",
            Self::Maps => "maps",
            Self::Smaps => "smaps",
            Self::SmapsRollup => "smaps_rollup",
            Self::Mounts => "mounts",
            Self::Mountinfo => "mountinfo",
            Self::Schedstat => "schedstat",
            Self::OomScore => "oom_score",
            Self::OomScoreAdj => "oom_score_adj",
            Self::Loginuid => "loginuid",
            Self::Sessionid => "sessionid",
            Self::Exe => "exe",
            Self::Cwd => "cwd",
            Self::Root => "root",
            Self::Namespace(namespace) => namespace.path(),
            Self::Fds => "fd",
            Self::Tasks => "task",
            Self::Lock => "lock",
            Self::Fd(number) => return Cow::Owned(format!("fd/{number}")),
            Self::FdInfo(number) => return Cow::Owned(format!("fdinfo/{number}")),
        })
    }

    pub(crate) const fn form(self) -> Form {
        match self {
            Self::Exe | Self::Cwd | Self::Root | Self::Namespace(_) | Self::Fd(_) => Form::Link,
            Self::Fds | Self::Tasks => Form::Names,
            Self::Lock => Form::Kept,
            _ => Form::Text,
        }
    }

    pub(crate) const fn rule(self) -> Rule {
        match self {
            Self::Stat
            | Self::Status
            | Self::Cmdline
            | Self::Statm
            | Self::Limits
            | Self::Cgroup
            | Self::Mounts
            | Self::Mountinfo
            | Self::Schedstat
            | Self::OomScore
            | Self::OomScoreAdj
            | Self::Loginuid
            | Self::Sessionid
            | Self::Tasks
            | Self::Lock => Rule::Anybody,
            Self::Wchan => Rule::TracerElseZero,
            Self::Environ
            | Self::Io
            | Self::Maps
            | Self::Smaps
            | Self::SmapsRollup
            | Self::Exe
            | Self::Cwd
            | Self::Root
            | Self::Namespace(_)
            | Self::Fd(_)
            | Self::FdInfo(_)
            | Self::Fds => Rule::Tracer,
        }
    }

    /// Returns whether it is memory of the process, which may have to be waited for.
    pub(crate) const fn is_memory(self) -> bool {
        matches!(self, Self::Cmdline | Self::Environ)
    }

    /// Returns whether it may be read of all processes at once: nothing in it waits for long.
    pub(crate) const fn is_quick(self) -> bool {
        !matches!(
            self,
            Self::Maps
                | Self::Smaps
                | Self::SmapsRollup
                | Self::Mounts
                | Self::Mountinfo
                | Self::Fd(_)
                | Self::FdInfo(_)
        )
    }
}

impl Namespace {
    const fn path(self) -> &'static str {
        match self {
            Self::Cgroup => "ns/cgroup",
            Self::Ipc => "ns/ipc",
            Self::Mnt => "ns/mnt",
            Self::Net => "ns/net",
            Self::Pid => "ns/pid",
            Self::PidForChildren => "ns/pid_for_children",
            Self::Time => "ns/time",
            Self::TimeForChildren => "ns/time_for_children",
            Self::User => "ns/user",
            Self::Uts => "ns/uts",
        }
    }
}

impl MachineFile {
    /// Returns the path in procfs.
    pub(crate) const fn path(self) -> &'static str {
        match self {
            Self::Stat => "stat",
            Self::Loadavg => "loadavg",
            Self::Meminfo => "meminfo",
            Self::Uptime => "uptime",
            Self::Cpuinfo => "cpuinfo",
            Self::Vmstat => "vmstat",
            Self::Diskstats => "diskstats",
            Self::NetDev => "net/dev",
            Self::Version => "version",
            Self::Filesystems => "filesystems",
            Self::Swaps => "swaps",
            Self::Cmdline => "cmdline",
            Self::Osrelease => "sys/kernel/osrelease",
            Self::Ostype => "sys/kernel/ostype",
            Self::KernelVersion => "sys/kernel/version",
            Self::Hostname => "sys/kernel/hostname",
            Self::PidMax => "sys/kernel/pid_max",
            Self::LastPid => "sys/kernel/ns_last_pid",
            Self::LastCap => "sys/kernel/cap_last_cap",
            Self::BootId => "sys/kernel/random/boot_id",
        }
    }
}

/// Returns whether one may trace a process for reading. `shielded`: its memory may not be dumped, as after the start
/// of a setuid program, so that procfs gives its files to root. Of other callers than root no capabilities are known,
/// so they may not trace what has any.
pub(crate) fn may_trace(who: Who, target: &Credentials, shielded: bool) -> bool {
    let Credentials {
        users,
        groups,
        capable,
    } = target;
    who.uid == 0
        || ([users.real, users.effective, users.saved] == [who.uid; 3]
            && [groups.real, groups.effective, groups.saved] == [who.gid; 3]
            && !capable
            && !shielded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Ids;

    const fn all(id: u32) -> Ids {
        Ids {
            real: id,
            effective: id,
            saved: id,
        }
    }

    #[test]
    fn who_may_trace() {
        let who = Who { uid: 5, gid: 6 };
        let plain = Credentials {
            users: all(5),
            groups: all(6),
            capable: false,
        };
        let root = Who { uid: 0, gid: 0 };
        assert!(may_trace(who, &plain, false));
        let change = |change: fn(&mut Credentials)| {
            let mut changed = plain;
            change(&mut changed);
            changed
        };
        for other in [
            change(|it| it.users.real = 7),
            change(|it| it.users.effective = 7),
            change(|it| it.users.saved = 7),
            change(|it| it.groups.real = 7),
            change(|it| it.groups.effective = 7),
            change(|it| it.groups.saved = 7),
            change(|it| it.capable = true),
        ] {
            assert!(!may_trace(who, &other, false), "{other:?}");
            assert!(may_trace(root, &other, true));
        }
        assert!(!may_trace(who, &plain, true));
    }
}
