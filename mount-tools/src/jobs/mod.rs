//! The record of the jobs that run in the cluster, and `glu jobs`, which shows it (J8).
//!
//! The record is a directory of the cluster's tree, `.glu/jobs`: what keeps the tree keeps it, over the loss of any node. Each
//! home has a file there, written by the process beside its daemon, some time after what it tells of: no job waits for
//! it. Only root writes there, and what it writes home's daemon has from the kernel and from the hosts.
//!
//! - [`record`]: what is on record, and what becomes of it (pure).
//! - [`recorder`]: the thread that writes a home's file.
//! - [`files`]: the directory.
//! - [`gangs`]: the gangs on record, for the daemon.
//! - [`list`]: `glu jobs`.

pub(crate) mod files;
pub(crate) mod gangs;
pub(crate) mod list;
mod record;
pub(crate) mod recorder;
