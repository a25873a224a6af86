//! The pipes of a job to its owner, which home holds from the first move on.

use super::super::protocol::{DATA_BYTES_MAX, Stream};
use super::checkpoint::Replay;
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
    /// The same of the host before that one, while images are made there: it had not been sent this yet.
    held: VecDeque<Bytes>,
    /// What a job that starts from a checkpoint is to be sent again.
    pub(super) again: VecDeque<Bytes>,
    /// It is to be told again, too, that there is no more.
    pub(super) ends_again: bool,
    /// What has been sent since the checkpoints.
    pub(super) replay: Replay,
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
        if let Some(first) = self.again.front_mut() {
            if most == 0 {
                return std::future::pending().await;
            }
            return Ok(first.split_to(first.len().min(most)))
                .inspect(|_| self.again.retain(|bytes| !bytes.is_empty()));
        }
        if std::mem::take(&mut self.ends_again) {
            return Ok(Bytes::new());
        }
        let Some(pipe) = self.pipe.as_mut().filter(|_| most > 0) else {
            return std::future::pending().await;
        };
        let mut bytes = BytesMut::with_capacity(most);
        pipe.take(most as u64).read_buf(&mut bytes).await?;
        let bytes = bytes.freeze();
        self.replay.note(&bytes);
        Ok(bytes)
    }

    /// The host is to tell what is unread there.
    pub(super) fn hold(&mut self) {
        self.held.append(&mut self.unread);
    }

    /// It has told, and another host is to have that.
    pub(super) fn go(&mut self) {
        self.unread.append(&mut self.held);
    }

    /// The job goes on at its host, which has what is unread there still.
    pub(super) fn stay(&mut self) {
        self.unread = std::mem::take(&mut self.held);
    }

    /// As [`Self::stay`], and the images that have been made there are to be kept.
    pub(super) fn imaged(&mut self) {
        let unread = self.unread.iter().chain(&self.held).chain(&self.again);
        self.replay.imaged(unread.cloned());
        self.stay();
    }

    /// Returns whether all is kept that was sent since its last checkpoint.
    pub(super) fn can_rewind(&self) -> bool {
        self.replay.since_kept().is_some()
    }

    /// Begins anew where its last checkpoint was made. `false`: more was sent since than is kept.
    pub(super) fn rewind(&mut self) -> bool {
        let Some(sent) = self.replay.since_kept() else {
            return false;
        };
        (self.unread, self.held) = (VecDeque::new(), VecDeque::new());
        self.again = sent.clone();
        self.ends_again = self.pipe.is_none();
        true
    }
}

impl Outlet {
    /// Returns whether nothing goes there any more.
    pub(super) fn is_over(&self) -> bool {
        self.ended && self.waiting.is_empty()
    }
}

/// As [`pipes::write_some`], to one of those for which something waits, by turns; returns its place, too.
pub(super) async fn write_some(outs: &mut [Outlet], turn: usize) -> (usize, io::Result<u32>) {
    let writes = outs
        .iter_mut()
        .map(|out| pipes::write_some(&mut out.pipe, &mut out.waiting));
    pipes::one_of(writes, turn).await
}
