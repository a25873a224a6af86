//! S1: what one node has done, every node sees. Two nodes publish numbers in turn, each in some way a file system
//! can show one, while both look; nobody may see a number older than the last one published when it began to look.

use super::cluster::Cluster;
use super::mount::{Mount, ROOT, name};
use super::within;
use crate::error::Errno;
use crate::tree::Tree;
use bytes::Bytes;
use consistency::wire::meta::XattrMode;
use futures::future::BoxFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Numbers published by one test.
const ROUNDS: u64 = 150;

type Publish = fn(Mount, u64) -> BoxFuture<'static, Result<(), Errno>>;
type Observe = fn(Mount, u64) -> BoxFuture<'static, Result<u64, Errno>>;

async fn check(setup: Publish, publish: Publish, observe: Observe) {
    let cluster = Cluster::start().await;
    let nodes = [cluster.node(2).await, cluster.node(3).await];
    setup(nodes[0].clone(), 0).await.expect("the setup works");
    let published = Arc::new(AtomicU64::new(0));
    let over = Arc::new(AtomicBool::new(false));
    let looking: Vec<_> = (0..4)
        .map(|index| {
            let mount = nodes[index % 2].clone();
            let (published, over) = (Arc::clone(&published), Arc::clone(&over));
            tokio::spawn(async move {
                let mut looks = 0_u64;
                while !over.load(Ordering::SeqCst) {
                    let least = published.load(Ordering::SeqCst);
                    let seen = observe(mount.clone(), least).await.expect("looking works");
                    assert!(
                        seen >= least,
                        "node {index} saw {seen} after {least} was published"
                    );
                    looks += 1;
                    tokio::task::yield_now().await;
                }
                looks
            })
        })
        .collect();
    let publishing = async {
        let mut dice = 7_u64;
        for number in 1..=ROUNDS {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let node = (dice >> 60) as usize % 2;
            publish(nodes[node].clone(), number)
                .await
                .expect("publishing works");
            published.store(number, Ordering::SeqCst);
        }
    };
    within("all was published", publishing).await;
    over.store(true, Ordering::SeqCst);
    for looker in looking {
        let looks = within("a looker ends", looker)
            .await
            .expect("nothing stale is seen");
        assert!(looks > 0);
    }
    for node in &nodes {
        let seen = observe(node.clone(), ROUNDS).await.expect("looking works");
        assert!(seen >= ROUNDS);
    }
}

fn make_file(mount: Mount, _: u64) -> BoxFuture<'static, Result<(), Errno>> {
    Box::pin(async move { mount.create("f").await.map(drop) })
}

fn make_dir(mount: Mount, _: u64) -> BoxFuture<'static, Result<(), Errno>> {
    Box::pin(async move {
        mount.mkdir("d").await?;
        mount.create("d/0").await.map(drop)
    })
}

fn number(bytes: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(bytes);
    text.trim_end_matches('\0').parse().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn content() {
    check(
        make_file,
        |mount, n| Box::pin(async move { mount.write("f", 0, format!("{n:08}").as_bytes()).await }),
        |mount, _| Box::pin(async move { Ok(number(&mount.read("f").await?)) }),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn content_of_a_large_file() {
    check(
        |mount, _| {
            Box::pin(async move {
                mount.create("f").await?;
                mount.write("f", 100_000, &[1; 50_000]).await
            })
        },
        |mount, n| {
            Box::pin(async move {
                let at = 70_000 - n * 8;
                mount.write("f", 0, format!("{n:08}").as_bytes()).await?;
                mount.write("f", at, &[1; 8]).await
            })
        },
        |mount, _| Box::pin(async move { Ok(number(&mount.read("f").await?[..8])) }),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn size_by_appending() {
    check(
        make_file,
        |mount, _| Box::pin(async move { mount.append("f", b"x").await }),
        |mount, _| Box::pin(async move { Ok(mount.stat("f").await?.size) }),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn size_by_truncation() {
    check(
        make_file,
        |mount, n| Box::pin(async move { mount.truncate("f", n).await.map(drop) }),
        |mount, _| Box::pin(async move { Ok(mount.read("f").await?.len() as u64) }),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn attributes() {
    check(
        make_file,
        |mount, n| Box::pin(async move { mount.chown("f", n as u32).await.map(drop) }),
        |mount, _| Box::pin(async move { Ok(u64::from(mount.stat("f").await?.uid)) }),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn attributes_of_a_directory() {
    check(
        make_dir,
        |mount, n| Box::pin(async move { mount.chown("d", n as u32).await.map(drop) }),
        |mount, _| Box::pin(async move { Ok(u64::from(mount.stat("d").await?.uid)) }),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn extended_attributes() {
    check(
        make_file,
        |mount, n| {
            Box::pin(async move {
                let ino = mount.walk("f").await?;
                let value = Bytes::from(n.to_string());
                let how = XattrMode::Any;
                mount
                    .client
                    .setxattr(ROOT, ino, &name("user.n"), value, how, false)
                    .await
            })
        },
        |mount, _| {
            Box::pin(async move {
                let ino = mount.walk("f").await?;
                match mount.client.getxattr(ROOT, ino, &name("user.n")).await {
                    Ok(value) => Ok(number(&value)),
                    Err(Errno(libc::ENODATA)) => Ok(0),
                    Err(error) => Err(error),
                }
            })
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn new_names() {
    check(
        make_dir,
        |mount, n| Box::pin(async move { mount.create(&format!("d/{n}")).await.map(drop) }),
        |mount, least| {
            Box::pin(async move {
                // The next one may be looked up before it is there: its absence is cached.
                let _next = mount.exists(&format!("d/{}", least + 1)).await?;
                Ok(if mount.exists(&format!("d/{least}")).await? {
                    least
                } else {
                    0
                })
            })
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn removed_names() {
    check(
        |mount, _| {
            Box::pin(async move {
                mount.mkdir("d").await?;
                for n in 0..=ROUNDS {
                    mount.create(&format!("d/{n}")).await?;
                }
                mount.unlink("d/0").await
            })
        },
        |mount, n| Box::pin(async move { mount.unlink(&format!("d/{n}")).await }),
        |mount, least| {
            Box::pin(async move {
                if least < ROUNDS {
                    let _next = mount.exists(&format!("d/{}", least + 1)).await?;
                }
                Ok(if mount.exists(&format!("d/{least}")).await? {
                    0
                } else {
                    least
                })
            })
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn renamed_names() {
    check(
        make_dir,
        |mount, n| {
            Box::pin(async move {
                mount
                    .rename(&format!("d/{}", n - 1), &format!("d/{n}"))
                    .await
            })
        },
        |mount, least| {
            Box::pin(async move {
                let old = mount
                    .exists(&format!("d/{}", least.saturating_sub(1)))
                    .await?;
                Ok(if old && least > 0 { 0 } else { least })
            })
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn replaced_files() {
    // The way editors and compilers write: a new file over the old name.
    check(
        make_file,
        |mount, n| {
            Box::pin(async move {
                let temporary = format!("t{n}");
                mount.create(&temporary).await?;
                mount
                    .write(&temporary, 0, format!("{n:08}").as_bytes())
                    .await?;
                mount.rename(&temporary, "f").await
            })
        },
        |mount, _| Box::pin(async move { Ok(number(&mount.read("f").await?)) }),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn listings() {
    check(
        |mount, _| Box::pin(async move { mount.mkdir("d").await.map(drop) }),
        |mount, n| Box::pin(async move { mount.create(&format!("d/{n}")).await.map(drop) }),
        |mount, least| {
            Box::pin(async move { Ok(mount.list("d", least % 2 == 0).await?.len() as u64) })
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn link_counts() {
    check(
        make_file,
        |mount, n| Box::pin(async move { mount.link("f", &format!("l{n}")).await }),
        |mount, _| Box::pin(async move { Ok(u64::from(mount.stat("f").await?.nlink) - 1) }),
    )
    .await;
}
