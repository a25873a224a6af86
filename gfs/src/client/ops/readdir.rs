//! READDIR and READDIRPLUS.

use super::unexpected;
use crate::client::facts::Usable;
use crate::client::{Core, Pin};
use crate::error::Errno;
use crate::tree::{ListEntry, ListReply};
use consistency::InodeNo;
use consistency::wire::meta::{Attr, DirEntry, FileKind, Name, Op, OpReply};
use std::sync::Arc;

/// Entries asked for at least: a second request costs more than entries that are not needed at once.
const PAGE_MIN: usize = 256;
/// Entries asked for at most.
pub(super) const PAGE_MAX: usize = 1024;

pub(super) async fn readdir(
    core: &Arc<Core>,
    ino: InodeNo,
    after: u64,
    limit: usize,
    plus: bool,
) -> Result<ListReply, Errno> {
    let dir = core.pin(ino);
    let limit = limit.clamp(1, PAGE_MAX);
    core.accessed(&mut dir.state(), ino);
    if let Some(reply) = cached(core, &dir, after, limit, plus) {
        return Ok(reply);
    }
    let task = ask(Arc::clone(core), dir.clone(), after, limit.max(PAGE_MIN));
    let (parent, entries) = core.detached(task).await?;
    let entries = entries.into_iter().take(limit);
    let entry = |found: Found| {
        let child = found.child.as_ref().filter(|_| plus);
        list_entry(
            core,
            &dir,
            found.cookie,
            found.name,
            found.ino,
            found.kind,
            child,
        )
    };
    Ok(ListReply {
        parent: Some(parent),
        entries: entries.map(entry).collect(),
    })
}

pub(super) struct Found {
    cookie: u64,
    name: Name,
    ino: InodeNo,
    kind: FileKind,
    child: Option<(Pin, Attr)>,
}

/// Asks for a page, and remembers it.
pub(super) async fn ask(
    core: Arc<Core>,
    dir: Pin,
    after: u64,
    limit: usize,
) -> Result<(InodeNo, Vec<Found>), Errno> {
    let limit = u32::try_from(limit).expect("at most a page");
    let op = Op::ReadDir {
        ino: dir.ino,
        after,
        limit,
    };
    let (reply, ticket) = core.op(op).await?;
    let OpReply::Listing {
        dir: grant,
        parent,
        entries,
        end,
    } = reply
    else {
        return Err(unexpected(&reply));
    };
    let names: Vec<_> = entries
        .iter()
        .map(|entry| (entry.cookie, entry.name.clone(), entry.ino, entry.kind))
        .collect();
    let found = |entry: DirEntry| Found {
        child: entry.fact.map(|fact| {
            let child = core.pin(entry.ino);
            let attr = core.learn(&child, &ticket, &fact);
            (child, attr)
        }),
        cookie: entry.cookie,
        name: entry.name,
        ino: entry.ino,
        kind: entry.kind,
    };
    let found = entries.into_iter().map(found).collect();
    core.learn_page(&dir, &ticket, grant, |state| {
        state.names.learn_page(parent, after, &names, end);
    });
    Ok((parent, found))
}

fn cached(core: &Arc<Core>, dir: &Pin, after: u64, limit: usize, plus: bool) -> Option<ListReply> {
    let page = {
        let state = dir.state();
        if !core.covered(&state, dir.ino) {
            return None;
        }
        state.names.page(after, limit)?
    };
    let entry = |(cookie, name, ino, kind)| {
        let child = plus.then(|| core.pin_known(ino)).flatten();
        let child = child.and_then(|child| {
            let attr = core.usable_attr(&child.state(), ino).map(Usable::attr)?;
            Some((child, attr))
        });
        list_entry(core, dir, cookie, name, ino, kind, child.as_ref())
    };
    Some(ListReply {
        parent: Some(page.parent),
        entries: page.entries.into_iter().map(entry).collect(),
    })
}

fn list_entry(
    core: &Core,
    dir: &Pin,
    cookie: u64,
    name: Name,
    ino: InodeNo,
    kind: FileKind,
    child: Option<&(Pin, Attr)>,
) -> ListEntry {
    // The kernel keeps what it has of inodes that it knows: an entry would replace attributes that are cached by ones
    // that are not (policy A), and every later stat would have to ask.
    let child = child.filter(|(pin, _)| pin.state().lookups == 0);
    let entry = child.map(|(pin, attr)| core.entry(dir, &name, Some((pin, attr.clone()))));
    ListEntry {
        name,
        ino,
        kind,
        cookie,
        entry,
    }
}
