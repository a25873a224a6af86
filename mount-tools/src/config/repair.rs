//! `[repair]`: how chunks are looked after.

use gfs::data::keeper::KeeperConfig;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How chunks are looked after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RepairConfig {
    /// Seconds that a node may be away until its copies are made anew elsewhere, 1 to 86,400; the voters' counts.
    pub after_s: u32,
    /// MiB per second that this node copies from others for that, 1 to 10,000.
    pub mib_per_s: u32,
    /// Seconds between two comparisons of this node's chunks with the metadata, 1 to 86,400.
    pub sweep_s: u32,
    /// Seconds between two readings of all chunks of this node, 1 to 31,536,000.
    pub scrub_s: u32,
    /// MiB per second that are read for that, 1 to 10,000.
    pub scrub_mib_per_s: u32,
}

impl Default for RepairConfig {
    fn default() -> Self {
        Self {
            after_s: 60,
            mib_per_s: 64,
            sweep_s: 300,
            scrub_s: 7 * 24 * 3600,
            scrub_mib_per_s: 16,
        }
    }
}

impl RepairConfig {
    /// Returns how long a node may be away.
    #[must_use]
    pub fn after(&self) -> Duration {
        Duration::from_secs(self.after_s.into())
    }

    /// Returns how many bytes a second are copied.
    #[must_use]
    pub fn bytes_per_s(&self) -> u64 {
        u64::from(self.mib_per_s) << 20
    }

    /// Returns how this node's store is looked after.
    #[must_use]
    pub fn keeper(&self) -> KeeperConfig {
        KeeperConfig {
            sweep_every: Duration::from_secs(self.sweep_s.into()),
            scrub_every: Duration::from_secs(self.scrub_s.into()),
            scrub_bytes_per_s: u64::from(self.scrub_mib_per_s) << 20,
        }
    }

    /// Returns the first value out of its range: which, what it is, and the range.
    pub(super) fn broken(&self) -> Option<(&'static str, u32, u32)> {
        const DAY: u32 = 86_400;
        let limits = [
            ("after_s", self.after_s, DAY),
            ("mib_per_s", self.mib_per_s, 10_000),
            ("sweep_s", self.sweep_s, DAY),
            ("scrub_s", self.scrub_s, 365 * DAY),
            ("scrub_mib_per_s", self.scrub_mib_per_s, 10_000),
        ];
        limits
            .into_iter()
            .find(|(_, value, most)| !(1..=*most).contains(value))
    }
}
