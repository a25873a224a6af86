//! Images of a job here: for its next host, which it is frozen for, or to be kept, for which it stands still no longer than
//! it takes to make them (CK2).

use super::super::super::protocol::{DATA_BYTES_MAX, Stream};
use super::super::super::sys;
use super::super::places::reached;
use super::super::rules::Word;
use super::super::wire::{FromGuest, Image, Pipe};
use super::{FrameSender, Guest, blocking};
use bytes::Bytes;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

impl Guest {
    /// Sends what is in the pipes, whatever credit there is: it is no more than fits a pipe.
    pub(super) async fn drain(&mut self, sender: &FrameSender) {
        for (stream, bytes) in self.written() {
            sender.send(&FromGuest::Output(stream, bytes)).await;
        }
    }

    fn written(&self) -> Vec<(Stream, Bytes)> {
        let mut written = Vec::new();
        for out in self.outs.iter().flatten() {
            while let Some(bytes) = read_now(out.pipe.as_fd()) {
                written.push((out.stream, bytes));
            }
        }
        written
    }

    pub(super) async fn freeze(&mut self, sender: &FrameSender) {
        reached("source: before the freeze");
        let images = match self.dump().await {
            Ok(images) => images,
            Err(error) => return self.tell_no_images(&error, sender).await,
        };
        self.copy = self.copy.after(Word::Freeze);
        reached("source: after the freeze");
        self.drain(sender).await;
        for bytes in self.unread() {
            sender.send(&FromGuest::Unread(bytes)).await;
        }
        for image in images {
            sender.send(&FromGuest::Image(image)).await;
        }
        reached("source: after the images");
        sender.send(&FromGuest::Dumped(self.pipes())).await;
        reached("source: after it tells of the images");
    }

    /// Sends images that are to be kept. Fails if the job does not go on.
    pub(super) async fn keep(&mut self, sender: &FrameSender) -> io::Result<()> {
        reached("source: before the checkpoint");
        // Most of what there is to flush is flushed while the job runs.
        let images = match self.travel.flush().await {
            Ok(()) => self.dump().await,
            Err(error) => Err(error),
        };
        let images = match images {
            Ok(images) => images,
            Err(error) => {
                self.tell_no_images(&error, sender).await;
                return Ok(());
            }
        };
        reached("source: in the checkpoint");
        // A copy made of them writes again what the job writes after them, and nothing of before.
        let written = self.written();
        let unread = self.unread();
        // CK6
        let flushed = self.travel.flush().await;
        self.set_frozen(false).await?;
        for (stream, bytes) in written {
            sender.send(&FromGuest::Output(stream, bytes)).await;
        }
        if let Err(error) = flushed {
            self.tell_no_images(&error, sender).await;
            return Ok(());
        }
        for bytes in unread {
            sender.send(&FromGuest::Unread(bytes)).await;
        }
        for image in images {
            sender.send(&FromGuest::Image(image)).await;
        }
        sender.send(&FromGuest::Dumped(self.pipes())).await;
        reached("source: after the checkpoint");
        Ok(())
    }

    async fn tell_no_images(&self, error: &io::Error, sender: &FrameSender) {
        let why = format!("node {}: {error}", self.travel.node);
        sender.send(&FromGuest::NotDumped(why)).await;
    }

    /// Returns the input that a frozen job has not read. If it goes on here it is to read it still.
    fn unread(&mut self) -> VecDeque<Bytes> {
        let mut unread = VecDeque::new();
        let Some(input) = &mut self.input else {
            return unread;
        };
        if let Ok(reader) = sys::reader_of(input.pipe.as_fd()) {
            while let Some(bytes) = read_now(reader.as_fd()) {
                input.again += u32::try_from(bytes.len()).expect("pieces fit a frame");
                unread.push_back(bytes);
            }
        }
        unread.append(&mut input.waiting);
        input.waiting.clone_from(&unread);
        unread
    }

    fn pipes(&self) -> Vec<Pipe> {
        let pipe = |stream: Option<Stream>, inode| Pipe {
            stream,
            inode,
            open: true,
        };
        let input = self.input.iter().map(|input| pipe(None, input.inode));
        let outs = self.outs.iter().flatten();
        let outs = outs.map(|out| pipe(Some(out.stream), out.inode));
        input.chain(outs).collect()
    }

    async fn dump(&self) -> io::Result<Vec<Image>> {
        let engine = self.travel.engine()?.clone();
        let (group, pid, private) = (Arc::clone(&self.group), self.pid, self.private);
        blocking(move || engine.dump(&group, pid, private)).await
    }

    pub(super) async fn set_frozen(&self, frozen: bool) -> io::Result<()> {
        let group = Arc::clone(&self.group);
        blocking(move || group.freeze(frozen)).await
    }
}

/// Reads what a pipe has now; `None`: nothing.
fn read_now(pipe: BorrowedFd<'_>) -> Option<Bytes> {
    let mut bytes = vec![0; DATA_BYTES_MAX];
    let len = nix::unistd::read(pipe, &mut bytes)
        .ok()
        .filter(|len| *len > 0)?;
    bytes.truncate(len);
    Some(bytes.into())
}
