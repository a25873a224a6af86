//! READDIR and READDIRPLUS.

use super::{getattr::getattr, unexpected};
use crate::client::facts::Usable;
use crate::client::{Core, Pin};
use crate::error::Errno;
use crate::tree::{ListEntry, ListReply};
use consistency::InodeNo;
use consistency::wire::meta::{Attr, DirEntry, FileKind, Name, Op, OpReply};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Entries asked for at least: a second request costs more than entries that are not needed at once.
const PAGE_MIN: usize = 256;
/// Entries asked for at most.
pub(in crate::client) const PAGE_MAX: usize = 1024;

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
    let (parent, mut entries) = match cached(core, &dir, after, limit, plus) {
        Some(page) => page,
        None => {
            let task = ask(Arc::clone(core), dir.clone(), after, limit.max(PAGE_MIN));
            core.detached(task).await?
        }
    };
    entries.truncate(limit);
    if plus {
        gather(core, &mut entries).await;
    }
    let entries = entries.into_iter();
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

/// So many attributes are asked for at a time.
const GATHER_WIDTH: usize = 64;
/// How long a listing waits for files that other nodes have changed.
const GATHER_WITHIN: Duration = Duration::from_millis(200);

pub(in crate::client) struct Found {
    cookie: u64,
    name: Name,
    ino: InodeNo,
    kind: FileKind,
    child: Option<(Pin, Attr)>,
}

/// Asks for the attributes of files that have an owner elsewhere, all at once: who wants attributes with a listing looks at
/// all of them, and each look would wait for the owner by itself. Directories are left alone: who makes names in one by
/// itself would have to ask for each from then on.
async fn gather(core: &Arc<Core>, entries: &mut [Found]) {
    // The kernel takes no attributes of what it knows (policy A).
    let in_kernel = |ino| {
        core.pin_known(ino)
            .is_some_and(|pin| pin.state().lookups > 0)
    };
    let owned: Vec<InodeNo> = entries
        .iter()
        .filter(|found| found.child.is_none() && found.kind != FileKind::Dir)
        .map(|found| found.ino)
        .filter(|ino| !in_kernel(*ino))
        .collect();
    let mut looked = BTreeMap::new();
    let looks = async {
        for group in owned.chunks(GATHER_WIDTH) {
            let mut looks = JoinSet::new();
            for &ino in group {
                let core = Arc::clone(core);
                looks.spawn(async move {
                    let child = core.pin(ino);
                    let looked = getattr(&core, ino).await.ok()?;
                    Some((child, looked.attr))
                });
            }
            while let Some(look) = looks.join_next().await {
                if let Ok(Some((child, attr))) = look {
                    looked.insert(child.ino, (child, attr));
                }
            }
        }
    };
    // What writers have not flushed by then is looked at later.
    let _late = timeout(GATHER_WITHIN, looks).await;
    for found in entries {
        if let Some(child) = looked.get(&found.ino) {
            found.child = Some(child.clone());
        }
    }
}

/// Asks for a page, and remembers it.
pub(in crate::client) async fn ask(
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
    core.ahead.listed(dir.ino, after, &entries, end);
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

fn cached(
    core: &Arc<Core>,
    dir: &Pin,
    after: u64,
    limit: usize,
    plus: bool,
) -> Option<(InodeNo, Vec<Found>)> {
    let page = {
        let state = dir.state();
        if !core.covered(&state, dir.ino) {
            return None;
        }
        state.names.page(after, limit)?
    };
    let found = |(cookie, name, ino, kind)| {
        let child = plus.then(|| core.pin_known(ino)).flatten();
        let child = child.and_then(|child| {
            let attr = core.usable_attr(&child.state(), ino).map(Usable::attr)?;
            Some((child, attr))
        });
        Found {
            cookie,
            name,
            ino,
            kind,
            child,
        }
    };
    let entries = page.entries.into_iter().map(found).collect();
    Some((page.parent, entries))
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
