//! The gangs of all nodes (J10), read from the record by the daemon itself, without the mount.

use super::files::path_of;
use super::record::Record;
use async_trait::async_trait;
use consistency::{InodeNo, NodeId, Version};
use gfs::root::inside;
use gfs::tree::Tree;
use gproc::job::gang::Gang;
use gproc::job::{GangList, Nodes};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};

/// Longest file of a home that is read.
const RECORD_BYTES_MAX: usize = 64 << 20;

/// The record, for who has gangs take turns.
pub(crate) struct Gangs {
    files: Arc<dyn Tree>,
    nodes: Arc<dyn Nodes>,
    /// What was in the file of each home, in this state of this file. A leaf.
    read: Mutex<HashMap<NodeId, Read>>,
}

type Read = (InodeNo, Version, Vec<Gang>);

impl Gangs {
    pub(crate) fn new(files: Arc<dyn Tree>, nodes: Arc<dyn Nodes>) -> Self {
        Self {
            files,
            nodes,
            read: Mutex::default(),
        }
    }

    async fn of(&self, home: NodeId) -> Result<Vec<Gang>, String> {
        let path = path_of(home);
        let failed = |error| format!("{}: {error}", path.join("/"));
        let found = inside::find(&*self.files, &path.each_ref().map(String::as_str)).await;
        let Some(file) = found.map_err(|error| failed(error.to_string()))? else {
            return Ok(Vec::new());
        };
        let (ino, version) = (file.attr.ino, file.attr.version);
        let known = self
            .read
            .lock()
            .expect("no holder panics")
            .get(&home)
            .cloned();
        if let Some((of, at, gangs)) = known
            && (of, at) == (ino, version)
        {
            return Ok(gangs);
        }
        let bytes = file.read(RECORD_BYTES_MAX).await;
        let bytes = bytes.map_err(|error| failed(error.to_string()))?;
        let record: Record =
            serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))?;
        let gangs = record.gangs();
        let read = (ino, version, gangs.clone());
        self.read
            .lock()
            .expect("no holder panics")
            .insert(home, read);
        Ok(gangs)
    }
}

#[async_trait]
impl GangList for Gangs {
    async fn gangs(&self) -> Result<Vec<Gang>, String> {
        let nodes = self
            .nodes
            .nodes()
            .await
            .map_err(|error| error.to_string())?;
        let mut gangs = Vec::new();
        for home in nodes.iter().filter(|of| of.up) {
            gangs.extend(self.of(home.node).await?);
        }
        Ok(gangs)
    }
}

impl fmt::Debug for Gangs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gangs").finish_non_exhaustive()
    }
}
