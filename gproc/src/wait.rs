//! Waits for the end of processes that are nobody's children here.

use crate::files::may_trace;
use crate::pids::ClusterPid;
use crate::procfs::Procfs;
use crate::sys;
use crate::text;
use crate::wire::{Birth, Who};
use bytes::Bytes;
use nix::errno::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;

/// How long an agent waits until it says that the process still lives.
pub const WAIT_MAX: Duration = Duration::from_secs(5);

/// Waits for the end of a process and returns how it ended: `exit 3` or `signal 15`. EAGAIN: it still lives after
/// [`WAIT_MAX`].
pub(crate) async fn wait(
    procfs: Arc<Procfs>,
    pid: ClusterPid,
    birth: Birth,
    who: Who,
) -> Result<Bytes, Errno> {
    Watched::begin(procfs, pid, birth, who)?.end().await
}

/// A process that is waited for.
struct Watched {
    procfs: Arc<Procfs>,
    pid: ClusterPid,
    birth: Birth,
    pidfd: AsyncFd<OwnedFd>,
}

impl Watched {
    /// From here on it does not matter who waits for the process and when.
    fn begin(procfs: Arc<Procfs>, pid: ClusterPid, birth: Birth, who: Who) -> Result<Self, Errno> {
        let target = procfs.target(pid)?.born(birth)?;
        if !may_trace(who, &target.credentials, false) {
            return Err(Errno::EACCES);
        }
        let pidfd = sys::watch(target.pidfd).map_err(|_| Errno::EIO)?;
        Ok(Self {
            procfs,
            pid,
            birth,
            pidfd,
        })
    }

    async fn end(self) -> Result<Bytes, Errno> {
        match tokio::time::timeout(WAIT_MAX, self.pidfd.readable()).await {
            Err(_) => return Err(Errno::EAGAIN),
            Ok(ready) => drop(ready.map_err(|_| Errno::EIO)?),
        }
        // A zombie's status is in procfs; when its parent has waited for it the kernel tells it through the descriptor.
        let stat = self.procfs.stat_and_status(self.pid).map(|(stat, _)| stat);
        let stat = stat.filter(|stat| self.procfs.birth(stat) == Some(self.birth));
        let status = stat.and_then(|stat| text::exit_status(&stat));
        let status = status.or_else(|| sys::exit_status(self.pidfd.as_fd()));
        Ok(show(status.ok_or(Errno::ESRCH)?).into())
    }
}

/// Tells a wait status.
fn show(status: i32) -> String {
    match status & 0x7f {
        0 => format!("exit {}\n", (status >> 8) & 0xff),
        signal => format!("signal {signal}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use consistency::NodeId;
    use std::process::{Command, Stdio};

    const ROOT: Who = Who { uid: 0, gid: 0 };

    #[test]
    fn statuses() {
        let shown = [0, 3 << 8, 255 << 8, 15, 11 | 0x80].map(show);
        assert_eq!(
            shown,
            [
                "exit 0\n",
                "exit 3\n",
                "exit 255\n",
                "signal 15\n",
                "signal 11\n"
            ]
        );
    }

    /// Starts a shell that ends when its input does.
    async fn check(script: &str, reaped: bool, expected: &str) {
        let mut command = Command::new("sh");
        let child = command
            .args(["-c", &format!("read x; {script}")])
            .stdin(Stdio::piped());
        let mut child = child.spawn().expect("started");
        let pid = ClusterPid::of(NodeId(1), i32::try_from(child.id()).expect("a pid"));
        let pid = pid.expect("a cluster pid");
        let procfs = Arc::new(Procfs::new(NodeId(1), "/proc".into()));
        let birth = procfs.identify(pid).expect("it lives").birth;
        let stranger = Who { uid: 7, gid: 7 };
        let refused = wait(Arc::clone(&procfs), pid, birth, stranger).await;
        assert_eq!(refused, Err(Errno::EACCES));
        let watched = Watched::begin(Arc::clone(&procfs), pid, birth, ROOT).expect("it lives");
        drop(child.stdin.take());
        if reaped {
            child.wait().expect("waited for");
        }
        assert_eq!(watched.end().await, Ok(expected.to_owned().into()));
        child.wait().expect("waited for");
        let gone = wait(procfs, pid, birth, ROOT).await;
        assert_eq!(gone, Err(Errno::ESRCH));
    }

    #[tokio::test]
    async fn the_end_of_a_process() {
        for reaped in [false, true] {
            check("exit 3", reaped, "exit 3\n").await;
            check("kill -TERM $$", reaped, "signal 15\n").await;
        }
    }
}
