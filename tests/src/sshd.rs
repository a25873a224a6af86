//! OpenSSH's server on a node, with keys of its own.

use crate::{Cluster, DEADLINE, Running, wait_until};

const SSHD: &str = "/usr/sbin/sshd";

/// A server that serves this node's root on its loopback interface alone; it ends with this.
#[derive(Debug)]
pub struct Sshd {
    command: String,
    _server: Running,
}

impl Sshd {
    /// Starts one.
    ///
    /// # Panics
    /// It is not installed, or does not serve.
    #[must_use]
    pub fn up(cluster: &Cluster, node: u32) -> Self {
        let dir = cluster.state().join("ssh");
        let dir = dir.display();
        let keys = format!(
            "mkdir -p -m 700 {dir} /run/sshd; cd {dir}; \
             for key in host user; do ssh-keygen -q -t ed25519 -N '' -f $key || exit 1; done; cp user.pub authorized"
        );
        cluster.sh(node, &keys).ok();
        let serve = format!(
            "{SSHD} -D -e -f /dev/null -h {dir}/host -o AuthorizedKeysFile={dir}/authorized -o StrictModes=no \
             -o Port=2222 -o ListenAddress=127.0.0.1 -o UsePAM=no -o PidFile=none -o SetEnv=PATH=$PATH"
        );
        let server = cluster.spawn(node, &serve);
        let command = format!(
            "ssh -F /dev/null -i {dir}/user -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
             -o BatchMode=yes -p 2222 root@127.0.0.1"
        );
        wait_until("a server of ssh", DEADLINE, || {
            cluster.sh(node, &format!("{command} true")).code() == Some(0)
        });
        Self {
            command,
            _server: server,
        }
    }

    /// Returns the beginning of a command line that runs the rest on the node, from the node.
    #[must_use]
    pub fn command(&self) -> &str {
        &self.command
    }
}
