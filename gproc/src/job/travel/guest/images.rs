//! Images of a job here: for its next host, which it is frozen for, or to be kept, for which it stands still no longer than
//! it takes to make them (CK2).

use super::super::super::protocol::{DATA_BYTES_MAX, Stream};
use super::super::super::sys;
use super::super::ahead::{self, Copying};
use super::super::dump::{Memory, Pages, dump};
use super::super::engine::Kind;
use super::super::pages::answer;
use super::super::places::reached;
use super::super::rules::Word;
use super::super::terminal;
use super::super::wire::{Carried, FromGuest, Image, InputAt, Pipe};
use super::{FrameSender, Guest, blocking};
use bytes::Bytes;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

impl Guest {
    /// Sends what is in the pipes, whatever credit there is: it is no more than fits a pipe.
    pub(super) async fn drain(&mut self, sender: &FrameSender) {
        for (stream, bytes) in self.written() {
            sender.send(&FromGuest::Output(stream, bytes)).await;
        }
    }

    fn written(&self) -> Vec<(Stream, Bytes)> {
        let mut written = Vec::new();
        for out in &self.outs {
            while let Some(bytes) = read_now(out.pipe.as_fd()) {
                written.push((out.stream, bytes));
            }
        }
        written
    }

    /// Sends pages while it runs.
    pub(super) async fn copy_ahead(&mut self, sender: &FrameSender) {
        self.copy_no_more().await;
        let send = ahead::by(sender.clone(), FromGuest::Ahead);
        // Without a cgroup it does not move.
        if let Some(dir) = self.group.dir() {
            let leader = self.terminal.as_ref().map(|terminal| terminal.leader);
            self.copying = Some(Copying::start(dir.to_owned(), self.pid, leader, send));
        }
    }

    /// What has gone ahead is of no use.
    pub(super) async fn copy_no_more(&mut self) {
        self.gone = None;
        if let Some(copying) = self.copying.take() {
            copying.stop().await;
        }
    }

    /// Returns what has gone ahead, if anything has.
    pub(super) fn has_gone_ahead(&mut self, sender: &FrameSender) -> Memory {
        let send = || ahead::by(sender.clone(), FromGuest::Ahead);
        let gone = self.gone.take();
        gone.map_or(Memory::Here, |gone| Memory::Ahead(gone, send()))
    }

    /// Freezes it, and sends images.
    pub(super) async fn freeze(&mut self, memory: Memory, sender: &FrameSender) {
        reached("source: before the freeze");
        // Nothing that is older goes after what is sent now.
        if let Some(copying) = self.copying.take() {
            copying.stop().await;
        }
        let dumped = self.dump(memory).await;
        let Dumped {
            images,
            terminal,
            input_file,
            pages,
        } = match dumped {
            Ok(dumped) => dumped,
            Err(error) => return self.tell_no_images(&error, sender).await,
        };
        self.copy = self.copy.after(Word::Freeze);
        reached("source: after the freeze");
        self.drain(sender).await;
        self.tell_out_of_memory(sender).await;
        tell_of(terminal, input_file, sender).await;
        for bytes in self.unread() {
            sender.send(&FromGuest::Unread(bytes)).await;
        }
        for image in images {
            sender.send(&FromGuest::Image(image)).await;
        }
        reached("source: after the images");
        let dumped = match pages {
            Pages::Here => FromGuest::Dumped(self.pipes()),
            Pages::AtSource(served) => {
                self.served = Some(Arc::new(Mutex::new(served)));
                FromGuest::DumpedPartly(self.pipes())
            }
            Pages::Ahead(_) => FromGuest::DumpedAhead(self.pipes()),
        };
        sender.send(&dumped).await;
        reached("source: after it tells of the images");
    }

    /// Gives pages to another copy.
    pub(super) async fn serve_pages(&mut self, asked: Bytes, sender: &FrameSender) {
        let Some(served) = self.served.clone() else {
            return;
        };
        match answer(served, asked).await {
            Ok(pages) => {
                for pages in pages {
                    sender.send(&FromGuest::Pages(pages)).await;
                }
            }
            Err(error) => {
                let why = format!("node {}: {error}", self.travel.node);
                sender.send(&FromGuest::PagesLost(why)).await;
            }
        }
        reached("source: after it gives pages");
    }

    /// Has CRIU let go of a job that was to move.
    pub(super) async fn serve_no_more(&mut self) {
        let served = self.served.take();
        blocking(move || drop(served)).await;
    }

    /// Sends images that are to be kept. Fails if the job does not go on.
    pub(super) async fn keep(&mut self, sender: &FrameSender) -> io::Result<()> {
        reached("source: before the checkpoint");
        // Most of what there is to flush is flushed while the job runs.
        let images = match self.travel.flush().await {
            Ok(()) => self.dump(Memory::Here).await,
            Err(error) => Err(error),
        };
        let Dumped {
            images,
            terminal,
            input_file,
            pages: _,
        } = match images {
            Ok(dumped) => dumped,
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
        self.go_on().await?;
        for (stream, bytes) in written {
            sender.send(&FromGuest::Output(stream, bytes)).await;
        }
        if let Err(error) = flushed {
            self.tell_no_images(&error, sender).await;
            return Ok(());
        }
        tell_of(terminal, input_file, sender).await;
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
    pub(super) fn unread(&mut self) -> VecDeque<Bytes> {
        let mut unread = VecDeque::new();
        let Some(input) = &mut self.input else {
            return unread;
        };
        // What its terminal has is told of with that.
        let pipe = input.inode.map(|_| input.pipe.as_fd());
        if let Some(Ok(reader)) = pipe.map(sys::reader_of) {
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
        let pipe = |stream: Option<Stream>, inode: Option<u64>| {
            let inode = inode?;
            let open = true;
            Some(Pipe {
                stream,
                inode,
                open,
            })
        };
        let input = self.input.iter().map(|input| pipe(None, input.inode));
        let outs = self
            .outs
            .iter()
            .map(|out| pipe(Some(out.stream), out.inode));
        input.chain(outs).flatten().collect()
    }

    /// Freezes it, and makes images of it. If that fails it goes on.
    async fn dump(&mut self, memory: Memory) -> io::Result<Dumped> {
        let engine = self.travel.engine()?.clone();
        let group = Arc::clone(&self.group);
        let (pid, private, led) = (self.pid, self.private, self.terminal.is_some());
        let dump = move || dump(&engine, &group, pid, Kind { private, led }, memory);
        let (images, pages) = blocking(dump).await?;
        match self.look() {
            Ok((terminal, input_file)) => Ok(Dumped {
                images,
                terminal,
                input_file,
                pages,
            }),
            Err(error) => {
                blocking(move || drop(pages)).await;
                self.go_on().await?;
                Err(error)
            }
        }
    }

    fn look(&mut self) -> io::Result<(Option<Carried>, Option<InputAt>)> {
        let terminal = self.terminal.as_mut().map(terminal::Of::hold).transpose()?;
        let dir = self.group.dir().ok_or(io::ErrorKind::Unsupported)?;
        let input = self.input_file.as_ref();
        let input = input.map(|input| input.look(dir, self.pid)).transpose()?;
        Ok((terminal, input))
    }

    /// Lets a frozen job go on.
    pub(super) async fn go_on(&mut self) -> io::Result<()> {
        if let Some(terminal) = &mut self.terminal {
            terminal.go_on()?;
        }
        let group = Arc::clone(&self.group);
        blocking(move || group.freeze(false)).await
    }
}

/// What is told of a frozen job.
struct Dumped {
    images: Vec<Image>,
    terminal: Option<Carried>,
    input_file: Option<InputAt>,
    pages: Pages,
}

async fn tell_of(terminal: Option<Carried>, input: Option<InputAt>, sender: &FrameSender) {
    if let Some(terminal) = terminal {
        sender.send(&FromGuest::Terminal(terminal)).await;
    }
    if let Some(input) = input {
        sender.send(&FromGuest::InputFile(input)).await;
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
