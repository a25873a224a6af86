//! Signals of this process, sent on to its jobs.
//!
//! A signal from the terminal goes to the job's whole process group, as a terminal would send it; one from kill(2)
//! goes to the program. Before there is a job a signal does what it always does; so does a second one that ends
//! programs while the first job has not started, as its node may hang. The end of this process is the end of what it
//! was about to start. Each signal that can be caught is sent on, once.

use super::owner::Line;
use super::sys;
use super::terminal::Terminal;
use gproc::job::protocol::ToJob;
use nix::sys::signal::{SigSet, Signal, kill, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use std::io;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Signals that are not sent on: what cannot be caught, the end of a child, a background read or write, and a closed
/// output, of which the job hears by another way.
const KEPT: [i32; 6] = [
    libc::SIGKILL,
    libc::SIGSTOP,
    libc::SIGCHLD,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGPIPE,
];

/// Numbers between the signals that the C library keeps to itself.
const LIBRARY_S: [i32; 2] = [32, 33];

/// An interrupt from the terminal that follows another within this time asks for more.
const AGAIN_WITHIN: Duration = Duration::from_secs(1);

/// `si_code` of a signal that the kernel sent, which for these signals means the terminal.
const SI_KERNEL: i32 = 0x80;

/// The jobs that get the signals; clones share them.
#[derive(Clone, Default)]
pub(super) struct Signals {
    lines: Arc<Mutex<Vec<Line>>>,
    started: Arc<AtomicBool>,
    terminal: Option<Terminal>,
}

impl Signals {
    /// Takes over the signals of this process, which must have no other thread yet. Ignored ones stay ignored.
    /// `terminal`: the one that the job has one like.
    pub(super) fn take_over(ignored: u64, terminal: Option<Terminal>) -> io::Result<Self> {
        let signals = Self {
            terminal,
            ..Self::default()
        };
        let sent_on = (1..=64)
            .filter(|number| !KEPT.contains(number) && !LIBRARY_S.contains(number))
            .filter(|number| ignored >> (number - 1) & 1 == 0);
        let mask = sys::signal_set(sent_on);
        mask.thread_block()?;
        // A read of the terminal from the background then fails, rather than stop this process with its jobs.
        SigSet::from(Signal::SIGTTIN).thread_block()?;
        // So that the terminal can be given back from there.
        SigSet::from(Signal::SIGTTOU).thread_block()?;
        let queue = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC)?;
        let jobs = signals.clone();
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                let mut end_waits = false;
                let mut interrupts = Interrupts::default();
                while let Ok(Some(info)) = queue.read_signal() {
                    let number = i32::try_from(info.ssi_signo).expect("signals are small numbers");
                    if info.ssi_pid == std::process::id() {
                        // The stop that follows one of the job.
                        continue;
                    }
                    if end_waits && ends(number) && !jobs.started.load(Ordering::Relaxed) {
                        act_here(number);
                    } else {
                        end_waits |= ends(number);
                        let from_terminal = info.ssi_code == SI_KERNEL;
                        let number = match number == libc::SIGINT && from_terminal {
                            true => interrupts.take(Instant::now()),
                            false => number,
                        };
                        jobs.forward(number, from_terminal);
                    }
                }
            })?;
        Ok(signals)
    }

    /// Adds a job that was asked for.
    pub(super) fn add(&self, line: Line) {
        self.lines.lock().expect("no holder panics").push(line);
    }

    /// Tells that a job runs.
    pub(super) fn job_runs(&self) {
        self.started.store(true, Ordering::Relaxed);
    }

    /// Sends a signal to the process groups of all jobs.
    pub(super) fn send_to_all(&self, number: i32) {
        for job in &*self.lines.lock().expect("no holder panics") {
            let group = true;
            job.send(&ToJob::Signal { number, group }).ok();
        }
    }

    fn forward(&self, number: i32, from_terminal: bool) {
        let jobs = self.lines.lock().expect("no holder panics").clone();
        if jobs.is_empty() {
            return act_here(number);
        }
        if let Some(terminal) = &self.terminal {
            return forward_to_terminal(&jobs, terminal, number, from_terminal);
        }
        // The kernel drops SIGTSTP for a process group without a parent in its session, as a job's is.
        let stop = number == Signal::SIGTSTP as i32;
        let frame = ToJob::Signal {
            number: if stop { Signal::SIGSTOP as i32 } else { number },
            group: from_terminal || stop || number == Signal::SIGCONT as i32,
        };
        for job in jobs {
            // A job that has ended needs no signal.
            job.send(&frame).ok();
        }
        if stop {
            raise(Signal::SIGSTOP).ok();
        }
    }
}

/// Signals of this process that go to a child in its own process group, which the terminal's reach anyway.
#[derive(Debug)]
pub(super) struct Passed(SignalFd);

impl Passed {
    /// Takes over the signals that end programs, in a process that has no other thread yet.
    pub(super) fn take_over() -> io::Result<Self> {
        let ending = [
            Signal::SIGHUP,
            Signal::SIGINT,
            Signal::SIGQUIT,
            Signal::SIGTERM,
        ];
        let others = [Signal::SIGUSR1, Signal::SIGUSR2];
        let mask: SigSet = ending.into_iter().chain(others).collect();
        mask.thread_block()?;
        Ok(Self(SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC)?))
    }

    /// Passes them on until this process ends.
    pub(super) fn pass_to(self, child: &Child) -> io::Result<()> {
        let child = Pid::from_raw(i32::try_from(child.id()).expect("pids are positive"));
        let pass = move || {
            while let Ok(Some(info)) = self.0.read_signal() {
                let signal = i32::try_from(info.ssi_signo).map(Signal::try_from);
                if let Ok(Ok(signal)) = signal
                    && info.ssi_code != SI_KERNEL
                {
                    // One that has ended needs none.
                    kill(child, signal).ok();
                }
            }
        };
        let thread = std::thread::Builder::new().name("signals".into());
        thread.spawn(pass).map(drop)
    }
}

/// Sends a signal on to a job that has a terminal: it stops as here, and tells so.
fn forward_to_terminal(jobs: &[Line], terminal: &Terminal, number: i32, from_terminal: bool) {
    let goes_on = number == Signal::SIGCONT as i32;
    let mut frames = Vec::new();
    if goes_on {
        terminal.take();
    }
    if goes_on || number == Signal::SIGWINCH as i32 {
        frames.push(terminal.resized());
    }
    if number != Signal::SIGWINCH as i32 {
        let group = from_terminal || goes_on || number == Signal::SIGTSTP as i32;
        frames.push(ToJob::Signal { number, group });
    }
    for (job, frame) in jobs
        .iter()
        .flat_map(|job| frames.iter().map(move |of| (job, of)))
    {
        // A job that has ended needs no signal.
        job.send(frame).ok();
    }
}

/// Interrupts from the terminal: the second in a row means an end, the third one by force.
#[derive(Debug, Default)]
struct Interrupts {
    last: Option<Instant>,
    row: usize,
}

impl Interrupts {
    /// Returns the signal that an interrupt stands for.
    fn take(&mut self, now: Instant) -> i32 {
        let again = self.last.is_some_and(|last| now - last < AGAIN_WITHIN);
        self.row = if again { self.row + 1 } else { 0 };
        self.last = Some(now);
        match self.row {
            0 => libc::SIGINT,
            1 => libc::SIGTERM,
            _ => libc::SIGKILL,
        }
    }
}

/// Returns whether a signal ends a process that has not taken it over.
fn ends(number: i32) -> bool {
    let others = [libc::SIGTSTP, libc::SIGCONT, libc::SIGWINCH, libc::SIGURG];
    !others.contains(&number)
}

/// Does by a signal what it does to a process that has not taken it over.
fn act_here(number: i32) {
    if number == Signal::SIGTSTP as i32 {
        raise(Signal::SIGSTOP).ok();
    } else if ends(number) {
        sys::die_by(number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupts_in_a_row_ask_for_more() {
        let start = Instant::now();
        let mut interrupts = Interrupts::default();
        let mut at = |millis| interrupts.take(start + Duration::from_millis(millis));
        assert_eq!(at(0), libc::SIGINT);
        assert_eq!(at(1_000), libc::SIGINT, "a second later it is another one");
        assert_eq!(at(1_999), libc::SIGTERM);
        assert_eq!(at(2_500), libc::SIGKILL);
        assert_eq!(at(2_600), libc::SIGKILL);
        assert_eq!(at(9_000), libc::SIGINT);
    }
}
