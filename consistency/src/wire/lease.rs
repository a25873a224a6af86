//! Leases on the wire: what a reply grants and what a callback takes away.

use super::meta::Name;
use crate::{Epoch, InodeNo, LeaseId};
use serde::{Deserialize, Serialize};

/// What a session may do with an inode without asking; ordered by strength.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Mode {
    /// Its kernel may know the inode, so the inode lives on when its last name goes; nothing is cached.
    Known,
    /// It may cache attributes, content, names and the absence of names; many sessions at a time.
    Shared,
    /// It is the master of attributes and content and may change them locally; regular files only.
    Exclusive,
}

/// A grant inside a reply. A fact that comes without one must not be cached, neither by the daemon
/// nor by its kernel, even if an older grant on the same inode is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Names this grant; younger grants of an inode have larger numbers.
    pub lease: LeaseId,
    /// What is granted.
    pub mode: Mode,
}

/// What a holder has to forget: the part of an inode that is about to change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// Attributes alone (mode, owner, link count, times, xattrs).
    Attr,
    /// Content and attributes.
    Data,
    /// These names of a directory, and its attributes.
    Names(Vec<Name>),
    /// All names of a directory, and its attributes: the directory goes or caching stops.
    All,
    /// Nothing: somebody only looks. The exclusive holder of a file flushes what it alone knows.
    Flush,
}

/// Callback: a change waits until this session has forgotten `scope` of `ino`.
///
/// The holder flushes what it alone knows (exclusive), forgets, invalidates its kernel's copy, and only then
/// answers with a [`BreakAck`]. It may be sent again; a repeated break is answered again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Break {
    /// Inode concerned.
    pub ino: InodeNo,
    /// New name of the grant concerned (L4): younger than that of any reply before it.
    pub lease: LeaseId,
    /// What to forget.
    pub scope: Scope,
    /// The mode that may be kept after the ack; the holder may keep less.
    pub keep: Mode,
}

/// Answer to a [`Break`]: nothing of `scope` is cached any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BreakAck {
    /// Inode acknowledged.
    pub ino: InodeNo,
    /// Grant acknowledged (L4).
    pub lease: LeaseId,
    /// The mode kept, at most what the break offered.
    pub kept: Mode,
}

/// A leader tells a node that it leads; the answer is empty. It may be sent again.
///
/// Who asks another node for something gives up and asks this one; the session is renewed, and tells what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// Its reign. An older one than was heard of before is ignored.
    pub epoch: Epoch,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::check_golden as check;

    #[test]
    fn golden_bytes() {
        let (ino, lease) = (InodeNo(5), LeaseId(300));
        let scopes = [
            (Scope::Attr, &[0][..]),
            (Scope::Data, &[1]),
            (
                Scope::Names(vec![Name::new("a").expect("valid")]),
                &[2, 1, 1, b'a'],
            ),
            (Scope::All, &[3]),
            (Scope::Flush, &[4]),
        ];
        for (scope, golden) in scopes {
            let keep = Mode::Shared;
            let request = Break {
                ino,
                lease,
                scope,
                keep,
            };
            check(&request, &[&[5, 251, 44, 1], golden, &[1]].concat());
        }
        let kept = Mode::Known;
        check(&BreakAck { ino, lease, kept }, &[5, 251, 44, 1, 0]);
        let mode = Mode::Exclusive;
        check(&Grant { lease, mode }, &[251, 44, 1, 2]);
        check(&Announcement { epoch: Epoch(9) }, &[9]);
    }
}
