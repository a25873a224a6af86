//! What home knows about the nodes, kept fresh without a job ever waiting for it.

use async_trait::async_trait;
use consistency::wire::request::NodeStatus;
use gfs::net::NetError;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// The view is asked for at most this often.
pub const REFRESH_EVERY: Duration = Duration::from_millis(200);

/// A view older than this is not used: the job waits for a fresh one.
pub const AGE_MAX: Duration = Duration::from_secs(3);

/// Asks the metadata leader for the nodes and their load.
#[async_trait]
pub trait Nodes: Send + Sync + 'static {
    /// Returns all nodes of the cluster.
    async fn nodes(&self) -> Result<Vec<NodeStatus>, NetError>;
}

/// A view of the nodes; clones share it.
#[derive(Clone)]
pub(super) struct View {
    source: Arc<dyn Nodes>,
    latest: Arc<std::sync::Mutex<Option<Seen>>>,
    /// Held by the one who asks; others who need the answer wait for it.
    asking: Arc<Mutex<()>>,
}

#[derive(Clone)]
struct Seen {
    nodes: Arc<[NodeStatus]>,
    at: Instant,
}

impl View {
    pub(super) fn new(source: Arc<dyn Nodes>) -> Self {
        Self {
            source,
            latest: Arc::default(),
            asking: Arc::default(),
        }
    }

    /// Returns the nodes as they were at most [`AGE_MAX`] ago. Where that is older than [`REFRESH_EVERY`] the next
    /// caller will see a fresh one.
    pub(super) async fn nodes(&self) -> Result<Arc<[NodeStatus]>, NetError> {
        match self.latest() {
            Some(seen) if seen.at.elapsed() < REFRESH_EVERY => Ok(seen.nodes),
            Some(seen) if seen.at.elapsed() < AGE_MAX => {
                let view = self.clone();
                tokio::spawn(async move {
                    // Somebody asks already: one question is enough.
                    if let Ok(_asking) = view.asking.try_lock() {
                        // A failure shows once the view is too old.
                        view.ask().await.ok();
                    }
                });
                Ok(seen.nodes)
            }
            _ => {
                let _asking = self.asking.lock().await;
                match self.latest() {
                    Some(seen) if seen.at.elapsed() < AGE_MAX => Ok(seen.nodes),
                    _ => self.ask().await,
                }
            }
        }
    }

    /// Returns the nodes as they are now.
    pub(super) async fn fresh(&self) -> Result<Arc<[NodeStatus]>, NetError> {
        let _asking = self.asking.lock().await;
        self.ask().await
    }

    async fn ask(&self) -> Result<Arc<[NodeStatus]>, NetError> {
        let nodes: Arc<[NodeStatus]> = self.source.nodes().await?.into();
        let seen = Seen {
            nodes: Arc::clone(&nodes),
            at: Instant::now(),
        };
        *self.latest.lock().expect("no holder panics") = Some(seen);
        Ok(nodes)
    }

    fn latest(&self) -> Option<Seen> {
        self.latest.lock().expect("no holder panics").clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(Default)]
    struct Counting(AtomicU32);

    #[async_trait]
    impl Nodes for Counting {
        async fn nodes(&self) -> Result<Vec<NodeStatus>, NetError> {
            self.0.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            Ok(Vec::new())
        }
    }

    #[tokio::test]
    async fn a_hundred_jobs_at_once_ask_once() {
        let source = Arc::new(Counting::default());
        let view = View::new(Arc::clone(&source) as Arc<dyn Nodes>);
        let started = Instant::now();
        let all = (0..100).map(|_| view.nodes());
        for answer in futures::future::join_all(all).await {
            answer.expect("answers");
        }
        // On a machine that stalls the view may go stale on the way; then it asks again, and may.
        let allowed = 1 + started.elapsed().as_millis() / REFRESH_EVERY.as_millis();
        assert!(u128::from(source.0.load(Ordering::Relaxed)) <= allowed);
    }
}
