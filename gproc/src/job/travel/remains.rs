//! What is left of a job at home while it runs elsewhere: a process that has been ended and not been waited for, so that
//! nobody else is given its pid. It is held by a pidfd, never looked for by its number, which may be another's by then.
//!
//! Whoever takes it buries it: who makes a copy here that is to have the pid, the deputy when the job is over, and who drops its
//! [`Ticket`](super::Ticket).

use super::super::group::Group;
use super::super::pause::Its;
use super::super::protocol::End;
use super::super::protocol::KILLED_WITHIN;
use super::super::sys;
use super::guest::blocking;
use nix::errno::Errno;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, mpsc};
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

/// Of one job.
#[derive(Debug, Default)]
pub(super) struct Remains(Mutex<Option<Body>>);

/// What is left of one copy.
#[derive(Debug)]
pub(super) struct Body {
    pub(super) pidfd: OwnedFd,
    /// It is the leader of a session, and the parent of the program.
    pub(super) leads: Option<Leads>,
}

/// What is to stay with a leader.
#[derive(Debug)]
pub(super) struct Leads {
    /// It is frozen with this.
    pub(super) group: Its,
    /// Its parent, which it ends with, is the thread that waits at the other end; none: one that does not end.
    pub(super) parent: Option<mpsc::Sender<()>>,
}

impl Remains {
    pub(super) fn keep(&self, body: Body) {
        *self.0.lock().expect("no holder panics") = Some(body);
    }

    pub(super) fn take(&self) -> Option<Body> {
        self.0.lock().expect("no holder panics").take()
    }
}

/// Takes a process that has been killed off the process table.
pub(super) async fn bury(pid: i32, body: Body) {
    let mut parent = None;
    if let Some(leads) = body.leads {
        // It takes its program off the process table, and ends as that has.
        parent = leads.parent;
        blocking(move || leads.group.get().map(Group::let_go)).await;
    }
    let buried = async { ended(&sys::watch(body.pidfd)?).await };
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
    drop(parent);
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

    fn sleeper() -> (std::process::Child, Body) {
        let child = Command::new("sleep").arg("600").spawn();
        let child = child.expect("sleep starts");
        let pid = i32::try_from(child.id()).expect("a pid");
        let pidfd = crate::sys::pidfd_open(pid).expect("it is there");
        (child, Body { pidfd, leads: None })
    }

    fn is_there(pid: u32) -> bool {
        std::path::Path::new(&format!("/proc/{pid}")).exists()
    }

    #[tokio::test]
    async fn it_is_waited_for_however_late_it_dies() {
        let (mut child, body) = sleeper();
        let remains = Remains::default();
        remains.keep(body);
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
        let (mut child, body) = sleeper();
        child.kill().expect("it lives");
        child.wait().expect("it has ended");
        let begun = std::time::Instant::now();
        bury(i32::try_from(child.id()).expect("a pid"), body).await;
        assert!(begun.elapsed() < KILLED_WITHIN);
    }
}
