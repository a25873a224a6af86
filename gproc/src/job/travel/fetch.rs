//! The pages of a copy that was made by post-copy: CRIU's `lazy-pages` puts them where they belong, in the order in which
//! the copy needs them, and the rest after that. It asks home for them, which asks the source.
//!
//! Were CRIU to die before that, the copy would go on with memory that is not its own: a [holder](super::super::holder) ends it first.

use super::super::{holder, sys};
use super::FrameSender;
use super::engine::{Engine, Helper, Images, Start};
use super::link::FromHome;
use super::pages::{Begun, begin, is_ready};
use super::wire::{FromGuest, IMAGE_BYTES_MAX, ToGuest};
use bytes::{Bytes, BytesMut};
use std::future::Future;
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

/// How long CRIU, and what holds it, may take to begin.
const BEGUN_WITHIN: Duration = Duration::from_secs(30);
/// How long pages that were asked for may take.
const COME_WITHIN: Duration = Duration::from_secs(60);
/// Pieces of pages that may wait for CRIU.
const PIECES_MAX: usize = 64;

/// CRIU as it gets the pages of a copy; ended when this is dropped, which the copy must not outlive. Dropping it blocks.
#[derive(Debug)]
pub(super) struct Fetch {
    criu: Helper,
    pidfd: AsyncFd<OwnedFd>,
    pages: mpsc::Sender<Bytes>,
    relay: JoinHandle<&'static str>,
    holder: Holder,
    images: Arc<Images>,
}

impl Fetch {
    /// Begins, before the copy is made. `glud`: the program that holds CRIU.
    pub(super) async fn begin(
        engine: Engine,
        glud: PathBuf,
        images: Arc<Images>,
        sender: FrameSender,
    ) -> io::Result<Self> {
        let its_images = Arc::clone(&images);
        let started = super::guest::blocking(move || start(&engine, &glud, &its_images));
        let (criu, ours, holder) = started.await?;
        let (pages, queue) = mpsc::channel(PIECES_MAX);
        ours.set_nonblocking(true)?;
        Ok(Self {
            pidfd: sys::watch(criu.pidfd().try_clone_to_owned()?)?,
            criu,
            pages,
            relay: tokio::spawn(relay(UnixStream::from_std(ours)?, queue, sender)),
            holder,
            images,
        })
    }

    /// Passes pages on to CRIU.
    pub(super) async fn put(&self, pages: Bytes) {
        // The relay's end shows in `finished`.
        self.pages.send(pages).await.ok();
    }

    /// Waits for the copy to be made, which may need pages already. `None`: home has gone meanwhile.
    pub(super) async fn while_it_is_made<T>(
        &self,
        made: impl Future<Output = T>,
        home: &mut FromHome<impl AsyncRead + Unpin>,
    ) -> Option<T> {
        let mut made = pin!(made);
        loop {
            tokio::select! {
                made = &mut made => return Some(made),
                frame = home.next() => match frame {
                    Ok(ToGuest::Pages(pages)) => self.put(pages).await,
                    Ok(ToGuest::Ping) => {}
                    _ => return None,
                },
            }
        }
    }

    /// Has a copy that waits at its gate not go on without its pages, whatever becomes of CRIU.
    pub(super) fn hold(&mut self, group: &Path) -> io::Result<()> {
        self.holder.is_told_of(group)
    }

    /// Waits until all pages are there, or never will be; asked no more after that. Cancel-safe.
    async fn finished(&mut self) -> Result<(), String> {
        loop {
            tokio::select! {
                ready = self.pidfd.readable() => {
                    let mut ready = ready.map_err(|error| error.to_string())?;
                    match self.criu.try_wait() {
                        Ok(None) => ready.clear_ready(),
                        Ok(Some(true)) => return Ok(()),
                        _ => return Err(self.images.why("lazy-pages").to_string()),
                    }
                }
                why = &mut self.relay => {
                    return Err(why.unwrap_or("nothing carries pages").to_owned());
                }
            }
        }
    }

    /// Returns why a copy has ended that is there no more, if it was ended for want of its pages: that is known before CRIU's end is.
    pub(super) fn has_ended_copy(&mut self) -> Option<String> {
        let ends = self.holder.has_answered_within(Duration::ZERO);
        matches!(ends, Ok(true)).then(|| self.images.why("lazy-pages").to_string())
    }

    /// The copy has all its pages, and CRIU has ended. Blocks.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.holder.helper.wait().map(drop)
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        self.relay.abort();
        // It has the copy end first.
        self.holder.let_go();
        self.criu.end();
    }
}

/// What ends a copy before CRIU can let go of it.
#[derive(Debug)]
struct Holder {
    helper: Helper,
    /// As long as this is open nothing is wrong with the daemon.
    tell: Option<PipeWriter>,
    answers: PipeReader,
}

impl Holder {
    fn start(glud: &Path, criu: &Helper) -> io::Result<Self> {
        let (words, tell) = io::pipe()?;
        let (answers, answer) = io::pipe()?;
        let mut command = Command::new(glud);
        command.arg(holder::ARGUMENT);
        command.arg(criu.pid().to_string());
        command.arg(answer.as_raw_fd().to_string());
        let how = Start {
            stdin: Some(words.as_fd()),
            kept: &[answer.as_fd()],
            outlives: true,
            ..Start::default()
        };
        let mut holder = Self {
            helper: Helper::start(&command, how)?,
            tell: Some(tell),
            answers,
        };
        drop(answer);
        holder.has_answered()?;
        Ok(holder)
    }

    /// Tells it in which group the copy is, which has not run yet.
    fn is_told_of(&mut self, group: &Path) -> io::Result<()> {
        let words = [group.as_os_str().as_bytes(), b"\n"].concat();
        let tell = self.tell.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        tell.write_all(&words)?;
        self.has_answered()
    }

    fn has_answered(&mut self) -> io::Result<()> {
        let answered = self.has_answered_within(BEGUN_WITHIN)?;
        let failed = || io::Error::other("nothing holds what gets its pages");
        answered.then_some(()).ok_or_else(failed)
    }

    /// Returns whether it answers, if it has not ended.
    fn has_answered_within(&mut self, within: Duration) -> io::Result<bool> {
        is_ready(&mut self.answers, within)
    }

    /// Has it end the copy, unless CRIU has ended well, and itself. Blocks.
    fn let_go(&mut self) {
        drop(self.tell.take());
        self.helper.wait().ok();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// Waits until all pages of a copy are there, or never will be; for ever if none are missing. Cancel-safe.
pub(super) async fn finished(fetch: &mut Option<Fetch>) -> Result<(), String> {
    match fetch {
        Some(fetch) => fetch.finished().await,
        None => std::future::pending().await,
    }
}

/// Starts CRIU; returns when a copy can be made that it gets pages for.
fn start(engine: &Engine, glud: &Path, images: &Images) -> io::Result<(Helper, StdStream, Holder)> {
    let Begun {
        mut criu,
        socket,
        mut ready,
    } = begin(engine.fetching(images))?;
    let begun =
        Holder::start(glud, &criu).and_then(|holder| match is_ready(&mut ready, BEGUN_WITHIN)? {
            true => Ok(holder),
            false => Err(images.why("lazy-pages")),
        });
    match begun {
        Ok(holder) => Ok((criu, socket, holder)),
        Err(error) => {
            criu.end();
            Err(error)
        }
    }
}

/// Carries questions and pages between CRIU and home; returns why it does no more.
async fn relay(
    mut socket: UnixStream,
    mut pages: mpsc::Receiver<Bytes>,
    sender: FrameSender,
) -> &'static str {
    let mut waits_until = None;
    loop {
        let mut asked = BytesMut::with_capacity(IMAGE_BYTES_MAX);
        tokio::select! {
            read = socket.read_buf(&mut asked) => match read {
                Ok(1..) => {
                    waits_until = Some(Instant::now() + COME_WITHIN);
                    if !sender.send(&FromGuest::WantPages(asked.freeze())).await {
                        return "home cannot be asked for pages";
                    }
                }
                // What has become of CRIU shows otherwise.
                _ => return std::future::pending().await,
            },
            Some(pages) = pages.recv() => {
                waits_until = None;
                match timeout(COME_WITHIN, socket.write_all(&pages)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return std::future::pending().await,
                    Err(_) => return "CRIU takes no pages",
                }
            }
            () = sleep_until(waits_until.unwrap_or_else(Instant::now)), if waits_until.is_some() => {
                return "pages that were asked for have not come";
            }
        }
    }
}
