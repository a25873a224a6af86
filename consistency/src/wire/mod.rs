//! Every message that crosses the network.
//!
//! Messages are enums encoded by [`encode`] and decoded by [`decode`], the one place that knows the
//! codec. Variants are part of the protocol: append, never reorder; `docs/protocol.md` has the
//! meaning of each field. A decoder never allocates more than [`MESSAGE_BYTES_MAX`].

pub mod chunk;
#[cfg(test)]
mod golden;
pub mod lease;
pub mod lock;
pub mod meta;
pub mod node;
pub mod notes;
pub mod request;
pub mod watch;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Version of the protocol: of the messages, and of the commands in the log. A version only appends to that before it.
pub const WIRE_VERSION: u32 = 12;

/// The oldest version that this program still speaks, with nodes that speak no other: a cluster is upgraded node by node.
pub const WIRE_VERSION_MIN: u32 = WIRE_VERSION - 1;

/// Upper limit of one message: the largest chunk (4 MiB) with room for its header.
pub const MESSAGE_BYTES_MAX: usize = 5 << 20;

/// A message that is not one of ours: truncated, too large, or of another version.
#[derive(Debug, thiserror::Error)]
#[error("malformed message: {0}")]
pub struct DecodeError(String);

/// Encodes a message.
///
/// # Panics
/// If the type cannot be encoded at all, which only a bug in its definition can cause.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    bincode::serde::encode_to_vec(message, bincode::config::standard())
        .expect("wire types are encodable")
}

/// Decodes a message; trailing bytes are an error.
///
/// # Errors
/// [`DecodeError`] if `bytes` is not exactly one message of type `T`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let config = bincode::config::standard().with_limit::<MESSAGE_BYTES_MAX>();
    let (message, used) = bincode::serde::decode_from_slice(bytes, config)
        .map_err(|error| DecodeError(error.to_string()))?;
    if used == bytes.len() {
        Ok(message)
    } else {
        Err(DecodeError(format!(
            "{} bytes left over",
            bytes.len() - used
        )))
    }
}
/// Checks that a message is these bytes on the wire, in both directions.
#[cfg(test)]
#[track_caller]
fn check_golden<T>(message: &T, golden: &[u8])
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    assert_eq!(encode(message), golden, "{message:?} changed on the wire");
    assert_eq!(&decode::<T>(golden).expect("decodes"), message);
}
