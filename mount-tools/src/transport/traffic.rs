//! What goes over connections.

use quinn::Connection;
use std::ops::AddAssign;

/// Bytes of datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// To the peer.
    pub sent: u64,
    /// From it.
    pub received: u64,
}

impl Traffic {
    pub(super) fn of(connection: &Connection) -> Self {
        let stats = connection.stats();
        Self {
            sent: stats.udp_tx.bytes,
            received: stats.udp_rx.bytes,
        }
    }
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, more: Self) {
        self.sent += more.sent;
        self.received += more.received;
    }
}
