//! The pipes of a job to others, and what ties it to its node: found before anything is done to it.

use super::super::group::Group;
use bytes::{Buf, Bytes};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;

/// The pipes of a job whose other ends others have.
#[derive(Debug, Default)]
pub(super) struct Pipes {
    /// Number, and an own opening of it.
    pub(super) input: Option<(u64, File)>,
    /// `None`: nobody reads it any more.
    pub(super) outs: Vec<(u64, Option<File>)>,
}

/// Writes some of what waits to a pipe, and returns how much; waits for ever if nothing does. Cancel-safe.
pub(super) async fn write_some(
    pipe: &mut pipe::Sender,
    waiting: &mut VecDeque<Bytes>,
) -> io::Result<u32> {
    let Some(first) = waiting.front_mut() else {
        return std::future::pending().await;
    };
    let len = pipe.write(first).await?;
    first.advance(len);
    if first.is_empty() {
        waiting.pop_front();
    }
    Ok(u32::try_from(len).expect("pieces fit a frame"))
}

/// How a job holds a pipe.
#[derive(Clone, Debug, Default)]
struct Held {
    read: bool,
    write: bool,
    path: PathBuf,
}

/// Finds the pipes of a frozen job.
pub(super) fn of(group: &Group, pid: i32) -> io::Result<Pipes> {
    let mut pipes = Pipes::default();
    for (inode, held) in held(group, pid)? {
        match (held.read, held.write) {
            (true, false) if pipes.input.is_some() => {
                return Err(io::Error::other("it reads more than one pipe of others"));
            }
            (true, false) => {
                let mut options = File::options();
                let options = options.read(true).custom_flags(libc::O_NONBLOCK);
                pipes.input = Some((inode, options.open(held.path)?));
            }
            (false, true) => {
                let mut options = File::options();
                let options = options.write(true).custom_flags(libc::O_NONBLOCK);
                let open = match options.open(held.path) {
                    Err(error) if error.raw_os_error() == Some(libc::ENXIO) => None,
                    open => Some(open?),
                };
                pipes.outs.push((inode, open));
            }
            _ => {}
        }
    }
    if pipes.outs.len() > 2 {
        return Err(io::Error::other("it writes more than two pipes of others"));
    }
    Ok(pipes)
}

fn held(group: &Group, pid: i32) -> io::Result<BTreeMap<u64, Held>> {
    let mut all = BTreeMap::<u64, Held>::new();
    for pid in members(group, pid)? {
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
            let path = entry?.path();
            let target = fs::read_link(&path)?;
            let target = target.to_string_lossy();
            let inode = target
                .strip_prefix("pipe:[")
                .and_then(|rest| rest.strip_suffix(']'));
            let Some(inode) = inode.and_then(|inode| inode.parse().ok()) else {
                continue;
            };
            let held = all.entry(inode).or_default();
            match access(&path)? {
                libc::O_RDONLY => held.read = true,
                libc::O_WRONLY => held.write = true,
                _ => (held.read, held.write) = (true, true),
            }
            held.path = path;
        }
    }
    Ok(all)
}

/// Returns how a descriptor was opened.
fn access(fd: &Path) -> io::Result<i32> {
    let name = fd.file_name().unwrap_or_default();
    let info = fd.with_file_name("..").join("fdinfo").join(name);
    let text = fs::read_to_string(info)?;
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    Ok(flags.ok_or(io::ErrorKind::InvalidData)? & libc::O_ACCMODE)
}

/// Returns the processes of a job.
fn members(group: &Group, pid: i32) -> io::Result<BTreeSet<i32>> {
    let dir = group.dir().ok_or(io::ErrorKind::Unsupported)?;
    let text = fs::read_to_string(dir.join("cgroup.procs"))?;
    let pids = text.lines().filter_map(|line| line.parse().ok());
    Ok(pids.chain([pid]).collect())
}

/// Returns why a job cannot move, a word each; none: as far as can be seen it can.
pub(super) fn ties(group: &Group, pid: i32) -> io::Result<BTreeSet<&'static str>> {
    let mut ties = BTreeSet::new();
    let connected = connected()?;
    for pid in members(group, pid)? {
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
            let path = entry?.path();
            let Ok(target) = fs::read_link(&path) else {
                continue;
            };
            let target = target.to_string_lossy();
            let harmless = [
                "/dev/null",
                "/dev/zero",
                "/dev/full",
                "/dev/random",
                "/dev/urandom",
            ];
            if let Some(inode) = target.strip_prefix("socket:[") {
                if connected.contains(inode.trim_end_matches(']')) {
                    ties.insert("tcp");
                }
            } else if target.contains("[io_uring]") {
                ties.insert("io_uring");
            } else if target.starts_with("/dev/pts/") || target.as_ref() == "/dev/tty" {
                ties.insert("terminal");
            } else if target.starts_with("/dev/")
                && !target.starts_with("/dev/shm/")
                && !harmless.contains(&&*target)
            {
                ties.insert("device");
            } else if target.starts_with('/') && is_local_file(&path)? {
                ties.insert("local_file");
            }
        }
    }
    Ok(ties)
}

/// Returns whether a descriptor writes a file that only this node has, or has it open after its last name went.
fn is_local_file(fd: &Path) -> io::Result<bool> {
    let Ok(meta) = fs::metadata(fd) else {
        return Ok(false);
    };
    let kind = nix::sys::statfs::statfs(fd)?.filesystem_type();
    let shared = kind == nix::sys::statfs::FUSE_SUPER_MAGIC;
    // CRIU carries the content of a file without a name.
    let named = std::os::unix::fs::MetadataExt::nlink(&meta) > 0;
    Ok(meta.is_file() && !shared && named && access(fd)? != libc::O_RDONLY)
}

/// Returns the inodes of this node's sockets that are connected by TCP.
fn connected() -> io::Result<BTreeSet<String>> {
    /// Columns of `/proc/net/tcp`, and the states in which there is no peer.
    const STATE: usize = 3;
    const INODE: usize = 9;
    const CLOSED: &str = "07";
    const LISTENS: &str = "0A";
    let mut inodes = BTreeSet::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = match fs::read_to_string(table) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            text => text?,
        };
        for line in text.lines().skip(1) {
            let columns: Vec<&str> = line.split_whitespace().collect();
            if let (Some(state), Some(inode)) = (columns.get(STATE), columns.get(INODE))
                && ![CLOSED, LISTENS].contains(state)
            {
                inodes.insert((*inode).to_owned());
            }
        }
    }
    Ok(inodes)
}
