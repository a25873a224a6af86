//! What a node says to itself: straight to its router, with the semantics of a call over the network.

use super::Shared;
use bytes::Bytes;
use gfs::net::{ByteStream, NetError, Service, ServiceId};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::AsyncWriteExt;
use tokio::runtime::Handle;

/// Bytes that a local stream holds before its writer waits.
const STREAM_BUFFER_BYTES: usize = 64 << 10;

/// Calls a service of this node.
pub(super) async fn call(
    shared: &Shared,
    service: ServiceId,
    body: Bytes,
) -> Result<Bytes, NetError> {
    let (local, service) = (shared.local, find(shared, service)?);
    let answer = RunToEnd {
        future: Some(Box::pin(async move { service.call(local, body).await })),
        runtime: shared.handlers.clone(),
    };
    answer.await.ok_or_else(|| NetError::Malformed {
        to: local,
        why: "the request itself was malformed".to_owned(),
    })
}

/// Opens a byte stream to a service of this node.
pub(super) async fn open(
    shared: &Shared,
    service: ServiceId,
    first: Bytes,
) -> Result<ByteStream, NetError> {
    let (local, service) = (shared.local, find(shared, service)?);
    let (here, there) = tokio::io::duplex(STREAM_BUFFER_BYTES);
    shared
        .handlers
        .spawn(async move { service.accept(local, byte_stream(there)).await });
    let mut here = byte_stream(here);
    let sent = here.writer.write_all(&first).await;
    sent.map_err(|error| NetError::Unreachable {
        to: local,
        why: error.to_string(),
    })?;
    Ok(here)
}

fn find(shared: &Shared, service: ServiceId) -> Result<Arc<dyn Service>, NetError> {
    let found = shared.router.service(service);
    found.ok_or_else(|| NetError::Unreachable {
        to: shared.local,
        why: format!("it has no service {service:?} (yet)"),
    })
}

fn byte_stream(end: tokio::io::DuplexStream) -> ByteStream {
    let (reader, writer) = tokio::io::split(end);
    ByteStream {
        reader: Box::new(reader),
        writer: Box::new(writer),
    }
}

type Answer = Pin<Box<dyn Future<Output = Option<Bytes>> + Send>>;

/// Runs a service's answer in the caller's task, and on the services' runtime if the caller gives up: a
/// change that was begun is finished, here as over the network.
struct RunToEnd {
    future: Option<Answer>,
    runtime: Handle,
}

impl Future for RunToEnd {
    type Output = Option<Bytes>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let future = self.future.as_mut().expect("not polled after its end");
        let answer = std::task::ready!(future.as_mut().poll(cx));
        self.future = None;
        Poll::Ready(answer)
    }
}

impl Drop for RunToEnd {
    fn drop(&mut self) {
        // A future that was being polled when the thread panicked must not be polled again.
        if let Some(future) = self.future.take().filter(|_| !std::thread::panicking()) {
            self.runtime.spawn(future);
        }
    }
}
