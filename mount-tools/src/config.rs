//! The configuration of `glud`: one TOML file per node.
//!
//! ```toml
//! node = 1                          # id of this node, as in its certificate
//! name = "alpha"
//! listen = "192.0.2.1:7420"         # UDP
//! state_dir = "/var/lib/glu"
//! mount_point = "/cluster"
//! voters = [1, 2, 3]                # who keeps the metadata when the cluster is founded; then see glu voters
//! replicas = 2                      # copies of file data
//! rack = "a"                        # what fails with this node; copies go elsewhere
//! lease_term_ms = 4000
//! request_timeout_s = 30            # how long a cut-off node waits before EIO
//! cache_mib = 256                   # memory for caches and unflushed changes
//! log = "info"
//!
//! [mount]                           # of the tree itself; `mount -t glu` makes others of it
//! ro = false
//! noexec = false
//! nosuid = true
//! nodev = true
//! noatime = false                   # for all mounts of the tree on this node
//! hard = false                      # wait for the cluster for ever instead of request_timeout_s
//!
//! [repair]
//! after_s = 60                      # how long a node may be away until its copies are made anew
//! mib_per_s = 64                    # how fast this node makes copies
//! sweep_s = 300                     # how often it looks for chunks that no file has
//! scrub_s = 604800                  # how often it reads every chunk, and how fast
//! scrub_mib_per_s = 16
//!
//! [migration]
//! criu = "/usr/sbin/criu"           # 4.2 or newer: what moves processes; `criu` of PATH if it is not named
//!
//! [desktop]                         # keeps other nodes' processes off while somebody works at this node
//! idle_s = 900                      # until so long after its last use; 0, as by default: takes them always
//! watch = ["/dev/tty1", "/dev/pts"] # what is read then; /dev/tty1 to 6 by default
//!
//! [guests]                          # whose processes of other nodes run here
//! root = false                      # not root's; true by default
//! strangers = false                 # only those of users who have an account here; true by default
//!
//! [store]                           # file data in a bucket instead of on disks; the same on all nodes
//! s3 = { bucket = "glu", endpoint = "https://s3.example.org", credentials = "/etc/glu/s3.toml", cache_mib = 10240 }
//!
//! [devices]                         # what others may do with this node's: "closed", "read" or "write"
//! memory = "write"                  # null, zero, full, random, urandom
//! kmsg = "write"
//! rtc = "read"
//! block = "read"
//! terminal = "closed"               # so are input, hidraw, watchdog, kmem and other
//!
//! [root]                            # what others see at /cluster/node1/root
//! export = ["/home", "/srv"]        # nothing by default; a file system each
//! read_only = false
//!
//! [tls]
//! ca = "/etc/glu/ca.pem"
//! cert = "/etc/glu/node.pem"
//! key = "/etc/glu/node.key"
//!
//! [[peers]]
//! id = 2
//! name = "beta"
//! addr = "192.0.2.2:7420"
//! ```
//!
//! Every error is one line: file, line, what is wrong, what to do. Nothing is ignored: an unknown key is an
//! error, because a misspelt limit that silently has its default is found only when it was needed.

mod desktop;
mod guests;
mod migration;
mod mount;
mod repair;
mod store;

pub use desktop::DesktopConfig;
pub use guests::GuestsConfig;
pub use migration::MigrationConfig;
pub use mount::MountConfig;
pub use repair::RepairConfig;
pub use store::{S3Config, StoreConfig};

use crate::identity::{CA_CERT_FILE, NODE_CERT_FILE, NODE_ID_MAX, NODE_KEY_FILE};
use consistency::NodeId;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::Spanned;
use tracing_subscriber::EnvFilter;

/// The configuration of one node; every field has passed its check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GludConfig {
    /// This node's id, 1 to [`NODE_ID_MAX`].
    pub node: NodeId,
    /// This node's name, for people.
    pub name: String,
    /// UDP address for the other nodes.
    pub listen: SocketAddr,
    /// Directory of the log, the metadata and the chunks; absolute, never on the cluster's own tree.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Where the tree is mounted; absolute, the same on all nodes.
    #[serde(default = "default_mount_point")]
    pub mount_point: PathBuf,
    /// Nodes that keep the metadata: 1, 3 or 5 of them.
    pub voters: Vec<NodeId>,
    /// Copies of file data, 1 to 4; the number of nodes if there are fewer.
    #[serde(default = "default_replicas")]
    pub replicas: u8,
    /// What this node shares with those that fail together with it: copies go to others. Empty: nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rack: String,
    /// Term of a lease in milliseconds, 1,000 to 60,000.
    #[serde(default = "default_lease_term_ms")]
    pub lease_term_ms: u32,
    /// Seconds that an operation waits for the cluster before it fails with EIO, 1 to 3,600.
    #[serde(default = "default_request_timeout_s")]
    pub request_timeout_s: u32,
    /// Memory in MiB for file data, listings and inodes that are cached and for changes that are not flushed yet,
    /// 16 to 1,048,576. What the kernel knows of inodes and names comes on top.
    #[serde(default = "default_cache_mib")]
    pub cache_mib: u32,
    /// What is logged, as for `RUST_LOG`.
    #[serde(default = "default_log")]
    pub log: String,
    /// Unix socket for `glu`: a line of JSON asks, a line of JSON answers.
    #[serde(default = "default_control_socket")]
    pub control_socket: PathBuf,
    /// Unix socket for `glurun`.
    #[serde(default = "default_jobs_socket")]
    pub jobs_socket: PathBuf,
    /// File that is made when the tree is mounted and served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_file: Option<PathBuf>,
    /// How the tree is mounted.
    #[serde(default)]
    pub mount: MountConfig,
    /// How chunks are looked after.
    #[serde(default)]
    pub repair: RepairConfig,
    /// How processes move. As [`Self::devices`] written only where it says something: what `glu dev` writes an older
    /// glud of a cluster that is being upgraded must understand.
    #[serde(default, skip_serializing_if = "is_default")]
    pub migration: MigrationConfig,
    /// When its owner works at this node.
    #[serde(default, skip_serializing_if = "is_default")]
    pub desktop: DesktopConfig,
    /// Whose processes of other nodes run here.
    #[serde(default, skip_serializing_if = "is_default")]
    pub guests: GuestsConfig,
    /// Where file data is kept.
    #[serde(default)]
    pub store: StoreConfig,
    /// What other nodes may do with this node's devices.
    #[serde(default, skip_serializing_if = "is_default")]
    pub devices: gdev::Rules,
    /// What they see of its directories.
    #[serde(default, skip_serializing_if = "is_default")]
    pub root: gdev::export::RootConfig,
    /// Where this node's identity is.
    #[serde(default)]
    pub tls: TlsPaths,
    /// The other nodes.
    #[serde(default)]
    pub peers: Vec<PeerConfig>,
}

fn is_default<T: Default + PartialEq>(section: &T) -> bool {
    *section == T::default()
}

/// Files of a node's identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsPaths {
    /// Certificate of the cluster's authority.
    pub ca: PathBuf,
    /// This node's certificate.
    pub cert: PathBuf,
    /// This node's private key, mode 0600.
    pub key: PathBuf,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerConfig {
    /// Its id.
    pub id: NodeId,
    /// Its name, for people.
    pub name: String,
    /// Its UDP address.
    pub addr: SocketAddr,
}

/// A configuration that cannot be used; prints as one line.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}: name the configuration with --config, or make one with `glu init`", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file cannot be used as it is.
    #[error("{}:{line}: {why}", path.display())]
    Bad {
        /// Which file.
        path: PathBuf,
        /// Line in it, from 1.
        line: usize,
        /// What is wrong and what to do, in one line.
        why: String,
    },
}

/// Longest name of a rack.
const RACK_BYTES_MAX: usize = 64;
/// Longer than any node runs, and still a time that can be added to a clock.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A rule that a value breaks: where the value is, and what to do.
type Broken = (Place, String);

/// Where a value is in the file.
#[derive(Clone, Copy, Debug)]
enum Place {
    Key(&'static str),
    /// Some `[[peers]]`, from 0.
    Peer(usize),
}

impl GludConfig {
    /// Loads and checks a configuration.
    ///
    /// # Errors
    /// [`ConfigError`] with the line and the cure.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(path, &text)
    }

    /// Checks the text of a configuration; `path` is for the errors.
    ///
    /// # Errors
    /// [`ConfigError::Bad`] with the line and the cure.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let bad = |span: Option<Range<usize>>, why: String| ConfigError::Bad {
            path: path.to_owned(),
            line: line_at(text, span),
            why,
        };
        let config: Self =
            toml::from_str(text).map_err(|error| bad(error.span(), one_line(error.message())))?;
        config
            .check()
            .map_err(|(place, why)| bad(span_of(text, place), why))?;
        Ok(config)
    }

    /// Returns the configuration as TOML, as [`GludConfig::load`] reads it.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("numbers, strings and tables at the end are TOML")
    }

    /// Returns the term of a lease.
    #[must_use]
    pub fn lease_term(&self) -> Duration {
        Duration::from_millis(self.lease_term_ms.into())
    }

    /// Returns how long an operation waits for the cluster.
    #[must_use]
    pub fn request_timeout(&self) -> Duration {
        if self.mount.hard {
            FOR_EVER
        } else {
            Duration::from_secs(self.request_timeout_s.into())
        }
    }

    /// Returns how many bytes of memory caches and unflushed changes may take.
    #[must_use]
    pub fn cache_bytes(&self) -> usize {
        usize::try_from(u64::from(self.cache_mib) << 20).unwrap_or(usize::MAX)
    }

    /// Returns all nodes, this one included, in ascending order.
    #[must_use]
    pub fn nodes(&self) -> BTreeSet<NodeId> {
        let peers = self.peers.iter().map(|peer| peer.id);
        peers.chain([self.node]).collect()
    }

    fn check(&self) -> Result<(), Broken> {
        check_node(Place::Key("node"), self.node)?;
        check_name(Place::Key("name"), &self.name)?;
        if self.listen.port() == 0 {
            return Err((
                Place::Key("listen"),
                "port 0 would be a new one at each start: name a port".into(),
            ));
        }
        check_absolute(Place::Key("state_dir"), &self.state_dir)?;
        check_absolute(Place::Key("mount_point"), &self.mount_point)?;
        if self.state_dir.starts_with(&self.mount_point) {
            let why = "the state cannot be kept in the tree it makes: move it out of mount_point";
            return Err((Place::Key("state_dir"), why.into()));
        }
        for path in [&self.tls.ca, &self.tls.cert, &self.tls.key] {
            check_absolute(Place::Key("tls"), path)?;
        }
        self.check_peers()?;
        self.check_voters()?;
        check_range(Place::Key("replicas"), self.replicas.into(), 1..=4)?;
        if self.rack.len() > RACK_BYTES_MAX {
            let why = format!("the name is longer than {RACK_BYTES_MAX} bytes: shorten it");
            return Err((Place::Key("rack"), why));
        }
        if let Some((key, value, most)) = self.repair.broken() {
            let why = format!("{key} is {value}: choose 1 to {most}");
            return Err((Place::Key("repair"), why));
        }
        let desktop = &self.desktop;
        check_range(
            Place::Key("desktop"),
            desktop.idle_s,
            0..=desktop::IDLE_S_MAX,
        )?;
        for path in &desktop.watch {
            check_absolute(Place::Key("desktop"), path)?;
        }
        if let Some(why) = self.root.broken(&self.mount_point) {
            return Err((Place::Key("root"), why));
        }
        if let Some(why) = self.store.s3.as_ref().and_then(S3Config::broken) {
            return Err((Place::Key("store"), why));
        }
        check_range(
            Place::Key("lease_term_ms"),
            self.lease_term_ms,
            1_000..=60_000,
        )?;
        check_range(
            Place::Key("request_timeout_s"),
            self.request_timeout_s,
            1..=3_600,
        )?;
        check_range(Place::Key("cache_mib"), self.cache_mib, 16..=1_048_576)?;
        EnvFilter::try_new(&self.log).map(drop).map_err(|error| {
            (
                Place::Key("log"),
                format!("{error}: write it like `info,gfs=debug`"),
            )
        })
    }

    fn check_peers(&self) -> Result<(), Broken> {
        let mut ids = BTreeSet::from([self.node]);
        let mut names = BTreeSet::from([self.name.as_str()]);
        let mut addrs = BTreeSet::from([self.listen]);
        for (place, peer) in self.peers.iter().enumerate() {
            let place = Place::Peer(place);
            let PeerConfig { id, name, addr } = peer;
            check_node(place, *id)?;
            check_name(place, name)?;
            if !ids.insert(*id) {
                return Err((
                    place,
                    format!("node {id} is there twice (this node is no peer): remove one"),
                ));
            }
            if !names.insert(name) {
                return Err((place, format!("two nodes are called {name:?}: rename one")));
            }
            if addr.port() == 0 || addr.ip().is_unspecified() {
                return Err((
                    place,
                    format!("node {id} cannot be reached at {addr}: name address and port"),
                ));
            }
            if !addrs.insert(*addr) {
                return Err((place, format!("two nodes are at {addr}: correct one")));
            }
        }
        Ok(())
    }

    fn check_voters(&self) -> Result<(), Broken> {
        let nodes = self.nodes();
        if let Some(stranger) = self.voters.iter().find(|voter| !nodes.contains(voter)) {
            return Err((
                Place::Key("voters"),
                format!("there is no node {stranger}: add it to peers, or remove it here"),
            ));
        }
        let distinct: BTreeSet<_> = self.voters.iter().collect();
        if distinct.len() != self.voters.len() {
            return Err((
                Place::Key("voters"),
                "a node is there twice: name each once".into(),
            ));
        }
        if !matches!(self.voters.len(), 1 | 3 | 5) {
            let why = format!("{} voters: choose 1, 3 or 5", self.voters.len());
            return Err((Place::Key("voters"), why));
        }
        Ok(())
    }
}

impl Default for TlsPaths {
    fn default() -> Self {
        let dir = Path::new("/etc/glu");
        Self {
            ca: dir.join(CA_CERT_FILE),
            cert: dir.join(NODE_CERT_FILE),
            key: dir.join(NODE_KEY_FILE),
        }
    }
}

fn check_node(place: Place, id: NodeId) -> Result<(), Broken> {
    check_range(place, id.0.into(), 1..=NODE_ID_MAX.into())
}

fn check_name(place: Place, name: &str) -> Result<(), Broken> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=64).contains(&name.len()) && name.chars().all(plain) {
        Ok(())
    } else {
        Err((
            place,
            format!("{name:?} is no name: use 1 to 64 letters, digits, - _ ."),
        ))
    }
}

fn check_absolute(place: Place, path: &Path) -> Result<(), Broken> {
    if path.is_absolute() {
        Ok(())
    } else {
        Err((
            place,
            format!("{} is relative: start it with /", path.display()),
        ))
    }
}

fn check_range(
    place: Place,
    value: u32,
    range: std::ops::RangeInclusive<u32>,
) -> Result<(), Broken> {
    if range.contains(&value) {
        Ok(())
    } else {
        let (low, high) = range.into_inner();
        Err((
            place,
            format!("{value} is out of range: choose {low} to {high}"),
        ))
    }
}

/// Returns where a value stands in the text.
fn span_of(text: &str, place: Place) -> Option<Range<usize>> {
    #[derive(Deserialize)]
    struct Peers {
        peers: Vec<Spanned<toml::Value>>,
    }
    match place {
        Place::Key(key) => {
            let keys: BTreeMap<String, Spanned<toml::Value>> = toml::from_str(text).ok()?;
            keys.get(key).map(Spanned::span)
        }
        Place::Peer(index) => {
            let Peers { peers } = toml::from_str(text).ok()?;
            peers.get(index).map(Spanned::span)
        }
    }
}

/// Returns the line, from 1, where a span begins; the first if it is unknown (a missing key).
fn line_at(text: &str, span: Option<Range<usize>>) -> usize {
    let start = span.map_or(0, |span| span.start.min(text.len()));
    text.as_bytes()[..start]
        .iter()
        .filter(|&&byte| byte == b'\n')
        .count()
        + 1
}

fn one_line(message: &str) -> String {
    message.lines().collect::<Vec<_>>().join("; ")
}

fn default_state_dir() -> PathBuf {
    "/var/lib/glu".into()
}

fn default_mount_point() -> PathBuf {
    "/cluster".into()
}

fn default_replicas() -> u8 {
    2
}

fn default_lease_term_ms() -> u32 {
    4_000
}

fn default_request_timeout_s() -> u32 {
    30
}

pub(crate) fn default_cache_mib() -> u32 {
    256
}

fn default_control_socket() -> PathBuf {
    "/run/glu/glud.sock".into()
}

fn default_jobs_socket() -> PathBuf {
    "/run/glu/jobs.sock".into()
}

/// Openraft tells every vote and heartbeat at `info`.
pub(crate) fn default_log() -> String {
    "info,openraft=warn".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"node = 1
name = "alpha"
listen = "127.0.0.1:7420"
voters = [1, 2, 3]
state_dir = "/srv/glu"
replicas = 2
lease_term_ms = 4000
request_timeout_s = 30
log = "info,gfs=debug"
cache_mib = 64
[tls]
ca = "/etc/glu/ca.pem"
cert = "/etc/glu/node.pem"
key = "/etc/glu/node.key"
[[peers]]
id = 2
name = "beta"
addr = "127.0.0.1:7421"
[[peers]]
id = 3
name = "gamma"
addr = "127.0.0.1:7422"
"#;

    fn parse(text: &str) -> Result<GludConfig, ConfigError> {
        GludConfig::parse(Path::new("glud.toml"), text)
    }

    /// Replaces a line of [`GOOD`] and expects the error to name the line and these words.
    fn check(line: &str, by: &str, at: usize, expected: &[&str]) {
        assert_eq!(GOOD.matches(line).count(), 1, "{line:?} is one place");
        let error = parse(&GOOD.replace(line, by)).expect_err(by).to_string();
        let place = format!("glud.toml:{at}: ");
        for word in expected.iter().chain([&place.as_str()]) {
            assert!(error.contains(word), "no {word:?} in {error:?}");
        }
        assert!(!error.contains('\n'), "one line: {error:?}");
    }

    #[test]
    fn a_good_file_survives_a_round_trip() {
        let config = parse(GOOD).expect("good");
        assert_eq!(config.lease_term(), Duration::from_secs(4));
        assert_eq!(config.peers[1].addr.port(), 7422);
        assert_eq!(config.nodes().len(), 3);
        assert_eq!(config.mount_point, Path::new("/cluster"));
        assert_eq!(parse(&config.to_toml()).expect("our own"), config);
    }

    #[test]
    fn four_lines_are_enough() {
        let text = "node = 5\nname = \"solo\"\nlisten = \"0.0.0.0:7420\"\nvoters = [5]\n";
        let config = parse(text).expect("the rest has defaults");
        assert_eq!(config.tls, TlsPaths::default());
        assert_eq!(config.request_timeout(), Duration::from_secs(30));
        assert!(config.mount.nodev && config.mount.nosuid && !config.mount.noexec);
        let open = parse(&format!("{text}[devices]\nblock = \"write\"\n")).expect("good");
        assert_eq!(open.devices.of(gdev::Class::Block), gdev::Grant::Write);
        assert_eq!(config.devices, gdev::Rules::default());
        let hard = parse(&format!("{text}[mount]\nhard = true\n")).expect("good");
        assert!(hard.request_timeout() > Duration::from_secs(3_600));
        assert_eq!(hard.mount.options(), config.mount.options());
    }

    #[test]
    fn what_cannot_be_parsed_names_its_line() {
        check(
            "replicas = 2",
            "replica = 2",
            6,
            &["unknown field `replica`", "replicas"],
        );
        check("replicas = 2", "replicas = \"two\"", 6, &["string \"two\""]);
        check("replicas = 2", "replicas = -1", 6, &["-1"]);
        check("replicas = 2", "replicas = ", 6, &[]);
        check(
            "[tls]",
            "[devices]\ndisks = \"read\"\n[tls]",
            12,
            &["unknown field `disks`", "block"],
        );
        check(
            "[tls]",
            "[devices]\nblock = \"open\"\n[tls]",
            12,
            &["unknown variant `open`", "`closed`"],
        );
        check(
            "[tls]",
            "[root]\nexports = []\n[tls]",
            12,
            &["unknown field `exports`", "export"],
        );
        check("node = 1", "node = 70000", 1, &["70000"]);
        check(
            "\"127.0.0.1:7420\"",
            "\"localhost\"",
            3,
            &["socket address"],
        );
        check(
            "addr = \"127.0.0.1:7422\"",
            "",
            19,
            &["missing field `addr`"],
        );
        check("name = \"alpha\"\n", "", 1, &["missing field `name`"]);
        check(
            "key = \"/etc/glu/node.key\"",
            "keys = \"x\"",
            14,
            &["unknown field `keys`"],
        );
    }

    #[test]
    fn what_breaks_a_rule_names_its_line_and_the_cure() {
        check(
            "node = 1",
            "node = 0",
            1,
            &["0 is out of range", "1 to 9999"],
        );
        check("\"alpha\"", "\"al pha\"", 2, &["is no name"]);
        check("127.0.0.1:7420", "127.0.0.1:0", 3, &["name a port"]);
        check("[1, 2, 3]", "[1, 2, 4]", 4, &["no node 4", "peers"]);
        check("[1, 2, 3]", "[1, 2]", 4, &["2 voters", "1, 3 or 5"]);
        check("[1, 2, 3]", "[]", 4, &["0 voters"]);
        check("[1, 2, 3]", "[1, 1, 2]", 4, &["twice"]);
        check("\"/srv/glu\"", "\"srv/glu\"", 5, &["relative"]);
        check("\"/srv/glu\"", "\"/cluster/glu\"", 5, &["mount_point"]);
        check("replicas = 2", "replicas = 0", 6, &["1 to 4"]);
        check("_ms = 4000", "_ms = 40", 7, &["1000 to 60000"]);
        check("_s = 30", "_s = 0", 8, &["1 to 3600"]);
        check("info,gfs=debug", "gfs=loud", 9, &["info,gfs=debug"]);
        check("cache_mib = 64", "cache_mib = 1", 10, &["16 to 1048576"]);
        check("\"/etc/glu/ca.pem\"", "\"ca.pem\"", 11, &["relative"]);
        check(
            "[tls]",
            "[root]\nexport = [\"/home\", \"srv\"]\n[tls]",
            11,
            &["srv cannot be exported", "absolute"],
        );
        check("id = 2", "id = 1", 15, &["node 1", "twice"]);
        check("\"beta\"", "\"gamma\"", 19, &["gamma", "rename"]);
        check("127.0.0.1:7421", "127.0.0.1:7422", 19, &["127.0.0.1:7422"]);
        check("127.0.0.1:7421", "0.0.0.0:7421", 15, &["cannot be reached"]);
    }

    #[test]
    fn a_missing_file_says_so() {
        let error = GludConfig::load(Path::new("/nowhere/glud.toml")).expect_err("not there");
        let text = error.to_string();
        assert!(
            text.contains("/nowhere/glud.toml") && text.contains("glu init"),
            "{text}"
        );
    }
}
