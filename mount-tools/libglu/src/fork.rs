//! A child that goes on on another node (OpenSSI's `rfork`).
//!
//! The caller forks twice. The first child becomes `glurun --forked`, which stands for the second one: it is waited for, takes
//! its signals, and passes its output on. The second is moved to the node, and waits for [`GO`] until it is there; if it cannot be
//! moved it is killed, and has done nothing.
#![allow(unsafe_code)]

use crate::{Cluster, State};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::{CommandExt, parent_id};
use std::process::Command;

/// The signal that tells a process that it is where it is to be.
const GO: i32 = libc::SIGCONT;

/// Exit status of a first child that could not become what it is to be; its parent has been told why.
const FAILED_STATUS: i32 = 125;

/// What names the socket by which processes of a command find each other: a child elsewhere is none of them.
const WIRE_ENV: &str = "PMI_FD";

/// Where a call of [`rfork`] has returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forked {
    /// In the caller. The number is that of the process that stands for the child: to be waited for, and to take its signals.
    Parent(i32),
    /// In the child.
    Child,
}

/// Forks, as fork(2) does; the child goes on on another node, or without one on that of the others where it runs best. On the
/// caller's own node it is a child as any other, as it is where there are no others.
///
/// It is a job of its own, in a session of its own, and may move on. `getpid` in it is another number than the caller has got.
/// It has a copy of all memory, shared memory included, and the open files, each with a place of its own; as input what the caller has
/// if that is a file, else nothing; outputs are the caller's. Of a pipe of the caller's it keeps the end it has, if that is not to be
/// closed on exec(2): so the caller marks (`FD_CLOEXEC`) what the child is not to have. It keeps no such socket either.
///
/// # Errors
/// ENXIO, EHOSTDOWN, ECONNREFUSED, ENOEXEC, ENOTCONN; EOPNOTSUPP for what cannot move (`cantmove` of docs/semantics.md), and if it would have
/// both ends of a pipe; EBUSY; EAGAIN for what was seen too late; those of fork(2) and of starting `glurun`.
///
/// # Safety
/// As of fork(2): in a process with several threads the child may only do what is safe in a signal handler.
pub unsafe fn rfork(node: Option<u16>) -> io::Result<Forked> {
    let Some(nodes) = places(node)? else {
        // SAFETY: as the caller has it.
        return Ok(match unsafe { fork() }? {
            0 => Forked::Child,
            pid => Forked::Parent(pid),
        });
    };
    if has_both_ends()? {
        return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    }
    let family = Family::new(nodes)?;
    let mask = block_all()?;
    // SAFETY: as the caller has it.
    match unsafe { fork() } {
        // SAFETY: this is the only thread of this process.
        Ok(0) => unsafe { family.stand_in(&mask) },
        Ok(pid) => {
            set_mask(&mask);
            family.wait_for(pid)
        }
        Err(error) => {
            set_mask(&mask);
            Err(error)
        }
    }
}

/// Returns the nodes that a child may go to; `None`: it is to stay.
fn places(node: Option<u16>) -> io::Result<Option<Vec<u16>>> {
    let cluster = Cluster::new();
    let own = cluster.own_node()?;
    if node == Some(own) {
        return Ok(None);
    }
    let nodes = cluster.nodes()?;
    let Some(wanted) = node else {
        let others = nodes.iter().filter(|node| node.state == State::Up);
        let others = others.map(|node| node.number).filter(|node| *node != own);
        let others: Vec<u16> = others.collect();
        return Ok((!others.is_empty()).then_some(others));
    };
    match nodes.iter().find(|node| node.number == wanted) {
        None => Err(io::Error::from_raw_os_error(libc::ENXIO)),
        Some(node) if node.state == State::Down => {
            Err(io::Error::from_raw_os_error(libc::EHOSTDOWN))
        }
        Some(_) => Ok(Some(vec![wanted])),
    }
}

/// What caller and children share.
struct Family {
    nodes: Vec<u16>,
    /// Of the process, as it is shown.
    words: Vec<OsString>,
    /// Where it is told whether the child has gone.
    report: (PipeReader, PipeWriter),
    output: (PipeReader, PipeWriter),
    /// `None`: they go where the output goes.
    errors: Option<(PipeReader, PipeWriter)>,
}

impl Family {
    fn new(nodes: Vec<u16>) -> io::Result<Self> {
        let errors = (!same_open_file(1, 2)).then(pipe).transpose()?;
        Ok(Self {
            nodes,
            words: own_words()?,
            report: pipe()?,
            output: pipe()?,
            errors,
        })
    }

    /// In the caller: waits until the child has gone, or cannot.
    fn wait_for(self, pid: i32) -> io::Result<Forked> {
        let (mut report, writer) = self.report;
        drop(writer);
        let mut errno = [0; size_of::<i32>()];
        let errno = match report.read_exact(&mut errno) {
            Ok(()) => i32::from_ne_bytes(errno),
            // It was killed, or its glurun knows nothing of this.
            Err(_) => libc::ENOTCONN,
        };
        if errno == 0 {
            return Ok(Forked::Parent(pid));
        }
        // SAFETY: the status is not wanted. It is this one's child, and about to end; if others have waited for it, so be it.
        while unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) } < 0
            && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
        {}
        Err(io::Error::from_raw_os_error(errno))
    }

    /// In the first child: makes the second, and stands for it; returns in that.
    ///
    /// # Safety
    /// The process has no other thread.
    unsafe fn stand_in(self, mask: &libc::sigset_t) -> io::Result<Forked> {
        // What has been moved is gone when it is killed, and its pid free: the daemon takes it.
        // SAFETY: it runs no code of ours.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
        let own = std::process::id();
        // SAFETY: as the caller has it.
        match unsafe { fork() } {
            Ok(0) => {
                let stays = match self.come_apart(own) {
                    Ok(stays) => stays,
                    Err(error) => self.fail(&error),
                };
                // What is the family's goes with it, and only then all.
                drop(self);
                close_all(stays);
                wait_for_go();
                // SAFETY: this is the only thread.
                unsafe { std::env::remove_var(WIRE_ENV) };
                set_mask(mask);
                Ok(Forked::Child)
            }
            Ok(pid) => {
                let error = self.become_glurun(pid);
                self.fail(&error)
            }
            Err(error) => self.fail(&error),
        }
    }

    fn fail(&self, error: &io::Error) -> ! {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        (&self.report.1).write_all(&errno.to_ne_bytes()).ok();
        // SAFETY: takes a number; handlers of the caller's are not to run here.
        unsafe { libc::_exit(FAILED_STATUS) }
    }

    /// In the first child. Returns only with an error, which ends the second.
    fn become_glurun(&self, pid: i32) -> io::Error {
        let mut glurun = Command::new("glurun");
        let kept = [&self.report.1 as &dyn AsRawFd, &self.output.0];
        let kept = kept.into_iter().map(AsRawFd::as_raw_fd);
        let errors = self.errors.as_ref().map(|(reader, _)| reader.as_raw_fd());
        if let Err(error) = keep_open(kept.chain(errors)) {
            return error;
        }
        let nodes: Vec<String> = self.nodes.iter().map(u16::to_string).collect();
        glurun.args(["--forked", &pid.to_string()]);
        glurun.args([&self.report.1.as_raw_fd(), &self.output.0.as_raw_fd()].map(RawFd::to_string));
        glurun.arg(nodes.join(","));
        if let Some(errors) = errors {
            glurun.args(["--errors", &errors.to_string()]);
        }
        glurun.arg("--").args(&self.words).exec()
    }

    /// In the second child, of that process: takes what it is to have; returns the descriptors that are not for it.
    fn come_apart(&self, parent: u32) -> io::Result<Vec<RawFd>> {
        // SAFETY: takes numbers. The daemon ends it by itself once it knows of it.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        if parent_id() != parent {
            return Err(io::Error::from_raw_os_error(libc::ENOTCONN));
        }
        // SAFETY: takes nothing.
        unsafe { libc::setsid() };
        if !is_file(0) {
            become_descriptor(File::open("/dev/null")?.as_raw_fd(), 0)?;
        }
        become_descriptor(self.output.1.as_raw_fd(), 1)?;
        let errors = self.errors.as_ref().unwrap_or(&self.output);
        become_descriptor(errors.1.as_raw_fd(), 2)?;
        what_stays()
    }
}

/// Returns program and arguments of this process.
fn own_words() -> io::Result<Vec<OsString>> {
    let text = fs::read("/proc/self/cmdline")?;
    let text = text.strip_suffix(&[0]).unwrap_or(&text);
    let words = text.split(|byte| *byte == 0).map(<[u8]>::to_vec);
    Ok(words.map(OsString::from_vec).collect())
}

/// What a pipe or socket of this process is to it.
struct Held {
    fd: RawFd,
    /// The name that the kernel has for it: `pipe:[1]`, `socket:[1]`.
    name: String,
    writes: bool,
    /// It is closed on exec(2).
    closes: bool,
}

/// Returns all pipes and sockets but those at descriptors 0 to 2.
fn held() -> io::Result<Vec<Held>> {
    let mut held = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let path = entry?.path();
        let fd = path
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok());
        let (Some(fd), Ok(name)) = (fd, fs::read_link(&path)) else {
            continue;
        };
        let name = name.to_string_lossy().into_owned();
        if fd > 2 && (name.starts_with("pipe:[") || name.starts_with("socket:[")) {
            // SAFETY: takes numbers.
            let flags = [libc::F_GETFL, libc::F_GETFD].map(|of| unsafe { libc::fcntl(fd, of) });
            held.push(Held {
                fd,
                name,
                writes: flags[0] & libc::O_ACCMODE != libc::O_RDONLY,
                closes: flags[1] & libc::FD_CLOEXEC != 0,
            });
        }
    }
    Ok(held)
}

/// Returns whether a child would have both ends of a pipe: it would be another one there than here.
fn has_both_ends() -> io::Result<bool> {
    let mut pipes = BTreeMap::<String, [bool; 2]>::new();
    for held in held()?.into_iter().filter(|held| !held.closes) {
        if held.name.starts_with("pipe:[") {
            pipes.entry(held.name).or_default()[usize::from(held.writes)] = true;
        }
    }
    Ok(pipes.values().any(|ends| *ends == [true; 2]))
}

/// Returns the pipes and sockets that the child is not to have.
fn what_stays() -> io::Result<Vec<RawFd>> {
    let wire = std::env::var(WIRE_ENV).ok();
    let wire: Option<RawFd> = wire.and_then(|wire| wire.parse().ok());
    let mut held = held()?;
    held.retain(|held| held.closes || Some(held.fd) == wire);
    Ok(held.into_iter().map(|held| held.fd).collect())
}

fn close_all(fds: Vec<RawFd>) {
    for fd in fds {
        // SAFETY: it is the caller's copy of a descriptor of its parent, whose other threads are not here; or closed already.
        unsafe { libc::close(fd) };
    }
}

/// Has descriptors stay open in the next program, and no others but 0 to 2.
fn keep_open(kept: impl Iterator<Item = RawFd>) -> io::Result<()> {
    let all = libc::CLOSE_RANGE_CLOEXEC.cast_signed();
    // SAFETY: takes numbers.
    checked(unsafe { libc::close_range(3, u32::MAX, all) })?;
    for fd in kept {
        // SAFETY: takes numbers.
        checked(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) })?;
    }
    Ok(())
}

/// Waits, with all signals blocked, for the one that tells that this process is where it is to be.
fn wait_for_go() {
    // SAFETY: all zero is a valid value of this plain structure.
    let mut go: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `go` outlives the call.
    unsafe { libc::sigemptyset(&raw mut go) };
    // SAFETY: as before.
    unsafe { libc::sigaddset(&raw mut go, GO) };
    // SAFETY: `go` is filled; what else there is to know of the signal is not wanted. While it is moved the call fails.
    while unsafe { libc::sigwaitinfo(&raw const go, std::ptr::null_mut()) } != GO {}
}

/// Blocks all signals of this thread; returns what was blocked.
fn block_all() -> io::Result<libc::sigset_t> {
    // SAFETY: all zero is a valid value of these plain structures.
    let (mut all, mut old): (libc::sigset_t, libc::sigset_t) = unsafe { std::mem::zeroed() };
    // SAFETY: `all` outlives the call.
    unsafe { libc::sigfillset(&raw mut all) };
    // SAFETY: both outlive the call.
    match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old) } {
        0 => Ok(old),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

fn set_mask(mask: &libc::sigset_t) {
    // SAFETY: `mask` outlives the call, which cannot fail with a mask that was set before.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, std::ptr::null_mut()) };
}

/// Makes a pipe, both ends of which have numbers above 2, even where the caller has closed some of those.
fn pipe() -> io::Result<(PipeReader, PipeWriter)> {
    let (reader, writer) = io::pipe()?;
    Ok((
        above_2(reader.into())?.into(),
        above_2(writer.into())?.into(),
    ))
}

fn above_2(fd: OwnedFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() > 2 {
        return Ok(fd);
    }
    // SAFETY: takes numbers.
    let above = checked(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(above) })
}

/// fork(2)
///
/// # Safety
/// As of that.
unsafe fn fork() -> io::Result<i32> {
    // SAFETY: as the caller has it.
    checked(unsafe { libc::fork() })
}

fn become_descriptor(fd: RawFd, number: RawFd) -> io::Result<()> {
    // SAFETY: takes numbers; what was there is the caller's copy of a descriptor, which nobody here uses.
    checked(unsafe { libc::dup2(fd, number) }).map(drop)
}

/// Returns whether a descriptor is a file that has a content.
fn is_file(fd: RawFd) -> bool {
    // SAFETY: it is not closed here, and the borrow ends here.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let file = fd.try_clone_to_owned().map(File::from);
    file.and_then(|file| file.metadata())
        .is_ok_and(|about| about.is_file())
}

/// Returns whether two descriptors are the same open file.
fn same_open_file(a: RawFd, b: RawFd) -> bool {
    const KCMP_FILE: i32 = 0;
    let own = std::process::id();
    // SAFETY: takes numbers and returns one; without the call in the kernel it fails, and the answer is no.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, own, own, KCMP_FILE, a, b) };
    order == 0
}

fn checked(result: i32) -> io::Result<i32> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        number => Ok(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_flag(fd: &impl AsRawFd, flag: i32) {
        // SAFETY: takes numbers.
        checked(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, flag) }).expect("open");
    }

    #[test]
    fn a_pipe_with_both_ends_is_seen() {
        let (reader, writer) = io::pipe().expect("a pipe");
        assert!(!has_both_ends().expect("looked"), "both are closed on exec");
        with_flag(&writer, 0);
        assert!(!has_both_ends().expect("looked"));
        with_flag(&reader, 0);
        assert!(has_both_ends().expect("looked"));
        with_flag(&writer, libc::FD_CLOEXEC);
        assert!(!has_both_ends().expect("looked"));
    }
}
