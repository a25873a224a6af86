use super::super::unflushed::Mutant;
use super::*;
use ::tests::Dice;
use std::sync::atomic::{AtomicUsize, Ordering};

const BLOCKS: u64 = 8;
const BLOCK_BYTES: usize = 512;
const BYTES: usize = 8 * BLOCK_BYTES;
/// For disks that come back at once, and for those that do not.
const LONG: Pace = Pace {
    patience: Duration::from_secs(60),
    every: Duration::ZERO,
};
const SHORT: Pace = Pace {
    patience: Duration::ZERO,
    every: Duration::ZERO,
};

/// The disk's node: what its kernel has, and what its disk has.
#[derive(Debug)]
struct Node {
    cached: Vec<u8>,
    durable: Vec<u8>,
    /// Files that were opened in an earlier session have ended.
    session: u64,
    /// The next flush fails, and what was not flushed is taken for clean although the disk has not got it.
    bad_flush: bool,
    bad_block: Option<u64>,
    gone: bool,
    written: bool,
    bytes: u64,
    dice: Dice,
    /// How seldom something happens in the middle of what is asked; 0: never.
    quiet: u64,
}

#[derive(Clone, Debug)]
struct World {
    node: Arc<Mutex<Node>>,
    told: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct FakeFile {
    node: Arc<Mutex<Node>>,
    session: u64,
}

fn failure(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

impl World {
    fn new(seed: u64) -> Self {
        let node = Node {
            cached: vec![0; BYTES],
            durable: vec![0; BYTES],
            session: 0,
            bad_flush: false,
            bad_block: None,
            gone: false,
            written: false,
            bytes: BYTES as u64,
            dice: Dice::new(seed),
            quiet: 0,
        };
        Self {
            node: Arc::new(Mutex::new(node)),
            told: Arc::default(),
        }
    }

    fn disk(&self, pace: Pace) -> Disk<Self> {
        Disk::open(self.clone(), pace).expect("opened")
    }

    fn node(&self) -> MutexGuard<'_, Node> {
        self.node.lock().expect("no holder panics")
    }
}

impl Node {
    fn strikes(&mut self) -> bool {
        self.quiet > 0 && self.dice.below(self.quiet) == 0
    }

    fn lose_power(&mut self) {
        self.session += 1;
        self.cached.clone_from(&self.durable);
    }
}

impl Source for World {
    type File = FakeFile;

    fn open(&self) -> io::Result<(FakeFile, Since)> {
        let node = self.node();
        if node.gone {
            return Err(failure(libc::ENOTCONN));
        }
        let since = if node.written {
            Since::Written
        } else {
            Since::Untouched
        };
        let file = FakeFile {
            node: Arc::clone(&self.node),
            session: node.session,
        };
        Ok((file, since))
    }

    fn tell(&self, _: bool) {
        self.told.fetch_add(1, Ordering::Relaxed);
    }
}

impl FakeFile {
    /// Does it, unless the session ends before; when it ends after, the answer is lost.
    fn answered<T>(&self, what: impl FnOnce(&mut Node) -> io::Result<T>) -> io::Result<T> {
        let mut node = self.node.lock().expect("no holder panics");
        if node.session != self.session {
            return Err(failure(libc::ENODEV));
        }
        if node.strikes() {
            node.session += 1;
            return Err(failure(libc::EIO));
        }
        let done = what(&mut node);
        if node.strikes() {
            if node.dice.below(2) == 0 {
                node.session += 1;
            } else {
                node.lose_power();
            }
            return Err(failure(libc::EIO));
        }
        done
    }
}

impl Backing for FakeFile {
    fn read_at(&self, data: &mut [u8], offset: u64) -> io::Result<()> {
        self.answered(|node| {
            if node.bad_block == Some(offset) {
                return Err(failure(libc::EIO));
            }
            let at = usize::try_from(offset).expect("small");
            data.copy_from_slice(&node.cached[at..at + data.len()]);
            Ok(())
        })
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.answered(|node| {
            let at = usize::try_from(offset).expect("small");
            node.cached[at..at + data.len()].copy_from_slice(data);
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.answered(|node| {
            if std::mem::take(&mut node.bad_flush) {
                node.cached.clone_from(&node.durable);
                return Err(failure(libc::EIO));
            }
            node.durable.clone_from(&node.cached);
            Ok(())
        })
    }

    fn trim(&self, _: u64, _: u64) -> io::Result<()> {
        self.answered(|_| Err(failure(libc::EOPNOTSUPP)))
    }

    fn bytes(&self) -> io::Result<u64> {
        let node = self.node.lock().expect("no holder panics");
        if node.session != self.session {
            return Err(failure(libc::ENODEV));
        }
        Ok(node.bytes)
    }
}

fn block(number: u8) -> Bytes {
    vec![number; BLOCK_BYTES].into()
}

/// Writes, reads and flushes while sessions and machines end; returns whether nothing acknowledged was lost.
fn keeps_its_word(seed: u64, mutant: Option<Mutant>) -> bool {
    let world = World::new(seed);
    let disk = world.disk(LONG);
    disk.lock().unflushed.mutant = mutant;
    let mut dice = Dice::new(seed.rotate_left(32));
    let mut expected = vec![0; BYTES];
    world.node().quiet = 40;
    for number in 1..=60 {
        let at = usize::try_from(dice.below(BLOCKS)).expect("small") * BLOCK_BYTES;
        match dice.below(10) {
            0 => {
                let flushed = disk.flush().is_ok();
                if flushed && world.node().durable != expected {
                    return false;
                }
            }
            1 => {
                let mut data = vec![0; BLOCK_BYTES];
                disk.read(&mut data, at as u64).expect("read");
                if data != expected[at..at + BLOCK_BYTES] {
                    return false;
                }
            }
            2 => world.node().bad_flush = true,
            _ => {
                disk.write(&block(number), at as u64).expect("written");
                expected[at..at + BLOCK_BYTES].fill(number);
            }
        }
    }
    let mut node = world.node();
    (node.quiet, node.bad_flush) = (0, false);
    drop(node);
    disk.flush().expect("it is healed");
    let node = world.node();
    node.durable == expected
}

const SEEDS: std::ops::Range<u64> = 1..500;

#[test]
fn nothing_acknowledged_is_lost() {
    for seed in SEEDS {
        assert!(keeps_its_word(seed, None), "seed {seed}");
    }
}

#[test]
fn who_repeats_nothing_is_caught() {
    let mut seeds = SEEDS;
    assert!(seeds.any(|seed| !keeps_its_word(seed, Some(Mutant::RepeatNothing))));
}

#[test]
fn its_own_errors_are_answered_at_once() {
    let world = World::new(1);
    let disk = world.disk(LONG);
    world.node().bad_block = Some(512);
    let mut data = vec![0; BLOCK_BYTES];
    let failed = disk.read(&mut data, 512).expect_err("a bad block");
    assert_eq!(failed.raw_os_error(), Some(libc::EIO));
    disk.read(&mut data, 0).expect("a good one");
    disk.trim(0, 512).expect("it is a hint");
    assert_eq!(world.told.load(Ordering::Relaxed), 0, "it is not lost");
    // What a flush could not do, the next one does: it has not got nothing to do.
    disk.write(&block(1), 0).expect("written");
    world.node().bad_flush = true;
    disk.flush().expect_err("the disk could not");
    disk.flush().expect("it can again");
    assert_eq!(world.node().durable[..BLOCK_BYTES], block(1)[..]);
}

#[test]
fn who_does_not_come_back_is_an_error() {
    let world = World::new(1);
    let disk = world.disk(SHORT);
    disk.write(&block(1), 0).expect("written");
    world.node().lose_power();
    world.node().gone = true;
    let failed = disk.write(&block(2), 512).expect_err("it is gone");
    assert_eq!(failed.raw_os_error(), Some(libc::EIO));
    disk.flush().expect_err("it is gone");
    assert_eq!(world.told.load(Ordering::Relaxed), 1, "told once");
    // Back after all: what was acknowledged is there.
    world.node().gone = false;
    disk.flush().expect("it is back");
    assert_eq!(world.node().durable[..BLOCK_BYTES], block(1)[..]);
    let rest = world.node().durable.split_off(BLOCK_BYTES);
    assert!(rest.iter().all(|byte| *byte == 0));
    // Another disk under its name is not it.
    let mut node = world.node();
    node.session += 1;
    node.bytes += 512;
    drop(node);
    disk.flush().expect_err("another disk");
}

#[test]
fn a_disk_that_another_node_has_written_stays_lost() {
    let world = World::new(1);
    let disk = world.disk(LONG);
    disk.write(&block(1), 0).expect("written");
    world.node().lose_power();
    world.node().written = true;
    disk.flush().expect_err("it is another's");
    world.node().written = false;
    disk.flush().expect_err("it stays so");
    assert_eq!(
        world.node().cached,
        vec![0; BYTES],
        "nothing is written over"
    );
}
