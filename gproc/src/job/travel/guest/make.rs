//! What a host does with a job that arrives: hears of it, lets it in, and makes the copy, which waits at its gate.

use super::super::super::frame::FrameSender;
use super::super::super::group::Group;
use super::super::super::limits::Limits;
use super::super::super::private::Private;
use super::super::super::protocol::{Credentials, OUTPUT_WINDOW, Stream};
use super::super::super::sys;
use super::super::ahead::Store;
use super::super::engine::{Engine, Images, Session, Waiting};
use super::super::fetch::Fetch;
use super::super::link::{FromHome, HomeLost};
use super::super::places::reached;
use super::super::remains::Body;
use super::super::rules::Copy;
use super::super::wire::{Arrival, Carried, Image, InputAt, Pipe, ToGuest};
use super::super::{Travel, input_file, terminal};
use super::{FromGuest, Guest, Input, Out, blocking};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::mpsc as blocking_mpsc;
use tokio::io::AsyncRead;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

/// J5.
pub(super) async fn admit(
    travel: &Travel,
    arrival: &Arrival,
    user: &Credentials,
) -> io::Result<()> {
    let guest = !travel.is_home_of(arrival.pid);
    let admitted = travel.admissions.admit(travel.node, user, guest).await;
    admitted.map_err(io::Error::other)
}

/// Sees to the pages that are not among the images: they are here, or are begun to be got.
pub(super) async fn find_pages(
    travel: &Travel,
    sent: &mut Sent,
    sender: &FrameSender,
) -> io::Result<Option<Fetch>> {
    let images = Arc::clone(&sent.images);
    match std::mem::take(&mut sent.pages) {
        Pages::Here => Ok(None),
        Pages::Ahead(store) => {
            blocking(move || store.complete(&images)).await?;
            Ok(None)
        }
        Pages::AtSource => {
            let engine = travel.engine()?.clone();
            let fetch = Fetch::begin(engine, travel.leader()?, images, sender.clone());
            fetch.await.map(Some)
        }
    }
}

/// A job as it has come.
pub(super) struct Sent {
    /// A home of version 11 does not say whose it is, and has looked itself after what goes by users, as far as it knows: root's.
    pub(super) user: Credentials,
    pub(super) private: Private,
    pub(super) limits: Limits,
    pub(super) terminal: Option<Carried>,
    pub(super) input_file: Option<InputAt>,
    /// Where they were not known when it was offered.
    pub(super) pipes: Option<Vec<Pipe>>,
    pub(super) images: Arc<Images>,
    pub(super) pages: Pages,
}

/// Where the pages of a job are.
#[derive(Debug, Default)]
pub(super) enum Pages {
    /// Among its images.
    #[default]
    Here,
    /// With its source, but for those.
    AtSource,
    /// They have gone ahead, but for those.
    Ahead(Store),
}

/// Receives the images of a job, and what home tells of it before them.
pub(super) async fn receive(
    travel: &Travel,
    home: &mut FromHome<impl AsyncRead + Unpin>,
    sender: &FrameSender,
) -> Result<io::Result<Sent>, HomeLost> {
    let mut images = travel.engine().and_then(Engine::images);
    let (mut private, mut limits) = (Private::default(), Limits::default());
    let (mut terminal, mut input_file, mut pipes) = (None, None, None);
    let mut ahead = Store::default();
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
            ToGuest::Pipes(of) => pipes = Some(of),
            ToGuest::Ahead(piece) => {
                reached("target: when pages come ahead");
                if let Ok(into) = &images
                    && let Err(error) = ahead.put(into, piece)
                {
                    images = Err(error);
                }
            }
            made @ (ToGuest::Made | ToGuest::MadePartly | ToGuest::MadeAhead) => {
                let pages = match made {
                    ToGuest::MadePartly => Pages::AtSource,
                    ToGuest::MadeAhead => Pages::Ahead(ahead),
                    _ => Pages::Here,
                };
                return Ok(images.map(|images| Sent {
                    user,
                    private,
                    limits,
                    terminal,
                    input_file,
                    pipes,
                    images: Arc::new(images),
                    pages,
                }));
            }
            ToGuest::Ping => sender.send_if_idle(&FromGuest::Ping),
            _ => return Err(HomeLost),
        }
    }
}

type Made = io::Result<Waiting>;

/// The ends of pipes and of the terminal: those of the host, and those of the copy by the names that CRIU has for them.
#[derive(Default)]
struct Ends {
    input: Option<Input>,
    outs: Vec<Out>,
    of_copy: Vec<(String, OwnedFd)>,
}

impl Ends {
    fn new(pipes: &[Pipe], terminal: Option<&terminal::Of>) -> io::Result<Self> {
        let mut ends = Self::default();
        if let Some(terminal) = terminal {
            ends.input = Some(Input {
                pipe: pipe::Sender::from_owned_fd_unchecked(terminal.pty.master()?)?,
                inode: None,
                waiting: VecDeque::new(),
                again: 0,
                ended: false,
            });
            ends.outs.push(Out {
                stream: Stream::Out,
                pipe: pipe::Receiver::from_owned_fd_unchecked(terminal.pty.master()?)?,
                inode: None,
                credit: OUTPUT_WINDOW as usize,
            });
        }
        for wanted in pipes {
            let theirs = match wanted.stream {
                None => ends.read_by_copy(wanted)?,
                Some(stream) => ends.written_by_copy(wanted, stream)?,
            };
            ends.of_copy
                .push((format!("pipe:[{}]", wanted.inode), theirs));
        }
        ends.input.take_if(|input| input.ended);
        Ok(ends)
    }

    fn read_by_copy(&mut self, wanted: &Pipe) -> io::Result<OwnedFd> {
        let (ours, theirs) = pipe::pipe()?;
        let theirs = theirs.into_blocking_fd()?;
        if self.input.is_some() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.input = Some(Input {
            pipe: ours,
            inode: Some(inode(&theirs)?),
            waiting: VecDeque::new(),
            again: 0,
            ended: !wanted.open,
        });
        Ok(theirs)
    }

    fn written_by_copy(&mut self, wanted: &Pipe, stream: Stream) -> io::Result<OwnedFd> {
        let (theirs, ours) = pipe::pipe()?;
        let theirs = theirs.into_blocking_fd()?;
        // Of one that nobody reads any more, only the job's end is made.
        if wanted.open {
            self.outs.push(Out {
                stream,
                inode: Some(inode(&theirs)?),
                pipe: ours,
                credit: OUTPUT_WINDOW as usize,
            });
        }
        Ok(theirs)
    }
}

fn inode(fd: &OwnedFd) -> io::Result<u64> {
    Ok(std::fs::File::from(fd.try_clone()?).metadata()?.ino())
}

/// Makes the copy; it waits at its gate.
pub(super) async fn make(
    travel: &Arc<Travel>,
    arrival: &Arrival,
    sent: Sent,
    mut fetch: Option<Fetch>,
    home: &mut FromHome<impl AsyncRead + Unpin>,
) -> io::Result<(Guest, Waiting)> {
    let engine = travel.engine()?.clone();
    let new = |carried| terminal::Of::new(carried, sent.user.uid);
    let terminal = sent.terminal.as_ref().map(new).transpose()?;
    let Ends {
        input,
        outs,
        of_copy: ends,
    } = Ends::new(
        sent.pipes.as_ref().unwrap_or(&arrival.pipes),
        terminal.as_ref(),
    )?;
    let mut session = None;
    if let Some((terminal, carried)) = terminal.as_ref().zip(sent.terminal) {
        session = Some(Session {
            exe: travel.leader()?,
            leader: carried.leader,
            program: arrival.pid,
            foreground: carried.foreground,
            user: sent.user,
            terminal: terminal.pty.slave()?,
        });
    }
    let group = Arc::new(travel.groups.group(sent.limits, false)?);
    // What makes the copy is among its processes.
    group.kept().lend(true)?;
    tracing::debug!(pid = arrival.pid, "its copy is to be made");
    let (tell, made) = oneshot::channel::<Made>();
    let (parent, wait) = blocking_mpsc::channel::<()>();
    let (its_group, private, images) = (Arc::clone(&group), sent.private, sent.images);
    let leader = terminal.as_ref().map(|terminal| terminal.leader);
    let (root, partly) = (leader.unwrap_or(arrival.pid), fetch.is_some());
    // Not before: until then others find it by that pid.
    travel.make_room(arrival.pid).await;
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
        Ok(waiting) => match hold(&mut fetch, &group, root, sent.input_file) {
            Ok((pidfd, input_file)) => Ok((waiting, pidfd, input_file)),
            Err(error) => {
                let group = Arc::clone(&group);
                blocking(move || waiting.end(&group)).await;
                Err(error)
            }
        },
        Err(error) => Err(error),
    };
    let (waiting, pidfd, input_file) = match held {
        Ok(held) => held,
        Err(error) => {
            forget(travel, arrival.pid, &group).await;
            return Err(match out_of_memory {
                0 => error,
                _ => io::Error::other("it has not enough memory (--mem) to be made"),
            });
        }
    };
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
        turn: 0,
        parent: Some(parent),
        over: false,
        fetch,
        copying: None,
        gone: None,
        served: None,
    };
    Ok((guest, waiting))
}

/// Takes hold of a copy at its gate.
fn hold(
    fetch: &mut Option<Fetch>,
    group: &Group,
    root: i32,
    input_file: Option<InputAt>,
) -> io::Result<(AsyncFd<OwnedFd>, Option<input_file::Of>)> {
    tracing::debug!(pid = root, "its copy is made");
    if let (Some(fetch), Some(dir)) = (fetch, group.dir()) {
        // MV10
        fetch.hold(dir)?;
    }
    let pidfd = sys::watch(crate::sys::pidfd_open(root)?)?;
    let input_file = input_file.as_ref().map(input_file::Of::new).transpose()?;
    Ok((pidfd, input_file))
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
