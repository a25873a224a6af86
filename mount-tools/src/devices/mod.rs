//! `glu console`, `glu attach`, `glu detach`: stand-ins for devices of other nodes where a file is not enough.

mod attach;
mod console;
mod cuse;
mod escape;
mod line;
mod modules;
mod nbd;
mod pty;
mod stand_in;
mod sys;

pub(crate) use attach::{Attach, Detach};
pub(crate) use console::Console;

use anyhow::{Result, bail};
use consistency::NodeId;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// A device as people write it: `node3:ttyS0` or `node3/dev/ttyS0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviceName {
    node: NodeId,
    /// Below `/dev`.
    path: String,
}

impl DeviceName {
    /// Returns where it is in a mounted tree.
    fn below(&self, mount: &Path) -> PathBuf {
        mount
            .join(format!("node{}/dev", self.node))
            .join(&self.path)
    }

    /// Returns whether it has the name of a terminal or serial line. Others are not opened to see: that would start a
    /// watchdog.
    fn may_be_line(&self) -> bool {
        let last = self.path.rsplit('/').next().unwrap_or_default();
        let names = ["tty", "hvc", "console", "rfcomm"];
        let dirs = ["pts/", "serial/"];
        names.iter().any(|name| last.starts_with(name))
            || dirs.iter().any(|dir| self.path.starts_with(dir))
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node{}:{}", self.node, self.path)
    }
}

impl std::str::FromStr for DeviceName {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text
            .split_once(':')
            .or_else(|| text.split_once('/'))
            .and_then(|(node, path)| {
                let number: u16 = node.strip_prefix("node")?.parse().ok()?;
                let path = path.strip_prefix('/').unwrap_or(path);
                Some((number, path.strip_prefix("dev/").unwrap_or(path)))
            });
        match parts {
            Some((1.., path)) if path.split('/').all(|name| !matches!(name, "" | "." | "..")) => {
                let (number, path) = parts.expect("just seen");
                Ok(Self {
                    node: NodeId(number),
                    path: path.to_owned(),
                })
            }
            _ => bail!("{text:?} is no device: write node3:ttyS0 or node3/dev/ttyS0"),
        }
    }
}

/// Adds to an error why the owner refuses a device, if it says so.
fn refused(path: &Path, error: io::Error) -> anyhow::Error {
    let why = sys::attribute(path, c"user.glu.why");
    let error = anyhow::Error::from(error);
    match why {
        Some(why) => error.context(format!("{}: {why}", path.display())),
        None => error.context(path.display().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_lines() {
        let check = |text: &str, expected| {
            let name: DeviceName = text.parse().expect("a device");
            assert_eq!(name.may_be_line(), expected, "{text}");
        };
        for line in [
            "ttyS0",
            "ttyUSB1",
            "pts/4",
            "serial/by-id/usb-x",
            "hvc0",
            "console",
        ] {
            check(&format!("node3:{line}"), true);
        }
        for other in ["null", "watchdog", "sda", "input/event0", "ptmx", "net/tun"] {
            check(&format!("node3:{other}"), false);
        }
    }

    #[test]
    fn names() {
        let check = |text: &str, expected: Option<(u16, &str)>| {
            let name = text.parse::<DeviceName>().ok();
            let expected = expected.map(|(node, path)| DeviceName {
                node: NodeId(node),
                path: path.to_owned(),
            });
            assert_eq!(name, expected, "{text}");
        };
        check("node3:ttyS0", Some((3, "ttyS0")));
        check("node3:/dev/ttyS0", Some((3, "ttyS0")));
        check("node3/dev/disk/by-id/x", Some((3, "disk/by-id/x")));
        check("node12:pts/4", Some((12, "pts/4")));
        for bad in [
            "",
            "ttyS0",
            "node0:x",
            "node3:",
            "nodeX:x",
            "node3:../x",
            "node3:a//b",
            "3:x",
        ] {
            check(bad, None);
        }
    }
}
