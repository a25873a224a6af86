//! Disks of other nodes as network block devices, each served by a process in the background.
//!
//! The kernel's driver sends what programs do with `/dev/nbdN` into a socket ([`codec`], [`serve`]); what serves it uses the
//! disk's file in the tree, opens it anew when it has ended ([`disk`]), and then writes again what nobody has flushed
//! ([`unflushed`]). So it outlives the daemon, and the daemon of the disk's node, if they are back in time.
//!
//! Lock order: the state of the disk; the answers to the kernel are locked alone.

mod codec;
mod disk;
mod kernel;
mod serve;
mod tree;
mod unflushed;

use super::stand_in::{Background, Entry, State};
use super::{DeviceName, refused, sys};
use anyhow::{Context, Result};
use codec::Geometry;
use disk::{Disk, PATIENCE, Pace, TRY_EVERY};
use kernel::Device;
use std::fs::OpenOptions;
use std::net::Shutdown;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;
use tree::InTree;

/// How often it is looked whether somebody else has ended the device.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Serves a disk until SIGTERM, or until the kernel has done with it.
pub(super) fn serve(device: &DeviceName, mount: &Path, read_only: bool) -> Result<()> {
    let background = Background::begin()?;
    let path = device.below(mount);
    let entry = Arc::new(OnceLock::<Entry>::new());
    let usual = if read_only { State::Read } else { State::Write };
    let tell = {
        let entry = Arc::clone(&entry);
        move |lost| {
            let state = if lost { State::Lost } else { usual };
            if let Some(Err(error)) = entry.get().map(|entry| entry.tell(state)) {
                tracing::debug!(%error, "the entry of a stand-in is old");
            }
        }
    };
    // Writing back to this disk may be what memory is waited for.
    sys::serves_a_disk();
    let source = InTree::new(path.clone(), read_only, tell);
    let pace = Pace {
        patience: PATIENCE,
        every: TRY_EVERY,
    };
    let disk = Disk::open(source, pace).map_err(|error| refused(&path, error))?;
    let geometry = Geometry {
        bytes: disk.bytes(),
        read_only,
    };
    let (near, far) = UnixStream::pair().context("a socket")?;
    let serves = thread::spawn(move || serve::serve(far, &disk, geometry));
    let device = Device::take(geometry, &near)?;
    let made = Entry::new(&device.name, path, usual)?;
    assert!(entry.set(made).is_ok(), "set once");
    println!("{}", device.name.display());
    background.leave()?;
    while !device.has_ended() {
        if background.is_told_to_end(LOOK_EVERY)? {
            device.end()?;
            break;
        }
    }
    // Whoever has it open still keeps the kernel's end of the socket.
    near.shutdown(Shutdown::Both).context("the socket")?;
    drop(serves.join());
    Ok(())
}

/// Returns whether a path is that of a network block device.
pub(super) fn is_one(name: &Path) -> bool {
    kernel::is_one(name)
}

/// Has all written that programs have given to a device, unless it is in use.
///
/// # Errors
/// `EBUSY`: it is in use.
pub(super) fn release(name: &Path) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    let alone = options.read(true).custom_flags(libc::O_EXCL).open(name)?;
    alone.sync_all()
}
