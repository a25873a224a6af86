//! `mount.glu`: what mount(8) runs for `mount -t glu [CLUSTER][:/DIRECTORY] POINT`, and for lines of /etc/fstab.
//!
//! The daemon owns the one FUSE mount of a node. An additional mount is a copy of it, or of a directory in it, with
//! flags of its own: it costs the daemon nothing, and its pages and names are those of the first one.
//!
//! | wish | what carries it |
//! | --- | --- |
//! | ro, nosuid, nodev, noexec, access times | this mount alone (mount_setattr) |
//! | hard, soft, timeo | the daemon, so all mounts of a node; another wish is refused |
//! | `_netdev`, nofail, auto, x-... | whoever reads /etc/fstab; nothing to do here |
//!
//! Rules:
//! - nodev and nosuid unless `allow_dev` or `allow_suid` is asked for. The usual `dev` and `suid` do not do it: mount(8)
//!   takes them for what is so anyway and does not pass them on. Only root may mount.
//! - A mount that is there already as wished is a success: mount(8) does not recognise a mounted directory in
//!   `mount -a`, because the kernel shows the file system's source, not the directory's.
//! - A mount point is never looked at before the table of mounts was: what a dead daemon left there answers nothing.

mod options;
mod source;
mod sys;

use crate::daemon::{Daemon, DaemonError};
use gfs::fuse::MountOptions;
use gfs::fuse::table::{self, MountLine};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{Mode, fstat, stat};
use nix::sys::statfs::statfs;
use options::{BadOption, Options};
use source::Source;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Exit statuses of mount(8).
const EXIT_USAGE: u8 = 1;
const EXIT_FAILED: u8 = 32;

/// Mounts the cluster's tree, or a directory of it, a second time; run by mount(8).
#[derive(Debug, clap::Parser)]
#[command(name = "mount.glu", version)]
struct Arguments {
    /// `glu`, `cluster` or the cluster's name; `:/DIRECTORY` after it, or alone.
    source: String,
    /// Where to mount it.
    point: PathBuf,
    /// What it is to be like.
    #[arg(short, value_name = "OPTIONS", action = clap::ArgAction::Append)]
    options: Vec<String>,
    /// Do everything but mount.
    #[arg(short)]
    fake: bool,
    /// Ignore unknown options.
    #[arg(short)]
    sloppy: bool,
    /// There is no /etc/mtab to write; ignored.
    #[arg(short)]
    no_mtab: bool,
    /// Say what is done.
    #[arg(short)]
    verbose: bool,
    /// The type, given by mount(8); ignored.
    #[arg(short, value_name = "TYPE")]
    type_: Option<String>,
}

/// Why something is not mounted; prints as one line.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Option(#[from] BadOption),
    #[error("{0}: not permitted: mounting needs root (CAP_SYS_ADMIN)")]
    NotRoot(String),
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    #[error(transparent)]
    Source(#[from] source::BadSource),
    #[error(
        "{wish}: the requests of all mounts of a node wait alike, here {waits}: set [mount] hard and request_timeout_s in glud.toml, restart glud, and leave the option out or correct it"
    )]
    Waits { wish: String, waits: String },
    #[error(
        "{}: glud's tree is not mounted there (any more, or in this mount namespace): restart glud", .0.display()
    )]
    NoTree(PathBuf),
    #[error("{source_}: {errno}: name a directory of the cluster that exists, from its root", errno = .errno.desc())]
    NoDirectory { source_: String, errno: Errno },
    #[error("{}: no such directory: make it first (mkdir -p {})", .0.display(), .0.display())]
    NoPoint(PathBuf),
    #[error("{}: not a directory", .0.display())]
    NotDir(PathBuf),
    #[error("{}: no glu mount: mount it first", .0.display())]
    NotMounted(PathBuf),
    #[error(
        "{}: it is mounted there already with other options ({options}): use -o remount, or umount it first", point.display()
    )]
    OtherOptions { point: PathBuf, options: String },
    #[error("{}: files are open for writing there: close them, then remount it read-only", .0.display())]
    Busy(PathBuf),
    #[error(
        "{}: the node's whole tree is read-only: take ro out of [mount] in glud.toml and restart glud", .0.display()
    )]
    ReadOnlyTree(PathBuf),
    #[error("{}: {source}", point.display())]
    Io { point: PathBuf, source: io::Error },
}

/// Runs `mount.glu`.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match <Arguments as clap::Parser>::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let status = crate::cli::refuse("mount.glu", &error);
            return if error.use_stderr() {
                ExitCode::from(EXIT_USAGE)
            } else {
                status
            };
        }
    };
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(refusal) => {
            eprintln!("mount.glu: {refusal}");
            ExitCode::from(match refusal {
                Refusal::Option(_) | Refusal::Source(_) | Refusal::NotRoot(_) => EXIT_USAGE,
                _ => EXIT_FAILED,
            })
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Refusal> {
    let options = Options::parse(&arguments.options, arguments.sloppy)?;
    let source: Source = arguments.source.parse()?;
    if !nix::unistd::geteuid().is_root() {
        return Err(Refusal::NotRoot(arguments.point.display().to_string()));
    }
    let point = real_point(&arguments.point)?;
    if options.remount {
        return remount(&point, &options, arguments.fake);
    }
    let daemon = Daemon::ask(options.socket())?;
    source.check_name(&daemon.cluster)?;
    check_waits(&options, &daemon)?;
    let (tree, line) = open_tree(&daemon.point)?;
    let directory = open_directory(tree.as_fd(), &source)?;
    if is_mounted(&point, directory.as_fd(), &line, &options)? || arguments.fake {
        return Ok(());
    }
    let failed = |source: io::Error| match source.raw_os_error() {
        Some(libc::ENOENT) => Refusal::NoPoint(point.clone()),
        Some(libc::ENOTDIR) => Refusal::NotDir(point.clone()),
        Some(libc::EPERM) => Refusal::NotRoot(point.display().to_string()),
        _ => Refusal::Io {
            point: point.clone(),
            source,
        },
    };
    let mount = sys::copy_of_mount(directory.as_fd()).map_err(failed)?;
    sys::set_attributes(mount.as_fd(), options.attributes()).map_err(failed)?;
    sys::attach(mount.as_fd(), &point).map_err(failed)?;
    if is_read_only(&line.super_options) && !options.read_only() {
        eprintln!("mount.glu: warning: {}", Refusal::ReadOnlyTree(point));
    } else if arguments.verbose {
        println!("mount.glu: {source} mounted on {}", point.display());
    }
    Ok(())
}

/// Changes the flags of a mount, of this one alone.
fn remount(point: &Path, options: &Options, fake: bool) -> Result<(), Refusal> {
    let failed = |source| Refusal::Io {
        point: point.to_owned(),
        source,
    };
    let line = top_of_ours(point).map_err(failed)?;
    let line = line.ok_or_else(|| Refusal::NotMounted(point.to_owned()))?;
    if options.waits() {
        // Those of the file system do not change by a remount; who names them must name what is.
        check_waits(options, &Daemon::ask(options.socket())?)?;
    }
    if options.writable() && is_read_only(&line.super_options) {
        return Err(Refusal::ReadOnlyTree(point.to_owned()));
    }
    if fake {
        return Ok(());
    }
    let mount = open(point, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|errno| failed(errno.into()))?;
    sys::set_attributes(mount.as_fd(), options.changes()).map_err(|error| {
        match error.raw_os_error() {
            Some(libc::EBUSY) => Refusal::Busy(point.to_owned()),
            _ => failed(error),
        }
    })
}

/// Refuses another way to wait than the daemon's.
fn check_waits(options: &Options, daemon: &Daemon) -> Result<(), Refusal> {
    match options.differs(daemon.hard, daemon.timeo) {
        None => Ok(()),
        Some(wish) => Err(Refusal::Waits {
            wish,
            waits: if daemon.hard {
                "for ever (hard)".to_owned()
            } else {
                format!("{} tenths of a second (soft)", daemon.timeo)
            },
        }),
    }
}

/// Opens the root of the daemon's mount, without asking the daemon.
fn open_tree(point: &Path) -> Result<(OwnedFd, MountLine), Refusal> {
    let none = || Refusal::NoTree(point.to_owned());
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let tree = open(point, flags, Mode::empty()).map_err(|_| none())?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", tree.as_raw_fd()));
    let info = info.map_err(|_| none())?;
    let id = info
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    let mounts = table::mounts().map_err(|_| none())?;
    mounts
        .into_iter()
        .find(|line| Some(line.id) == id && is_ours(line) && line.root == Path::new("/"))
        .map(|line| (tree, line))
        .ok_or_else(none)
}

fn open_directory(tree: BorrowedFd<'_>, source: &Source) -> Result<OwnedFd, Refusal> {
    // Neither `..` nor a symbolic link leads out of the tree, nor into what is mounted in it.
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(
            ResolveFlag::RESOLVE_IN_ROOT
                | ResolveFlag::RESOLVE_NO_XDEV
                | ResolveFlag::RESOLVE_NO_MAGICLINKS,
        );
    openat2(tree, source.directory(), how).map_err(|errno| Refusal::NoDirectory {
        source_: source.to_string(),
        errno,
    })
}

/// Tells whether the directory is mounted on `point` already; what a dead daemon left there is taken away.
fn is_mounted(
    point: &Path,
    directory: BorrowedFd<'_>,
    tree: &MountLine,
    options: &Options,
) -> Result<bool, Refusal> {
    let failed = |source| Refusal::Io {
        point: point.to_owned(),
        source,
    };
    loop {
        let Some(line) = top_of_ours(point).map_err(failed)? else {
            return Ok(false);
        };
        if line.device != tree.device {
            // Unlike stat, this is never answered from a cache.
            if !matches!(statfs(point), Err(Errno::ENOTCONN)) {
                return Ok(false);
            }
            umount2(point, MntFlags::MNT_DETACH).map_err(|errno| failed(errno.into()))?;
            continue;
        }
        let there = stat(point).map_err(|errno| failed(errno.into()))?;
        let wished = fstat(directory).map_err(|errno| failed(errno.into()))?;
        if there.st_ino != wished.st_ino {
            return Ok(false);
        }
        return if options.are_those_of(&line.options) {
            Ok(true)
        } else {
            Err(Refusal::OtherOptions {
                point: point.to_owned(),
                options: line.options,
            })
        };
    }
}

fn top_of_ours(point: &Path) -> io::Result<Option<MountLine>> {
    Ok(table::top_mount(point)?.filter(is_ours))
}

fn is_ours(line: &MountLine) -> bool {
    line.kind == format!("fuse.{}", MountOptions::default().subtype)
}

fn is_read_only(options: &str) -> bool {
    options.split(',').next() == Some("ro")
}

/// Returns a mount point as the table of mounts names it, without looking at what is mounted there.
fn real_point(point: &Path) -> Result<PathBuf, Refusal> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => Refusal::NoPoint(point.to_owned()),
        _ => Refusal::Io {
            point: point.to_owned(),
            source,
        },
    };
    let whole = || fs::canonicalize(point).map_err(failed);
    let absolute = std::path::absolute(point).map_err(failed)?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => {
            let real = fs::canonicalize(parent).map_err(failed)?.join(name);
            // The kernel itself answers this for the root of a mount.
            if real.read_link().is_ok() {
                whole()
            } else {
                Ok(real)
            }
        }
        _ => whole(),
    }
}
