//! What the node's daemon says about its mount.

use serde::Deserialize;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where a daemon listens unless configured otherwise.
pub(super) const SOCKET_DEFAULT: &str = "/run/glu/glud.sock";
/// The daemon answers from memory.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: u64 = 64 * 1024;
const QUESTION: &[u8] = b"{\"cmd\":\"mount\"}\n";

/// The answer of the control socket.
#[derive(Debug, Deserialize)]
pub(super) struct Daemon {
    pub(super) cluster: String,
    pub(super) point: PathBuf,
    pub(super) hard: bool,
    /// Tenths of a second.
    pub(super) timeo: u32,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "no answer from this node's daemon at {}: {why}: start it (glud --config /etc/glu/glud.toml) and wait until it serves, or name its control_socket with -o socket=PATH", socket.display()
)]
pub(super) struct DaemonError {
    socket: PathBuf,
    why: String,
}

impl Daemon {
    pub(super) fn ask(socket: &Path) -> Result<Self, DaemonError> {
        let failed = |why: String| DaemonError {
            socket: socket.to_owned(),
            why,
        };
        let mut line = String::new();
        let mut converse = || {
            let mut stream = UnixStream::connect(socket)?;
            stream.set_read_timeout(Some(ANSWER_WITHIN))?;
            stream.set_write_timeout(Some(ANSWER_WITHIN))?;
            stream.write_all(QUESTION)?;
            BufReader::new(stream.take(ANSWER_BYTES_MAX)).read_line(&mut line)
        };
        converse().map_err(|error: std::io::Error| failed(error.to_string()))?;
        serde_json::from_str(&line).map_err(|error| failed(error.to_string()))
    }
}
