//! Making and ending a mount.

use super::asker::Place;
use super::device::Device;
use super::sys;
use super::table::{self, MountLine, top_mount};
use super::watches::Watches;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// How a tree is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// What stands in the first column of /proc/mounts.
    pub fsname: String,
    /// The file system's type is `fuse.<subtype>`.
    pub subtype: String,
    /// No changes.
    pub read_only: bool,
    /// Device nodes do nothing. They would open devices of this node, whoever made them.
    pub nodev: bool,
    /// Setuid and setgid bits do nothing.
    pub nosuid: bool,
    /// Nothing can be executed.
    pub noexec: bool,
    /// Everybody may use the mount, not just its owner.
    pub allow_other: bool,
    /// The kernel checks permissions by mode and owner.
    pub default_permissions: bool,
    /// Most bytes of one READ; what was negotiated if `None`.
    pub max_read: Option<u32>,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            fsname: "glu".to_owned(),
            subtype: "glu".to_owned(),
            read_only: false,
            nodev: true,
            nosuid: true,
            noexec: false,
            allow_other: true,
            default_permissions: true,
            max_read: None,
        }
    }
}

impl MountOptions {
    fn kind(&self) -> String {
        format!("fuse.{}", self.subtype)
    }

    fn flags(&self) -> MsFlags {
        let table = [
            (self.read_only, MsFlags::MS_RDONLY),
            (self.nodev, MsFlags::MS_NODEV),
            (self.nosuid, MsFlags::MS_NOSUID),
            (self.noexec, MsFlags::MS_NOEXEC),
        ];
        table
            .into_iter()
            .filter_map(|(set, flag)| set.then_some(flag))
            .collect()
    }

    fn data(&self, device: &Device) -> String {
        let (fd, mode) = (device.number(), libc::S_IFDIR);
        let mut data = format!("fd={fd},rootmode={mode:o},user_id=0,group_id=0");
        if self.allow_other {
            data.push_str(",allow_other");
        }
        if self.default_permissions {
            data.push_str(",default_permissions");
        }
        if let Some(bytes) = self.max_read {
            data.push_str(&format!(",max_read={bytes}"));
        }
        data
    }
}

/// Why a mount failed, or its end.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The kernel has no FUSE.
    #[error(
        "open /dev/fuse: {source}: load the fuse module (modprobe fuse), or give this container the device"
    )]
    NoDevice {
        /// What open(2) reported.
        source: io::Error,
    },
    /// Not enough rights.
    #[error("mount on {}: not permitted: mounting needs root (CAP_SYS_ADMIN)", point.display())]
    NotRoot {
        /// Mount point.
        point: PathBuf,
    },
    /// Nothing there.
    #[error("mount on {}: no such directory: make it first (mkdir -p {})", point.display(), point.display())]
    NoPoint {
        /// Mount point.
        point: PathBuf,
    },
    /// Something else there.
    #[error("mount on {}: not a directory", point.display())]
    NotDir {
        /// Mount point.
        point: PathBuf,
    },
    /// A mount of this kind there already, alive or dead.
    #[error(
        "mount on {}: {kind} is mounted there already: end its daemon, or unmount what is left of it (umount {})",
        point.display(), point.display()
    )]
    Taken {
        /// Mount point.
        point: PathBuf,
        /// Type of the file system there.
        kind: String,
    },
    /// The mount point cannot be looked at.
    #[error("mount on {}: {source}", point.display())]
    Mount {
        /// Mount point.
        point: PathBuf,
        /// What the kernel reported.
        source: io::Error,
    },
    /// The mount cannot be ended.
    #[error("unmount {}: {source}", point.display())]
    Unmount {
        /// Mount point.
        point: PathBuf,
        /// What the kernel reported.
        source: io::Error,
    },
    /// The kernel and this program have no version of FUSE in common.
    #[error("the kernel speaks FUSE {major}.{minor}, needed is 7.36 or a newer 7 (Linux 5.17)")]
    Protocol {
        /// Major version of the kernel.
        major: u32,
        /// Minor version of the kernel.
        minor: u32,
    },
    /// The first exchange with the kernel failed.
    #[error("start the FUSE session: {source}")]
    Init {
        /// What failed.
        source: io::Error,
    },
    /// No threads to serve the mount.
    #[error("start a FUSE worker thread: {source}")]
    Thread {
        /// What the kernel reported.
        source: io::Error,
    },
}

/// A mount of ours. Dropping it unmounts, lazily if it is in use.
#[derive(Debug)]
pub(super) struct Mount {
    point: PathBuf,
    /// Device number as mountinfo shows it, such as `0:57`.
    device: String,
    /// Ends the connection. Opened while the mount was surely ours: another may get its number later, but this file
    /// stays with the connection and does nothing once that is over.
    abort: File,
}

impl Mount {
    /// Mounts `device` on `point`.
    pub(super) fn new(
        point: &Path,
        options: &MountOptions,
        device: &Device,
    ) -> Result<Self, MountError> {
        let point = checked_point(point, &options.kind())?;
        let failed = |source: io::Error| MountError::Mount {
            point: point.clone(),
            source,
        };
        mount(
            Some(options.fsname.as_str()),
            &point,
            Some(options.kind().as_str()),
            options.flags(),
            Some(options.data(device).as_str()),
        )
        .map_err(|errno| match errno {
            Errno::EPERM => MountError::NotRoot {
                point: point.clone(),
            },
            errno => failed(errno.into()),
        })?;
        let number = top_mount(&point)
            .and_then(|top| top.ok_or_else(|| io::ErrorKind::NotFound.into()))
            .and_then(|top| Ok((abort_file(&top.device)?, top.device)));
        match number {
            Ok((abort, device)) => Ok(Self {
                point,
                device,
                abort,
            }),
            Err(source) => {
                detach(&point);
                Err(failed(source))
            }
        }
    }

    pub(super) fn point(&self) -> &Path {
        &self.point
    }

    pub(super) fn watches(&self, place: Arc<Place>, used: Arc<AtomicBool>) -> Watches {
        Watches::new(place, &self.device, used)
    }

    /// Tells whether the mount point still shows this mount (and not nothing, or another one on top).
    fn is_there(&self) -> io::Result<bool> {
        Ok(top_mount(&self.point)?.is_some_and(|top| top.device == self.device))
    }

    /// Takes the mount out of the tree, and with it the mounts made of it elsewhere: each would keep the connection,
    /// and be dead when that ends. What is in use lives on for who uses it. Waits for the write-back of mapped pages,
    /// which the session has to answer.
    pub(super) fn unmount(&self) -> Result<(), MountError> {
        let failed = |point: &Path, source: io::Error| MountError::Unmount {
            point: point.to_owned(),
            source,
        };
        // Who unmounts by hand, or twice, leaves nothing that is surely ours: with the last mount of a file system the
        // number of its device is free for the next one. So it is also listed once.
        if !self
            .is_there()
            .map_err(|source| failed(&self.point, source))?
        {
            return Ok(());
        }
        let mounts = || table::mounts().map_err(|source| failed(&self.point, source));
        let ours = mounts()?.into_iter();
        let ours = ours.filter(|line| line.device == self.device);
        let mut left: BTreeSet<u64> = ours.map(|line| line.id).collect();
        loop {
            let mounts = mounts()?;
            // What lies below another mount cannot be reached by its path.
            let next = mounts.iter().rev().find(|line| {
                let top = mounts.iter().rfind(|other| other.point == line.point);
                left.contains(&line.id) && top.is_some_and(|top| top.id == line.id)
            });
            let Some(MountLine { id, point, .. }) = next else {
                return Ok(());
            };
            left.remove(id);
            match umount2(point, MntFlags::UMOUNT_NOFOLLOW) {
                Err(Errno::EBUSY) => {
                    umount2(point, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH)
                }
                // Something was mounted above it, or it went meanwhile.
                Err(Errno::EINVAL | Errno::ENOENT) if *point != self.point => Ok(()),
                done => done,
            }
            .map_err(|errno| failed(point, errno.into()))?;
        }
    }

    /// Returns the file that ends the connection when a byte is written to it.
    pub(super) fn abort_file(&self) -> io::Result<File> {
        self.abort.try_clone()
    }

    /// Ends the connection: every request gets an error, every later one too, in every namespace.
    pub(super) fn abort(&self) -> io::Result<()> {
        (&self.abort).write_all(b"1")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.is_there().unwrap_or(false) {
            detach(&self.point);
        }
    }
}

fn detach(point: &Path) {
    let flags = MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH;
    if let Err(errno) = umount2(point, flags) {
        tracing::warn!(point = %point.display(), %errno, "cannot unmount");
    }
}

/// Returns the absolute path of a directory to mount on.
fn checked_point(point: &Path, kind: &str) -> Result<PathBuf, MountError> {
    let failed = |point: &Path, source: io::Error| match source.raw_os_error() {
        Some(libc::ENOENT) => MountError::NoPoint {
            point: point.to_owned(),
        },
        Some(libc::ENOTDIR) => MountError::NotDir {
            point: point.to_owned(),
        },
        _ => MountError::Mount {
            point: point.to_owned(),
            source,
        },
    };
    let absolute = std::path::absolute(point).map_err(|source| failed(point, source))?;
    // The table is asked first, by the parent's path: to look at a dead mount fails, and at one without an answering
    // daemon waits for ever.
    if let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) {
        let parent = fs::canonicalize(parent).map_err(|source| failed(point, source))?;
        refuse_taken(&parent.join(name), kind)?;
    }
    let real = fs::canonicalize(&absolute).map_err(|source| failed(point, source))?;
    refuse_taken(&real, kind)?;
    if fs::metadata(&real)
        .map_err(|source| failed(point, source))?
        .is_dir()
    {
        Ok(real)
    } else {
        Err(MountError::NotDir { point: real })
    }
}

fn refuse_taken(point: &Path, kind: &str) -> Result<(), MountError> {
    match top_mount(point) {
        Ok(Some(top)) if top.kind == kind => Err(MountError::Taken {
            point: point.to_owned(),
            kind: top.kind,
        }),
        Ok(_) => Ok(()),
        Err(source) => Err(MountError::Mount {
            point: point.to_owned(),
            source,
        }),
    }
}

/// Opens the files that abort the connections of all Glu mounts at or below `dir`: writing a byte ends one.
///
/// For who ends a daemon from outside. A daemon that is killed while it tells its kernel to forget cannot die before
/// its connection is aborted: the kernel waits in it for a request that it cannot answer any more.
///
/// # Errors
/// The mount table or the control file system cannot be read.
pub fn abort_files_below(dir: &Path) -> io::Result<Vec<File>> {
    let ours = table::mounts()?
        .into_iter()
        .filter(|line| line.kind == MountOptions::default().kind() && line.point.starts_with(dir));
    let mut files = Vec::new();
    for line in ours {
        match abort_file(&line.device) {
            Ok(file) => files.push(file),
            // The connection is over.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(files)
}

/// Opens the control file that aborts the connection of the FUSE mount with this device number. The control file
/// system is mounted nowhere for it: whether /sys/fs/fuse/connections shows it depends on the machine.
fn abort_file(device: &str) -> io::Result<File> {
    let (_, minor) = device.split_once(':').ok_or(io::ErrorKind::InvalidData)?;
    let control = sys::detached_mount(c"fusectl")?;
    let path = format!("{minor}/abort");
    let file = openat(
        &control,
        path.as_str(),
        OFlag::O_WRONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_flags_and_data() {
        let options = MountOptions::default();
        assert_eq!(options.flags(), MsFlags::MS_NODEV | MsFlags::MS_NOSUID);
        assert_eq!(options.kind(), "fuse.glu");
        let device = Device::open().expect("this test needs /dev/fuse");
        let fd = device.number();
        assert_eq!(
            options.data(&device),
            format!("fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions")
        );
        let private = MountOptions {
            allow_other: false,
            default_permissions: false,
            max_read: Some(4096),
            ..options
        };
        assert_eq!(
            private.data(&device),
            format!("fd={fd},rootmode=40000,user_id=0,group_id=0,max_read=4096")
        );
    }
}
