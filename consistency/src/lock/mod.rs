//! Locks of programs, across nodes: what flock(2) and fcntl(2) of one inode hold, and who waits for what.
//!
//! [`Server`] is a state machine without I/O, at the metadata leader; [`Ranges`] are one owner's locks, which its node
//! remembers as well, to tell the next leader. `docs/protocol.md` has the table.
//!
//! # Words
//! * **owner** - whom the kernel takes for the holder: a table of descriptors (fcntl), an open file (flock, OFD).
//! * **in the way** - a lock of another owner and the same kind that overlaps, one of the two being a write lock.
//! * **waiter** - a request that something is in the way of. It is named by its session and number.
//!
//! # Rules
//! * **LK1 exclusion** - no lock is in the way of another.
//! * **LK2 bytes** - how an owner holds a byte is what its last granted request said of it; ranges split and merge.
//! * **LK3 first come, first served** - after each event no waiter is left that nothing is in the way of; those that
//!   have come free are granted in the order of their arrival. As on Linux a new request that nothing held is in
//!   the way of does not queue behind waiters: it may belong to a holder for whom they wait.
//! * **LK4 deadlock** - a fcntl lock is not waited for if its holder waits, over any number of owners and inodes, for
//!   the one who asks.
//! * **LK5 end** - the end of a session takes its locks and waiters with it.

mod ranges;
mod server;
#[cfg(test)]
mod tests;

pub use ranges::Ranges;
pub use server::{
    Acquired, RANGES_PER_OWNER_MAX, RANGES_PER_SESSION_MAX, Refused, Server,
    WAITERS_PER_SESSION_MAX, WaitId,
};

/// Deliberate faults: each takes one rule away, and the random test must notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// LK1: nothing is in the way of a reader.
    ReadersPass,
    /// LK2: what is behind a range that was cut out is lost.
    LoseTheRest,
    /// LK3: a release wakes the first waiter only.
    WakeOne,
    /// LK3: a release wakes the youngest waiter first.
    WakeBackwards,
    /// LK4: only a direct cycle of two is seen.
    DirectCycles,
    /// LK5: waiters outlive their session.
    EndKeepsWaiters,
    /// LK5: the end of a session wakes nobody.
    EndWakesNobody,
}

/// The fault of one state machine: none in a real build, where every question is answered at compile time.
#[derive(Clone, Copy, Debug, Default)]
struct Faults(#[cfg(test)] Option<Fault>);

impl Faults {
    #[cfg(test)]
    fn is(self, fault: Fault) -> bool {
        self.0 == Some(fault)
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self, reason = "same signature as in tests")]
    const fn is(self, _: Fault) -> bool {
        false
    }
}
