//! Classes of devices, and what their owner lets other nodes do with them.

use crate::wire::Device;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What a device is, as far as its rights go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// null, zero, full, random, urandom: no state that anybody could harm.
    Memory,
    /// kmsg: the kernel's log.
    Kmsg,
    /// Real-time clocks.
    Rtc,
    /// Terminals: consoles, serial lines, pseudo-terminals.
    Terminal,
    /// Disks, and all else that is read and written by blocks.
    Block,
    /// Keyboards, mice and what they tell.
    Input,
    /// Raw USB and Bluetooth input devices.
    Hidraw,
    /// Watchdogs: to open one starts it.
    Watchdog,
    /// mem, kmem, port: the memory of the kernel and everybody's.
    Kmem,
    /// The terminal of whoever opens it, which is never the caller's.
    OwnTerminal,
    /// Everything else.
    Other,
}

/// What other nodes may do with a class of devices, as far as mode and owner let them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grant {
    /// Nothing.
    Closed,
    /// Read.
    Read,
    /// Read and write.
    Write,
}

/// `[devices]` of a node's configuration: what is granted of each class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// See [`Class::Memory`].
    pub memory: Grant,
    /// See [`Class::Kmsg`].
    pub kmsg: Grant,
    /// See [`Class::Rtc`].
    pub rtc: Grant,
    /// See [`Class::Terminal`].
    pub terminal: Grant,
    /// See [`Class::Block`].
    pub block: Grant,
    /// See [`Class::Input`].
    pub input: Grant,
    /// See [`Class::Hidraw`].
    pub hidraw: Grant,
    /// See [`Class::Watchdog`].
    pub watchdog: Grant,
    /// See [`Class::Kmem`].
    pub kmem: Grant,
    /// See [`Class::Other`].
    pub other: Grant,
}

/// What a secret can be read from, or what acts on being opened, is closed.
impl Default for Rules {
    fn default() -> Self {
        Self {
            memory: Grant::Write,
            kmsg: Grant::Write,
            rtc: Grant::Read,
            terminal: Grant::Closed,
            block: Grant::Read,
            input: Grant::Closed,
            hidraw: Grant::Closed,
            watchdog: Grant::Closed,
            kmem: Grant::Closed,
            other: Grant::Closed,
        }
    }
}

impl Rules {
    /// Returns what is granted of a class.
    #[must_use]
    pub const fn of(&self, class: Class) -> Grant {
        match class {
            Class::Memory => self.memory,
            Class::Kmsg => self.kmsg,
            Class::Rtc => self.rtc,
            Class::Terminal => self.terminal,
            Class::Block => self.block,
            Class::Input => self.input,
            Class::Hidraw => self.hidraw,
            Class::Watchdog => self.watchdog,
            Class::Kmem => self.kmem,
            Class::OwnTerminal => Grant::Closed,
            Class::Other => self.other,
        }
    }
}

impl Class {
    /// Returns its key in `[devices]`; `None` for what cannot be opened by configuration.
    #[must_use]
    pub const fn key(self) -> Option<&'static str> {
        match self {
            Self::Memory => Some("memory"),
            Self::Kmsg => Some("kmsg"),
            Self::Rtc => Some("rtc"),
            Self::Terminal => Some("terminal"),
            Self::Block => Some("block"),
            Self::Input => Some("input"),
            Self::Hidraw => Some("hidraw"),
            Self::Watchdog => Some("watchdog"),
            Self::Kmem => Some("kmem"),
            Self::OwnTerminal => None,
            Self::Other => Some("other"),
        }
    }

    /// Returns the class of a device of this node.
    pub(crate) fn of(device: Device) -> Self {
        let Device {
            block,
            major,
            minor,
        } = device;
        let kind = if block { "block" } else { "char" };
        let link = Path::new("/sys/dev").join(kind);
        let link = link.join(format!("{major}:{minor}/subsystem"));
        let target = std::fs::read_link(link).ok();
        let subsystem = target.as_deref().and_then(Path::file_name);
        Self::told_by(device, subsystem.and_then(|name| name.to_str()))
    }

    /// Tells a class by the number, where Linux has fixed it, and else by the subsystem of the driver.
    fn told_by(device: Device, subsystem: Option<&str>) -> Self {
        if device.block {
            return Self::Block;
        }
        match (device.major, device.minor, subsystem) {
            (1, 3 | 5 | 7 | 8 | 9, _) => Self::Memory,
            (1, 11, _) => Self::Kmsg,
            (1, 1 | 2 | 4, _) => Self::Kmem,
            (5, 0, _) => Self::OwnTerminal,
            // Pseudo-terminals, which sysfs does not show, and their maker.
            (128..=143, ..) | (5, ..) => Self::Terminal,
            (10, 130, _) => Self::Watchdog,
            (_, _, Some("tty")) => Self::Terminal,
            (_, _, Some("rtc")) => Self::Rtc,
            (_, _, Some("input")) => Self::Input,
            (_, _, Some("hidraw")) => Self::Hidraw,
            (_, _, Some("watchdog")) => Self::Watchdog,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes() {
        let check = |major, minor, subsystem, expected| {
            let device = Device {
                block: false,
                major,
                minor,
            };
            assert_eq!(Class::told_by(device, subsystem), expected, "{device}");
            let block = Device {
                block: true,
                ..device
            };
            assert_eq!(Class::told_by(block, subsystem), Class::Block);
        };
        for minor in [3, 5, 7, 8, 9] {
            check(1, minor, Some("mem"), Class::Memory);
        }
        check(1, 1, Some("mem"), Class::Kmem);
        check(1, 4, None, Class::Kmem);
        check(1, 11, Some("mem"), Class::Kmsg);
        check(1, 6, Some("mem"), Class::Other);
        check(5, 0, Some("tty"), Class::OwnTerminal);
        check(5, 1, Some("tty"), Class::Terminal);
        check(136, 7, None, Class::Terminal);
        check(4, 64, Some("tty"), Class::Terminal);
        check(250, 0, Some("rtc"), Class::Rtc);
        check(10, 130, Some("misc"), Class::Watchdog);
        check(247, 0, Some("watchdog"), Class::Watchdog);
        check(13, 64, Some("input"), Class::Input);
        check(245, 0, Some("hidraw"), Class::Hidraw);
        check(10, 229, Some("misc"), Class::Other);
        check(29, 0, None, Class::Other);
    }

    #[test]
    fn what_could_do_harm_is_closed() {
        let rules = Rules::default();
        for class in [
            Class::Terminal,
            Class::Input,
            Class::Hidraw,
            Class::Watchdog,
            Class::Kmem,
            Class::OwnTerminal,
            Class::Other,
        ] {
            assert_eq!(rules.of(class), Grant::Closed, "{class:?}");
        }
        assert_eq!(rules.of(Class::Block), Grant::Read);
    }
}
