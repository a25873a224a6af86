//! The processes of the cluster as this node's `/cluster/proc` shows them, for the tools.
//!
//! A process is held by its directory: every file in it is of the process that was looked up, never of a later one
//! that got the same number.

mod moved;
mod stat;

pub(crate) use moved::Moved;
pub(crate) use stat::Stat;

use consistency::NodeId;
use gproc::pids::ClusterPid;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstatat};
use nix::unistd::{Gid, Group, SysconfVar, Uid, User, sysconf};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Where the tree is unless [`ROOT_ENV`] says otherwise.
const ROOT: &str = "/cluster/proc";
/// Names another place, for clusters with another mount point.
pub(crate) const ROOT_ENV: &str = "GLU_PROC";
/// More than any file of a process that is read here.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Returns where the tree is.
pub(crate) fn root() -> PathBuf {
    std::env::var_os(ROOT_ENV).map_or_else(|| ROOT.into(), PathBuf::from)
}

/// There is no table of processes.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}: {error}: is the node's daemon running? (another place is named with {ROOT_ENV})", root.display())]
pub(crate) struct NoTable {
    root: PathBuf,
    error: io::Error,
}

/// A process that has been looked up.
#[derive(Debug)]
pub(crate) struct Process {
    dir: OwnedFd,
    pid: ClusterPid,
}

impl Process {
    /// Looks a process up.
    ///
    /// # Errors
    /// `ESRCH` if there is none.
    pub(crate) fn open(root: &Path, pid: ClusterPid) -> Result<Self, Errno> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let path = root.join(pid.to_string());
        let dir = openat(AT_FDCWD, &path, flags, Mode::empty()).map_err(ended)?;
        Ok(Self { dir, pid })
    }

    /// Returns its number.
    pub(crate) fn pid(&self) -> ClusterPid {
        self.pid
    }

    /// Reads one of its files.
    ///
    /// # Errors
    /// `ESRCH` if it has ended.
    pub(crate) fn read(&self, name: &str) -> Result<Vec<u8>, Errno> {
        let file = self.file(name, OFlag::O_RDONLY)?;
        let mut content = Vec::new();
        let read = file.take(FILE_BYTES_MAX).read_to_end(&mut content);
        read.map_err(|error| ended(errno(&error)))?;
        Ok(content)
    }

    /// Writes an order to one of its files.
    ///
    /// # Errors
    /// `ESRCH` if it has ended; else why it was not carried out.
    pub(crate) fn order(&self, name: &str, order: &str) -> Result<(), Errno> {
        let mut file = self.file(name, OFlag::O_WRONLY)?;
        // One write is one order.
        let written = file.write(order.as_bytes());
        written.map(drop).map_err(|error| ended(errno(&error)))
    }

    /// Returns a descriptor that can be read, as poll(2) says, when it has ended.
    ///
    /// # Errors
    /// `ESRCH` if it has ended.
    pub(crate) fn watch(&self) -> Result<OwnedFd, Errno> {
        self.file("wait", OFlag::O_RDONLY).map(OwnedFd::from)
    }

    /// Returns whether an inode of the tree is its directory, or the descriptor to watch it by.
    ///
    /// # Errors
    /// `ESRCH` if it has ended.
    pub(crate) fn is(&self, inode: u64) -> Result<bool, Errno> {
        let own = fstatat(&self.dir, "", AtFlags::AT_EMPTY_PATH).map_err(ended)?;
        let wait = fstatat(&self.dir, "wait", AtFlags::empty()).map_err(ended)?;
        Ok([own.st_ino, wait.st_ino].contains(&inode))
    }

    /// Returns the node it runs on.
    pub(crate) fn node(&self) -> Result<NodeId, Errno> {
        let text = self.read("where")?;
        number(&text).map(NodeId).ok_or(Errno::EPROTO)
    }

    fn file(&self, name: &str, flags: OFlag) -> Result<File, Errno> {
        let flags = flags | OFlag::O_CLOEXEC;
        let file = openat(self.dir.as_fd(), name, flags, Mode::empty());
        file.map(File::from).map_err(ended)
    }
}

/// Looks all processes up; those that end meanwhile are left out, and what stands for those of a node that does not
/// answer ([`warn_of_silent`] tells of it).
pub(crate) fn all(root: &Path) -> Result<Vec<Process>, NoTable> {
    let no_table = |error| NoTable {
        root: root.to_owned(),
        error,
    };
    let mut pids = Vec::new();
    for entry in std::fs::read_dir(root).map_err(no_table)? {
        let name = entry.map_err(no_table)?.file_name();
        pids.extend(ClusterPid::parse(name.as_encoded_bytes()));
    }
    pids.sort_unstable();
    let is_stand_in = |process: &Process| {
        process.pid.may_be_stand_in() && process.node() == Err(Errno::EHOSTDOWN)
    };
    let open = |pid| {
        let process = Process::open(root, pid).ok();
        process.filter(|process| !is_stand_in(process))
    };
    Ok(pids.into_iter().filter_map(open).collect())
}

/// Returns the nodes of the cluster.
///
/// # Errors
/// There is no table.
pub(crate) fn nodes(root: &Path) -> Result<BTreeSet<NodeId>, NoTable> {
    let dir = root.join("cluster");
    let no_table = |error| NoTable {
        root: dir.clone(),
        error,
    };
    let mut nodes = BTreeSet::new();
    for entry in std::fs::read_dir(&dir).map_err(no_table)? {
        let name = entry.map_err(no_table)?.file_name();
        let digits = name.as_encoded_bytes().strip_prefix(b"node");
        nodes.extend(digits.and_then(number).map(NodeId));
    }
    Ok(nodes)
}

/// Says on standard error which nodes' processes are not among these: each node has some, so it did not answer in time.
pub(crate) fn warn_of_silent(program: &str, root: &Path, processes: &[Process]) {
    let heard: BTreeSet<NodeId> = processes
        .iter()
        .map(|process| process.pid().home())
        .collect();
    let nodes = nodes(root).unwrap_or_default();
    for silent in nodes.difference(&heard) {
        eprintln!(
            "{program}: node {silent} did not answer, its processes are left out; glustat tells why"
        );
    }
}

/// Sends a signal to a process group, which may have no leader any more.
///
/// # Errors
/// `ESRCH` if there is none; else why it was not sent.
pub(crate) fn note_group(root: &Path, group: ClusterPid, number: i32) -> Result<(), Errno> {
    let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let file = openat(AT_FDCWD, &root.join("cluster/notepg"), flags, Mode::empty());
    let mut file = file.map(File::from).map_err(ended)?;
    let written = file.write(format!("{group} {number}").as_bytes());
    written.map(drop).map_err(|error| ended(errno(&error)))
}

/// Reads the number in a file of one value.
pub(crate) fn number<N: std::str::FromStr>(text: &[u8]) -> Option<N> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

/// Makes text fit for one line of a terminal.
pub(crate) fn printable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.chars()
        .map(|of| if of.is_control() { '?' } else { of })
        .collect()
}

/// Returns the effective user in `status`.
pub(crate) fn effective_user(status: &[u8]) -> Option<u32> {
    let mut lines = status.split(|&byte| byte == b'\n');
    let users = lines.find_map(|line| line.strip_prefix(b"Uid:"))?;
    let users = std::str::from_utf8(users).ok()?;
    users.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Returns the name of a user, or the number if there is none.
pub(crate) fn user_name(uid: u32) -> String {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    user.map_or_else(|| uid.to_string(), |user| user.name)
}

/// Returns the name of a group, or the number if there is none.
pub(crate) fn group_name(gid: u32) -> String {
    let group = Group::from_gid(Gid::from_raw(gid)).ok().flatten();
    group.map_or_else(|| gid.to_string(), |group| group.name)
}

/// Returns `cmdline` as it is shown; kernel threads and zombies have none.
pub(crate) fn command_line(line: &[u8], name: &str) -> String {
    let args: Vec<String> = line
        .split(|&byte| byte == 0)
        .filter(|word| !word.is_empty())
        .map(printable)
        .collect();
    if args.is_empty() {
        format!("[{name}]")
    } else {
        args.join(" ")
    }
}

/// Returns a constant of this system.
pub(crate) fn constant(of: SysconfVar, usual: u64) -> u64 {
    let known = sysconf(of).ok().flatten();
    known.map_or(usual, |known| known.unsigned_abs().max(1))
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

/// What has gone has ended, wherever that was noticed.
fn ended(errno: Errno) -> Errno {
    match errno {
        Errno::ENOENT | Errno::ESTALE => Errno::ESRCH,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_of_a_tree() {
        let root = tempfile::tempdir().expect("a directory");
        for name in ["65536", "131072", "cluster", "self", "1"] {
            std::fs::create_dir(root.path().join(name)).expect("made");
        }
        std::fs::write(root.path().join("131072/where"), "2\n").expect("written");
        let all = all(root.path()).expect("a table");
        let pids: Vec<u32> = all.iter().map(|process| process.pid().number()).collect();
        assert_eq!(pids, [65_536, 131_072]);
        assert_eq!(all[1].node(), Ok(NodeId(2)));
        assert_eq!(all[0].node(), Err(Errno::ESRCH));
        let gone = ClusterPid::parse(b"65537").expect("a pid");
        assert_eq!(Process::open(root.path(), gone).err(), Some(Errno::ESRCH));
    }

    #[test]
    fn the_effective_user_counts() {
        let status = b"Name:\tx\nUid:\t1000\t33\t1000\t33\nGid:\t1\t1\t1\t1\n";
        assert_eq!(effective_user(status), Some(33));
        assert_eq!(effective_user(b"Name:\tx\n"), None);
    }

    #[test]
    fn no_tree_is_one_line() {
        let error = all(Path::new("/nowhere")).expect_err("is not there");
        let text = error.to_string();
        assert!(text.starts_with("cannot read /nowhere") && !text.contains('\n'));
    }

    #[test]
    fn text_for_one_line() {
        assert_eq!(printable(b"a\nb\x1b[0m\xff"), "a?b?[0m\u{fffd}");
    }
}
