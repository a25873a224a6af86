//! A pipe as input of a job elsewhere, of which nothing is taken out but what the job has read (rule J6), decided without
//! a pipe or a socket: the owner's account ([`Owner`]) and the host's ([`Host`]). The tables are in docs/protocol.md.
//!
//! The owner sends what it sees in its pipe, and leaves it there. The host tells how much of what it has passed to the
//! job the job has read; so much the owner then takes out. When the job is gone what is left in the pipe is what nobody
//! has read, and the next reader's.

use super::protocol::{DATA_BYTES_MAX, INPUT_WINDOW};

/// What the owner has sent and taken out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    sent: u64,
    /// Taken out of the pipe, all of which the job has read.
    out: u64,
    credit: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    Open,
    /// The job knows that no more comes.
    Ended,
    /// The job reads no more.
    Closed,
}

/// Where to look in the pipe for what is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Bytes at its beginning that were sent before.
    pub skip: u64,
    /// How many behind them may be sent.
    pub len: u64,
}

impl Default for Owner {
    fn default() -> Self {
        Self::new(u64::from(INPUT_WINDOW))
    }
}

impl Owner {
    fn new(window: u64) -> Self {
        Self {
            sent: 0,
            out: 0,
            credit: window,
            state: State::Open,
        }
    }

    /// Returns where to look for more to send; `None`: nothing may be sent now.
    #[must_use]
    pub fn look(&self) -> Option<Look> {
        let len = self.credit.min(DATA_BYTES_MAX as u64);
        let may_send = match self.state {
            State::Open => len > 0,
            State::Ended | State::Closed => false,
        };
        let skip = self.sent - self.out;
        may_send.then_some(Look { skip, len })
    }

    /// Returns whether there is nothing more to send, ever.
    #[must_use]
    pub fn is_over(&self) -> bool {
        match self.state {
            State::Open => false,
            State::Ended | State::Closed => true,
        }
    }

    /// So many bytes were found at the place to look at, and are sent.
    ///
    /// # Panics
    /// If they are more than may be sent.
    pub fn sent(&mut self, len: u64) {
        assert!(len <= self.credit, "a look has at most the credit");
        self.credit -= len;
        self.sent += len;
    }

    /// All was sent, and nobody will write more.
    pub fn ended(&mut self) {
        if self.state == State::Open {
            self.state = State::Ended;
        }
    }

    /// So many bytes more may be sent.
    pub fn add_credit(&mut self, len: u64) {
        self.credit = self.credit.saturating_add(len);
    }

    /// The job reads no more.
    pub fn close(&mut self) {
        self.state = State::Closed;
    }

    /// The job has read so many bytes in all; returns how many are now to be taken out (J6). A host that claims more than
    /// it was sent gets no more for it.
    pub fn read(&mut self, in_all: u64) -> u64 {
        let now = in_all.min(self.sent).saturating_sub(self.out);
        self.out += now;
        now
    }
}

/// What the host has passed to the job and told the owner.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Host {
    written: u64,
    told: u64,
}

impl Host {
    /// So many bytes were written to the job's pipe.
    pub(super) fn wrote(&mut self, len: u64) {
        self.written += len;
    }

    /// Returns how much the job has read when so many bytes are left in its pipe.
    pub(super) fn read(&self, unread: u64) -> u64 {
        self.written.saturating_sub(unread)
    }

    /// Returns how much was written in all.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Returns whether the job may have read more than was told.
    pub(super) fn is_behind(&self) -> bool {
        self.told < self.written
    }

    /// Returns what to tell the owner when so many bytes are left in the job's pipe; `None`: nothing new (J6).
    pub(super) fn tell(&mut self, unread: u64) -> Option<u64> {
        let read = self.read(unread);
        let new = read > self.told;
        self.told = self.told.max(read);
        new.then_some(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashSet, VecDeque};

    /// Bytes that the writer writes in all, each of which is its place.
    const BYTES: u64 = 5;
    /// What each pipe holds. As home's holds no more than the job's, all that it has can be on its way.
    const PIPE: u64 = 2;
    const WINDOW: u64 = 2;

    /// What a wrong implementation does.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Mutant {
        /// The host tells what it has written.
        TellWritten,
        /// The host looks at the job's pipe only when it has something to write.
        LookOnlyWhenWriting,
        /// The owner sends what is at the beginning of its pipe.
        LookAtTheBeginning,
        /// The owner takes out at the end what it has sent.
        TakeOutSent,
    }

    #[derive(Clone, Debug, PartialEq, Eq, Hash)]
    enum ToHost {
        /// A byte.
        Input(u64),
        End,
    }

    #[derive(Clone, Debug, PartialEq, Eq, Hash)]
    enum ToOwner {
        Credit,
        Read(u64),
        Left(u64),
    }

    /// A writer, home's pipe, the owner, the host, the job's pipe, the job.
    #[derive(Clone, Debug, PartialEq, Eq, Hash)]
    struct World {
        written: u64,
        out: u64,
        owner: Owner,
        to_host: VecDeque<ToHost>,
        to_owner: VecDeque<ToOwner>,
        host: Host,
        pipe: VecDeque<u64>,
        ended: bool,
        /// Bytes that the job has read; and whether it saw the end, and runs.
        read: u64,
        saw_end: bool,
        runs: bool,
        over: bool,
    }

    impl World {
        fn new() -> Self {
            Self {
                written: 0,
                out: 0,
                owner: Owner::new(WINDOW),
                to_host: VecDeque::new(),
                to_owner: VecDeque::new(),
                host: Host::default(),
                pipe: VecDeque::new(),
                ended: false,
                read: 0,
                saw_end: false,
                runs: true,
                over: false,
            }
        }

        fn take_out(&mut self, in_all: u64) -> Result<(), String> {
            self.out += self.owner.read(in_all);
            if self.out > self.read {
                return Err(format!("J6: took out what was not read: {self:?}"));
            }
            Ok(())
        }

        fn unread(&self) -> u64 {
            self.pipe.len() as u64
        }

        fn tell(&mut self, mutant: Option<Mutant>) {
            let unread = match mutant {
                Some(Mutant::TellWritten) => 0,
                _ => self.unread(),
            };
            self.to_owner
                .extend(self.host.tell(unread).map(ToOwner::Read));
        }

        /// Returns every world that one step can lead to, but for the end of the job.
        fn steps(&self, mutant: Option<Mutant>) -> Result<Vec<Self>, String> {
            let mut next = Vec::new();
            if self.written < BYTES && self.written - self.out < PIPE {
                let mut world = self.clone();
                world.written += 1;
                next.push(world);
            }
            if let Some(look) = self.owner.look() {
                let mut world = self.clone();
                let skip = match mutant {
                    Some(Mutant::LookAtTheBeginning) => 0,
                    _ => look.skip,
                };
                let at = self.out + skip;
                if at < self.written {
                    world.owner.sent(1);
                    world.to_host.push_back(ToHost::Input(at));
                    next.push(world);
                } else if self.written == BYTES {
                    world.owner.ended();
                    world.to_host.push_back(ToHost::End);
                    next.push(world);
                }
            }
            match self.to_host.front() {
                Some(&ToHost::Input(byte)) if self.unread() < PIPE => {
                    let mut world = self.clone();
                    world.to_host.pop_front();
                    world.pipe.push_back(byte);
                    world.host.wrote(1);
                    world.to_owner.push_back(ToOwner::Credit);
                    world.tell(mutant);
                    next.push(world);
                }
                Some(ToHost::End) => {
                    let mut world = self.clone();
                    world.to_host.pop_front();
                    world.ended = true;
                    next.push(world);
                }
                _ => {}
            }
            if self.runs && mutant != Some(Mutant::LookOnlyWhenWriting) && self.host.is_behind() {
                let mut world = self.clone();
                world.tell(mutant);
                next.push(world);
            }
            if self.runs && !self.pipe.is_empty() {
                let mut world = self.clone();
                let byte = world.pipe.pop_front();
                if byte != Some(self.read) {
                    return Err(format!("J6: read {byte:?} instead of {}", self.read));
                }
                world.read += 1;
                next.push(world);
            }
            if self.runs && self.pipe.is_empty() && self.ended {
                let mut world = self.clone();
                world.saw_end = true;
                next.push(world);
            }
            if let Some(heard) = self.to_owner.front().cloned() {
                let mut world = self.clone();
                world.to_owner.pop_front();
                match heard {
                    ToOwner::Credit => world.owner.add_credit(1),
                    ToOwner::Read(in_all) => world.take_out(in_all)?,
                    ToOwner::Left(in_all) => {
                        let in_all = match mutant {
                            Some(Mutant::TakeOutSent) => u64::MAX,
                            _ => in_all,
                        };
                        world.owner.close();
                        world.take_out(in_all)?;
                        world.over = true;
                    }
                }
                next.push(world);
            }
            next.retain(|world| world != self);
            Ok(next)
        }

        fn check(&self, next: &[Self]) -> Result<(), String> {
            if self.over && self.to_owner.is_empty() && self.out != self.read {
                return Err(format!("J6: the next reader does not go on: {self:?}"));
            }
            let done = self.read == BYTES && self.saw_end;
            if self.runs && next.is_empty() && !done {
                return Err(format!("the job waits for ever: {self:?}"));
            }
            Ok(())
        }
    }

    /// Goes through every order of events.
    fn explore(mutant: Option<Mutant>) -> Result<usize, String> {
        let mut known = HashSet::from([World::new()]);
        let mut open = vec![World::new()];
        while let Some(world) = open.pop() {
            let mut next = world.steps(mutant)?;
            world.check(&next)?;
            if world.runs {
                let mut ended = world.clone();
                ended.runs = false;
                ended
                    .to_owner
                    .push_back(ToOwner::Left(world.host.read(world.unread())));
                next.push(ended);
            }
            open.extend(next.into_iter().filter(|world| known.insert(world.clone())));
        }
        Ok(known.len())
    }

    #[test]
    fn every_order_of_events_leaves_what_was_not_read() {
        let worlds = explore(None).expect("keeps J6");
        assert!(worlds > 500, "{worlds}");
    }

    #[test]
    fn each_mutant_is_caught() {
        for mutant in [
            Mutant::TellWritten,
            Mutant::LookOnlyWhenWriting,
            Mutant::LookAtTheBeginning,
            Mutant::TakeOutSent,
        ] {
            let found = explore(Some(mutant));
            assert!(found.is_err(), "{mutant:?} passed {found:?} worlds");
        }
    }

    #[test]
    fn a_host_cannot_claim_more_than_it_got() {
        let mut owner = Owner::default();
        owner.sent(10);
        assert_eq!(owner.read(7), 7);
        assert_eq!(owner.read(5), 0);
        assert_eq!(owner.read(u64::MAX), 3);
        assert_eq!(owner.look().map(|look| look.skip), Some(0));
    }
}
