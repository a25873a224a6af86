//! The barriers of the processes that this node runs ([`gather`](super::gather)): who is in is heard on their wires, on which
//! they are told to go on.
//!
//! A process says `cmd=barrier_in` on its wire, as PMI-1 has it. It waits for the answer and has had those to all that it
//! asked before: what it says then comes alone, and nothing that it has said is on its way to the owner any more.

use super::frame::FrameSender;
use super::gather::{Gathered, Gathering};
use super::protocol::{DATA_BYTES_MAX, FromJob};
use super::stdio::WireQueue;
use bytes::{Bytes, BytesMut};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::runtime::Handle;

/// What a process says, among other words of its line, and is told.
const IN: &[u8] = b"cmd=barrier_in";
const OUT: &[u8] = b"cmd=barrier_out\n";

/// Longest line that is read.
const LINE_BYTES_MAX: usize = 16 << 10;

/// The user of a command, and what its owner calls it: nobody else is in its barriers.
type Key = (u32, u64);

/// The commands that have processes here.
#[derive(Debug, Default)]
pub(super) struct Barriers(Mutex<HashMap<Key, Command>>);

#[derive(Debug, Default)]
struct Command {
    gathering: Gathering,
    processes: BTreeMap<u64, Place>,
    next: u64,
}

#[derive(Clone, Debug)]
struct Place {
    vnn: u32,
    sender: FrameSender,
    wire: WireQueue,
}

/// What is to be sent to the owner.
pub(super) type ToOwner = (FrameSender, FromJob);

impl Barriers {
    /// Takes a process into the barriers of its command, until the seat is dropped.
    pub(super) fn join(
        self: &Arc<Self>,
        key: Key,
        vnn: u32,
        sender: FrameSender,
        wire: WireQueue,
    ) -> Arc<Seat> {
        let mut commands = self.lock();
        let command = commands.entry(key).or_default();
        let process = command.next;
        command.next += 1;
        command.gathering.come(process);
        let place = Place { vnn, sender, wire };
        command.processes.insert(process, place);
        Arc::new(Seat {
            barriers: Arc::clone(self),
            key,
            process,
        })
    }

    /// Tells a command something; returns what is to be sent.
    fn tell(
        &self,
        key: Key,
        tell: impl FnOnce(&mut Gathering) -> Option<Gathered>,
    ) -> Option<ToOwner> {
        let mut commands = self.lock();
        let command = commands.get_mut(&key)?;
        let todo = tell(&mut command.gathering)?;
        command.act(todo)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Command>> {
        self.0.lock().expect("no holder panics")
    }
}

impl Command {
    fn act(&self, todo: Gathered) -> Option<ToOwner> {
        match todo {
            Gathered::Send {
                through,
                token,
                processes,
            } => {
                let places = processes.iter().filter_map(|of| self.processes.get(of));
                let processes = places.map(|place| place.vnn).collect();
                let sender = self.processes.get(&through)?.sender.clone();
                Some((sender, FromJob::Entered { token, processes }))
            }
            Gathered::Release(processes) => {
                for place in processes.iter().filter_map(|of| self.processes.get(of)) {
                    // One that does not read what it has asked for is not waited for.
                    place.wire.push(Bytes::from_static(OUT)).ok();
                }
                None
            }
        }
    }
}

/// What a process has said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// That it is in a barrier, with so many bytes.
    In(usize),
    /// Something that is the owner's to understand.
    Other(Bytes),
}

/// The lines that come over a wire.
#[derive(Debug, Default)]
pub(super) struct Lines(BytesMut);

impl Lines {
    /// Takes what was read; returns what was said. A line that is not whole stays here, unless it is too long.
    pub(super) fn take(&mut self, read: &[u8]) -> Vec<Said> {
        self.0.extend_from_slice(read);
        let mut said = Vec::new();
        let mut other = 0;
        while let Some(len) = self.0[other..].iter().position(|byte| *byte == b'\n') {
            let end = other + len + 1;
            let mut words = self.0[other..end - 1].split(|byte| *byte == b' ');
            if words.any(|word| word == IN) {
                self.split_off(other, &mut said);
                said.push(Said::In(self.0.split_to(end - other).len()));
                other = 0;
            } else {
                other = end;
            }
        }
        if self.0.len() - other > LINE_BYTES_MAX {
            other = self.0.len();
        }
        self.split_off(other, &mut said);
        said
    }

    /// Returns what stays when nothing comes any more.
    pub(super) fn rest(&mut self) -> Vec<Said> {
        let mut said = Vec::new();
        self.split_off(self.0.len(), &mut said);
        said
    }

    fn split_off(&mut self, len: usize, said: &mut Vec<Said>) {
        let mut bytes = self.0.split_to(len);
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(DATA_BYTES_MAX));
            said.push(Said::Other(piece.freeze()));
        }
    }
}

/// A process of a command with barriers.
#[derive(Debug)]
pub(super) struct Seat {
    barriers: Arc<Barriers>,
    key: Key,
    process: u64,
}

impl Seat {
    /// The process is in.
    pub(super) fn enter(&self) -> Option<ToOwner> {
        self.barriers.tell(self.key, |all| all.enter(self.process))
    }

    /// The owner gives a token back.
    pub(super) fn pass(&self, token: u32) {
        self.barriers.tell(self.key, |all| all.pass(token));
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut commands = self.barriers.lock();
        let Some(command) = commands.get_mut(&self.key) else {
            return;
        };
        command.processes.remove(&self.process);
        let todo = command.gathering.end(self.process);
        let to_owner = todo.and_then(|todo| command.act(todo));
        if command.gathering.is_empty() {
            commands.remove(&self.key);
        }
        drop(commands);
        // Without a runtime the node ends, and all jobs with it.
        if let (Some((sender, frame)), Ok(runtime)) = (to_owner, Handle::try_current()) {
            runtime.spawn(async move { sender.send(&frame).await });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(lines: &mut Lines, read: &str, expected: &[Said]) {
        assert_eq!(lines.take(read.as_bytes()), expected, "{read}");
    }

    fn other(text: &str) -> Said {
        Said::Other(Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn lines_of_a_wire() {
        let lines = &mut Lines::default();
        check(lines, "cmd=barrier_in\n", &[Said::In(15)]);
        check(lines, "cmd=get key=a\n", &[other("cmd=get key=a\n")]);
        // In pieces, with others, with more words.
        check(lines, "cmd=barr", &[]);
        check(lines, "ier_in\ncmd=", &[Said::In(15)]);
        let rest = "put key=b\nx\ncmd=barrier_in \ncmd=finalize\ncmd=ba";
        let said = [
            other("cmd=put key=b\nx\n"),
            Said::In(16),
            other("cmd=finalize\n"),
        ];
        check(lines, rest, &said);
        check(lines, "rrier_input\n", &[other("cmd=barrier_input\n")]);
        check(lines, "cmd=x", &[]);
        assert_eq!(lines.rest(), [other("cmd=x")]);
        let long = "x".repeat(LINE_BYTES_MAX + 1);
        check(lines, &long, &[other(&long)]);
        let longer = "y".repeat(DATA_BYTES_MAX + 1) + "\n";
        check(
            lines,
            &longer,
            &[other(&longer[..DATA_BYTES_MAX]), other("y\n")],
        );
    }
}
