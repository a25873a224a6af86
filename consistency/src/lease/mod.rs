//! Leases: what a session may answer from its own caches, and who must forget what before a change.
//!
//! Two state machines without I/O. [`Server`] runs at the metadata leader: it knows every grant, orders the
//! operations on each inode, breaks the grants that are in an operation's way and says when it may run.
//! [`Client`] runs on every node: it knows what the leader has granted to the node's session and says what
//! may be cached and served. `docs/protocol.md` has their tables and the messages between them.
//!
//! # Words
//! * **session** - one life of a node's client. Its grants live exactly as long as it does.
//! * **grant** - a session's right on one inode (attributes and content, or the names of a directory), in
//!   one of three modes: known, shared, exclusive. It has a name, its lease id.
//! * **break** - the demand that a holder forgets a part of an inode and keeps at most some mode; the
//!   **ack** says that it has.
//! * **claim** - what an operation needs of an inode while it runs. Claims queue per inode.
//! * **reign** - the time of one leader; grants do not outlast it, they are reclaimed under the next one.
//!
//! # Rules
//! * **L1 exclusion** - a change runs only when no other session can serve what it changes, and until it is
//!   finished nobody is given a new right to.
//! * **L2 order** - a reply may be cached only if its grant is younger than every break and every release of
//!   that inode the client has carried out: replies and callbacks cross on the way.
//! * **L3 conservative expiry** - a client counts the term from when it *sent* the request, less [`DRIFT`]; the
//!   server counts it from when it answered. The client always stops first. [`Rates`] finds clocks that run further apart.
//! * **L4 named grants** - each break names the grant anew, and only an ack or a release with that name
//!   touches it: what is late or doubled is about a name that is gone.
//! * **L5 first come, first served** - a claim waits only for incompatible claims that came before it.
//! * **L6 grace** - a new leader runs nothing until it knows of every session of the old reign what it may hold, or
//!   that it has ended. Grants of an old reign that come late are void.
//! * **L7 crossing** - facts are cacheable only if no change of their inode finished while they were on
//!   their way from the state to the reply.
//! * **L8 in flight** - an operation that may be in the log holds its claims until it is finished, even if its
//!   session has ended.
//! * **L9 own change** - a client does not serve an inode while a change of its own on it is unanswered: others
//!   may have seen the change already.
//! * **L10 told first** - what the leader's own session is granted it uses only when a majority of the voters has noted
//!   it: the session may be lost together with the leader.
//! * **L11 ended** - what a session held counts for nothing from its end on, however long it takes to clear it away.
//! * **F1 bypass** - a session that owes an ack gets its reads of that inode answered at once, from the present
//!   state and not to be cached: its ack may be waiting for them.
//!
//! `sim` checks them in random worlds, and that it notices each one missing.

mod client;
mod crossings;
mod mutant;
mod notes;
mod rates;
mod server;
#[cfg(test)]
mod sim;

pub use client::{Client, Stamp};
pub use notes::{Notes, longest};
pub use rates::{Apart, Rates, Reading};
pub use server::{
    Action, BeginError, Claim, Config, LockNotes, Need, OPS_PER_SESSION_MAX, ReclaimError, Renewal,
    Server, SessionEnded,
};

use crate::{Epoch, LeaseId};

/// Clocks of two nodes may run apart by up to one part in this many.
pub const DRIFT: u64 = 50;

/// Low bits of a lease id that count the grants of one reign; the bits above hold the reign. 2^40 grants are
/// 127 days of 100,000 in each second, 2^24 reigns are an election a minute for 31 years.
const REIGN_SHIFT: u32 = 40;

/// Returns the number before the first lease id of a reign: ids of later reigns are always larger.
fn lease_floor(reign: Epoch) -> LeaseId {
    assert!(
        reign.0 < 1 << (u64::BITS - REIGN_SHIFT),
        "reign {reign} does not fit into a lease id"
    );
    LeaseId(reign.0 << REIGN_SHIFT)
}
