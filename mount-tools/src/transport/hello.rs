//! The first ten bytes of each direction: magic, wire version, and the node that speaks.
//!
//! They open the shared stream. The certificates are verified by then; the hello says which of its names the
//! peer goes by, and lets nodes without a common version part with a clear word. The dialler's first call waits
//! for the acceptor's hello, because in TLS 1.3 its own handshake ends before its certificate was judged.
//!
//! The dialler offers a version, at first its newest; who speaks it says it back, who does not closes with
//! [`Close::Version`], and is offered the next older one in a new connection. Why not a range: docs/decisions/0008.

use super::frame::{FrameError, read_exact};
use bytes::{Buf as _, BufMut as _};
use consistency::NodeId;
use consistency::wire::{WIRE_VERSION, WIRE_VERSION_MIN};
use quinn::{Connection, ConnectionError, RecvStream, SendStream, VarInt};
use std::io;

const MAGIC: [u8; 4] = *b"glu\n";
const HELLO_BYTES: usize = 10;

/// What a node says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) version: u32,
    pub(super) node: NodeId,
}

/// The versions that a node speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The oldest one.
    pub min: u32,
    /// The newest one.
    pub max: u32,
}

impl Default for Versions {
    fn default() -> Self {
        Self {
            min: WIRE_VERSION_MIN,
            max: WIRE_VERSION,
        }
    }
}

/// Why a connection was closed; the number travels, the words beside it are for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Close {
    /// The node stops, or has no use for the peer any more.
    Goodbye = 0,
    /// The peer broke the protocol.
    Malformed = 1,
    /// The peer speaks another version of it.
    Version = 2,
    /// The peer's certificate is not that of the node it claims to be.
    Identity = 3,
    /// The peer has a newer connection.
    Replaced = 4,
    /// The peer's certificate was revoked.
    Revoked = 5,
}

impl From<Close> for VarInt {
    fn from(close: Close) -> Self {
        Self::from_u32(close as u32)
    }
}

impl Close {
    /// Returns whether the peer has closed for this reason.
    pub(super) fn is(self, reason: &ConnectionError) -> bool {
        matches!(reason, ConnectionError::ApplicationClosed(closed) if closed.error_code == self.into())
    }

    /// Ends a connection that has not ended yet; returns why it has.
    pub(super) async fn end(self, connection: &Connection, why: &str) -> ConnectionError {
        // Closing again would hide the first reason.
        if connection.close_reason().is_none() {
            connection.close(self.into(), why.as_bytes());
        }
        connection.closed().await
    }
}

impl Hello {
    /// Returns what `node` says in its newest version.
    #[cfg(test)]
    pub(super) fn of(node: NodeId) -> Self {
        Self {
            version: WIRE_VERSION,
            node,
        }
    }

    pub(super) async fn send(self, stream: &mut SendStream) -> Result<(), io::Error> {
        Ok(stream.write_all(&self.encode()).await?)
    }

    pub(super) async fn receive(stream: &mut RecvStream) -> Result<Self, FrameError> {
        let mut bytes = [0_u8; HELLO_BYTES];
        read_exact(stream, &mut bytes).await?;
        Self::decode(&bytes)
            .ok_or_else(|| FrameError::Malformed("the peer does not speak Glu".to_owned()))
    }

    /// Returns what is wrong if the peer wants to speak another version.
    pub(super) fn version_conflict(self, spoken: Versions) -> Option<String> {
        let Versions { min, max } = spoken;
        (!(min..=max).contains(&self.version)).then(|| {
            format!(
                "node {} wants to speak version {}, this node speaks {min} to {max}: upgrade the older one, one version at a time",
                self.node, self.version
            )
        })
    }

    fn encode(self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        let mut out = &mut bytes[..];
        out.put_slice(&MAGIC);
        out.put_u32_le(self.version);
        out.put_u16_le(self.node.0);
        bytes
    }

    fn decode(bytes: &[u8; HELLO_BYTES]) -> Option<Self> {
        let mut rest = bytes.strip_prefix(&MAGIC)?;
        Some(Self {
            version: rest.get_u32_le(),
            node: NodeId(rest.get_u16_le()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_these_in_every_version() {
        let hello = Hello {
            version: 1,
            node: NodeId(300),
        };
        assert_eq!(&hello.encode(), b"glu\n\x01\0\0\0\x2c\x01");
        assert_eq!(Hello::decode(&hello.encode()), Some(hello));
        assert_eq!(Hello::decode(b"GET / HTTP"), None);
    }

    #[test]
    fn another_version_is_named() {
        let node = NodeId(4);
        let spoken = Versions::default();
        for version in [WIRE_VERSION_MIN, WIRE_VERSION] {
            assert_eq!(Hello { version, node }.version_conflict(spoken), None);
        }
        let older = WIRE_VERSION_MIN - 1;
        let conflict = Hello {
            version: older,
            node,
        }
        .version_conflict(spoken);
        assert!(conflict.is_some(), "two versions apart");
        let why = Hello { version: 99, node }.version_conflict(spoken);
        let why = why.expect("99 is not ours");
        assert!(why.contains("node 4") && why.contains("99"), "{why}");
    }
}
