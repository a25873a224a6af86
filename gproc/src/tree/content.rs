//! What files show.

use super::deep::{At, Spot};
use super::ino::{Asker, Ino};
use super::polls::Polled;
use super::switches::Order;
use super::table::{
    self, CLUSTER, NODE, OfCluster, OfMoves, OfNode, OfProcess, OfRoot, PROCESS, ROOT,
};
use super::{ProcTree, who};
use crate::cluster::View;
use crate::files::Rule;
use crate::job::protocol::{Checkpoint, Cost, Moved};
use crate::job::{Asked, Told};
use crate::pids::ClusterPid;
use crate::text;
use crate::totals::Share;
use crate::wire::{Identity, MachineFile, ProcFile, Record, Who};
use bytes::Bytes;
use consistency::NodeId;
use gfs::error::Errno;
use gfs::tree::Caller;
use std::borrow::Cow;
use std::sync::Arc;

/// An open file.
#[derive(Clone, Debug, Default)]
pub(super) struct Open {
    pub(super) content: Option<Bytes>,
    /// The content has been read from its beginning: who reads it so again gets a new one, as of procfs.
    pub(super) read: bool,
    /// Where a reader of events is.
    pub(super) position: Option<u64>,
    /// Who has opened it.
    pub(super) opener: Who,
    /// What wakes who polls it.
    pub(super) polled: Option<Arc<Polled>>,
}

impl ProcTree {
    /// Returns what an inode shows now.
    pub(super) async fn content(&self, caller: Caller, ino: Ino) -> Result<Bytes, Errno> {
        match ino {
            Ino::Root | Ino::Cluster | Ino::Node(_) | Ino::Own(_) => Err(Errno(libc::EISDIR)),
            Ino::SelfLink(_) => Err(Errno(libc::ELOOP)),
            Ino::RootFile(row) => self.root_content(caller, row).await,
            Ino::OwnFile(node, row) => {
                let file = ROOT.get(usize::from(row)).ok_or(Errno::ESTALE)?;
                match file.what {
                    OfRoot::Total(file, _) | OfRoot::Here(file) | OfRoot::Told(file, _) => {
                        Ok(self.cluster.machine(node, file).await?)
                    }
                    OfRoot::Link(_) => Err(Errno(libc::ELOOP)),
                    OfRoot::Dir => Err(Errno(libc::EISDIR)),
                }
            }
            Ino::ClusterFile(row) => {
                let file = CLUSTER.get(usize::from(row)).ok_or(Errno::ESTALE)?;
                match file.what {
                    OfCluster::Shows(show) => {
                        let drain = (self.draining.0)();
                        let loads = self.cluster.loads().await.into_iter();
                        let states = loads.map(|(node, load)| {
                            (node, table::state(load.is_some(), drain.contains(&node)))
                        });
                        Ok(show(&states.collect::<Vec<_>>()).into())
                    }
                    OfCluster::LevelList => Ok(self.level_list().await?.into()),
                    OfCluster::Events | OfCluster::NoteGroup => Err(Errno::EACCES),
                }
            }
            Ino::NodeFile(node, row) => {
                let file = NODE.get(usize::from(row)).ok_or(Errno::ESTALE)?;
                match file.what {
                    OfNode::Shows(show) => {
                        let load = self.cluster.load(node).await.ok();
                        Ok(show(load.as_ref())?.into())
                    }
                    OfNode::State => {
                        let answers = self.cluster.load(node).await.is_ok();
                        let drains = (self.draining.0)().contains(&node);
                        Ok(format!("{}\n", table::state(answers, drains)).into())
                    }
                    OfNode::Switch(order) => self.shown(node, order).await,
                    OfNode::Tells(switch) => self.shown(node, Order::Keep(switch)).await,
                    OfNode::Metrics => Ok(self.cluster.metrics(node).await?),
                }
            }
            Ino::Process(..) | Ino::ProcessFile(..) | Ino::Deep(_) => {
                let at = self.at(ino)?;
                self.content_at(caller, &at).await
            }
        }
    }

    async fn shown(&self, node: NodeId, order: Order) -> Result<Bytes, Errno> {
        let on = self.switched(node, order).await?;
        Ok(Bytes::from_static(if on { b"1\n" } else { b"0\n" }))
    }

    async fn root_content(&self, caller: Caller, row: u8) -> Result<Bytes, Errno> {
        match ROOT.get(usize::from(row)).ok_or(Errno::ESTALE)?.what {
            OfRoot::Total(file, total) => {
                let all = self.machines(caller, file).await;
                let texts = all
                    .iter()
                    .map(|(node, text)| (*node, String::from_utf8_lossy(text)));
                let texts: Vec<(NodeId, Cow<'_, str>)> = texts.collect();
                let shares = texts.iter().map(|(node, text)| (*node, &**text));
                Ok(total(&shares.collect::<Vec<Share<'_>>>()).into())
            }
            OfRoot::Here(file) => {
                let here = self.cluster.agent().node();
                Ok(self.cluster.machine(here, file).await?)
            }
            OfRoot::Told(_, tell) => Ok(tell(&self.cluster.nodes()).into()),
            OfRoot::Link(_) => Err(Errno(libc::ELOOP)),
            OfRoot::Dir => Err(Errno(libc::EISDIR)),
        }
    }

    /// Returns a file about each machine, that of this node last.
    async fn machines(&self, caller: Caller, file: MachineFile) -> Vec<(NodeId, Bytes)> {
        match self.readers.view(caller.pid) {
            Some(view) => view.more.machines(&self.cluster, file).await,
            None => self.cluster.machines(file).await,
        }
    }

    async fn content_at(&self, caller: Caller, at: &At) -> Result<Bytes, Errno> {
        let row = match at.spot {
            Spot::Dir => return Err(Errno(libc::EISDIR)),
            Spot::Fd(_) => return Err(Errno(libc::ELOOP)),
            Spot::FdInfo(number) => {
                return self.read_file(caller, at, ProcFile::FdInfo(number)).await;
            }
            Spot::File(row) => row,
        };
        match PROCESS.get(usize::from(row)).ok_or(Errno::ESTALE)?.what {
            OfProcess::Known(show) => {
                self.alive(caller, at).await?;
                Ok(show(&at.identity).into())
            }
            OfProcess::Moves(what) => {
                self.alive(caller, at).await?;
                self.about_moves(at.identity, what).await
            }
            OfProcess::Read(from, show) | OfProcess::ReadsTakes(from, show, _) => {
                self.read_file(caller, at, from).await.map(show)
            }
            OfProcess::Link(_) => Err(Errno(libc::ELOOP)),
            OfProcess::Dir(_) => Err(Errno(libc::EISDIR)),
            OfProcess::Wait => {
                let ended = self.cluster.wait(&at.identity, who(caller)).await?;
                ended.map_err(Errno)
            }
            // Root, who may open it all the same, reads nothing.
            OfProcess::Takes(_) => Err(Errno::EACCES),
        }
    }

    /// Returns what a file shows of a process that may move.
    async fn about_moves(&self, identity: Identity, what: OfMoves) -> Result<Bytes, Errno> {
        if identity.is_stand_in() {
            return Err(Errno(libc::EHOSTDOWN));
        }
        let asked = match what {
            OfMoves::Where | OfMoves::Count | OfMoves::Why => Asked::Where,
            OfMoves::Ties => Asked::Ties,
            OfMoves::Checkpoints => Asked::Checkpoint,
            OfMoves::Last => Asked::LastMove,
        };
        let home = identity.pid.home();
        let told = match asked {
            // What is known of a process of a silent node is that it was there.
            _ if self.cluster.may_be_silent(home) => Err(Errno(libc::EHOSTDOWN)),
            _ => self.cluster.ask_of_moves(identity.pid, asked).await,
        };
        let told = match (asked, told) {
            (_, Ok(Some(told))) => told,
            (Asked::Checkpoint, told) => told.map(|_| Told::Checkpoint(Checkpoint::default()))?,
            (Asked::LastMove, told) => told.map(|_| Told::LastMove(None))?,
            (Asked::Ties, told) => told.map(|_| Told::Ties(vec!["old_node".into()]))?,
            _ => Told::Where { at: home, moves: 0 },
        };
        Ok(match (what, told) {
            (OfMoves::Where, Told::Where { at, .. }) => format!("{at}\n").into(),
            (OfMoves::Why, Told::Where { at, .. }) => {
                // The node that runs it levels it.
                let told = self.cluster.ask_at(at, identity.pid, Asked::Why).await;
                match told? {
                    Some(Told::Why(why)) if !why.contains(char::is_control) => {
                        format!("{why}\n").into()
                    }
                    Some(_) => return Err(Errno::EIO),
                    None => "stays old_node: the Glu of its node is older\n".into(),
                }
            }
            (OfMoves::Checkpoints, Told::Checkpoint(Checkpoint { newest, restarts })) => {
                let (number, made, bytes) =
                    newest.map_or_else(Default::default, |of| (of.number, of.made, of.bytes));
                format!("{number} {made} {bytes} {restarts}\n").into()
            }
            (OfMoves::Last, Told::LastMove(last)) => last.map_or_else(Bytes::new, last_move),
            (OfMoves::Count, Told::Where { moves, .. }) => format!("{moves}\n").into(),
            (OfMoves::Ties, Told::Ties(mut ties)) => {
                if self.is_locked(identity).await? {
                    ties.push("user_lock".into());
                }
                // Words that another node has chosen.
                ties.retain(|tie| tie.bytes().all(|byte| byte.is_ascii_graphic()));
                ties.iter()
                    .flat_map(|tie| [tie, "\n"])
                    .collect::<String>()
                    .into()
            }
            _ => return Err(Errno::EIO),
        })
    }

    /// Fails with ESRCH if a process has ended.
    pub(super) async fn alive(&self, caller: Caller, at: &At) -> Result<(), Errno> {
        let now = self.identify(caller.pid, at.identity.pid).await?;
        let alive = now.is_some_and(|now| now.birth == at.identity.birth);
        alive.then_some(()).ok_or(Errno::ESRCH)
    }

    /// Returns where a link leads.
    pub(super) async fn target(&self, caller: Caller, ino: Ino) -> Result<Bytes, Errno> {
        let link_at = |row: u8| match ROOT.get(usize::from(row)).map(|file| file.what) {
            Some(OfRoot::Link(target)) => Ok(Bytes::from_static(target.as_bytes())),
            Some(_) => Err(Errno::EINVAL),
            None => Err(Errno::ESTALE),
        };
        match ino {
            Ino::SelfLink(asker) => Ok(target_of_self(asker).into()),
            Ino::RootFile(row) | Ino::OwnFile(_, row) => link_at(row),
            Ino::ProcessFile(..) | Ino::Deep(_) => {
                let at = self.at(ino)?;
                let file = match at.spot {
                    Spot::Fd(number) => ProcFile::Fd(number),
                    Spot::File(row) => match PROCESS.get(usize::from(row)).map(|file| file.what) {
                        Some(OfProcess::Link(file)) => file,
                        _ => return Err(Errno::EINVAL),
                    },
                    Spot::Dir | Spot::FdInfo(_) => return Err(Errno::EINVAL),
                };
                self.read_file(caller, &at, file).await
            }
            _ => Err(Errno::EINVAL),
        }
    }

    /// Reads a file of a process on its node, or has it from what the reader's snapshot brought.
    pub(super) async fn read_file(
        &self,
        caller: Caller,
        at: &At,
        file: ProcFile,
    ) -> Result<Bytes, Errno> {
        let view = self
            .readers
            .view_at(caller.pid, at.identity.pid)
            .filter(|_| at.thread.is_none());
        let listed = view.is_some();
        let kept = match &view {
            Some(view) => self.kept(view, at, file, who(caller)).await,
            None => None,
        };
        let known = self.as_it_was(at, file);
        let content = match kept {
            Some(content) => content,
            // Who looks at many of them waits once.
            None if self.cluster.may_be_silent(at.identity.pid.home())
                && (listed || known.is_some()) =>
            {
                Ok(known.ok_or(Errno(libc::EHOSTDOWN))?)
            }
            None => {
                let answer = self
                    .cluster
                    .read(&at.identity, at.thread, file, who(caller))
                    .await;
                match answer {
                    Ok(content) => content,
                    Err(error) => Ok(known.ok_or(error)?),
                }
            }
        };
        let content = content.map_err(Errno)?;
        if at.own {
            return Ok(own_view(file, content));
        }
        if file != ProcFile::Stat {
            return Ok(content);
        }
        let behind = self.cluster.behind_first(&at.identity).await;
        let later = (behind > 0).then(|| text::start_later(&content, behind));
        Ok(later.flatten().map_or(content, Bytes::from))
    }

    /// Returns a file of a process whose node has just fallen silent.
    fn as_it_was(&self, at: &At, file: ProcFile) -> Option<Bytes> {
        let record = self.cluster.of_silent_node(at.identity.pid)?;
        let same = at.thread.is_none() && record.identity.birth == at.identity.birth;
        same.then(|| record.kept(file))?
    }

    async fn kept(
        &self,
        view: &View,
        at: &At,
        file: ProcFile,
        who: Who,
    ) -> Option<Result<Bytes, i32>> {
        let record = view.processes.get(&at.identity.pid)?;
        if record.identity.birth != at.identity.birth {
            return None;
        }
        if let Some(content) = record.kept(file) {
            return Some(Ok(content));
        }
        let is_column = file.is_quick() && record.kept_elsewhere(file);
        let node = at.identity.pid.home();
        let column = is_column.then(|| view.more.column(&self.cluster, node, file, who))?;
        let column = column.await.ok()??;
        let (birth, content) = column.get()?.get(&at.identity.pid)?;
        (*birth == at.identity.birth).then(|| content.clone())
    }
}

/// Returns whether a file is read when it is opened: it is then that procfs asks whether one may.
pub(super) fn is_read_at_open(at: &At) -> bool {
    let Spot::File(row) = at.spot else {
        return true;
    };
    match PROCESS.get(usize::from(row)).map(|file| file.what) {
        Some(OfProcess::Read(file, _)) => file.rule() == Rule::Tracer,
        _ => false,
    }
}

fn target_of_self(Asker { pid, thread, own }: Asker) -> String {
    let number = |pid: ClusterPid| if own { pid.kernel() } else { i32::from(pid) };
    let thread = i32::try_from(thread).ok().filter(|thread| *thread != 0);
    match thread.and_then(|thread| ClusterPid::of(pid.home(), thread)) {
        Some(thread) => format!("{}/task/{}", number(pid), number(thread)),
        None => number(pid).to_string(),
    }
}

/// Gives pids the numbers that they have in their node's own view.
fn own_view(file: ProcFile, content: Bytes) -> Bytes {
    let kernel = |pid: i32| ClusterPid::try_from(pid).map_or(pid, ClusterPid::kernel);
    let rewritten = match file {
        ProcFile::Stat => text::rewrite_stat(&content, kernel),
        ProcFile::Status => text::rewrite_status(&content, kernel),
        _ => None,
    };
    rewritten.map_or(content, Bytes::from)
}

impl Record {
    /// Returns a file if the snapshot has it.
    fn kept(&self, file: ProcFile) -> Option<Bytes> {
        match file {
            ProcFile::Stat => Some(self.stat.clone()),
            ProcFile::Status => Some(self.status.clone()),
            ProcFile::Cmdline => self.cmdline.clone(),
            _ => None,
        }
    }

    /// Returns whether a file may be had from a column: what a snapshot leaves out a column leaves out, too.
    const fn kept_elsewhere(&self, file: ProcFile) -> bool {
        !matches!(file, ProcFile::Stat | ProcFile::Status | ProcFile::Cmdline)
    }
}

/// Returns the row with a path.
pub(super) fn row_of<W>(rows: &[table::File<W>], path: &str) -> Option<u8> {
    let row = rows.iter().position(|file| file.path == path);
    row.and_then(|row| u8::try_from(row).ok())
}

/// From, to, milliseconds in all and of the pause, bytes, and how.
fn last_move((moved, cost): (Moved, Cost)) -> Bytes {
    let Moved {
        from, to, took_ms, ..
    } = moved;
    let Cost {
        pause_ms,
        bytes,
        memory,
    } = cost;
    let how = memory.word();
    format!("{from} {to} {took_ms} {pause_ms} {bytes} {how}\n").into()
}
