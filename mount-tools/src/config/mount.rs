//! `[mount]`: how the node's tree is mounted.

use gfs::fuse::MountOptions;
use serde::{Deserialize, Serialize};

/// How the node's tree is mounted; mounts made of it with `mount -t glu` have flags of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MountConfig {
    /// Nothing can be changed on this node, through no mount of it.
    pub ro: bool,
    /// Nothing can be executed.
    pub noexec: bool,
    /// Setuid and setgid bits do nothing.
    pub nosuid: bool,
    /// Device nodes do nothing.
    pub nodev: bool,
    /// Reads leave times of access as they are.
    pub noatime: bool,
    /// Requests wait for the cluster for ever instead of `request_timeout_s`.
    pub hard: bool,
}

impl Default for MountConfig {
    fn default() -> Self {
        let MountOptions {
            read_only,
            nodev,
            nosuid,
            noexec,
            ..
        } = MountOptions::default();
        Self {
            ro: read_only,
            noexec,
            nosuid,
            nodev,
            noatime: false,
            hard: false,
        }
    }
}

impl MountConfig {
    /// Returns the same for FUSE.
    #[must_use]
    pub fn options(&self) -> MountOptions {
        MountOptions {
            read_only: self.ro,
            nodev: self.nodev,
            nosuid: self.nosuid,
            noexec: self.noexec,
            ..MountOptions::default()
        }
    }
}
