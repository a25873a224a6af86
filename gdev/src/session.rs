//! The owner's side of a session: one device or file that is open for another node, see [`crate::wire::session`].
//!
//! Every question has a task of its own; its answer goes to one writer. The end of the stream, which is also that of the
//! other node, ends all waits, and the device is closed when what was begun is done (DV5).

use crate::wire::session::{ASKED_MAX, Answer, Ask, FromOwner, ToOwner};
use async_trait::async_trait;
use gfs::net::{ByteStream, frames};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

/// What is open for another node.
#[async_trait]
pub(crate) trait Served: Send + Sync {
    /// Answers a question; a wait ends with `cancelled`.
    async fn answer(self: Arc<Self>, what: Ask, cancelled: &Notify) -> Answer;

    /// Waits until what it is ready for may have changed since it was asked with a wake.
    async fn changed(&self) {
        std::future::pending::<()>().await;
    }
}

/// What the tasks of a session share.
struct Session {
    open: Arc<dyn Served>,
    /// Questions without an answer, and what ends their waits.
    asked: Mutex<HashMap<u64, Arc<Notify>>>,
    /// Somebody watches what the device is ready for.
    watched: AtomicBool,
    answers: mpsc::Sender<FromOwner>,
}

/// Answers for what is open until the stream ends.
pub(crate) async fn serve(open: Arc<dyn Served>, stream: ByteStream) {
    let ByteStream { mut reader, writer } = stream;
    let (answers, to_send) = mpsc::channel(ASKED_MAX);
    let sender = tokio::spawn(send_all(writer, to_send));
    let session = Arc::new(Session {
        open,
        asked: Mutex::default(),
        watched: AtomicBool::new(false),
        answers,
    });
    let mut tasks = JoinSet::new();
    let ended = tokio::select! {
        why = session.take_all(&mut *reader, &mut tasks) => why,
        () = session.answers.closed() => "the answers cannot be sent",
    };
    tracing::debug!(ended, "the session is over");
    // Nobody takes answers any more.
    sender.abort();
    session.lock().values().for_each(|wait| wait.notify_one());
    while tasks.join_next().await.is_some() {}
    let open = Arc::clone(&session.open);
    drop(session);
    // The last close of a disk writes what its node has cached of it: not in the runtime.
    tokio::task::spawn_blocking(move || drop(open));
}

impl Session {
    async fn take_all(
        self: &Arc<Self>,
        mut reader: &mut (dyn AsyncRead + Send + Unpin),
        tasks: &mut JoinSet<()>,
    ) -> &'static str {
        loop {
            let Ok(message) = frames::receive(&mut reader).await else {
                return "the stream has ended";
            };
            while tasks.try_join_next().is_some() {}
            match message {
                ToOwner::Open { .. } => return "it was opened twice",
                ToOwner::Cancel(id) => {
                    if let Some(wait) = self.lock().get(&id) {
                        wait.notify_one();
                    }
                }
                ToOwner::Ask { id, what } => {
                    if !what.is_sound() || !self.take(id, what, tasks) {
                        return "it asks too much";
                    }
                }
            }
        }
    }

    /// Begins with a question; returns whether it may be asked.
    fn take(self: &Arc<Self>, id: u64, what: Ask, tasks: &mut JoinSet<()>) -> bool {
        let wait = Arc::new(Notify::new());
        {
            let mut asked = self.lock();
            if asked.len() >= ASKED_MAX || asked.contains_key(&id) {
                return false;
            }
            asked.insert(id, Arc::clone(&wait));
        }
        let session = Arc::clone(self);
        tasks.spawn(async move {
            let watch = matches!(what, Ask::Poll { wake: true })
                && !session.watched.swap(true, Ordering::AcqRel);
            let what = match what {
                // Only who begins to watch forgets what was before.
                Ask::Poll { .. } => Ask::Poll { wake: watch },
                what => what,
            };
            let answer = Arc::clone(&session.open).answer(what, &wait).await;
            session.lock().remove(&id);
            session.send(FromOwner::Answer { id, answer }).await;
            if watch {
                session.watch().await;
            }
        });
        true
    }

    async fn watch(&self) {
        tokio::select! {
            () = self.open.changed() => {}
            () = self.answers.closed() => {}
        }
        self.watched.store(false, Ordering::Release);
        self.send(FromOwner::Ready).await;
    }

    async fn send(&self, message: FromOwner) {
        // Nobody takes it if the session is over.
        drop(self.answers.send(message).await);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Notify>>> {
        self.asked.lock().expect("no holder panics")
    }
}

async fn send_all(
    mut writer: Box<dyn AsyncWrite + Send + Unpin>,
    mut messages: mpsc::Receiver<FromOwner>,
) {
    while let Some(message) = messages.recv().await {
        if frames::send(&mut writer, &message).await.is_err() {
            return;
        }
    }
}
