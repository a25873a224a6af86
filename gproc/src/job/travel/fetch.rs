//! The pages of a copy that was made by post-copy: CRIU's `lazy-pages` puts them where they belong, in the order in which
//! the copy needs them, and the rest after that. It asks home for them, which asks the source.
//!
//! The kernel gives a process an empty page where one is missing as soon as nobody holds its userfaultfd any more: were CRIU
//! to die, the copy would go on with memory that is not its own. So a *holder* has these descriptors as well. It is a shell
//! that ends the copy before it lets go of them, unless it is told that all pages are there; it outlives the daemon by that
//! moment. A process that the copy makes meanwhile has a descriptor that CRIU alone holds.

use super::super::sys;
use super::FrameSender;
use super::engine::{Engine, Helper, Images, Start};
use super::link::FromHome;
use super::pages::{Begun, begin, is_ready};
use super::wire::{FromGuest, IMAGE_BYTES_MAX, ToGuest};
use bytes::{Bytes, BytesMut};
use std::fs;
use std::future::Future;
use std::io::{self, PipeWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
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

/// How long CRIU may take to begin.
const BEGUN_WITHIN: Duration = Duration::from_secs(30);
/// How long pages that were asked for may take.
const COME_WITHIN: Duration = Duration::from_secs(60);
/// Pieces of pages that may wait for CRIU.
const PIECES_MAX: usize = 64;

/// What the holder does: a line says that all pages are there, its end that nobody knows.
const HOLD: &str = "read -r word || echo 1 >\"$0\"/cgroup.kill";

/// CRIU as it gets the pages of a copy; ended when this is dropped, which the copy must not outlive. Dropping it blocks.
#[derive(Debug)]
pub(super) struct Fetch {
    criu: Helper,
    pidfd: AsyncFd<OwnedFd>,
    socket: OwnedFd,
    pages: mpsc::Sender<Bytes>,
    relay: JoinHandle<&'static str>,
    /// And what tells it that all pages are there.
    holder: Option<(Helper, PipeWriter)>,
    images: Arc<Images>,
}

impl Fetch {
    /// Begins, before the copy is made.
    pub(super) async fn begin(
        engine: Engine,
        images: Arc<Images>,
        sender: FrameSender,
    ) -> io::Result<Self> {
        let its_images = Arc::clone(&images);
        let started = super::guest::blocking(move || start(&engine, &its_images));
        let (criu, ours) = started.await?;
        let (pages, queue) = mpsc::channel(PIECES_MAX);
        ours.set_nonblocking(true)?;
        let socket = ours.try_clone()?.into();
        Ok(Self {
            pidfd: sys::watch(criu.pidfd().try_clone_to_owned()?)?,
            criu,
            socket,
            pages,
            relay: tokio::spawn(relay(UnixStream::from_std(ours)?, queue, sender)),
            holder: None,
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
        let pid = self.criu.pid();
        let mut held = vec![self.socket.try_clone()?];
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
            let entry = entry?;
            if fs::read_link(entry.path())? != Path::new("anon_inode:[userfaultfd]") {
                continue;
            }
            if let Some(number) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            {
                held.push(sys::descriptor_of(self.pidfd.get_ref().as_fd(), number)?);
            }
        }
        let mut holder = Command::new("/bin/sh");
        holder.arg("-c").arg(HOLD).arg(group);
        let (reader, word) = io::pipe()?;
        let kept: Vec<_> = held.iter().map(AsFd::as_fd).collect();
        let how = Start {
            stdin: Some(reader.as_fd()),
            kept: &kept,
            outlives: true,
            ..Start::default()
        };
        self.holder = Some((Helper::start(&holder, how)?, word));
        Ok(())
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

    /// The copy has all its pages. Blocks.
    pub(super) fn finish(mut self) -> io::Result<()> {
        let Some((mut holder, mut word)) = self.holder.take() else {
            return Ok(());
        };
        word.write_all(b"whole\n")?;
        holder.wait().map(drop)
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        self.relay.abort();
        if let Some((mut holder, word)) = self.holder.take() {
            // It has the copy end first.
            drop(word);
            holder.wait().ok();
        }
        self.criu.end();
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
fn start(engine: &Engine, images: &Images) -> io::Result<(Helper, StdStream)> {
    let Begun {
        mut criu,
        socket,
        mut ready,
    } = begin(engine.fetching(images))?;
    let begun = is_ready(&mut ready, BEGUN_WITHIN);
    if begun.as_ref().is_ok_and(|begun| *begun) {
        return Ok((criu, socket));
    }
    criu.end();
    begun.and_then(|_| Err(images.why("lazy-pages")))
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
