//! What a single machine does with files.

use super::Model;
use std::collections::BTreeMap;

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

    fn is_read(op: &RegisterOp) -> bool {
        matches!(op, RegisterOp::Read(_))
    }
}

/// A file that records are appended to.
#[derive(Clone, Copy, Debug, Default)]
pub struct AppendLog;

/// An operation on an [`AppendLog`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendOp {
    /// Returns all records.
    Read,
    /// Returns the number of records, from the size of the file.
    Size,
    /// Adds this record.
    Append(u32),
}

/// What an [`AppendOp`] returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppendRet {
    /// Read.
    Records(Vec<u32>),
    /// Size.
    Size(usize),
    /// Append.
    Done,
}

impl Model for AppendLog {
    type State = Vec<u32>;
    type Op = AppendOp;
    type Ret = AppendRet;

    fn start(&self) -> Vec<u32> {
        Vec::new()
    }

    fn step(&self, state: &Vec<u32>, op: &AppendOp, ret: Option<&AppendRet>) -> Option<Vec<u32>> {
        match (op, ret) {
            (AppendOp::Append(record), None | Some(AppendRet::Done)) => {
                let mut after = state.clone();
                after.push(*record);
                Some(after)
            }
            (AppendOp::Read | AppendOp::Size, None) => Some(state.clone()),
            (AppendOp::Read, Some(AppendRet::Records(records))) => {
                (records == state).then(|| state.clone())
            }
            (AppendOp::Size, Some(AppendRet::Size(size))) => {
                (*size == state.len()).then(|| state.clone())
            }
            (AppendOp::Append(_) | AppendOp::Read | AppendOp::Size, Some(_)) => None,
        }
    }

    fn is_read(op: &AppendOp) -> bool {
        matches!(op, AppendOp::Read | AppendOp::Size)
    }
}

/// A directory of files, each known by its inode number.
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
    /// Returns all names.
    List,
}

/// What a [`NamesOp`] returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamesRet {
    /// Create and Lookup: this inode.
    Inode(u64),
    /// List.
    Listing(Vec<u8>),
    /// Unlink and Rename.
    Done,
    /// Create.
    Exists,
    /// Unlink, Rename and Lookup.
    NotFound,
}

impl Model for Names {
    /// The inode of each name; `None` while only the one that made it could tell, and did not return.
    type State = BTreeMap<u8, Option<u64>>;
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
        let expected = match op {
            NamesOp::Create(name) => match (state.contains_key(name), ret) {
                (true, _) => NamesRet::Exists,
                (false, Some(NamesRet::Inode(ino))) => {
                    after.insert(*name, Some(*ino));
                    NamesRet::Inode(*ino)
                }
                (false, None) => {
                    after.insert(*name, None);
                    return Some(after);
                }
                (false, Some(_)) => return None,
            },
            NamesOp::Unlink(name) => match after.remove(name) {
                Some(_) => NamesRet::Done,
                None => NamesRet::NotFound,
            },
            NamesOp::Rename(from, to) => match after.remove(from) {
                Some(ino) => {
                    after.insert(*to, ino);
                    NamesRet::Done
                }
                None => NamesRet::NotFound,
            },
            NamesOp::Lookup(name) => match (state.get(name), ret) {
                (Some(Some(ino)), _) => NamesRet::Inode(*ino),
                (Some(None), Some(NamesRet::Inode(ino))) => {
                    after.insert(*name, Some(*ino));
                    NamesRet::Inode(*ino)
                }
                (Some(None), None) => return Some(after),
                (Some(None), Some(_)) => return None,
                (None, _) => NamesRet::NotFound,
            },
            NamesOp::List => NamesRet::Listing(state.keys().copied().collect()),
        };
        ret.is_none_or(|ret| *ret == expected).then_some(after)
    }

    fn is_read(op: &NamesOp) -> bool {
        matches!(op, NamesOp::Lookup(_) | NamesOp::List)
    }
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

    fn is_read(op: &AttributesOp) -> bool {
        matches!(op, AttributesOp::Stat)
    }
}
