//! The disk behind a stand-in: its file in the tree, opened anew when it has ended.
//!
//! | state | event | then |
//! | --- | --- | --- |
//! | open | the file fails, and does not answer either when it is asked for its size | lost |
//! | open | the file fails, but answers | that is the disk's own error: the request fails |
//! | open | a flush fails by the disk's own error | the request fails; lost: what is kept is written again |
//! | lost | the file opens, has the same size and takes what is kept (SD1) | open; what failed is done again |
//! | lost | that does not succeed for [`PATIENCE`] since the request came | the request fails (EIO) |
//! | lost | another node has written the disk since (SD3) | all requests fail from then on |

use super::unflushed::{Opening, Unflushed};
use bytes::Bytes;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a request waits for a disk that has gone: a daemon that is restarted is back by then.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is tried.
pub(super) const TRY_EVERY: Duration = Duration::from_millis(200);

/// How long a request waits for a disk that has gone, and how often that is tried.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub(super) patience: Duration,
    pub(super) every: Duration,
}

/// The file of a disk, as long as it is open.
pub(super) trait Backing: Send + Sync {
    /// Reads all of it.
    fn read_at(&self, data: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of it.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Makes what was written durable.
    fn sync(&self) -> io::Result<()>;
    /// Says that this is not needed any more.
    fn trim(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Returns the size, if it still answers.
    fn bytes(&self) -> io::Result<u64>;
}

/// What the disk was to others while it was not open here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Since {
    /// No other node has written it.
    Untouched,
    /// Another node has.
    Written,
}

/// Where the file comes from.
pub(super) trait Source: Send + Sync {
    type File: Backing;

    /// Opens it.
    fn open(&self) -> io::Result<(Self::File, Since)>;

    /// Is told when it is lost and when it is back.
    fn tell(&self, lost: bool);
}

pub(super) struct Disk<S: Source> {
    source: S,
    bytes: u64,
    pace: Pace,
    state: Mutex<State<S::File>>,
}

struct State<F> {
    /// `None`: lost.
    file: Option<Arc<F>>,
    unflushed: Unflushed,
    /// When it was last tried to open it, in vain.
    tried: Option<Instant>,
    /// What is written is not what this disk was.
    taken: bool,
}

impl<S: Source> Disk<S> {
    pub(super) fn open(source: S, pace: Pace) -> io::Result<Self> {
        let (file, _) = source.open()?;
        let bytes = file.bytes()?;
        Ok(Self {
            source,
            bytes,
            pace,
            state: Mutex::new(State {
                file: Some(Arc::new(file)),
                unflushed: Unflushed::default(),
                tried: None,
                taken: false,
            }),
        })
    }

    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Fills `data`.
    pub(super) fn read(&self, data: &mut [u8], offset: u64) -> io::Result<()> {
        let until = Instant::now() + self.pace.patience;
        self.attempt(until, |file| file.read_at(data, offset))?;
        Ok(())
    }

    /// Writes, so that a flush that comes later flushes it or fails.
    pub(super) fn write(&self, data: &Bytes, offset: u64) -> io::Result<()> {
        let until = Instant::now() + self.pace.patience;
        loop {
            let (opening, ()) = self.attempt(until, |file| file.write_at(data, offset))?;
            let mut state = self.lock();
            if state.unflushed.keep(opening, offset, data) {
                break;
            }
        }
        if self.lock().unflushed.is_full() {
            self.flush()?;
        }
        Ok(())
    }

    /// Makes all durable whose writes have returned.
    pub(super) fn flush(&self) -> io::Result<()> {
        let until = Instant::now() + self.pace.patience;
        loop {
            let mark = {
                let mut state = self.opened(until)?;
                let file = state.file.clone().expect("just opened");
                let mark = state.unflushed.mark();
                drop(state);
                match file.sync() {
                    Ok(()) => mark,
                    Err(error) => {
                        let own = file.bytes().is_ok();
                        state = self.lock();
                        // The disk's node has taken its pages for clean: only writing them again can make this right (SD2).
                        self.lose(&mut state, mark.opening());
                        if own {
                            return Err(error);
                        }
                        continue;
                    }
                }
            };
            if self.lock().unflushed.flushed(mark) {
                return Ok(());
            }
        }
    }

    /// Says that this is not needed any more, which the disk may make something of.
    pub(super) fn trim(&self, offset: u64, len: u64) -> io::Result<()> {
        let until = Instant::now() + self.pace.patience;
        match self.attempt(until, |file| file.trim(offset, len)) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            trimmed => trimmed.map(drop),
        }
    }

    /// Has the file do something, and again if it has ended meanwhile; returns which opening of it did.
    fn attempt<T>(
        &self,
        until: Instant,
        mut what: impl FnMut(&S::File) -> io::Result<T>,
    ) -> io::Result<(Opening, T)> {
        loop {
            let (file, opening) = {
                let state = self.opened(until)?;
                let file = state.file.clone().expect("just opened");
                (file, state.unflushed.opening())
            };
            match what(&file) {
                Ok(done) => return Ok((opening, done)),
                Err(error) if file.bytes().is_ok() => return Err(error),
                Err(_) => self.lose(&mut self.lock(), opening),
            }
        }
    }

    fn lose(&self, state: &mut State<S::File>, opening: Opening) {
        if state.unflushed.opening() == opening && state.file.take().is_some() {
            self.source.tell(true);
        }
    }

    /// Opens the file if it is lost. Others wait meanwhile: whatever they do, it comes after what is written again.
    fn opened(&self, until: Instant) -> io::Result<MutexGuard<'_, State<S::File>>> {
        let mut state = self.lock();
        let mut tried = false;
        loop {
            if state.taken {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            if state.file.is_some() {
                return Ok(state);
            }
            let late = Instant::now() >= until;
            let every = self.pace.every;
            let just_tried = state.tried.is_some_and(|at| at.elapsed() < every);
            if late && (tried || just_tried) {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            if just_tried {
                sleep(every);
            }
            tried = true;
            if self.reopen(&mut state).is_err() {
                state.tried = Some(Instant::now());
            }
        }
    }

    fn reopen(&self, state: &mut State<S::File>) -> io::Result<()> {
        let (file, since) = self.source.open()?;
        if since == Since::Written {
            state.taken = true;
            return Ok(());
        }
        if file.bytes()? != self.bytes {
            return Err(io::Error::from_raw_os_error(libc::ENXIO));
        }
        for (offset, data) in state.unflushed.again() {
            file.write_at(data, offset)?;
        }
        state.unflushed.opened();
        state.file = Some(Arc::new(file));
        self.source.tell(false);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State<S::File>> {
        self.state.lock().expect("no holder panics")
    }
}

#[cfg(test)]
mod tests;
