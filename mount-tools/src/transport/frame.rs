//! What travels between two nodes once they have greeted each other.
//!
//! A frame is a header of [`HEADER_BYTES`] and a body, numbers little-endian:
//!
//! | len u32 | kind u8 | call id u64 | service u8 | deadline u32 | body |
//! | --- | --- | --- | --- | --- | --- |
//! | of the body | [`Kind`] | chosen by the caller | calls only | ms, calls only | `len` bytes |
//!
//! Frames with a body up to [`SHARED_BODY_BYTES_MAX`] share one long-lived stream, which saves a stream per
//! call and lets many frames share a packet. A larger one has a stream of its own, so that it does not stand
//! in the way of the small ones; the format is the same.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use consistency::wire::MESSAGE_BYTES_MAX;
use quinn::{Connection, RecvStream, SendStream};
use std::io;
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;

/// Length of a header in bytes.
pub(super) const HEADER_BYTES: usize = 18;

/// Largest body on the shared stream: some 50 us of a 10 Gbit/s link, about the time of a call.
pub(super) const SHARED_BODY_BYTES_MAX: usize = 64 << 10;

/// Frames that wait for the shared stream of one connection; a sender waits when it is full.
pub(super) const QUEUED_FRAMES_MAX: usize = 512;

/// Frames written at once, to bound what one write holds in memory (4 MiB).
const WRITTEN_FRAMES_MAX: usize = 64;

/// Room for the next read of the shared stream.
const READ_BYTES: usize = 64 << 10;

/// What a frame is; the number travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Caller: asks a service.
    Call = 1,
    /// Callee: the answer.
    Reply = 2,
    /// Callee: the call was not begun; the body says why.
    Refused = 3,
    /// Callee: the call was begun and has no usable answer; the body says why.
    Failed = 4,
    /// Caller, first on a bidirectional stream: hands it to a service. No body.
    Open = 5,
}

/// A frame, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) id: u64,
    /// The number of a service, which this node need not know.
    pub(super) service: u8,
    pub(super) deadline_ms: u32,
    pub(super) body: Bytes,
}

/// Why reading frames has come to an end.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    /// The peer breaks the protocol: the connection has to go.
    #[error("{0}")]
    Malformed(String),
    /// The stream or its connection is gone.
    #[error("{0}")]
    Gone(#[from] io::Error),
}

/// A header whose body is still to come.
#[derive(Debug)]
pub(super) struct Header {
    frame: Frame,
    body_len: usize,
}

impl Frame {
    /// Makes a callee's frame.
    pub(super) fn answer(kind: Kind, id: u64, body: impl Into<Bytes>) -> Self {
        Self {
            kind,
            id,
            service: 0,
            deadline_ms: 0,
            body: body.into(),
        }
    }

    /// Says whether the frame goes on the shared stream.
    pub(super) fn is_small(&self) -> bool {
        self.body.len() <= SHARED_BODY_BYTES_MAX
    }

    pub(super) fn put_header(&self, out: &mut BytesMut) {
        let len = u32::try_from(self.body.len()).expect("senders keep to MESSAGE_BYTES_MAX");
        out.put_u32_le(len);
        out.put_u8(self.kind as u8);
        out.put_u64_le(self.id);
        out.put_u8(self.service);
        out.put_u32_le(self.deadline_ms);
    }
}

impl Header {
    /// Decodes a header; a body above `body_bytes_max` is an error.
    fn decode(mut bytes: &[u8], body_bytes_max: usize) -> Result<Self, FrameError> {
        let len = bytes.get_u32_le();
        let kind = match bytes.get_u8() {
            1 => Kind::Call,
            2 => Kind::Reply,
            3 => Kind::Refused,
            4 => Kind::Failed,
            5 => Kind::Open,
            other => {
                let why = format!("there is no frame of kind {other}");
                return Err(FrameError::Malformed(why));
            }
        };
        let frame = Frame {
            kind,
            id: bytes.get_u64_le(),
            service: bytes.get_u8(),
            deadline_ms: bytes.get_u32_le(),
            body: Bytes::new(),
        };
        match usize::try_from(len) {
            Ok(body_len) if body_len <= body_bytes_max => Ok(Self { frame, body_len }),
            _ => Err(FrameError::Malformed(format!(
                "a body of {len} bytes is over the limit of {body_bytes_max}"
            ))),
        }
    }

    pub(super) fn id(&self) -> u64 {
        self.frame.id
    }

    /// Returns how long the caller waits.
    pub(super) fn deadline(&self) -> Duration {
        Duration::from_millis(self.frame.deadline_ms.into())
    }

    fn with(mut self, body: Bytes) -> Frame {
        self.frame.body = body;
        self.frame
    }
}

/// Reads the frames of a shared stream.
#[derive(Debug)]
pub(super) struct FrameReader {
    stream: RecvStream,
    buffer: BytesMut,
}

impl FrameReader {
    pub(super) fn new(stream: RecvStream) -> Self {
        Self {
            stream,
            buffer: BytesMut::with_capacity(READ_BYTES),
        }
    }

    /// Returns the next frame, or none at the end of the stream.
    pub(super) async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(frame) = take_frame(&mut self.buffer)? {
                return Ok(Some(frame));
            }
            self.buffer.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(truncated())
                };
            }
        }
    }
}

/// Takes a frame off the buffer if it is there in full.
fn take_frame(buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    let Some(header) = buffer.get(..HEADER_BYTES) else {
        return Ok(None);
    };
    let header = Header::decode(header, SHARED_BODY_BYTES_MAX)?;
    let end = HEADER_BYTES + header.body_len;
    let Some(body) = buffer.get(HEADER_BYTES..end) else {
        return Ok(None);
    };
    // Copied: a slice would keep the whole buffer alive for as long as a service keeps a small body.
    let body = Bytes::copy_from_slice(body);
    buffer.advance(end);
    Ok(Some(header.with(body)))
}

/// Writes queued frames to a shared stream, as many at once as wait, until the queue is closed.
pub(super) async fn write_frames(
    mut stream: SendStream,
    mut queue: mpsc::Receiver<Frame>,
) -> Result<(), quinn::WriteError> {
    let mut frames = Vec::with_capacity(WRITTEN_FRAMES_MAX);
    let mut bytes = BytesMut::new();
    while queue.recv_many(&mut frames, WRITTEN_FRAMES_MAX).await > 0 {
        for frame in frames.drain(..) {
            bytes.reserve(HEADER_BYTES + frame.body.len());
            frame.put_header(&mut bytes);
            bytes.put_slice(&frame.body);
        }
        stream.write_chunk(bytes.split().freeze()).await?;
    }
    Ok(())
}

/// Sends a frame on a stream of its own. Dropped half-way it resets the stream, so that the peer does not
/// take the part for the whole.
pub(super) async fn send_alone(connection: &Connection, frame: Frame) -> Result<(), io::Error> {
    let stream = connection.open_uni().await?;
    let mut stream = ResetOnDrop(Some(stream));
    let mut header = BytesMut::with_capacity(HEADER_BYTES);
    frame.put_header(&mut header);
    let mut parts = [header.freeze(), frame.body];
    stream.inner().write_all_chunks(&mut parts).await?;
    // Refused only if the peer wants no more of it, and then there is nothing left to do.
    stream.0.take().map(|mut stream| stream.finish().ok());
    Ok(())
}

/// Reads the header of a frame that has a stream of its own.
pub(super) async fn read_header(stream: &mut RecvStream) -> Result<Header, FrameError> {
    let mut bytes = [0_u8; HEADER_BYTES];
    read_exact(stream, &mut bytes).await?;
    Header::decode(&bytes, MESSAGE_BYTES_MAX)
}

/// Reads the body of a frame that has a stream of its own, and the end of the stream.
pub(super) async fn read_body(
    header: Header,
    stream: &mut RecvStream,
) -> Result<Frame, FrameError> {
    let len = header.body_len;
    let mut body = BytesMut::with_capacity(len);
    while let Some(chunk) = stream
        .read_chunk(usize::MAX, true)
        .await
        .map_err(io::Error::from)?
    {
        if body.len() + chunk.bytes.len() > len {
            let why = format!("bytes left over after a body of {len} bytes");
            return Err(FrameError::Malformed(why));
        }
        body.extend_from_slice(&chunk.bytes);
    }
    if body.len() < len {
        return Err(truncated());
    }
    Ok(header.with(body.freeze()))
}

/// Reads the first frame of a bidirectional stream: who is to have it.
pub(super) async fn read_open(stream: &mut RecvStream) -> Result<Frame, FrameError> {
    let mut bytes = [0_u8; HEADER_BYTES];
    read_exact(stream, &mut bytes).await?;
    let header = Header::decode(&bytes, 0)?;
    if header.frame.kind != Kind::Open {
        let why = format!("a stream begins with {:?}", header.frame.kind);
        return Err(FrameError::Malformed(why));
    }
    Ok(header.frame)
}

pub(super) async fn read_exact(stream: &mut RecvStream, out: &mut [u8]) -> Result<(), FrameError> {
    stream.read_exact(out).await.map_err(|error| match error {
        quinn::ReadExactError::FinishedEarly(_) => truncated(),
        quinn::ReadExactError::ReadError(error) => FrameError::Gone(error.into()),
    })
}

/// Returns a deadline as it travels: in milliseconds, rounded up, so that it is never shorter.
pub(super) fn deadline_ms(deadline: Duration) -> u32 {
    u32::try_from(deadline.as_micros().div_ceil(1_000)).unwrap_or(u32::MAX)
}

fn truncated() -> FrameError {
    FrameError::Malformed("the stream ends in the middle of a frame".to_owned())
}

/// A stream that quinn would otherwise finish when it is dropped, whatever was written.
struct ResetOnDrop(Option<SendStream>);

impl ResetOnDrop {
    fn inner(&mut self) -> &mut SendStream {
        self.0.as_mut().expect("taken only at the end")
    }
}

impl Drop for ResetOnDrop {
    fn drop(&mut self) {
        if let Some(mut stream) = self.0.take() {
            // Refused only if it is reset already.
            stream.reset(0_u32.into()).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: Kind, body: &'static [u8]) -> Frame {
        Frame {
            kind,
            id: 0x0102_0304_0506_0708,
            service: 3,
            deadline_ms: 30_000,
            body: Bytes::from_static(body),
        }
    }

    fn encode(frame: &Frame) -> BytesMut {
        let mut out = BytesMut::new();
        frame.put_header(&mut out);
        out.put_slice(&frame.body);
        out
    }

    #[test]
    fn the_bytes_are_these() {
        let expected = b"\x02\0\0\0\x01\x08\x07\x06\x05\x04\x03\x02\x01\x03\x30\x75\0\0hi";
        assert_eq!(&encode(&frame(Kind::Call, b"hi"))[..], expected);
    }

    #[test]
    fn frames_survive_however_they_are_cut() {
        let frames = [
            frame(Kind::Call, b"one"),
            frame(Kind::Reply, b""),
            frame(Kind::Refused, b"three"),
            frame(Kind::Failed, b"4"),
            frame(Kind::Open, b""),
        ];
        let bytes: Vec<u8> = frames.iter().flat_map(encode).collect();
        for step in 1..bytes.len() {
            let mut buffer = BytesMut::new();
            let mut seen = Vec::new();
            for piece in bytes.chunks(step) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = take_frame(&mut buffer).expect("well-formed") {
                    seen.push(frame);
                }
            }
            assert_eq!(seen, frames, "in pieces of {step}");
        }
    }

    /// Changes a byte of a header and expects these words.
    fn check(at: usize, byte: u8, expected: &str) {
        let mut bytes = encode(&frame(Kind::Call, b""));
        bytes[at] = byte;
        let error = take_frame(&mut bytes).expect_err(expected).to_string();
        assert!(error.contains(expected), "no {expected:?} in {error:?}");
    }

    #[test]
    fn malformed_headers_are_refused() {
        check(4, 0, "no frame of kind 0");
        check(4, 6, "no frame of kind 6");
        check(4, 255, "no frame of kind 255");
        check(3, 1, "over the limit of 65536");
        check(2, 2, "a body of 131072 bytes");
    }

    #[test]
    fn deadlines_round_up() {
        assert_eq!(deadline_ms(Duration::from_micros(1)), 1);
        assert_eq!(deadline_ms(Duration::from_millis(7)), 7);
        assert_eq!(deadline_ms(Duration::MAX), u32::MAX);
    }
}
