//! What is left of a job at home while it runs elsewhere: a process that has been ended and not been waited for, so that
//! nobody else is given its pid. It is held by a pidfd, never looked for by its number, which may be another's by then.
//!
//! Whoever takes it buries it: the deputy before a copy is to have the pid here, and who drops the job's
//! [`Ticket`](super::Ticket).

use super::super::protocol::End;
use super::super::protocol::KILLED_WITHIN;
use super::super::sys;
use nix::errno::Errno;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

/// Of one job.
#[derive(Debug, Default)]
pub(super) struct Remains(Mutex<Option<OwnedFd>>);

impl Remains {
    pub(super) fn keep(&self, pidfd: OwnedFd) {
        *self.0.lock().expect("no holder panics") = Some(pidfd);
    }

    pub(super) fn take(&self) -> Option<OwnedFd> {
        self.0.lock().expect("no holder panics").take()
    }
}

/// Takes a process that has been killed off the process table.
pub(super) async fn bury(pid: i32, pidfd: OwnedFd) {
    let buried = async { ended(&sys::watch(pidfd)?).await };
    match timeout(KILLED_WITHIN, buried).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) if error.raw_os_error() == Some(Errno::ECHILD as i32) => {
            tracing::debug!(pid, "a job that has left was off the process table");
        }
        Ok(Err(error)) => {
            tracing::warn!(pid, %error, "a job that has left cannot be taken off the process table");
        }
        Err(_) => tracing::warn!(
            pid,
            "a job that has left does not die within {KILLED_WITHIN:?}"
        ),
    }
}

/// Waits for the end of a child and takes it off the process table. Cancel-safe.
pub(super) async fn ended(pidfd: &AsyncFd<OwnedFd>) -> io::Result<End> {
    loop {
        let mut ready = pidfd.readable().await?;
        match sys::try_wait(pidfd.get_ref().as_fd())? {
            None => ready.clear_ready(),
            Some(end) => return Ok(end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn sleeper() -> (std::process::Child, OwnedFd) {
        let child = Command::new("sleep").arg("600").spawn();
        let child = child.expect("sleep starts");
        let pid = i32::try_from(child.id()).expect("a pid");
        (child, crate::sys::pidfd_open(pid).expect("it is there"))
    }

    fn is_there(pid: u32) -> bool {
        std::path::Path::new(&format!("/proc/{pid}")).exists()
    }

    #[tokio::test]
    async fn it_is_waited_for_however_late_it_dies() {
        let (mut child, pidfd) = sleeper();
        let remains = Remains::default();
        remains.keep(pidfd);
        let taken = remains.take().expect("kept");
        assert!(remains.take().is_none());
        let pid = i32::try_from(child.id()).expect("a pid");
        let buried = tokio::spawn(bury(pid, taken));
        tokio::task::yield_now().await;
        assert!(is_there(child.id()) && !buried.is_finished());
        child.kill().expect("it lives");
        buried.await.expect("it does not panic");
        assert!(!is_there(child.id()));
    }

    /// Such a number may be another process's by then.
    #[tokio::test]
    async fn what_is_off_the_process_table_already_is_not_waited_for() {
        let (mut child, pidfd) = sleeper();
        child.kill().expect("it lives");
        child.wait().expect("it has ended");
        let begun = std::time::Instant::now();
        bury(i32::try_from(child.id()).expect("a pid"), pidfd).await;
        assert!(begun.elapsed() < KILLED_WITHIN);
    }
}
