//! The original of a job: images of it, its pipes, and its end.

use super::super::super::group::Group;
use super::super::super::protocol::Stream;
use super::super::engine::Kind;
use super::super::guest::blocking;
use super::super::owner::Outlet;
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
    /// `partly`: most pages may stay where they are. Where they cannot, they are all among the images.
    pub(super) async fn dump_original(&mut self, partly: bool) -> Event {
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
            let whole = || {
                let images = engine.dump(group, pid, Kind { private, led })?;
                Ok::<_, io::Error>((images, None))
            };
            let (images, served) = match partly {
                false => whole()?,
                true => match engine.dump_partly(group, pid) {
                    Ok((images, served)) => (images, Some(served)),
                    Err(error) => {
                        tracing::warn!(pid, %error, "a job moves with all its pages");
                        whole()?
                    }
                },
            };
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
                Ok((pipes, input, carried)) => Ok((images, served, pipes, input, carried)),
                Err(error) => {
                    drop(served);
                    group.freeze(false)?;
                    Err(error)
                }
            }
        })
        .await;
        let taken = dumped.and_then(|(images, served, pipes, input, carried)| {
            // Before anything can fail: it is given back what was taken from it.
            self.terminal = carried;
            self.input_file = input;
            self.partly.serve(served);
            self.take_pipes(pipes).map(|()| images)
        });
        match taken {
            Ok(images) => {
                self.images = images;
                match self.partly.serves() {
                    true => Event::DumpedPartly,
                    false => Event::Dumped,
                }
            }
            Err(error) => {
                self.thaw_original().await;
                Event::NotDumped(format!("node {}: {error}", self.travel.node))
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
        self.outs = Default::default();
        let mut names = vec![Stream::Out, Stream::Err];
        let mut places = self.outs.iter_mut();
        if let Some(terminal) = &self.original.terminal {
            let end = terminal.pty.open_slave()?;
            self.input.pipe = Some(pipe::Receiver::from_owned_fd_unchecked(end.try_clone()?)?);
            let reports = super::super::super::sys::writer_of(terminal.reports.as_fd())?;
            for (stream, end) in [(names.remove(0), end), (REPORTS, reports)] {
                *places.next().expect("there are three") = Some(Outlet {
                    stream,
                    pipe: pipe::Sender::from_owned_fd_unchecked(end)?,
                    waiting: VecDeque::new(),
                    ended: false,
                });
            }
        }
        for ((place, stream), (inode, file)) in places.zip(names).zip(pipes.outs) {
            self.pipes.push(Pipe {
                stream: Some(stream),
                inode,
                open: true,
            });
            *place = Some(Outlet {
                stream,
                pipe: pipe::Sender::from_file(file)?,
                waiting: VecDeque::new(),
                ended: false,
            });
        }
        Ok(())
    }

    pub(super) async fn thaw_original(&mut self) {
        (self.input.pipe, self.outs) = (None, Default::default());
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
