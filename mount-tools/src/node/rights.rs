//! Whom the nodes are for, as the tree has it: their rights, the reservations, and what root has switched.

use crate::batch::{RULES, Reservations};
use crate::config::GuestsConfig;
use async_trait::async_trait;
use consistency::{InodeNo, NodeId, Version};
use gfs::error::Errno;
use gfs::root::{NodeRights, inside};
use gfs::tree::Tree;
use gproc::job::admission::{Admission, Admitted};
use gproc::job::protocol::Credentials;
use gproc::{Switch, Switches};
use std::fmt;
use std::sync::{Arc, Mutex};

/// Longest file of rules that is read.
const RULES_BYTES_MAX: usize = 16 << 20;

pub(super) struct OfTree {
    rights: NodeRights,
    files: Arc<dyn Tree>,
    /// This node, and whose processes of others it takes; it alone knows.
    node: NodeId,
    guests: GuestsConfig,
    /// The reservations, as they were in this state of this file. A leaf.
    read: Mutex<Option<(InodeNo, Version, Arc<Reservations>)>>,
}

impl OfTree {
    pub(super) fn new(files: Arc<dyn Tree>, node: NodeId, guests: GuestsConfig) -> Self {
        Self {
            rights: NodeRights::new(Arc::clone(&files)),
            files,
            node,
            guests,
            read: Mutex::default(),
        }
    }

    async fn reservations(&self) -> Result<Arc<Reservations>, String> {
        let failed = |error: Errno| format!("{}: {error}", RULES.join("/"));
        let Some(file) = inside::find(&*self.files, &RULES).await.map_err(failed)? else {
            return Ok(Arc::default());
        };
        let (ino, version) = (file.attr.ino, file.attr.version);
        let read = self.read.lock().expect("no holder panics").clone();
        if let Some((of, at, reservations)) = read
            && (of, at) == (ino, version)
        {
            return Ok(reservations);
        }
        let bytes = file.read(RULES_BYTES_MAX).await.map_err(failed)?;
        let reservations = serde_json::from_slice(&bytes);
        let reservations = reservations.map_err(|error| format!("{}: {error}", RULES.join("/")))?;
        let reservations = Arc::new(reservations);
        let read = (ino, version, Arc::clone(&reservations));
        *self.read.lock().expect("no holder panics") = Some(read);
        Ok(reservations)
    }
}

#[async_trait]
impl Admission for OfTree {
    async fn admits(
        &self,
        node: NodeId,
        user: &Credentials,
        guest: bool,
    ) -> Result<Admitted, String> {
        let failed = |error: Errno| error.to_string();
        if guest && self.is_on(node, Switch::Block).await.map_err(failed)? {
            return Ok(Admitted::Blocked);
        }
        if guest && self.is_on(node, Switch::InUse).await.map_err(failed)? {
            return Ok(Admitted::InUse);
        }
        if guest && node == self.node {
            let (guests, uid) = (self.guests, user.uid);
            let admitted = tokio::task::spawn_blocking(move || guests.admit(uid)).await;
            match admitted.map_err(|error| error.to_string())? {
                Admitted::Yes => {}
                refused => return Ok(refused),
            }
        }
        if user.uid == 0 {
            return Ok(Admitted::Yes);
        }
        let rights = self.rights.of(node).await.map_err(failed)?;
        if !rights.admit(user.uid, user.gid, &user.groups) {
            return Ok(Admitted::Closed);
        }
        let reservations = self.reservations().await?;
        let reserved = reservations.exclude(user.uid, node);
        Ok(reserved.map_or(Admitted::Yes, |name| Admitted::Reserved(name.to_owned())))
    }

    async fn stay(&self, node: NodeId) -> Result<bool, String> {
        let on = self.is_on(node, Switch::Stay).await;
        on.map_err(|error| error.to_string())
    }
}

#[async_trait]
impl Switches for OfTree {
    async fn is_on(&self, node: NodeId, switch: Switch) -> Result<bool, Errno> {
        self.rights.is_on(node, name(switch)).await
    }

    async fn set(&self, node: NodeId, switch: Switch, on: bool) -> Result<(), Errno> {
        self.rights.switch(node, name(switch), on).await
    }

    async fn list(&self) -> Result<String, Errno> {
        let list = self.rights.list().await?;
        Ok(String::from_utf8_lossy(&list).into_owned())
    }

    async fn set_list(&self, list: &str) -> Result<(), Errno> {
        self.rights.set_list(list.to_owned().into()).await
    }
}

const fn name(switch: Switch) -> &'static str {
    match switch {
        Switch::Block => "block",
        Switch::Stay => "stay",
        Switch::InUse => "in_use",
        Switch::Unlevelled => "unlevelled",
    }
}

impl fmt::Debug for OfTree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OfTree").finish_non_exhaustive()
    }
}
