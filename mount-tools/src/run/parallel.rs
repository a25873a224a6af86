//! The wires of one command's processes, whose other ends are here, with the server that answers on them.
//!
//! Lock order: the server, then the lines of the processes.

use super::owner::Line;
use super::pmi::{Do, Pmi};
use super::say;
use super::signals::Signals;
use bytes::Bytes;
use consistency::NodeId;
use gproc::job::protocol::{Stream, ToJob};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Mutex;

/// What processes are told of the others.
const ENVIRONMENT: [&str; 5] = ["PMI_FD", "PMI_PORT", "PMI_RANK", "PMI_SIZE", "GLU_COUNT"];

/// The processes of a command.
#[derive(Debug)]
pub(super) struct Parallel {
    size: u32,
    /// Tells the command from others of its user.
    number: u64,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    pmi: Pmi,
    lines: BTreeMap<u32, Line>,
    /// They are being ended.
    over: bool,
}

impl Parallel {
    /// Returns the wires of `size` processes.
    pub(super) fn new(size: u32) -> Self {
        let inner = Inner {
            pmi: Pmi::new(size),
            lines: BTreeMap::new(),
            over: false,
        };
        Self {
            size,
            number: RandomState::new().build_hasher().finish(),
            inner: Mutex::new(inner),
        }
    }

    /// Returns what tells the command from others of its user.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Tells a process which of how many it is.
    pub(super) fn tell(&self, env: &mut Vec<Bytes>, process: u32) {
        env.retain(|variable| {
            let name = variable
                .split(|byte| *byte == b'=')
                .next()
                .unwrap_or_default();
            !ENVIRONMENT.iter().any(|own| own.as_bytes() == name)
        });
        env.push(format!("PMI_RANK={process}").into());
        for name in ["PMI_SIZE", "GLU_COUNT"] {
            env.push(format!("{name}={}", self.size).into());
        }
    }

    /// A process runs.
    pub(super) fn started(&self, process: u32, node: NodeId, line: &Line, signals: &Signals) {
        self.with(signals, |inner| {
            inner.lines.insert(process, line.clone());
            inner.pmi.started(process, node)
        });
    }

    /// A process has written to its wire.
    pub(super) fn take(&self, process: u32, bytes: &Bytes, signals: &Signals) {
        self.with(signals, |inner| {
            let credit = ToJob::Credit {
                stream: Stream::Wire,
                bytes: u32::try_from(bytes.len()).expect("pieces are small"),
            };
            send(&inner.lines, process, &credit);
            inner.pmi.take(process, bytes)
        });
    }

    /// Processes of a node are in the barrier, as is told on the line of one of them.
    pub(super) fn entered(&self, through: u32, token: u32, processes: &[u32], signals: &Signals) {
        self.with(signals, |inner| {
            inner.pmi.entered(through, token, processes)
        });
    }

    /// A process has ended, or never ran.
    pub(super) fn ended(&self, process: u32, signals: &Signals) {
        self.with(signals, |inner| {
            inner.lines.remove(&process);
            inner.pmi.ended(process)
        });
    }

    /// Returns whether they are being ended, because they cannot go on.
    pub(super) fn is_over(&self) -> bool {
        self.inner.lock().expect("no holder panics").over
    }

    fn with(&self, signals: &Signals, step: impl FnOnce(&mut Inner) -> Vec<Do>) {
        let mut inner = self.inner.lock().expect("no holder panics");
        for next in step(&mut inner) {
            match next {
                Do::Tell(process, mut line) => {
                    line.push('\n');
                    send(&inner.lines, process, &ToJob::Wire(line.into()));
                }
                Do::Pass(through, token) => {
                    send(&inner.lines, through, &ToJob::Passed(token));
                }
                Do::End(why) if !inner.over => {
                    inner.over = true;
                    say(format_args!("glurun: {why}: all are ended"));
                    signals.send_to_all(libc::SIGTERM);
                }
                Do::End(_) => {}
            }
        }
    }
}

/// Sends to a process, if it is there.
fn send(lines: &BTreeMap<u32, Line>, process: u32, message: &ToJob) {
    if let Some(line) = lines.get(&process) {
        line.send(message).ok();
    }
}
