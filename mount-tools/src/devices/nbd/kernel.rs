//! The kernel's half of a network block device: /dev/nbdN and the socket that its requests come from.

use super::codec::Geometry;
use crate::devices::sys::{self, NbdCommand};
use anyhow::{Context, Result, bail};
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What the kernel counts the disk in: no less than any file system needs.
const BLOCK_BYTES: u64 = 512;
/// How long the kernel may take to make a device ready, and how often it is looked at.
const READY_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Of <linux/nbd.h>.
const HAS_FLAGS: libc::c_ulong = 1 << 0;
const READ_ONLY: libc::c_ulong = 1 << 1;
const SEND_FLUSH: libc::c_ulong = 1 << 2;
const SEND_TRIM: libc::c_ulong = 1 << 5;

/// A device that is in use; its requests come out of the other end of a socket.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) name: PathBuf,
    file: File,
    /// Is in the kernel as long as the device is in use.
    runs: JoinHandle<()>,
}

impl Device {
    /// Takes a device that nobody uses.
    pub(super) fn take(disk: Geometry, socket: &UnixStream) -> Result<Self> {
        let mut count = 0;
        while let Some(free) = is_free(count) {
            count += 1;
            if free && let Some(device) = Self::try_take(count - 1, disk, socket)? {
                return Ok(device);
            }
        }
        bail!(
            "all {count} network block devices of this node are in use: modprobe nbd nbds_max=... gives more, \
             or use a loop device (--with loop)"
        )
    }

    /// `None`: somebody else was faster.
    fn try_take(number: u32, disk: Geometry, socket: &UnixStream) -> Result<Option<Self>> {
        let name = PathBuf::from(format!("/dev/nbd{number}"));
        let opened = OpenOptions::new().read(true).write(true).open(&name);
        let file = opened.with_context(|| name.display().to_string())?;
        let (runner, socket) = (file.try_clone()?, socket.try_clone()?);
        let (told, tells) = mpsc::channel();
        // The kernel has one and the same thread set a device up and run it.
        let runs = thread::spawn(move || {
            let ready = set_up(&runner, disk, &socket);
            let runs = ready.is_ok();
            if told.send(ready).is_ok()
                && runs
                && let Err(error) = sys::nbd(runner.as_fd(), NbdCommand::DoIt, 0)
            {
                tracing::debug!(%error, "a network block device has ended");
            }
        });
        let device = Self { name, file, runs };
        match tells.recv_timeout(READY_WITHIN) {
            Ok(Err(nix::Error::EBUSY)) => return Ok(None),
            Ok(ready) => ready.with_context(|| device.name.display().to_string())?,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                bail!("{}: the kernel does not take it", device.name.display())
            }
        }
        let end = Instant::now() + READY_WITHIN;
        while disk.bytes > 0 && !has_size(number) {
            if device.has_ended() || Instant::now() > end {
                bail!(
                    "{}: the kernel does not begin with it",
                    device.name.display()
                );
            }
            thread::sleep(LOOK_EVERY);
        }
        Ok(Some(device))
    }

    /// Returns whether it is in use no more.
    pub(super) fn has_ended(&self) -> bool {
        self.runs.is_finished()
    }

    /// Ends it: the kernel sends that it disconnects.
    pub(super) fn end(self) -> Result<()> {
        sys::nbd(self.file.as_fd(), NbdCommand::Disconnect, 0).context("disconnect")?;
        drop(self.runs.join());
        Ok(())
    }
}

fn set_up(file: &File, disk: Geometry, socket: &UnixStream) -> Result<(), nix::Error> {
    let mut flags = HAS_FLAGS | SEND_FLUSH;
    flags |= if disk.read_only { READ_ONLY } else { SEND_TRIM };
    let socket = socket.as_raw_fd();
    let socket = libc::c_ulong::try_from(socket).map_err(|_| nix::Error::EBADF)?;
    // The socket first: it is what says whether the device is another's.
    for (command, value) in [
        (NbdCommand::SetSocket, socket),
        (NbdCommand::SetBlockBytes, BLOCK_BYTES),
        (NbdCommand::SetBlocks, disk.bytes / BLOCK_BYTES),
        (NbdCommand::SetFlags, flags),
    ] {
        sys::nbd(file.as_fd(), command, value)?;
    }
    Ok(())
}

fn sysfs(number: u32) -> PathBuf {
    PathBuf::from(format!("/sys/block/nbd{number}"))
}

/// `None`: there is no such device.
fn is_free(number: u32) -> Option<bool> {
    let device = sysfs(number);
    device.exists().then(|| !device.join("pid").exists())
}

fn has_size(number: u32) -> bool {
    let size = fs::read_to_string(sysfs(number).join("size"));
    size.is_ok_and(|size| size.trim() != "0")
}

/// Returns whether a path is that of a network block device.
pub(super) fn is_one(name: &Path) -> bool {
    let name = name.strip_prefix("/dev").unwrap_or(name).to_string_lossy();
    let number = name.strip_prefix("nbd");
    number.is_some_and(|number| number.parse::<u32>().is_ok())
}
