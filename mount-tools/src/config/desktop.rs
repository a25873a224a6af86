//! When a node's owner works at it.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Longest time without use that can be asked for: a day.
pub(super) const IDLE_S_MAX: u32 = 86_400;

/// `[desktop]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DesktopConfig {
    /// Seconds after its last use until the node takes processes of other nodes again; 0: it always takes them.
    pub idle_s: u32,
    /// Devices whose reading is its use; a directory stands for all that is in it. Absolute.
    pub watch: Vec<PathBuf>,
    /// What other nodes have here then, and does not leave, stands still meanwhile.
    #[serde(skip_serializing_if = "is_false")]
    pub freeze: bool,
}

/// An older daemon refuses what it does not know.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde wants it")]
fn is_false(value: &bool) -> bool {
    !value
}

impl Default for DesktopConfig {
    fn default() -> Self {
        let consoles = (1..=6).map(|number| format!("/dev/tty{number}").into());
        Self {
            idle_s: 0,
            watch: consoles.collect(),
            freeze: false,
        }
    }
}
