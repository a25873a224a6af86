//! A node's device agent: lets the others see and use the devices here.

use crate::dev::Dev;
use crate::wire::{DevReply, DevRequest, IO_BYTES_MAX};
use async_trait::async_trait;
use bytes::Bytes;
use consistency::NodeId;
use consistency::wire::{decode, encode};
use gfs::error::Errno;
use gfs::net::Service;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// How many requests are served at a time; more wait for their turn, within the caller's deadline. Each may hold
/// [`IO_BYTES_MAX`], so this bounds the memory, and the threads that slow devices may block.
pub const REQUESTS_MAX: usize = 64;

/// Answers [`DevRequest`]s out of the node's `/dev`.
#[derive(Debug)]
pub struct DevAgent {
    node: NodeId,
    dev: Arc<Dev>,
    turns: Arc<Semaphore>,
}

impl DevAgent {
    /// Answers for `node` from the devices at `dev_path`.
    #[must_use]
    pub fn new(node: NodeId, dev_path: impl Into<PathBuf>) -> Self {
        Self {
            node,
            dev: Arc::new(Dev::new(dev_path.into())),
            turns: Arc::new(Semaphore::new(REQUESTS_MAX)),
        }
    }

    /// Returns the node this agent answers for.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// Answers a request.
    pub async fn answer(&self, request: DevRequest) -> DevReply {
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        let dev = Arc::clone(&self.dev);
        let work = move || {
            // Held by the work itself: what is stuck counts even after its caller has given up.
            let _turn = turn.expect("it is never closed");
            serve(&dev, request).unwrap_or_else(|errno| DevReply::Failed(errno.0))
        };
        tokio::task::spawn_blocking(work)
            .await
            .expect("using a device does not panic")
    }
}

#[async_trait]
impl Service for DevAgent {
    async fn call(&self, from: NodeId, body: Bytes) -> Option<Bytes> {
        let request = decode(&body)
            .inspect_err(|error| tracing::warn!(%from, %error, "refused a device request"))
            .ok()?;
        Some(encode(&self.answer(request).await).into())
    }
}

fn serve(dev: &Dev, request: DevRequest) -> Result<DevReply, Errno> {
    match request {
        DevRequest::Stat(path) => dev.stat(&path).map(DevReply::Node),
        DevRequest::List { dir, after } => {
            let (entries, more) = dev.list(&dir, after.as_ref())?;
            Ok(DevReply::Listing { entries, more })
        }
        DevRequest::Open {
            path,
            device,
            who,
            read,
            write,
        } => {
            let found = dev.device(&path, device, who, read, write)?;
            let opening = found.carried.open(&found.path(), who, read, write)?;
            Ok(DevReply::Opened(opening))
        }
        DevRequest::Read {
            path,
            device,
            who,
            size,
        } => {
            if size > IO_BYTES_MAX {
                return Err(Errno::EINVAL);
            }
            let found = dev.device(&path, device, who, true, false)?;
            Ok(DevReply::Data(
                found.carried.read(&found.path(), size as usize)?,
            ))
        }
        DevRequest::Write {
            path,
            device,
            who,
            data,
        } => {
            if data.len() > IO_BYTES_MAX as usize {
                return Err(Errno::EINVAL);
            }
            let found = dev.device(&path, device, who, false, true)?;
            let taken = found.carried.write(&found.path(), who, &data)?;
            let taken = u32::try_from(taken).expect("no more is taken than was given");
            Ok(DevReply::Written(taken))
        }
    }
}
