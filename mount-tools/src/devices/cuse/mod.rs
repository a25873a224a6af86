//! Lines of other nodes as character devices in user space (CUSE), each served by a process in the background.
//!
//! `/dev/glu/node3/ttyS0` is a terminal for whoever opens it: what programs ask of it is asked of the line's file in the
//! tree ([`tty`], [`line`]), and all but waiting happens on the line's node. One thread takes what the kernel sends; two others
//! do ioctls, for one of them those that wait until all that was written is sent: what lets it be sent must not wait behind them.
//! When the line goes, it is tried every [`TRY_EVERY`].

mod codec;
mod ioctls;
mod line;
mod tty;

use super::stand_in::{Background, Entry, State};
use super::{DeviceName, refused};
use anyhow::{Context, Result, bail};
use codec::{MESSAGE_BYTES_MAX, Unique};
use line::TreeLine;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use tty::{Action, Tty, Wire};

/// How often a line that has gone is tried.
const TRY_EVERY: Duration = Duration::from_millis(500);
/// How long the kernel may take to ask for the device's name.
const BEGIN_WITHIN: Duration = Duration::from_secs(10);
/// Longest wait of the loop: nothing depends on it.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// An ioctl for the thread that does them.
struct Job {
    unique: Unique,
    file: Arc<File>,
    what: ioctls::Do,
    input: Vec<u8>,
    out: u32,
}

type Done = (Unique, Result<Vec<u8>, i32>);

/// What does ioctls: those that may wait until all is sent, and the others, each in their order.
struct Hands {
    waits: Sender<Job>,
    others: Sender<Job>,
    done: Receiver<Done>,
    /// Has something to read when one is done.
    rings: Arc<EventFd>,
    /// How the line was set last, if it was.
    set: Arc<Mutex<Option<Vec<u8>>>>,
}

impl Hands {
    fn new() -> Result<Self> {
        let (tells, done) = mpsc::channel();
        let rings = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let rings = Arc::new(rings.context("an event")?);
        let set = Arc::<Mutex<Option<Vec<u8>>>>::default();
        let begin = || {
            let (jobs, to_do) = mpsc::channel::<Job>();
            let (tells, rung, sets) = (tells.clone(), Arc::clone(&rings), Arc::clone(&set));
            thread::spawn(move || {
                for job in to_do {
                    let done = line::control(&job.file, job.what, &job.input, job.out);
                    let done = done.map(|(output, now)| {
                        if now.is_some() {
                            *sets.lock().expect("no holder panics") = now;
                        }
                        output
                    });
                    if tells.send((job.unique, done)).is_err() || rung.write(1).is_err() {
                        return;
                    }
                }
            });
            jobs
        };
        Ok(Self {
            waits: begin(),
            others: begin(),
            done,
            rings,
            set,
        })
    }
}

/// Serves a line until SIGTERM.
pub(super) fn serve(device: &DeviceName, mount: &Path) -> Result<()> {
    let background = Background::begin()?;
    let below = format!("glu/node{}/{}", device.node, device.path);
    let name = PathBuf::from("/dev").join(&below);
    if name.exists() {
        bail!("{} is there already: glu attach --list", name.display());
    }
    let path = device.below(mount);
    let mut line = TreeLine::new(path.clone());
    // Who may not use it hears of that now.
    if let Err(error) = line.reach() {
        if error.raw_os_error() == Some(libc::ENOTTY) {
            bail!("{device} is no terminal: use its file, {}", path.display());
        }
        return Err(refused(&path, error));
    }
    line.close();
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true);
    let kernel = options.custom_flags(libc::O_NONBLOCK).open("/dev/cuse");
    let mut serves = Serves {
        kernel: kernel.context("/dev/cuse")?,
        tty: Tty::new(below),
        line,
        hands: Hands::new()?,
        entry: None,
        told_lost: false,
        tried: Instant::now(),
    };
    let end = Instant::now() + BEGIN_WITHIN;
    while !name.exists() {
        if Instant::now() > end {
            bail!(
                "{} does not appear: /dev has to be a devtmpfs",
                name.display()
            );
        }
        if serves.turn(&background, TRY_EVERY)? {
            return Ok(());
        }
    }
    serves.entry = Some(Entry::new(&name, path, State::Write)?);
    println!("{}", name.display());
    background.leave()?;
    while !serves.turn(&background, LOOK_EVERY)? {}
    Ok(())
}

struct Serves {
    kernel: File,
    tty: Tty,
    line: TreeLine,
    hands: Hands,
    entry: Option<Entry>,
    /// What the entry says.
    told_lost: bool,
    /// When the line was last tried.
    tried: Instant,
}

impl Serves {
    /// Waits for what happens next, and does that; returns whether this is to end.
    fn turn(&mut self, background: &Background, patience: Duration) -> Result<bool> {
        let (asked, happened, done, end) = self.wait(background, patience)?;
        if end {
            return Ok(true);
        }
        if asked {
            self.take_all()?;
        }
        if done {
            if let Err(error) = self.hands.rings.read() {
                tracing::debug!(%error, "nothing has rung");
            }
            while let Ok((unique, done)) = self.hands.done.try_recv() {
                let failed = done == Err(libc::EIO) || done == Err(libc::ENODEV);
                self.tty.controlled(unique, done);
                if failed && !self.line.answers() {
                    self.tty.lose();
                }
            }
        }
        if happened {
            if !self.line.answers() {
                self.tty.lose();
            }
            self.tty.ready(&mut self.line, Instant::now());
        }
        if self.tty.deadline().is_some_and(|at| at <= Instant::now()) {
            self.tty.ready(&mut self.line, Instant::now());
        }
        self.act()?;
        self.tell()?;
        if self.tty.is_lost() && self.tried.elapsed() >= TRY_EVERY {
            self.try_again()?;
        }
        Ok(false)
    }

    /// Returns whether the kernel asks, whether the line is ready, whether an ioctl is done, and whether this is to end.
    fn wait(
        &self,
        background: &Background,
        patience: Duration,
    ) -> Result<(bool, bool, bool, bool)> {
        let mut patience = patience;
        if let Some(at) = self.tty.deadline() {
            patience = patience.min(at.saturating_duration_since(Instant::now()));
        }
        if self.tty.is_lost() {
            patience = patience.min(TRY_EVERY);
        }
        let mut polled = vec![
            PollFd::new(self.kernel.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.hands.rings.as_fd(), PollFlags::POLLIN),
            PollFd::new(background.as_fd(), PollFlags::POLLIN),
        ];
        let watches = self.tty.watches();
        if let (Some(file), 1..) = (&self.line.file, watches) {
            let mut events = PollFlags::empty();
            events.set(PollFlags::POLLIN, watches & tty::READS != 0);
            events.set(PollFlags::POLLOUT, watches & tty::WRITES != 0);
            polled.push(PollFd::new(file.as_fd(), events));
        }
        // Up to the next millisecond: not too early.
        let patience = PollTimeout::try_from(patience + Duration::from_millis(1));
        match poll(&mut polled, patience.unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
        let happened = |at: usize| {
            let events = polled.get(at).and_then(PollFd::revents);
            events.is_some_and(|events| !events.is_empty())
        };
        Ok((happened(0), happened(3), happened(1), happened(2)))
    }

    /// Takes what the kernel has sent.
    fn take_all(&mut self) -> Result<()> {
        let mut message = vec![0; MESSAGE_BYTES_MAX];
        loop {
            match self.kernel.read(&mut message) {
                Ok(len) => {
                    self.tty
                        .handle(&message[..len], &mut self.line, Instant::now());
                    self.act()?;
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(()),
                    // Who asked has gone before it was read.
                    Some(libc::EINTR | libc::ENOENT) => {}
                    Some(libc::ENODEV) => bail!("the kernel has ended the device"),
                    _ => return Err(error).context("/dev/cuse"),
                },
            }
        }
    }

    fn act(&mut self) -> Result<()> {
        let mut actions = VecDeque::from(self.tty.actions());
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Send(message) => match self.kernel.write_all(&message) {
                    Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {
                        bail!("the kernel has ended the device")
                    }
                    // Who asked has gone.
                    Err(error) => tracing::debug!(%error, "an answer that nobody waits for"),
                    Ok(()) => {}
                },
                Action::Control {
                    unique,
                    what,
                    input,
                    out,
                } => {
                    let Some(file) = &self.line.file else {
                        self.tty.controlled(unique, Err(libc::EIO));
                        actions.extend(self.tty.actions());
                        continue;
                    };
                    let job = Job {
                        unique,
                        file: Arc::clone(file),
                        what,
                        input,
                        out,
                    };
                    let hands = if ioctls::waits(what) {
                        &self.hands.waits
                    } else {
                        &self.hands.others
                    };
                    hands.send(job).expect("it lives as long as this");
                }
            }
        }
        Ok(())
    }

    /// Writes down whether the line can be reached, and lets a lost one go.
    fn tell(&mut self) -> Result<()> {
        let lost = self.tty.is_lost();
        if lost && self.line.file.is_some() {
            self.line.close();
            self.tried = Instant::now();
        }
        if let (Some(entry), true) = (&self.entry, lost != self.told_lost) {
            entry.tell(if lost { State::Lost } else { State::Write })?;
            self.told_lost = lost;
        }
        Ok(())
    }

    fn try_again(&mut self) -> Result<()> {
        self.tried = Instant::now();
        if self.line.reach().is_err() {
            return Ok(());
        }
        let set = self.hands.set.lock().expect("no holder panics").clone();
        if let (Some(file), Some(modes)) = (&self.line.file, set)
            && line::set_again(file, &modes).is_err()
        {
            self.line.close();
            return Ok(());
        }
        self.tty.found(&mut self.line, Instant::now());
        self.act()?;
        self.tell()
    }
}
