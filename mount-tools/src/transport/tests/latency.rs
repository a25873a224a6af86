//! What a call costs: `cargo test --release -p mount-tools -- --ignored transport_latency --nocapture`.

use super::*;
use futures::stream::{FuturesUnordered, StreamExt as _};

const ROUNDS: usize = 5;

/// Median over rounds of (p50, p99) in microseconds, one call at a time.
async fn one_at_a_time(node: &Node) -> (f64, f64) {
    let mut times = Vec::new();
    for _ in 0..4_000 {
        let started = Instant::now();
        node.call(2, vec![0; 64]).await.expect("answered");
        times.push(started.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

/// Calls per second with `in_flight` at once.
async fn many(node: &Node, calls: usize, in_flight: usize, bytes: usize) -> f64 {
    let started = Instant::now();
    let body = Bytes::from(vec![0; bytes]);
    let mut flying = FuturesUnordered::new();
    for _ in 0..calls {
        if flying.len() == in_flight {
            flying.next().await;
        }
        let body = body.clone();
        flying.push(async move { node.call(2, body).await.expect("answered") });
    }
    while flying.next().await.is_some() {}
    calls as f64 / started.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn transport_latency() {
    let cluster = Cluster::of(2);
    let count = service(|_, body| {
        Box::pin(async move { Some(Bytes::copy_from_slice(&body.len().to_le_bytes())) })
    });
    let one = cluster.node(1);
    many(one, 20_000, 64, 64).await;
    let (mut p50, mut p99, mut rate, mut bulk, mut bulk4) =
        (vec![], vec![], vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        cluster.node(2).router.register(ServiceId::Chunk, echo());
        let (half, most) = one_at_a_time(one).await;
        p50.push(half);
        p99.push(most);
        rate.push(many(one, 40_000, 64, 64).await);
        cluster
            .node(2)
            .router
            .register(ServiceId::Chunk, Arc::clone(&count));
        bulk.push(many(one, 300, 1, 1 << 20).await);
        bulk4.push(many(one, 300, 4, 1 << 20).await);
    }
    println!(
        "64 B: p50 {:.1} us, p99 {:.1} us; 64 in flight: {:.0} calls/s; 1 MiB: {:.0} MB/s, 4 at once {:.0} MB/s",
        median(p50),
        median(p99),
        median(rate),
        median(bulk) * 1.048_576,
        median(bulk4) * 1.048_576,
    );
}
