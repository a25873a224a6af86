//! Against a real S3 server.

use super::*;
use crate::data::contract::{self, pattern, put};
use ::tests::{S3_CREDENTIALS, S3Server};
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;
use tokio::runtime::Runtime;

const BUCKET: &str = "glu-test";
const LOCAL: &str = "127.0.0.1:0";

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Runtime::new().expect("a runtime for requests"));

/// A server with one bucket, and room for caches.
struct World {
    dir: tempfile::TempDir,
    server: Option<S3Server>,
    addr: SocketAddr,
    caches: AtomicU32,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir_all(dir.path().join("s3").join(BUCKET)).expect("a bucket");
        let local: SocketAddr = LOCAL.parse().expect("an address");
        let mut this = Self {
            dir,
            server: None,
            addr: local,
            caches: AtomicU32::new(0),
        };
        this.start();
        this
    }

    fn start(&mut self) {
        let server = S3Server::start(self.addr, &self.dir.path().join("s3"));
        let server = server.expect("the server starts");
        self.addr = server.addr();
        self.server = Some(server);
    }

    fn stop(&mut self) {
        self.server = None;
    }

    fn config(&self) -> BucketConfig {
        let cache = self.caches.fetch_add(1, Ordering::Relaxed);
        let (key, secret) = S3_CREDENTIALS;
        BucketConfig {
            endpoint: Some(format!("http://{}", self.addr)),
            region: "us-east-1".to_owned(),
            bucket: BUCKET.to_owned(),
            prefix: "some/where".to_owned(),
            credentials: Some((key.to_owned(), secret.to_owned())),
            owner: "this cluster".to_owned(),
            cache_dir: self.dir.path().join(format!("cache{cache}")),
            cache_bytes: 1 << 30,
            capacity: 1 << 40,
        }
    }

    /// Returns another node's way to the bucket.
    fn bucket(&self) -> Bucket {
        open(self.config())
    }

    fn object(&self, id: u64) -> PathBuf {
        let path = path_of(ChunkId(id));
        let bucket = self.dir.path().join("s3").join(BUCKET);
        bucket.join("some/where").join(path.as_ref())
    }
}

fn open(config: BucketConfig) -> Bucket {
    Bucket::open(config, RUNTIME.handle().clone()).expect("it opens")
}

fn get(bucket: &Bucket, id: u64) -> Result<Bytes, ChunkFailure> {
    bucket.get(ChunkId(id), 0, CHUNK_BYTES_MAX)
}

#[test]
fn it_is_a_chunk_store() {
    contract::check(|check| check(&World::new().bucket()));
}

#[test]
fn it_is_a_chunk_store_without_a_cache() {
    contract::check(|check| {
        let world = World::new();
        let cache_bytes = 0;
        check(&open(BucketConfig {
            cache_bytes,
            ..world.config()
        }));
    });
}

#[test]
fn a_chunk_is_there_for_every_node() {
    let world = World::new();
    let (one, two) = (world.bucket(), world.bucket());
    let data = pattern(300_000, 3);
    put(&one, 7, &data).expect("put");
    assert_eq!(get(&two, 7).expect("there"), data);
    assert_eq!(
        two.get(ChunkId(7), 70_000, 5).expect("a part"),
        data[70_000..70_005]
    );
    one.delete(&[ChunkId(7)]).expect("deleted");
    assert_eq!(
        world.bucket().verify(ChunkId(7)),
        Err(ChunkFailure::Missing)
    );
}

#[test]
fn without_the_server_the_cache_serves_and_the_rest_waits_no_longer_than_it_may() {
    let mut world = World::new();
    let (one, two) = (world.bucket(), world.bucket());
    let data = pattern(100_000, 5);
    put(&one, 1, &data).expect("put");
    world.stop();
    assert_eq!(get(&one, 1).expect("from the cache"), data);
    let began = Instant::now();
    let refused = get(&two, 1).expect_err("no server");
    assert!(matches!(refused, ChunkFailure::Unavailable(_)), "{refused}");
    assert!(began.elapsed() < REQUEST_DEADLINE + CONNECT_DEADLINE);
    assert!(!refused.to_string().contains('\n'), "{refused}");
    let refused = put(&one, 2, &data).expect_err("no server");
    assert!(matches!(refused, ChunkFailure::Unavailable(_)), "{refused}");
    world.start();
    assert_eq!(get(&two, 1).expect("it is back"), data);
    put(&one, 2, &data).expect("it is back");
}

#[test]
fn damage_in_the_bucket_is_found_set_aside_and_healed() {
    let world = World::new();
    let (one, two) = (world.bucket(), world.bucket());
    let data = pattern(100_000, 5);
    put(&one, 1, &data).expect("put");
    let object = world.object(1);
    let mut bytes = std::fs::read(&object).expect("the object is a file");
    *bytes.last_mut().expect("not empty") ^= 1;
    std::fs::write(&object, &bytes).expect("written");
    assert_eq!(get(&two, 1), Err(ChunkFailure::Corrupt));
    assert_eq!(
        one.verify(ChunkId(1)),
        Err(ChunkFailure::Corrupt),
        "not of the cache"
    );
    put(&two, 1, &data).expect("put anew");
    assert_eq!(get(&world.bucket(), 1).expect("healed"), data);
    let aside = world.dir.path().join("s3").join(BUCKET);
    let aside = std::fs::read_dir(aside.join("some/where/quarantine"));
    assert_eq!(aside.expect("there").count(), 1);
}

#[test]
fn another_cluster_is_refused() {
    let world = World::new();
    put(&world.bucket(), 1, b"abc").expect("put");
    let stranger = open(BucketConfig {
        owner: "another cluster".to_owned(),
        ..world.config()
    });
    for refused in [get(&stranger, 1).map(drop), stranger.ids().map(drop)] {
        let refused = refused.expect_err("not its own").to_string();
        assert!(
            refused.contains("belongs to the cluster \"this cluster\""),
            "{refused}"
        );
        assert!(refused.contains("configure another prefix"), "{refused}");
    }
    assert_eq!(world.bucket().ids(), Ok(vec![ChunkId(1)]));
}

#[test]
fn wrong_credentials_are_said_to_be_wrong() {
    let world = World::new();
    let thief = open(BucketConfig {
        credentials: Some((S3_CREDENTIALS.0.to_owned(), "guessed".to_owned())),
        ..world.config()
    });
    let refused = put(&thief, 1, b"abc").expect_err("refused");
    let ChunkFailure::Disk(why) = &refused else {
        panic!("{refused}");
    };
    assert!(why.contains("check the credentials"), "{why}");
}

#[test]
fn readers_at_once_share_one_fetch_and_evicted_chunks_come_again() {
    let world = World::new();
    let writer = world.bucket();
    let data = pattern(200_000, 1);
    for id in 1..=3 {
        put(&writer, id, &data).expect("put");
    }
    let reader = open(BucketConfig {
        cache_bytes: 500_000,
        ..world.config()
    });
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(get(&reader, 1).expect("there"), data));
        }
    });
    // Two fit. The object of one that is at hand is not needed; that of the one that had to go is.
    get(&reader, 2).expect("there");
    get(&reader, 3).expect("there");
    for id in 1..=3 {
        std::fs::remove_file(world.object(id)).expect("removed");
    }
    assert_eq!(get(&reader, 1), Err(ChunkFailure::Missing));
    assert_eq!(get(&reader, 2).expect("cached"), data);
    put(&writer, 1, &data).expect("put anew");
    assert_eq!(get(&reader, 1).expect("fetched again"), data);
}
