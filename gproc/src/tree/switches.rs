//! What root switches of a node, in `cluster/node<N>/`: names and meanings are MOSIX's. `in_use` it switches itself.
//!
//! | file | 1 |
//! | --- | --- |
//! | `block` | the node starts and takes in no processes of other nodes |
//! | `stay` | processes that have been started there do not move to other nodes |
//! | `bring` | its processes that are elsewhere come home; the write returns when they are there |
//! | `loadlevel` | its jobs are levelled, and it takes jobs that are; 1 unless it is switched off |
//! | `expel` | processes of other nodes that have moved there go home, likewise |

use super::ProcTree;
use super::control::switch;
use crate::job::{Asked, Told};
use crate::level::list;
use crate::pids::ClusterPid;
use crate::text;
use async_trait::async_trait;
use consistency::NodeId;
use gfs::error::Errno;
use std::fmt;
use std::sync::Arc;

/// Something about a node that is on or off until it is switched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// It takes no processes of other nodes.
    Block,
    /// Its processes do not leave it.
    Stay,
    /// Its owner works at it: it takes none either. It says so itself.
    InUse,
    /// It levels nothing.
    Unlevelled,
}

/// Keeps what is switched, for all nodes.
#[async_trait]
pub trait Switches: Send + Sync {
    /// Returns whether something is on.
    async fn is_on(&self, node: NodeId, switch: Switch) -> Result<bool, Errno>;

    /// Switches it.
    async fn set(&self, node: NodeId, switch: Switch, on: bool) -> Result<(), Errno>;

    /// Returns the names of the programs that are levelled, a line each.
    async fn list(&self) -> Result<String, Errno>;

    /// Has others be levelled.
    async fn set_list(&self, list: &str) -> Result<(), Errno>;
}

/// Where they are kept, if anywhere.
#[derive(Default)]
pub(super) struct Kept(pub(super) Option<Arc<dyn Switches>>);

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kept({})", self.0.is_some())
    }
}

/// A file that takes 0 or 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Keep(Switch),
    /// It shows and takes the opposite.
    KeepNot(Switch),
    Bring,
    Expel,
}

impl ProcTree {
    pub(super) async fn switched(&self, node: NodeId, order: Order) -> Result<bool, Errno> {
        match (order, &self.switches.0) {
            (Order::Keep(switch), Some(switches)) => switches.is_on(node, switch).await,
            (Order::KeepNot(switch), Some(switches)) => Ok(!switches.is_on(node, switch).await?),
            _ => Ok(false),
        }
    }

    /// Carries out what has been written to a file of a node.
    pub(super) async fn switch(
        &self,
        node: NodeId,
        order: Order,
        text: &[u8],
    ) -> Result<(), Errno> {
        let on = switch(text)?;
        match (order, &self.switches.0) {
            (Order::Keep(switch), Some(switches)) => switches.set(node, switch, on).await,
            (Order::KeepNot(switch), Some(switches)) => switches.set(node, switch, !on).await,
            (Order::Bring, _) if on => self.send_home(node, |pid, _| pid.home() == node).await,
            (Order::Expel, _) if on => self.send_home(node, |_, at| at == node).await,
            _ if on => Err(Errno(libc::EOPNOTSUPP)),
            _ => Ok(()),
        }
    }

    /// Returns `loadlevellist`.
    pub(super) async fn level_list(&self) -> Result<String, Errno> {
        match &self.switches.0 {
            Some(switches) => switches.list().await,
            None => Ok(String::new()),
        }
    }

    /// Carries out what has been written to `loadlevellist`.
    pub(super) async fn set_level_list(&self, offset: u64, text: &[u8]) -> Result<(), Errno> {
        // One write is one list.
        let list = list::read(text).filter(|_| offset == 0);
        let list = list.ok_or(Errno::EINVAL)?;
        match &self.switches.0 {
            Some(switches) => switches.set_list(&list).await,
            None => Err(Errno(libc::EOPNOTSUPP)),
        }
    }

    /// Sends processes home that are elsewhere; the first failure is the result, when all have been tried.
    async fn send_home(
        &self,
        node: NodeId,
        meant: impl Fn(ClusterPid, NodeId) -> bool,
    ) -> Result<(), Errno> {
        // A process that is away is a zombie at home.
        let view = self.cluster.view().await;
        let away = view.processes.values();
        let away = away.filter(|record| text::exit_status(&record.stat).is_some());
        let mut done = Ok(());
        for pid in away.map(|record| record.identity.pid) {
            let home = pid.home();
            let told = self.cluster.ask_of_moves(pid, Asked::Where).await;
            let Ok(Some(Told::Where { at, .. })) = told else {
                continue;
            };
            if at == home || !meant(pid, at) {
                continue;
            }
            let gone = match self.cluster.ask_of_moves(pid, Asked::Go(home)).await {
                // It has ended meanwhile.
                Ok(Some(Told::Gone(Ok(()) | Err(libc::ESRCH)))) => Ok(()),
                Ok(Some(Told::Gone(Err(errno)))) => Err(Errno(errno)),
                Ok(_) => Err(Errno(libc::EOPNOTSUPP)),
                Err(error) => Err(error),
            };
            if let Err(error) = gone {
                tracing::warn!(%pid, %node, %error, "a process could not be sent home");
                done = done.and(Err(error));
            }
        }
        done
    }
}
