//! The original of a job: images of it, its pipes, and its end.

use super::super::super::group::Group;
use super::super::super::protocol::Stream;
use super::super::super::sys;
use super::super::dump::{Memory, Pages, dump};
use super::super::engine::Kind;
use super::super::guest::blocking;
use super::super::owner::Outlet;
use super::super::remains::Body;
use super::super::rules::Event;
use super::super::terminal::AtHome;
use super::super::wire::{Carried, Pipe, REPORTS};
use super::super::{input_file, pipes, remains};
use super::Deputy;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use tokio::net::unix::pipe;

impl Deputy {
    pub(super) async fn dump_original(&mut self, memory: Memory) -> Event {
        self.seat.moves(true);
        let engine = self.travel.engine().cloned();
        let (group, pid) = (Arc::clone(&self.original.group), self.original.pid);
        let private = self.private;
        let terminal = self.original.terminal.clone();
        let input = self.original.input_file.clone();
        let dumped = blocking(move || {
            let engine = engine?;
            let group = group.get().ok_or(io::ErrorKind::NotFound)?;
            let leader = terminal.as_ref().map(|of| of.leader);
            let led = leader.is_some();
            let (images, pages) = dump(&engine, group, pid, Kind { private, led }, memory)?;
            let carry = |of: &AtHome| Carried::take(of.leader, &of.pty);
            let look = |file: &Arc<File>| {
                let dir = group.dir().ok_or(io::ErrorKind::Unsupported)?;
                input_file::look(file, dir, pid)
            };
            let find = || {
                let pipes = pipes::of(group, pid, leader)?;
                let input = input.as_ref().map(look).transpose()?;
                Ok((pipes, input, terminal.as_ref().map(carry).transpose()?))
            };
            match find() {
                Ok((pipes, input, carried)) => Ok((images, pages, pipes, input, carried)),
                Err(error) => {
                    drop(pages);
                    group.freeze(false)?;
                    Err(error)
                }
            }
        })
        .await;
        let taken = dumped.and_then(|(images, pages, pipes, input, carried)| {
            // Before anything can fail: it is given back what was taken from it.
            self.terminal = carried;
            self.input_file = input;
            let is_partly = self.takes_pages(pages);
            self.images = images;
            self.take_pipes(pipes).map(|()| is_partly)
        });
        match taken {
            Ok(true) => Event::DumpedPartly,
            Ok(false) => Event::Dumped,
            Err(error) => {
                self.thaw_original().await;
                Event::NotDumped(format!("node {}: {error}", self.travel.node))
            }
        }
    }

    /// Returns whether it is to serve them.
    fn takes_pages(&mut self, pages: Pages) -> bool {
        match pages {
            Pages::Here => false,
            Pages::AtSource(served) => {
                self.partly.serve(Some(served));
                true
            }
            Pages::Ahead(bytes) => {
                self.ahead.is_so(bytes);
                false
            }
        }
    }

    fn take_pipes(&mut self, pipes: pipes::Pipes) -> io::Result<()> {
        self.pipes.clear();
        self.input.pipe = None;
        if let Some((inode, file)) = pipes.input {
            self.input.pipe = Some(pipe::Receiver::from_file(file)?);
            self.pipes.push(Pipe {
                stream: None,
                inode,
                open: true,
            });
        }
        self.outs.clear();
        let others = (0..).map(Stream::Other);
        let mut streams = [Stream::Out, Stream::Err].into_iter().chain(others);
        let outlet = |stream, pipe| Outlet {
            stream,
            pipe,
            waiting: VecDeque::new(),
            ended: false,
        };
        if let Some(terminal) = &self.original.terminal {
            let end = terminal.pty.open_slave()?;
            self.input.pipe = Some(pipe::Receiver::from_owned_fd_unchecked(end.try_clone()?)?);
            let reports = sys::writer_of(terminal.reports.as_fd())?;
            let shows = streams.next().expect("there is no end of them");
            for (stream, end) in [(shows, end), (REPORTS, reports)] {
                let pipe = pipe::Sender::from_owned_fd_unchecked(end)?;
                self.outs.push(outlet(stream, pipe));
            }
        }
        for (stream, (inode, file)) in streams.zip(pipes.outs) {
            self.pipes.push(Pipe {
                stream: Some(stream),
                inode,
                open: true,
            });
            let pipe = pipe::Sender::from_file(file)?;
            self.outs.push(outlet(stream, pipe));
        }
        Ok(())
    }

    pub(super) async fn thaw_original(&mut self) {
        (self.input.pipe, self.outs) = (None, Vec::new());
        let group = Arc::clone(&self.original.group);
        let at_home = self.original.terminal.clone();
        let terminal = at_home.zip(self.terminal.clone());
        let served = self.partly.serve(None);
        let thawed = blocking(move || {
            // CRIU lets go of it first.
            drop(served);
            if let Some((at_home, carried)) = terminal {
                at_home.pty.go_on(&carried.held())?;
            }
            group.get().map_or(Ok(()), |group| group.freeze(false))
        })
        .await;
        if let Err(error) = thawed {
            tracing::warn!(pid = self.original.pid, %error, "a frozen job does not go on");
        }
        self.seat.moves(false);
    }

    /// Frees the pid here, if it is not that of a process that runs.
    pub(super) async fn bury(&mut self) {
        if let Some(body) = self.remains.take() {
            remains::bury(self.original.pid, body).await;
        }
    }

    /// Ends it; its pid stays on the process table (MV6).
    pub(super) async fn end_original(&mut self) {
        let group = Arc::clone(&self.original.group);
        let leader = self.original.terminal.as_ref().map(|of| of.leader);
        let end = move |group: &Group| match leader {
            Some(leader) => group.end_all_but(leader),
            None => group.end(),
        };
        let served = self.partly.serve(None);
        blocking(move || {
            group.get().map(end);
            drop(served);
        })
        .await;
        if self.original.forked {
            self.hold_pid().await;
        }
    }

    /// Takes the pid of an original that is gone (MV6).
    async fn hold_pid(&mut self) {
        let pid = self.original.pid;
        match blocking(move || sys::hold_pid(pid)).await {
            Ok(pidfd) => self.remains.keep(Body { pidfd, leads: None }),
            Err(error) => tracing::warn!(pid, %error, "the pid of a job that has left is free"),
        }
    }

    /// The terminal here is as the job has left its own on another node. Of a job that is `lost` nobody knows what it has read.
    pub(super) fn leave_terminal(&mut self, lost: bool) {
        let terminals = self.original.terminal.as_ref().zip(self.terminal.take());
        let Some((at_home, carried)) = terminals else {
            return;
        };
        let mut left = carried.held();
        let unread = [left.unread].into_iter().chain(self.input.unread.drain(..));
        left.unread = unread.filter(|_| !lost).flatten().collect();
        at_home.pty.is_left(left);
    }
}
