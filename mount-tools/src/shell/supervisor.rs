//! The process that answers for the calls which the kernel holds.
//!
//! It has no terminal and none of the shell's descriptors, and lives as long as any process that was started in the
//! shell: the kernel tells it when there is none any more. A call waits for its answer, and can be killed meanwhile.
//!
//! A signal is sent with the caller's effective user and group, which are read while the call is held. That the call
//! is still held afterwards proves that the caller was read, not a later thread of the same number.

use super::calls::{Answer, Call};
use super::sys::{self, Notice};
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{ForkResult, chdir, setsid};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Calls that are answered at a time: one to a node that does not answer holds up no other.
const ANSWERS_MAX: usize = 8;
/// How long it may take to begin.
const PATIENCE: Duration = Duration::from_secs(10);

/// The supervisor, seen from the shell.
pub(super) struct Supervisor {
    channel: UnixStream,
}

/// Starts it.
pub(super) fn start(root: &Path) -> Result<Supervisor> {
    let (channel, its) = UnixStream::pair()?;
    channel.set_read_timeout(Some(PATIENCE))?;
    if let ForkResult::Child = sys::fork()? {
        // Not a child of the shell, which would wonder.
        let status = match sys::fork() {
            Ok(ForkResult::Child) => {
                drop(channel);
                i32::from(run(its, root.to_owned()).is_err())
            }
            Ok(ForkResult::Parent { .. }) => 0,
            Err(_) => 1,
        };
        sys::exit_at_once(status);
    }
    // The first child ends at once.
    nix::sys::wait::wait().context("wait for a child of our own")?;
    Ok(Supervisor { channel })
}

impl Supervisor {
    /// Has it answer for the calls of this process and all that it starts; returns when it does.
    pub(super) fn take_over(mut self, listener: OwnedFd) -> Result<()> {
        sys::send_descriptor(self.channel.as_fd(), listener.as_fd())?;
        let mut ready = [0];
        match self.channel.read(&mut ready) {
            Ok(1) => Ok(()),
            Ok(_) => bail!("what answers for other nodes has ended"),
            Err(error) => Err(error).context("what answers for other nodes does not begin"),
        }
    }
}

fn run(mut channel: UnixStream, root: PathBuf) -> Result<()> {
    setsid()?;
    chdir("/")?;
    let nowhere = File::options().read(true).write(true).open("/dev/null")?;
    sys::become_stdio(nowhere.as_fd())?;
    drop(nowhere);
    sys::close_all_but(channel.as_raw_fd())?;
    channel.set_read_timeout(Some(PATIENCE))?;
    let listener = sys::receive_descriptor(channel.as_fd())?;
    std::thread::scope(|scope| -> Result<()> {
        for _ in 0..ANSWERS_MAX {
            scope.spawn(|| answer_all(listener.as_fd(), &root));
        }
        channel.write_all(b"!")?;
        drop(channel);
        let mut last = [PollFd::new(listener.as_fd(), PollFlags::empty())];
        while poll(&mut last, PollTimeout::NONE) != Ok(1) {}
        // The threads wait for what cannot come any more.
        sys::exit_at_once(0)
    })
}

fn answer_all(listener: BorrowedFd<'_>, root: &Path) {
    loop {
        match sys::receive(listener) {
            Ok(notice) => {
                let answer = answer(listener, &notice, root);
                // The caller may have been killed.
                sys::answer(listener, notice.id, answer).ok();
            }
            // The caller was gone before it was read.
            Err(Errno::EINTR | Errno::ENOENT) => {}
            Err(_) => return,
        }
    }
}

fn answer(listener: BorrowedFd<'_>, notice: &Notice, root: &Path) -> Answer {
    let Some(call) = Call::of(notice.number, notice.args) else {
        return Answer::Kernel;
    };
    let Some((user, group)) = effective_ids(notice.thread) else {
        return Answer::Failed(Errno::EPERM);
    };
    let meant = call.meant(notice.thread, root);
    if !sys::is_held(listener, notice.id) {
        // Nobody gets this answer.
        return Answer::Failed(Errno::ESRCH);
    }
    match sys::with_file_ids(user, group, || call.carry_out(meant, root)) {
        Some(answer) => answer,
        None => Answer::Failed(Errno::EPERM),
    }
}

/// Returns the effective user and group of a thread.
fn effective_ids(thread: u32) -> Option<(u32, u32)> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    let effective = |key: &str| {
        let ids = status.lines().find_map(|line| line.strip_prefix(key))?;
        ids.split_ascii_whitespace().nth(1)?.parse().ok()
    };
    Some((effective("Uid:")?, effective("Gid:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_a_thread() {
        let own = nix::unistd::gettid().as_raw().unsigned_abs();
        let (user, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
        assert_eq!(effective_ids(own), Some((user.as_raw(), group.as_raw())));
        assert_eq!(effective_ids(0), None);
    }
}
