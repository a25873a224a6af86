//! Passes input to a job through its pipe or terminal, and knows how much of it the job has read (rule J6).

use super::frame::FrameSender;
use super::peek::Host;
use super::protocol::{DATA_BYTES_MAX, FromJob, INPUT_WINDOW};
use super::stdio::Violation;
use super::sys;
use super::terminal::Typing;
use bytes::Bytes;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

/// How soon after a piece was passed to a job that is followed it is asked whether it was read, as nothing tells of reads
/// from a pipe that is not full; each pause is twice the one before.
const LOOK_AFTER_MIN: Duration = Duration::from_micros(500);

/// The longest such pause: so long may the owner's writer be held up when the job has read all that its pipe holds.
const LOOK_AFTER_MAX: Duration = Duration::from_millis(128);

/// What a job reads its input from.
#[derive(Debug)]
pub(super) enum Reader {
    Terminal(Typing),
    /// `followed`: the owner is told how much of it was read.
    Pipe {
        followed: bool,
    },
}

/// The running input of a job; dropping it ends it.
pub(super) struct Input {
    /// `None`: the owner's input has ended.
    queue: Option<mpsc::Sender<Bytes>>,
    /// Bytes the owner has sent and has no new credit for.
    waiting: Arc<AtomicUsize>,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<u64>,
}

impl Input {
    pub(super) fn start(pipe: pipe::Sender, reader: Reader, sender: &FrameSender) -> Self {
        let waiting = Arc::new(AtomicUsize::new(0));
        let (queue, pieces) = mpsc::channel(INPUT_WINDOW as usize);
        let (stop, stopped) = watch::channel(false);
        let pump = InputPump {
            pipe,
            pieces,
            waiting: Arc::clone(&waiting),
            sender: sender.clone(),
            stopped,
            reader,
            account: Host::default(),
        };
        Self {
            queue: Some(queue),
            waiting,
            stop,
            task: tokio::spawn(pump.run()),
        }
    }

    /// Takes a piece. Never waits.
    pub(super) fn push(&mut self, bytes: Bytes) -> Result<(), Violation> {
        if bytes.is_empty() || bytes.len() > DATA_BYTES_MAX {
            return Err(Violation("a piece of input of a size that is not allowed"));
        }
        let Some(queue) = &self.queue else {
            return Err(Violation("input after its end"));
        };
        let waiting = self.waiting.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len();
        if waiting > INPUT_WINDOW as usize {
            return Err(Violation("input without credit"));
        }
        // Where the job reads no more (the pump has told the owner) this drops what is still on its way.
        queue.try_send(bytes).ok();
        Ok(())
    }

    /// No more will come.
    pub(super) fn end(&mut self) {
        self.queue = None;
    }

    /// Ends the input of a job that is gone; returns how much of it the job has taken.
    pub(super) async fn stop(mut self) -> Option<u64> {
        self.stop.send_replace(true);
        (&mut self.task).await.ok()
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct InputPump {
    pipe: pipe::Sender,
    pieces: mpsc::Receiver<Bytes>,
    waiting: Arc<AtomicUsize>,
    sender: FrameSender,
    /// The job is gone.
    stopped: watch::Receiver<bool>,
    reader: Reader,
    account: Host,
}

impl InputPump {
    /// Carries until the job is gone; returns how much it has taken.
    async fn run(mut self) -> u64 {
        let mut stopped = self.stopped.clone();
        let ended = tokio::select! {
            biased;
            () = gone(&mut stopped) => false,
            closed = self.carry() => {
                if closed {
                    self.sender.send(&FromJob::InputClosed).await;
                }
                !closed
            }
        };
        if matches!(self.reader, Reader::Terminal(_)) {
            gone(&mut stopped).await;
            return self.account.written();
        }
        let reader;
        let pipe = if ended {
            // Another reader keeps what the job leaves; the job is to see the end of its input.
            reader = sys::reader_of(self.pipe.as_fd());
            drop(self.pipe);
            reader.as_ref().ok().map(AsFd::as_fd)
        } else {
            Some(self.pipe.as_fd())
        };
        gone(&mut stopped).await;
        let unread = pipe.and_then(|pipe| sys::bytes_in(pipe).ok());
        self.account.read(unread.unwrap_or(0))
    }

    /// Carries pieces until there are no more; `true`: the job reads no more. What a cancelled call has written is
    /// counted.
    async fn carry(&mut self) -> bool {
        while let Some(bytes) = self.next().await {
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                match self.write(rest).await {
                    Ok(len) => {
                        self.account.wrote(len as u64);
                        rest = &rest[len..];
                    }
                    Err(_) => return true,
                }
            }
            self.waiting.fetch_sub(bytes.len(), Ordering::Relaxed);
            let len = u32::try_from(bytes.len()).expect("pieces are checked to be small");
            self.sender.send(&FromJob::InputCredit(len)).await;
            self.tell().await;
        }
        false
    }

    /// Writes some. Cancel-safe.
    async fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Reader::Terminal(typing) = &self.reader else {
            return self.pipe.write(bytes).await;
        };
        loop {
            self.pipe.writable().await?;
            let _typing = typing.lock().expect("no holder panics");
            match self.pipe.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return written,
            }
        }
    }

    /// Returns the next piece, and tells meanwhile of what is read; `None`: there will be none.
    async fn next(&mut self) -> Option<Bytes> {
        let mut pause = LOOK_AFTER_MIN;
        while matches!(self.reader, Reader::Pipe { followed: true }) && self.account.is_behind() {
            match timeout(pause, self.pieces.recv()).await {
                Ok(piece) => return piece,
                Err(_) if self.tell().await => pause = LOOK_AFTER_MIN,
                Err(_) => pause = LOOK_AFTER_MAX.min(pause * 2),
            }
        }
        self.pieces.recv().await
    }

    /// Tells an owner that wants to know how much the job has read, if it is more than before; returns whether it is.
    async fn tell(&mut self) -> bool {
        if !matches!(self.reader, Reader::Pipe { followed: true }) {
            return false;
        }
        let unread = sys::bytes_in(self.pipe.as_fd()).ok();
        let read = unread.and_then(|unread| self.account.tell(unread));
        match read {
            Some(read) => self.sender.send(&FromJob::InputRead(read)).await,
            None => false,
        }
    }
}

/// Waits until the job is gone.
async fn gone(stopped: &mut watch::Receiver<bool>) {
    // The sender is dropped only together with the task that asks.
    stopped.wait_for(|stopped| *stopped).await.ok();
}
