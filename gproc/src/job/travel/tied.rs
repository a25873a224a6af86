//! What keeps a job where it is, as its home finds it, there or at the host of its copy.

use super::super::protocol::{Asked, Told};
use super::{Known, STAY, Travel, ask, guest, ties};
use consistency::NodeId;
use std::collections::BTreeSet;
use std::path::PathBuf;

impl Travel {
    /// As [`Self::ties`], of a job to which nothing is done; else `None` (MV3): CRIU would be looked at as well. A copy that runs
    /// already may ask before home knows that it does.
    pub(super) async fn ties_at_rest(
        &self,
        known: Option<&Known>,
        pid: i32,
    ) -> Option<BTreeSet<&'static str>> {
        if let Some(known) = known {
            known.landed().await;
        }
        let rests = || known.is_none_or(|known| known.status.borrow().settled);
        if !rests() {
            return None;
        }
        let ties = self.ties(known, pid).await;
        (ties.is_empty() || rests()).then_some(ties)
    }

    /// Returns every reason why a process cannot move.
    pub(super) async fn ties(&self, known: Option<&Known>, pid: i32) -> BTreeSet<&'static str> {
        let Some(known) = known else {
            return BTreeSet::from(["no_job"]);
        };
        let mut ties: BTreeSet<_> = known.tied.into_iter().collect();
        let at = known.status.borrow().at;
        match known.group.get().map(|group| group.dir()) {
            _ if at != self.node => ties.extend(self.ties_there(at, pid).await),
            Some(None) => drop(ties.insert("no_cgroup")),
            // Back at home it has another group.
            Some(Some(dir)) => {
                let dir = self.levels.dir_of(pid).unwrap_or_else(|| dir.to_owned());
                ties.extend(self.ties_of_processes(dir, pid).await);
            }
            None => {}
        }
        if self.admissions.stay(self.node).await {
            ties.insert(STAY);
        }
        ties
    }

    /// Returns what ties the processes in a cgroup of this node.
    pub(super) async fn ties_of_processes(&self, dir: PathBuf, pid: i32) -> BTreeSet<&'static str> {
        let engine = self.engine.get().cloned();
        let found = guest::blocking(move || {
            let Some(engine) = engine.filter(|engine| engine.check().is_ok()) else {
                return BTreeSet::from(["no_criu"]);
            };
            ties::ties(&dir, pid, engine.locks()).unwrap_or_default()
        });
        found.await
    }

    /// Asks the host of a copy what ties it there. One that does not say finds it when it makes images.
    async fn ties_there(&self, at: NodeId, pid: i32) -> BTreeSet<&'static str> {
        let Ok(transport) = self.transport() else {
            return BTreeSet::from(["no_criu"]);
        };
        match ask(&**transport, at, pid, Asked::TiesThere).await {
            Ok(Told::Ties(words)) => ties::known(&words),
            _ => BTreeSet::new(),
        }
    }
}
