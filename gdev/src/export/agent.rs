//! A node's agent for exported directories: answers requests, and serves open files.

use super::config::RootConfig;
use super::file::Open;
use super::hands::Hands;
use super::opening::open_file;
use super::ops;
use super::place::Exports;
use super::wire::{FileOpened, OpenFile, Reply, Request};
use crate::session::{self, Served};
use async_trait::async_trait;
use bytes::Bytes;
use consistency::NodeId;
use consistency::wire::{decode, encode};
use gfs::error::Errno;
use gfs::net::{ByteStream, Service, frames};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// How many files may be open for all nodes at a time: each has a descriptor.
pub const FILES_MAX: usize = 4096;
/// How long a node has to say what it opened a stream for.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);

/// Lets the other nodes see and use what this one exports.
#[derive(Debug)]
pub struct ExportAgent {
    node: NodeId,
    exports: Arc<Exports>,
    hands: Arc<Hands>,
    files: Arc<Semaphore>,
}

impl ExportAgent {
    /// Answers for `node` with what `config` exports.
    #[must_use]
    pub fn new(node: NodeId, config: &RootConfig) -> Self {
        Self {
            node,
            exports: Arc::new(Exports::new(config)),
            hands: Arc::default(),
            files: Arc::new(Semaphore::new(FILES_MAX)),
        }
    }

    /// Returns the node this agent answers for.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// Answers a request.
    pub async fn answer(&self, request: Request) -> Reply {
        let exports = Arc::clone(&self.exports);
        let answered = self.hands.run(move || ops::answer(&exports, request));
        answered
            .await
            .unwrap_or_else(|errno| Reply::Failed(errno.0))
    }

    async fn open(&self, asked: OpenFile) -> Result<(Open, FileOpened), Errno> {
        let exports = Arc::clone(&self.exports);
        let opened = self.hands.run(move || {
            let (file, stat) = open_file(&exports, &asked)?;
            Ok((file, stat, asked.who))
        });
        let (file, stat, who) = opened.await?;
        let open = Open::new(file, who, self.exports.read_only, Arc::clone(&self.hands));
        Ok((open, FileOpened::Opened(stat)))
    }
}

#[async_trait]
impl Service for ExportAgent {
    async fn call(&self, from: NodeId, body: Bytes) -> Option<Bytes> {
        let request = decode(&body)
            .inspect_err(|error| tracing::warn!(%from, %error, "refused a request for a file"))
            .ok()?;
        Some(encode(&self.answer(request).await).into())
    }

    async fn accept(&self, from: NodeId, mut stream: ByteStream) {
        let first = tokio::time::timeout(OPEN_DEADLINE, frames::receive(&mut stream.reader));
        let Ok(Ok(asked)) = first.await else {
            tracing::warn!(%from, "a stream that opens no file");
            return;
        };
        let room = Arc::clone(&self.files).try_acquire_owned();
        let opened = match &room {
            Ok(_) => self.open(asked).await,
            Err(_) => Err(Errno(libc::ENFILE)),
        };
        let (open, told) = match opened {
            Ok((open, told)) => (Some(open), told),
            Err(errno) => (None, FileOpened::Refused(errno.0)),
        };
        let sent = frames::send(&mut stream.writer, &told).await;
        if let (Some(open), Ok(())) = (open, sent) {
            let open: Arc<dyn Served> = Arc::new(open);
            session::serve(open, stream).await;
        }
    }
}
