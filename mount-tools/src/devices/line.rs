//! A terminal or serial line of another node, used through its file in the tree.

use super::{DeviceName, refused, sys};
use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::write;
use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

/// How long the line may take what was typed; a line that is held by its flow control takes nothing.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);

/// The line, set back when this is dropped.
pub(super) struct Line {
    pub(super) file: File,
    /// How it was set.
    pub(super) before: libc::termios2,
}

impl Line {
    /// Opens it and sets it raw.
    pub(super) fn open(device: &DeviceName, mount: &Path, baud: Option<u32>) -> Result<Self> {
        let path = device.below(mount);
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true);
        let opened = options
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(&path);
        let file = opened.map_err(|error| refused(&path, error))?;
        let Ok(before) = sys::modes(file.as_fd()) else {
            bail!(
                "{} is no terminal: use its file, {}",
                device,
                path.display()
            );
        };
        let line = Self { file, before };
        let mut raw = raw(before);
        if let Some(baud) = baud {
            set_speed(&mut raw, baud);
        }
        line.set(&raw)
            .with_context(|| format!("{device}: cannot be set"))?;
        Ok(line)
    }

    /// Sets it.
    pub(super) fn set(&self, modes: &libc::termios2) -> Result<(), nix::Error> {
        sys::set_modes(self.file.as_fd(), modes)
    }

    /// Writes all of it, as fast as the line takes it.
    pub(super) fn send(&self, mut data: &[u8]) -> Result<()> {
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
