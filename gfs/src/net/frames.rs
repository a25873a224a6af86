//! Messages on a byte stream: each a length in four bytes and its bytes.

use consistency::wire::{self, MESSAGE_BYTES_MAX};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Sends a message.
///
/// # Errors
/// Of the stream.
pub async fn send<T: Serialize + Sync>(
    stream: &mut (impl AsyncWrite + Unpin + Send),
    message: &T,
) -> io::Result<()> {
    let bytes = wire::encode(message);
    let length = u32::try_from(bytes.len()).expect("a message is far below 4 GiB");
    stream.write_u32_le(length).await?;
    stream.write_all(&bytes).await?;
    stream.flush().await
}

/// Receives a message that was sent with [`send`].
///
/// # Errors
/// Of the stream; `InvalidData` if that is none.
pub async fn receive<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin + Send),
) -> io::Result<T> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let length = stream.read_u32_le().await? as usize;
    if length > MESSAGE_BYTES_MAX {
        return Err(invalid(format!("a message of {length} bytes")));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    wire::decode(&bytes).map_err(|error| invalid(error.to_string()))
}

/// Compares a message with what it is in all programs of this protocol.
#[cfg(test)]
#[track_caller]
pub(crate) fn check_golden<T>(message: &T, golden: &[u8])
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    assert_eq!(wire::encode(message), golden, "{message:?} changed");
    assert_eq!(&wire::decode::<T>(golden).expect("decodes"), message);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_frame_that_is_too_long_is_refused() {
        let mut bytes = &[255, 255, 255, 255, 0][..];
        let error = receive::<u8>(&mut bytes).await.expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
