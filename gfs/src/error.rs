//! Errors of tree operations and their errno: one exhaustive table.

use crate::net::NetError;
use consistency::wire::meta::FsError;

/// Why an operation on a tree failed, as the caller's errno.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, thiserror::Error)]
#[error("{}", nix::errno::Errno::from_raw(self.0).desc())]
pub struct Errno(pub i32);

impl Errno {
    /// Input/output error.
    pub const EIO: Self = Self(libc::EIO);
    /// Interrupted.
    pub const EINTR: Self = Self(libc::EINTR);
    /// Invalid argument.
    pub const EINVAL: Self = Self(libc::EINVAL);
    /// No such file or directory.
    pub const ENOENT: Self = Self(libc::ENOENT);
    /// The request is not known; the kernel does not ask again.
    pub const ENOSYS: Self = Self(libc::ENOSYS);
    /// Not supported by this file.
    pub const ENOTSUP: Self = Self(libc::ENOTSUP);
    /// Not a directory.
    pub const ENOTDIR: Self = Self(libc::ENOTDIR);
    /// Permission denied.
    pub const EACCES: Self = Self(libc::EACCES);
    /// Operation not permitted.
    pub const EPERM: Self = Self(libc::EPERM);
    /// No such process.
    pub const ESRCH: Self = Self(libc::ESRCH);
    /// Inappropriate ioctl for device.
    pub const ENOTTY: Self = Self(libc::ENOTTY);
    /// Name not known to the tree any more.
    pub const ESTALE: Self = Self(libc::ESTALE);
    /// Quota exceeded.
    pub const EDQUOT: Self = Self(libc::EDQUOT);
    /// Crosses trees.
    pub const EXDEV: Self = Self(libc::EXDEV);
}

impl From<FsError> for Errno {
    fn from(error: FsError) -> Self {
        Self(match error {
            FsError::NotFound => libc::ENOENT,
            FsError::Exists => libc::EEXIST,
            FsError::NotDir => libc::ENOTDIR,
            FsError::IsDir => libc::EISDIR,
            FsError::NotEmpty => libc::ENOTEMPTY,
            FsError::Invalid => libc::EINVAL,
            FsError::NameTooLong => libc::ENAMETOOLONG,
            FsError::TooManyLinks => libc::EMLINK,
            FsError::TooLarge => libc::EFBIG,
            FsError::NotPermitted => libc::EPERM,
            FsError::Access => libc::EACCES,
            FsError::NoData => libc::ENODATA,
            FsError::AttrTooLarge => libc::E2BIG,
            FsError::NoSpace => libc::ENOSPC,
            FsError::Quota => libc::EDQUOT,
            FsError::ReadOnly => libc::EROFS,
            FsError::Busy => libc::EBUSY,
            FsError::CrossDevice => libc::EXDEV,
            FsError::NotSupported => libc::EOPNOTSUPP,
            FsError::Stale => libc::ESTALE,
            FsError::Interrupted => libc::EINTR,
            FsError::Io => libc::EIO,
            FsError::Locked => libc::EAGAIN,
            FsError::Deadlock => libc::EDEADLK,
            FsError::TooManyLocks => libc::ENOLCK,
        })
    }
}

impl From<NetError> for Errno {
    fn from(error: NetError) -> Self {
        match error {
            // The deadline of the mount has passed (S5): never old data, an error instead.
            NetError::Deadline { .. }
            | NetError::Unreachable { .. }
            | NetError::Malformed { .. } => Self::EIO,
        }
    }
}
