//! `glu console`: this terminal at a terminal or serial line of another node.
//!
//! The line is used through its file in the tree. It is set raw, with the speed that is asked for, and set back at the
//! end. With `--pty` the near side is not this terminal but a new pseudo-terminal for a program that wants one; the speed
//! and the bits that this program sets there are set at the line.

use super::escape::Escape;
use super::line::Line;
use super::{DeviceName, sys};
use anyhow::{Context, Result, bail};
use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{read, ttyname, write};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// How often the settings of a pseudo-terminal are looked at; nothing tells of their change.
const MODES_EVERY: Duration = Duration::from_millis(200);
const PIECE_BYTES: usize = 4096;

#[derive(Debug, Args)]
pub(crate) struct Console {
    /// The terminal or serial line: node3:ttyS0.
    device: DeviceName,
    /// Its speed in bits per second; as it is if not given.
    #[arg(long, value_name = "SPEED", value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    baud: Option<u32>,
    /// Make a pseudo-terminal that stands for the line, print its name, and serve it until it is ended.
    #[arg(long)]
    pty: bool,
    /// Where the tree is mounted.
    #[arg(long, value_name = "DIR", default_value = "/cluster")]
    mount: PathBuf,
}

/// This process's terminal, set back when this is dropped.
pub(super) struct Raw(Termios);

/// Who is at the near side.
pub(super) enum Near {
    /// This terminal, or what is typed without one.
    Own { escape: Escape, _raw: Option<Raw> },
    /// A pseudo-terminal. Its other end stays open, so that programs may come and go.
    Pty {
        master: OwnedFd,
        slave: OwnedFd,
        told: libc::termios2,
    },
}

impl Console {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let line = Line::open(&self.device, &self.mount, self.baud)?;
        let mut near = if self.pty {
            let (near, name) = Near::pty(&line)?;
            println!("{}", name.display());
            near
        } else {
            Near::own(&self.device)?
        };
        near.relay(&line, None)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.0) {
            tracing::debug!(%error, "the terminal is not set back");
        }
    }
}

impl Near {
    fn own(device: &DeviceName) -> Result<Self> {
        let stdin = io::stdin();
        let raw = if stdin.is_terminal() {
            eprintln!("glu: {device}; Enter ~ . ends this");
            let before = tcgetattr(&stdin).context("this terminal")?;
            let mut raw = before.clone();
            cfmakeraw(&mut raw);
            tcsetattr(&stdin, SetArg::TCSADRAIN, &raw).context("this terminal")?;
            Some(Raw(before))
        } else {
            None
        };
        Ok(Self::Own {
            escape: Escape::default(),
            _raw: raw,
        })
    }

    /// Makes a pseudo-terminal set as the line is; returns its name with it.
    pub(super) fn pty(line: &Line) -> Result<(Self, PathBuf)> {
        let pty = openpty(None, None).context("make a pseudo-terminal")?;
        let told = sys::modes(line.file.as_fd()).context("the line")?;
        sys::set_modes(pty.slave.as_fd(), &told).context("the pseudo-terminal")?;
        let name = ttyname(&pty.slave).context("the pseudo-terminal")?;
        // As the pseudo-terminal has it, which may leave something out.
        let told = sys::modes(pty.slave.as_fd()).context("the pseudo-terminal")?;
        let near = Self::Pty {
            master: pty.master,
            slave: pty.slave,
            told,
        };
        Ok((near, name))
    }

    /// Carries bytes both ways until the near side ends, or there is something to read from `stop`.
    ///
    /// # Errors
    /// If the line has gone.
    pub(super) fn relay(&mut self, line: &Line, stop: Option<BorrowedFd<'_>>) -> Result<()> {
        let mut piece = [0; PIECE_BYTES];
        loop {
            let Some((typed, shown)) = self.wait(line, stop)? else {
                return Ok(());
            };
            if shown {
                match read(&line.file, &mut piece) {
                    Ok(0) => bail!("the line has hung up"),
                    Ok(len) => show(self.output().as_fd(), &piece[..len])?,
                    Err(nix::Error::EAGAIN | nix::Error::EINTR) => {}
                    Err(error) => return Err(error).context("the line has gone"),
                }
            }
            if typed {
                match read(self.input(), &mut piece) {
                    Ok(0) => return Ok(()),
                    Ok(len) => {
                        let (passed, end) = self.pass(&piece[..len]);
                        line.send(&passed)?;
                        if end {
                            return Ok(());
                        }
                    }
                    Err(nix::Error::EAGAIN | nix::Error::EINTR) => {}
                    Err(error) => return Err(error).context("read what is typed"),
                }
            }
            self.tell(line)?;
        }
    }

    /// Waits until something is typed, or shown by the line; `None`: this is to end.
    fn wait(&self, line: &Line, stop: Option<BorrowedFd<'_>>) -> Result<Option<(bool, bool)>> {
        let timeout = match self {
            Self::Own { .. } => PollTimeout::NONE,
            Self::Pty { .. } => PollTimeout::try_from(MODES_EVERY).expect("short"),
        };
        let input = self.input();
        let readers = [Some(input.as_fd()), Some(line.file.as_fd()), stop];
        let readers = readers.into_iter().flatten();
        let polled = readers.map(|reader| PollFd::new(reader, PollFlags::POLLIN));
        let mut polled = Vec::from_iter(polled);
        match poll(&mut polled, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
        let happened = |at: usize| {
            let events = polled.get(at).and_then(PollFd::revents);
            events.is_some_and(|events| !events.is_empty())
        };
        Ok((!happened(2)).then(|| (happened(0), happened(1))))
    }

    fn pass(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        match self {
            Self::Own { escape, .. } => escape.feed(typed),
            Self::Pty { .. } => (typed.to_vec(), false),
        }
    }

    /// Sets the line as a program has set the pseudo-terminal since.
    fn tell(&mut self, line: &Line) -> Result<()> {
        let Self::Pty { slave, told, .. } = self else {
            return Ok(());
        };
        let now = sys::modes(slave.as_fd()).context("the pseudo-terminal")?;
        if speeds(&now) != speeds(told) {
            self.settle(line)?;
        }
        Ok(())
    }

    /// Sets the line as the pseudo-terminal is set.
    pub(super) fn settle(&mut self, line: &Line) -> Result<()> {
        if let Self::Pty { slave, told, .. } = self {
            let now = sys::modes(slave.as_fd()).context("the pseudo-terminal")?;
            let mut modes = sys::modes(line.file.as_fd()).context("the line")?;
            (modes.c_cflag, modes.c_ispeed, modes.c_ospeed) = speeds(&now);
            line.set(&modes)
                .context("the line does not take these settings")?;
            *told = now;
        }
        Ok(())
    }

    fn input(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own { .. } => STDIN.as_fd(),
            Self::Pty { master, .. } => master.as_fd(),
        }
    }

    fn output(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own { .. } => STDOUT.as_fd(),
            Self::Pty { master, .. } => master.as_fd(),
        }
    }
}

static STDIN: std::sync::LazyLock<io::Stdin> = std::sync::LazyLock::new(io::stdin);
static STDOUT: std::sync::LazyLock<io::Stdout> = std::sync::LazyLock::new(io::stdout);

/// Writes all of it to the near side, which takes it sooner or later.
fn show(output: BorrowedFd<'_>, mut data: &[u8]) -> Result<()> {
    while !data.is_empty() {
        match write(output, data) {
            Ok(taken) => data = &data[taken..],
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error).context("show what the line sends"),
        }
    }
    Ok(())
}

/// What is relayed of settings.
const fn speeds(modes: &libc::termios2) -> (libc::tcflag_t, libc::speed_t, libc::speed_t) {
    (modes.c_cflag, modes.c_ispeed, modes.c_ospeed)
}
