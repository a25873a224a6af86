//! File data in a bucket (decision 9), on real mounts of four nodes, on the last of which a real S3 server runs.
//!
//! Needs root and /dev/fuse.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tests::{Cluster, DEADLINE, Options, Running, S3_CREDENTIALS, wait_until, with_deadline};

/// Where the server runs.
const SERVER_NODE: u32 = 4;
const ENDPOINT: &str = "http://10.77.0.4:9000";
/// Less than the files, so that it does not hold them all.
const CACHE_MIB: u64 = 4;
/// How long a request waits for the store, beside the last try that is under way then.
const PATIENCE_S: u64 = 5;
const SIZES: [usize; 4] = [70_000, 1_000_000, 5_000_000, 9_000_000];

struct World {
    cluster: Cluster,
    server: Option<Running>,
}

impl World {
    /// Makes a cluster with a file on its disks, whose nodes then are restarted with a bucket that nobody serves yet.
    fn new() -> Self {
        let cluster = Cluster::with(&Options {
            nodes: Some(SERVER_NODE),
            ..Options::default()
        });
        write(&cluster.path(1).join("on-disks"), 9, 1_000_000);
        fs::create_dir_all(cluster.state().join("s3/glu")).expect("make the bucket");
        let credentials = cluster.state().join("s3.toml");
        let (key, secret) = S3_CREDENTIALS;
        let text = format!("access_key_id = \"{key}\"\nsecret_access_key = \"{secret}\"\n");
        fs::write(&credentials, text).expect("write the credentials");
        cluster
            .sh(1, &format!("chmod 600 {}", credentials.display()))
            .ok();
        for node in 1..=SERVER_NODE {
            let path = cluster.state().join(format!("node{node}/glud.toml"));
            let text = fs::read_to_string(&path).expect("read the configuration");
            let patient = format!("request_timeout_s = {PATIENCE_S}\n");
            let mut text = text.replace("request_timeout_s = 30\n", &patient);
            assert!(text.contains(&patient), "the line is there");
            text += &format!(
                "\n[store.s3]\nbucket = \"glu\"\nendpoint = \"{ENDPOINT}\"\ncredentials = \"{}\"\ncache_mib = {CACHE_MIB}\n",
                credentials.display()
            );
            fs::write(&path, text).expect("write the configuration");
            cluster.kill(node);
            cluster.start(node);
        }
        let mut this = Self {
            cluster,
            server: None,
        };
        this.start_server();
        this
    }

    fn start_server(&mut self) {
        let (program, state) = (env!("CARGO_BIN_EXE_s3-server"), self.cluster.state());
        let state = state.display();
        let script = format!("echo $$ >{state}/s3.pid; exec {program} 0.0.0.0:9000 {state}/s3");
        self.server = Some(self.cluster.spawn(SERVER_NODE, &script));
    }

    fn stop_server(&mut self) {
        let pid = self.cluster.state().join("s3.pid");
        let script = format!("kill $(cat {})", pid.display());
        self.cluster.sh(SERVER_NODE, &script).ok();
        if let Some(server) = self.server.take() {
            server.wait(DEADLINE);
        }
    }

    fn path(&self, node: u32, name: &str) -> PathBuf {
        self.cluster.path(node).join(name)
    }

    /// Returns the directory of the chunks in the bucket.
    fn chunks(&self) -> PathBuf {
        self.cluster.state().join("s3/glu/glu/chunks")
    }
}

fn pattern(file: usize, size: usize) -> Vec<u8> {
    let byte = |i: usize| u8::try_from((i * 31 + file * 7) % 251).expect("below 256");
    (0..size).map(byte).collect()
}

fn write(path: &Path, file: usize, size: usize) {
    let mut new = File::create(path).expect("create");
    new.write_all(&pattern(file, size)).expect("write");
    new.sync_all().expect("fsync");
}

/// Reads all files on a node and compares them with what was written.
fn read_all(world: &World, node: u32) {
    for (at, size) in SIZES.into_iter().enumerate() {
        let path = world.path(node, &format!("f{at}"));
        let read = with_deadline("a read", DEADLINE, move || fs::read(path));
        assert!(
            read.expect("read") == pattern(at, size),
            "f{at} on node {node}"
        );
    }
}

/// Returns the sizes of all files below a directory.
fn files_below(dir: &Path) -> Vec<u64> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let sizes = entries.map(|entry| {
        let entry = entry.expect("an entry");
        match entry.metadata() {
            Ok(found) if found.is_dir() => files_below(&entry.path()),
            Ok(found) => vec![found.len()],
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => panic!("{error}"),
        }
    });
    sizes.flatten().collect()
}

#[test]
fn file_data_in_a_bucket() {
    let mut world = World::new();
    for (at, size) in SIZES.into_iter().enumerate() {
        write(&world.path(1, &format!("f{at}")), at, size);
    }
    let stored: u64 = files_below(&world.chunks()).iter().sum();
    assert!(
        stored > SIZES.iter().sum::<usize>() as u64,
        "{stored} bytes"
    );
    let df = world
        .cluster
        .sh(2, "df --output=size -B1G /cluster | tail -1")
        .ok();
    assert_eq!(df.trim(), (1 << 20).to_string(), "a PiB");
    read_all(&world, 2);
    assert_eq!(
        fs::read(world.path(2, "on-disks")).expect("read"),
        pattern(9, 1_000_000),
        "what was on disks stays there"
    );

    // Who wrote it is not needed any more, nor is who leads.
    world.cluster.kill(1);
    read_all(&world, 3);
    write(&world.path(3, "f0"), 0, SIZES[0]);
    world.cluster.start(1);
    read_all(&world, 1);

    // Without the kernel's pages and the daemon's memory: what the cache has had to give up comes again.
    world.cluster.kill(2);
    world.cluster.start(2);
    read_all(&world, 2);
    for node in 1..=3 {
        let cache = world
            .cluster
            .state()
            .join(format!("node{node}/state/cache"));
        let bytes: u64 = (0..256)
            .flat_map(|shard| files_below(&cache.join(format!("{shard:02x}"))))
            .sum();
        let bound = (CACHE_MIB << 20) + (64 << 10);
        assert!(bytes <= bound, "{bytes} bytes in the cache of node {node}");
    }

    // No server: an error that says why, within bounds; then it works again.
    write(&world.path(1, "late"), 5, 9_000_000);
    world.stop_server();
    let (path, began) = (world.path(3, "late"), Instant::now());
    let read = with_deadline("an error", DEADLINE, move || fs::read(path));
    let error = read.expect_err("nobody has it").raw_os_error();
    assert_eq!(error, Some(nix::errno::Errno::EIO as i32));
    let longest = Duration::from_secs(PATIENCE_S + 15);
    assert!(began.elapsed() < longest, "{:?}", began.elapsed());
    let log = fs::read_to_string(world.cluster.state().join("node3/glud.log"));
    let log = log.expect("the log of node 3");
    assert!(log.contains("the object store does not answer"), "{log}");
    world.start_server();
    let path = world.path(3, "late");
    let read = with_deadline("a read", DEADLINE, move || fs::read(path));
    assert!(read.expect("it is back") == pattern(5, 9_000_000));
    write(&world.path(3, "late"), 6, 100_000);

    // Dead chunks go, and so does what no file has.
    let stray = world.chunks().join("01/0000000000000001");
    fs::create_dir_all(stray.parent().expect("a directory")).expect("mkdir");
    fs::write(&stray, "stray").expect("write");
    for name in ["f0", "f1", "f2", "f3", "late"] {
        fs::remove_file(world.path(2, name)).expect("unlink");
    }
    wait_until("the bucket to be empty", DEADLINE, || {
        files_below(&world.chunks()).is_empty()
    });
    assert!(fs::read(world.path(3, "on-disks")).is_ok());
    world.stop_server();
}
