//! Signals of this process, sent on to its jobs.
//!
//! A signal from the terminal goes to the job's whole process group, as a terminal would send it; one from kill(2)
//! goes to the program. Before there is a job a signal does what it always does; so does a second one that ends
//! programs while the first job has not started, as its node may hang. The end of this process is the end of what it
//! was about to start.

use super::owner::Line;
use super::sys;
use super::terminal::Terminal;
use gproc::job::protocol::ToJob;
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Signals that are sent on.
const SENT_ON: [Signal; 9] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGTSTP,
    Signal::SIGCONT,
    Signal::SIGWINCH,
];

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
        let mut mask = SigSet::empty();
        for signal in SENT_ON {
            if ignored >> (signal as i32 - 1) & 1 == 0 {
                mask.add(signal);
            }
        }
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
                        jobs.forward(number, info.ssi_code == SI_KERNEL);
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

/// Returns whether a signal ends a process that has not taken it over.
fn ends(number: i32) -> bool {
    let others = [Signal::SIGTSTP, Signal::SIGCONT, Signal::SIGWINCH];
    !others.iter().any(|other| *other as i32 == number)
}

/// Does by a signal what it does to a process that has not taken it over.
fn act_here(number: i32) {
    if number == Signal::SIGTSTP as i32 {
        raise(Signal::SIGSTOP).ok();
    } else if ends(number) {
        sys::die_by(number);
    }
}
