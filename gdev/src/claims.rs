//! Who may write a disk: one node at a time (DV2), and who has asked to be alone (DV3).
//!
//! | state of a disk | event | next, action |
//! | --- | --- | --- |
//! | nobody writes | open to write by node A | A writes |
//! | A writes | open to write by A | A writes, counted |
//! | A writes | open to write by B | refused, EBUSY |
//! | A writes | last close of A | nobody writes |
//! | nobody has claimed it | open with O_EXCL | claimed |
//! | claimed | open with O_EXCL, whoever asks | refused, EBUSY |
//! | claimed | close of the claimer | nobody has claimed it |
//!
//! How often each node has opened a disk to write is counted and told (DV6): who opens one anew finds out whether another
//! node had it meanwhile.
//!
//! Opens that neither write nor claim are not known here. What the owner's own kernel does with a disk (mounted, swap,
//! part of an array) it knows itself: the first of the opens known here claims the disk there as well.

use crate::record::Writers;
use crate::wire::Device;
use consistency::NodeId;
use std::collections::BTreeMap;

/// What the opens of a disk are.
#[derive(Debug, Default, PartialEq, Eq)]
struct Disk {
    writer: Option<(NodeId, usize)>,
    claimed: bool,
}

/// The disks that are written or claimed.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    disks: BTreeMap<Device, Disk>,
    /// How often which node has opened which one to write.
    writers: Writers,
    #[cfg(test)]
    mutant: Option<Mutant>,
}

/// What the tests of what is told have to catch (DV6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    /// Opens to read count.
    CountsReaders,
    /// A node is told of its own opens as of those of others.
    TellsOfItself,
    /// A node that has closed the disk counts no more.
    ForgetsWhoLeft,
    /// Files that are still open are one.
    TellsOfOneOpen,
}

/// What a node is told of a disk that it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    /// How often other nodes have opened it to write.
    pub(crate) others: u64,
    /// How many opens to write there are.
    pub(crate) open: u64,
}

/// An open that is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) device: Device,
    pub(crate) node: NodeId,
    pub(crate) write: bool,
    pub(crate) exclusive: bool,
}

/// Why a disk is not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Busy {
    /// This node writes it.
    WrittenBy(NodeId),
    /// Somebody has asked to be alone.
    Claimed,
}

impl Claims {
    /// Nobody has claimed any; so often were they opened to write before.
    pub(crate) fn new(writers: Writers) -> Self {
        Self {
            writers,
            ..Self::default()
        }
    }

    /// Returns how often which node has opened which disk to write.
    pub(crate) const fn writers(&self) -> &Writers {
        &self.writers
    }

    /// Enters an open.
    pub(crate) fn open(&mut self, claim: Claim) -> Result<(), Busy> {
        if let Some(busy) = self.busy(&claim) {
            return Err(busy);
        }
        let disk = self.disks.entry(claim.device).or_default();
        if claim.write {
            let (_, opens) = disk.writer.get_or_insert((claim.node, 0));
            *opens += 1;
        }
        disk.claimed |= claim.exclusive;
        if claim.write || self.is(Mutant::CountsReaders) {
            let writer = self.writers.entry((claim.device, claim.node));
            *writer.or_default() += 1;
        }
        Ok(())
    }

    /// Returns what is in the way of an open.
    pub(crate) fn busy(&self, claim: &Claim) -> Option<Busy> {
        let disk = self.disks.get(&claim.device)?;
        match disk.writer {
            Some((node, _)) if claim.write && node != claim.node => Some(Busy::WrittenBy(node)),
            _ => (claim.exclusive && disk.claimed).then_some(Busy::Claimed),
        }
    }

    /// Returns what a node is told of a disk (DV6).
    pub(crate) fn told(&self, device: Device, node: NodeId) -> Told {
        let (first, last) = ((device, NodeId(0)), (device, NodeId(u16::MAX)));
        let writers = self.writers.range(first..=last);
        let others =
            writers.filter(|((_, writer), _)| *writer != node || self.is(Mutant::TellsOfItself));
        let disk = self.disks.get(&device);
        let writer = disk.and_then(|disk| disk.writer);
        Told {
            others: others.map(|(_, count)| count).sum(),
            open: writer.map_or(0, |(_, opens)| match self.is(Mutant::TellsOfOneOpen) {
                true => 1,
                false => opens as u64,
            }),
        }
    }

    /// Takes an open out that was entered; returns whether it was the last one of its disk.
    pub(crate) fn close(&mut self, claim: Claim) -> bool {
        let disk = self.disks.get_mut(&claim.device).expect("it was entered");
        if claim.write {
            let (_, opens) = disk.writer.as_mut().expect("it was entered");
            *opens -= 1;
            if *opens == 0 {
                disk.writer = None;
            }
        }
        if claim.exclusive {
            disk.claimed = false;
        }
        let last = *disk == Disk::default();
        if last {
            self.disks.remove(&claim.device);
        }
        if self.is(Mutant::ForgetsWhoLeft) {
            self.writers.remove(&(claim.device, claim.node));
        }
        last
    }

    #[cfg(test)]
    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self, reason = "as in tests")]
    const fn is(&self, _: Mutant) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::tests::Dice;

    /// Opens and closes two disks by three nodes; returns whether each is told what was done.
    fn tells_what_was_done(seed: u64, mutant: Option<Mutant>) -> bool {
        let mut dice = Dice::new(seed);
        let mut claims = Claims {
            mutant,
            ..Claims::default()
        };
        // Who has opened what to write, and what is open.
        let (mut history, mut open) = (Vec::new(), Vec::new());
        let disk = |minor| Device {
            block: true,
            major: 7,
            minor,
        };
        for _ in 0..40 {
            let write = dice.below(2) == 0;
            let some = Claim {
                device: disk(dice.below(2_u32)),
                node: NodeId(1 + dice.below(3_u16)),
                write,
                // Others are not known here.
                exclusive: !write || dice.below(4) == 0,
            };
            if dice.below(2) == 0 {
                if claims.open(some).is_ok() {
                    open.push(some);
                    history.extend(some.write.then_some(some));
                }
            } else if !open.is_empty() {
                claims.close(open.swap_remove(dice.below(open.len())));
            }
            let (device, node) = (some.device, some.node);
            let others = history
                .iter()
                .filter(|was| was.device == device && was.node != node);
            let writes = open.iter().filter(|is| is.device == device && is.write);
            let expected = Told {
                others: others.count() as u64,
                open: writes.count() as u64,
            };
            if claims.told(device, node) != expected {
                return false;
            }
        }
        true
    }

    #[test]
    fn what_is_told_was_done() {
        for seed in 1..500 {
            assert!(tells_what_was_done(seed, None), "seed {seed}");
        }
    }

    #[test]
    fn what_was_not_done_is_caught() {
        for mutant in [
            Mutant::CountsReaders,
            Mutant::TellsOfItself,
            Mutant::ForgetsWhoLeft,
            Mutant::TellsOfOneOpen,
        ] {
            let caught = (1..500).any(|seed| !tells_what_was_done(seed, Some(mutant)));
            assert!(caught, "{mutant:?}");
        }
    }

    fn claim(node: u16, write: bool, exclusive: bool) -> Claim {
        Claim {
            device: Device {
                block: true,
                major: 7,
                minor: 0,
            },
            node: NodeId(node),
            write,
            exclusive,
        }
    }

    #[test]
    fn one_node_writes() {
        let mut claims = Claims::default();
        let (two, three) = (claim(2, true, false), claim(3, true, false));
        assert_eq!(claims.open(two), Ok(()));
        assert_eq!(claims.open(two), Ok(()));
        assert_eq!(claims.open(three), Err(Busy::WrittenBy(NodeId(2))));
        assert!(!claims.close(two));
        assert_eq!(claims.open(three), Err(Busy::WrittenBy(NodeId(2))));
        let other = Claim {
            device: Device {
                minor: 1,
                ..three.device
            },
            ..three
        };
        assert_eq!(claims.open(other), Ok(()), "another disk");
        assert!(claims.close(two));
        assert_eq!(claims.open(three), Ok(()));
        assert!(claims.close(three) && claims.close(other));
        assert!(claims.disks.is_empty());
    }

    #[test]
    fn who_comes_back_is_told_of_others() {
        let mut claims = Claims::default();
        let (two, three) = (claim(2, true, false), claim(3, true, false));
        let reads = claim(4, false, true);
        let told = |claims: &Claims| {
            let told = claims.told(two.device, two.node);
            (told.others, told.open)
        };
        assert_eq!(told(&claims), (0, 0));
        claims.open(two).expect("free");
        claims.open(reads).expect("it does not write");
        assert_eq!(told(&claims), (0, 1));
        // What has ended is not closed yet.
        claims.open(two).expect("its own");
        assert_eq!(told(&claims), (0, 2));
        claims.close(two);
        claims.close(two);
        claims.close(reads);
        claims.open(three).expect("free");
        claims.close(three);
        claims.open(two).expect("free");
        assert_eq!(told(&claims), (1, 1));
        let other = Device {
            minor: 1,
            ..two.device
        };
        assert_eq!(claims.told(other, two.node).others, 0, "of another disk");
    }

    #[test]
    fn one_open_is_alone() {
        let mut claims = Claims::default();
        let (alone, writes) = (claim(2, false, true), claim(2, true, false));
        assert_eq!(claims.open(alone), Ok(()));
        assert_eq!(claims.open(alone), Err(Busy::Claimed));
        assert_eq!(claims.open(claim(3, false, true)), Err(Busy::Claimed));
        assert_eq!(claims.open(writes), Ok(()), "as Linux has it");
        assert!(!claims.close(alone));
        assert_eq!(claims.open(claim(3, false, true)), Ok(()));
        assert_eq!(
            claims.open(claim(3, true, true)),
            Err(Busy::WrittenBy(NodeId(2)))
        );
        assert!(!claims.close(writes));
        assert!(claims.close(claim(3, false, true)));
    }
}
