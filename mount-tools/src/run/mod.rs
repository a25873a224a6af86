//! `glurun` and `glumake`: the owner's end of remote execution (`gproc::job`).
//!
//! Plain threads and blocking calls: these programs live for milliseconds, their input and output may be anything,
//! and a blocked read or write must cost nobody but its own stream.
//!
//! - [`command`]: what `glurun` was asked to do ([`args`]), [`rsh`] as a remote shell.
//! - [`forked`]: a process that runs already, and goes on elsewhere.
//! - [`many`]: several jobs of one command.
//! - [`owner`]: one job, from the request to its end; [`streams`] and [`copy`] carry its input and output, [`fan`] one input to all.
//! - [`signals`]: signals of this process, sent on to its jobs; [`terminal`]: its terminal, while a job has one.
//! - [`parallel`]: how the processes of one command find each other, by [`pmi`].
//! - [`make`], [`shell`]: GNU make whose recipes are jobs; [`recipes`]: what they tell it, [`progress`] shows that.

pub(crate) mod args;
pub mod command;
mod copy;
mod fan;
mod forked;
pub mod make;
mod many;
pub(crate) mod owner;
mod parallel;
mod peeked;
mod pmi;
mod progress;
mod recipes;
mod rsh;
pub mod shell;
mod signals;
mod streams;
mod sys;
mod terminal;

use gproc::job::protocol::{End, Failure};
use gproc::job::{SOCKET_ENV, SOCKET_PATH};
use std::fmt;
use std::io::Write;
use std::path::PathBuf;

/// Added to a signal's number: the exit status that tells of it where only a number can be told.
const SIGNAL_STATUS: u8 = 128;

/// Returns the path of this node's socket for jobs.
fn socket() -> PathBuf {
    std::env::var_os(SOCKET_ENV).map_or_else(|| SOCKET_PATH.into(), PathBuf::from)
}

/// Says a line, in one piece: jobs write to the same place.
fn say(line: fmt::Arguments<'_>) {
    let line = format!("{line}\n");
    // Nobody is left to be told.
    std::io::stderr().write_all(line.as_bytes()).ok();
}

/// Says why something failed, and ends this process as the rules for `Failure` want it.
fn give_up(name: &str, kind: Failure, message: &str) -> ! {
    say(format_args!("{name}: {message}"));
    std::process::exit(kind.status().into())
}

/// Ends this process as a job ended.
fn end_as(name: &str, end: End) -> ! {
    match end {
        End::Exited(status) => std::process::exit(status),
        End::Killed(signal) => sys::die_by(signal),
        End::Failed { kind, message } => give_up(name, kind, &message),
    }
}
