//! `glurun --forked`: what stands for a process that goes on on another node, in the place of a child of its parent (`glu_rfork`).
//!
//! The process is a child of this one, and waits. What it writes comes here, and goes on to where the parent's output goes; signals
//! go there; its end is this one's. `gproc::job::forked` is the daemon's part.

use super::command::NAME;
use super::copy::write_all;
use super::owner::{Command, Reader};
use super::signals::Signals;
use super::{end_as, give_up, socket, sys};
use crate::nodes::NodeSet;
use clap::Parser;
use gproc::job::protocol::{DATA_BYTES_MAX, End, Failure};
use std::cell::Cell;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::thread::{self, JoinHandle};

/// What glurun is told by; the rest is as [`Call`] has it.
pub(super) const FLAG: &str = "--forked";

/// Stands for a process that goes on on another node.
#[derive(Debug, Parser)]
#[command(name = "glurun --forked")]
struct Call {
    /// The process: a child of this one.
    pid: u32,

    /// The descriptor that takes the errno that says why it does not go on there, 0 if it does: 4 bytes.
    report: RawFd,

    /// The pipe that it writes its output to.
    output: RawFd,

    /// The one for its errors, if that is another.
    #[arg(long)]
    errors: Option<RawFd>,

    /// The nodes on one of which it is to go on.
    nodes: NodeSet,

    /// Its program and arguments, as they are shown.
    #[arg(required = true, last = true)]
    command: Vec<OsString>,
}

/// Is the owner of such a process.
pub(super) fn main(line: &[OsString]) -> ! {
    let call = Call::try_parse_from(line).unwrap_or_else(|error| error.exit());
    let fail = |why: &str| -> ! { give_up(NAME, Failure::Cluster, why) };
    let taken = |number: RawFd| -> OwnedFd {
        sys::taken(number).unwrap_or_else(|| fail(&format!("descriptor {number} is not open")))
    };
    let (report, gone) = (
        Cell::new(Some(File::from(taken(call.report)))),
        Cell::new(false),
    );
    let tell = |how: Result<(), i32>| {
        gone.set(how.is_ok());
        let errno = how.err().unwrap_or(0);
        if let Some(mut report) = report.take() {
            // The parent may have ended since.
            report.write_all(&errno.to_ne_bytes()).ok();
        }
    };
    let ignored = sys::ignored_signals();
    let signals = Signals::take_over(ignored, None);
    let signals = signals.unwrap_or_else(|e| fail(&format!("cannot take signals: {e}")));
    let errors = call.errors.map(|errors| copy(taken(errors), io::stderr()));
    let copies = [Some(copy(taken(call.output), io::stdout())), errors];
    let command = Command::new(call.command, std::env::vars_os(), ignored);
    let command = command.unwrap_or_else(|e| fail(&format!("no working directory: {e}")));
    let command = command.with_input_for(Reader::Nobody).forked(call.pid);
    let nodes: Vec<_> = call.nodes.iter().collect();
    let end = command.run_forked(&socket(), &nodes, &signals, &tell);
    if !gone.get() {
        // If it was not told why there is no daemon, or that finds no node. The parent says it in its own way.
        tell(Err(end.map_or(libc::ENOTCONN, |_| libc::ECONNREFUSED)));
        std::process::exit(Failure::Cluster.status().into());
    }
    for copy in copies.into_iter().flatten() {
        copy.join().ok();
    }
    let lost = |error| End::lost(format!("the daemon of this node has ended: {error}"));
    end_as(NAME, end.unwrap_or_else(lost))
}

/// Passes on what comes by a pipe, until nobody has its other end, or nobody takes it.
fn copy(from: OwnedFd, to: impl AsFd + Send + 'static) -> JoinHandle<()> {
    let mut from = File::from(from);
    thread::spawn(move || {
        let mut bytes = vec![0; DATA_BYTES_MAX];
        while let Ok(len @ 1..) = from.read(&mut bytes) {
            if write_all(to.as_fd(), &bytes[..len]).is_err() {
                return;
            }
        }
    })
}
