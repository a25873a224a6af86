//! The pipes of a job to others. What nobody else has an end of is the job's own, and CRIU's to carry.

use super::super::group::Group;
use bytes::{Buf, Bytes};
use futures::future::select_all;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;

/// Pipes that a job may write and others read.
const OUTS_MAX: usize = 64;

/// The pipes of a job whose other ends others have.
#[derive(Debug, Default)]
pub(super) struct Pipes {
    /// Number, and an own opening of it.
    pub(super) input: Option<(u64, File)>,
    /// The same of those that it writes.
    pub(super) outs: Vec<(u64, File)>,
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

/// Does one of several things, and drops the others; returns its place, too. Of those that can be done it is the first from `turn` on,
/// so that none waits for ever. Waits for ever if there are none.
pub(super) async fn one_of<T>(
    works: impl Iterator<Item = impl Future<Output = T>>,
    turn: usize,
) -> (usize, T) {
    let mut works: Vec<_> = works.map(Box::pin).collect();
    if works.is_empty() {
        return std::future::pending().await;
    }
    let count = works.len();
    let first = turn % count;
    works.rotate_left(first);
    let (done, place, _) = select_all(works).await;
    ((first + place) % count, done)
}

/// How a job holds a pipe.
#[derive(Clone, Debug, Default)]
struct Held {
    read: bool,
    write: bool,
    /// It is somebody's standard input.
    standard: bool,
    path: PathBuf,
}

/// Finds the pipes of a frozen job, those of the leader of its session excepted.
pub(super) fn of(group: &Group, pid: i32, leader: Option<i32>) -> io::Result<Pipes> {
    let mut pipes = Pipes::default();
    let mut ended = None;
    for (inode, held) in held(group, pid, leader)? {
        match (held.read, held.write) {
            (true, false) => {
                let mut options = File::options();
                let options = options.read(true).custom_flags(libc::O_NONBLOCK);
                let file = options.open(held.path)?;
                if has_no_writer(&file)? {
                    // Else it is one whose writer was of the job.
                    if held.standard {
                        ended = Some((inode, file));
                    }
                } else if pipes.input.replace((inode, file)).is_some() {
                    return Err(io::Error::other("it reads more than one pipe of others"));
                }
            }
            (false, true) => {
                let mut options = File::options();
                let options = options.write(true).custom_flags(libc::O_NONBLOCK);
                match options.open(held.path) {
                    // Nobody reads it any more, nor will in the copy.
                    Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {}
                    open => pipes.outs.push((inode, open?)),
                }
            }
            _ => {}
        }
    }
    // What the job leaves of it is others' to read: not for the images.
    pipes.input = pipes.input.or(ended);
    if pipes.outs.len() > OUTS_MAX {
        let why = format!("it writes more than {OUTS_MAX} pipes of others");
        return Err(io::Error::other(why));
    }
    Ok(pipes)
}

/// Returns whether nobody has the other end of a pipe that is open for reading.
fn has_no_writer(reader: &File) -> io::Result<bool> {
    let mut fds = [PollFd::new(reader.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO)?;
    let seen = fds[0].revents().unwrap_or(PollFlags::empty());
    Ok(seen.contains(PollFlags::POLLHUP))
}

fn held(group: &Group, pid: i32, leader: Option<i32>) -> io::Result<BTreeMap<u64, Held>> {
    let mut all = BTreeMap::<u64, Held>::new();
    let dir = group.dir().ok_or(io::ErrorKind::Unsupported)?;
    let members = members(dir, pid)?;
    for pid in members.into_iter().filter(|pid| Some(*pid) != leader) {
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
            held.standard |= path.file_name().is_some_and(|fd| fd == "0");
            held.path = path;
        }
    }
    Ok(all)
}

/// Returns how a descriptor was opened.
pub(super) fn access(fd: &Path) -> io::Result<i32> {
    let name = fd.file_name().unwrap_or_default();
    let info = fd.with_file_name("..").join("fdinfo").join(name);
    let text = fs::read_to_string(info)?;
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    Ok(flags.ok_or(io::ErrorKind::InvalidData)? & libc::O_ACCMODE)
}

/// Returns the processes of a job.
pub(super) fn members(dir: &Path, pid: i32) -> io::Result<BTreeSet<i32>> {
    let text = fs::read_to_string(dir.join("cgroup.procs"))?;
    let pids = text.lines().filter_map(|line| line.parse().ok());
    Ok(pids.chain([pid]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::future::{pending, ready};

    #[tokio::test]
    async fn each_that_can_be_done_has_its_turn() {
        let works = || (0..3).map(|work| ready(work).boxed());
        for (turn, expected) in [(0, 0), (1, 1), (2, 2), (3, 0), (usize::MAX, 0)] {
            assert_eq!(one_of(works(), turn).await, (expected, expected));
        }
        let works = [pending().boxed(), ready('b').boxed(), pending().boxed()];
        assert_eq!(one_of(works.into_iter(), 2).await, (1, 'b'));
        let none = one_of([pending::<char>()].into_iter().take(0), 0);
        assert!(none.now_or_never().is_none());
    }
}
