//! POSIX ACLs, as the kernel puts them into extended attributes: what they mean for permission bits, and what
//! a new inode inherits. Enforcing them is the kernel's work.

use bytes::{BufMut, Bytes};
use consistency::wire::meta::{FsError, Name};
use std::sync::LazyLock;

/// Name of the attribute with the ACL that governs access.
pub(super) static ACCESS: LazyLock<Name> = LazyLock::new(|| name("system.posix_acl_access"));
/// Name of the attribute with the ACL that new inodes of a directory inherit.
pub(super) static DEFAULT: LazyLock<Name> = LazyLock::new(|| name("system.posix_acl_default"));
/// Name of the attribute with the capabilities of a program.
pub(super) static CAPABILITY: LazyLock<Name> = LazyLock::new(|| name("security.capability"));

fn name(text: &'static str) -> Name {
    Name::new(text).expect("the names of attributes are names")
}

const VERSION: u32 = 2;
const HEADER_BYTES: usize = 4;
const ENTRY_BYTES: usize = 8;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// An access control list, valid or empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Acl(Vec<Entry>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

impl Acl {
    /// Reads an attribute's value.
    ///
    /// # Errors
    /// [`FsError::Invalid`] if it is no ACL or one that contradicts itself.
    pub(super) fn decode(value: &[u8]) -> Result<Self, FsError> {
        let (version, rest) = value
            .split_first_chunk::<HEADER_BYTES>()
            .ok_or(FsError::Invalid)?;
        let (entries, tail) = rest.as_chunks::<ENTRY_BYTES>();
        if u32::from_le_bytes(*version) != VERSION || !tail.is_empty() {
            return Err(FsError::Invalid);
        }
        let entry = |&[t0, t1, p0, p1, i0, i1, i2, i3]: &[u8; ENTRY_BYTES]| Entry {
            tag: u16::from_le_bytes([t0, t1]),
            perm: u16::from_le_bytes([p0, p1]),
            id: u32::from_le_bytes([i0, i1, i2, i3]),
        };
        let acl = Self(entries.iter().map(entry).collect());
        if acl.is_empty() || acl.is_valid() {
            Ok(acl)
        } else {
            Err(FsError::Invalid)
        }
    }

    pub(super) fn encode(&self) -> Bytes {
        let mut value = Vec::with_capacity(HEADER_BYTES + self.0.len() * ENTRY_BYTES);
        value.put_u32_le(VERSION);
        for entry in &self.0 {
            value.put_u16_le(entry.tag);
            value.put_u16_le(entry.perm);
            value.put_u32_le(entry.id);
        }
        value.into()
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns true if it says no more than permission bits can.
    pub(super) fn is_minimal(&self) -> bool {
        self.0
            .iter()
            .all(|entry| matches!(entry.tag, USER_OBJ | GROUP_OBJ | OTHER))
    }

    /// Tags come in ascending order, the three classes once each, the mask at most once, and not without
    /// need of it.
    fn is_valid(&self) -> bool {
        let count = |tag| self.0.iter().filter(|entry| entry.tag == tag).count();
        let named = count(USER) + count(GROUP);
        let known = count(USER_OBJ) + count(GROUP_OBJ) + count(OTHER) + count(MASK) + named;
        self.0.is_sorted_by_key(|entry| entry.tag)
            && self.0.iter().all(|entry| entry.perm <= 7)
            && [USER_OBJ, GROUP_OBJ, OTHER].map(count) == [1; 3]
            && count(MASK) <= 1
            && (named == 0 || count(MASK) == 1)
            && known == self.0.len()
    }

    /// Returns the entry that the group bits of the mode stand for.
    fn group_class(&self) -> u16 {
        if self.0.iter().any(|entry| entry.tag == MASK) {
            MASK
        } else {
            GROUP_OBJ
        }
    }

    /// Runs over the three entries that the mode stands for, each with the position of its bits.
    fn classes(&mut self) -> impl Iterator<Item = (u32, &mut u16)> {
        let group = self.group_class();
        self.0.iter_mut().filter_map(move |entry| {
            let shift = match entry.tag {
                USER_OBJ => 6,
                OTHER => 0,
                tag if tag == group => 3,
                _ => return None,
            };
            Some((shift, &mut entry.perm))
        })
    }

    /// Returns the permission bits it stands for, 0 to 0o777.
    pub(super) fn mode(&self) -> u32 {
        let mut acl = self.clone();
        acl.classes()
            .fold(0, |mode, (shift, perm)| mode | u32::from(*perm) << shift)
    }

    /// Follows a change of the permission bits.
    pub(super) fn set_mode(&mut self, mode: u32) {
        for (shift, perm) in self.classes() {
            *perm = bits(mode, shift);
        }
    }

    /// Turns a default ACL into the access ACL of an inode made with `mode`; returns the mode that results:
    /// neither grants more than the other.
    pub(super) fn inherit(&mut self, mode: u32) -> u32 {
        let mut result = mode & !0o777;
        for (shift, perm) in self.classes() {
            *perm &= bits(mode, shift);
            result |= u32::from(*perm) << shift;
        }
        result
    }
}

/// Returns the three permission bits of one class.
fn bits(mode: u32, shift: u32) -> u16 {
    ((mode >> shift) & 7) as u16
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Reads "u::rwx,u:5:r--,g::r-x,g:6:rw-,m::r--,o::---".
    pub(in crate::server::ops) fn acl(text: &str) -> Bytes {
        let entry = |text: &str| {
            let mut fields = text.split(':');
            let mut next = || fields.next().expect("three fields");
            let (tag, id, perm) = (next(), next(), next());
            let tag = match (tag, id.is_empty()) {
                ("u", true) => USER_OBJ,
                ("u", false) => USER,
                ("g", true) => GROUP_OBJ,
                ("g", false) => GROUP,
                ("m", _) => MASK,
                ("o", _) => OTHER,
                _ => panic!("no tag: {text}"),
            };
            let perm = perm
                .chars()
                .fold(0, |perm, c| perm << 1 | u16::from(c != '-'));
            Entry {
                tag,
                perm,
                id: id.parse().unwrap_or(u32::MAX),
            }
        };
        Acl(text
            .split(',')
            .filter(|text| !text.is_empty())
            .map(entry)
            .collect())
        .encode()
    }

    #[track_caller]
    fn check(text: &str, mode: Result<u32, FsError>) {
        let decoded = Acl::decode(&acl(text));
        if let Ok(decoded) = &decoded {
            assert_eq!(decoded.encode(), acl(text));
        }
        assert_eq!(decoded.map(|acl| acl.mode()), mode, "{text}");
    }

    #[test]
    fn validity_and_mode() {
        check("u::rwx,g::r-x,o::--x", Ok(0o751));
        check("u::rw-,u:5:rwx,g::rwx,m::r--,o::---", Ok(0o640));
        check("u::rw-,g::r--,g:6:rw-,m::rw-,o::---", Ok(0o660));
        check("u::rw-,g::r--,m::rw-,o::---", Ok(0o660));
        let invalid = Err(FsError::Invalid);
        check("u::rw-,g::r--", invalid);
        check("u::rw-,u::rw-,g::r--,o::---", invalid);
        check("g::r--,u::rw-,o::---", invalid);
        check("u::rw-,u:5:rwx,g::rwx,o::---", invalid);
        check("u::rwxx,g::r--,o::---", invalid);
    }

    #[test]
    fn garbage_is_refused() {
        for bytes in [
            &b""[..],
            b"\x02\0\0",
            b"\x01\0\0\0",
            b"\x02\0\0\0\x01",
            &[2; 12],
        ] {
            assert_eq!(Acl::decode(bytes), Err(FsError::Invalid), "{bytes:?}");
        }
        assert!(Acl::decode(&acl("")).is_ok_and(|acl| acl.is_empty()));
    }

    #[track_caller]
    fn check_inherit(default: &str, mode: u32, expected: (u32, &str)) {
        let mut inherited = Acl::decode(&acl(default)).expect("valid");
        let got = inherited.inherit(mode);
        assert_eq!((got, inherited.encode()), (expected.0, acl(expected.1)));
    }

    #[test]
    fn inheritance() {
        check_inherit(
            "u::rwx,g::r-x,o::---",
            0o664,
            (0o640, "u::rw-,g::r--,o::---"),
        );
        check_inherit(
            "u::rwx,u:5:rwx,g::rwx,m::rwx,o::r--",
            0o2664,
            (0o2664, "u::rw-,u:5:rwx,g::rwx,m::rw-,o::r--"),
        );
    }

    #[test]
    fn chmod_changes_the_mask_if_there_is_one() {
        let mut with = Acl::decode(&acl("u::rwx,u:5:rwx,g::rwx,m::rwx,o::r--")).expect("valid");
        with.set_mode(0o640);
        assert_eq!(with.encode(), acl("u::rw-,u:5:rwx,g::rwx,m::r--,o::---"));
        let mut without = Acl::decode(&acl("u::rwx,g::rwx,o::r--")).expect("valid");
        without.set_mode(0o640);
        assert_eq!(without.encode(), acl("u::rw-,g::r--,o::---"));
    }
}
