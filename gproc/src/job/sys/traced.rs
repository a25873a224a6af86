//! A process that stands still at its end, before it lets go of anything (ptrace(2)).

use nix::errno::Errno;
use nix::unistd::Pid;
use std::ffi::{c_int, c_long};
use std::io;

/// Signals that stop a process, with all of its threads.
const STOPS: [c_int; 4] = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

/// A process that this thread traces. It goes on as if nothing had been when the thread ends.
#[derive(Debug)]
pub(in crate::job) struct Traced(Pid);

impl Traced {
    pub(in crate::job) fn new(pid: Pid) -> io::Result<Self> {
        let options = c_long::from(libc::PTRACE_O_TRACEEXIT);
        request(libc::PTRACE_SEIZE, pid, options)?;
        Ok(Self(pid))
    }

    /// Waits until it ends, by itself or by a signal: it stands still then, and has all that it has had. Returns whether it ends
    /// well.
    pub(in crate::job) fn await_end(&self) -> io::Result<bool> {
        loop {
            let mut status = 0;
            // SAFETY: `status` outlives the call.
            let waited = unsafe { libc::waitpid(self.0.as_raw(), &raw mut status, libc::__WALL) };
            match Errno::result(waited) {
                Err(Errno::EINTR) => continue,
                waited => waited?,
            };
            if !libc::WIFSTOPPED(status) {
                // Killed twice it stands still no more.
                return Ok(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0);
            }
            let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
            let goes_on = match event {
                libc::PTRACE_EVENT_EXIT => return self.ends_well(),
                // It is to stay stopped, and to hear of SIGCONT.
                libc::PTRACE_EVENT_STOP if STOPS.contains(&signal) => {
                    request(libc::PTRACE_LISTEN, self.0, 0)
                }
                0 => request(libc::PTRACE_CONT, self.0, signal.into()),
                _ => request(libc::PTRACE_CONT, self.0, 0),
            };
            match goes_on {
                // It has been killed: that shows next.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                goes_on => goes_on?,
            }
        }
    }

    fn ends_well(&self) -> io::Result<bool> {
        let mut status: libc::c_ulong = 0;
        // SAFETY: the kernel writes a number there, which outlives the call.
        let told = unsafe {
            let none = std::ptr::null_mut::<libc::c_void>();
            libc::ptrace(
                libc::PTRACE_GETEVENTMSG,
                self.0.as_raw(),
                none,
                &raw mut status,
            )
        };
        Errno::result(told)?;
        Ok(status == 0)
    }
}

/// One that is told no address.
fn request(what: libc::c_uint, pid: Pid, data: c_long) -> io::Result<()> {
    // SAFETY: these requests take numbers.
    let done = unsafe {
        libc::ptrace(
            what,
            pid.as_raw(),
            std::ptr::null_mut::<libc::c_void>(),
            data,
        )
    };
    Errno::result(done)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};
    use std::sync::mpsc;

    fn child(script: &str) -> Child {
        let mut command = Command::new("sh");
        let command = command.args(["-c", script]).stdin(Stdio::piped());
        command.spawn().expect("sh starts")
    }

    /// Traces a child to its end, does something to it once it is traced, and something when it stands still.
    fn trace(
        mut child: Child,
        then: impl FnOnce(&mut Child),
        at_end: impl FnOnce(i32) + Send,
    ) -> bool {
        let pid = child.id().cast_signed();
        let (tell, is_traced) = mpsc::channel();
        std::thread::scope(|scope| {
            let tracer = scope.spawn(move || {
                let traced = Traced::new(Pid::from_raw(pid)).expect("it is ours");
                tell.send(()).expect("somebody waits");
                let well = traced.await_end().expect("it ends");
                at_end(pid);
                well
            });
            is_traced.recv().expect("it is traced");
            then(&mut child);
            let well = tracer.join().expect("it does not panic");
            assert_eq!(child.wait().expect("our child").success(), well);
            well
        })
    }

    fn has_descriptors(pid: i32) {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it is there");
        assert!(open.count() > 0, "it has closed them");
    }

    #[test]
    fn it_ends_as_it_would() {
        let go_on = |child: &mut Child| drop(child.stdin.take());
        assert!(trace(child("read x; exit 0"), go_on, has_descriptors));
        assert!(!trace(child("read x; exit 3"), go_on, has_descriptors));
    }

    #[test]
    fn it_has_its_descriptors_when_it_is_killed() {
        let kill = |child: &mut Child| child.kill().expect("it lives");
        assert!(!trace(child("read x"), kill, has_descriptors));
    }

    #[test]
    fn it_stops_and_goes_on_by_signals() {
        let stop = |child: &mut Child| {
            let pid = Pid::from_raw(child.id().cast_signed());
            let state = || {
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
                let stat = stat.expect("it is there");
                stat.rsplit_once(") ")
                    .expect("a state")
                    .1
                    .starts_with(['T', 't'])
            };
            nix::sys::signal::kill(pid, nix::sys::signal::SIGSTOP).expect("it lives");
            while !state() {
                std::thread::yield_now();
            }
            nix::sys::signal::kill(pid, nix::sys::signal::SIGCONT).expect("it lives");
            drop(child.stdin.take());
        };
        assert!(trace(child("read x; exit 0"), stop, has_descriptors));
    }
}
