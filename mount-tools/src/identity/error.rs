//! What can be wrong with an identity.

use super::NODE_ID_MAX;
use consistency::NodeId;
use std::io;
use std::path::PathBuf;

/// Why an identity could not be made, stored or loaded; one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file system refused.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not there.
    #[error("{} is missing: {cure}", path.display())]
    Missing {
        /// Which file.
        path: PathBuf,
        /// How it comes to be.
        cure: &'static str,
    },
    /// A file is there that must not be overwritten.
    #[error("{} exists already: use another directory, or remove it if its cluster is gone", .0.display())]
    Exists(PathBuf),
    /// A private key that others can read.
    #[error("{} can be read by others (mode {mode:04o}): chmod 600 it, and issue a new one if it may have been read", path.display())]
    Mode {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The contents are not what they should be.
    #[error("{what} is malformed: {why}")]
    Malformed {
        /// A file, or what was handed over.
        what: String,
        /// What was wrong.
        why: String,
    },
    /// The time of a certificate is over.
    #[error(
        "{what} has expired: issue a new certificate with `glu`, or correct this machine's clock"
    )]
    Expired {
        /// Which certificate.
        what: String,
    },
    /// The time of a certificate has not begun.
    #[error("{what} is not valid yet: correct this machine's clock")]
    NotYetValid {
        /// Which certificate.
        what: String,
    },
    /// The certificate was signed by another cluster's authority.
    #[error("{what} is of another cluster than {root}: take both from the same `glu init`")]
    OtherCluster {
        /// Which certificate.
        what: String,
        /// The cluster it was judged by.
        root: String,
    },
    /// The certificate is another node's.
    #[error(
        "{what} is not the certificate of node {wanted}: each node has its own, correct `node` or the path"
    )]
    OtherNode {
        /// Which certificate.
        what: String,
        /// Whose was wanted.
        wanted: NodeId,
    },
    /// Certificate and key are no pair.
    #[error("{key} is not the key of {what}: take both from the same `glu` run")]
    OtherKey {
        /// Which certificate.
        what: String,
        /// Which key.
        key: String,
    },
    /// A cluster's name has to fit into a DNS name.
    #[error("{0:?} cannot name a cluster: use 1 to 63 of a-z, 0-9 and - (not at an end)")]
    BadName(String),
    /// A node id out of range.
    #[error("{0} cannot be a node id: use 1 to {NODE_ID_MAX}")]
    BadNode(NodeId),
    /// Making a key or certificate failed.
    #[error("cannot make a certificate: {0}")]
    Crypto(String),
}
