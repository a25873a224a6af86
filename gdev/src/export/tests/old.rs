//! A node that speaks an older version is not asked.

use super::*;
use gfs::net::{ByteStream, NetError};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A network of which all but this node have a version of before, as soon as they have been called.
#[derive(Debug)]
struct Old {
    calls: AtomicU32,
}

#[async_trait::async_trait]
impl Transport for Old {
    fn local(&self) -> NodeId {
        NodeId(1)
    }

    fn nodes(&self) -> Vec<NodeId> {
        vec![NodeId(1), OWNER]
    }

    fn version_of(&self, _: NodeId) -> Option<u32> {
        (self.calls.load(Ordering::SeqCst) > 0).then_some(wire::EXPORTS_SINCE - 1)
    }

    async fn call(
        &self,
        _: NodeId,
        service: ServiceId,
        _: Bytes,
        _: Duration,
    ) -> Result<Bytes, NetError> {
        assert_eq!(service, ServiceId::Device, "what it knows");
        self.calls.fetch_add(1, Ordering::SeqCst);
        Ok(Bytes::new())
    }

    async fn open(&self, _: NodeId, _: ServiceId) -> Result<ByteStream, NetError> {
        panic!("it knows no open files")
    }
}

#[tokio::test]
async fn a_node_of_before_is_not_asked() {
    let old = Arc::new(Old {
        calls: AtomicU32::new(0),
    });
    let own = ExportAgent::new(NodeId(1), &RootConfig::default());
    let tree = ExportTree::new(Arc::clone(&old) as _, Arc::new(own));
    let top = ExportTree::root(OWNER);
    for _ in 0..3 {
        let found = tree.lookup(ROOT, top, &name("home")).await;
        assert_eq!(found.expect_err("refused"), Errno::ENOTSUP);
        let listed = tree.readdir(ROOT, top, 0, 9, true).await;
        assert_eq!(listed.expect_err("refused"), Errno::ENOTSUP);
    }
    assert!(tree.getattr(ROOT, top, None).await.is_ok());
    // Once, to have a connection that tells the version.
    assert_eq!(old.calls.load(Ordering::SeqCst), 1);
}
