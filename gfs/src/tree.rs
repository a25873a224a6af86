//! What a tree under `/cluster` is: the trait that gfs, gproc and gdev implement, and what it speaks.
//!
//! A [`Tree`] is asked by the FUSE adapter through `gfs::root`. Each method is one system call's worth
//! of work, may wait, and is dropped when its caller gives up: a future may end at any
//! await, so an operation that must go on (a change already sent to the leader) runs in a task of its own.
//!
//! # Caching in the kernel
//! A reply lets the kernel cache through its time-outs ([`CACHE`] or [`NO_CACHE`]). A reply that does so under a
//! lease carries a [`Hold`]: the session layer drops it once the reply has been handed to the kernel, and a
//! break waits for that before it invalidates (rule K1: invalidation never overtakes the reply it is about).

use crate::error::Errno;
use async_trait::async_trait;
use bytes::Bytes;
use consistency::wire::meta::{Attr, FileKind, Name, NewNode, RenameMode, StatFs, XattrMode};
use consistency::wire::watch::Event;
use consistency::{InodeNo, Timestamp};
use std::any::Any;
use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::time::Duration;

/// Time-out of what is covered by a lease: the kernel keeps it until it is told otherwise.
pub const CACHE: Duration = Duration::from_secs(3600);
/// Time-out of what is covered by nothing.
pub const NO_CACHE: Duration = Duration::ZERO;

/// First inode number of the process tree.
pub const PROC_BASE: u64 = 1 << 60;
/// First inode number of the device trees.
pub const DEV_BASE: u64 = 2 << 60;
/// First inode number of the directories that join the trees (`/cluster/node<N>`).
pub const JOINT_BASE: u64 = 3 << 60;
/// First inode number of the exported directories.
pub const EXPORT_BASE: u64 = 4 << 60;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Process (thread), in the pid namespace of the mount; 0 for one outside.
    pub pid: u32,
}

/// Keeps a break from invalidating until the reply it stands in has reached the kernel (K1).
#[derive(Default)]
pub struct Hold(Option<Box<dyn Any + Send>>);

impl Hold {
    /// Returns a hold that ends when `guard` is dropped.
    pub fn new(guard: impl Any + Send) -> Self {
        Self(Some(Box::new(guard)))
    }

    /// Returns a hold on nothing.
    #[must_use]
    pub const fn none() -> Self {
        Self(None)
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() {
            "Hold"
        } else {
            "Hold(none)"
        })
    }
}

/// Attributes for the kernel.
#[derive(Debug)]
pub struct AttrReply {
    /// The attributes.
    pub attr: Attr,
    /// How long the kernel may keep them.
    pub ttl: Duration,
    /// See [`Hold`].
    pub hold: Hold,
}

/// A name for the kernel: LOOKUP, CREATE, MKNOD, MKDIR, SYMLINK, LINK. Each one counts as one lookup of the inode,
/// which FORGET takes back.
#[derive(Debug)]
pub struct EntryReply {
    /// The inode; `None`: there is no such name (cached as absence for `ttl`, ENOENT if that is zero).
    pub attr: Option<Attr>,
    /// How long the kernel may keep the name.
    pub ttl: Duration,
    /// How long it may keep the attributes: not at all but for an inode of which no callback tells (policy A of
    /// docs/fuse.md).
    pub attr_ttl: Duration,
    /// See [`Hold`].
    pub hold: Hold,
}

/// How an opened file is treated by the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Handle chosen by the tree, given back in every request on the open file.
    pub fh: u64,
    /// FOPEN_DIRECT_IO: every read and write reaches the tree.
    pub direct_io: bool,
    /// FOPEN_KEEP_CACHE: pages cached under earlier opens stay valid.
    pub keep_cache: bool,
    /// FOPEN_NONSEEKABLE.
    pub nonseekable: bool,
    /// FOPEN_STREAM: nonseekable, and a read that waits keeps no write of the same open file waiting.
    pub stream: bool,
    /// FOPEN_NOFLUSH: close sends no FLUSH. Only where there are no locks, for FLUSH gives back those of fcntl(2).
    pub noflush: bool,
}

/// Bytes read.
#[derive(Debug)]
pub struct ReadReply {
    /// The bytes; fewer than asked for means end of file.
    pub data: Bytes,
    /// The size of the file, if it has grown and the kernel may not know (K3).
    pub grown: Option<u64>,
    /// See [`Hold`].
    pub hold: Hold,
}

/// What SETATTR asks for; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttrRequest {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size: truncation or growth.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<TimeOrNow>,
    /// Modification time.
    pub mtime: Option<TimeOrNow>,
    /// Open file, if the caller has one.
    pub fh: Option<u64>,
    /// Clear setuid and setgid (the caller may not keep them).
    pub kill_suidgid: bool,
}

/// Permission bits that a new inode is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewMode {
    /// As asked for.
    pub mode: u32,
    /// Bits that the caller's umask leaves out; a default ACL of the directory takes its place.
    pub umask: u32,
}

impl NewMode {
    /// Returns a mode that nothing is left out of.
    #[must_use]
    pub const fn exactly(mode: u32) -> Self {
        Self { mode, umask: 0 }
    }

    /// Returns the bits where there is no default ACL.
    #[must_use]
    pub const fn masked(self) -> u32 {
        self.mode & !self.umask
    }
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeOrNow {
    /// The cluster's clock.
    Now,
    /// This time.
    At(Timestamp),
}

/// An entry of a listing.
#[derive(Debug)]
pub struct ListEntry {
    /// Name; `.` and `..` are added by the adapter.
    pub name: Name,
    /// Inode.
    pub ino: InodeNo,
    /// Type.
    pub kind: FileKind,
    /// Position to continue after; must not be 0, 1 or 2 (those are `.` and `..`).
    pub cookie: u64,
    /// For READDIRPLUS: a name for the kernel. `None` lists the name without making the inode known.
    pub entry: Option<EntryReply>,
}

/// A page of a listing.
#[derive(Debug, Default)]
pub struct ListReply {
    /// Parent of the directory, for `..`.
    pub parent: Option<InodeNo>,
    /// Entries after the cookie asked for. The adapter sends as many as fit and gives back the lookups of the
    /// others through [`Tree::forget`].
    pub entries: Vec<ListEntry>,
}

/// A place in an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileAt {
    /// Which file.
    pub ino: InodeNo,
    /// What [`Tree::open`] answered.
    pub handle: u64,
    /// Byte.
    pub offset: u64,
}

/// A byte-range or whole-file lock (fcntl and flock).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    /// First byte.
    pub start: u64,
    /// Last byte, `u64::MAX >> 1` for "to the end".
    pub end: u64,
    /// F_RDLCK, F_WRLCK or F_UNLCK.
    pub kind: i32,
    /// Process.
    pub pid: u32,
}

/// Flags of open(2) that a tree cares about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFlags(pub i32);

impl OpenFlags {
    /// May write through this handle.
    #[must_use]
    pub const fn writes(self) -> bool {
        self.0 & libc::O_ACCMODE != libc::O_RDONLY
    }

    /// May read and write: a writable shared mapping is possible.
    #[must_use]
    pub const fn reads_and_writes(self) -> bool {
        self.0 & libc::O_ACCMODE == libc::O_RDWR
    }

    /// Reads leave the time of access as it is.
    #[must_use]
    pub const fn noatime(self) -> bool {
        self.0 & libc::O_NOATIME != 0
    }

    /// Appends.
    #[must_use]
    pub const fn append(self) -> bool {
        self.0 & libc::O_APPEND != 0
    }
}

/// Wakes who waits in poll(2) for an open file; it is then asked again what the file is ready for.
pub struct Wake(Box<dyn FnOnce() + Send + Sync>);

impl Wake {
    /// Returns what wakes by calling `wake`.
    pub fn new(wake: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self(Box::new(wake))
    }

    /// Wakes. Not from within a method of a tree, nor under a lock: it tells the kernel.
    pub fn wake(self) {
        (self.0)();
    }
}

impl fmt::Debug for Wake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wake")
    }
}

/// What poll(2) tells of a file that can be read, and what of one that never makes its users wait.
pub const READABLE: u32 = bits(libc::POLLIN | libc::POLLRDNORM);
/// See [`READABLE`].
pub const READY: u32 = READABLE | bits(libc::POLLOUT | libc::POLLWRNORM);
/// What poll(2) tells of a file of which nothing can be told.
pub const BROKEN: u32 = bits(libc::POLLERR);

const fn bits(events: libc::c_short) -> u32 {
    events.cast_unsigned() as u32
}

/// A tree under `/cluster`. Methods that a tree does not have answer ENOSYS or what POSIX demands.
#[async_trait]
#[allow(clippy::too_many_arguments, reason = "the shape of the system calls")]
pub trait Tree: Send + Sync {
    /// Finds a name.
    async fn lookup(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: &Name,
    ) -> Result<EntryReply, Errno>;

    /// Takes back `count` lookups of an inode.
    fn forget(&self, ino: InodeNo, count: u64);

    /// Returns attributes.
    async fn getattr(
        &self,
        caller: Caller,
        ino: InodeNo,
        fh: Option<u64>,
    ) -> Result<AttrReply, Errno>;

    /// Changes attributes, truncates.
    async fn setattr(
        &self,
        caller: Caller,
        ino: InodeNo,
        set: SetAttrRequest,
    ) -> Result<AttrReply, Errno> {
        let _ = (caller, ino, set);
        Err(Errno::EPERM)
    }

    /// Reads the target of a symbolic link.
    async fn readlink(&self, caller: Caller, ino: InodeNo) -> Result<Bytes, Errno> {
        let _ = (caller, ino);
        Err(Errno::EINVAL)
    }

    /// Makes anything but an opened file: MKNOD, MKDIR, SYMLINK.
    async fn make(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: &Name,
        node: NewNode,
        mode: NewMode,
    ) -> Result<EntryReply, Errno> {
        let _ = (caller, parent, name, node, mode);
        Err(Errno::EPERM)
    }

    /// Makes a file, unless it is there, and opens it.
    async fn create(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: &Name,
        mode: NewMode,
        flags: OpenFlags,
    ) -> Result<(EntryReply, Opened), Errno> {
        let _ = (caller, parent, name, mode, flags);
        Err(Errno::EPERM)
    }

    /// Makes a file without a name and opens it (O_TMPFILE); [`Tree::link`] may give it one.
    async fn tmpfile(
        &self,
        caller: Caller,
        parent: InodeNo,
        mode: NewMode,
        flags: OpenFlags,
    ) -> Result<(EntryReply, Opened), Errno> {
        let _ = (caller, parent, mode, flags);
        Err(Errno::ENOTSUP)
    }

    /// Adds a name to an inode.
    async fn link(
        &self,
        caller: Caller,
        ino: InodeNo,
        parent: InodeNo,
        name: &Name,
    ) -> Result<EntryReply, Errno> {
        let _ = (caller, ino, parent, name);
        Err(Errno::EPERM)
    }

    /// Removes a name (`dir`: of an empty directory).
    async fn unlink(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: &Name,
        dir: bool,
    ) -> Result<(), Errno> {
        let _ = (caller, parent, name, dir);
        Err(Errno::EPERM)
    }

    /// Moves a name.
    async fn rename(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: &Name,
        new_parent: InodeNo,
        new_name: &Name,
        mode: RenameMode,
    ) -> Result<(), Errno> {
        let _ = (caller, parent, name, new_parent, new_name, mode);
        Err(Errno::EPERM)
    }

    /// Opens a file.
    async fn open(&self, caller: Caller, ino: InodeNo, flags: OpenFlags) -> Result<Opened, Errno>;

    /// Reads. `flags` are the open file's present flags.
    async fn read(
        &self,
        caller: Caller,
        ino: InodeNo,
        fh: u64,
        offset: u64,
        size: u32,
        flags: OpenFlags,
    ) -> Result<ReadReply, Errno>;

    /// Writes; returns how many bytes were taken. `from_cache`: the kernel writes back a mapped page.
    async fn write(
        &self,
        caller: Caller,
        ino: InodeNo,
        fh: u64,
        offset: u64,
        data: Bytes,
        flags: OpenFlags,
        from_cache: bool,
        kill_suidgid: bool,
    ) -> Result<u32, Errno> {
        let _ = (
            caller,
            ino,
            fh,
            offset,
            data,
            flags,
            from_cache,
            kill_suidgid,
        );
        Err(Errno(libc::EBADF))
    }

    /// A descriptor of the open file is closed (each close(2)).
    async fn flush(
        &self,
        caller: Caller,
        ino: InodeNo,
        fh: u64,
        lock_owner: u64,
    ) -> Result<(), Errno> {
        let _ = (caller, ino, fh, lock_owner);
        Ok(())
    }

    /// The open file is closed for good. Never waits for the network.
    async fn release(&self, ino: InodeNo, fh: u64) {
        let _ = (ino, fh);
    }

    /// Makes everything durable.
    async fn fsync(
        &self,
        caller: Caller,
        ino: InodeNo,
        fh: u64,
        data_only: bool,
    ) -> Result<(), Errno> {
        let _ = (caller, ino, fh, data_only);
        Ok(())
    }

    /// Allocates or punches; `mode` as in fallocate(2).
    async fn fallocate(
        &self,
        caller: Caller,
        ino: InodeNo,
        fh: u64,
        offset: u64,
        len: u64,
        mode: i32,
    ) -> Result<(), Errno> {
        let _ = (caller, ino, fh, offset, len, mode);
        Err(Errno::ENOTSUP)
    }

    /// Copies bytes from one file of the tree to another, or within one; returns how many. ENOTSUP has the kernel read
    /// and write them.
    async fn copy_file_range(
        &self,
        caller: Caller,
        from: FileAt,
        to: FileAt,
        len: u64,
    ) -> Result<u64, Errno> {
        let _ = (caller, from, to, len);
        Err(Errno::ENOTSUP)
    }

    /// SEEK_DATA and SEEK_HOLE.
    async fn lseek(
        &self,
        caller: Caller,
        ino: InodeNo,
        fh: u64,
        offset: u64,
        whence: i32,
    ) -> Result<u64, Errno> {
        let _ = (caller, ino, fh, offset, whence);
        Err(Errno::ENOSYS)
    }

    /// Lists a directory from a cookie on; `plus` asks for names for the kernel as well. `limit` is a hint in entries.
    async fn readdir(
        &self,
        caller: Caller,
        ino: InodeNo,
        after: u64,
        limit: usize,
        plus: bool,
    ) -> Result<ListReply, Errno>;

    /// A directory's descriptor is synced.
    async fn fsyncdir(&self, caller: Caller, ino: InodeNo) -> Result<(), Errno> {
        let _ = (caller, ino);
        Ok(())
    }

    /// Room and counts.
    async fn statfs(&self, caller: Caller, ino: InodeNo) -> Result<StatFs, Errno> {
        let _ = (caller, ino);
        Ok(StatFs::default())
    }

    /// Reads an extended attribute.
    async fn getxattr(&self, caller: Caller, ino: InodeNo, name: &Name) -> Result<Bytes, Errno> {
        let _ = (caller, ino, name);
        Err(Errno(libc::ENODATA))
    }

    /// Lists the names of the extended attributes.
    async fn listxattr(&self, caller: Caller, ino: InodeNo) -> Result<Vec<Name>, Errno> {
        let _ = (caller, ino);
        Ok(Vec::new())
    }

    /// Sets an extended attribute. `kill_sgid`: if it is the access ACL, the setgid bit goes with it.
    async fn setxattr(
        &self,
        caller: Caller,
        ino: InodeNo,
        name: &Name,
        value: Bytes,
        mode: XattrMode,
        kill_sgid: bool,
    ) -> Result<(), Errno> {
        let _ = (caller, ino, name, value, mode, kill_sgid);
        Err(Errno::ENOTSUP)
    }

    /// Removes an extended attribute.
    async fn removexattr(&self, caller: Caller, ino: InodeNo, name: &Name) -> Result<(), Errno> {
        let _ = (caller, ino, name);
        Err(Errno::ENOTSUP)
    }

    /// Tests a lock; returns one in the way.
    async fn getlk(
        &self,
        caller: Caller,
        ino: InodeNo,
        fh: u64,
        owner: u64,
        lock: Lock,
    ) -> Result<Option<Lock>, Errno> {
        let _ = (caller, ino, fh, owner, lock);
        Err(Errno::ENOSYS)
    }

    /// Sets or releases a lock; `wait` until it is free; `flock`: made by flock(2).
    async fn setlk(
        &self,
        caller: Caller,
        ino: InodeNo,
        fh: u64,
        owner: u64,
        lock: Lock,
        wait: bool,
        flock: bool,
    ) -> Result<(), Errno> {
        let _ = (caller, ino, fh, owner, lock, wait, flock);
        Err(Errno::ENOSYS)
    }

    /// Size-encoded ioctl; returns the output bytes.
    async fn ioctl(
        &self,
        caller: Caller,
        ino: InodeNo,
        fh: u64,
        command: u32,
        input: Bytes,
        out_size: u32,
    ) -> Result<Bytes, Errno> {
        let _ = (caller, ino, fh, command, input, out_size);
        Err(Errno::ENOTTY)
    }

    /// Tells what an open file is ready for, at once; with `wake` the caller waits until that may have changed. One wake
    /// is for all who poll the open file: a tree may use the first it got.
    async fn poll(&self, ino: InodeNo, fh: u64, wake: Option<Wake>) -> Result<u32, Errno> {
        let _ = (ino, fh, wake);
        Ok(READY)
    }
}

/// Tells the kernel to forget. Every method blocks until the kernel has done so: never call one from a request
/// handler or under a lock (DESIGN rule "what waits for what").
pub trait Kernel: Send + Sync + fmt::Debug {
    /// Forgets the attributes of an inode. Waits for nobody but the threads that take up its last reply (K2).
    fn forget_attr(&self, ino: InodeNo) -> io::Result<()>;

    /// Writes back mapped pages, then forgets attributes and pages. Waits for reads of the inode in flight.
    fn forget_data(&self, ino: InodeNo) -> io::Result<()>;

    /// Forgets a name of a directory. Waits for the directory's requests in flight.
    fn forget_name(&self, parent: InodeNo, name: &Name) -> io::Result<()>;

    /// Tells whether a change that waits for its answer keeps [`Self::forget_name`] in a directory waiting.
    fn may_hold(&self, dir: InodeNo) -> bool;

    /// Forgets all names of the mount (FUSE_NOTIFY_INC_EPOCH), and with them what is mounted below it. Never blocks.
    /// `Unsupported` before Linux 6.16.
    fn forget_all_names(&self) -> io::Result<()>;

    /// Says whether none of these ever waits for anything: then they need no threads of their own.
    fn is_prompt(&self) -> bool {
        false
    }
}

/// What was found by a look for watches.
#[derive(Debug)]
pub struct Look {
    /// What is watched.
    pub inodes: BTreeSet<InodeNo>,
    /// How long it kept a processor busy.
    pub cost: Duration,
}

/// Who watches the mount with inotify or fanotify, and how they are told of what other nodes did.
pub trait Watching: Send + Sync + fmt::Debug {
    /// Looks for what processes of this node watch, through /proc: milliseconds.
    fn watched(&self) -> io::Result<Look>;

    /// Tells whether anybody has asked anything of the mount since this was called last.
    fn was_used(&self) -> bool;

    /// Returns what [`Caller::pid`] is for requests of the calling thread.
    fn thread(&self) -> u32;

    /// Has the kernel tell its watchers, by doing on the mount what was done elsewhere. Blocks until the requests of
    /// the calling thread that come of it are answered.
    fn replay(&self, event: &Event) -> io::Result<()>;
}
