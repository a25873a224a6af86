//! Signals of this process, sent on to its jobs.
//!
//! A signal from the terminal goes to the job's whole process group, as a terminal would send it; one from kill(2)
//! goes to the program. Before there is a job a signal does what it always does; so does a second one that ends
//! programs while the first job has not started, as its node may hang. The end of this process is the end of what it
//! was about to start.

use super::owner::Line;
use super::sys;
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
}

impl Signals {
    /// Takes over the signals of this process, which must have no other thread yet. Ignored ones stay ignored.
    pub(super) fn take_over(ignored: u64) -> io::Result<Self> {
        let signals = Self::default();
        let mut mask = SigSet::empty();
        for signal in SENT_ON {
            if ignored >> (signal as i32 - 1) & 1 == 0 {
                mask.add(signal);
            }
        }
        mask.thread_block()?;
        // A read of the terminal from the background then fails, rather than stop this process with its jobs.
        SigSet::from(Signal::SIGTTIN).thread_block()?;
        let queue = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC)?;
        let jobs = signals.clone();
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                let mut end_waits = false;
                while let Ok(Some(info)) = queue.read_signal() {
                    let number = i32::try_from(info.ssi_signo).expect("signals are small numbers");
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
