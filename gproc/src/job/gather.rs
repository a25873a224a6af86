//! How the processes of one command that run on one node enter a barrier together (J9). Pure: who comes, enters and ends is
//! told.
//!
//! A host does not know how many processes of a command it will have, nor needs to: it gathers those that are there. When
//! all of them are in, one message tells the owner who, with a *token*; the owner gives the token back when everybody is in,
//! and those of the message go on. A process that comes later makes a message of its own, in its first barrier at most.
//!
//! | a process | some of the others are not in | all others are in |
//! | --- | --- | --- |
//! | comes | nothing | nothing: it is awaited |
//! | enters | it waits | those of whom the owner has not heard are sent, through this one |
//! | ends | those whose message went through it wait again: its token may be lost with it | the same, and then they are sent, through one of them. The owner hears of the end itself: nobody gets through its next barrier |
//! | of the owner: a token | the processes of its message go on, and no others | the same |

use std::collections::{BTreeMap, BTreeSet};

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gathered {
    /// Tell the owner, on the stream of this process, that these are in.
    Send {
        /// Whose stream.
        through: u64,
        /// What the owner gives back.
        token: u32,
        /// Who is in.
        processes: Vec<u64>,
    },
    /// Let these go on.
    Release(Vec<u64>),
}

/// The processes of one command on one node.
#[derive(Debug, Default)]
pub struct Gathering {
    here: BTreeSet<u64>,
    /// Those that are in, and of whom the owner has not heard.
    waiting: BTreeSet<u64>,
    /// Those of whom it has.
    sent: BTreeMap<u32, Message>,
    tokens: u32,
    /// For tests: rules that it does without.
    mutant: Option<Mutant>,
}

/// What the owner has heard.
#[derive(Debug)]
struct Message {
    through: u64,
    processes: Vec<u64>,
}

/// A gathering that does not keep J9, for the tests of those that look for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(hidden)]
pub enum Mutant {
    /// Any token lets everybody go on.
    ForgetsTokens,
    /// An end is of no interest.
    AwaitsEnded,
}

impl Gathering {
    /// Returns one that does not keep the rules.
    #[doc(hidden)]
    #[must_use]
    pub fn mutant(mutant: Option<Mutant>) -> Self {
        Self {
            mutant,
            ..Self::default()
        }
    }

    /// A process is here.
    pub fn come(&mut self, process: u64) {
        self.here.insert(process);
    }

    /// A process is in the barrier.
    pub fn enter(&mut self, process: u64) -> Option<Gathered> {
        self.waiting.insert(process);
        self.send(process)
    }

    /// A process has ended.
    pub fn end(&mut self, process: u64) -> Option<Gathered> {
        self.here.remove(&process);
        self.waiting.remove(&process);
        for message in self.sent.values_mut() {
            message.processes.retain(|of| *of != process);
        }
        if self.mutant == Some(Mutant::AwaitsEnded) {
            return None;
        }
        let waiting = &mut self.waiting;
        self.sent.retain(|_, message| {
            let lost = message.through == process;
            if lost {
                waiting.extend(message.processes.drain(..));
            }
            !lost
        });
        self.send(*self.waiting.first()?)
    }

    /// The owner gives a token back.
    pub fn pass(&mut self, token: u32) -> Option<Gathered> {
        if self.mutant == Some(Mutant::ForgetsTokens) {
            let sent = std::mem::take(&mut self.sent).into_values();
            let mut released: Vec<u64> = sent.flat_map(|message| message.processes).collect();
            released.extend(std::mem::take(&mut self.waiting));
            return Some(Gathered::Release(released));
        }
        let released = self.sent.remove(&token)?.processes;
        Some(Gathered::Release(released))
    }

    /// Returns whether nobody is here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.here.is_empty()
    }

    fn send(&mut self, through: u64) -> Option<Gathered> {
        let heard = self.sent.values().map(|message| message.processes.len());
        let heard: usize = heard.sum();
        if self.waiting.len() + heard < self.here.len() {
            return None;
        }
        let processes: Vec<u64> = std::mem::take(&mut self.waiting).into_iter().collect();
        let token = self.tokens;
        self.tokens = self.tokens.wrapping_add(1);
        let message = Message {
            through,
            processes: processes.clone(),
        };
        self.sent.insert(token, message);
        Some(Gathered::Send {
            through,
            token,
            processes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(processes: &[u64]) -> Gathering {
        let mut gathering = Gathering::default();
        processes.iter().for_each(|of| gathering.come(*of));
        gathering
    }

    fn send(through: u64, token: u32, processes: &[u64]) -> Option<Gathered> {
        Some(Gathered::Send {
            through,
            token,
            processes: processes.into(),
        })
    }

    #[test]
    fn one_message_for_all_of_a_node() {
        let mut gathering = of(&[1, 2, 3]);
        for token in 0..3 {
            assert_eq!(gathering.enter(2), None);
            assert_eq!(gathering.enter(3), None);
            assert_eq!(gathering.enter(1), send(1, token, &[1, 2, 3]));
            let released = Gathered::Release(vec![1, 2, 3]);
            assert_eq!(gathering.pass(token), Some(released));
            assert_eq!(gathering.pass(token), None);
        }
    }

    #[test]
    fn who_comes_late_enters_by_itself() {
        let mut gathering = of(&[1]);
        assert_eq!(gathering.enter(1), send(1, 0, &[1]));
        gathering.come(2);
        assert_eq!(gathering.enter(2), send(2, 1, &[2]));
        assert_eq!(gathering.pass(0), Some(Gathered::Release(vec![1])));
        // The first is in the next barrier before the second has left this one.
        assert_eq!(gathering.enter(1), send(1, 2, &[1]));
        assert_eq!(gathering.pass(1), Some(Gathered::Release(vec![2])));
        assert_eq!(gathering.enter(2), send(2, 3, &[2]));
    }

    #[test]
    fn who_has_ended_is_not_awaited() {
        let mut gathering = of(&[1, 2, 3]);
        assert_eq!(gathering.enter(2), None);
        assert_eq!(gathering.end(1), None);
        assert_eq!(gathering.end(3), send(2, 0, &[2]));
        assert_eq!(gathering.end(2), None);
        assert!(gathering.is_empty());
    }

    #[test]
    fn a_token_that_is_lost_with_its_process_is_asked_for_again() {
        let mut gathering = of(&[1, 2]);
        assert_eq!(gathering.enter(1), None);
        assert_eq!(gathering.enter(2), send(2, 0, &[1, 2]));
        assert_eq!(gathering.end(2), send(1, 1, &[1]));
        assert_eq!(gathering.pass(0), None);
        assert_eq!(gathering.pass(1), Some(Gathered::Release(vec![1])));
    }
}
