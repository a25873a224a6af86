//! Requests of the kernel: bytes in, a typed [`Request`] out.

use super::abi::{self, IN_HEADER_BYTES, Malformed, Opcode, Reader, fattr};
use crate::error::Errno;
use crate::tree::{Caller, FileAt, Lock, NewMode, OpenFlags, SetAttrRequest, TimeOrNow};
use bytes::Bytes;
use consistency::wire::meta::{
    FileKind, FsError, Name, NewNode, RenameMode, TARGET_BYTES_MAX, XattrMode,
};
use consistency::{InodeNo, Timestamp};
use fuser::consts::FUSE_LK_FLOCK;
use fuser::{IoctlFlags, RenameFlags, WriteFlags};

/// What every request says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Names the request until its reply; the kernel never uses a number twice.
    pub(super) unique: u64,
    /// What is asked for.
    pub(super) opcode: Opcode,
    /// The inode it is about (the parent, where there is a name).
    pub(super) ino: InodeNo,
    /// Who asks.
    pub(super) caller: Caller,
}

/// A request with its arguments.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) header: Header,
    pub(super) operation: Operation,
}

/// What INIT offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) max_readahead: u32,
    /// Both words of flags.
    pub(super) flags: u64,
}

/// A lock request's arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LockRequest {
    pub(super) fh: u64,
    pub(super) owner: u64,
    pub(super) lock: Lock,
    pub(super) flock: bool,
}

/// The operations, with what the trees want to know of their arguments.
#[derive(Debug)]
pub(super) enum Operation {
    Init(Offer),
    Destroy,
    Interrupt {
        unique: u64,
    },
    Forget(Vec<(InodeNo, u64)>),
    Lookup {
        name: Name,
    },
    Getattr {
        fh: Option<u64>,
    },
    /// The same with the time of birth.
    Statx {
        fh: Option<u64>,
    },
    Setattr(SetAttrRequest),
    Readlink,
    Make {
        name: Name,
        node: NewNode,
        mode: NewMode,
    },
    Create {
        name: Name,
        mode: NewMode,
        flags: OpenFlags,
    },
    Tmpfile {
        mode: NewMode,
        flags: OpenFlags,
    },
    Link {
        ino: InodeNo,
        name: Name,
    },
    Unlink {
        name: Name,
        dir: bool,
    },
    Rename {
        name: Name,
        new_parent: InodeNo,
        new_name: Name,
        mode: RenameMode,
    },
    Open {
        flags: OpenFlags,
    },
    Read {
        fh: u64,
        offset: u64,
        size: u32,
        flags: OpenFlags,
    },
    Write {
        fh: u64,
        offset: u64,
        data: Bytes,
        flags: OpenFlags,
        from_cache: bool,
        kill_suidgid: bool,
    },
    Flush {
        fh: u64,
        lock_owner: u64,
    },
    Release {
        fh: u64,
    },
    Fsync {
        fh: u64,
        data_only: bool,
    },
    Fallocate {
        fh: u64,
        offset: u64,
        len: u64,
        mode: i32,
    },
    CopyFileRange {
        from: FileAt,
        to: FileAt,
        len: u64,
        /// The reply has 64 bits.
        wide: bool,
    },
    Lseek {
        fh: u64,
        offset: u64,
        whence: i32,
    },
    Opendir,
    Readdir {
        offset: u64,
        size: u32,
        plus: bool,
    },
    Releasedir,
    Fsyncdir,
    Statfs,
    Getxattr {
        name: Name,
        size: u32,
    },
    Listxattr {
        size: u32,
    },
    Setxattr {
        name: Name,
        value: Bytes,
        mode: XattrMode,
        kill_sgid: bool,
    },
    Removexattr {
        name: Name,
    },
    Getlk(LockRequest),
    Setlk {
        request: LockRequest,
        wait: bool,
    },
    Ioctl {
        fh: u64,
        command: u32,
        input: Bytes,
        out_size: u32,
    },
    Poll {
        fh: u64,
        /// Whom to wake when the answer changes.
        wake: Option<u64>,
    },
    /// Nothing this layer or any tree does; the kernel is told so once and for all (ENOSYS).
    Unsupported,
}

impl Operation {
    /// Returns the inode whose size this may change, `ino` being that of the request.
    pub(super) fn resizes(&self, ino: InodeNo) -> Option<InodeNo> {
        match self {
            Self::Write { from_cache, .. } => (!from_cache).then_some(ino),
            Self::Setattr(set) => set.size.map(|_| ino),
            Self::Fallocate { .. } => Some(ino),
            Self::CopyFileRange { to, .. } => Some(to.ino),
            _ => None,
        }
    }
}

/// A request that got no further than decoding.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) header: Header,
    pub(super) why: Malformed,
}

impl Refused {
    /// Returns what the caller of the system call is told.
    pub(super) fn errno(&self) -> Errno {
        match (self.header.opcode, self.why) {
            // An attribute whose name cannot exist does not exist.
            (Opcode::GETXATTR | Opcode::REMOVEXATTR, Malformed::Name(FsError::Invalid)) => {
                Errno(libc::ENODATA)
            }
            (_, why) => why.errno(),
        }
    }
}

/// Reads a request's header and returns the bytes that follow it.
pub(super) fn header(bytes: &[u8]) -> Result<(Header, Reader<'_>), Malformed> {
    let mut fields = Reader::new(bytes);
    let len = fields.u32("header")? as usize;
    let opcode = Opcode(fields.u32("header")?);
    let unique = fields.u64("header")?;
    let ino = InodeNo(fields.u64("header")?);
    let (uid, gid, pid) = (
        fields.u32("header")?,
        fields.u32("header")?,
        fields.u32("header")?,
    );
    // Extensions stand behind the arguments, in units of 8 bytes; none was asked for in INIT.
    let extensions = usize::from(fields.u16("header")?) * 8;
    let arguments = bytes
        .get(IN_HEADER_BYTES..len.saturating_sub(extensions))
        .ok_or(Malformed::Short("length"))?;
    let header = Header {
        unique,
        opcode,
        ino,
        caller: Caller { uid, gid, pid },
    };
    Ok((header, Reader::new(arguments)))
}

/// Reads a request's arguments.
pub(super) fn decode(header: Header, arguments: Reader<'_>) -> Result<Request, Refused> {
    match operation(&header, arguments) {
        Ok(operation) => Ok(Request { header, operation }),
        Err(why) => Err(Refused { header, why }),
    }
}

fn operation(header: &Header, mut a: Reader<'_>) -> Result<Operation, Malformed> {
    Ok(match header.opcode {
        Opcode::INIT => {
            let (major, minor) = (a.u32("major")?, a.u32("minor")?);
            let (max_readahead, low) = (a.u32("max_readahead")?, a.u32("flags")?);
            let high = if minor >= abi::MINOR_MIN {
                a.u32("flags2")?
            } else {
                0
            };
            Operation::Init(Offer {
                major,
                minor,
                max_readahead,
                flags: u64::from(low) | u64::from(high) << 32,
            })
        }
        Opcode::DESTROY => Operation::Destroy,
        Opcode::INTERRUPT => Operation::Interrupt {
            unique: a.u64("unique")?,
        },
        Opcode::FORGET => Operation::Forget(vec![(header.ino, a.u64("nlookup")?)]),
        Opcode::BATCH_FORGET => {
            let count = a.u32("count")?;
            a.skip(4)?;
            let one = |_| Ok((InodeNo(a.u64("nodeid")?), a.u64("nlookup")?));
            Operation::Forget((0..count).map(one).collect::<Result<_, Malformed>>()?)
        }
        Opcode::LOOKUP => Operation::Lookup { name: a.name()? },
        Opcode::GETATTR => {
            let flags = a.u32("getattr_flags")?;
            a.skip(4)?;
            let fh = a.u64("fh")?;
            Operation::Getattr {
                fh: (flags & abi::GETATTR_FH != 0).then_some(fh),
            }
        }
        // What is asked for does not matter: the reply says everything there is.
        Opcode::STATX => {
            let flags = a.u32("getattr_flags")?;
            a.skip(4)?;
            let fh = a.u64("fh")?;
            Operation::Statx {
                fh: (flags & abi::GETATTR_FH != 0).then_some(fh),
            }
        }
        Opcode::SETATTR => Operation::Setattr(setattr(a)?),
        Opcode::READLINK => Operation::Readlink,
        Opcode::SYMLINK => {
            let name = a.name()?;
            let target = a.string()?;
            if target.is_empty() || target.len() > TARGET_BYTES_MAX {
                return Err(Malformed::Name(FsError::NameTooLong));
            }
            Operation::Make {
                name,
                node: NewNode::Symlink(Bytes::copy_from_slice(target)),
                mode: new_mode(0o777, 0),
            }
        }
        Opcode::MKNOD => {
            let (mode, rdev, umask) = (a.u32("mode")?, a.u32("rdev")?, a.u32("umask")?);
            a.skip(4)?;
            let kind = match mode & libc::S_IFMT {
                0 | libc::S_IFREG => FileKind::File,
                libc::S_IFIFO => FileKind::Fifo,
                libc::S_IFSOCK => FileKind::Socket,
                libc::S_IFCHR => FileKind::Char,
                libc::S_IFBLK => FileKind::Block,
                _ => return Err(Malformed::Value("the file type")),
            };
            Operation::Make {
                name: a.name()?,
                node: match kind {
                    FileKind::File => NewNode::File,
                    kind => NewNode::Special { kind, rdev },
                },
                mode: new_mode(mode, umask),
            }
        }
        Opcode::MKDIR => {
            let mode = new_mode(a.u32("mode")?, a.u32("umask")?);
            Operation::Make {
                name: a.name()?,
                node: NewNode::Dir,
                mode,
            }
        }
        Opcode::CREATE => {
            let flags = a.i32("flags")?;
            let mode = new_mode(a.u32("mode")?, a.u32("umask")?);
            a.skip(4)?;
            Operation::Create {
                name: a.name()?,
                mode,
                flags: OpenFlags(flags),
            }
        }
        // A name follows that is none.
        Opcode::TMPFILE => Operation::Tmpfile {
            flags: OpenFlags(a.i32("flags")?),
            mode: new_mode(a.u32("mode")?, a.u32("umask")?),
        },
        Opcode::LINK => Operation::Link {
            ino: InodeNo(a.u64("oldnodeid")?),
            name: a.name()?,
        },
        Opcode::UNLINK => Operation::Unlink {
            name: a.name()?,
            dir: false,
        },
        Opcode::RMDIR => Operation::Unlink {
            name: a.name()?,
            dir: true,
        },
        Opcode::RENAME | Opcode::RENAME2 => {
            let new_parent = InodeNo(a.u64("newdir")?);
            let mut flags = 0;
            if header.opcode == Opcode::RENAME2 {
                flags = a.u32("flags")?;
                a.skip(4)?;
            }
            Operation::Rename {
                mode: rename_mode(flags)?,
                name: a.name()?,
                new_parent,
                new_name: a.name()?,
            }
        }
        Opcode::OPEN => Operation::Open {
            flags: OpenFlags(a.i32("flags")?),
        },
        Opcode::READ => {
            let (fh, offset, size) = (a.u64("fh")?, a.u64("offset")?, a.u32("size")?);
            a.skip(12)?;
            Operation::Read {
                fh,
                offset,
                size,
                flags: OpenFlags(a.i32("flags")?),
            }
        }
        Opcode::WRITE => {
            let (fh, offset, size) = (a.u64("fh")?, a.u64("offset")?, a.u32("size")?);
            let how = WriteFlags::from_bits_truncate(a.u32("write_flags")?);
            a.skip(8)?;
            let flags = OpenFlags(a.i32("flags")?);
            a.skip(4)?;
            Operation::Write {
                fh,
                offset,
                data: Bytes::copy_from_slice(a.bytes(size as usize, "data")?),
                flags,
                from_cache: how.contains(WriteFlags::FUSE_WRITE_CACHE),
                kill_suidgid: how.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
            }
        }
        Opcode::FLUSH => {
            let fh = a.u64("fh")?;
            a.skip(8)?;
            Operation::Flush {
                fh,
                lock_owner: a.u64("lock_owner")?,
            }
        }
        Opcode::RELEASE => Operation::Release { fh: a.u64("fh")? },
        Opcode::FSYNC => Operation::Fsync {
            fh: a.u64("fh")?,
            data_only: a.u32("fsync_flags")? & abi::FSYNC_FDATASYNC != 0,
        },
        Opcode::FALLOCATE => Operation::Fallocate {
            fh: a.u64("fh")?,
            offset: a.u64("offset")?,
            len: a.u64("length")?,
            mode: a.i32("mode")?,
        },
        Opcode::COPY_FILE_RANGE | Opcode::COPY_FILE_RANGE_64 => {
            let from = FileAt {
                ino: header.ino,
                handle: a.u64("fh_in")?,
                offset: a.u64("off_in")?,
            };
            let to = FileAt {
                ino: InodeNo(a.u64("nodeid_out")?),
                handle: a.u64("fh_out")?,
                offset: a.u64("off_out")?,
            };
            let (len, flags) = (a.u64("len")?, a.u64("flags")?);
            if flags != 0 {
                return Err(Malformed::Value("the flags of copy_file_range"));
            }
            let wide = header.opcode == Opcode::COPY_FILE_RANGE_64;
            // The old reply has room for so many.
            let len = if wide {
                len
            } else {
                len.min(u64::from(u32::MAX))
            };
            Operation::CopyFileRange {
                from,
                to,
                len,
                wide,
            }
        }
        Opcode::LSEEK => Operation::Lseek {
            fh: a.u64("fh")?,
            offset: a.u64("offset")?,
            whence: a.i32("whence")?,
        },
        Opcode::OPENDIR => Operation::Opendir,
        Opcode::READDIR | Opcode::READDIRPLUS => {
            a.skip(8)?;
            Operation::Readdir {
                offset: a.u64("offset")?,
                size: a.u32("size")?,
                plus: header.opcode == Opcode::READDIRPLUS,
            }
        }
        Opcode::RELEASEDIR => Operation::Releasedir,
        Opcode::FSYNCDIR => Operation::Fsyncdir,
        Opcode::STATFS => Operation::Statfs,
        Opcode::GETXATTR => {
            let size = a.u32("size")?;
            a.skip(4)?;
            Operation::Getxattr {
                name: a.name()?,
                size,
            }
        }
        Opcode::LISTXATTR => Operation::Listxattr {
            size: a.u32("size")?,
        },
        Opcode::SETXATTR => {
            let (size, flags) = (a.u32("size")?, a.i32("flags")?);
            let mode = match flags {
                0 => XattrMode::Any,
                libc::XATTR_CREATE => XattrMode::Create,
                libc::XATTR_REPLACE => XattrMode::Replace,
                _ => return Err(Malformed::Value("the flags of setxattr")),
            };
            let kill_sgid = a.u32("setxattr_flags")? & abi::SETXATTR_ACL_KILL_SGID != 0;
            a.u32("padding")?;
            Operation::Setxattr {
                name: a.name()?,
                value: Bytes::copy_from_slice(a.bytes(size as usize, "value")?),
                mode,
                kill_sgid,
            }
        }
        Opcode::REMOVEXATTR => Operation::Removexattr { name: a.name()? },
        Opcode::GETLK => Operation::Getlk(lock(a)?),
        Opcode::SETLK | Opcode::SETLKW => Operation::Setlk {
            request: lock(a)?,
            wait: header.opcode == Opcode::SETLKW,
        },
        Opcode::IOCTL => {
            let fh = a.u64("fh")?;
            let flags = IoctlFlags::from_bits_truncate(a.u32("flags")?);
            let command = a.u32("cmd")?;
            a.skip(8)?;
            let (in_size, out_size) = (a.u32("in_size")?, a.u32("out_size")?);
            let input = Bytes::copy_from_slice(a.bytes(in_size as usize, "input")?);
            // Only commands that say in their number how much they carry arrive with their data. Any other would
            // be answered with garbage, and TCGETS with success makes isatty() true.
            if (in_size == 0 && out_size == 0) || flags.contains(IoctlFlags::FUSE_IOCTL_COMPAT) {
                return Err(Malformed::Ioctl);
            }
            Operation::Ioctl {
                fh,
                command,
                input,
                out_size,
            }
        }
        Opcode::POLL => {
            let (fh, waiter) = (a.u64("fh")?, a.u64("kh")?);
            let flags = a.u32("flags")?;
            Operation::Poll {
                fh,
                wake: (flags & abi::POLL_SCHEDULE_NOTIFY != 0).then_some(waiter),
            }
        }
        _ => Operation::Unsupported,
    })
}

const fn new_mode(mode: u32, umask: u32) -> NewMode {
    NewMode {
        mode: mode & 0o7777,
        umask: umask & 0o777,
    }
}

fn setattr(mut a: Reader<'_>) -> Result<SetAttrRequest, Malformed> {
    let valid = a.u32("valid")?;
    a.skip(4)?;
    let (fh, size) = (a.u64("fh")?, a.u64("size")?);
    a.skip(8)?;
    let (atime, mtime) = (a.i64("atime")?, a.i64("mtime")?);
    a.skip(8)?;
    let (atime_nanos, mtime_nanos) = (a.u32("atimensec")?, a.u32("mtimensec")?);
    a.skip(4)?;
    let mode = a.u32("mode")?;
    a.skip(4)?;
    let (uid, gid) = (a.u32("uid")?, a.u32("gid")?);

    let has = |bit: u32| valid & bit != 0;
    let time = |set, now, secs, nanos| {
        if has(now) {
            Ok(Some(TimeOrNow::Now))
        } else if !has(set) {
            Ok(None)
        } else if nanos < 1_000_000_000 {
            Ok(Some(TimeOrNow::At(Timestamp { secs, nanos })))
        } else {
            Err(Malformed::Value("nanoseconds"))
        }
    };
    Ok(SetAttrRequest {
        mode: has(fattr::MODE).then_some(mode & 0o7777),
        uid: has(fattr::UID).then_some(uid),
        gid: has(fattr::GID).then_some(gid),
        size: has(fattr::SIZE).then_some(size),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, atime, atime_nanos)?,
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, mtime, mtime_nanos)?,
        fh: has(fattr::FH).then_some(fh),
        kill_suidgid: has(fattr::KILL_SUIDGID),
    })
}

fn rename_mode(bits: u32) -> Result<RenameMode, Malformed> {
    match RenameFlags::from_bits(bits) {
        Some(flags) if flags.is_empty() => Ok(RenameMode::Replace),
        Some(RenameFlags::RENAME_NOREPLACE) => Ok(RenameMode::NoReplace),
        Some(RenameFlags::RENAME_EXCHANGE) => Ok(RenameMode::Exchange),
        _ => Err(Malformed::Value("the flags of renameat2")),
    }
}

fn lock(mut a: Reader<'_>) -> Result<LockRequest, Malformed> {
    Ok(LockRequest {
        fh: a.u64("fh")?,
        owner: a.u64("owner")?,
        lock: Lock {
            start: a.u64("start")?,
            end: a.u64("end")?,
            kind: a.i32("type")?,
            pid: a.u32("pid")?,
        },
        flock: a.u32("lk_flags")? & FUSE_LK_FLOCK != 0,
    })
}

#[cfg(test)]
mod tests;
