//! What a single machine does with files.

use super::Model;
use std::collections::BTreeMap;
use std::fmt;

/// A file that is read and written as a whole.
#[derive(Clone, Copy, Debug, Default)]
pub struct Register;

/// An operation on a [`Register`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegisterOp {
    /// Returns the value.
    Read(u32),
    /// Sets the value of this file, and returns it.
    Write(u32, u64),
}

impl RegisterOp {
    /// Returns which file it is about: files are independent.
    #[must_use]
    pub const fn file(&self) -> u32 {
        match self {
            Self::Read(file) | Self::Write(file, _) => *file,
        }
    }
}

impl Model for Register {
    type State = u64;
    type Op = RegisterOp;
    type Ret = u64;

    fn start(&self) -> u64 {
        0
    }

    fn step(&self, state: &u64, op: &RegisterOp, ret: Option<&u64>) -> Option<u64> {
        let after = match op {
            RegisterOp::Read(_) => *state,
            RegisterOp::Write(_, value) => *value,
        };
        ret.is_none_or(|ret| *ret == after).then_some(after)
    }

    fn is_look(op: &RegisterOp, _: Option<&u64>) -> bool {
        matches!(op, RegisterOp::Read(_))
    }
}

/// A file that records are appended to.
#[derive(Clone, Copy, Debug, Default)]
pub struct AppendLog;

/// The content of an [`AppendLog`].
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Records(pub Vec<u32>);

/// An operation on an [`AppendLog`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendOp {
    /// Returns all records of this file.
    Read(u32),
    /// Returns the number of records, from the size of this file.
    Size(u32),
    /// Adds a record to this file.
    Append(u32, u32),
}

/// What an [`AppendOp`] returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppendRet {
    /// Read.
    Records(Records),
    /// Size.
    Size(usize),
    /// Append.
    Done,
}

/// The number of records and the last ones: they are long, and differ at the end.
impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = &self.0[self.0.len().saturating_sub(3)..];
        write!(f, "{} to {last:?}", self.0.len())
    }
}

impl AppendOp {
    /// Returns which file it is about: files are independent.
    #[must_use]
    pub const fn file(&self) -> u32 {
        match self {
            Self::Read(file) | Self::Size(file) | Self::Append(file, _) => *file,
        }
    }
}

impl Model for AppendLog {
    type State = Records;
    type Op = AppendOp;
    type Ret = AppendRet;

    fn start(&self) -> Records {
        Records::default()
    }

    fn step(&self, state: &Records, op: &AppendOp, ret: Option<&AppendRet>) -> Option<Records> {
        let mut after = state.clone();
        let fits = match (op, ret) {
            (AppendOp::Append(_, record), None | Some(AppendRet::Done)) => {
                after.0.push(*record);
                true
            }
            (AppendOp::Read(_), Some(AppendRet::Records(records))) => records == state,
            (AppendOp::Size(_), Some(AppendRet::Size(size))) => *size == state.0.len(),
            (_, ret) => ret.is_none(),
        };
        fits.then_some(after)
    }

    fn is_look(op: &AppendOp, _: Option<&AppendRet>) -> bool {
        matches!(op, AppendOp::Read(_) | AppendOp::Size(_))
    }
}

/// A directory of files, each known by its inode number.
///
/// POSIX does not promise that a listing is of one moment: names that come or go meanwhile may be in it or not, so a
/// file that is moved may be seen under both names, or none. It is promised for each name by itself, so a listing is
/// one [`NamesOp::Listed`] for each name there can be, all at the same time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Names;

/// An operation on [`Names`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamesOp {
    /// Makes a file under a name that is free (`O_EXCL`).
    Create(u8),
    /// Removes a name.
    Unlink(u8),
    /// Moves a name, over another if need be.
    Rename(u8, u8),
    /// Finds a name.
    Lookup(u8),
    /// Looks for a name in a listing.
    Listed(u8),
}

/// What a [`NamesOp`] returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamesRet {
    /// Create and Lookup: this inode.
    Inode(u64),
    /// Listed.
    Listed(bool),
    /// Unlink and Rename.
    Done,
    /// Create.
    Exists,
    /// Unlink, Rename and Lookup.
    NotFound,
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Named {
    /// `None` while only the one that made the file could tell, and did not return.
    pub ino: Option<u64>,
    /// The name that the file was moved from.
    pub from: Option<u8>,
}

impl Model for Names {
    type State = BTreeMap<u8, Named>;
    type Op = NamesOp;
    type Ret = NamesRet;

    fn start(&self) -> Self::State {
        BTreeMap::new()
    }

    fn step(
        &self,
        state: &Self::State,
        op: &NamesOp,
        ret: Option<&NamesRet>,
    ) -> Option<Self::State> {
        let mut after = state.clone();
        let named = |ino| Named { ino, from: None };
        let expected = match op {
            NamesOp::Create(name) => match (state.contains_key(name), ret) {
                (true, _) => NamesRet::Exists,
                (false, Some(NamesRet::Inode(ino))) => {
                    after.insert(*name, named(Some(*ino)));
                    NamesRet::Inode(*ino)
                }
                (false, None) => {
                    after.insert(*name, named(None));
                    return Some(after);
                }
                (false, Some(_)) => return None,
            },
            NamesOp::Unlink(name) => match after.remove(name) {
                Some(_) => NamesRet::Done,
                None => NamesRet::NotFound,
            },
            NamesOp::Rename(from, to) => match after.remove(from) {
                Some(moved) => {
                    let from = Some(*from);
                    after.insert(*to, Named { from, ..moved });
                    NamesRet::Done
                }
                None if ret == Some(&NamesRet::Done) && moved_already(state, *from, *to) => {
                    NamesRet::Done
                }
                None => NamesRet::NotFound,
            },
            NamesOp::Lookup(name) => match (state.get(name), ret) {
                (Some(Named { ino: Some(ino), .. }), _) => NamesRet::Inode(*ino),
                (Some(Named { ino: None, from }), Some(NamesRet::Inode(ino))) => {
                    let (ino, from) = (Some(*ino), *from);
                    after.insert(*name, Named { ino, from });
                    return Some(after);
                }
                (Some(Named { ino: None, .. }), None) => return Some(after),
                (Some(Named { ino: None, .. }), Some(_)) => return None,
                (None, _) => NamesRet::NotFound,
            },
            NamesOp::Listed(name) => NamesRet::Listed(state.contains_key(name)),
        };
        ret.is_none_or(|ret| *ret == expected).then_some(after)
    }

    fn is_look(op: &NamesOp, ret: Option<&NamesRet>) -> bool {
        matches!(op, NamesOp::Lookup(_) | NamesOp::Listed(_))
            || matches!(ret, Some(NamesRet::Exists | NamesRet::NotFound))
    }
}

/// The kernel looks up the two names of a rename one after the other, and does nothing, successfully, if they stand for
/// one file (as POSIX wants it for hard links). If another node makes the same move in between, that is what it sees:
/// both are told that they moved the file, which is then where both wanted it.
fn moved_already(state: &BTreeMap<u8, Named>, from: u8, to: u8) -> bool {
    state.get(&to).is_some_and(|named| named.from == Some(from))
}

/// The attributes of one file.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes;

/// An operation on [`Attributes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttributesOp {
    /// chmod(2)
    Mode(u32),
    /// chown(2), of the user alone.
    Owner(u32),
    /// truncate(2)
    Size(u64),
    /// stat(2)
    Stat,
}

/// What stat(2) shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Stat {
    /// Permission bits.
    pub mode: u32,
    /// User.
    pub uid: u32,
    /// Size in bytes.
    pub size: u64,
}

/// What an [`AttributesOp`] returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttributesRet {
    /// Stat.
    Stat(Stat),
    /// The others.
    Done,
}

impl Model for Attributes {
    type State = Stat;
    type Op = AttributesOp;
    type Ret = AttributesRet;

    /// Of a file of root, empty, with the mode 0.
    fn start(&self) -> Stat {
        Stat::default()
    }

    fn step(&self, state: &Stat, op: &AttributesOp, ret: Option<&AttributesRet>) -> Option<Stat> {
        let mut after = *state;
        let expected = match op {
            AttributesOp::Mode(mode) => {
                after.mode = *mode;
                AttributesRet::Done
            }
            AttributesOp::Owner(uid) => {
                after.uid = *uid;
                AttributesRet::Done
            }
            AttributesOp::Size(size) => {
                after.size = *size;
                AttributesRet::Done
            }
            AttributesOp::Stat => AttributesRet::Stat(*state),
        };
        ret.is_none_or(|ret| *ret == expected).then_some(after)
    }

    fn is_look(op: &AttributesOp, _: Option<&AttributesRet>) -> bool {
        matches!(op, AttributesOp::Stat)
    }
}
