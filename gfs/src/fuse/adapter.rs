//! From a request to a [`Tree`] and back.
//!
//! A tree's ENOSYS never reaches the kernel as such: there it means "never ask again, on the whole mount", which
//! one tree must not say for the others. ENOSYS comes from this file alone, for what no tree does.

use super::asker::Asker;
use super::crossing::Crossings;
use super::notify::Notifier;
use super::reply::{Answer, Listing, xattr_names};
use super::request::{LockRequest, Operation, Request};
use crate::error::Errno;
use crate::tree::{AttrReply, Caller, Hold, Lock, Opened, Tree, Wake};
use consistency::InodeNo;
use consistency::wire::meta::FileKind;
use fuser::FopenFlags;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Cookie behind `.`; the listing goes on with `..`.
const COOKIE_SELF: u64 = 1;
/// Cookie behind `..`; the listing goes on with the tree's first entry.
const COOKIE_PARENT: u64 = 2;
/// Times that the kernel is made to ask once more (K2): it may be told to forget again and again.
const ASKS_MAX: u32 = 8;

/// A READ waits so long for the kernel to take a size (K3).
const GROWTH_WITHIN: Duration = Duration::from_millis(50);

/// Asks a tree what the kernel asks.
pub(super) struct Adapter {
    tree: Arc<dyn Tree>,
    crossings: Arc<Crossings>,
    notifier: Arc<Notifier>,
    asker: Asker,
}

impl fmt::Debug for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Adapter").finish_non_exhaustive()
    }
}

impl Adapter {
    pub(super) fn new(tree: Arc<dyn Tree>, notifier: Arc<Notifier>, asker: Asker) -> Self {
        Self {
            tree,
            crossings: notifier.crossings(),
            notifier,
            asker,
        }
    }

    /// Takes back lookups.
    pub(super) fn forget(&self, forgotten: &[(InodeNo, u64)]) {
        for (ino, count) in forgotten {
            self.tree.forget(*ino, *count);
        }
    }

    /// Takes back what an answer gave that did not reach the kernel.
    pub(super) async fn take_back(&self, answer: Answer) {
        let given = answer.given;
        for ino in given.entry.into_iter().chain(given.listed) {
            self.tree.forget(ino, 1);
        }
        if let Some((ino, fh)) = given.opened {
            self.tree.release(ino, fh).await;
        }
    }

    /// Answers a request.
    pub(super) async fn handle(&self, request: Request) -> Answer {
        let (opcode, caller, ino) = (
            request.header.opcode,
            request.header.caller,
            request.header.ino,
        );
        match self.ask(caller, ino, request.operation).await {
            Ok(answer) => answer,
            Err(Unanswered::Never) => Answer::error(Errno::ENOSYS),
            Err(Unanswered::Failed(Errno::ENOSYS)) => {
                tracing::debug!(?opcode, %ino, "the tree does not do this");
                Answer::error(Errno::ENOTSUP)
            }
            Err(Unanswered::Failed(errno)) => Answer::error(errno),
        }
    }

    async fn ask(
        &self,
        caller: Caller,
        ino: InodeNo,
        operation: Operation,
    ) -> Result<Answer, Unanswered> {
        let tree = &self.tree;
        if let Some(resized) = operation.resizes(ino) {
            self.crossings.resizing(resized);
        }
        Ok(match operation {
            Operation::Lookup { name } => Answer::looked_up(tree.lookup(caller, ino, &name).await?),
            Operation::Getattr { fh } => Answer::attr(self.getattr(caller, ino, fh).await?),
            Operation::Statx { fh } => Answer::statx(self.getattr(caller, ino, fh).await?),
            Operation::Setattr(set) => Answer::attr_set(tree.setattr(caller, ino, set).await?),
            Operation::Readlink => Answer::data(tree.readlink(caller, ino).await?, Hold::none()),
            Operation::Make { name, node, mode } => {
                Answer::made(tree.make(caller, ino, &name, node, mode).await?)
            }
            Operation::Create { name, mode, flags } => {
                let (entry, opened) = tree.create(caller, ino, &name, mode, flags).await?;
                Answer::created(entry, opened, open_flags(opened))
            }
            Operation::Tmpfile { mode, flags } => {
                let (entry, opened) = tree.tmpfile(caller, ino, mode, flags).await?;
                Answer::created(entry, opened, open_flags(opened))
            }
            Operation::Link { ino: inode, name } => {
                Answer::made(tree.link(caller, inode, ino, &name).await?)
            }
            Operation::Unlink { name, dir } => {
                tree.unlink(caller, ino, &name, dir).await?;
                Answer::done()
            }
            Operation::Rename {
                name,
                new_parent,
                new_name,
                mode,
            } => {
                tree.rename(caller, ino, &name, new_parent, &new_name, mode)
                    .await?;
                Answer::done()
            }
            Operation::Open { flags } => {
                let opened = tree.open(caller, ino, flags).await?;
                Answer::opened(ino, opened, open_flags(opened))
            }
            Operation::Read {
                fh,
                offset,
                size,
                flags,
            } => {
                let mut reply = tree.read(caller, ino, fh, offset, size, flags).await?;
                reply.data.truncate(size as usize);
                if let Some(grown) = reply.grown {
                    self.show_growth(ino, grown).await;
                }
                Answer::data(reply.data, reply.hold)
            }
            Operation::Write {
                fh,
                offset,
                data,
                flags,
                from_cache,
                kill_suidgid,
            } => Answer::written(
                tree.write(
                    caller,
                    ino,
                    fh,
                    offset,
                    data,
                    flags,
                    from_cache,
                    kill_suidgid,
                )
                .await?,
            ),
            Operation::Flush { fh, lock_owner } => {
                tree.flush(caller, ino, fh, lock_owner).await?;
                Answer::done()
            }
            Operation::Release { fh } => {
                tree.release(ino, fh).await;
                Answer::done()
            }
            Operation::Fsync { fh, data_only } => {
                tree.fsync(caller, ino, fh, data_only).await?;
                Answer::done()
            }
            Operation::Fallocate {
                fh,
                offset,
                len,
                mode,
            } => {
                tree.fallocate(caller, ino, fh, offset, len, mode).await?;
                Answer::done()
            }
            Operation::CopyFileRange {
                from,
                to,
                len,
                wide,
            } => {
                let copied = tree.copy_file_range(caller, from, to, len).await?.min(len);
                match u32::try_from(copied) {
                    Ok(copied) if !wide => Answer::written(copied),
                    _ => Answer::copied(copied),
                }
            }
            Operation::Lseek { fh, offset, whence } => {
                self.lseek(caller, ino, fh, offset, whence).await?
            }
            Operation::Opendir => Answer::opened_dir(),
            Operation::Readdir { offset, size, plus } => {
                self.readdir(caller, ino, offset, size, plus).await?
            }
            Operation::Releasedir => Answer::done(),
            Operation::Fsyncdir => {
                tree.fsyncdir(caller, ino).await?;
                Answer::done()
            }
            Operation::Statfs => Answer::statfs(tree.statfs(caller, ino).await?),
            Operation::Getxattr { name, size } => {
                Answer::xattr(tree.getxattr(caller, ino, &name).await?, size)
            }
            Operation::Listxattr { size } => {
                Answer::xattr(xattr_names(&tree.listxattr(caller, ino).await?), size)
            }
            Operation::Setxattr {
                name,
                value,
                mode,
                kill_sgid,
            } => {
                tree.setxattr(caller, ino, &name, value, mode, kill_sgid)
                    .await?;
                Answer::done()
            }
            Operation::Removexattr { name } => {
                tree.removexattr(caller, ino, &name).await?;
                Answer::done()
            }
            Operation::Getlk(LockRequest {
                fh, owner, lock, ..
            }) => {
                let in_the_way = tree.getlk(caller, ino, fh, owner, lock).await?;
                Answer::lock(in_the_way.unwrap_or(Lock {
                    kind: libc::F_UNLCK,
                    ..lock
                }))
            }
            Operation::Setlk { request, wait } => {
                let LockRequest {
                    fh,
                    owner,
                    lock,
                    flock,
                } = request;
                // Releasing never waits, though flock(2) asks for it like that.
                let wait = wait && lock.kind != libc::F_UNLCK;
                tree.setlk(caller, ino, fh, owner, lock, wait, flock)
                    .await?;
                Answer::done()
            }
            Operation::Ioctl {
                fh,
                command,
                input,
                out_size,
            } => {
                let mut output = tree
                    .ioctl(caller, ino, fh, command, input, out_size)
                    .await?;
                output.truncate(out_size as usize);
                Answer::ioctl(&output)
            }
            Operation::Poll { fh, wake } => {
                let wake = wake.map(|waiter| {
                    let notifier = Arc::clone(&self.notifier);
                    Wake::new(move || {
                        if let Err(error) = notifier.wake_pollers(waiter) {
                            tracing::warn!(%error, "cannot wake who polls a file");
                        }
                    })
                });
                Answer::polled(tree.poll(ino, fh, wake).await?)
            }
            Operation::Unsupported => return Err(Unanswered::Never),
            Operation::Init(_)
            | Operation::Destroy
            | Operation::Interrupt { .. }
            | Operation::Forget(_) => {
                unreachable!("the session answers {operation:?} itself")
            }
        })
    }

    /// Returns attributes of which the kernel has the size, or takes it with this reply (K2).
    async fn getattr(
        &self,
        caller: Caller,
        ino: InodeNo,
        fh: Option<u64>,
    ) -> Result<AttrReply, Errno> {
        let came = Instant::now();
        for _ in 0..ASKS_MAX {
            let told = self.crossings.told(ino);
            let reply = self.tree.getattr(caller, ino, fh).await?;
            // Nothing else is mapped.
            if reply.attr.kind != FileKind::File {
                return Ok(reply);
            }
            if let Some(replying) = self.crossings.reply(ino, reply.attr.size, came) {
                let hold = Hold::new((reply.hold, replying));
                return Ok(AttrReply { hold, ..reply });
            }
            if self.asker.is(caller.pid) {
                return Ok(reply);
            }
            match self.asker.kernel_size(ino).await {
                Ok(size) if size != reply.attr.size => {}
                Ok(_) => {
                    self.crossings.settle(ino, told);
                    return Ok(reply);
                }
                Err(error) => {
                    // What it does not have it cannot map.
                    tracing::debug!(%ino, %error, "the kernel cannot be asked for a size");
                    return Ok(reply);
                }
            }
            // Its hold would keep a break waiting that the question waits for.
            drop(reply);
            if let Err(error) = self.asker.ask(ino).await {
                tracing::debug!(%ino, %error, "the kernel could not be made to ask");
            }
        }
        tracing::warn!(%ino, "the kernel is told to forget faster than it can ask");
        self.tree.getattr(caller, ino, fh).await
    }

    /// Has the kernel take the size of a file that has grown elsewhere, before the page that told so is with it (K3).
    async fn show_growth(&self, ino: InodeNo, size: u64) {
        let shown = async {
            for _ in 0..ASKS_MAX {
                match self.asker.kernel_size(ino).await {
                    Ok(known) if known < size => {}
                    Ok(_) | Err(_) => return,
                }
                if let Err(error) = self.asker.ask(ino).await {
                    tracing::debug!(%ino, %error, "the kernel could not be made to ask");
                }
            }
        };
        // The question may wait for a break, and the break for this page (R1).
        let _late = tokio::time::timeout(GROWTH_WITHIN, shown).await;
    }

    /// Finds data or a hole. For a tree without holes the whole file is data, with a hole at its end.
    async fn lseek(
        &self,
        caller: Caller,
        ino: InodeNo,
        fh: u64,
        offset: u64,
        whence: i32,
    ) -> Result<Answer, Unanswered> {
        match self.tree.lseek(caller, ino, fh, offset, whence).await {
            Err(Errno::ENOSYS) => {}
            known => return Ok(Answer::position(known?)),
        }
        let size = self.tree.getattr(caller, ino, Some(fh)).await?.attr.size;
        match whence {
            _ if offset >= size => Err(Errno(libc::ENXIO).into()),
            libc::SEEK_DATA => Ok(Answer::position(offset)),
            libc::SEEK_HOLE => Ok(Answer::position(size)),
            _ => Err(Errno::EINVAL.into()),
        }
    }

    async fn readdir(
        &self,
        caller: Caller,
        ino: InodeNo,
        offset: u64,
        size: u32,
        plus: bool,
    ) -> Result<Answer, Unanswered> {
        let mut page = Listing::new(size, plus);
        let after = if offset <= COOKIE_PARENT { 0 } else { offset };
        let reply = self
            .tree
            .readdir(caller, ino, after, page.limit(), plus)
            .await?;
        let parent = reply.parent.unwrap_or(ino);
        let dots = [
            (&b"."[..], ino, COOKIE_SELF),
            (&b".."[..], parent, COOKIE_PARENT),
        ];
        for (name, ino, cookie) in dots {
            if offset < cookie {
                page.push(name, (ino, FileKind::Dir), cookie, None);
            }
        }
        let (mut listed, mut holds, mut full) = (Vec::new(), Vec::new(), false);
        for entry in reply.entries {
            let known = entry
                .entry
                .as_ref()
                .and_then(|known| Some((known.attr.as_ref()?, (known.ttl, known.attr_ttl))));
            let given = known.map(|(attr, _)| attr.ino);
            // Once a name was left out all behind it must be, or the kernel would never ask for it.
            full = full
                || !page.push(
                    entry.name.as_bytes(),
                    (entry.ino, entry.kind),
                    entry.cookie,
                    known,
                );
            match given {
                // READDIR has no room for entries.
                Some(ino) if full || !plus => self.tree.forget(ino, 1),
                Some(ino) => listed.push(ino),
                None => {}
            }
            if let Some(known) = entry.entry {
                holds.push(known.hold);
            }
        }
        Ok(page.finish(listed, holds))
    }
}

fn open_flags(opened: Opened) -> FopenFlags {
    let table = [
        (opened.direct_io, FopenFlags::FOPEN_DIRECT_IO),
        (opened.keep_cache, FopenFlags::FOPEN_KEEP_CACHE),
        (opened.nonseekable, FopenFlags::FOPEN_NONSEEKABLE),
        (opened.stream, FopenFlags::FOPEN_STREAM),
        (opened.noflush, FopenFlags::FOPEN_NOFLUSH),
    ];
    table
        .into_iter()
        .filter_map(|(set, flag)| set.then_some(flag))
        .fold(FopenFlags::empty(), FopenFlags::union)
}

/// Why there is no answer to send.
enum Unanswered {
    /// The operation failed.
    Failed(Errno),
    /// No tree ever does this; the kernel need not ask again.
    Never,
}

impl From<Errno> for Unanswered {
    fn from(errno: Errno) -> Self {
        Self::Failed(errno)
    }
}
