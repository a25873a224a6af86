//! Where a device is below its node's `/dev`.

use bytes::Bytes;
use consistency::wire::meta::{FsError, Name};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Upper limit of the names in a path.
pub const DEPTH_MAX: usize = 16;
/// Upper limit of a path's length in bytes.
pub const PATH_BYTES_MAX: usize = 1024;

/// Names joined by `/`; empty for `/dev` itself. No name is `.` or `..`, so a path never leads out by itself; that
/// symbolic links do not either, the lookup takes care of.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Bytes", into = "Bytes")]
pub struct DevPath(Bytes);

impl DevPath {
    /// Returns the path of a name in this directory.
    ///
    /// # Errors
    /// [`FsError::NameTooLong`] if it is too long or too deep.
    pub fn join(&self, name: &Name) -> Result<Self, FsError> {
        let joined = if self.0.is_empty() {
            Bytes::copy_from_slice(name.as_bytes())
        } else {
            [&self.0[..], b"/", name.as_bytes()].concat().into()
        };
        Self::try_from(joined)
    }

    /// Returns how many names it has.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.names().count()
    }

    /// Returns its first name.
    #[must_use]
    pub fn first(&self) -> Option<&[u8]> {
        self.names().next()
    }

    /// Returns it for the system, relative to `/dev`.
    #[must_use]
    pub fn relative(&self) -> &Path {
        if self.0.is_empty() {
            Path::new(".")
        } else {
            Path::new(OsStr::from_bytes(&self.0))
        }
    }

    fn names(&self) -> impl Iterator<Item = &[u8]> {
        let names = self.0.split(|&byte| byte == b'/');
        names.filter(|name| !name.is_empty())
    }
}

impl TryFrom<Bytes> for DevPath {
    type Error = FsError;

    fn try_from(bytes: Bytes) -> Result<Self, FsError> {
        let path = Self(bytes);
        if path.0.len() > PATH_BYTES_MAX || path.depth() > DEPTH_MAX {
            return Err(FsError::NameTooLong);
        }
        if !path.0.is_empty() {
            for name in path.0.split(|&byte| byte == b'/') {
                Name::new(Bytes::copy_from_slice(name))?;
            }
        }
        Ok(path)
    }
}

impl From<DevPath> for Bytes {
    fn from(path: DevPath) -> Self {
        path.0
    }
}

impl fmt::Debug for DevPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &'static str, depth: Option<usize>) {
        let read = DevPath::try_from(Bytes::from_static(path.as_bytes()));
        assert_eq!(read.ok().map(|path| path.depth()), depth, "{path}");
    }

    #[test]
    fn what_is_a_path() {
        check("", Some(0));
        check("null", Some(1));
        check("pts/0", Some(2));
        for bad in [
            "/", "/dev", "a/", "a//b", ".", "..", "a/../..", "a/./b", "a\0b",
        ] {
            check(bad, None);
        }
        check("a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a", Some(16));
        check("a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a/a", None);
        let name = Name::new(vec![b'x'; 255]).expect("valid");
        let mut path = DevPath::default();
        for _ in 0..4 {
            path = path.join(&name).expect("fits");
        }
        assert_eq!(path.join(&name), Err(FsError::NameTooLong));
    }
}
