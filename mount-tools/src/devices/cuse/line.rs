//! The line, as its file in the tree; nothing here waits but for a round trip.

use super::ioctls::{self, Do, MODES2_BYTES, TCGETS2, TCSETS2};
use super::tty::{Failure, Wire};
use crate::devices::sys;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Where it is, and its file while somebody has the device open and it can be reached.
#[derive(Debug)]
pub(super) struct TreeLine {
    path: PathBuf,
    pub(super) file: Option<Arc<File>>,
}

impl TreeLine {
    pub(super) const fn new(path: PathBuf) -> Self {
        Self { path, file: None }
    }

    /// Opens it, and looks whether it is a terminal.
    pub(super) fn reach(&mut self) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true);
        let file = options
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(&self.path)?;
        sys::modes(file.as_fd())?;
        self.file = Some(Arc::new(file));
        Ok(())
    }

    /// Tells a failure of the line from the end of its file.
    fn failed(&self, errno: nix::Error) -> Failure {
        match errno {
            nix::Error::EAGAIN | nix::Error::EINTR => Failure::Again,
            _ if self.answers() => Failure::Errno(errno as i32),
            _ => Failure::Lost,
        }
    }

    pub(super) fn answers(&self) -> bool {
        let file = self.file.as_ref();
        file.is_some_and(|file| sys::modes(file.as_fd()).is_ok())
    }
}

impl Wire for TreeLine {
    fn open(&mut self) -> Result<(), i32> {
        let reached = self.reach();
        reached.map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
    }

    fn close(&mut self) {
        self.file = None;
    }

    fn read(&mut self, size: u32) -> Result<Vec<u8>, Failure> {
        let file = self.file.as_ref().ok_or(Failure::Lost)?;
        let mut data = vec![0; size as usize];
        match read(file, &mut data) {
            // The end of a line that has hung up; of one that has not it is what somebody has typed.
            Ok(0) if size > 0 && !self.answers() => Err(Failure::Lost),
            Ok(count) => {
                data.truncate(count);
                Ok(data)
            }
            Err(errno) => Err(self.failed(errno)),
        }
    }

    fn write(&mut self, data: &[u8]) -> Result<usize, Failure> {
        let file = self.file.as_ref().ok_or(Failure::Lost)?;
        match write(file, data) {
            Ok(0) => Err(Failure::Again),
            taken => taken.map_err(|errno| self.failed(errno)),
        }
    }

    fn ready(&mut self) -> u32 {
        let Some(file) = &self.file else { return 0 };
        let wanted = PollFlags::POLLIN
            | PollFlags::POLLRDNORM
            | PollFlags::POLLOUT
            | PollFlags::POLLWRNORM
            | PollFlags::POLLPRI;
        let mut polled = [PollFd::new(file.as_fd(), wanted)];
        let ready = poll(&mut polled, PollTimeout::ZERO).ok();
        let ready = ready.and_then(|_| polled[0].revents());
        ready.map_or(0, |ready| u32::from(ready.bits().cast_unsigned()))
    }

    fn read_within(&mut self) -> Option<Duration> {
        let modes = sys::modes(self.file.as_ref()?.as_fd()).ok()?;
        let tenths = modes.c_cc[libc::VTIME];
        let timed = modes.c_lflag & libc::ICANON == 0 && modes.c_cc[libc::VMIN] == 0;
        (timed && tenths > 0).then(|| Duration::from_millis(100) * tenths.into())
    }
}

/// Does an ioctl of the table; it may wait for what was written. Returns what comes back, and how the line is set now if
/// this has set it.
pub(super) fn control(
    file: &File,
    what: Do,
    input: &[u8],
    out: u32,
) -> Result<(Vec<u8>, Option<Vec<u8>>), i32> {
    let ask = |command: u32, input: &[u8], out: u32| {
        let done = sys::line_control(file.as_fd(), command, input, out as usize);
        done.map_err(|errno| errno as i32)
    };
    match what {
        Do::GetModes => {
            let mut modes = ask(TCGETS2, &[], MODES2_BYTES)?;
            modes.truncate(out as usize);
            Ok((modes, None))
        }
        Do::SetModes(command) => {
            let now = ask(TCGETS2, &[], MODES2_BYTES)?;
            let set = ioctls::with_modes(now, input);
            ask(command, &set, 0)?;
            Ok((Vec::new(), Some(set)))
        }
        Do::As(command) => {
            let output = ask(command, input, out)?;
            let sets = input.len() == MODES2_BYTES as usize;
            Ok((output, sets.then(|| input.to_vec())))
        }
    }
}

/// Sets a line that is open anew as it was set.
pub(super) fn set_again(file: &File, modes: &[u8]) -> Result<(), nix::Error> {
    sys::line_control(file.as_fd(), TCSETS2, modes, 0).map(drop)
}
