//! What the reader of a snapshot has asked for besides it: columns and files about the machines, each asked for once.
//!
//! Who reads a file of one process is answered for that one; who then reads it of another goes through all of them,
//! as `ps` does with `environ`, and gets it of all processes of the node at once.

use crate::cluster::{AskError, Cluster, Column};
use crate::wire::{MachineFile, ProcFile, Who};
use bytes::Bytes;
use consistency::NodeId;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};
use tokio::sync::OnceCell;

/// See the module. Its locks are leaves.
#[derive(Debug, Default)]
pub(crate) struct More {
    columns: Mutex<HashMap<(NodeId, ProcFile, Who), Asked<Column>>>,
    machines: Mutex<HashMap<MachineFile, Asked<Machines>>>,
}

/// A file of each machine.
type Machines = Vec<(NodeId, Bytes)>;

/// An answer that one asks for and others wait for; empty after the first question.
type Asked<T> = Option<Arc<OnceCell<T>>>;

impl More {
    /// Returns a file of all processes of a node, unless it is the first question about it.
    pub(crate) async fn column(
        &self,
        cluster: &Cluster,
        node: NodeId,
        file: ProcFile,
        who: Who,
    ) -> Result<Option<Arc<OnceCell<Column>>>, AskError> {
        let Some(cell) = repeated(&self.columns, (node, file, who)) else {
            return Ok(None);
        };
        cell.get_or_try_init(|| cluster.column(node, file, who))
            .await?;
        Ok(Some(cell))
    }

    /// Returns a file about each machine that is up.
    pub(crate) async fn machines(&self, cluster: &Cluster, file: MachineFile) -> Machines {
        let cell = {
            let mut machines = self.machines.lock().expect("no holder panics");
            let cell = machines.entry(file).or_default().get_or_insert_default();
            Arc::clone(cell)
        };
        cell.get_or_init(|| cluster.machines(file)).await.clone()
    }
}

/// Returns the answer to be had, but nothing the first time.
fn repeated<K: Eq + Hash, T>(
    asked: &Mutex<HashMap<K, Asked<T>>>,
    question: K,
) -> Option<Arc<OnceCell<T>>> {
    let mut asked = asked.lock().expect("no holder panics");
    match asked.get_mut(&question) {
        Some(cell) => Some(Arc::clone(cell.get_or_insert_default())),
        None => {
            asked.insert(question, None);
            None
        }
    }
}
