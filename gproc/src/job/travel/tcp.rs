//! Connections, as the kernel tells of them in `/proc/<pid>/net/tcp` (proc_pid_net(5)).

use std::collections::BTreeSet;
use std::fs;
use std::io;

/// Columns, and states.
const STATE: usize = 3;
const INODE: usize = 9;
const CLOSED: &str = "07";
const LISTENS: &str = "0A";
/// Closed by its process, with something that its peer has not got yet: FIN_WAIT1, LAST_ACK, CLOSING.
const DELIVERS: [&str; 3] = ["04", "09", "0B"];
/// That of a socket that no process has.
const NOBODY: &str = "0";

/// Returns the inodes of this node's sockets that are connected.
pub(super) fn connected() -> io::Result<BTreeSet<String>> {
    let mut inodes = BTreeSet::new();
    look("self", |state, inode| {
        if ![CLOSED, LISTENS].contains(&state) {
            inodes.insert(inode.to_owned());
        }
    })?;
    Ok(inodes)
}

/// Returns whether, in the network of a process, there is a connection that no process has any more and that has something
/// to deliver. Of that no images can be made.
pub(super) fn delivers_for_nobody(pid: i32) -> io::Result<bool> {
    let mut delivers = false;
    look(&pid.to_string(), |state, inode| {
        delivers |= inode == NOBODY && DELIVERS.contains(&state);
    })?;
    Ok(delivers)
}

fn look(pid: &str, mut see: impl FnMut(&str, &str)) -> io::Result<()> {
    for table in ["tcp", "tcp6"] {
        let text = match fs::read_to_string(format!("/proc/{pid}/net/{table}")) {
            // Without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            text => text?,
        };
        for line in text.lines().skip(1) {
            let columns: Vec<&str> = line.split_whitespace().collect();
            if let (Some(state), Some(inode)) = (columns.get(STATE), columns.get(INODE)) {
                see(state, inode);
            }
        }
    }
    Ok(())
}
