//! Frames on asynchronous streams. Reading is cancel-safe: what was read of a frame stays in the reader.

use super::protocol::{PING_EVERY, checked_len, malformed};
use bytes::{Buf, Bytes, BytesMut};
use consistency::wire::decode;
use serde::de::DeserializeOwned;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

/// Frames that may wait for a stream's writer.
const FRAMES_QUEUED_MAX: usize = 8;

/// Takes frames off a stream.
pub(super) struct FrameReader<R> {
    inner: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(inner: R) -> Self {
        Self {
            inner,
            buffer: BytesMut::new(),
        }
    }

    /// Returns the stream as if nothing had been read of it but whole frames.
    #[cfg(test)]
    pub(super) fn into_rest(self) -> impl AsyncRead + Unpin {
        AsyncReadExt::chain(io::Cursor::new(self.buffer), self.inner)
    }

    /// Returns the next frame with its header; `None`: the stream ended between two frames.
    pub(super) async fn next_whole(&mut self, bytes_max: usize) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(header) = self.buffer.first_chunk::<4>() {
                let len = 4 + checked_len(*header, bytes_max)?;
                if self.buffer.len() >= len {
                    return Ok(Some(self.buffer.split_to(len).freeze()));
                }
                // Room grows with what has come, not with what the header claims.
                self.buffer.reserve((len - self.buffer.len()).min(64 << 10));
            }
            if self.inner.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
        }
    }

    /// Returns the next message; `None`: the stream ended between two frames.
    pub(super) async fn next<T: DeserializeOwned>(
        &mut self,
        bytes_max: usize,
    ) -> io::Result<Option<T>> {
        let Some(mut frame) = self.next_whole(bytes_max).await? else {
            return Ok(None);
        };
        frame.advance(4);
        decode(&frame).map(Some).map_err(malformed)
    }
}

/// Writes queued frames in order from a task of its own; the stream is shut down when all senders are gone.
pub(super) struct FrameWriter {
    queue: mpsc::Sender<Bytes>,
    task: Aborting,
}

impl FrameWriter {
    pub(super) fn new(mut inner: impl AsyncWrite + Send + Unpin + 'static) -> Self {
        let (queue, mut frames) = mpsc::channel::<Bytes>(FRAMES_QUEUED_MAX);
        let task = tokio::spawn(async move {
            while let Some(frame) = frames.recv().await {
                if inner.write_all(&frame).await.is_err() {
                    // The reader's side of the connection notices too and ends the job.
                    return;
                }
                if frames.is_empty() && inner.flush().await.is_err() {
                    return;
                }
            }
            inner.shutdown().await.ok();
        });
        Self {
            queue,
            task: Aborting(task),
        }
    }

    /// Returns a way to queue frames.
    pub(super) fn sender(&self) -> FrameSender {
        FrameSender(self.queue.clone())
    }

    /// Waits until everything is written and the stream is shut down. When this is cancelled the rest is dropped.
    pub(super) async fn finish(self) {
        let Self { queue, mut task } = self;
        drop(queue);
        (&mut task.0).await.ok();
    }
}

/// Says for as long as it lives that its end does, whatever that is busy with: it may make images for longer than the other
/// end waits for a word.
pub(super) struct Alive {
    _task: Aborting,
}

impl Alive {
    /// Sends `ping` every [`PING_EVERY`] if nothing else is on its way.
    pub(super) fn new(
        sender: FrameSender,
        ping: impl serde::Serialize + Send + Sync + 'static,
    ) -> Self {
        let task = tokio::spawn(async move {
            let mut ticks = interval(PING_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                sender.send_if_idle(&ping);
            }
        });
        Self {
            _task: Aborting(task),
        }
    }
}

/// A task that ends with its handle.
struct Aborting(tokio::task::JoinHandle<()>);

impl Drop for Aborting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Queues frames for a [`FrameWriter`].
#[derive(Clone, Debug)]
pub(super) struct FrameSender(mpsc::Sender<Bytes>);

impl FrameSender {
    /// Queues a message when there is room. `false`: the stream is gone.
    pub(super) async fn send<T: serde::Serialize>(&self, message: &T) -> bool {
        self.send_whole(super::protocol::frame(message).into())
            .await
    }

    /// As [`Self::send`], on a thread that may wait.
    pub(super) fn send_blocking<T: serde::Serialize>(&self, message: &T) -> bool {
        let frame = super::protocol::frame(message).into();
        self.0.blocking_send(frame).is_ok()
    }

    /// Queues a frame that has its header already.
    pub(super) async fn send_whole(&self, frame: Bytes) -> bool {
        self.0.send(frame).await.is_ok()
    }

    /// Queues a message if nothing waits: what waits says as much.
    pub(super) fn send_if_idle<T: serde::Serialize>(&self, message: &T) {
        if self.0.capacity() == self.0.max_capacity() {
            self.0.try_send(super::protocol::frame(message).into()).ok();
        }
    }
}
