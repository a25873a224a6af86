//! Messages of a session: a stream that stands for one open device, from its open to its close.
//!
//! ```text
//! user's node -> owner:  Open,               then Ask and Cancel in any number
//! owner -> user's node:  Opened or Refused,  then Answer to each Ask, in any order, and Ready
//! ```
//! The end of the stream closes the device, whoever ends it and why. A node that knows no sessions ends it at once.
//! Variants are part of the protocol: append, never reorder.

use super::{Device, GROUPS_MAX, IO_BYTES_MAX, User};
use crate::export::wire::{Change, FileLock, Stat};
use crate::path::DevPath;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Upper limit of the questions of one session that are not answered yet.
pub const ASKED_MAX: usize = 64;
/// Upper limit of what an ioctl carries each way: the kernel's own, 14 bits.
pub const CONTROL_BYTES_MAX: usize = (1 << 14) - 1;

/// From the user's node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToOwner {
    /// The first of all.
    Open {
        /// Where it is.
        path: DevPath,
        /// Which one the caller saw there.
        device: Device,
        /// For whom.
        who: User,
        /// How.
        how: How,
    },
    /// A question.
    Ask {
        /// Names it in answer and cancellation; never again in this session.
        id: u64,
        /// What is asked.
        what: Ask,
    },
    /// Who asked this does not wait any more; it is answered all the same, and soon.
    Cancel(u64),
}

/// How a device is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct How {
    /// To read.
    pub read: bool,
    /// To write.
    pub write: bool,
    /// Alone (O_EXCL): a claim on a disk.
    pub exclusive: bool,
    /// Writes are durable when they are answered (O_SYNC, O_DSYNC).
    pub durable: bool,
}

/// What is asked of an open device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Answered by [`Answer::Data`].
    Read {
        /// Position of the reader.
        offset: u64,
        /// Upper limit of bytes, at most [`IO_BYTES_MAX`].
        size: u32,
        /// Until there is something, else EAGAIN.
        wait: bool,
    },
    /// Answered by [`Answer::Count`].
    Write {
        /// Position of the writer.
        offset: u64,
        /// At most [`IO_BYTES_MAX`].
        data: Bytes,
        /// Until all is taken, else what is taken at once, or EAGAIN.
        wait: bool,
    },
    /// Makes all that was written durable; answered by [`Answer::Done`].
    Sync,
    /// As fallocate(2): discards or zeroes; answered by [`Answer::Done`].
    Allocate {
        /// FALLOC_FL_ flags.
        mode: i32,
        /// First byte.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// As lseek(2) with SEEK_DATA and SEEK_HOLE; answered by [`Answer::Count`].
    Seek {
        /// Where to begin.
        offset: u64,
        /// What to look for.
        whence: i32,
    },
    /// An ioctl that says how much it carries; answered by [`Answer::Data`].
    Control {
        /// Its number.
        command: u32,
        /// What goes in, as many bytes as the number says, or none.
        input: Bytes,
    },
    /// Asks what it is ready for, as poll(2) tells; answered by [`Answer::Count`].
    Poll {
        /// Send [`FromOwner::Ready`] when the answer may have changed.
        wake: bool,
    },
    /// Of a file (as all that follows): writes behind its end; answered by [`Answer::Count`].
    Append {
        /// At most [`IO_BYTES_MAX`].
        data: Bytes,
    },
    /// Answered by [`Answer::Stat`].
    Stat,
    /// Changes attributes; answered by [`Answer::Stat`].
    Change {
        /// For whom.
        who: User,
        /// How.
        change: Change,
    },
    /// Takes or gives back a lock, without waiting; answered by [`Answer::Done`].
    Lock(FileLock),
    /// Looks for a lock in the way of one; answered by [`Answer::Lock`].
    TestLock(FileLock),
}

impl Ask {
    /// Returns whether it keeps the limits of this protocol.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        match self {
            Self::Read { size, .. } => *size <= IO_BYTES_MAX,
            Self::Write { data, .. } | Self::Append { data } => data.len() <= IO_BYTES_MAX as usize,
            Self::Control { input, .. } => input.len() <= CONTROL_BYTES_MAX,
            Self::Change { who, .. } => who.groups.len() <= GROUPS_MAX,
            Self::Sync
            | Self::Allocate { .. }
            | Self::Seek { .. }
            | Self::Poll { .. }
            | Self::Stat
            | Self::Lock(_)
            | Self::TestLock(_) => true,
        }
    }
}

/// From the owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromOwner {
    /// It is open.
    Opened(Access),
    /// It is not, and the session is over: an errno of Linux.
    Refused(i32),
    /// The answer to a question.
    Answer {
        /// Which.
        id: u64,
        /// What.
        answer: Answer,
    },
    /// What it is ready for may have changed since the last [`Ask::Poll`].
    Ready,
}

/// How a device is read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// At any position.
    Random,
    /// One byte after the other: positions mean nothing.
    Stream,
    /// One record after the other; position 0 is the first one that is kept.
    Records,
}

/// An answer to an [`Ask`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Bytes.
    Data(Bytes),
    /// A number.
    Count(u64),
    /// It is done.
    Done,
    /// It is not: an errno of Linux.
    Failed(i32),
    /// Attributes.
    Stat(Box<Stat>),
    /// A lock that is in the way.
    Lock(Option<FileLock>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use consistency::wire::{decode, encode};
    use serde::de::DeserializeOwned;
    use std::fmt::Debug;

    #[track_caller]
    fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(message: T, golden: &[u8]) {
        assert_eq!(encode(&message), golden, "{message:?} changed on the wire");
        assert_eq!(decode::<T>(golden).expect("decodes"), message);
    }

    #[test]
    fn golden_bytes() {
        let open = ToOwner::Open {
            path: DevPath::try_from(Bytes::from_static(b"sda")).expect("a path"),
            device: Device {
                block: true,
                major: 8,
                minor: 0,
            },
            who: User {
                uid: 5,
                gid: 6,
                groups: vec![],
            },
            how: How {
                read: true,
                ..How::default()
            },
        };
        check(open, b"\0\x03sda\x01\x08\0\x05\x06\0\x01\0\0\0");
        let ask = |what| ToOwner::Ask { id: 7, what };
        let read = Ask::Read {
            offset: 1,
            size: 2,
            wait: true,
        };
        check(ask(read), &[1, 7, 0, 1, 2, 1]);
        let write = Ask::Write {
            offset: 1,
            data: Bytes::from_static(b"x"),
            wait: false,
        };
        check(ask(write), &[1, 7, 1, 1, 1, b'x', 0]);
        check(ask(Ask::Sync), &[1, 7, 2]);
        let allocate = Ask::Allocate {
            mode: 3,
            offset: 1,
            len: 2,
        };
        check(ask(allocate), &[1, 7, 3, 6, 1, 2]);
        let seek = Ask::Seek {
            offset: 1,
            whence: 3,
        };
        check(ask(seek), &[1, 7, 4, 1, 6]);
        let control = Ask::Control {
            command: 9,
            input: Bytes::new(),
        };
        check(ask(control), &[1, 7, 5, 9, 0]);
        check(ask(Ask::Poll { wake: true }), &[1, 7, 6, 1]);
        check(ToOwner::Cancel(7), &[2, 7]);
        check(FromOwner::Opened(Access::Random), &[0, 0]);
        check(FromOwner::Opened(Access::Stream), &[0, 1]);
        check(FromOwner::Opened(Access::Records), &[0, 2]);
        check(FromOwner::Refused(13), &[1, 26]);
        let answer = |answer| FromOwner::Answer { id: 7, answer };
        check(
            answer(Answer::Data(Bytes::from_static(b"x"))),
            &[2, 7, 0, 1, b'x'],
        );
        check(answer(Answer::Count(5)), &[2, 7, 1, 5]);
        check(answer(Answer::Done), &[2, 7, 2]);
        check(answer(Answer::Failed(5)), &[2, 7, 3, 10]);
        check(FromOwner::Ready, &[3]);
    }
}
