//! A host's end of a job that has come from its home: makes the copy, carries its input and output, and makes images of
//! it when it is to go on elsewhere, or when they are to be kept.

mod images;
mod make;

use super::super::frame::{Alive, FrameReader, FrameSender, FrameWriter};
use super::super::group::Group;
use super::super::pause::{Its, Place};
use super::super::private::Private;
use super::super::protocol::{DATA_BYTES_MAX, End, INPUT_WINDOW, OUTPUT_WINDOW, Stream};
use super::super::sys;
use super::super::terminal::WindowSize;
use super::ahead::{Copying, Gone, copied};
use super::dump::Memory;
use super::engine::Waiting;
use super::fetch::{Fetch, finished};
use super::link::{FromHome, HomeLost};
use super::pages::Served;
use super::places::reached;
use super::remains::{Body, Leads, ended};
use super::rules::{Copy, Word};
use super::wire::{Arrival, FromGuest, REPORTS, ToGuest};
use super::{Travel, input_file, pipes, terminal};
use bytes::{Bytes, BytesMut};
use make::{admit, find_pages, make, receive};
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc as blocking_mpsc;
use std::sync::{Arc, Mutex};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::unix::pipe;

/// Has a job of another node, or one that has come home, from its arrival to its end or its next move.
pub(in crate::job) async fn host(
    travel: Arc<Travel>,
    arrival: Arrival,
    reader: FrameReader<impl AsyncRead + Unpin>,
    writer: FrameWriter,
) {
    let sender = writer.sender();
    let alive = Alive::new(writer.sender(), FromGuest::Ping);
    let mut home = FromHome::new(reader);
    let made = match receive(&travel, &mut home, &sender).await {
        Ok(Ok(mut sent)) => match admit(&travel, &arrival, &sent.user).await {
            Ok(()) => {
                reached("target: before the copy is made");
                tracing::debug!(pid = arrival.pid, "a job's images are here");
                match find_pages(&travel, &mut sent, &sender).await {
                    Ok(fetch) => make(&travel, &arrival, sent, fetch, &mut home).await,
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(error),
        },
        Ok(Err(error)) => Err(error),
        Err(HomeLost) => return,
    };
    match made {
        Ok((mut guest, waiting)) => {
            reached("target: before it tells of the copy");
            let came = travel.came(guest.pid, &guest.group);
            sender.send(&FromGuest::Restored).await;
            reached("target: after it tells of the copy");
            guest.serve(Some(waiting), &mut home, &sender).await.ok();
            drop(came);
            guest.end().await;
        }
        Err(error) => {
            let why = format!("node {}: {error}", travel.node);
            sender.send(&FromGuest::NotRestored(why)).await;
        }
    }
    drop((alive, sender));
    tokio::select! {
        () = writer.finish() => {}
        () = home.gone() => {}
    }
}

/// A job here.
struct Guest {
    travel: Arc<Travel>,
    group: Arc<Group>,
    /// Home knows of so many of its processes that they were ended for want of memory here.
    out_of_memory: u64,
    /// Its place among the guests that wait for the owner of this node.
    place: Option<Place>,
    pid: i32,
    private: Private,
    pidfd: AsyncFd<OwnedFd>,
    copy: Copy,
    terminal: Option<terminal::Of>,
    input_file: Option<input_file::Of>,
    input: Option<Input>,
    outs: Vec<Out>,
    /// Whose turn it is.
    turn: usize,
    /// Its parent is the thread that waits at the other end.
    parent: Option<blocking_mpsc::Sender<()>>,
    over: bool,
    /// Gets the pages that the copy lacks.
    fetch: Option<Fetch>,
    /// Sends pages ahead of it.
    copying: Option<Copying>,
    /// What has gone ahead.
    gone: Option<Gone>,
    /// Gives its pages to another copy, while it is frozen.
    served: Option<Arc<Mutex<Served>>>,
}

struct Input {
    pipe: pipe::Sender,
    /// `None`: the terminal.
    inode: Option<u64>,
    waiting: VecDeque<Bytes>,
    /// So many of these bytes were in the pipe before: there has been credit for them.
    again: u32,
    ended: bool,
}

impl Input {
    /// Returns how much credit there is for what has been written.
    fn credit(&mut self, written: u32) -> u32 {
        let again = self.again.min(written);
        self.again -= again;
        written - again
    }
}

struct Out {
    stream: Stream,
    pipe: pipe::Receiver,
    /// `None`: the terminal.
    inode: Option<u64>,
    credit: usize,
}

impl Guest {
    async fn serve(
        &mut self,
        mut waiting: Option<Waiting>,
        home: &mut FromHome<impl AsyncRead + Unpin>,
        sender: &FrameSender,
    ) -> Result<(), HomeLost> {
        let served = self.serve_copy(&mut waiting, home, sender).await;
        if let Some(waiting) = waiting {
            let group = Arc::clone(&self.group);
            blocking(move || waiting.end(&group)).await;
        }
        served
    }

    async fn serve_copy(
        &mut self,
        waiting: &mut Option<Waiting>,
        home: &mut FromHome<impl AsyncRead + Unpin>,
        sender: &FrameSender,
    ) -> Result<(), HomeLost> {
        loop {
            let runs = self.copy == Copy::Running;
            // MV10
            let settled = runs && self.fetch.is_none();
            tokio::select! {
                frame = home.next() => match frame? {
                    ToGuest::Run => {
                        let Some(copy) = waiting.take() else { return Err(HomeLost) };
                        self.copy = self.copy.after(Word::Run);
                        reached("target: before the copy runs");
                        tracing::debug!(pid = self.pid, "a copy may run");
                        let group = Arc::clone(&self.group);
                        let ran = blocking(move || {
                            let ran = copy.run()?;
                            if let Err(error) = group.kept().lend(false) {
                                tracing::warn!(%error, "a job keeps memory that it was lent");
                            }
                            Ok(ran)
                        });
                        let ran = ran.await;
                        if let Err(error) = ran.and_then(|reports| self.hear_leader(reports)) {
                            tracing::warn!(pid = self.pid, %error, "a copy did not start");
                            return Ok(());
                        }
                        reached("target: after the copy runs");
                        // Not before: what makes it is not to be frozen.
                        self.place = self.travel.is_guest(self.pid, &self.group);
                        sender.send(&FromGuest::Running).await;
                        reached("target: after it tells that the copy runs");
                    }
                    ToGuest::CopyAhead if settled => self.copy_ahead(sender).await,
                    ToGuest::Freeze if settled => self.freeze(Memory::Here, sender).await,
                    ToGuest::FreezePartly if settled => self.freeze(Memory::AtSource, sender).await,
                    ToGuest::FreezeAhead if settled => {
                        let memory = self.has_gone_ahead(sender);
                        self.freeze(memory, sender).await;
                    }
                    ToGuest::Keep if settled => {
                        if let Err(error) = self.keep(sender).await {
                            tracing::warn!(pid = self.pid, %error, "a frozen job does not go on");
                            return Ok(());
                        }
                    }
                    ToGuest::WantPages(asked) => self.serve_pages(asked, sender).await,
                    ToGuest::Pages(pages) => {
                        if let Some(fetch) = &self.fetch {
                            fetch.put(pages).await;
                        }
                    }
                    ToGuest::Thaw if runs => self.copy_no_more().await,
                    ToGuest::Thaw if self.copy == Copy::Frozen => {
                        self.copy = self.copy.after(Word::Thaw);
                        self.serve_no_more().await;
                        if let Err(error) = self.go_on().await {
                            tracing::warn!(pid = self.pid, %error, "a frozen job does not go on");
                            return Ok(());
                        }
                    }
                    ToGuest::End => return Ok(()),
                    ToGuest::Input(bytes) => {
                        let Some(input) = &mut self.input else { continue };
                        let waits: usize = input.waiting.iter().map(Bytes::len).sum();
                        if bytes.len() > DATA_BYTES_MAX || waits + bytes.len() > 2 * INPUT_WINDOW as usize {
                            return Err(HomeLost);
                        }
                        input.waiting.push_back(bytes);
                    }
                    ToGuest::InputEnd => {
                        if let Some(input) = &mut self.input {
                            input.ended = true;
                        }
                        self.end_input();
                    }
                    ToGuest::Credit(stream, bytes) => {
                        if let Some(out) = self.outs.iter_mut().find(|out| out.stream == stream) {
                            out.credit = (out.credit + bytes as usize).min(OUTPUT_WINDOW as usize);
                        }
                    }
                    ToGuest::Closed(stream) => {
                        self.outs.retain(|out| out.stream != stream);
                    }
                    ToGuest::Signal(number, group) => self.signal(number, group),
                    ToGuest::Resize(size) => self.resize(size),
                    ToGuest::Ping
                    | ToGuest::Freeze
                    | ToGuest::FreezePartly
                    | ToGuest::FreezeAhead
                    | ToGuest::CopyAhead
                    | ToGuest::Keep
                    | ToGuest::Thaw => {}
                    ToGuest::Image(_)
                    | ToGuest::Made
                    | ToGuest::MadePartly
                    | ToGuest::MadeAhead
                    | ToGuest::Ahead(_)
                    | ToGuest::Pipes(_)
                    | ToGuest::For(_)
                    | ToGuest::Private(_)
                    | ToGuest::Limits(_)
                    | ToGuest::InputFile(_)
                    | ToGuest::Terminal(_) => return Err(HomeLost),
                },
                written = write_some(&mut self.input), if runs => match written {
                    Ok(len) => {
                        let len = self.input.as_mut().map_or(len, |input| input.credit(len));
                        if len > 0 {
                            sender.send(&FromGuest::InputCredit(len)).await;
                        }
                        self.end_input();
                    }
                    Err(_) => {
                        self.input = None;
                        sender.send(&FromGuest::InputClosed).await;
                    }
                },
                (place, read) = pipes::one_of(self.outs.iter_mut().map(read_some), self.turn), if runs => {
                    self.tell_output(place, read, sender).await;
                }
                fetched = finished(&mut self.fetch) => {
                    if let Err(why) = self.has_fetched(fetched).await {
                        self.tell_pages_lost(&why, sender).await;
                        return Ok(());
                    }
                    reached("target: before it tells of all pages");
                    sender.send(&FromGuest::Whole).await;
                    reached("target: after it tells of all pages");
                }
                gone = copied(&mut self.copying) => {
                    self.copying = None;
                    self.gone = gone;
                    sender.send(&FromGuest::CopiedAhead).await;
                    reached("source: after it tells that pages have gone ahead");
                }
                ended = ended(&self.pidfd), if self.copy != Copy::Ready => {
                    let ended = ended.map_err(|_| HomeLost)?;
                    match self.fetch.as_mut().and_then(Fetch::has_ended_copy) {
                        None => self.tell_end(ended, sender).await,
                        Some(why) => {
                            self.over = true;
                            self.tell_pages_lost(&why, sender).await;
                        }
                    }
                    return Ok(());
                }
            }
        }
    }

    /// The copy has all its pages, or will never have them and has been ended (MV10).
    async fn has_fetched(&mut self, fetched: Result<(), String>) -> Result<(), String> {
        let fetch = self.fetch.take();
        let group = Arc::clone(&self.group);
        blocking(move || {
            let done = fetched.and_then(|()| {
                let fetch = fetch.ok_or("nothing was to be fetched")?;
                fetch.finish().map_err(|error| error.to_string())
            });
            if done.is_err() {
                group.end();
            }
            done
        })
        .await
    }

    async fn tell_pages_lost(&self, why: &str, sender: &FrameSender) {
        let why = format!("node {}: {why}", self.travel.node);
        sender.send(&FromGuest::PagesLost(why)).await;
    }

    /// Closes the input once all of it is written.
    fn end_input(&mut self) {
        self.input
            .take_if(|input| input.ended && input.waiting.is_empty());
    }

    async fn tell_output(&mut self, place: usize, read: io::Result<Bytes>, sender: &FrameSender) {
        let out = &mut self.outs[place];
        self.turn = place + 1;
        match read {
            Ok(bytes) if !bytes.is_empty() => {
                out.credit -= bytes.len();
                sender.send(&FromGuest::Output(out.stream, bytes)).await;
            }
            _ => {
                sender.send(&FromGuest::OutputEnd(out.stream)).await;
                self.outs.remove(place);
            }
        }
    }

    fn signal(&self, number: i32, group: bool) {
        let pid = Pid::from_raw(self.pid);
        let sent = match (&self.terminal, group) {
            (Some(terminal), group) => terminal.pty.signal(pid, number, group),
            (None, true) => sys::signal_group(pid, number),
            (None, false) => sys::signal(self.pidfd.get_ref().as_fd(), number),
        };
        if let Err(error) = sent {
            tracing::debug!(pid = self.pid, number, %error, "a signal found no process");
        }
    }

    /// Passes on what the leader of its session reports, if it has one.
    fn hear_leader(&mut self, reports: Option<OwnedFd>) -> io::Result<()> {
        let Some(reports) = reports else {
            return Ok(());
        };
        self.outs.push(Out {
            stream: REPORTS,
            pipe: pipe::Receiver::from_owned_fd(reports)?,
            inode: None,
            credit: OUTPUT_WINDOW as usize,
        });
        Ok(())
    }

    fn resize(&self, size: WindowSize) {
        let terminal = self.terminal.as_ref();
        if let Some(Err(error)) = terminal.map(|terminal| terminal.pty.resize(size)) {
            tracing::debug!(pid = self.pid, %error, "a terminal did not take its size");
        }
    }

    /// Ends what is left of the job, and tells how its program ended.
    async fn tell_end(&mut self, end: End, sender: &FrameSender) {
        self.over = true;
        let group = Arc::clone(&self.group);
        blocking(move || group.end()).await;
        // What was typed last may be shown by that.
        let left = self.terminal.as_mut().map(terminal::Of::hold);
        self.drain(sender).await;
        self.tell_out_of_memory(sender).await;
        match left {
            Some(Ok(left)) => drop(sender.send(&FromGuest::Terminal(left)).await),
            Some(Err(error)) => {
                tracing::warn!(pid = self.pid, %error, "how a job has left its terminal is not known");
            }
            None => {}
        }
        if let Some(input) = &self.input_file {
            sender.send(&FromGuest::InputFile(input.left())).await;
        }
        for bytes in self.unread() {
            sender.send(&FromGuest::Unread(bytes)).await;
        }
        let told = match end {
            End::Exited(status) => FromGuest::Exited(status),
            End::Killed(signal) => FromGuest::Killed(signal),
            End::Failed { .. } => return,
        };
        sender.send(&told).await;
    }

    /// Tells how many more of its processes were ended for want of memory.
    async fn tell_out_of_memory(&mut self, sender: &FrameSender) {
        let all = self.group.kept().ended_for_memory();
        let more = all.saturating_sub(std::mem::replace(&mut self.out_of_memory, all));
        if more > 0 {
            sender.send(&FromGuest::OutOfMemory(more)).await;
        }
    }

    /// Ends it, and takes it off the process table.
    async fn end(mut self) {
        if self.copy == Copy::Frozen {
            reached("source: before the end");
        }
        let frozen = self.copy == Copy::Frozen;
        self.copy = self.copy.after(Word::End);
        let group = Arc::clone(&self.group);
        // MV6: at home it is to keep the program's pid.
        let leader = self.terminal.as_ref().map(|terminal| terminal.leader);
        let leader = leader.filter(|_| frozen && self.travel.is_home_of(self.pid));
        blocking(move || match leader {
            Some(leader) => group.end_all_but(leader),
            None => group.end(),
        })
        .await;
        let left = (self.fetch.take(), self.served.take());
        blocking(move || drop(left)).await;
        // One that has ended by itself was waited for.
        if !self.over {
            let group = Its::Group(Arc::clone(&self.group));
            let leads = leader.map(|_| Leads {
                group,
                parent: self.parent.take(),
            });
            let body = Body {
                pidfd: self.pidfd.into_inner(),
                leads,
            };
            self.travel.keep_or_bury(self.pid, body).await;
        }
        drop(self.parent.take());
        // Removing a cgroup may wait for the kernel.
        blocking(move || drop(self.group)).await;
    }
}

/// As [`pipes::write_some`], if the pipe is there.
async fn write_some(input: &mut Option<Input>) -> io::Result<u32> {
    match input {
        Some(input) => pipes::write_some(&mut input.pipe, &mut input.waiting).await,
        None => std::future::pending().await,
    }
}

/// Reads what there is and credit for; none: the end. Cancel-safe.
async fn read_some(out: &mut Out) -> io::Result<Bytes> {
    let most = out.credit.min(DATA_BYTES_MAX);
    if most == 0 {
        return std::future::pending().await;
    }
    let mut bytes = BytesMut::with_capacity(most);
    (&mut out.pipe)
        .take(most as u64)
        .read_buf(&mut bytes)
        .await?;
    Ok(bytes.freeze())
}

pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work)
        .await
        .expect("the work does not panic")
}
