//! The numbers of the FUSE protocol, and a reader of its messages that checks every bound.
//!
//! All integers are in host order; a structure is read and written field by field, so nothing here depends on how
//! the compiler lays out memory.

use crate::error::Errno;
use consistency::wire::meta::{FileKind, FsError, Name};

/// Major version of the protocol spoken here.
pub(super) const MAJOR: u32 = 7;
/// Newest minor version whose messages are understood here.
pub(super) const MINOR_MAX: u32 = 44;
/// Oldest minor version spoken (Linux 5.17): the first with a second word of INIT flags.
pub(super) const MINOR_MIN: u32 = 36;

/// Bytes of the header before every request.
pub(super) const IN_HEADER_BYTES: usize = 40;
/// Bytes of the header before every reply and notification.
pub(super) const OUT_HEADER_BYTES: usize = 16;

/// What a request asks for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Opcode(pub u32);

macro_rules! opcodes {
    ($($name:ident = $number:literal),* $(,)?) => {
        impl Opcode {
            $(
                #[allow(dead_code, reason = "the table is the protocol's, whole")]
                pub(super) const $name: Self = Self($number);
            )*

            /// Returns the protocol's name of the operation.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self.0 {
                    $($number => stringify!($name),)*
                    _ => "UNKNOWN",
                }
            }
        }
    };
}

opcodes! {
    LOOKUP = 1, FORGET = 2, GETATTR = 3, SETATTR = 4, READLINK = 5, SYMLINK = 6, MKNOD = 8, MKDIR = 9, UNLINK = 10,
    RMDIR = 11, RENAME = 12, LINK = 13, OPEN = 14, READ = 15, WRITE = 16, STATFS = 17, RELEASE = 18, FSYNC = 20,
    SETXATTR = 21, GETXATTR = 22, LISTXATTR = 23, REMOVEXATTR = 24, FLUSH = 25, INIT = 26, OPENDIR = 27,
    READDIR = 28, RELEASEDIR = 29, FSYNCDIR = 30, GETLK = 31, SETLK = 32, SETLKW = 33, ACCESS = 34, CREATE = 35,
    INTERRUPT = 36, BMAP = 37, DESTROY = 38, IOCTL = 39, POLL = 40, NOTIFY_REPLY = 41, BATCH_FORGET = 42,
    FALLOCATE = 43, READDIRPLUS = 44, RENAME2 = 45, LSEEK = 46, COPY_FILE_RANGE = 47, SETUPMAPPING = 48,
    REMOVEMAPPING = 49, SYNCFS = 50, TMPFILE = 51, STATX = 52, COPY_FILE_RANGE_64 = 53,
}

impl std::fmt::Debug for Opcode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}({})", self.name(), self.0)
    }
}

/// Kinds of notification, the messages that the daemon starts.
pub(super) mod notify {
    pub(in crate::fuse) const POLL: i32 = 1;
    pub(in crate::fuse) const INVAL_INODE: i32 = 2;
    pub(in crate::fuse) const INVAL_ENTRY: i32 = 3;
    pub(in crate::fuse) const STORE: i32 = 4;
    pub(in crate::fuse) const INC_EPOCH: i32 = 8;
}

/// Bit of `setxattr_flags` in SETXATTR.
pub(super) const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;

/// Bits of `valid` in SETATTR.
pub(super) mod fattr {
    pub(in crate::fuse) const MODE: u32 = 1 << 0;
    pub(in crate::fuse) const UID: u32 = 1 << 1;
    pub(in crate::fuse) const GID: u32 = 1 << 2;
    pub(in crate::fuse) const SIZE: u32 = 1 << 3;
    pub(in crate::fuse) const ATIME: u32 = 1 << 4;
    pub(in crate::fuse) const MTIME: u32 = 1 << 5;
    pub(in crate::fuse) const FH: u32 = 1 << 6;
    pub(in crate::fuse) const ATIME_NOW: u32 = 1 << 7;
    pub(in crate::fuse) const MTIME_NOW: u32 = 1 << 8;
    pub(in crate::fuse) const KILL_SUIDGID: u32 = 1 << 11;
}

/// POLL wants to be told when its answer changes.
pub(super) const POLL_SCHEDULE_NOTIFY: u32 = 1 << 0;
/// GETATTR carries a file handle.
pub(super) const GETATTR_FH: u32 = 1 << 0;
/// FSYNC is an fdatasync.
pub(super) const FSYNC_FDATASYNC: u32 = 1 << 0;

/// Why bytes are no message this module understands, or one that it refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    /// The message ends before its fields do.
    #[error("message is too short for its {0}")]
    Short(&'static str),
    /// A string does not end.
    #[error("name without an end")]
    Endless,
    /// A name that a tree cannot have.
    #[error("bad name: {0}")]
    Name(FsError),
    /// A field with a value that means nothing here.
    #[error("bad value of {0}")]
    Value(&'static str),
    /// A command whose arguments do not travel.
    #[error("ioctl that does not say how much it carries")]
    Ioctl,
}

impl Malformed {
    /// Returns what the caller of the system call is told.
    pub(super) fn errno(self) -> Errno {
        match self {
            Self::Short(_) | Self::Endless => Errno::EIO,
            Self::Name(error) => error.into(),
            Self::Value(_) => Errno::EINVAL,
            Self::Ioctl => Errno::ENOTTY,
        }
    }
}

/// Reads the fields of a message one after the other.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Malformed> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(Malformed::Short(what))?;
        self.rest = rest;
        Ok(*head)
    }

    pub(super) fn u16(&mut self, what: &'static str) -> Result<u16, Malformed> {
        self.array(what).map(u16::from_ne_bytes)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        self.array(what).map(u32::from_ne_bytes)
    }

    pub(super) fn i32(&mut self, what: &'static str) -> Result<i32, Malformed> {
        self.array(what).map(i32::from_ne_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, Malformed> {
        self.array(what).map(u64::from_ne_bytes)
    }

    pub(super) fn i64(&mut self, what: &'static str) -> Result<i64, Malformed> {
        self.array(what).map(i64::from_ne_bytes)
    }

    /// Passes over `bytes` bytes without a meaning here.
    pub(super) fn skip(&mut self, bytes: usize) -> Result<(), Malformed> {
        self.bytes(bytes, "padding").map(drop)
    }

    /// Returns the next `len` bytes.
    pub(super) fn bytes(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(Malformed::Short(what))?;
        self.rest = rest;
        Ok(head)
    }

    /// Returns the bytes before the next NUL and passes over it.
    pub(super) fn string(&mut self) -> Result<&'a [u8], Malformed> {
        let end = self
            .rest
            .iter()
            .position(|byte| *byte == 0)
            .ok_or(Malformed::Endless)?;
        let string = self.bytes(end, "string")?;
        self.skip(1)?;
        Ok(string)
    }

    /// Reads a name, 1 to 255 bytes.
    pub(super) fn name(&mut self) -> Result<Name, Malformed> {
        let bytes = bytes::Bytes::copy_from_slice(self.string()?);
        Name::new(bytes).map_err(Malformed::Name)
    }
}

/// Returns the file type bits of a mode (S_IFMT).
pub(super) const fn kind_bits(kind: FileKind) -> u32 {
    match kind {
        FileKind::File => libc::S_IFREG,
        FileKind::Dir => libc::S_IFDIR,
        FileKind::Symlink => libc::S_IFLNK,
        FileKind::Fifo => libc::S_IFIFO,
        FileKind::Socket => libc::S_IFSOCK,
        FileKind::Char => libc::S_IFCHR,
        FileKind::Block => libc::S_IFBLK,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_never_reads_past_the_end() {
        let mut reader = Reader::new(&[1, 0, 0, 0, 2]);
        assert_eq!(reader.u32("first"), Ok(1));
        assert_eq!(reader.u32("second"), Err(Malformed::Short("second")));
        assert_eq!(reader.bytes(1, "tail"), Ok(&[2][..]));
        assert_eq!(reader.skip(1), Err(Malformed::Short("padding")));
    }

    #[test]
    fn names_are_checked() {
        let check = |bytes: &[u8], expected: Result<&[u8], Malformed>| {
            let got = Reader::new(bytes).name();
            assert_eq!(got.as_ref().map(Name::as_bytes), expected.as_ref().copied());
        };
        check(b"a\0", Ok(b"a"));
        check(b"a b\xff\0rest", Ok(b"a b\xff"));
        check(b"a", Err(Malformed::Endless));
        check(b"\0", Err(Malformed::Name(FsError::Invalid)));
        check(b"..\0", Err(Malformed::Name(FsError::Invalid)));
        check(b"a/b\0", Err(Malformed::Name(FsError::Invalid)));
        let long = |len: usize| [vec![b'x'; len], vec![0]].concat();
        check(&long(255), Ok(&[b'x'; 255]));
        check(&long(256), Err(Malformed::Name(FsError::NameTooLong)));
    }
}
