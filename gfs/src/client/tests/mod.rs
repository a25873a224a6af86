//! Clients on a running metadata leader, each below a model of the kernel that caches as the real one does.

#![allow(
    clippy::cast_possible_truncation,
    clippy::type_complexity,
    reason = "numbers of tests are small"
)]

mod cluster;
mod coherence;
mod copy;
mod crossing;
mod files;
mod growth;
mod linear;
mod locks;
mod makes;
mod memory;
mod mount;
mod sessions;

use std::future::Future;
use std::time::Duration;

/// How long a test waits for what must happen.
const DEADLINE: Duration = Duration::from_secs(20);

/// Waits for a future that must become ready.
async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {DEADLINE:?} until {what}"),
    }
}

/// Waits until a condition holds.
async fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    within(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}
