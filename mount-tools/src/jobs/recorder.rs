//! The thread beside each daemon that keeps its jobs on record. It waits for the tree, and nobody waits for it.

use super::files::Files;
use super::record::Book;
use anyhow::{Context, Result, bail};
use consistency::NodeId;
use gproc::job::protocol::{FIRST_BYTES_MAX, Hello, JobsNews, frame, read_frame};
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

/// How long until it is tried again to follow the daemon.
const AGAIN: Duration = Duration::from_secs(1);
/// How often the file is looked at: who took this node for lost has written there, too.
const CHECK_EVERY: Duration = Duration::from_secs(5);
/// After a write nothing is written for so many times as long as that took.
const REST: u32 = 3;
const REST_MAX: Duration = Duration::from_secs(2);
/// Messages that wait; more wait in the daemon, which tells of many changes at once then.
const NEWS_MAX: usize = 4;

/// Starts to keep the jobs of this node on record, for as long as this process lives.
///
/// # Errors
/// There is no thread.
pub(crate) fn start(mount: &Path, socket: PathBuf) -> io::Result<()> {
    let files = Files::of(mount);
    let run = move || {
        loop {
            let Err(error) = follow(&files, &socket);
            tracing::debug!(error = format!("{error:#}"), "jobs are not on record");
            std::thread::sleep(AGAIN);
        }
    };
    let thread = std::thread::Builder::new().name("record of jobs".into());
    thread.spawn(run).map(drop)
}

/// Returns the time.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

fn follow(files: &Files, socket: &Path) -> Result<std::convert::Infallible> {
    let news = ask(socket).context("the daemon")?;
    let first = news.recv_timeout(CHECK_EVERY);
    let first = first.context("the daemon tells nothing")?;
    let home = first.home;
    files.prepare(home).context("the directory")?;
    let hides = gproc::hides_processes();
    let mut book = Book::new(files.read(home).context("the file")?, hides);
    book.take(first, now());
    let mut mark = files.mark(home)?;
    loop {
        book.expire(now());
        // Looked at, too, when nothing has changed here.
        if book.take_changed() || (book.record().is_some() && files.mark(home)? != mark) {
            let started = Instant::now();
            write(files, home, &book).context("the file")?;
            mark = files.mark(home)?;
            std::thread::sleep((started.elapsed() * REST).min(REST_MAX));
        }
        match news.recv_timeout(CHECK_EVERY) {
            Ok(more) => book.take(more, now()),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!("the daemon has ended"),
        }
        while let Ok(more) = news.try_recv() {
            book.take(more, now());
        }
    }
}

fn write(files: &Files, home: NodeId, book: &Book) -> io::Result<()> {
    match book.record() {
        Some(record) => files.write(home, record.as_ref()),
        None => Ok(()),
    }
}

/// What is heard; the connection ends with it.
struct News {
    stream: UnixStream,
    heard: Receiver<JobsNews>,
}

impl std::ops::Deref for News {
    type Target = Receiver<JobsNews>;

    fn deref(&self) -> &Self::Target {
        &self.heard
    }
}

impl Drop for News {
    fn drop(&mut self) {
        // Ends the thread that reads; an error means that it has ended.
        self.stream.shutdown(Shutdown::Both).ok();
    }
}

fn ask(socket: &Path) -> io::Result<News> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(&frame(&Hello::Jobs))?;
    let mut reader = stream.try_clone()?;
    let (tell, heard) = mpsc::sync_channel(NEWS_MAX);
    std::thread::Builder::new()
        .name("news of jobs".into())
        .spawn(move || {
            // The end of the news is told by that of the channel.
            while let Ok(Some(news)) = read_frame(&mut reader, FIRST_BYTES_MAX) {
                if tell.send(news).is_err() {
                    return;
                }
            }
        })?;
    Ok(News { stream, heard })
}
