//! CREATE, TMPFILE, MKNOD, MKDIR, SYMLINK.

use super::{getattr, open, setattr, unexpected};
use crate::birth::Birth;
use crate::client::call::Ticket;
use crate::client::content::FileContent;
use crate::client::facts::Change;
use crate::client::names::Known;
use crate::client::{Core, Pin};
use crate::error::Errno;
use crate::tree::{Caller, EntryReply, Hold, NO_CACHE, NewMode, OpenFlags, Opened};
use consistency::InodeNo;
use consistency::wire::lease::{Grant, Mode};
use consistency::wire::meta::{
    self as wire, Attr, Content, Fact, FileKind, Name, NewNode, Op, OpReply, TARGET_BYTES_MAX,
};
use std::sync::Arc;

pub(super) async fn make(
    core: &Arc<Core>,
    caller: Caller,
    parent: InodeNo,
    name: &Name,
    node: NewNode,
    mode: NewMode,
) -> Result<EntryReply, Errno> {
    let dir = core.pin(parent);
    let made = send(core, caller, &dir, Some(name), node, mode, true).await?;
    Ok(core.entry(&dir, name, Some((&made.child, made.attr))))
}

pub(super) async fn create(
    core: &Arc<Core>,
    caller: Caller,
    parent: InodeNo,
    name: &Name,
    mode: NewMode,
    flags: OpenFlags,
) -> Result<(EntryReply, Opened), Errno> {
    let dir = core.pin(parent);
    let exclusive = flags.0 & libc::O_EXCL != 0;
    let made = send(
        core,
        caller,
        &dir,
        Some(name),
        NewNode::File,
        mode,
        exclusive,
    )
    .await?;
    let Made {
        child, mut attr, ..
    } = made;
    if !made.new {
        // Another node was faster. The kernel has checked no permissions, because it knew of no file.
        if !may_open(caller, &attr, flags) {
            // It looks again, finds the file, and checks.
            return Err(Errno::ESTALE);
        }
        if flags.0 & libc::O_TRUNC != 0 && flags.writes() {
            attr = core
                .change_owned(&child, false, |state| {
                    if let Some(content) = &mut state.content {
                        content.dirty.truncate(0);
                    }
                    let now = core.clock.stamp();
                    if let Some(attr) = &mut state.attr {
                        attr.size = 0;
                        attr.mtime = now;
                    }
                    Ok(setattr::changed(state, now))
                })
                .await?;
        }
    }
    let opened = open::open_pinned(core, &child, flags).await;
    Ok((core.entry(&dir, name, Some((&child, attr))), opened))
}

pub(super) async fn tmpfile(
    core: &Arc<Core>,
    caller: Caller,
    parent: InodeNo,
    mode: NewMode,
    flags: OpenFlags,
) -> Result<(EntryReply, Opened), Errno> {
    let dir = core.pin(parent);
    let Made { child, attr, .. } =
        send(core, caller, &dir, None, NewNode::File, mode, true).await?;
    if core.leases().held(child.ino).is_none() {
        // The reply came from the record, without a grant. Only a grant keeps what has no name.
        getattr::getattr(core, child.ino).await?;
    }
    let opened = open::open_pinned(core, &child, flags).await;
    child.state().lookups += 1;
    let entry = EntryReply {
        attr: Some(attr),
        ttl: NO_CACHE,
        attr_ttl: NO_CACHE,
        hold: Hold::none(),
    };
    Ok((entry, opened))
}

/// Tells whether the mode bits of the owner allow a caller to open a file; false also where other bits, an ACL or
/// other groups could. The bits of group and others do not tell alone: with an ACL those of the group are its mask.
fn may_open(caller: Caller, attr: &Attr, flags: OpenFlags) -> bool {
    if attr.kind != FileKind::File {
        return false;
    }
    let mut need = 0o4;
    if flags.writes() {
        need = if flags.reads_and_writes() { 0o6 } else { 0o2 };
    }
    caller.uid == 0 || (caller.uid == attr.uid && (attr.mode >> 6) & need == need)
}

struct Made {
    child: Pin,
    attr: Attr,
    new: bool,
}

async fn send(
    core: &Arc<Core>,
    caller: Caller,
    dir: &Pin,
    name: Option<&Name>,
    node: NewNode,
    mode: NewMode,
    exclusive: bool,
) -> Result<Made, Errno> {
    if let Some(name) = name
        && let Some(made) = make_alone(core, caller, dir, name, &node, mode).await?
    {
        return Ok(made);
    }
    let (core, dir, name) = (Arc::clone(core), dir.clone(), name.cloned());
    let parent = dir.ino;
    let task = {
        let core = Arc::clone(&core);
        async move {
            let target = match &node {
                NewNode::Symlink(target) => Some(target.clone()),
                NewNode::File | NewNode::Dir | NewNode::Special { .. } => None,
            };
            let mut change = match &name {
                Some(name) => Change::begin(&core, &[(&dir, name)], &[&dir]),
                None => Change::begin(&core, &[], &[]),
            };
            let op = Op::Create {
                parent: dir.ino,
                name: name.clone(),
                node,
                mode: mode.mode & 0o7777,
                umask: mode.umask & 0o777,
                uid: caller.uid,
                gid: caller.gid,
                exclusive,
            };
            let (reply, ticket) = core.op(op).await?;
            let OpReply::Created {
                dir: dir_fact,
                entry,
                room,
                copies,
                new,
            } = reply
            else {
                return Err(unexpected(&reply));
            };
            let child = core.pin(entry.attr.ino);
            change.changed(&ticket, std::slice::from_ref(&dir_fact));
            let exclusive = |grant: Grant| grant.mode == Mode::Exclusive;
            if dir_fact.grant.is_some_and(exclusive) {
                dir.state().names.set_foreseeable();
            }
            if new {
                learn_made(&core, &child, &ticket, &entry, (room, copies));
            } else {
                core.learn_into(&mut child.state(), child.ino, &ticket, &entry);
            }
            child.state().target = target.map(Box::new);
            if let Some(name) = &name {
                let known = Known::Present(entry.attr.ino, entry.attr.kind);
                change.outcome(dir.ino, name, known);
            }
            Ok(Made {
                child,
                attr: entry.attr,
                new,
            })
        }
    };
    core.detached_change(&[parent], task).await
}

/// Makes a file, directory or symbolic link without asking the leader. `None`: it has to be asked.
async fn make_alone(
    core: &Arc<Core>,
    caller: Caller,
    dir: &Pin,
    name: &Name,
    node: &NewNode,
    mode: NewMode,
) -> Result<Option<Made>, Errno> {
    let known = match node {
        NewNode::Special { .. } => return Ok(None),
        NewNode::Symlink(target) => !target.is_empty() && target.len() <= TARGET_BYTES_MAX,
        NewNode::File | NewNode::Dir => true,
    };
    if !known || !core.may_make(&dir.state(), dir.ino, name) {
        return Ok(None);
    }
    core.wait_to_make().await?;
    let Some(ino) = InodeNo::by_session(core.chunk_id().await?) else {
        return Ok(None);
    };
    let Some(parent) = dir.state().attr.clone() else {
        return Ok(None);
    };
    let at = core.clock.stamp();
    let made = wire::Made {
        parent: dir.ino,
        name: name.clone(),
        ino,
        node: node.clone(),
        mode: mode.mode & 0o7777,
        umask: mode.umask & 0o777,
        uid: caller.uid,
        gid: caller.gid,
        time: at,
    };
    let birth = Birth {
        ino,
        node,
        mode: made.mode & !made.umask,
        uid: made.uid,
        gid: made.gid,
        named: true,
        at,
    };
    let attr = birth.attr(&parent);
    let child = core.pin(ino);
    // Before its name is there: who finds that finds all of it.
    {
        let mut state = child.state();
        state.made = true;
        state.attr = Some(attr.clone());
        state.xattrs = Some(Box::default());
        match node {
            NewNode::File => state.content = Some(Box::new(FileContent::new(Content::default()))),
            NewNode::Dir => state.names.begin_empty(),
            NewNode::Symlink(target) => state.target = Some(Box::new(target.clone())),
            NewNode::Special { .. } => unreachable!("refused above"),
        }
    }
    if !core.make_alone(dir, (&child, &attr), &birth, made) {
        let mut state = child.state();
        state.made = false;
        state.drop_data();
        return Ok(None);
    }
    Ok(Some(Made {
        child,
        attr,
        new: true,
    }))
}

/// A new file comes exclusively: its content is known to be empty, and writing to it needs no further request.
fn learn_made(
    core: &Core,
    child: &Pin,
    ticket: &Ticket,
    entry: &Fact,
    (room, copies): (Option<u64>, u8),
) {
    let mut state = child.state();
    let covered = core.learn_into(&mut state, child.ino, ticket, entry);
    let exclusive = entry
        .grant
        .is_some_and(|grant| grant.mode == Mode::Exclusive);
    if covered && exclusive && entry.attr.kind == FileKind::Dir {
        state.names.begin_empty();
    }
    if covered && exclusive && entry.attr.kind == FileKind::File {
        let empty = FileContent::new(Content::default());
        state.content.get_or_insert_with(|| Box::new(empty));
        if state.writing.room != room {
            state.writing.room = room;
        }
        if state.writing.copies != copies {
            state.writing.copies = copies;
        }
    }
}
