//! The original of a job: images of it, its pipes, and its end.

use super::super::super::group::Group;
use super::super::super::protocol::Stream;
use super::super::guest::blocking;
use super::super::owner::Outlet;
use super::super::rules::Event;
use super::super::wire::Pipe;
use super::super::{pipes, remains};
use super::Deputy;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use tokio::net::unix::pipe;

impl Deputy {
    pub(super) async fn dump_original(&mut self) -> Event {
        self.seat.moves(true);
        let engine = self.travel.engine().cloned();
        let (group, pid) = (Arc::clone(&self.original.group), self.original.pid);
        let private = self.private;
        let dumped = blocking(move || {
            let engine = engine?;
            let group = group.get().ok_or(io::ErrorKind::NotFound)?;
            let images = engine.dump(group, pid, private)?;
            match pipes::of(group, pid) {
                Ok(pipes) => Ok((images, pipes)),
                Err(error) => {
                    group.freeze(false)?;
                    Err(error)
                }
            }
        })
        .await;
        let taken = dumped.and_then(|(images, pipes)| self.take_pipes(pipes).map(|()| images));
        match taken {
            Ok(images) => {
                self.images = images;
                Event::Dumped
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
        self.outs = [None, None];
        let names = [Stream::Out, Stream::Err];
        for ((place, stream), (inode, file)) in self.outs.iter_mut().zip(names).zip(pipes.outs) {
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
        (self.input.pipe, self.outs) = (None, [None, None]);
        let group = Arc::clone(&self.original.group);
        let thawed =
            blocking(move || group.get().map_or(Ok(()), |group| group.freeze(false))).await;
        if let Err(error) = thawed {
            tracing::warn!(pid = self.original.pid, %error, "a frozen job does not go on");
        }
        self.seat.moves(false);
    }

    /// Frees the pid here, if it is not that of a process that runs.
    pub(super) async fn bury(&mut self) {
        if let Some(pidfd) = self.remains.take() {
            remains::bury(self.original.pid, pidfd).await;
        }
    }

    pub(super) async fn end_original(&mut self) {
        let group = Arc::clone(&self.original.group);
        blocking(move || group.get().map(Group::end)).await;
    }
}
