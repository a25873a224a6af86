//! What is in directories.

use super::content::row_of;
use super::deep::{self, At, Spot};
use super::ino::{Asker, Ino, Row};
use super::known::first_tag;
use super::table::{CLUSTER, File, NODE, Names, OfProcess, OfRoot, PROCESS, ROOT, is_of_thread};
use super::{COOKIE_FIRST, COOKIE_PROCESSES, ProcTree, who};
use crate::cluster::View;
use crate::pids::ClusterPid;
use crate::wire::{Identity, ProcFile};
use consistency::wire::meta::FileKind;
use consistency::{InodeNo, NodeId};
use gfs::error::Errno;
use gfs::tree::Caller;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Instant;

/// A name in a listing.
pub(super) struct Listed {
    pub(super) cookie: u64,
    pub(super) name: String,
    pub(super) what: What,
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Fixed(Ino),
    Of(At),
}

impl What {
    /// Returns the number in a listing that makes no inode known.
    pub(super) fn number(self) -> InodeNo {
        let ino = match self {
            Self::Fixed(ino) => ino,
            Self::Of(at) => {
                let Identity { pid, birth, .. } = at.identity;
                let tag = first_tag(birth, at.own);
                match (at.thread, at.spot) {
                    (None, Spot::Dir) => Ino::Process(pid, tag),
                    (None, Spot::File(row)) if kind_at(&at) != FileKind::Symlink => {
                        Ino::ProcessFile(pid, tag, row)
                    }
                    _ => Ino::Deep(deep::listed(&at)),
                }
            }
        };
        ino.number()
    }

    pub(super) fn kind(self) -> FileKind {
        match self {
            Self::Fixed(ino) => kind_of_fixed(ino),
            Self::Of(at) => kind_at(&at),
        }
    }
}

pub(super) fn kind_at(at: &At) -> FileKind {
    match at.spot {
        Spot::Dir => FileKind::Dir,
        Spot::File(row) => PROCESS
            .get(usize::from(row))
            .map_or(FileKind::File, |file| file.what.kind()),
        Spot::Fd(_) => FileKind::Symlink,
        Spot::FdInfo(_) => FileKind::File,
    }
}

/// Returns the kind of what belongs to no process.
pub(super) fn kind_of_fixed(ino: Ino) -> FileKind {
    match ino {
        Ino::Root | Ino::Cluster | Ino::Node(_) | Ino::Own(_) => FileKind::Dir,
        Ino::RootFile(row) | Ino::OwnFile(_, row) => ROOT
            .get(usize::from(row))
            .map_or(FileKind::File, |file| file.what.kind()),
        Ino::ClusterFile(_) | Ino::NodeFile(..) => FileKind::File,
        Ino::SelfLink(_) => FileKind::Symlink,
        // These are asked by what they are of.
        Ino::Process(..) | Ino::ProcessFile(..) | Ino::Deep(_) => FileKind::File,
    }
}

impl ProcTree {
    /// Finds a name in a directory.
    pub(super) async fn find_in(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
    ) -> Result<Option<What>, Errno> {
        let text = std::str::from_utf8(name).unwrap_or_default();
        match parent {
            Ino::Root | Ino::Own(_) => {
                let node = own_node(parent);
                if let Some(row) = row_in(ROOT, "", text) {
                    return Ok(Some(What::Fixed(root_file(node, row))));
                }
                Ok(match name {
                    b"cluster" if node.is_none() => Some(What::Fixed(Ino::Cluster)),
                    b"self" => self.own_link(caller, node, false).await,
                    b"thread-self" => self.own_link(caller, node, true).await,
                    _ => self.find_process(caller, node, name).await?,
                })
            }
            Ino::Process(..) | Ino::ProcessFile(..) | Ino::Deep(_) => {
                let at = self.at(parent)?;
                self.find_at(caller, &at, text).await
            }
            _ => {
                let mut names = self.names(parent)?.into_iter();
                let found = names.find(|(found, _)| found.as_bytes() == name);
                Ok(found.map(|(_, ino)| What::Fixed(ino)))
            }
        }
    }

    async fn find_process(
        &self,
        caller: Caller,
        node: Option<NodeId>,
        name: &[u8],
    ) -> Result<Option<What>, Errno> {
        let pid = match node {
            None => ClusterPid::parse(name),
            Some(node) => parse_own(node, name),
        };
        let Some(pid) = pid else {
            return Ok(None);
        };
        let identity = self.identify(caller.pid, pid).await?;
        let shown = identity.filter(|identity| identity.is_shown_to(who(caller)));
        Ok(shown.map(|identity| What::Of(process(identity, node.is_some()))))
    }

    async fn find_at(&self, caller: Caller, at: &At, name: &str) -> Result<Option<What>, Errno> {
        let (dir, names) = dir_at(at)?;
        if let Some(row) = row_in(PROCESS, dir, name) {
            let shown = at.thread.is_none() || is_of_thread(&PROCESS[usize::from(row)]);
            let file = At {
                spot: Spot::File(row),
                ..*at
            };
            return Ok(shown.then_some(What::Of(file)));
        }
        let found = match names {
            Names::Nothing => None,
            Names::Threads => {
                let pid = if at.own {
                    parse_own(at.identity.pid.home(), name.as_bytes())
                } else {
                    ClusterPid::parse(name.as_bytes())
                };
                pid.map(|pid| {
                    (
                        At {
                            thread: Some(pid),
                            spot: Spot::Dir,
                            ..*at
                        },
                        i32::from(pid),
                    )
                })
            }
            Names::Fds | Names::FdInfos => parse_number(name).map(|number| {
                let spot = descriptor(names, number);
                (At { spot, ..*at }, number.cast_signed())
            }),
        };
        let Some((found, number)) = found else {
            return Ok(None);
        };
        let there = self.numbers(caller, at, names).await?;
        Ok(there.contains(&number).then_some(What::Of(found)))
    }

    /// Returns the names of threads or descriptors of a process, those of threads with cluster pids.
    async fn numbers(&self, caller: Caller, at: &At, names: Names) -> Result<Vec<i32>, Errno> {
        let file = if names == Names::Threads {
            ProcFile::Tasks
        } else {
            ProcFile::Fds
        };
        let text = self.read_file(caller, at, file).await?;
        let lines = text.split(|byte| *byte == b'\n');
        let numbers = lines.filter_map(|line| std::str::from_utf8(line).ok()?.parse().ok());
        Ok(numbers.collect())
    }

    async fn own_link(
        &self,
        caller: Caller,
        node: Option<NodeId>,
        with_thread: bool,
    ) -> Option<What> {
        let agent = self.cluster.agent();
        if node.is_some_and(|node| node != agent.node()) {
            return None;
        }
        let pid = agent.process_of(caller.pid).await?;
        Some(What::Fixed(Ino::SelfLink(Asker {
            pid,
            thread: if with_thread { caller.pid } else { 0 },
            own: node.is_some(),
        })))
    }

    /// Returns the names in a directory of no process.
    fn names(&self, ino: Ino) -> Result<Vec<(String, Ino)>, Errno> {
        let names = match ino {
            Ino::Cluster => {
                let node = |node: NodeId| (format!("node{node}"), Ino::Node(node));
                let nodes = self.cluster.nodes().into_iter().map(node);
                rows(CLUSTER.iter().map(|file| file.name), Ino::ClusterFile)
                    .chain(nodes)
                    .collect()
            }
            Ino::Node(node) => {
                let file = |row| Ino::NodeFile(node, row);
                rows(NODE.iter().map(|file| file.name), file).collect()
            }
            Ino::RootFile(row) | Ino::OwnFile(_, row) => {
                let dir = ROOT.get(usize::from(row)).ok_or(Errno::ESTALE)?;
                if !matches!(dir.what, OfRoot::Dir) {
                    return Err(Errno::ENOTDIR);
                }
                let node = own_node(ino);
                rows_in(ROOT, dir.path)
                    .map(|(row, name)| (name.into(), root_file(node, row)))
                    .collect()
            }
            _ => return Err(Errno::ENOTDIR),
        };
        Ok(names)
    }

    /// Lists a directory behind a cookie, in ascending order of cookies, at least `limit` entries if there are.
    pub(super) async fn list(
        &self,
        caller: Caller,
        ino: Ino,
        after: u64,
        limit: usize,
    ) -> Result<Vec<Listed>, Errno> {
        match ino {
            Ino::Root | Ino::Own(_) => {
                Ok(self.list_root(caller, own_node(ino), after, limit).await)
            }
            Ino::Process(..) | Ino::ProcessFile(..) | Ino::Deep(_) => {
                let at = self.at(ino)?;
                self.list_at(caller, &at, after).await
            }
            _ => {
                let names = self.names(ino)?.into_iter();
                let names = names.map(|(name, ino)| (name, What::Fixed(ino)));
                Ok(fixed(names, after))
            }
        }
    }

    async fn list_at(&self, caller: Caller, at: &At, after: u64) -> Result<Vec<Listed>, Errno> {
        let (dir, names) = dir_at(at)?;
        let named = |row, name: &str| {
            let spot = Spot::File(row);
            (name.to_owned(), What::Of(At { spot, ..*at }))
        };
        let rows = rows_in(PROCESS, dir)
            .filter(|(row, _)| at.thread.is_none() || is_of_thread(&PROCESS[usize::from(*row)]))
            .map(|(row, name)| named(row, name));
        if names == Names::Nothing {
            let ended = |_| Errno::ENOENT;
            self.alive(caller, at).await.map_err(ended)?;
            return Ok(fixed(rows, after));
        }
        let numbers = self.numbers(caller, at, names).await.map_err(|errno| {
            if errno == Errno::ESRCH {
                Errno::ENOENT
            } else {
                errno
            }
        })?;
        let entry = |number: i32| {
            let (name, found) = if names == Names::Threads {
                let thread = ClusterPid::try_from(number).ok()?;
                let shown = if at.own { thread.kernel() } else { number };
                let dir = At {
                    thread: Some(thread),
                    spot: Spot::Dir,
                    ..*at
                };
                (shown, dir)
            } else {
                let spot = descriptor(names, number.cast_unsigned());
                (number, At { spot, ..*at })
            };
            // As of the number, so that what comes and goes meanwhile moves nothing else.
            let cookie = COOKIE_FIRST + u64::from(name.cast_unsigned());
            Some(Listed {
                cookie,
                name: name.to_string(),
                what: What::Of(found),
            })
        };
        let mut listed: Vec<_> = numbers.into_iter().filter_map(entry).collect();
        listed.sort_unstable_by_key(|listed| listed.cookie);
        listed.retain(|listed| listed.cookie > after);
        Ok(listed)
    }

    async fn list_root(
        &self,
        caller: Caller,
        node: Option<NodeId>,
        after: u64,
        limit: usize,
    ) -> Vec<Listed> {
        let mut listed = Vec::new();
        if after < COOKIE_PROCESSES {
            let cluster = node
                .is_none()
                .then(|| ("cluster".into(), What::Fixed(Ino::Cluster)));
            let own = self.own_link(caller, node, false).await;
            let thread = self.own_link(caller, node, true).await;
            let links = own.map(|what| ("self".into(), what)).into_iter();
            let links = links.chain(thread.map(|what| ("thread-self".into(), what)));
            let rows = rows_in(ROOT, "")
                .map(|(row, name)| (name.to_owned(), What::Fixed(root_file(node, row))));
            // What is not always there comes last, so that nothing moves.
            listed = fixed(cluster.into_iter().chain(rows).chain(links), after);
        }
        let view = self.listing_view(caller.pid, after).await;
        let cookie = |pid: ClusterPid| COOKIE_PROCESSES + u64::from(pid.number());
        let behind = i32::try_from(after.saturating_sub(COOKIE_PROCESSES)).ok();
        let behind = behind.and_then(|number| ClusterPid::try_from(number).ok());
        let behind = behind.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = view.processes.range((behind, Bound::Unbounded));
        let rest = rest.map(|(_, record)| record.identity);
        let rest = rest.filter(|identity| {
            cookie(identity.pid) > after
                && identity.is_shown_to(who(caller))
                && node.is_none_or(|node| identity.pid.home() == node)
        });
        listed.extend(rest.take(limit).map(|identity| Listed {
            cookie: cookie(identity.pid),
            name: match node {
                None => identity.pid.to_string(),
                Some(_) => identity.pid.kernel().to_string(),
            },
            what: What::Of(process(identity, node.is_some())),
        }));
        listed
    }

    /// Takes a snapshot when a listing begins and uses it up to its end.
    async fn listing_view(&self, reader: u32, after: u64) -> Arc<View> {
        if after != 0
            && let Some(view) = self.readers.view(reader)
        {
            return view;
        }
        let taken = Instant::now();
        let view = Arc::new(self.cluster.view().await);
        self.readers.keep(reader, taken, &view);
        view
    }
}

fn own_node(ino: Ino) -> Option<NodeId> {
    match ino {
        Ino::Own(node) | Ino::OwnFile(node, _) => Some(node),
        _ => None,
    }
}

const fn root_file(node: Option<NodeId>, row: Row) -> Ino {
    match node {
        None => Ino::RootFile(row),
        Some(node) => Ino::OwnFile(node, row),
    }
}

const fn process(identity: Identity, own: bool) -> At {
    At {
        identity,
        own,
        thread: None,
        spot: Spot::Dir,
    }
}

/// Returns the path of a directory below its process or thread, and what is in it besides rows.
fn dir_at(at: &At) -> Result<(&'static str, Names), Errno> {
    match at.spot {
        Spot::Dir => Ok(("", Names::Nothing)),
        Spot::File(row) => {
            let file = PROCESS.get(usize::from(row)).ok_or(Errno::ESTALE)?;
            match file.what {
                OfProcess::Dir(names) => Ok((file.path, names)),
                _ => Err(Errno::ENOTDIR),
            }
        }
        Spot::Fd(_) | Spot::FdInfo(_) => Err(Errno::ENOTDIR),
    }
}

const fn descriptor(names: Names, number: u32) -> Spot {
    match names {
        Names::FdInfos => Spot::FdInfo(number),
        Names::Nothing | Names::Threads | Names::Fds => Spot::Fd(number),
    }
}

/// Reads a kernel's number of a process of a node.
fn parse_own(node: NodeId, name: &[u8]) -> Option<ClusterPid> {
    let number = parse_number(std::str::from_utf8(name).ok()?)?;
    ClusterPid::of(node, i32::try_from(number).ok()?)
}

/// Reads decimal digits without leading zeros.
fn parse_number(name: &str) -> Option<u32> {
    let plain = name == "0" || !name.starts_with('0');
    let digits = name.bytes().all(|byte| byte.is_ascii_digit());
    let number = name
        .parse()
        .ok()
        .filter(|number| *number <= i32::MAX as u32);
    number.filter(|_| plain && digits)
}

fn row_in<W>(table: &'static [File<W>], dir: &str, name: &str) -> Option<Row> {
    if dir.is_empty() {
        row_of(table, name).filter(|_| !name.contains('/'))
    } else {
        row_of(table, &format!("{dir}/{name}"))
    }
}

/// Returns the rows in a directory with their names.
fn rows_in<W>(table: &'static [File<W>], dir: &str) -> impl Iterator<Item = (Row, &'static str)> {
    let rows = (0..).zip(table).map(|(row, file)| (row, file.split()));
    rows.filter(move |(_, (parent, _))| *parent == dir)
        .map(|(row, (_, name))| (row, name))
}

/// Returns the names of a table with their inodes.
fn rows(
    names: impl Iterator<Item = &'static str>,
    ino: impl Fn(Row) -> Ino,
) -> impl Iterator<Item = (String, Ino)> {
    (0..)
        .zip(names)
        .map(move |(row, name)| (name.into(), ino(row)))
}

/// Returns the entries behind a cookie of a directory with these names.
fn fixed(names: impl Iterator<Item = (String, What)>, after: u64) -> Vec<Listed> {
    let listed = |(cookie, (name, what))| Listed { cookie, name, what };
    (COOKIE_FIRST..)
        .zip(names)
        .filter(|(cookie, _)| *cookie > after)
        .map(listed)
        .collect()
}
