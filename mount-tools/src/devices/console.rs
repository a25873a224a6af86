//! `glu console`: this terminal at a terminal or serial line of another node.
//!
//! The line is used through its file in the tree. It is set raw, with the speed that is asked for, and set back at the
//! end. With `--pty` the near side is not this terminal but a new pseudo-terminal for a program that wants one; the speed
//! and the bits that this program sets there are set at the line.

use super::escape::Escape;
use super::{DeviceName, refused, sys};
use anyhow::{Context, Result, bail};
use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{read, ttyname, write};
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// How often the settings of a pseudo-terminal are looked at; nothing tells of their change.
const MODES_EVERY: Duration = Duration::from_millis(200);
/// How long the line may take what was typed; a line that is held by its flow control takes nothing.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);
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

/// The line, set back when this is dropped.
struct Line {
    file: File,
    before: libc::termios2,
}

/// This process's terminal, set back when this is dropped.
struct Raw(Termios);

/// Who is at the near side.
enum Near {
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
        let line = Line::open(&self)?;
        let mut near = if self.pty {
            Near::pty(&line)?
        } else {
            Near::own(&self.device)?
        };
        near.relay(&line)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Line {
    fn open(console: &Console) -> Result<Self> {
        let path = console.device.below(&console.mount);
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true);
        let opened = options
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(&path);
        let file = opened.map_err(|error| refused(&path, error))?;
        let Ok(before) = sys::modes(file.as_fd()) else {
            bail!(
                "{} is no terminal: use its file, {}",
                console.device,
                path.display()
            );
        };
        let line = Self { file, before };
        let mut raw = raw(before);
        if let Some(baud) = console.baud {
            set_speed(&mut raw, baud);
        }
        line.set(&raw)
            .with_context(|| format!("{}: cannot be set", console.device))?;
        Ok(line)
    }

    fn set(&self, modes: &libc::termios2) -> Result<(), nix::Error> {
        sys::set_modes(self.file.as_fd(), modes)
    }

    /// Writes all of it, as fast as the line takes it.
    fn send(&self, mut data: &[u8]) -> Result<()> {
        while !data.is_empty() {
            match write(&self.file, data) {
                Ok(taken) => data = &data[taken..],
                Err(nix::Error::EAGAIN) => {
                    let mut polled = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
                    let patience = PollTimeout::try_from(WRITE_PATIENCE).expect("short");
                    if poll(&mut polled, patience)? == 0 {
                        bail!("the line takes nothing (flow control?)");
                    }
                }
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error).context("the line has gone"),
            }
        }
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Err(error) = self.set(&self.before) {
            tracing::debug!(%error, "the line is not set back");
        }
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

    fn pty(line: &Line) -> Result<Self> {
        let pty = openpty(None, None).context("make a pseudo-terminal")?;
        let told = sys::modes(line.file.as_fd()).context("the line")?;
        sys::set_modes(pty.slave.as_fd(), &told).context("the pseudo-terminal")?;
        let name = ttyname(&pty.slave).context("the pseudo-terminal")?;
        println!("{}", name.display());
        // As the pseudo-terminal has it, which may leave something out.
        let told = sys::modes(pty.slave.as_fd()).context("the pseudo-terminal")?;
        Ok(Self::Pty {
            master: pty.master,
            slave: pty.slave,
            told,
        })
    }

    /// Carries bytes both ways until one side ends.
    fn relay(&mut self, line: &Line) -> Result<()> {
        let mut piece = [0; PIECE_BYTES];
        loop {
            let (typed, shown) = self.wait(line)?;
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

    /// Waits until something is typed, or shown by the line.
    fn wait(&self, line: &Line) -> Result<(bool, bool)> {
        let timeout = match self {
            Self::Own { .. } => PollTimeout::NONE,
            Self::Pty { .. } => PollTimeout::try_from(MODES_EVERY).expect("short"),
        };
        let input = self.input();
        let mut polled = [
            PollFd::new(input.as_fd(), PollFlags::POLLIN),
            PollFd::new(line.file.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut polled, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
        let happened = |at: usize| {
            polled[at]
                .revents()
                .is_some_and(|events| !events.is_empty())
        };
        Ok((happened(0), happened(1)))
    }

    fn pass(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        match self {
            Self::Own { escape, .. } => escape.feed(typed),
            Self::Pty { .. } => (typed.to_vec(), false),
        }
    }

    /// Sets the line as a program has set the pseudo-terminal.
    fn tell(&mut self, line: &Line) -> Result<()> {
        let Self::Pty { slave, told, .. } = self else {
            return Ok(());
        };
        let now = sys::modes(slave.as_fd()).context("the pseudo-terminal")?;
        let speeds = |modes: &libc::termios2| (modes.c_cflag, modes.c_ispeed, modes.c_ospeed);
        if speeds(&now) != speeds(told) {
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

/// Returns settings without echo, lines or translations, as cfmakeraw(3) makes them.
fn raw(mut modes: libc::termios2) -> libc::termios2 {
    modes.c_iflag &= !(libc::IGNBRK
        | libc::BRKINT
        | libc::PARMRK
        | libc::ISTRIP
        | libc::INLCR
        | libc::IGNCR
        | libc::ICRNL
        | libc::IXON);
    modes.c_oflag &= !libc::OPOST;
    modes.c_lflag &= !(libc::ECHO | libc::ECHONL | libc::ICANON | libc::ISIG | libc::IEXTEN);
    modes.c_cflag = modes.c_cflag & !(libc::CSIZE | libc::PARENB) | libc::CS8 | libc::CLOCAL;
    modes
}

/// Speeds that have a code of their own, which all programs know.
const CODES: [(u32, libc::speed_t); 12] = [
    (1_200, libc::B1200),
    (2_400, libc::B2400),
    (4_800, libc::B4800),
    (9_600, libc::B9600),
    (19_200, libc::B19200),
    (38_400, libc::B38400),
    (57_600, libc::B57600),
    (115_200, libc::B115200),
    (230_400, libc::B230400),
    (460_800, libc::B460800),
    (921_600, libc::B921600),
    (3_000_000, libc::B3000000),
];

/// Sets the speed of both directions, whatever it is.
fn set_speed(modes: &mut libc::termios2, baud: u32) {
    let code = CODES.iter().find(|(speed, _)| *speed == baud);
    let code = code.map_or(libc::BOTHER, |(_, code)| *code);
    modes.c_cflag = modes.c_cflag & !(libc::CBAUD | libc::CIBAUD) | code;
    (modes.c_ispeed, modes.c_ospeed) = (baud, baud);
}
