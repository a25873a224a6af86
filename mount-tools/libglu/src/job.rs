//! The calling process as one of those that `glurun -n` has started, and commands of one's own (GLUnix's `GetMyNpid`,
//! `GetMyVNN`, `Barrier`, `Spawn` and `CoSpawn`).
//!
//! Errors: ESRCH where the process is none of such a command; ENOTCONN where its processes cannot reach each other, because
//! they do not all run at a time (`--fanout`) or a node is of an older revision.
#![allow(unsafe_code)]

use crate::Cluster;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::Mutex;

/// What glurun answers when all processes are in the barrier.
const PASSED: &[u8] = b"cmd=barrier_out\n";

/// One question at a time is on the wire.
static WIRE: Mutex<()> = Mutex::new(());

/// Returns the number of the command: its glurun's pid.
///
/// # Errors
/// ESRCH
pub fn npid() -> io::Result<i32> {
    number("GLU_NPID")
}

/// Returns the number of this process in the command, from 0.
///
/// # Errors
/// ESRCH
pub fn vnn() -> io::Result<i32> {
    number("GLU_VNN")
}

/// Returns how many processes the command has.
///
/// # Errors
/// ESRCH
pub fn count() -> io::Result<i32> {
    vnn()?;
    Ok(number("GLU_COUNT").unwrap_or(1))
}

/// Waits until all processes of the command are in the barrier. If one ends before, all are ended. Not for programs that use
/// an MPI library: that has the wire for itself.
///
/// # Errors
/// ESRCH, ENOTCONN
pub fn barrier() -> io::Result<()> {
    if count()? == 1 {
        return Ok(());
    }
    let lost = || io::Error::from_raw_os_error(libc::ENOTCONN);
    let fd = number("PMI_FD").map_err(|_| lost())?;
    let _one = WIRE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    // SAFETY: glurun has given this descriptor to the process for this; it is left open.
    let mut wire = ManuallyDrop::new(unsafe { UnixStream::from_raw_fd(fd) });
    let mut answer = [0; PASSED.len()];
    let asked = wire.write_all(b"cmd=barrier_in\n");
    asked
        .and_then(|()| wire.read_exact(&mut answer))
        .map_err(|_| lost())?;
    match answer == PASSED {
        true => Ok(()),
        false => Err(lost()),
    }
}

/// Starts a command of `count` processes on nodes of the cluster, or on some of them (`1-3,7`). The child is its glurun: its pid
/// is the NPID, a signal to it one to all of them, its end theirs.
///
/// # Errors
/// Those of starting `glurun`.
pub fn spawn<S: AsRef<OsStr>>(
    count: u32,
    nodes: Option<&OsStr>,
    argv: impl IntoIterator<Item = S>,
) -> io::Result<Child> {
    let mut glurun = Command::new("glurun");
    glurun.args(["-n", &count.to_string()]);
    if let Some(nodes) = nodes {
        glurun.arg("-w").arg(nodes);
    }
    glurun.arg("--").args(argv).spawn()
}

/// Starts a command beside another one: a process on the node of each process of that. As [`spawn`] otherwise; the child
/// exits with 125 where no job of this number runs.
///
/// # Errors
/// EINVAL, and those of starting `glurun`.
pub fn cospawn<S: AsRef<OsStr>>(npid: i32, argv: impl IntoIterator<Item = S>) -> io::Result<Child> {
    if npid <= 0 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut glurun = Command::new("glurun");
    glurun.args(["--beside", &npid.to_string(), "--"]);
    glurun.args(argv).spawn()
}

/// Goes on as another program, on another node or, without one, where it runs best (OpenSSI's `rexecve`): this process
/// becomes its glurun, with the same pid, descriptors and parent, and ends as it ends. Returns only if that cannot be.
///
/// # Errors
/// EINVAL without a program, ENXIO where there is no such node, ENOTCONN, and those of starting `glurun`.
pub fn rexec<S: AsRef<OsStr>>(node: Option<u16>, argv: impl IntoIterator<Item = S>) -> io::Error {
    let mut argv = argv.into_iter().peekable();
    if argv.peek().is_none() {
        return io::Error::from_raw_os_error(libc::EINVAL);
    }
    let mut glurun = Command::new("glurun");
    if let Some(node) = node {
        // While the caller can still be told.
        match Cluster::new().nodes() {
            Ok(nodes) if nodes.iter().any(|there| there.number == node) => {}
            Ok(_) => return io::Error::from_raw_os_error(libc::ENXIO),
            Err(error) => return error,
        }
        glurun.args(["-w", &node.to_string()]);
    }
    glurun.arg("--").args(argv).exec()
}

fn number(name: &str) -> io::Result<i32> {
    let number = std::env::var(name).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}
