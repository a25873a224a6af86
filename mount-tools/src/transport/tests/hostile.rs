//! What strangers and broken peers can do: lose their connection.

use super::*;
use consistency::wire::WIRE_VERSION;
use hello::Hello;
use quinn::{ConnectionError, RecvStream, SendStream};

/// An endpoint with a node's identity and no manners.
fn raw(identity: &NodeIdentity) -> (Endpoint, Tls) {
    let tls = Tls::new(identity).expect("a key and its certificate");
    let addr = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = (*tls.accept(addr)).clone();
    (Endpoint::server(server, addr).expect("a free port"), tls)
}

/// Dials a node and says a hello of one's own choice.
async fn dial(
    identity: &NodeIdentity,
    node: &Node,
    hello: Hello,
) -> Result<(Connection, SendStream, RecvStream), ConnectionError> {
    let (endpoint, tls) = raw(identity);
    let name = identity.root().node_name(node.id());
    let connecting = endpoint
        .connect_with(tls.dial(node.addr()), node.addr(), &name)
        .expect("a valid name");
    let connection = connecting.await?;
    let (mut writer, reader) = connection.open_bi().await?;
    hello.send(&mut writer).await.ok();
    Ok((connection, writer, reader))
}

/// Expects that a connection was closed by the peer for this reason.
fn check_closed(error: &ConnectionError, close: Close, expected: &str) {
    let words = link::words(error);
    match error {
        ConnectionError::ApplicationClosed(closed) if closed.error_code == close.into() => {}
        other => panic!("expected {close:?}: {other}"),
    }
    assert!(words.contains(expected), "no {expected:?} in {words:?}");
}

/// Expects that a stranger is refused by TLS and hears nothing else.
async fn check_refused(identity: &NodeIdentity, node: &Node) {
    let refused = match dial(identity, node, Hello::of(identity.node())).await {
        Err(error) => error,
        Ok((connection, _writer, mut reader)) => {
            // A dialler's own handshake is complete before its certificate is judged.
            let heard = reader.read(&mut [0; 1]).await;
            assert!(!matches!(heard, Ok(Some(_))), "heard something: {heard:?}");
            connection.closed().await
        }
    };
    match refused {
        ConnectionError::ConnectionClosed(close) => {
            let code = u64::from(close.error_code);
            assert!((0x100..0x200).contains(&code), "a TLS alert, not {close}");
        }
        other => panic!("expected a TLS alert: {other}"),
    }
}

#[tokio::test]
async fn strangers_get_a_tls_alert() {
    let cluster = Cluster::of(2);
    let one = cluster.node(1);
    // Of another cluster: cannot even ask for the node by name.
    let stranger = ClusterCa::for_test().issue(NodeId(2)).expect("in range");
    check_refused(&stranger, one).await;
    // Knows the name and trusts the root, but was not admitted by it.
    check_refused(&cluster.ca.forged(NodeId(2)), one).await;
    cluster.node(2).call(1, "").await.expect("answered");
}

#[tokio::test]
async fn strangers_are_not_talked_to() {
    let cluster = Cluster::of(1);
    let one = cluster.node(1);
    let other_cluster = ClusterCa::for_test().issue(NodeId(2)).expect("in range");
    for stranger in [other_cluster, cluster.ca.forged(NodeId(2))] {
        let (endpoint, _) = raw(&stranger);
        let addr = endpoint.local_addr().expect("bound");
        one.transport.set_peers([(NodeId(2), addr)]);
        let accept = async {
            let incoming = endpoint.accept().await.expect("a dial");
            incoming.await.expect_err("refused")
        };
        let (reply, _) = tokio::join!(one.call(2, "secret"), accept);
        check_unreachable(reply, "");
    }
}

#[tokio::test]
async fn a_node_without_a_certificate_is_refused() {
    let cluster = Cluster::of(1);
    let one = cluster.node(1);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cluster.ca.root().der().clone()).expect("a root");
    let mut tls = rustls::ClientConfig::builder_with_provider(crate::identity::crypto())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("supported")
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"glu".to_vec()];
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls).expect("TLS 1.3");
    let endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
    let config = quinn::ClientConfig::new(Arc::new(tls));
    let name = cluster.ca.root().node_name(NodeId(1));
    let connecting = endpoint
        .connect_with(config, one.addr(), &name)
        .expect("a valid name");
    let error = match connecting.await {
        Ok(connection) => connection.closed().await,
        Err(error) => error,
    };
    assert!(
        matches!(error, ConnectionError::ConnectionClosed(_)),
        "{error}"
    );
}

#[tokio::test]
async fn nobody_speaks_for_another_node() {
    let cluster = Cluster::of(3);
    let one = cluster.node(1);
    let two = &cluster.node(2).identity;
    let claim = dial(two, one, Hello::of(NodeId(3))).await;
    let (connection, _writer, _reader) = claim.expect("its certificate is good");
    check_closed(
        &connection.closed().await,
        Close::Identity,
        "not that of node 3",
    );

    // And a dialler does not take one node for another.
    one.transport
        .set_peers([(NodeId(3), cluster.node(2).addr())]);
    check_unreachable(one.call(3, "").await, "");
}

#[tokio::test]
async fn another_version_is_refused_in_words() {
    let cluster = Cluster::of(2);
    let version = WIRE_VERSION + 1;
    let node = NodeId(2);
    let newer = dial(
        &cluster.node(2).identity,
        cluster.node(1),
        Hello { version, node },
    )
    .await;
    let (connection, _writer, _reader) = newer.expect("its certificate is good");
    check_closed(
        &connection.closed().await,
        Close::Version,
        "node 2 wants to speak version",
    );

    // The same as the dialler hears it.
    let (endpoint, tls) = raw(&cluster.node(2).identity);
    let one = cluster.node(1);
    one.transport
        .set_peers([(node, endpoint.local_addr().expect("bound"))]);
    let answer = async {
        let (connection, mut writer, _reader) = accept(&endpoint, &tls).await;
        Hello { version, node }
            .send(&mut writer)
            .await
            .expect("open");
        connection.closed().await
    };
    let (reply, error) = tokio::join!(one.call(2, ""), answer);
    check_unreachable(reply, "answers in version");
    check_closed(&error, Close::Version, "answers in version");
}

async fn accept(endpoint: &Endpoint, tls: &Tls) -> (Connection, SendStream, RecvStream) {
    let incoming = endpoint.accept().await.expect("a dial");
    let config = tls.accept(incoming.remote_address());
    let connection = incoming.accept_with(config).expect("a good start");
    let connection = connection.await.expect("a good certificate");
    let (writer, mut reader) = connection.accept_bi().await.expect("a shared stream");
    Hello::receive(&mut reader).await.expect("a hello");
    (connection, writer, reader)
}

fn header(kind: u8, len: u32) -> Vec<u8> {
    let mut bytes = len.to_le_bytes().to_vec();
    bytes.push(kind);
    bytes.extend([0; 13]);
    bytes
}

/// Where a broken peer writes.
#[derive(Clone, Copy, Debug)]
enum On {
    Shared,
    Own,
    Stream,
}

#[tokio::test]
async fn a_broken_caller_loses_its_connection_and_nobody_else_notices() {
    let cluster = Cluster::of(2);
    let broken = cluster.ca.issue(NodeId(3)).expect("in range");
    let one = cluster.node(1);
    let too_large = u32::try_from(MESSAGE_BYTES_MAX).expect("5 MiB") + 1;
    let mut left_over = header(1, 2);
    left_over.extend(b"three");
    let cases = [
        (
            On::Shared,
            b"GET / HTTP/1.1\r\nHost: glu\r\n\r\n".to_vec(),
            "no frame of kind",
        ),
        (On::Shared, header(1, 65_537), "over the limit of 65536"),
        (On::Shared, header(1, u32::MAX), "over the limit"),
        (On::Shared, header(2, 0), "Reply where calls are expected"),
        (On::Shared, header(5, 0), "Open where calls are expected"),
        (On::Shared, header(1, 5), "the middle of a frame"),
        (On::Shared, Vec::new(), "the shared stream has ended"),
        (On::Own, header(9, 0), "no frame of kind 9"),
        (On::Own, header(1, too_large), "over the limit of 5242880"),
        (On::Own, header(1, 5), "the middle of a frame"),
        (On::Own, left_over, "left over after a body of 2 bytes"),
        (On::Own, header(3, 0), "Refused where calls are expected"),
        (On::Own, b"short".to_vec(), "the middle of a frame"),
        (On::Stream, header(1, 0), "a stream begins with Call"),
        (On::Stream, header(5, 1), "over the limit of 0"),
        (On::Stream, Vec::new(), "the middle of a frame"),
    ];
    for (on, bytes, expected) in cases {
        let greeted = dial(&broken, one, Hello::of(NodeId(3))).await;
        let (connection, mut shared, mut reader) = greeted.expect("a good certificate");
        Hello::receive(&mut reader).await.expect("a hello");
        let mut own = match on {
            On::Shared | On::Own => connection.open_uni().await.expect("open"),
            On::Stream => connection.open_bi().await.expect("open").0,
        };
        let target = match on {
            On::Shared => &mut shared,
            On::Own | On::Stream => &mut own,
        };
        // Fails if the node has already had enough.
        target.write_all(&bytes).await.ok();
        target.finish().ok();
        check_closed(&connection.closed().await, Close::Malformed, expected);
        cluster
            .node(2)
            .call(1, "meanwhile")
            .await
            .expect("answered");
    }
}

#[tokio::test]
async fn a_broken_callee_loses_its_connection() {
    let cluster = Cluster::of(3);
    let (endpoint, tls) = raw(&cluster.node(2).identity);
    let one = cluster.node(1);
    let mut peers = cluster.peers();
    peers[1].1 = endpoint.local_addr().expect("bound");
    let cases = [
        (
            On::Shared,
            b"GET / HTTP/1.1\r\nHost: glu\r\n\r\n".to_vec(),
            "no frame of kind",
        ),
        (On::Shared, header(1, 0), "Call where answers are expected"),
        (On::Shared, header(2, 65_537), "over the limit of 65536"),
        (On::Own, header(9, 0), "no frame of kind 9"),
        (On::Own, header(2, u32::MAX), "over the limit of 5242880"),
    ];
    for (on, bytes, expected) in cases {
        // Forgets that node 2 was broken before.
        one.transport.set_peers([]);
        one.transport.set_peers(peers.clone());
        let answer = async {
            let (connection, mut writer, _reader) = accept(&endpoint, &tls).await;
            Hello::of(NodeId(2)).send(&mut writer).await.expect("open");
            let mut own = connection.open_uni().await.expect("open");
            let target = match on {
                On::Shared => &mut writer,
                On::Own | On::Stream => &mut own,
            };
            target.write_all(&bytes).await.ok();
            connection.closed().await
        };
        let (reply, error) = tokio::join!(one.call(2, ""), answer);
        check_unreachable(reply, expected);
        check_closed(&error, Close::Malformed, expected);
        one.call(3, "meanwhile").await.expect("answered");
    }
}

#[tokio::test]
async fn a_body_that_its_service_cannot_read_costs_the_connection() {
    let cluster = Cluster::of(2);
    let picky = service(|_, _| Box::pin(async { None }));
    for to in [2, 1] {
        cluster
            .node(to)
            .router
            .register(ServiceId::Meta, Arc::clone(&picky));
    }
    let one = cluster.node(1);
    let reply = one.ask(2, ServiceId::Meta, "garbage").await;
    check_unreachable(reply, "malformed body for Meta");
    one.call_until_answered(2).await;
    let reply = one.ask(1, ServiceId::Meta, "garbage").await;
    assert!(
        matches!(reply, Err(NetError::Malformed { .. })),
        "{reply:?}"
    );
}

#[tokio::test]
async fn a_new_connection_of_a_peer_replaces_the_old() {
    let cluster = Cluster::of(2);
    let one = cluster.node(1);
    let identity = cluster.ca.issue(NodeId(3)).expect("in range");
    let connect = async || {
        let greeted = dial(&identity, one, Hello::of(NodeId(3))).await;
        let (connection, writer, mut reader) = greeted.expect("a good certificate");
        Hello::receive(&mut reader).await.expect("a hello");
        (connection, writer, reader)
    };
    let (first, _first_writer, _first_reader) = connect().await;
    let (second, _second_writer, _second_reader) = connect().await;
    check_closed(&first.closed().await, Close::Replaced, "newer");
    assert!(second.close_reason().is_none());
}
