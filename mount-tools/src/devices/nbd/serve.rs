//! The requests of the kernel, done by a few threads at a time and answered as they are done.

use super::codec::{Cookie, Extent, Geometry, HEADER_BYTES, Request, reply};
use super::disk::{Disk, Source};
use bytes::Bytes;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// How many requests are done at a time. Each may be of 32 MiB, and each waits for a round trip.
const WORKERS: usize = 8;
/// What is passed over at a time.
const PIECE_BYTES: usize = 64 << 10;

/// A request with what it carries.
struct Job {
    cookie: Cookie,
    what: What,
}

enum What {
    Read(Extent),
    Write(u64, Bytes),
    Flush,
    Trim(Extent),
    Fail(i32),
}

/// Serves a disk until the kernel disconnects or closes the socket.
///
/// # Errors
/// If what comes is no request.
pub(super) fn serve<S: Source>(
    mut socket: UnixStream,
    disk: &Disk<S>,
    geometry: Geometry,
) -> io::Result<()> {
    let answers = Mutex::new(socket.try_clone()?);
    let (jobs, to_do) = mpsc::sync_channel(0);
    let to_do = Mutex::new(to_do);
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| work(&to_do, disk, &answers));
        }
        let taken = take_all(&mut socket, geometry, |job| jobs.send(job).is_ok());
        drop(jobs);
        taken
    })
}

fn take_all(
    socket: &mut UnixStream,
    geometry: Geometry,
    mut give: impl FnMut(Job) -> bool,
) -> io::Result<()> {
    let mut header = [0; HEADER_BYTES];
    loop {
        match socket.read_exact(&mut header) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        }
        let request = geometry.request(&header).map_err(io::Error::other)?;
        let (cookie, what) = match request {
            Request::Disconnect => return Ok(()),
            Request::Read(cookie, extent) => (cookie, What::Read(extent)),
            Request::Write(cookie, extent) => {
                let mut data = vec![0; extent.len as usize];
                socket.read_exact(&mut data)?;
                (cookie, What::Write(extent.offset, data.into()))
            }
            Request::Flush(cookie) => (cookie, What::Flush),
            Request::Trim(cookie, extent) => (cookie, What::Trim(extent)),
            Request::Refused {
                cookie,
                errno,
                skip,
            } => {
                pass_over(socket, skip as usize)?;
                (cookie, What::Fail(errno))
            }
        };
        if !give(Job { cookie, what }) {
            return Ok(());
        }
    }
}

fn pass_over(socket: &mut UnixStream, mut left: usize) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES.min(left)];
    while left > 0 {
        let now = left.min(piece.len());
        socket.read_exact(&mut piece[..now])?;
        left -= now;
    }
    Ok(())
}

fn work<S: Source>(to_do: &Mutex<Receiver<Job>>, disk: &Disk<S>, answers: &Mutex<UnixStream>) {
    loop {
        let job = to_do.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { cookie, what }) = job else {
            return;
        };
        let mut data = Vec::new();
        let done = match what {
            What::Read(Extent { offset, len }) => {
                data.resize(len as usize, 0);
                disk.read(&mut data, offset)
            }
            What::Write(offset, bytes) => disk.write(&bytes, offset),
            What::Flush => disk.flush(),
            What::Trim(Extent { offset, len }) => disk.trim(offset, len.into()),
            What::Fail(errno) => Err(io::Error::from_raw_os_error(errno)),
        };
        let errno = match done {
            Ok(()) => 0,
            Err(error) => {
                // Data follow only a success.
                data.clear();
                error.raw_os_error().unwrap_or(libc::EIO)
            }
        };
        let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = answers.write_all(&reply(cookie, errno));
        if sent.and_then(|()| answers.write_all(&data)).is_err() {
            // The kernel has gone; whoever reads requests finds out.
            return;
        }
    }
}

#[cfg(test)]
mod tests;
