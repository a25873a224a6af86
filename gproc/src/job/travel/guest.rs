//! A host's end of a job that has come from its home: makes the copy, carries its input and output, and makes images of
//! it when it is to go on elsewhere, or when they are to be kept.

mod images;

use super::super::frame::{Alive, FrameReader, FrameSender, FrameWriter};
use super::super::group::Group;
use super::super::limits::Limits;
use super::super::pause::{Its, Place};
use super::super::private::Private;
use super::super::protocol::{
    Credentials, DATA_BYTES_MAX, End, INPUT_WINDOW, OUTPUT_WINDOW, Stream,
};
use super::super::sys;
use super::super::terminal::WindowSize;
use super::deputy::OUTS;
use super::engine::{Engine, Images, Session, Waiting};
use super::fetch::{Fetch, finished};
use super::link::{FromHome, HomeLost};
use super::pages::Served;
use super::places::reached;
use super::remains::{Body, Leads, ended};
use super::rules::{Copy, Word};
use super::wire::{Arrival, Carried, FromGuest, Image, InputAt, REPORTS, ToGuest};
use super::{Travel, input_file, pipes, terminal};
use bytes::{Bytes, BytesMut};
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::mpsc as blocking_mpsc;
use std::sync::{Arc, Mutex};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

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
        Ok(Ok(sent)) => match admit(&travel, &arrival, &sent.user).await {
            Ok(()) => {
                reached("target: before the copy is made");
                tracing::debug!(pid = arrival.pid, "a job's images are here");
                match begin_fetch(&travel, &sent, &sender).await {
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

/// J5.
async fn admit(travel: &Travel, arrival: &Arrival, user: &Credentials) -> io::Result<()> {
    let guest = !travel.is_home_of(arrival.pid);
    let admitted = travel.admissions.admit(travel.node, user, guest).await;
    admitted.map_err(io::Error::other)
}

/// Begins to get the pages that are not among the images.
async fn begin_fetch(
    travel: &Travel,
    sent: &Sent,
    sender: &FrameSender,
) -> io::Result<Option<Fetch>> {
    if !sent.partly {
        return Ok(None);
    }
    let engine = travel.engine()?.clone();
    let images = Arc::clone(&sent.images);
    Fetch::begin(engine, images, sender.clone()).await.map(Some)
}

/// A job as it has come.
struct Sent {
    /// A home of version 11 does not say whose it is, and has looked itself after what goes by users, as far as it knows: root's.
    user: Credentials,
    private: Private,
    limits: Limits,
    terminal: Option<Carried>,
    input_file: Option<InputAt>,
    images: Arc<Images>,
    /// Most pages are not among them.
    partly: bool,
}

/// Receives the images of a job, and what home tells of it before them.
async fn receive(
    travel: &Travel,
    home: &mut FromHome<impl AsyncRead + Unpin>,
    sender: &FrameSender,
) -> Result<io::Result<Sent>, HomeLost> {
    let mut images = travel.engine().and_then(Engine::images);
    let (mut private, mut limits) = (Private::default(), Limits::default());
    let (mut terminal, mut input_file) = (None, None);
    let mut user = Credentials {
        uid: 0,
        gid: 0,
        groups: Vec::new(),
    };
    loop {
        match home.next().await? {
            ToGuest::Image(Image { name, bytes }) => {
                // Memory, which does not make anybody wait.
                if let Ok(into) = &images
                    && let Err(error) = into.add(&name, &bytes)
                {
                    images = Err(error);
                }
            }
            ToGuest::For(whose) => user = whose,
            ToGuest::Private(of) => private = of,
            ToGuest::Limits(of) => limits = of,
            ToGuest::InputFile(of) => input_file = Some(of),
            ToGuest::Terminal(carried) => terminal = Some(carried),
            made @ (ToGuest::Made | ToGuest::MadePartly) => {
                let partly = made == ToGuest::MadePartly;
                return Ok(images.map(|images| Sent {
                    user,
                    private,
                    limits,
                    terminal,
                    input_file,
                    images: Arc::new(images),
                    partly,
                }));
            }
            ToGuest::Ping => sender.send_if_idle(&FromGuest::Ping),
            _ => return Err(HomeLost),
        }
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
    outs: [Option<Out>; OUTS],
    /// Its parent is the thread that waits at the other end.
    parent: Option<blocking_mpsc::Sender<()>>,
    over: bool,
    /// Gets the pages that the copy lacks.
    fetch: Option<Fetch>,
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

type Made = io::Result<Waiting>;

/// Makes the copy; it waits at its gate.
async fn make(
    travel: &Arc<Travel>,
    arrival: &Arrival,
    sent: Sent,
    mut fetch: Option<Fetch>,
    home: &mut FromHome<impl AsyncRead + Unpin>,
) -> io::Result<(Guest, Waiting)> {
    let engine = travel.engine()?.clone();
    let (mut input, mut outs) = (None, [None, None, None]);
    let mut ends = Vec::new();
    let new = |carried| terminal::Of::new(carried, sent.user.uid);
    let terminal = sent.terminal.as_ref().map(new).transpose()?;
    let mut session = None;
    if let Some((terminal, carried)) = terminal.as_ref().zip(sent.terminal) {
        input = Some(Input {
            pipe: pipe::Sender::from_owned_fd_unchecked(terminal.pty.master()?)?,
            inode: None,
            waiting: VecDeque::new(),
            again: 0,
            ended: false,
        });
        outs[0] = Some(Out {
            stream: Stream::Out,
            pipe: pipe::Receiver::from_owned_fd_unchecked(terminal.pty.master()?)?,
            inode: None,
            credit: OUTPUT_WINDOW as usize,
        });
        session = Some(Session {
            exe: travel.leader()?,
            leader: carried.leader,
            program: arrival.pid,
            foreground: carried.foreground,
            user: sent.user,
            terminal: terminal.pty.slave()?,
        });
    }
    for wanted in &arrival.pipes {
        let (theirs, number) = match wanted.stream {
            None => {
                let (ours, theirs) = pipe::pipe()?;
                let theirs = theirs.into_blocking_fd()?;
                let inode = inode(&theirs)?;
                if input.is_some() {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
                input = Some(Input {
                    pipe: ours,
                    inode: Some(inode),
                    waiting: VecDeque::new(),
                    again: 0,
                    ended: !wanted.open,
                });
                (theirs, wanted.inode)
            }
            Some(stream) => {
                let (theirs, ours) = pipe::pipe()?;
                let theirs = theirs.into_blocking_fd()?;
                let place = outs.iter_mut().find(|place| place.is_none());
                let place = place.ok_or(io::ErrorKind::InvalidInput)?;
                // Of one that nobody reads any more, only the job's end is made.
                *place = wanted.open.then_some(Out {
                    stream,
                    inode: Some(inode(&theirs)?),
                    pipe: ours,
                    credit: OUTPUT_WINDOW as usize,
                });
                (theirs, wanted.inode)
            }
        };
        ends.push((format!("pipe:[{number}]"), theirs));
    }
    if input.as_ref().is_some_and(|input| input.ended) {
        input = None;
    }
    let group = Arc::new(travel.groups.group(sent.limits, false)?);
    // What makes the copy is among its processes.
    group.kept().lend(true)?;
    tracing::debug!(pid = arrival.pid, "its copy is to be made");
    let (tell, made) = oneshot::channel::<Made>();
    let (parent, wait) = blocking_mpsc::channel::<()>();
    let (its_group, private, images) = (Arc::clone(&group), sent.private, sent.images);
    let leader = terminal.as_ref().map(|terminal| terminal.leader);
    let root = leader.unwrap_or(arrival.pid);
    let partly = sent.partly;
    std::thread::Builder::new()
        .name("glu-guest".into())
        .spawn(move || {
            let waiting =
                engine.restore(&its_group, images, &ends, private, session.as_ref(), partly);
            // Only the job has its ends of pipes, and of its terminal.
            drop((ends, session));
            tell.send(waiting).ok();
            // Until the guest has ended, or nobody waits for it.
            wait.recv().ok();
        })?;
    let made = match &fetch {
        None => made.await,
        Some(fetch) => match fetch.while_it_is_made(made, home).await {
            Some(made) => made,
            None => Ok(Err(io::ErrorKind::BrokenPipe.into())),
        },
    };
    let made = made.unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()));
    let out_of_memory = group.kept().ended_for_memory();
    let held = match made {
        Ok(waiting) => {
            tracing::debug!(pid = root, "its copy is made");
            // MV10
            let held = match (&mut fetch, group.dir()) {
                (Some(fetch), Some(dir)) => fetch.hold(dir),
                _ => Ok(()),
            };
            match held {
                Ok(()) => Ok(waiting),
                Err(error) => {
                    let group = Arc::clone(&group);
                    blocking(move || waiting.end(&group)).await;
                    Err(error)
                }
            }
        }
        Err(error) => Err(error),
    };
    let waiting = match held {
        Ok(waiting) => waiting,
        Err(error) => {
            forget(travel, arrival.pid, &group).await;
            return Err(match out_of_memory {
                0 => error,
                _ => io::Error::other("it has not enough memory (--mem) to be made"),
            });
        }
    };
    let pidfd = sys::watch(crate::sys::pidfd_open(root)?)?;
    let input_file = sent
        .input_file
        .as_ref()
        .map(input_file::Of::new)
        .transpose()?;
    let guest = Guest {
        travel: Arc::clone(travel),
        group,
        out_of_memory,
        place: None,
        pid: arrival.pid,
        private,
        pidfd,
        copy: Copy::Ready,
        terminal,
        input_file,
        input,
        outs,
        parent: Some(parent),
        over: false,
        fetch,
        served: None,
    };
    Ok((guest, waiting))
}

/// Takes what is left of a copy that could not be made off the process table, or another would find its pid taken; at home it keeps
/// that (MV6).
async fn forget(travel: &Travel, pid: i32, group: &Arc<Group>) {
    let group = Arc::clone(group);
    blocking(move || group.end()).await;
    let pidfd = crate::sys::pidfd_open(pid).ok();
    if let Some(pidfd) = pidfd.filter(|pidfd| sys::is_dead_child(pidfd.as_fd())) {
        travel.keep_or_bury(pid, Body { pidfd, leads: None }).await;
    }
}

fn inode(fd: &OwnedFd) -> io::Result<u64> {
    Ok(std::fs::File::from(fd.try_clone()?).metadata()?.ino())
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
            let [first, second, third] = &mut self.outs;
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
                    ToGuest::Freeze if settled => self.freeze(false, sender).await,
                    ToGuest::FreezePartly if settled => self.freeze(true, sender).await,
                    ToGuest::WantPages(asked) => self.serve_pages(asked, sender).await,
                    ToGuest::Pages(pages) => {
                        if let Some(fetch) = &self.fetch {
                            fetch.put(pages).await;
                        }
                    }
                    ToGuest::Keep if settled => {
                        if let Err(error) = self.keep(sender).await {
                            tracing::warn!(pid = self.pid, %error, "a frozen job does not go on");
                            return Ok(());
                        }
                    }
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
                        for out in self.outs.iter_mut().flatten().filter(|out| out.stream == stream) {
                            out.credit = (out.credit + bytes as usize).min(OUTPUT_WINDOW as usize);
                        }
                    }
                    ToGuest::Closed(stream) => {
                        for out in &mut self.outs {
                            out.take_if(|out| out.stream == stream);
                        }
                    }
                    ToGuest::Signal(number, group) => self.signal(number, group),
                    ToGuest::Resize(size) => self.resize(size),
                    ToGuest::Ping
                    | ToGuest::Freeze
                    | ToGuest::FreezePartly
                    | ToGuest::Keep
                    | ToGuest::Thaw => {}
                    ToGuest::Image(_)
                    | ToGuest::Made
                    | ToGuest::MadePartly
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
                read = read_some(first), if runs => self.tell_output(0, read, sender).await,
                read = read_some(second), if runs => self.tell_output(1, read, sender).await,
                read = read_some(third), if runs => self.tell_output(2, read, sender).await,
                fetched = finished(&mut self.fetch) => {
                    if let Err(why) = self.has_fetched(fetched).await {
                        let why = format!("node {}: {why}", self.travel.node);
                        sender.send(&FromGuest::PagesLost(why)).await;
                        return Ok(());
                    }
                    reached("target: before it tells of all pages");
                    sender.send(&FromGuest::Whole).await;
                    reached("target: after it tells of all pages");
                }
                ended = ended(&self.pidfd), if self.copy != Copy::Ready => {
                    let ended = ended.map_err(|_| HomeLost)?;
                    self.tell_end(ended, sender).await;
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

    /// Closes the input once all of it is written.
    fn end_input(&mut self) {
        self.input
            .take_if(|input| input.ended && input.waiting.is_empty());
    }

    async fn tell_output(&mut self, place: usize, read: io::Result<Bytes>, sender: &FrameSender) {
        let Some(out) = &mut self.outs[place] else {
            return;
        };
        match read {
            Ok(bytes) if !bytes.is_empty() => {
                out.credit -= bytes.len();
                sender.send(&FromGuest::Output(out.stream, bytes)).await;
            }
            _ => {
                sender.send(&FromGuest::OutputEnd(out.stream)).await;
                self.outs[place] = None;
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
        let place = self.outs.iter_mut().find(|place| place.is_none());
        *place.ok_or(io::ErrorKind::InvalidInput)? = Some(Out {
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
async fn read_some(out: &mut Option<Out>) -> io::Result<Bytes> {
    let Some(Out {
        pipe,
        credit: credit @ 1..,
        ..
    }) = out
    else {
        return std::future::pending().await;
    };
    let most = (*credit).min(DATA_BYTES_MAX);
    let mut bytes = BytesMut::with_capacity(most);
    pipe.take(most as u64).read_buf(&mut bytes).await?;
    Ok(bytes.freeze())
}

pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work)
        .await
        .expect("the work does not panic")
}
