//! The user's side of a session: a device or a file that is open on another node, see [`crate::wire::session`].
//!
//! When the stream ends, what waits gets EIO and what comes later ENODEV (DV5): the device may be there again, but an
//! open file never becomes another one.

use crate::wire::session::{ASKED_MAX, Access, Answer, Ask, FromOwner, ToOwner};
use bytes::Bytes;
use consistency::NodeId;
use gfs::error::Errno;
use gfs::net::{ByteStream, frames};
use gfs::tree::{BROKEN, Wake};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{AcquireError, Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;

/// Reads of one open file that wait at a time; the others wait here. They may wait for long, so all else has room of
/// its own.
const READS_MAX: usize = 16;
/// All else but polls; as each may carry 1 MiB this bounds the memory.
const OTHERS_MAX: usize = 16;
/// Polls.
const POLLS_MAX: usize = 16;
const _: () = assert!(READS_MAX + OTHERS_MAX + POLLS_MAX <= ASKED_MAX);

/// What is open on another node, until it is dropped.
#[derive(Debug)]
pub(crate) struct Remote {
    owner: NodeId,
    access: Access,
    shared: Arc<Shared>,
    /// Bounded by the semaphores.
    questions: mpsc::UnboundedSender<ToOwner>,
    reads: Arc<Semaphore>,
    others: Arc<Semaphore>,
    polls: Arc<Semaphore>,
    receiver: AbortHandle,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// A question that nobody waits for has been answered.
    settled: Notify,
}

#[derive(Debug, Default)]
struct State {
    last_id: u64,
    /// Questions without an answer.
    asked: HashMap<u64, Question>,
    /// How many of them are reads that nobody waits for any more.
    reads_left: usize,
    /// What was read for those who had gone.
    unread: VecDeque<Bytes>,
    /// Who waits in poll(2).
    wakes: Vec<Wake>,
    ended: bool,
}

/// A question without an answer.
#[derive(Debug)]
struct Question {
    /// `None`: nobody waits for it any more.
    waits: Option<oneshot::Sender<Answer>>,
    /// It is a read of what comes only once.
    keeps: bool,
    /// Until the answer: the owner counts questions, too.
    _turn: Turn,
}

type Turn = Result<OwnedSemaphorePermit, AcquireError>;

impl Remote {
    /// Goes on with a stream whose device has been opened.
    pub(crate) fn new(owner: NodeId, access: Access, stream: ByteStream) -> Self {
        let (questions, to_send) = mpsc::unbounded_channel();
        let shared = Arc::<Shared>::default();
        tokio::spawn(send_all(stream.writer, to_send));
        let receiver = tokio::spawn(receive_all(stream.reader, owner, Arc::clone(&shared)));
        Self {
            owner,
            access,
            shared,
            questions,
            reads: Arc::new(Semaphore::new(READS_MAX)),
            others: Arc::new(Semaphore::new(OTHERS_MAX)),
            polls: Arc::new(Semaphore::new(POLLS_MAX)),
            receiver: receiver.abort_handle(),
        }
    }

    pub(crate) const fn access(&self) -> Access {
        self.access
    }

    /// Reads up to `size` bytes.
    pub(crate) async fn read(&self, offset: u64, size: u32, wait: bool) -> Result<Bytes, Errno> {
        if self.access != Access::Random
            && let Some(data) = self.read_left(size as usize).await?
        {
            return Ok(data);
        }
        let turn = Arc::clone(&self.reads).acquire_owned().await;
        match self.ask(Ask::Read { offset, size, wait }, turn).await? {
            Answer::Data(data) if data.len() <= size as usize => Ok(data),
            _ => Err(self.malformed()),
        }
    }

    /// Asks what is no read and no poll.
    pub(crate) async fn other(&self, what: Ask) -> Result<Answer, Errno> {
        let turn = Arc::clone(&self.others).acquire_owned().await;
        self.ask(what, turn).await
    }

    /// Tells what the device is ready for.
    pub(crate) async fn poll(&self, wake: Option<Wake>) -> Result<u32, Errno> {
        let turn = Arc::clone(&self.polls).acquire_owned().await;
        let waits = wake.is_some();
        if let Some(wake) = wake {
            let mut state = self.shared.lock();
            if state.ended {
                return Ok(BROKEN);
            }
            // One is for all.
            if state.wakes.is_empty() {
                state.wakes.push(wake);
            }
        }
        if !self.shared.lock().unread.is_empty() {
            return Ok(gfs::tree::READY);
        }
        match self.ask(Ask::Poll { wake: waits }, turn).await {
            Ok(Answer::Count(ready)) => u32::try_from(ready).map_err(|_| self.malformed()),
            Ok(_) => Err(self.malformed()),
            Err(_) => Ok(BROKEN),
        }
    }

    /// Returns what was read for who has gone, if there is such; waits until that is known.
    async fn read_left(&self, size: usize) -> Result<Option<Bytes>, Errno> {
        loop {
            let settled = self.shared.settled.notified();
            tokio::pin!(settled);
            // From here on it is told, be it before it is waited for.
            settled.as_mut().enable();
            {
                let mut state = self.shared.lock();
                if let Some(first) = state.unread.front_mut() {
                    // As the kernel has it for its log: a record is read whole.
                    if self.access == Access::Records && first.len() > size {
                        return Err(Errno::EINVAL);
                    }
                    let data = first.split_to(size.min(first.len()));
                    if first.is_empty() {
                        state.unread.pop_front();
                    }
                    return Ok(Some(data));
                }
                if state.reads_left == 0 || state.ended {
                    return Ok(None);
                }
            }
            settled.await;
        }
    }

    async fn ask(&self, what: Ask, turn: Turn) -> Result<Answer, Errno> {
        let (waits, answered) = oneshot::channel();
        let keeps = self.access != Access::Random && matches!(what, Ask::Read { .. });
        let mut asked = {
            let mut state = self.shared.lock();
            if state.ended {
                return Err(Errno(libc::ENODEV));
            }
            state.last_id += 1;
            let id = state.last_id;
            let question = Question {
                waits: Some(waits),
                keeps,
                _turn: turn,
            };
            state.asked.insert(id, question);
            Asked {
                remote: self,
                id,
                answered,
            }
        };
        let id = asked.id;
        // The end of the one who sends is the end of the stream, of which the receiver tells.
        drop(self.questions.send(ToOwner::Ask { id, what }));
        let answer = (&mut asked.answered).await;
        match answer {
            // Only what the kernel takes for an error number is one.
            Ok(Answer::Failed(errno @ 1..=4095)) => Err(Errno(errno)),
            Ok(Answer::Failed(_)) => Err(self.malformed()),
            Ok(answer) => Ok(answer),
            Err(_) => Err(Errno::EIO),
        }
    }

    pub(crate) fn malformed(&self) -> Errno {
        super::malformed(
            self.owner,
            "another answer than to what was asked of what is open",
        )
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.receiver.abort();
        // Nobody is left to poll this.
        self.shared.lock().wakes.clear();
    }
}

/// Somebody who waits for an answer.
struct Asked<'a> {
    remote: &'a Remote,
    id: u64,
    answered: oneshot::Receiver<Answer>,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let shared = &self.remote.shared;
        let mut state = shared.lock();
        if let Some(question) = state.asked.get_mut(&self.id) {
            question.waits = None;
            state.reads_left += usize::from(question.keeps);
            drop(state);
            drop(self.remote.questions.send(ToOwner::Cancel(self.id)));
        } else if self.remote.access != Access::Random
            && let Ok(Answer::Data(data)) = self.answered.try_recv()
        {
            // It came just as its reader went.
            state.keep(data);
        }
    }
}

impl State {
    fn keep(&mut self, data: Bytes) {
        if !data.is_empty() {
            self.unread.push_back(data);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    fn answer(&self, id: u64, answer: Answer) {
        let mut state = self.lock();
        let Some(question) = state.asked.remove(&id) else {
            return;
        };
        let left = match question.waits {
            Some(waits) => waits.send(answer).err(),
            None => {
                state.reads_left -= usize::from(question.keeps);
                Some(answer)
            }
        };
        if let Some(Answer::Data(data)) = left.filter(|_| question.keeps) {
            state.keep(data);
        }
        drop(state);
        self.settled.notify_waiters();
    }

    fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        state.asked.clear();
        drop(state);
        self.settled.notify_waiters();
    }

    /// Wakes who polls. It tells the kernel, which may take its time.
    async fn wake(&self) {
        let wakes = std::mem::take(&mut self.lock().wakes);
        if !wakes.is_empty() {
            let wake = move || wakes.into_iter().for_each(Wake::wake);
            drop(tokio::task::spawn_blocking(wake).await);
        }
    }
}

async fn receive_all(
    mut reader: Box<dyn AsyncRead + Send + Unpin>,
    owner: NodeId,
    shared: Arc<Shared>,
) {
    loop {
        match frames::receive(&mut reader).await {
            Ok(FromOwner::Answer { id, answer }) => shared.answer(id, answer),
            Ok(FromOwner::Ready) => shared.wake().await,
            Ok(FromOwner::Opened(_) | FromOwner::Refused(_)) => break,
            Err(error) => {
                tracing::debug!(%owner, %error, "the session with a device is over");
                break;
            }
        }
    }
    shared.end();
    shared.wake().await;
}

async fn send_all(
    mut writer: Box<dyn AsyncWrite + Send + Unpin>,
    mut messages: mpsc::UnboundedReceiver<ToOwner>,
) {
    while let Some(message) = messages.recv().await {
        if frames::send(&mut writer, &message).await.is_err() {
            return;
        }
    }
}
