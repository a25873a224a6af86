//! Nodes whose certificates were revoked.

use super::*;
use consistency::Timestamp;
use std::time::SystemTime;

fn seconds_from_now(seconds: i64) -> Timestamp {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = i64::try_from(now.expect("after 1970").as_secs()).expect("fits");
    Timestamp {
        secs: now + seconds,
        nanos: 0,
    }
}

fn upto(node: u16, seconds: i64) -> BTreeMap<NodeId, Timestamp> {
    BTreeMap::from([(NodeId(node), seconds_from_now(seconds))])
}

/// RV1, whoever has dialled: connections end, new ones are refused, and both sides say why.
#[tokio::test]
async fn a_revoked_node_is_shut_out() {
    for (from, to) in [(2, 1), (1, 2)] {
        let cluster = Cluster::of(3);
        let one = &cluster.node(1).transport;
        cluster.node(from).call_until_answered(to).await;
        assert!(one.revoke(&upto(2, 5)));
        until("the connection to end", || {
            let [one, two] = [1, 2].map(|id| &cluster.node(id).transport.shared);
            let up = |shared: &Shared| {
                let peers = shared.peers.read().expect("no holder panics");
                peers.values().any(|peer| peer.traffic().is_some())
            };
            one.sessions().is_empty() && !up(one) && two.sessions().is_empty() && !up(two)
        })
        .await;
        let refused = "certificates of node 2 were revoked at 20";
        check_unreachable(cluster.node(2).call(1, "").await, refused);
        let own = cluster.node(2).transport.shut_out();
        assert!(own.is_some_and(|why| why.contains(refused)));
        assert_eq!(one.shut_out(), None);
        // It is not dialled either: at first it is not known why there is no connection.
        cluster.node(1).call(2, "").await.expect_err("refused");
        until("the reason", || {
            let troubles = one.troubles();
            let of_2 = troubles.iter().find(|(node, _)| *node == NodeId(2));
            of_2.is_some_and(|(_, why)| why.contains("revoked") || why.contains("closed by"))
        })
        .await;
        // Others are not concerned, nor those who do not know.
        cluster.node(3).call_until_answered(1).await;
        cluster.node(2).call_until_answered(3).await;
        // What is known is not taken back.
        assert!(!one.revoke(&upto(2, -100)));
        assert!(!one.revoke(&BTreeMap::new()));
        check_unreachable(cluster.node(2).call(1, "").await, "revoked");
    }
}

#[tokio::test]
async fn a_later_certificate_of_the_same_node_is_good() {
    let cluster = Cluster::of(2);
    cluster.node(2).call_until_answered(1).await;
    assert!(cluster.node(1).transport.revoke(&upto(2, -2)));
    cluster.node(2).call(1, "").await.expect("not closed");
    cluster.node(1).call_until_answered(2).await;
}
