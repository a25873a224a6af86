//! Message queues of POSIX in an IPC namespace. CRIU carries none, nor those that nobody has open just then.

use super::super::sys;
use super::on_a_thread;
use nix::sched::{CloneFlags, setns};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

/// Returns whether there is one in the namespace of a process.
pub(in crate::job) fn has_queues(pid: i32) -> io::Result<bool> {
    with_queues(pid, |queues| Ok(fs::read_dir(queues)?.count() > 0))
}

/// Does something with the directory of them.
fn with_queues<T: Default + Send>(
    pid: i32,
    work: impl FnOnce(PathBuf) -> io::Result<T> + Send,
) -> io::Result<T> {
    let namespace = File::open(format!("/proc/{pid}/ns/ipc"))?;
    on_a_thread(|| {
        setns(&namespace, CloneFlags::CLONE_NEWIPC)?;
        match sys::mounted(c"mqueue") {
            // A kernel without any.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(T::default()),
            Err(error) => Err(error),
            Ok(queues) => work(format!("/proc/self/fd/{}", queues.as_raw_fd()).into()),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::Private;
    use super::*;

    #[test]
    fn a_queue_is_found_also_if_nobody_has_it_open() {
        let (net, ipc) = (false, true);
        let namespaces = Private { net, ipc }.make().expect("this is root");
        on_a_thread(|| {
            setns(&namespaces[0], CloneFlags::CLONE_NEWIPC)?;
            let own = nix::unistd::gettid().as_raw();
            assert!(!has_queues(own)?, "a new namespace has none");
            with_queues(own, |queues| File::create(queues.join("left")).map(drop))?;
            assert!(has_queues(own)?);
            Ok(())
        })
        .expect("done");
    }
}
