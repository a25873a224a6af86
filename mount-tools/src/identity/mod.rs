//! Who a node is: the cluster's certificate authority, and the certificate that names a node.
//!
//! Words: the **root** is the public half of the cluster's authority (`ca.pem`, on every node); the
//! **authority** is root and private key (`ca.key`, where nodes are admitted); an **identity** is one
//! node's certificate and key, together with the root it is judged by.
//!
//! Rules:
//! - A cluster is its uuid, made with the authority. Every certificate carries it in its one DNS name:
//!   `<cluster name>.<uuid>.glu` for the authority, `node-<id>.<uuid>.glu` for a node. Nothing else in a
//!   certificate is looked at, so nothing else has to be parsed.
//! - A node id is believed only from a certificate that the root has signed. Whoever holds `ca.key` can be
//!   any node; whoever holds `node.key` can be that node alone.
//! - Private keys are created with mode 0600, never overwritten, and refused when others can read them.

mod error;
mod files;

pub use error::IdentityError;

use consistency::NodeId;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::crypto::CryptoProvider;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use std::fmt::{self, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use webpki::{EndEntityCert, KeyUsage};

/// File name of the authority's certificate, which every node has.
pub const CA_CERT_FILE: &str = "ca.pem";
/// File name of the authority's private key.
pub const CA_KEY_FILE: &str = "ca.key";
/// File name of a node's certificate.
pub const NODE_CERT_FILE: &str = "node.pem";
/// File name of a node's private key.
pub const NODE_KEY_FILE: &str = "node.key";

/// Node ids run from 1 to this.
pub const NODE_ID_MAX: u16 = 9_999;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Certificates start a day early, because the clocks of new machines are often wrong.
const BACKDATED: Duration = DAY;
const NODE_VALID: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// Longer than [`NODE_VALID`], so that a node admitted late in the authority's life is not cut short.
const CA_VALID: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// The one provider of cryptography, shared by certificates, TLS and QUIC.
pub(crate) fn crypto() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The public half of a cluster's authority: what certificates are judged by.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterRoot {
    name: String,
    uuid: String,
    der: CertificateDer<'static>,
    pem: String,
}

impl ClusterRoot {
    /// Loads `ca.pem` from wherever it is.
    ///
    /// # Errors
    /// If the file is missing or is no certificate of a Glu cluster.
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let pem = files::read(
            path,
            "copy it from a node of the cluster, or make a cluster with `glu init`",
        )?;
        Self::from_pem(pem, &path.display().to_string())
    }

    /// Reads a root that came over the network or from a file; `what` names it in errors.
    ///
    /// # Errors
    /// If it is no certificate of a Glu cluster.
    pub fn from_pem(pem: String, what: &str) -> Result<Self, IdentityError> {
        let malformed = |why: &str| IdentityError::Malformed {
            what: what.to_owned(),
            why: why.to_owned(),
        };
        let der = cert_from_pem(&pem, what)?;
        let dns_name = authority_name(&der)
            .ok_or_else(|| malformed("it is not the certificate of a cluster's authority"))?;
        let (name, uuid) = dns_name
            .strip_suffix(".glu")
            .and_then(|rest| rest.split_once('.'))
            .filter(|(_, uuid)| !uuid.contains('.'))
            .ok_or_else(|| malformed("its name is not <cluster>.<uuid>.glu"))?;
        let (name, uuid) = (name.to_owned(), uuid.to_owned());
        Ok(Self {
            name,
            uuid,
            der,
            pem,
        })
    }

    /// Returns the cluster's name, for people.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the cluster's uuid.
    #[must_use]
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    /// Returns the certificate as PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Returns the certificate as DER.
    #[must_use]
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Returns the DNS name in the certificate of a node.
    #[must_use]
    pub fn node_name(&self, node: NodeId) -> String {
        format!("node-{node}.{}.glu", self.uuid)
    }

    /// Returns the same for the TLS library.
    pub(crate) fn server_name(&self, node: NodeId) -> ServerName<'static> {
        ServerName::try_from(self.node_name(node)).expect("a number and a uuid are DNS labels")
    }

    /// Says whether a certificate, which TLS has found to be signed by this root, is that of `node`.
    #[must_use]
    pub fn is_node(&self, cert: &CertificateDer<'_>, node: NodeId) -> bool {
        EndEntityCert::try_from(cert).is_ok_and(|cert| {
            cert.verify_is_valid_for_subject_name(&self.server_name(node))
                .is_ok()
        })
    }

    /// Says whether a certificate, which TLS has found to be signed by this root, was issued at that time or before, by the
    /// authority's clock. Its validity tells, which begins a fixed time earlier: nothing has to be parsed for it.
    pub(crate) fn has_issued_by(&self, cert: &CertificateDer<'_>, at: SystemTime) -> bool {
        let valid_then = at.checked_sub(BACKDATED).unwrap_or(SystemTime::UNIX_EPOCH);
        let verdict = self.check(cert, "the certificate", valid_then);
        !matches!(verdict, Err(IdentityError::NotYetValid { .. }))
    }

    /// Checks signature and time of a node's certificate at `now`.
    fn check(
        &self,
        cert: &CertificateDer<'_>,
        what: &str,
        now: SystemTime,
    ) -> Result<(), IdentityError> {
        let what = what.to_owned();
        let malformed = |error: webpki::Error| IdentityError::Malformed {
            what: what.clone(),
            why: error.to_string(),
        };
        let anchors = [webpki::anchor_from_trusted_cert(&self.der).map_err(malformed)?];
        let end_entity = EndEntityCert::try_from(cert).map_err(malformed)?;
        let since_1970 = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let verdict = end_entity.verify_for_usage(
            crypto().signature_verification_algorithms.all,
            &anchors,
            &[],
            UnixTime::since_unix_epoch(since_1970),
            KeyUsage::client_auth(),
            None,
            None,
        );
        match verdict {
            Ok(_) => Ok(()),
            Err(webpki::Error::CertExpired { .. }) => Err(IdentityError::Expired { what }),
            Err(webpki::Error::CertNotValidYet { .. }) => Err(IdentityError::NotYetValid { what }),
            Err(webpki::Error::UnknownIssuer) => Err(IdentityError::OtherCluster {
                what,
                root: self.to_string(),
            }),
            Err(other) => Err(malformed(other)),
        }
    }
}

impl fmt::Display for ClusterRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cluster {} ({})", self.name, self.uuid)
    }
}

impl fmt::Debug for ClusterRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterRoot({self})")
    }
}

/// A cluster's authority: admits nodes.
pub struct ClusterCa {
    root: ClusterRoot,
    key: KeyPair,
}

impl ClusterCa {
    /// Makes a new cluster: writes `ca.pem` and `ca.key` (0600) into `dir`, which is created if need be.
    ///
    /// # Errors
    /// If the name is no DNS label, one of the files exists, or the directory cannot be written.
    pub fn create(dir: &Path, name: &str) -> Result<Self, IdentityError> {
        let ca = Self::generate(name)?;
        files::create_dir(dir)?;
        files::create(&dir.join(CA_KEY_FILE), &ca.key.serialize_pem(), 0o600)?;
        files::create(&dir.join(CA_CERT_FILE), ca.root.pem(), 0o644)?;
        Ok(ca)
    }

    /// Makes an authority in memory.
    fn generate(name: &str) -> Result<Self, IdentityError> {
        let of_dns = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let fits = (1..=63).contains(&name.len()) && name.chars().all(of_dns);
        if !fits || name.starts_with('-') || name.ends_with('-') {
            return Err(IdentityError::BadName(name.to_owned()));
        }
        let uuid = random_uuid()?;
        let key = KeyPair::generate().map_err(failed)?;
        let params = ca_params(name, &uuid, SystemTime::now())?;
        let pem = params.self_signed(&key).map_err(failed)?.pem();
        let root = ClusterRoot::from_pem(pem, "the new authority")?;
        Ok(Self { root, key })
    }

    /// Loads the authority that [`ClusterCa::create`] has written into `dir`.
    ///
    /// # Errors
    /// If a file is missing or malformed, the key is open to others, or the two are no pair.
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        let (cert_path, key_path) = (dir.join(CA_CERT_FILE), dir.join(CA_KEY_FILE));
        let root = ClusterRoot::load(&cert_path)?;
        let key_pem = files::read_key(
            &key_path,
            "nodes can be admitted only where the cluster was made, or where its ca.key was copied",
        )?;
        let key = KeyPair::from_pem(&key_pem).map_err(|error| IdentityError::Malformed {
            what: key_path.display().to_string(),
            why: error.to_string(),
        })?;
        let ca = Self { root, key };
        // A key of another authority signs just as well, and would be noticed only by the peers.
        let proof = ca.sign(NodeId(1), SystemTime::now())?;
        let cert = cert_from_pem(&proof.cert_pem, "a fresh certificate")?;
        let what = cert_path.display().to_string();
        match ca.root.check(&cert, &what, SystemTime::now()) {
            Ok(()) => Ok(ca),
            Err(IdentityError::Expired { .. }) => Err(IdentityError::Expired { what }),
            Err(_) => Err(IdentityError::OtherKey {
                what,
                key: key_path.display().to_string(),
            }),
        }
    }

    /// Returns the public half.
    #[must_use]
    pub fn root(&self) -> &ClusterRoot {
        &self.root
    }

    /// Admits a node: makes its key and certificate, valid for ten years.
    ///
    /// # Errors
    /// If the id is out of range.
    pub fn issue(&self, node: NodeId) -> Result<NodeIdentity, IdentityError> {
        self.sign(node, SystemTime::now())
    }

    fn sign(&self, node: NodeId, now: SystemTime) -> Result<NodeIdentity, IdentityError> {
        if !(1..=NODE_ID_MAX).contains(&node.0) {
            return Err(IdentityError::BadNode(node));
        }
        let mut params = CertificateParams::new(vec![self.root.node_name(node)]).map_err(failed)?;
        params.distinguished_name = common_name(&format!("Glu node {node}"));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        set_validity(&mut params, now, NODE_VALID);
        // The issuer's name has to come out byte for byte as it stands in ca.pem.
        let issuer = ca_params(&self.root.name, &self.root.uuid, now)?;
        let issuer = Issuer::from_params(&issuer, &self.key);
        let key = KeyPair::generate().map_err(failed)?;
        let cert = params.signed_by(&key, &issuer).map_err(failed)?;
        Ok(NodeIdentity {
            node,
            root: self.root.clone(),
            cert_pem: cert.pem(),
            key_pem: key.serialize_pem(),
        })
    }
}

#[cfg(test)]
impl ClusterCa {
    /// Makes an authority in memory.
    pub(crate) fn for_test() -> Self {
        Self::generate("home").expect("the name is good")
    }

    /// Returns an identity that names this cluster and `node`, signed with a key of the forger's own.
    pub(crate) fn forged(&self, node: NodeId) -> NodeIdentity {
        let forger = Self {
            root: self.root.clone(),
            key: KeyPair::generate().expect("a key"),
        };
        forger.issue(node).expect("in range")
    }
}

impl fmt::Debug for ClusterCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterCa({})", self.root)
    }
}

/// One node's certificate and private key, with the root of its cluster.
#[derive(Clone)]
pub struct NodeIdentity {
    node: NodeId,
    root: ClusterRoot,
    cert_pem: String,
    key_pem: String,
}

impl NodeIdentity {
    /// Checks an identity that was made elsewhere, as a joining node receives it.
    ///
    /// # Errors
    /// If a part is malformed, has expired, or the parts do not belong together.
    pub fn from_pem(
        node: NodeId,
        root: ClusterRoot,
        cert_pem: String,
        key_pem: String,
    ) -> Result<Self, IdentityError> {
        let identity = Self {
            node,
            root,
            cert_pem,
            key_pem,
        };
        identity.check("the certificate", "the key", SystemTime::now())?;
        Ok(identity)
    }

    /// Loads the identity of `node`.
    ///
    /// # Errors
    /// If a file is missing or malformed, the key is open to others, the certificate has expired or is of
    /// another cluster or node, or the key is not that of the certificate.
    pub fn load(node: NodeId, ca: &Path, cert: &Path, key: &Path) -> Result<Self, IdentityError> {
        let cure = "issue this node's certificate where the cluster was made";
        let identity = Self {
            node,
            root: ClusterRoot::load(ca)?,
            cert_pem: files::read(cert, cure)?,
            key_pem: files::read_key(key, cure)?,
        };
        let (cert, key) = (cert.display().to_string(), key.display().to_string());
        identity.check(&cert, &key, SystemTime::now())?;
        Ok(identity)
    }

    /// Writes `ca.pem`, `node.pem` and `node.key` (0600) into `dir`, which is created if need be.
    ///
    /// # Errors
    /// If one of the files exists or the directory cannot be written.
    pub fn store(&self, dir: &Path) -> Result<(), IdentityError> {
        files::create_dir(dir)?;
        files::create(&dir.join(NODE_KEY_FILE), &self.key_pem, 0o600)?;
        files::create(&dir.join(NODE_CERT_FILE), &self.cert_pem, 0o644)?;
        let ca_path = dir.join(CA_CERT_FILE);
        match files::create(&ca_path, self.root.pem(), 0o644) {
            // The node where the cluster was made has it already.
            Err(IdentityError::Exists(_)) if ClusterRoot::load(&ca_path)? == self.root => Ok(()),
            other => other,
        }
    }

    /// Returns whose identity this is.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Returns the cluster's root.
    #[must_use]
    pub fn root(&self) -> &ClusterRoot {
        &self.root
    }

    /// Returns the certificate as PEM.
    #[must_use]
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// Returns the private key as PEM: hand it to nobody but its node.
    #[must_use]
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    pub(crate) fn cert(&self) -> Result<CertificateDer<'static>, IdentityError> {
        cert_from_pem(&self.cert_pem, "the node's certificate")
    }

    pub(crate) fn key(&self) -> Result<PrivateKeyDer<'static>, IdentityError> {
        key_from_pem(&self.key_pem, "the node's key")
    }

    fn check(&self, cert_what: &str, key_what: &str, now: SystemTime) -> Result<(), IdentityError> {
        let cert = cert_from_pem(&self.cert_pem, cert_what)?;
        let key = key_from_pem(&self.key_pem, key_what)?;
        self.root.check(&cert, cert_what, now)?;
        if !self.root.is_node(&cert, self.node) {
            return Err(IdentityError::OtherNode {
                what: cert_what.to_owned(),
                wanted: self.node,
            });
        }
        rustls::sign::CertifiedKey::from_der(vec![cert], key, &crypto())
            .map(drop)
            .map_err(|_| IdentityError::OtherKey {
                what: cert_what.to_owned(),
                key: key_what.to_owned(),
            })
    }
}

impl fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeIdentity({} of {})", self.node, self.root)
    }
}

fn ca_params(name: &str, uuid: &str, now: SystemTime) -> Result<CertificateParams, IdentityError> {
    let mut params = CertificateParams::new(vec![format!("{name}.{uuid}.glu")]).map_err(failed)?;
    params.distinguished_name = common_name(&format!("Glu cluster {name} {uuid}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    set_validity(&mut params, now, CA_VALID);
    Ok(params)
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn set_validity(params: &mut CertificateParams, now: SystemTime, length: Duration) {
    let since_1970 = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let start = rcgen::date_time_ymd(1970, 1, 1) + since_1970.saturating_sub(BACKDATED);
    params.not_before = start;
    params.not_after = start + BACKDATED + length;
}

/// Returns a random (version 4) uuid in its usual form.
fn random_uuid() -> Result<String, IdentityError> {
    let mut bytes = [0_u8; 16];
    crypto()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| IdentityError::Crypto("no randomness from the system".to_owned()))?;
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let mut uuid = String::with_capacity(36);
    for (i, byte) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            uuid.push('-');
        }
        write!(uuid, "{byte:02x}").expect("a string takes everything");
    }
    Ok(uuid)
}

/// Returns the one DNS name of a self-issued certificate; that of a node is not, and could not be a root.
fn authority_name(cert: &CertificateDer<'_>) -> Option<String> {
    let cert = EndEntityCert::try_from(cert).ok()?;
    if cert.issuer() != cert.subject() {
        return None;
    }
    let mut names = cert.valid_dns_names();
    let name = names.next()?.to_owned();
    names.next().is_none().then_some(name)
}

fn cert_from_pem(pem: &str, what: &str) -> Result<CertificateDer<'static>, IdentityError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| IdentityError::Malformed {
        what: what.to_owned(),
        why: format!("no PEM certificate in it ({error:?})"),
    })
}

fn key_from_pem(pem: &str, what: &str) -> Result<PrivateKeyDer<'static>, IdentityError> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| IdentityError::Malformed {
        what: what.to_owned(),
        why: format!("no PEM private key in it ({error:?})"),
    })
}

// By value: the shape that `map_err` wants.
#[allow(clippy::needless_pass_by_value)]
fn failed(error: rcgen::Error) -> IdentityError {
    IdentityError::Crypto(error.to_string())
}

#[cfg(test)]
mod tests;
