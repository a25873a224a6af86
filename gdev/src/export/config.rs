//! `[root]`: which of a node's directories the others see.

use crate::path::FilePath;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Upper limit of the exported directories of one node: each is looked at for every path.
pub const EXPORTS_MAX: usize = 64;

/// What other nodes see at `/cluster/node<N>/root`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RootConfig {
    /// Directories that are shown, each with one file system; absolute. None by default.
    pub export: Vec<PathBuf>,
    /// Nothing in them can be changed by others, nor through `/cluster` by this node.
    pub read_only: bool,
}

impl RootConfig {
    /// Returns what is wrong, and what to do.
    #[must_use]
    pub fn broken(&self, mount_point: &Path) -> Option<String> {
        if self.export.len() > EXPORTS_MAX {
            let count = self.export.len();
            return Some(format!(
                "{count} directories are exported: choose {EXPORTS_MAX} at most"
            ));
        }
        self.export.iter().find_map(|dir| {
            let shown = dir.display();
            if path_of(dir).is_none() {
                return Some(format!(
                    "{shown} cannot be exported: name a directory by an absolute path without `.` and `..`"
                ));
            }
            dir.starts_with(mount_point).then(|| {
                format!("{shown} is seen by all nodes: directories of the cluster are not exported")
            })
        })
    }
}

/// Returns where an exported directory lies below `root`.
pub(super) fn path_of(dir: &Path) -> Option<FilePath> {
    let bytes = dir.as_os_str().as_bytes().strip_prefix(b"/")?;
    let bytes = bytes.strip_suffix(b"/").unwrap_or(bytes);
    FilePath::try_from(Bytes::copy_from_slice(bytes)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_exported() {
        let check = |dir: &str, expected: Option<&str>| {
            let config = RootConfig {
                export: vec![dir.into()],
                read_only: false,
            };
            let broken = config.broken(Path::new("/cluster"));
            match expected {
                None => assert_eq!(broken, None, "{dir}"),
                Some(words) => assert!(broken.expect(dir).contains(words), "{dir}"),
            }
        };
        for good in ["/", "/home", "/srv/data/", "/clusters"] {
            check(good, None);
        }
        for bad in ["home", "", "/a/../b", "//home", "/a//b"] {
            check(bad, Some("absolute path"));
        }
        for own in ["/cluster", "/cluster/home"] {
            check(own, Some("seen by all nodes"));
        }
        let many = RootConfig {
            export: vec!["/a".into(); EXPORTS_MAX + 1],
            read_only: false,
        };
        assert!(many.broken(Path::new("/cluster")).is_some());
    }
}
