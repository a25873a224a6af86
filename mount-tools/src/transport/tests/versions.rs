//! Nodes of different versions.

use super::*;
use consistency::wire::{WIRE_VERSION, WIRE_VERSION_MIN};

const OLD: Versions = Versions {
    min: WIRE_VERSION_MIN,
    max: WIRE_VERSION_MIN,
};

/// Makes two nodes that know each other.
fn two(versions: [Versions; 2]) -> [Node; 2] {
    let ca = ClusterCa::for_test();
    let mut id = 0;
    let nodes = versions.map(|versions| {
        id += 1;
        let identity = ca.issue(NodeId(id)).expect("in range");
        Node::speaking(versions, identity, 0).expect("a free port")
    });
    let peers: Vec<_> = nodes.iter().map(|node| (node.id(), node.addr())).collect();
    for node in &nodes {
        node.transport.set_peers(peers.iter().copied());
    }
    nodes
}

#[tokio::test]
async fn the_newest_common_version_is_spoken() {
    for (other, spoken) in [(Versions::default(), WIRE_VERSION), (OLD, WIRE_VERSION_MIN)] {
        // Whoever dials first.
        for (from, to) in [(0, 1), (1, 0)] {
            let nodes = two([Versions::default(), other]);
            let id = nodes[to].id();
            nodes[from].call_until_answered(id.0).await;
            let version_of = |at: usize, of: usize| {
                let transport = &nodes[at].transport;
                transport.version_of(nodes[of].id())
            };
            assert_eq!(version_of(from, to), Some(spoken));
            assert_eq!(version_of(to, from), Some(spoken));
            assert_eq!(
                version_of(from, from),
                Some([WIRE_VERSION, other.max][from])
            );
        }
    }
}

#[tokio::test]
async fn a_node_that_comes_back_newer_is_spoken_to_in_its_version() {
    let nodes = two([Versions::default(), OLD]);
    nodes[0].call_until_answered(2).await;
    let (identity, port) = (nodes[1].identity.clone(), nodes[1].addr().port());
    let [new, old] = nodes;
    old.transport.close().await;
    drop(old);
    until("the old one to be missed", || {
        drop(new.transport.troubles());
        UdpSocket::bind(("127.0.0.1", port)).is_ok()
    })
    .await;
    let back = Node::start(identity, port);
    new.call_until_answered(2).await;
    assert_eq!(new.transport.version_of(back.id()), Some(WIRE_VERSION));
}

#[tokio::test]
async fn without_a_common_version_both_say_why() {
    let ancient = Versions {
        min: WIRE_VERSION_MIN - 1,
        max: WIRE_VERSION_MIN - 1,
    };
    for (from, to) in [(0, 1), (1, 0)] {
        let nodes = two([Versions::default(), ancient]);
        let id = nodes[to].id();
        check_unreachable(nodes[from].call(id.0, "hello").await, "");
        let started = Instant::now();
        loop {
            let troubles = nodes[from].transport.troubles();
            let said = |(node, why): &(NodeId, String)| {
                *node == id && why.contains("upgrade the older one")
            };
            if troubles.iter().any(said) {
                break;
            }
            assert!(started.elapsed() < PATIENCE, "{troubles:?}");
            tokio::time::sleep(LOOK_AGAIN).await;
            check_unreachable(nodes[from].call(id.0, "hello").await, "");
        }
        assert_eq!(nodes[from].transport.version_of(id), None);
    }
}
