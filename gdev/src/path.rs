//! Where a device is below its node's `/dev`, and a file below the directories that its node exports.

use bytes::Bytes;
use consistency::wire::meta::{FsError, Name};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Where a device is: devices lie shallow.
pub type DevPath = RelPath<16, 1024>;
/// Where a file is: as long as the kernel takes a path, with the NUL behind it.
pub type FilePath = RelPath<2048, 4095>;

/// Up to `NAMES` names joined by `/`, of `BYTES` bytes; empty for the directory that paths begin in. No name is `.` or
/// `..`, so a path never leads out by itself; that symbolic links do not either, the lookup takes care of.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Bytes", into = "Bytes")]
pub struct RelPath<const NAMES: usize, const BYTES: usize>(Bytes);

impl<const NAMES: usize, const BYTES: usize> RelPath<NAMES, BYTES> {
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

    /// Returns the path of the directory it lies in, and its last name; `None` for the empty one.
    #[must_use]
    pub fn split(&self) -> Option<(Self, Name)> {
        let cut = self.0.iter().rposition(|&byte| byte == b'/');
        let (dir, name) = match cut {
            Some(cut) => (self.0.slice(..cut), self.0.slice(cut + 1..)),
            None => (Bytes::new(), self.0.clone()),
        };
        Some((Self(dir), Name::new(name).ok()?))
    }

    /// Returns what comes behind `dir`, if it lies there; empty for `dir` itself.
    #[must_use]
    pub fn below(&self, dir: &Self) -> Option<Self> {
        if dir.0.is_empty() {
            return Some(self.clone());
        }
        let rest = self.0.strip_prefix(&dir.0[..])?;
        match rest.first() {
            None => Some(Self::default()),
            Some(b'/') => Some(Self(self.0.slice(dir.0.len() + 1..))),
            Some(_) => None,
        }
    }

    /// Returns the path of what lies at `path` in this directory.
    ///
    /// # Errors
    /// [`FsError::NameTooLong`] if it is too long or too deep.
    pub fn with(&self, path: &Self) -> Result<Self, FsError> {
        match (self.0.is_empty(), path.0.is_empty()) {
            (true, _) => Ok(path.clone()),
            (_, true) => Ok(self.clone()),
            _ => Self::try_from(Bytes::from([&self.0[..], b"/", &path.0].concat())),
        }
    }

    /// Returns the bounds between which all paths below this one lie, but not itself.
    #[must_use]
    pub fn range_below(&self) -> (Self, Self) {
        // The byte behind `/`.
        let bound = |last: u8| Self(Bytes::from([&self.0[..], &[last]].concat()));
        (bound(b'/'), bound(b'/' + 1))
    }

    /// Returns whether it is the directory that paths begin in.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns it for the system, relative to the directory that it begins in.
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

impl<const NAMES: usize, const BYTES: usize> TryFrom<Bytes> for RelPath<NAMES, BYTES> {
    type Error = FsError;

    fn try_from(bytes: Bytes) -> Result<Self, FsError> {
        let path = Self(bytes);
        if path.0.len() > BYTES || path.depth() > NAMES {
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

impl<const NAMES: usize, const BYTES: usize> From<RelPath<NAMES, BYTES>> for Bytes {
    fn from(path: RelPath<NAMES, BYTES>) -> Self {
        path.0
    }
}

impl<const NAMES: usize, const BYTES: usize> fmt::Debug for RelPath<NAMES, BYTES> {
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

    #[test]
    fn paths_and_directories() {
        let path = |text: &'static str| FilePath::try_from(Bytes::from_static(text.as_bytes()));
        let check = |of: &'static str, dir: &'static str, below: Option<&'static str>| {
            let (of, dir) = (path(of).expect("good"), path(dir).expect("good"));
            let below = below.map(|below| path(below).expect("good"));
            assert_eq!(of.below(&dir), below, "{of:?} in {dir:?}");
            if let Some(below) = below {
                assert_eq!(dir.with(&below), Ok(of.clone()));
                let (first, last) = dir.range_below();
                let inside = dir.is_empty() || below.is_empty() || (first < of && of < last);
                assert!(inside, "{of:?} in {dir:?}");
            }
        };
        check("home/a/b", "home", Some("a/b"));
        check("home", "home", Some(""));
        check("home/a", "", Some("home/a"));
        check("homes/a", "home", None);
        check("srv", "home", None);
        check("", "home", None);
        let split = |of: &'static str| path(of).expect("good").split();
        assert_eq!(split(""), None);
        let name = Name::new(&b"b"[..]).expect("good");
        assert_eq!(split("a/b"), Some((path("a").expect("good"), name.clone())));
        assert_eq!(split("b"), Some((FilePath::default(), name)));
    }
}
