//! Answers to the kernel: what a tree returned in, the bytes of a reply out.

use super::abi::kind_bits;
use crate::error::Errno;
use crate::tree::{AttrReply, DEV_BASE, EntryReply, Hold, Lock, NO_CACHE, Opened};
use bytes::Bytes;
use consistency::wire::meta::{Attr, FileKind, Name, StatFs};
use consistency::{InodeNo, Timestamp};
use fuser::FopenFlags;
use std::time::Duration;

/// Preferred size of I/O and unit of [`StatFs`] in bytes.
const BLOCK_BYTES: u32 = 4096;
/// The same of a large file that the kernel does not cache, of which each read is a round trip to another node: programs
/// that read by the preferred size would make hundreds of them for a megabyte.
const UNCACHED_BYTES: u32 = 128 << 10;
/// Bytes of an entry: node, time-outs, attributes.
const ENTRY_BYTES: usize = 128;
/// Bytes of a reply to STATX: time-out, attributes, room for more.
const STATX_BYTES: usize = 288;
/// Bytes of a listed name without the name.
const DIRENT_BYTES: usize = 24;

/// What a request is answered with.
#[derive(Debug)]
pub(super) struct Answer {
    /// The bytes behind the header, or the errno in it.
    pub(super) body: Result<Body, Errno>,
    /// Kept until the reply is with the kernel (K1).
    pub(super) hold: Hold,
    /// What the tree has to take back if the reply does not reach the kernel.
    pub(super) given: Given,
}

/// The bytes of a reply.
#[derive(Debug)]
pub(super) enum Body {
    /// Made here.
    Fields(Vec<u8>),
    /// A tree's own, not copied.
    Data(Bytes),
}

impl Body {
    pub(super) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Fields(bytes) => bytes,
            Self::Data(bytes) => bytes,
        }
    }
}

/// References that a reply hands to the kernel.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Given {
    /// One lookup.
    pub(super) entry: Option<InodeNo>,
    /// One lookup each.
    pub(super) listed: Vec<InodeNo>,
    /// An open file.
    pub(super) opened: Option<(InodeNo, u64)>,
}

impl Answer {
    pub(super) fn done() -> Self {
        Self::fields(Vec::new())
    }

    pub(super) fn fields(bytes: Vec<u8>) -> Self {
        Self::body(Body::Fields(bytes))
    }

    pub(super) fn data(data: Bytes, hold: Hold) -> Self {
        Self {
            hold,
            ..Self::body(Body::Data(data))
        }
    }

    fn body(body: Body) -> Self {
        Self {
            body: Ok(body),
            hold: Hold::none(),
            given: Given::default(),
        }
    }

    /// Tells whether nothing has to be taken back if the reply is lost.
    pub(super) fn gives_nothing(&self) -> bool {
        self.given == Given::default()
    }

    pub(super) fn error(errno: Errno) -> Self {
        Self {
            body: Err(errno),
            hold: Hold::none(),
            given: Given::default(),
        }
    }

    /// Answers LOOKUP, where a name may be absent.
    pub(super) fn looked_up(reply: EntryReply) -> Self {
        match reply.attr {
            Some(_) => Self::made(reply),
            None => Self {
                // Node 0 is absence that the kernel may remember; ENOENT is never remembered.
                body: if reply.ttl.is_zero() {
                    Err(Errno::ENOENT)
                } else {
                    let mut fields = Fields::with_capacity(ENTRY_BYTES);
                    fields.absence(reply.ttl);
                    Ok(Body::Fields(fields.0))
                },
                hold: reply.hold,
                given: Given::default(),
            },
        }
    }

    /// Answers what makes a name. A tree that made nothing has failed.
    pub(super) fn made(reply: EntryReply) -> Self {
        let Some(attr) = reply.attr else {
            return Self::error(Errno::EIO);
        };
        let mut fields = Fields::with_capacity(ENTRY_BYTES);
        fields.entry(&attr, (reply.ttl, reply.attr_ttl));
        Self {
            body: Ok(Body::Fields(fields.0)),
            hold: reply.hold,
            given: Given {
                entry: Some(attr.ino),
                ..Given::default()
            },
        }
    }

    /// Answers CREATE.
    pub(super) fn created(reply: EntryReply, opened: Opened, flags: FopenFlags) -> Self {
        let mut answer = Self::made(reply);
        if let (Ok(Body::Fields(bytes)), Some(ino)) = (&mut answer.body, answer.given.entry) {
            let mut fields = Fields(std::mem::take(bytes));
            fields.opened(opened.fh, flags);
            *bytes = fields.0;
            answer.given.opened = Some((ino, opened.fh));
        }
        answer
    }

    /// Answers OPEN.
    pub(super) fn opened(ino: InodeNo, opened: Opened, flags: FopenFlags) -> Self {
        let mut fields = Fields::with_capacity(16);
        fields.opened(opened.fh, flags);
        let mut answer = Self::fields(fields.0);
        answer.given.opened = Some((ino, opened.fh));
        answer
    }

    /// Answers OPENDIR. The kernel keeps no listing: a page of one carries no lease.
    pub(super) fn opened_dir() -> Self {
        let mut fields = Fields::with_capacity(16);
        fields.opened(0, FopenFlags::empty());
        Self::fields(fields.0)
    }

    /// Answers GETATTR.
    pub(super) fn attr(reply: AttrReply) -> Self {
        Self::attr_for(reply.ttl, reply)
    }

    /// Answers STATX: GETATTR with the time of birth, where the tree knows it. The kernel asks by it only for what
    /// it has no attributes of, so that programs that want the birth of everything (Rust's do) cost nothing more.
    pub(super) fn statx(reply: AttrReply) -> Self {
        let mut fields = Fields::with_capacity(STATX_BYTES);
        fields.u64(reply.ttl.as_secs());
        fields.u32(reply.ttl.subsec_nanos());
        fields.0.resize(32, 0);
        fields.statx(&reply.attr);
        fields.0.resize(STATX_BYTES, 0);
        Self {
            hold: reply.hold,
            ..Self::fields(fields.0)
        }
    }

    /// Answers SETATTR. What it says is not cached: unlike a GETATTR's, the kernel takes a reply to SETATTR for new
    /// even if an invalidation came while it was under way.
    pub(super) fn attr_set(reply: AttrReply) -> Self {
        Self::attr_for(NO_CACHE, reply)
    }

    fn attr_for(ttl: Duration, reply: AttrReply) -> Self {
        let mut fields = Fields::with_capacity(104);
        fields.u64(ttl.as_secs());
        fields.u32(ttl.subsec_nanos());
        fields.u32(0);
        fields.attr(&reply.attr);
        Self {
            hold: reply.hold,
            ..Self::fields(fields.0)
        }
    }

    /// Answers WRITE.
    pub(super) fn written(bytes: u32) -> Self {
        let mut fields = Fields::with_capacity(8);
        fields.u32(bytes);
        fields.u32(0);
        Self::fields(fields.0)
    }

    /// Answers COPY_FILE_RANGE_64.
    pub(super) fn copied(bytes: u64) -> Self {
        Self::fields(bytes.to_ne_bytes().to_vec())
    }

    /// Answers LSEEK.
    pub(super) fn position(offset: u64) -> Self {
        Self::fields(offset.to_ne_bytes().to_vec())
    }

    /// Answers POLL.
    pub(super) fn polled(ready: u32) -> Self {
        let mut fields = Fields::with_capacity(8);
        fields.u32(ready);
        fields.u32(0);
        Self::fields(fields.0)
    }

    /// Answers STATFS.
    pub(super) fn statfs(room: StatFs) -> Self {
        let (total, free) = (
            room.bytes_total / u64::from(BLOCK_BYTES),
            room.bytes_free / u64::from(BLOCK_BYTES),
        );
        let mut fields = Fields::with_capacity(80);
        fields.u64(total);
        fields.u64(free);
        fields.u64(free);
        // An inode costs room only: as many are free as blocks.
        let inodes_free = room.inodes_free.unwrap_or(free);
        fields.u64(room.inodes.saturating_add(inodes_free));
        fields.u64(inodes_free);
        fields.u32(BLOCK_BYTES);
        fields.u32(255);
        fields.u32(BLOCK_BYTES);
        fields.0.resize(80, 0);
        Self::fields(fields.0)
    }

    /// Answers GETXATTR and LISTXATTR: the value, or its size where `size` is 0.
    pub(super) fn xattr(value: Bytes, size: u32) -> Self {
        if size == 0 {
            let Ok(len) = u32::try_from(value.len()) else {
                return Self::error(Errno(libc::E2BIG));
            };
            let mut fields = Fields::with_capacity(8);
            fields.u32(len);
            fields.u32(0);
            Self::fields(fields.0)
        } else if value.len() > size as usize {
            Self::error(Errno(libc::ERANGE))
        } else {
            Self::data(value, Hold::none())
        }
    }

    /// Answers GETLK: the lock in the way, if any.
    pub(super) fn lock(lock: Lock) -> Self {
        let mut fields = Fields::with_capacity(24);
        fields.u64(lock.start);
        fields.u64(lock.end);
        fields.u32(lock.kind.cast_unsigned());
        fields.u32(lock.pid);
        Self::fields(fields.0)
    }

    /// Answers IOCTL with result 0 and the bytes that go out.
    pub(super) fn ioctl(output: &[u8]) -> Self {
        let mut bytes = vec![0; 16];
        bytes.extend_from_slice(output);
        Self::fields(bytes)
    }
}

/// Fills a page of a listing.
#[derive(Debug)]
pub(super) struct Listing {
    fields: Fields,
    size: usize,
    plus: bool,
}

impl Listing {
    /// Starts a page of at most `size` bytes; with `plus` every name stands behind an entry.
    pub(super) fn new(size: u32, plus: bool) -> Self {
        Self {
            fields: Fields(Vec::new()),
            size: size as usize,
            plus,
        }
    }

    /// Returns how many names at most fit into a page.
    pub(super) fn limit(&self) -> usize {
        (self.size / self.bytes_of(1)).max(1)
    }

    fn bytes_of(&self, name_bytes: usize) -> usize {
        let entry = if self.plus { ENTRY_BYTES } else { 0 };
        entry + (DIRENT_BYTES + name_bytes).next_multiple_of(8)
    }

    /// Adds a name unless it does not fit. An entry makes the inode known to the kernel.
    pub(super) fn push(
        &mut self,
        name: &[u8],
        (ino, kind): (InodeNo, FileKind),
        cookie: u64,
        entry: Option<(&Attr, (Duration, Duration))>,
    ) -> bool {
        let end = self.fields.0.len() + self.bytes_of(name.len());
        if end > self.size {
            return false;
        }
        if self.plus {
            match entry {
                Some((attr, ttls)) => self.fields.entry(attr, ttls),
                None => self.fields.absence(NO_CACHE),
            }
        }
        self.fields.u64(ino.0);
        self.fields.u64(cookie);
        // A name has at most 255 bytes.
        self.fields
            .u32(u32::try_from(name.len()).unwrap_or(u32::MAX));
        self.fields.u32(kind_bits(kind) >> 12);
        self.fields.0.extend_from_slice(name);
        self.fields.0.resize(end, 0);
        true
    }

    /// Ends the page.
    pub(super) fn finish(self, listed: Vec<InodeNo>, holds: Vec<Hold>) -> Answer {
        Answer {
            body: Ok(Body::Fields(self.fields.0)),
            hold: if holds.is_empty() {
                Hold::none()
            } else {
                Hold::new(holds)
            },
            given: Given {
                listed,
                ..Given::default()
            },
        }
    }
}

/// Returns the names of extended attributes as listxattr(2) does, each with a NUL behind it.
pub(super) fn xattr_names(names: &[Name]) -> Bytes {
    let mut bytes = Vec::new();
    for name in names {
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(0);
    }
    bytes.into()
}

/// Writes the fields of a message one after the other.
#[derive(Debug)]
pub(super) struct Fields(pub(super) Vec<u8>);

impl Fields {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_ne_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_ne_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_ne_bytes());
    }

    pub(super) fn i64(&mut self, value: i64) {
        self.0.extend_from_slice(&value.to_ne_bytes());
    }

    /// Node, generation, time-outs of name and attributes, attributes. The attributes' time-out is 0 for all that the
    /// kernel is told to forget (policy A): a reply about an inode that it does not know yet races with its
    /// invalidation, and what it then caches would stick.
    fn entry(&mut self, attr: &Attr, (name_ttl, attr_ttl): (Duration, Duration)) {
        self.u64(attr.ino.0);
        self.u64(0);
        self.u64(name_ttl.as_secs());
        self.u64(attr_ttl.as_secs());
        self.u32(name_ttl.subsec_nanos());
        self.u32(attr_ttl.subsec_nanos());
        self.attr(attr);
    }

    /// An entry of node 0, for `ttl`.
    fn absence(&mut self, ttl: Duration) {
        let end = self.0.len() + ENTRY_BYTES;
        self.u64(0);
        self.u64(0);
        self.u64(ttl.as_secs());
        self.u64(0);
        self.u32(ttl.subsec_nanos());
        self.0.resize(end, 0);
    }

    fn attr(&mut self, attr: &Attr) {
        self.u64(attr.ino.0);
        self.u64(attr.size);
        self.u64(attr.blocks);
        self.i64(attr.atime.secs);
        self.i64(attr.mtime.secs);
        self.i64(attr.ctime.secs);
        self.u32(attr.atime.nanos);
        self.u32(attr.mtime.nanos);
        self.u32(attr.ctime.nanos);
        self.u32(kind_bits(attr.kind) | attr.mode & 0o7777);
        self.u32(attr.nlink);
        self.u32(attr.uid);
        self.u32(attr.gid);
        self.u32(attr.rdev);
        self.u32(preferred(attr));
        self.u32(0);
    }

    fn statx(&mut self, attr: &Attr) {
        let born = attr.btime != Timestamp::default();
        let birth = if born { libc::STATX_BTIME } else { 0 };
        self.u32(libc::STATX_BASIC_STATS | birth);
        self.u32(preferred(attr));
        self.u64(0);
        self.u32(attr.nlink);
        self.u32(attr.uid);
        self.u32(attr.gid);
        let mode = kind_bits(attr.kind) | attr.mode & 0o7777;
        self.u16(u16::try_from(mode).expect("the type and the permission bits fill 16 bits"));
        self.u16(0);
        self.u64(attr.ino.0);
        self.u64(attr.size);
        self.u64(attr.blocks);
        self.u64(0);
        for time in [attr.atime, attr.btime, attr.ctime, attr.mtime] {
            self.i64(time.secs);
            self.u32(time.nanos);
            self.u32(0);
        }
        // As in stat(2): 12 bits of the major number, 20 of the minor.
        self.u32(attr.rdev >> 8 & 0xfff);
        self.u32(attr.rdev & 0xff | attr.rdev >> 12 & 0xf_ff00);
    }

    fn opened(&mut self, fh: u64, flags: FopenFlags) {
        self.u64(fh);
        self.u32(flags.bits());
        self.u32(0);
    }
}

/// Returns the preferred size of I/O, a power of two.
fn preferred(attr: &Attr) -> u32 {
    let uncached = attr.ino.0 >= DEV_BASE && attr.kind == FileKind::File;
    if uncached && attr.size > u64::from(BLOCK_BYTES) {
        UNCACHED_BYTES
    } else {
        BLOCK_BYTES
    }
}
