//! Who may open what (DV1): what the owner grants of a class, the device's mode and owner, and what the kernel would ask
//! of the caller in place of the agent, which has all rights.

use crate::claims::Busy;
use crate::class::{Class, Grant, Rules};
use crate::wire::session::How;
use crate::wire::{Node, User};
use consistency::NodeId;
use gfs::error::Errno;
use std::fmt;

/// Why a device is not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It is the terminal of the process that opens it.
    OwnTerminal,
    /// The owner has closed its class.
    Closed(Class),
    /// The owner lets its class be read alone.
    ReadOnly(Class),
    /// Mode and owner of the device do not let the caller in.
    Mode,
    /// The kernel's log is for root.
    Log,
    /// The memory of the kernel is for root, whatever its mode.
    Kmem,
    /// A node writes it.
    WrittenBy(NodeId),
    /// Somebody has it for himself, or its own node uses it.
    InUse,
}

impl From<Busy> for Refusal {
    fn from(busy: Busy) -> Self {
        match busy {
            Busy::WrittenBy(node) => Self::WrittenBy(node),
            Busy::Claimed => Self::InUse,
        }
    }
}

impl Refusal {
    pub(crate) fn errno(self) -> Errno {
        match self {
            Self::OwnTerminal => Errno::ENOTSUP,
            Self::Closed(_) | Self::Mode => Errno::EACCES,
            Self::ReadOnly(_) => Errno(libc::EROFS),
            Self::Log | Self::Kmem => Errno::EPERM,
            Self::WrittenBy(_) | Self::InUse => Errno(libc::EBUSY),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rule = |class: &Class| class.key().unwrap_or("-");
        match self {
            Self::OwnTerminal => f.write_str("it is the terminal of the process that opens it"),
            Self::Closed(class) => {
                let key = rule(class);
                write!(
                    f,
                    "its node has closed devices of its class ([devices] {key} in its glud.toml)"
                )
            }
            Self::ReadOnly(class) => {
                let key = rule(class);
                write!(
                    f,
                    "its node lets devices of its class be read only ([devices] {key} in its glud.toml)"
                )
            }
            Self::Mode => f.write_str("its mode and owner do not let this user"),
            Self::Log => f.write_str("the log of the kernel is for root (kernel.dmesg_restrict)"),
            Self::Kmem => f.write_str("the memory of the kernel is for root"),
            Self::WrittenBy(node) => write!(f, "node {node} writes it"),
            Self::InUse => f.write_str("it is in use: mounted on its node, or opened with O_EXCL"),
        }
    }
}

/// Checks whether a device may be opened, but for what others do with it now. `log_open`: all may read the kernel's log.
pub(crate) fn check(
    rules: &Rules,
    class: Class,
    node: &Node,
    who: &User,
    how: How,
    log_open: bool,
) -> Result<(), Refusal> {
    match rules.of(class) {
        _ if class == Class::OwnTerminal => return Err(Refusal::OwnTerminal),
        Grant::Closed => return Err(Refusal::Closed(class)),
        Grant::Read if how.write => return Err(Refusal::ReadOnly(class)),
        Grant::Read | Grant::Write => {}
    }
    if !permitted(node, who, how.read, how.write) {
        return Err(Refusal::Mode);
    }
    let root = who.uid == 0;
    match class {
        Class::Kmsg if !root && (how.write || !log_open) => Err(Refusal::Log),
        Class::Kmem if !root => Err(Refusal::Kmem),
        _ => Ok(()),
    }
}

/// Returns whether the permission bits let `who` in.
fn permitted(node: &Node, who: &User, read: bool, write: bool) -> bool {
    let wanted = u32::from(read) << 2 | u32::from(write) << 1;
    let granted = if who.uid == node.uid {
        node.mode >> 6
    } else if who.is_in(node.gid) {
        node.mode >> 3
    } else {
        node.mode
    };
    who.uid == 0 || wanted & !granted == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use consistency::Timestamp;
    use consistency::wire::meta::FileKind;

    const fn how(read: bool, write: bool) -> How {
        How {
            read,
            write,
            exclusive: false,
            durable: false,
        }
    }

    fn node(mode: u32) -> Node {
        Node {
            kind: FileKind::Char,
            mode,
            nlink: 1,
            uid: 10,
            gid: 20,
            device: None,
            target: None,
            times: [Timestamp::default(); 3],
        }
    }

    fn user(uid: u32, gid: u32, groups: &[u32]) -> User {
        User {
            uid,
            gid,
            groups: groups.to_vec(),
        }
    }

    #[test]
    fn permission_bits() {
        let check = |mode, uid, gid, groups: &[u32], expected: &str| {
            let (node, who) = (node(mode), user(uid, gid, groups));
            let may = |read, write| permitted(&node, &who, read, write);
            let letter = |may, letter| if may { letter } else { '-' };
            let seen = [letter(may(true, false), 'r'), letter(may(false, true), 'w')];
            assert_eq!(String::from_iter(seen), expected);
            assert_eq!(may(true, true), expected == "rw");
        };
        check(0o640, 10, 1, &[], "rw");
        check(0o640, 1, 20, &[], "r-");
        check(0o640, 1, 1, &[5, 20], "r-");
        check(0o640, 1, 1, &[5], "--");
        check(0o642, 1, 1, &[], "-w");
        check(0o604, 1, 1, &[20], "--");
        check(0o066, 10, 20, &[20], "--");
        check(0o000, 0, 0, &[], "rw");
    }

    #[test]
    fn what_is_granted_comes_before_the_mode() {
        let (root, stranger) = (user(0, 0, &[]), user(1, 1, &[]));
        let expect = |class, who: &User, wanted, log_open, expected: Result<(), Refusal>| {
            let told = check(
                &Rules::default(),
                class,
                &node(0o666),
                who,
                wanted,
                log_open,
            );
            assert_eq!(told, expected, "{class:?}");
        };
        let (reads, writes) = (how(true, false), how(false, true));
        for who in [&root, &stranger] {
            expect(Class::Memory, who, how(true, true), false, Ok(()));
            expect(Class::Block, who, reads, false, Ok(()));
            let only = Err(Refusal::ReadOnly(Class::Block));
            expect(Class::Block, who, writes, false, only);
            let closed = Err(Refusal::Closed(Class::Input));
            expect(Class::Input, who, reads, false, closed);
            expect(
                Class::OwnTerminal,
                who,
                reads,
                false,
                Err(Refusal::OwnTerminal),
            );
        }
        expect(Class::Kmsg, &root, how(true, true), false, Ok(()));
        expect(Class::Kmsg, &stranger, reads, true, Ok(()));
        expect(Class::Kmsg, &stranger, reads, false, Err(Refusal::Log));
        expect(Class::Kmsg, &stranger, writes, true, Err(Refusal::Log));
        let open = Rules {
            kmem: Grant::Write,
            ..Rules::default()
        };
        let told = check(&open, Class::Kmem, &node(0o666), &stranger, reads, true);
        assert_eq!(told, Err(Refusal::Kmem));
    }
}
