//! The devices of other nodes: who may open them, what they do, and what becomes of them when their node dies.
//!
//! Needs root, /dev/fuse, loop devices, e2fsprogs, attr, git.

mod classes;
mod faults;
mod lines;
mod repository;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{OpenptyResult, openpty};
use nix::sys::termios::{self, SetArg};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tests::{Cluster, wait_until, with_deadline};

const LONG: Duration = Duration::from_secs(60);
/// `lease_term_ms` of `glu dev`: what the end of a node may take to be seen.
const TERM: Duration = Duration::from_secs(4);
const STRANGER: &str = "setpriv --reuid 4321 --regid 4321";

/// Opens classes of devices on a node, which is down for a moment.
fn open_classes(cluster: &Cluster, node: u32, classes: &[&str]) {
    let path = cluster.state().join(format!("node{node}/glud.toml"));
    let config = fs::read_to_string(&path).expect("its configuration");
    assert!(!config.contains("[devices]"), "all is as by default");
    let open = classes.iter().map(|class| format!("{class} = \"write\"\n"));
    let section = format!("[devices]\n{}\n[tls]", String::from_iter(open));
    let config = config.replacen("[tls]", &section, 1);
    fs::write(&path, config).expect("written");
    cluster.kill(node);
    cluster.start(node);
    for other in cluster.nodes() {
        let look = format!("stat /cluster/node{node}/dev/null");
        wait_until("its devices", LONG, || other.sh(&look).status.success());
    }
}

/// A disk of this machine, which all nodes have; each is asked for as one of node 2.
struct Disk {
    backing: PathBuf,
    device: String,
}

impl Disk {
    fn new(cluster: &Cluster, name: &str, bytes: u64) -> Self {
        let backing = cluster.state().join(name);
        let file = File::create(&backing).expect("a file");
        file.set_len(bytes).expect("room");
        let mut make = Command::new("losetup");
        let made = make.args(["--find", "--show"]).arg(&backing).output();
        let made = made.expect("losetup");
        assert!(made.status.success(), "{made:?}");
        let device = String::from_utf8(made.stdout).expect("text");
        let device = device.trim().to_owned();
        Self { backing, device }
    }

    /// Returns its path on another node.
    fn remote(&self) -> String {
        format!("/cluster/node2{}", self.device)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(Command::new("losetup").args(["-d", &self.device]).status());
    }
}

/// What `glu attach` has made, if the test fails.
struct Attached(String);

impl Drop for Attached {
    fn drop(&mut self) {
        let mut end = Command::new("losetup");
        drop(end.args(["-d", &self.0]).stderr(Stdio::null()).status());
    }
}

/// A terminal of this machine without echo or lines, and its path on another node.
fn terminal() -> (OpenptyResult, PathBuf) {
    let pty = openpty(None, None).expect("a terminal");
    let mut raw = termios::tcgetattr(&pty.slave).expect("termios");
    termios::cfmakeraw(&mut raw);
    termios::tcsetattr(&pty.slave, SetArg::TCSANOW, &raw).expect("set");
    let name = nix::unistd::ttyname(&pty.slave).expect("its name");
    (pty, name)
}

fn at(cluster: &Cluster, node: u32, device: &Path) -> PathBuf {
    let below = device.strip_prefix("/").expect("absolute");
    cluster.path(node).join("node2").join(below)
}

#[test]
fn rights_and_terminals() {
    let cluster = Cluster::up(2);
    let run = |node, script: &str| cluster.sh(node, script);
    // What is open by itself.
    run(
        1,
        "test $(head -c 3000000 /cluster/node2/dev/zero | wc -c) = 3000000",
    )
    .ok();
    run(
        1,
        &format!("{STRANGER} --clear-groups sh -c 'echo x > /cluster/node2/dev/null'"),
    )
    .ok();
    let shown = run(1, "stat -c %A:%u:%F /cluster/node2/dev/null").ok();
    assert_eq!(shown.trim(), "-rw-rw-rw-:0:regular empty file");
    let device = run(
        1,
        "getfattr --only-values -n user.glu.device /cluster/node2/dev/null",
    )
    .ok();
    assert_eq!(device, "c 1:3");
    // What is not says so.
    let (pty, slave) = terminal();
    let remote = format!("/cluster/node2{}", slave.display());
    let refused = run(1, &format!("cat {remote}"));
    assert!(
        refused.to_string().contains("Permission denied"),
        "{refused}"
    );
    let why = format!("getfattr --only-values -n user.glu.why {remote}");
    let told = run(1, &why).ok();
    assert!(
        told.contains("[devices] terminal in its glud.toml"),
        "{told}"
    );
    let told = run(
        1,
        "getfattr --only-values -n user.glu.why /cluster/node2/dev/tty",
    )
    .ok();
    assert!(
        told.contains("the terminal of the process that opens it"),
        "{told}"
    );
    // Opens are told on the owner.
    let reader = "grep -m1 'device kmsg (c 1:11) opened for node 1 user 0 to read' \
                  /cluster/proc/cluster/events && touch /cluster/told";
    let reader = cluster.spawn(2, reader);
    run(
        1,
        "until [ -e /cluster/told ]; do dd if=/cluster/node2/dev/kmsg of=/dev/null bs=8192 count=1 || :; done 2>/dev/null",
    )
    .ok();
    reader.wait(LONG).ok();
    // One record for each read; the log ends, for who does not wait.
    let records =
        "dd if=/cluster/node2/dev/kmsg iflag=nonblock bs=8192 count=2 2>/dev/null | wc -l";
    assert!(
        run(1, records)
            .ok()
            .trim()
            .parse::<u32>()
            .expect("a number")
            >= 1
    );
    let end = run(
        1,
        "dd if=/cluster/node2/dev/kmsg iflag=nonblock bs=8192 of=/dev/null 2>&1",
    );
    assert!(
        end.to_string().contains("Resource temporarily unavailable"),
        "{end}"
    );

    open_classes(&cluster, 2, &["terminal"]);
    // The mode counts, with all groups.
    chown(&slave, Some(0), Some(4242)).expect("given away");
    fs::set_permissions(&slave, fs::Permissions::from_mode(0o664)).expect("set");
    let write = |groups: &str| {
        run(
            1,
            &format!("{STRANGER} {groups} sh -c 'printf hello > {remote}'"),
        )
    };
    let refused = write("--clear-groups");
    assert!(
        refused.to_string().contains("ermission denied"),
        "{refused}"
    );
    let stranger = run(1, &format!("{STRANGER} --clear-groups {why}")).ok();
    assert_eq!(
        stranger,
        "to write: its mode and owner do not let this user"
    );
    write("--groups 7,4242").ok();
    let mut master = File::from(pty.master.try_clone().expect("a copy"));
    let mut text = [0; 5];
    with_deadline("what was written", LONG, {
        let mut master = master.try_clone().expect("a copy");
        move || master.read_exact(&mut text).map(|()| text)
    })
    .map(|text| assert_eq!(&text, b"hello"))
    .expect("read");
    assert!(
        !run(1, &format!("getfattr -n user.glu.why {remote}"))
            .status
            .success()
    );
    // A reader waits, and goes when it is told to.
    let waits = cluster.spawn(1, &format!("exec head -c 5 {remote}"));
    master.write_all(b"typed").expect("written");
    assert_eq!(waits.wait(LONG).ok(), "typed");
    let killed = cluster.sh(1, &format!("timeout -s INT 1 cat {remote}"));
    assert_eq!(killed.code(), Some(124));

    // poll(2), and writing while another thread of the same open file reads.
    let path = at(&cluster, 1, &slave);
    let mut options = OpenOptions::new();
    let nonblock = options
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK);
    let mut file = nonblock.open(&path).expect("opened");
    let none = file.read(&mut [0; 9]).expect_err("nothing typed");
    assert_eq!(none.kind(), ErrorKind::WouldBlock);
    let ready = |file: &File, timeout: Duration| {
        let mut polled = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(timeout).expect("short");
        poll(&mut polled, timeout).expect("polled");
        polled[0].revents().expect("known")
    };
    assert_eq!(ready(&file, Duration::ZERO), PollFlags::empty());
    let polls = std::thread::spawn({
        let file = file.try_clone().expect("a copy");
        move || ready(&file, LONG)
    });
    master.write_all(b"more").expect("written");
    assert_eq!(polls.join().expect("polled"), PollFlags::POLLIN);
    assert_eq!(file.read(&mut [0; 9]).expect("read"), 4);
    let mut both = OpenOptions::new();
    let both = both.read(true).write(true).open(&path).expect("opened");
    let reads = std::thread::spawn({
        let mut both = both.try_clone().expect("a copy");
        move || {
            let mut byte = [0];
            both.read_exact(&mut byte).map(|()| byte[0])
        }
    });
    with_deadline("a write beside a read", LONG, {
        let mut both = both.try_clone().expect("a copy");
        move || both.write_all(b"beside")
    })
    .expect("written");
    master.write_all(b"z").expect("written");
    assert_eq!(reads.join().expect("no panic").expect("read"), b'z');

    // Its node dies: who waits and who polls is told in time, and the open file stays dead.
    let waits = std::thread::spawn(move || {
        let mut both = both;
        let failed = both.read(&mut [0; 9]).expect_err("its node is gone");
        (failed.raw_os_error(), both)
    });
    let polls = std::thread::spawn({
        let file = file.try_clone().expect("a copy");
        move || ready(&file, LONG)
    });
    wait_for_requests(&cluster, 1, 1);
    cluster.kill(2);
    let died = Instant::now();
    let (failed, mut both) = waits.join().expect("no panic");
    assert_eq!(failed, Some(libc::EIO));
    assert!(polls.join().expect("no panic").contains(PollFlags::POLLERR));
    assert!(died.elapsed() < TERM, "{:?}", died.elapsed());
    let later = both.write_all(b"x").expect_err("it is gone");
    assert_eq!(later.raw_os_error(), Some(libc::ENODEV));
    drop((both, file));
    let down = OpenOptions::new()
        .read(true)
        .open(&path)
        .expect_err("its node is down");
    assert_eq!(down.raw_os_error(), Some(libc::EHOSTDOWN));
    cluster.start(2);
    let opens = || OpenOptions::new().write(true).open(&path).is_ok();
    wait_until("the device is back", LONG, opens);
}

/// Waits until a node's daemon has so many requests that wait.
fn wait_for_requests(cluster: &Cluster, node: u32, count: usize) {
    wait_until("requests that wait", LONG, || {
        let listed = cluster.sh(node, "glu debug waits 2>&1").to_string();
        listed.matches("READ").count() >= count
    });
}

#[test]
fn disks() {
    let cluster = Cluster::up(3);
    let run = |node, script: &str| cluster.node(node).sh_within(LONG, script);
    let disk = Disk::new(&cluster, "disk", 64 << 20);
    let remote = disk.remote();
    assert_eq!(
        run(1, &format!("stat -c '%s %o' {remote}")).ok(),
        "67108864 131072",
        "programs that ask for the best size read much at once"
    );
    // Read only by default.
    run(1, &format!("test $(head -c 5000 {remote} | wc -c) = 5000")).ok();
    let refused = run(
        1,
        &format!("dd if=/dev/zero of={remote} count=1 conv=notrunc 2>&1"),
    );
    assert!(
        refused.to_string().contains("Read-only file system"),
        "{refused}"
    );
    open_classes(&cluster, 2, &["block"]);

    // A file system on it, through everything; checked and compared on its owner.
    run(1, &format!("mkfs.ext4 -q -F {remote}")).ok();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../gdev");
    let source = source.canonicalize().expect("there");
    let fill = format!(
        "set -e; near=$(losetup --find --show {remote}); trap 'losetup -d $near' EXIT
         mkdir -p /tmp/glu-mnt-$$; mount $near /tmp/glu-mnt-$$
         cp -r {source} /tmp/glu-mnt-$$/tree; dd if=/dev/urandom of=/tmp/glu-mnt-$$/noise bs=1M count=8 2>/dev/null
         sha256sum < /tmp/glu-mnt-$$/noise; fstrim /tmp/glu-mnt-$$
         umount /tmp/glu-mnt-$$; rmdir /tmp/glu-mnt-$$",
        source = source.display()
    );
    let sum = run(1, &fill).ok();
    let image = disk.backing.display();
    let check = format!(
        "set -e; fsck.ext4 -fn {image} >/dev/null 2>&1; mkdir -p /tmp/glu-own-$$
         mount -o ro,loop {image} /tmp/glu-own-$$; sha256sum < /tmp/glu-own-$$/noise
         diff -r {source} /tmp/glu-own-$$/tree; umount /tmp/glu-own-$$; rmdir /tmp/glu-own-$$",
        source = source.display()
    );
    assert_eq!(run(2, &check).ok(), sum);

    let punch = format!(
        "fallocate -n -p -o 1MiB -l 1MiB {remote} && fallocate -n -z -o 4MiB -l 1MiB {remote}"
    );
    run(1, &punch).ok();
    run(2, &format!("cmp -n 1048576 -i 1048576:0 {image} /dev/zero")).ok();

    // One node writes it. Both may read.
    let path = at(&cluster, 1, Path::new(&disk.device));
    let writer = OpenOptions::new().write(true).open(&path).expect("opened");
    let other = at(&cluster, 3, Path::new(&disk.device));
    let open_there = || OpenOptions::new().write(true).open(&other);
    let busy = open_there().expect_err("busy");
    assert_eq!(busy.raw_os_error(), Some(libc::EBUSY));
    let why = run(
        3,
        &format!("getfattr --only-values -n user.glu.why {remote}"),
    )
    .ok();
    assert_eq!(why, "to write: node 1 writes it");
    File::open(&other).expect("to read");
    let mount = format!("mount -o ro {} /mnt 2>&1", disk.device);
    assert!(!run(2, &mount).status.success(), "its owner keeps off it");
    drop(writer);
    wait_until("node 3 may write", LONG, || open_there().is_ok());
    // Nor what its owner has mounted.
    run(
        2,
        &format!(
            "mkdir -p /tmp/glu-busy-$$
        until mount {device} /tmp/glu-busy-$$ 2>/dev/null; do :; done
        dd if=/dev/zero of=/cluster/node2{device} count=1 conv=notrunc 2>&1 | grep -q busy; told=$?
        umount /tmp/glu-busy-$$; rmdir /tmp/glu-busy-$$; exit $told",
            device = disk.device
        ),
    )
    .ok();

    // Its node dies while it is written: who writes hears of it, and what was synced is there.
    let writer = OpenOptions::new().write(true).open(&path).expect("opened");
    let writes = std::thread::spawn(move || {
        for number in 0..u64::MAX {
            let block = [number.to_le_bytes(); 512].concat();
            let at = number % 4096 * 4096;
            let written = writer
                .write_all_at(&block, at)
                .and_then(|()| writer.sync_data());
            if let Err(error) = written {
                return (number, error.raw_os_error());
            }
        }
        unreachable!("it is killed")
    });
    let begun = || {
        let mut first = [0; 8];
        let image = File::open(&disk.backing).expect("there");
        image.read_exact_at(&mut first, 100 * 4096).expect("read");
        u64::from_le_bytes(first) == 100
    };
    wait_until("a hundred blocks", LONG, begun);
    cluster.kill(2);
    let died = Instant::now();
    let (synced, error) = writes.join().expect("no panic");
    assert!(matches!(error, Some(libc::EIO | libc::ENODEV)), "{error:?}");
    assert!(died.elapsed() < TERM, "{:?}", died.elapsed());
    let image = fs::read(&disk.backing).expect("there");
    for number in synced.saturating_sub(4096)..synced {
        let at = usize::try_from(number % 4096).expect("small") * 4096;
        assert_eq!(
            image[at..at + 8],
            number.to_le_bytes(),
            "block {number} of {synced}"
        );
    }
    cluster.start(2);
    let opens = || OpenOptions::new().write(true).open(&path).is_ok();
    wait_until("the disk is back", LONG, opens);
}

#[test]
fn consoles_and_stand_ins() {
    let cluster = Cluster::up(2);
    open_classes(&cluster, 2, &["terminal", "block"]);
    let (pty, slave) = terminal();
    let line = format!(
        "node2:{}",
        slave.strip_prefix("/dev").expect("below").display()
    );
    let speed = |expected| {
        let modes = termios::tcgetattr(&pty.slave).expect("termios");
        termios::cfgetospeed(&modes) == expected
    };
    let mut master = File::from(pty.master.try_clone().expect("a copy"));
    let shown = master.try_clone().expect("a copy");
    let expect = |text: &'static [u8]| {
        let mut master = shown.try_clone().expect("a copy");
        let mut got = vec![0; text.len()];
        let read = with_deadline("what was typed", LONG, move || {
            master.read_exact(&mut got).map(|()| got)
        });
        assert_eq!(read.expect("read"), text);
    };
    // A terminal at the line, with the speed that was asked for.
    let script = format!("glu console {line} --baud 9600; echo ended $?");
    let mut terminal = cluster.node(1).terminal(&["sh", "-c", &script]);
    terminal.expect("ends this");
    wait_until("9600 baud", LONG, || speed(termios::BaudRate::B9600));
    terminal.send("root\r");
    expect(b"root\r");
    master.write_all(b"Password: ").expect("written");
    terminal.expect("Password: ");
    terminal.send("~.");
    terminal.expect("ended 0");
    // A pseudo-terminal that stands for it: what is set there is set at the line.
    let serves = format!("exec glu console --pty {line}");
    let serves = cluster.spawn(1, &serves);
    wait_until("its name", LONG, || serves.stdout().contains("/dev/pts/"));
    let near = serves.stdout().trim().to_owned();
    cluster.sh(1, &format!("stty -F {near} 115200")).ok();
    wait_until("115200 baud", LONG, || speed(termios::BaudRate::B115200));
    cluster.sh(1, &format!("printf 'AT\\r' > {near}")).ok();
    expect(b"AT\r");
    drop(serves);

    // A block device of this node that stands for a disk of the other one.
    let disk = Disk::new(&cluster, "disk", 16 << 20);
    let name = format!("node2{}", disk.device);
    let attached = cluster
        .sh(1, &format!("glu attach --with loop {name}"))
        .ok();
    let attached = Attached(attached.trim().to_owned());
    let near = attached.0.as_str();
    // Nodes of one machine have their loop devices in common, those of other clusters included.
    let is_listed = || {
        let listed = cluster.sh(1, "glu attach --list").ok();
        let this = format!("{near} {} write", disk.remote());
        listed.lines().any(|line| line == this)
    };
    assert!(is_listed());
    let script = format!("mkfs.ext4 -q {near} && fsck.ext4 -fn {near} && glu detach {near}");
    cluster.sh(1, &script).ok();
    assert!(!is_listed());
    // Its name may be another's by now.
    std::mem::forget(attached);
    cluster
        .sh(2, &format!("fsck.ext4 -fn {}", disk.backing.display()))
        .ok();
    let refused = cluster
        .sh(1, &format!("glu detach {}", disk.device))
        .to_string();
    assert!(
        refused.contains("stands for no device of another node"),
        "{refused}"
    );
    let refused = cluster.sh(1, "glu attach node2/dev/null").to_string();
    assert!(
        refused.contains("neither") && refused.contains("/cluster/node2/dev/null itself"),
        "{refused}"
    );
    // What the kernel does not have is named, with what there is instead.
    let missing = |device: &Path| !device.exists();
    if missing(Path::new("/dev/nbd0")) {
        let refused = cluster.sh(1, &format!("glu attach --with nbd {name}"));
        let refused = refused.to_string();
        let told = refused.contains("module nbd") && refused.contains("--with loop");
        assert!(told, "{refused}");
    }
    if missing(Path::new("/dev/cuse")) {
        let refused = cluster.sh(1, &format!("glu attach --with cuse {line}"));
        let refused = refused.to_string();
        let told = refused.contains("module cuse") && refused.contains("--with pty");
        assert!(told, "{refused}");
    }
    let refused = cluster
        .sh(1, &format!("glu attach --with pty {name}"))
        .to_string();
    assert!(
        refused.contains("is a disk: --with nbd or loop"),
        "{refused}"
    );
    let refused = cluster.sh(1, "glu attach node2/dev/none").to_string();
    assert!(refused.contains("there is no such device"), "{refused}");
    let refused = cluster.sh(1, "glu console node2:null").to_string();
    assert!(refused.contains("is no terminal"), "{refused}");
    let refused = cluster.sh(1, "glu console node2:tty").to_string();
    assert!(
        refused.contains("the terminal of the process that opens it"),
        "{refused}"
    );
}
