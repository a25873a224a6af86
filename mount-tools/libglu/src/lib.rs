//! The processes and nodes of the cluster, for programs. `glu.h` and `libglu.so` are the same for C ([`c`]).
//!
//! Everything is asked of `/cluster/proc`, so it needs no rights but those of the files there, and works in every program
//! on every node. What other programs load must bring no runtime and no threads along: this crate has none.
//!
//! Errors are those of the system, as the system call that is meant would give them:
//!
//! | | |
//! | --- | --- |
//! | ESRCH | there is no such process |
//! | EPERM | it may not be signalled |
//! | EINVAL | no process, no signal |
//! | ENXIO | there is no such node |
//! | EOPNOTSUPP | a process cannot move: its `cantmove` says why |
//! | EBUSY | it is moving already, or locked where it is |
//! | EAGAIN | it could not be moved now, and goes on where it was |
//! | ECONNREFUSED | the node is closed to its user |
//! | ENOEXEC | the node's processors lack instructions that it may use |
//! | EHOSTDOWN | the node does not answer |
//! | ENOTCONN | there is no cluster here: the node's daemon does not run |
#![warn(missing_docs)]

pub mod c;
mod fork;
pub mod job;

pub use fork::{Forked, rfork};

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Where the tree is unless [`ROOT_ENV`] says otherwise.
const ROOT: &str = "/cluster/proc";
/// Names another place, for clusters with another mount point.
const ROOT_ENV: &str = "GLU_PROC";
/// The largest signal number.
const SIGNAL_MAX: i32 = 64;

/// The cluster as this node sees it.
#[derive(Clone, Debug)]
pub struct Cluster {
    root: PathBuf,
}

/// A node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its number.
    pub number: u16,
    /// Its state.
    pub state: State,
}

/// The state of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It does not answer.
    Down = 0,
    /// It answers.
    Up = 1,
    /// It answers, and its file data is being moved away.
    Drain = 2,
}

/// Where a process is to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// That node.
    Node(u16),
    /// The node that has started it.
    Home,
    /// The node where it runs best.
    Best,
}

/// How loaded a node is, and how large.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// 100 when one program runs on each processor of the reference speed.
    pub load: u64,
    /// Of one processor, 1000 for the reference.
    pub speed: u64,
    /// Processors.
    pub cpus: u64,
    /// Percent of them that is used.
    pub util: u64,
    /// Bytes that new processes could have.
    pub mem: u64,
    /// Bytes of memory.
    pub tmem: u64,
}

impl Default for Cluster {
    fn default() -> Self {
        Self::new()
    }
}

impl Cluster {
    /// Returns the cluster at the usual place.
    #[must_use]
    pub fn new() -> Self {
        Self::at(std::env::var_os(ROOT_ENV).map_or_else(|| ROOT.into(), PathBuf::from))
    }

    /// Returns the cluster whose process tree is at `root`.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Returns the nodes in ascending order.
    ///
    /// # Errors
    /// See the crate's page, as for all others.
    pub fn nodes(&self) -> io::Result<Vec<Node>> {
        let text = self.read("cluster/nodes", libc::ENOTCONN)?;
        let node = |line: &str| {
            let (number, state) = line.split_once(' ')?;
            let state = match state {
                "up" => State::Up,
                "drain" => State::Drain,
                _ => State::Down,
            };
            let number = number.parse().ok()?;
            Some(Node { number, state })
        };
        Ok(text.lines().filter_map(node).collect())
    }

    /// Returns the number of the node that this process runs on.
    ///
    /// # Errors
    /// ENOTCONN.
    pub fn own_node(&self) -> io::Result<u16> {
        number(&self.read("self/where", libc::ENOTCONN)?)
    }

    /// Returns the load of a node.
    ///
    /// # Errors
    /// ENXIO, EHOSTDOWN, ENOTCONN.
    pub fn load(&self, node: u16) -> io::Result<Load> {
        let read = |name: &str| {
            let text = self.read(&format!("cluster/node{node}/{name}"), libc::ENXIO)?;
            number(&text)
        };
        Ok(Load {
            load: read("load")?,
            speed: read("speed")?,
            cpus: read("cpus")?,
            util: read("util")?,
            mem: read("mem")?,
            tmem: read("tmem")?,
        })
    }

    /// Returns the node that a process runs on.
    ///
    /// # Errors
    /// ESRCH, EINVAL, EHOSTDOWN, ENOTCONN.
    pub fn where_pid(&self, pid: i32) -> io::Result<u16> {
        let pid = positive(pid)?;
        number(&self.read(&format!("{pid}/where"), libc::ESRCH)?)
    }

    /// Returns how often a process has moved.
    ///
    /// # Errors
    /// ESRCH, EINVAL, EHOSTDOWN, ENOTCONN.
    pub fn moves(&self, pid: i32) -> io::Result<u64> {
        let pid = positive(pid)?;
        number(&self.read(&format!("{pid}/nmigs"), libc::ESRCH)?)
    }

    /// Has the program of a job of `glurun` go on on another node, with all its descendants; returns when it does. It may be the
    /// caller.
    ///
    /// # Errors
    /// ENXIO, EOPNOTSUPP, EBUSY, EAGAIN, ECONNREFUSED, ENOEXEC, and as of [`Self::kill`].
    pub fn migrate(&self, pid: i32, to: Destination) -> io::Result<()> {
        let pid = positive(pid)?;
        let number = match to {
            Destination::Node(0) => return Err(io::Error::from_raw_os_error(libc::ENXIO)),
            Destination::Node(node) => i32::from(node),
            Destination::Home => 0,
            Destination::Best => -1,
        };
        self.order(&format!("{pid}/goto"), &number.to_string())?;
        if pid.cast_unsigned() == std::process::id() {
            return self.has_gone(pid, to);
        }
        Ok(())
    }

    /// The order of a process to itself counts as given when it is to stand still: what has come of it is seen when it goes on.
    fn has_gone(&self, pid: i32, to: Destination) -> io::Result<()> {
        let wanted = match to {
            Destination::Node(node) => node,
            Destination::Home => number(&self.read(&format!("{pid}/from"), libc::ESRCH)?)?,
            Destination::Best => return Ok(()),
        };
        if self.where_pid(pid)? == wanted {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(libc::EAGAIN))
        }
    }

    /// Sends a signal to a process of any node; 0 only asks whether that could be done.
    ///
    /// # Errors
    /// ESRCH, EPERM, EINVAL, EHOSTDOWN (it is then not known whether the signal was sent), ENOTCONN.
    pub fn kill(&self, pid: i32, signal: i32) -> io::Result<()> {
        let (pid, signal) = (positive(pid)?, checked(signal)?);
        self.order(&format!("{pid}/note"), &signal.to_string())
    }

    /// Sends a signal to a process group of any node, which may have no leader any more.
    ///
    /// # Errors
    /// As of [`Self::kill`].
    pub fn killpg(&self, group: i32, signal: i32) -> io::Result<()> {
        let (group, signal) = (positive(group)?, checked(signal)?);
        self.order("cluster/notepg", &format!("{group} {signal}"))
    }

    fn read(&self, name: &str, missing: i32) -> io::Result<String> {
        std::fs::read_to_string(self.root.join(name)).map_err(|error| self.meant(error, missing))
    }

    fn order(&self, name: &str, order: &str) -> io::Result<()> {
        let open = |path: &Path| -> io::Result<File> { OpenOptions::new().write(true).open(path) };
        let done = open(&self.root.join(name)).and_then(|mut file| {
            // One write is one order.
            file.write(order.as_bytes())
        });
        done.map(drop)
            .map_err(|error| self.meant(error, libc::ESRCH))
    }

    /// Returns the error that is meant where a file is not there.
    fn meant(&self, error: io::Error, missing: i32) -> io::Error {
        let raw = match error.raw_os_error() {
            // Not even the tree is there, or its daemon has ended.
            Some(libc::ENOENT | libc::ENOTDIR) if !self.root.join("cluster/nodes").is_file() => {
                libc::ENOTCONN
            }
            Some(libc::ENOENT | libc::ESTALE) => missing,
            _ => return error,
        };
        io::Error::from_raw_os_error(raw)
    }
}

fn invalid() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

fn positive(pid: i32) -> io::Result<i32> {
    if pid > 0 { Ok(pid) } else { Err(invalid()) }
}

fn checked(signal: i32) -> io::Result<i32> {
    let valid = (0..=SIGNAL_MAX).contains(&signal);
    valid.then_some(signal).ok_or_else(invalid)
}

fn number<N: std::str::FromStr>(text: &str) -> io::Result<N> {
    let number = text.trim().parse().ok();
    number.ok_or_else(|| io::Error::from_raw_os_error(libc::EPROTO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[track_caller]
    fn check<T: std::fmt::Debug + PartialEq>(result: io::Result<T>, expected: Result<T, i32>) {
        let result = result.map_err(|error| error.raw_os_error().unwrap_or(0));
        assert_eq!(result, expected);
    }

    #[test]
    fn a_tree_of_files() {
        let root = tempfile::tempdir().expect("a directory");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a directory")).expect("made");
            fs::write(path, text).expect("written");
        };
        let cluster = Cluster::at(root.path());
        check(cluster.nodes(), Err(libc::ENOTCONN));
        check(cluster.where_pid(70_000), Err(libc::ENOTCONN));
        check(cluster.kill(70_000, 0), Err(libc::ENOTCONN));
        write("cluster/nodes", "1 up\n2 drain\n12 down\n");
        write("cluster/notepg", "");
        write("70000/where", "1\n");
        write("70000/note", "");
        for (name, value) in [("load", 3), ("speed", 1000), ("cpus", 2), ("util", 7)] {
            write(&format!("cluster/node1/{name}"), &format!("{value}\n"));
        }
        write("cluster/node1/mem", "5\n");
        write("cluster/node1/tmem", "6\n");
        let node = |number, state| Node { number, state };
        let nodes = vec![
            node(1, State::Up),
            node(2, State::Drain),
            node(12, State::Down),
        ];
        check(cluster.nodes(), Ok(nodes));
        let load = Load {
            load: 3,
            speed: 1000,
            cpus: 2,
            util: 7,
            mem: 5,
            tmem: 6,
        };
        check(cluster.load(1), Ok(load));
        check(cluster.load(13), Err(libc::ENXIO));
        check(cluster.where_pid(70_000), Ok(1));
        check(cluster.where_pid(70_001), Err(libc::ESRCH));
        check(cluster.where_pid(0), Err(libc::EINVAL));
        check(cluster.kill(70_000, 15), Ok(()));
        let note = fs::read_to_string(root.path().join("70000/note"));
        assert_eq!(note.expect("there"), "15");
        check(cluster.kill(70_001, 15), Err(libc::ESRCH));
        check(cluster.kill(70_000, 65), Err(libc::EINVAL));
        check(cluster.kill(-70_000, 15), Err(libc::EINVAL));
        check(cluster.killpg(70_000, 9), Ok(()));
        let note = fs::read_to_string(root.path().join("cluster/notepg"));
        assert_eq!(note.expect("there"), "70000 9");
        check(cluster.killpg(0, 9), Err(libc::EINVAL));
    }
}
