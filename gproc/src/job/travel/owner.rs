//! The pipes of a job to its owner, which home holds from the first move on.

use super::super::protocol::{DATA_BYTES_MAX, Stream};
use super::pipes;
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::io;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

/// The pipe that the owner's input comes by.
#[derive(Default)]
pub(super) struct Input {
    pub(super) pipe: Option<pipe::Receiver>,
    pub(super) credit: usize,
    /// What was sent to an earlier host, and not read there.
    pub(super) unread: VecDeque<Bytes>,
}

/// A pipe to the owner.
pub(super) struct Outlet {
    pub(super) stream: Stream,
    pub(super) pipe: pipe::Sender,
    pub(super) waiting: VecDeque<Bytes>,
    pub(super) ended: bool,
}

impl Input {
    /// Reads what there is and credit for; none: the end. Cancel-safe.
    pub(super) async fn read(&mut self) -> io::Result<Bytes> {
        if let Some(first) = self.unread.front_mut() {
            return Ok(first.split_to(first.len().min(DATA_BYTES_MAX)))
                .inspect(|_| self.unread.retain(|bytes| !bytes.is_empty()));
        }
        let most = self.credit.min(DATA_BYTES_MAX);
        let Some(pipe) = self.pipe.as_mut().filter(|_| most > 0) else {
            return std::future::pending().await;
        };
        let mut bytes = BytesMut::with_capacity(most);
        pipe.take(most as u64).read_buf(&mut bytes).await?;
        Ok(bytes.freeze())
    }
}

/// As [`pipes::write_some`], if the pipe is there.
pub(super) async fn write_some(out: &mut Option<Outlet>) -> io::Result<u32> {
    match out {
        Some(out) => pipes::write_some(&mut out.pipe, &mut out.waiting).await,
        None => std::future::pending().await,
    }
}
