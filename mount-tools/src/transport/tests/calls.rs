use super::*;
use futures::future::join_all;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::sync::{Notify, Semaphore};

#[tokio::test]
async fn a_call_is_answered_and_the_caller_is_known() {
    let cluster = Cluster::of(3);
    let who = service(|from, body| {
        Box::pin(async move { Some(format!("{from}:{}", body.len()).into()) })
    });
    for node in &cluster.nodes {
        node.router.register(ServiceId::Meta, Arc::clone(&who));
    }
    for (from, to) in [(1, 2), (2, 1), (1, 3), (3, 3), (1, 2)] {
        let reply = cluster.node(from).ask(to, ServiceId::Meta, "four").await;
        assert_eq!(reply.expect("answered"), format!("{from}:4"));
    }
    assert_eq!(cluster.node(2).transport.nodes(), [1, 2, 3].map(NodeId));
}

#[tokio::test]
async fn bodies_of_all_sizes_come_back() {
    let cluster = Cluster::of(2);
    let edge = frame::SHARED_BODY_BYTES_MAX;
    for size in [
        0,
        1,
        edge - 1,
        edge,
        edge + 1,
        1 << 20,
        4 << 20,
        MESSAGE_BYTES_MAX,
    ] {
        let body: Bytes = (0..=250).cycle().take(size).collect::<Vec<u8>>().into();
        for to in [2, 1] {
            let reply = cluster.node(1).call(to, body.clone()).await;
            assert!(reply.expect("answered") == body, "{size} bytes to {to}");
        }
    }
}

#[tokio::test]
async fn a_thousand_calls_at_once() {
    let cluster = Cluster::of(2);
    let call = |i: u32| {
        let (one, body) = (cluster.node(1), i.to_le_bytes().repeat(i as usize % 40));
        async move {
            let reply = one.call(2, body.clone()).await.expect("answered");
            assert_eq!(reply, body);
        }
    };
    join_all((0..1_000).map(call)).await;
}

#[tokio::test]
async fn a_prompt_service_may_wait_and_spawn() {
    let cluster = Cluster::of(2);
    let threads = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&threads);
    let name = || thread::current().name().unwrap_or_default().to_owned();
    let waits = service(move |_, body| {
        let seen = Arc::clone(&seen);
        Box::pin(async move {
            let first = name();
            let spawned = tokio::spawn(async move { name() }).await.expect("no panic");
            // The task may have ended before it was waited for; this wait is certain.
            tokio::task::yield_now().await;
            *seen.lock().expect("no panic") = vec![first, spawned, name()];
            Some(body)
        })
    });
    let two = &cluster.node(2).router;
    two.register(ServiceId::Callback, Arc::new(Prompt(echo())));
    two.register(ServiceId::Meta, Arc::new(Prompt(waits)));
    let one = cluster.node(1);
    for service in [ServiceId::Callback, ServiceId::Meta] {
        let reply = one.ask(2, service, "x").await;
        assert_eq!(reply.expect("answered"), "x");
    }
    let threads = threads.lock().expect("no panic").clone();
    let on_net: Vec<_> = threads.iter().map(|name| name == "glu-net").collect();
    assert_eq!(on_net, [true, false, false], "{threads:?}");
}

#[tokio::test]
async fn a_slow_call_does_not_hold_up_others() {
    let cluster = Cluster::of(2);
    let gate = Arc::new(Notify::new());
    let gate_there = Arc::clone(&gate);
    let slow = service(move |_, body| {
        let gate = Arc::clone(&gate_there);
        Box::pin(async move {
            gate.notified().await;
            Some(body)
        })
    });
    cluster.node(2).router.register(ServiceId::Meta, slow);
    let one = cluster.node(1);
    let slow_call = one.ask(2, ServiceId::Meta, "slow");
    let fast_call = async {
        for _ in 0..10 {
            one.call(2, "fast").await.expect("answered");
        }
        gate.notify_one();
    };
    let (slow, ()) = tokio::join!(slow_call, fast_call);
    assert_eq!(slow.expect("answered last"), "slow");
}

/// A service that waits for a permit, and notes when it comes to its end.
fn gated(gate: &Arc<Semaphore>, ended: &Arc<AtomicBool>) -> Arc<dyn Service> {
    let (gate, ended) = (Arc::clone(gate), Arc::clone(ended));
    service(move |_, body| {
        let (gate, ended) = (Arc::clone(&gate), Arc::clone(&ended));
        Box::pin(async move {
            gate.acquire().await.expect("open").forget();
            ended.store(true, Ordering::SeqCst);
            Some(body)
        })
    })
}

#[tokio::test]
async fn a_deadline_ends_the_call_but_not_the_work() {
    let cluster = Cluster::of(2);
    for to in [2, 1] {
        let (gate, ended) = (Arc::new(Semaphore::new(0)), Arc::default());
        let there = cluster.node(to);
        there.router.register(ServiceId::Meta, gated(&gate, &ended));
        // The connection is there, so that the call is begun well within its deadline.
        cluster.node(1).call(to, "").await.expect("answered");
        let (limit, started) = (Duration::from_millis(100), Instant::now());
        let transport = &cluster.node(1).transport;
        let reply = transport
            .call(NodeId(to), ServiceId::Meta, Bytes::new(), limit)
            .await;
        let waited = started.elapsed();
        assert!(matches!(reply, Err(NetError::Deadline { .. })), "{reply:?}");
        assert!(waited >= limit && waited < limit * 10, "waited {waited:?}");
        assert!(!ended.load(Ordering::SeqCst), "the gate is shut");
        gate.add_permits(1);
        until("the service to end", || ended.load(Ordering::SeqCst)).await;
        // The late answer hurts nobody.
        cluster.node(1).call(to, "").await.expect("answered");
    }
}

#[tokio::test]
async fn what_a_peer_can_have_begun_is_bounded() {
    const EXTRA: usize = 200;
    let cluster = Cluster::of(2);
    let gate = Arc::new(Semaphore::new(0));
    let begun = Arc::new(AtomicUsize::new(0));
    let (gate_there, begun_there) = (Arc::clone(&gate), Arc::clone(&begun));
    let counted = service(move |_, body| {
        let (gate, begun) = (Arc::clone(&gate_there), Arc::clone(&begun_there));
        Box::pin(async move {
            begun.fetch_add(1, Ordering::SeqCst);
            gate.acquire().await.expect("open").forget();
            Some(body)
        })
    });
    cluster.node(2).router.register(ServiceId::Meta, counted);
    let one = cluster.node(1);
    let calls = (0..serve::CALLS_MAX + EXTRA).map(|_| one.ask(2, ServiceId::Meta, "x"));
    let release = async {
        until("the bound", || {
            begun.load(Ordering::SeqCst) == serve::CALLS_MAX
        })
        .await;
        // One that ends lets one begin.
        gate.add_permits(1);
        until("one more", || {
            begun.load(Ordering::SeqCst) == serve::CALLS_MAX + 1
        })
        .await;
        gate.add_permits(serve::CALLS_MAX + EXTRA);
    };
    let (replies, ()) = tokio::join!(join_all(calls), release);
    assert!(replies.iter().all(Result::is_ok));
}

#[tokio::test]
async fn what_is_not_there_is_unreachable() {
    let cluster = Cluster::of(2);
    let one = cluster.node(1);
    for to in [2, 1] {
        check_unreachable(one.ask(to, ServiceId::Raft, "").await, "no service Raft");
        let stream = one.transport.open(NodeId(to), ServiceId::Raft).await;
        check_unreachable(stream, "no service Raft");
        // More than the peer takes of a stream that it does not want.
        let first = Bytes::from(vec![0; 4 << 20]);
        let opened = one.transport.open_with(NodeId(to), ServiceId::Raft, first);
        check_unreachable(opened.await, "no service Raft");
    }
    check_unreachable(one.call(9, "").await, "no such node");
    one.call(2, "").await.expect("the connection lives on");
}

#[tokio::test]
async fn a_service_that_panics_harms_its_own_call_only() {
    let cluster = Cluster::of(2);
    let broken = service(|_, _| Box::pin(async { panic!("made to fail") }));
    cluster.node(2).router.register(ServiceId::Meta, broken);
    let one = cluster.node(1);
    let reply = one.ask(2, ServiceId::Meta, "").await;
    assert!(
        matches!(reply, Err(NetError::Malformed { .. })),
        "{reply:?}"
    );
    one.call(2, "").await.expect("the connection lives on");
}

#[tokio::test]
async fn a_reply_over_the_limit_is_an_error() {
    let cluster = Cluster::of(2);
    let vast = service(|_, _| Box::pin(async { Some(vec![0; MESSAGE_BYTES_MAX + 1].into()) }));
    cluster.node(2).router.register(ServiceId::Meta, vast);
    let reply = cluster.node(1).ask(2, ServiceId::Meta, "").await;
    assert!(
        matches!(reply, Err(NetError::Malformed { .. })),
        "{reply:?}"
    );
}

#[tokio::test]
async fn a_dead_peer_fails_its_calls_and_comes_back() {
    let mut cluster = Cluster::of(2);
    let gate = Arc::new(Semaphore::new(0));
    let never = gated(&gate, &Arc::default());
    cluster.node(2).router.register(ServiceId::Meta, never);
    cluster.node(1).call(2, "").await.expect("answered");

    let two = cluster.nodes.pop().expect("there are two");
    let port = two.addr().port();
    let started = Instant::now();
    let one = cluster.node(1);
    let kill = async {
        // Silently, as a machine that loses power.
        two.transport.stop(None);
    };
    let (reply, ()) = tokio::join!(one.ask(2, ServiceId::Meta, ""), kill);
    check_unreachable(reply, "outcome unknown");
    let waited = started.elapsed();
    assert!(
        waited < tls::IDLE_MAX + Duration::from_secs(1),
        "{waited:?}"
    );

    // What would have died with its process, and holds the port.
    gate.add_permits(1);
    let identity = two.identity.clone();
    drop(two);
    let mut two = Err("not started".to_owned());
    until("the port", || {
        two = Node::try_start(identity.clone(), port).map_err(|error| error.to_string());
        two.is_ok()
    })
    .await;
    let two = two.expect("started");
    two.transport.set_peers([(one.id(), one.addr())]);
    one.call_until_answered(2).await;
}

#[tokio::test]
async fn a_peer_that_stops_says_so() {
    let cluster = Cluster::of(2);
    let never = service(|_, _| Box::pin(std::future::pending()));
    cluster.node(2).router.register(ServiceId::Meta, never);
    cluster.node(1).call(2, "").await.expect("answered");
    let started = Instant::now();
    let call = cluster.node(1).ask(2, ServiceId::Meta, "");
    let (reply, ()) = tokio::join!(call, cluster.node(2).transport.close());
    check_unreachable(reply, "the node stops");
    assert!(
        started.elapsed() < tls::IDLE_MAX,
        "without the idle timeout"
    );
    // Its own calls fail, too, and at once.
    check_unreachable(cluster.node(2).call(1, "").await, "");
}

#[tokio::test]
async fn a_dropped_transport_says_goodbye() {
    let mut cluster = Cluster::of(2);
    cluster.node(1).call(2, "").await.expect("answered");
    let started = Instant::now();
    drop(cluster.nodes.pop());
    loop {
        match cluster.node(1).call(2, "").await {
            Ok(_) => assert!(started.elapsed() < PATIENCE, "waited for the end"),
            Err(error) => {
                check_unreachable::<()>(Err(error), "the node stops");
                break;
            }
        }
    }
    assert!(
        started.elapsed() < tls::IDLE_MAX,
        "without the idle timeout"
    );
}

#[tokio::test]
async fn a_peer_that_is_heard_is_dialled_without_a_pause() {
    let mut cluster = Cluster::of(1);
    let one = cluster.nodes.pop().expect("there is one");
    let place = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let addr = place.local_addr().expect("bound");
    one.transport.set_peers([(NodeId(2), addr)]);
    let first = one.call(2, "").await;
    check_unreachable(first, "");
    check_unreachable(one.call(2, "").await, "");

    drop(place);
    let identity = cluster.ca.issue(NodeId(2)).expect("in range");
    let two = Node::start(identity, addr.port());
    two.transport.set_peers([(NodeId(1), one.addr())]);
    two.call(1, "here I am").await.expect("answered");
    one.call(2, "").await.expect("dialled at once");
}

#[tokio::test]
async fn a_peer_that_is_taken_out_is_not_called() {
    let cluster = Cluster::of(2);
    let one = cluster.node(1);
    one.call(2, "").await.expect("answered");
    one.transport.set_peers([]);
    check_unreachable(one.call(2, "").await, "no such node");
    assert_eq!(one.transport.nodes(), [NodeId(1)]);
    one.transport.set_peers(cluster.peers());
    one.call(2, "").await.expect("connected anew");
}
