//! Devices of another node against the same devices of this one.

use super::{Bench, MIB, Row};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

const PAGE_BYTES: usize = 4096;
const PAGES_PER_MIB: u64 = (MIB / PAGE_BYTES) as u64;
const DISK_MIB: u32 = 64;
const LONG: Duration = Duration::from_secs(60);
/// Samples of each row.
const SAMPLES: usize = 5;

/// A loop device of this machine, which all nodes have.
struct Disk(String);

impl Disk {
    fn new(backing: &Path) -> Self {
        let file = File::create(backing).expect("a file");
        file.set_len(u64::from(DISK_MIB) * MIB as u64)
            .expect("room");
        let mut make = Command::new("losetup");
        let made = make.args(["--find", "--show"]).arg(backing).output();
        let made = String::from_utf8(made.expect("losetup").stdout).expect("text");
        Self(made.trim().to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let mut end = Command::new("losetup");
        drop(end.args(["-d", &self.0]).status());
    }
}

impl Bench {
    /// The last of all: node 2 gets another configuration. The control reads and writes past the page cache, as the
    /// other node does.
    pub(super) fn devices(&mut self) {
        self.open_disks();
        let disk = Disk::new(&self.local.join("disk"));
        let far = self.cluster.path(1).join("node2");
        let at = |device: &str| far.join(device.strip_prefix('/').expect("absolute"));
        let (remote, local) = (at(&disk.0), PathBuf::from(&disk.0));
        let pages = self.scaled(2_000);
        let mibs = self.scaled(DISK_MIB);
        let mut bytes = vec![0x5A_u8; MIB + PAGE_BYTES];
        // O_DIRECT wants memory at the beginning of a page.
        let start = bytes.as_ptr().align_offset(PAGE_BYTES);
        let bytes = &mut bytes[start..start + MIB];
        self.row(
            "1 MiB sequential write, disk of another node + fsync",
            "",
            SAMPLES,
            mibs,
            |device| {
                let disk = open(device, true);
                for number in 0..u64::from(mibs) {
                    let written = disk.write_all_at(bytes, number * MIB as u64);
                    written.expect("written");
                }
                disk.sync_all().expect("synced");
            },
            &remote,
            &local,
        );
        self.row(
            "1 MiB sequential read, disk of another node",
            "",
            SAMPLES,
            mibs,
            |device| {
                let disk = open(device, false);
                for number in 0..u64::from(mibs) {
                    let read = disk.read_exact_at(bytes, number * MIB as u64);
                    read.expect("read");
                }
            },
            &remote,
            &local,
        );
        self.row(
            "4 KiB random write, disk of another node + fsync",
            "",
            SAMPLES,
            pages,
            |device| {
                let disk = open(device, true);
                for place in places(pages) {
                    let written = disk.write_all_at(&bytes[..PAGE_BYTES], place);
                    written.expect("written");
                }
                disk.sync_all().expect("synced");
            },
            &remote,
            &local,
        );
        self.row(
            "4 KiB random read, disk of another node",
            "",
            SAMPLES,
            pages,
            |device| {
                let disk = open(device, false);
                for place in places(pages) {
                    let read = disk.read_exact_at(&mut bytes[..PAGE_BYTES], place);
                    read.expect("read");
                }
            },
            &remote,
            &local,
        );
        self.row(
            "zero of another node, in MiB",
            "",
            SAMPLES,
            mibs,
            |device| {
                let mut zero = File::open(device).expect("opened");
                for _ in 0..mibs {
                    zero.read_exact(bytes).expect("read");
                }
            },
            &at("/dev/zero"),
            Path::new("/dev/zero"),
        );
        let records = self.scaled(100);
        let here = (0..records).map(|number| record(&at("/dev/kmsg"), number));
        let here = here.collect();
        let control = (0..records).map(|number| record(Path::new("/dev/kmsg"), number));
        let control = control.collect();
        self.add(Row {
            name: "a record of another node's kernel log, to who waits for it",
            goal: "",
            here,
            control,
            ops: 1,
        });
    }

    fn open_disks(&self) {
        let path = self.cluster.state().join("node2/glud.toml");
        let config = fs::read_to_string(&path).expect("its configuration");
        let open = "[devices]\nblock = \"write\"\n[tls]";
        fs::write(&path, config.replacen("[tls]", open, 1)).expect("written");
        self.cluster.kill(2);
        self.cluster.start(2);
        let zero = self.cluster.path(1).join("node2/dev/zero");
        tests::wait_until("its devices", LONG, || zero.exists());
    }
}

fn open(device: &Path, write: bool) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(write);
    // A disk is given back by its last writer in a moment.
    let mut opened = None;
    tests::wait_until("the disk to be free", LONG, || {
        opened = options.custom_flags(libc::O_DIRECT).open(device).ok();
        opened.is_some()
    });
    opened.expect("it is open")
}

fn places(count: u32) -> impl Iterator<Item = u64> {
    let mut seed = 1_u64;
    (0..count).map(move |_| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % (u64::from(DISK_MIB) * PAGES_PER_MIB) * PAGE_BYTES as u64
    })
}

/// Returns how long a record is on its way to somebody who waits for it.
fn record(log: &Path, number: u32) -> Duration {
    let mut options = OpenOptions::new();
    let mut reader = options.read(true).custom_flags(libc::O_NONBLOCK).open(log);
    let reader = reader.as_mut().expect("opened");
    let mut bytes = [0; 8192];
    // Up to the end.
    loop {
        match reader.read(&mut bytes) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            // Its writers have overtaken us.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(error) => panic!("{}: {error}", log.display()),
        }
    }
    let flags = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty());
    nix::fcntl::fcntl(&*reader, flags).expect("it waits from here on");
    // Without its end it would be kept for what continues it.
    let text = format!("glu bench {} {number}\n", std::process::id());
    let (waits, waiting) = mpsc::channel();
    std::thread::scope(|scope| {
        let wanted = &text;
        let reads = scope.spawn(move || {
            waits.send(()).expect("somebody hears it");
            loop {
                let count = reader.read(&mut bytes).expect("read");
                if String::from_utf8_lossy(&bytes[..count]).contains(wanted.trim_end()) {
                    return Instant::now();
                }
            }
        });
        waiting.recv().expect("it reads");
        // Long enough that it waits, and is not on its way there.
        std::thread::sleep(Duration::from_millis(5));
        // Each writer may write ten in five seconds.
        let mut writer = File::options()
            .write(true)
            .open("/dev/kmsg")
            .expect("opened");
        let began = Instant::now();
        writer.write_all(text.as_bytes()).expect("written");
        reads.join().expect("no panic").duration_since(began)
    })
}
