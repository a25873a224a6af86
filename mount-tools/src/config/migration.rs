//! How processes move.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// `[migration]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrationConfig {
    /// CRIU 4.2 or newer: a path, or a name that is looked for in PATH. Without it processes stay where they are.
    #[serde(default = "default_criu")]
    pub criu: PathBuf,
}

impl Default for MigrationConfig {
    fn default() -> Self {
        Self {
            criu: default_criu(),
        }
    }
}

fn default_criu() -> PathBuf {
    "criu".into()
}
