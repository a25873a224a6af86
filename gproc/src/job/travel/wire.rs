//! What home and a host that has a job of it say to each other. These messages are part of the protocol: append only.
//!
//! A stream of the job service that begins with [`ToJob::Receive`](super::super::protocol::ToJob::Receive) carries them
//! from then on. A node of an older revision ends such a stream.

use super::super::limits::Limits;
use super::super::private::Private;
use super::super::protocol::{Credentials, Stream};
use super::super::terminal::{Terminal, WindowSize};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Upper limit of the bytes of an image in one frame.
pub(super) const IMAGE_BYTES_MAX: usize = 60 << 10;

/// What the leader of the session of a job with a terminal reports goes by this name: such a job has no wire.
pub(super) const REPORTS: Stream = Stream::Wire;

/// A job that is to run on another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrival {
    /// Its program's pid, which it keeps.
    pub pid: i32,
    /// Its pipes.
    pub pipes: Vec<Pipe>,
}

/// A pipe to the owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pipe {
    /// What it carries; `None`: input.
    pub stream: Option<Stream>,
    /// Which pipe it is in the images.
    pub inode: u64,
    /// Whether the other end is open.
    pub open: bool,
}

/// The terminal of a job that stands still, or has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Carried {
    /// The pid of the leader of its session, which is not in the images.
    pub(super) leader: i32,
    /// The process group that has it; 0: none.
    pub(super) foreground: i32,
    /// Its size and modes.
    pub(super) like: Terminal,
    /// What was typed and not read, as the job is to read it.
    pub(super) unread: Bytes,
}

/// The file that a job has as input, when the job stands still or has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct InputAt {
    /// Where it is read on.
    pub(super) at: u64,
    /// A process that has it open, and by which descriptor; none: nobody reads it any more.
    pub(super) holder: Option<(i32, i32)>,
}

/// From home.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ToGuest {
    /// A piece of an image; the pieces come in order.
    Image(Image),
    /// All images have been sent.
    Made,
    /// It may run.
    Run,
    /// Input, in pieces that fit a frame; no more than there is credit for.
    Input(Bytes),
    /// Its input has ended.
    InputEnd,
    /// So much output was written out.
    Credit(Stream, u32),
    /// Nobody reads this output any more.
    Closed(Stream),
    /// A signal; to its group, or the process alone.
    Signal(i32, bool),
    /// It is to be frozen, and its images sent.
    Freeze,
    /// It is to go on.
    Thaw,
    /// It is to end.
    End,
    /// The sender lives.
    Ping,
    /// Images of it are to be sent, with what it has written before them durable; it goes on. Since version 12.
    Keep,
    /// Whose it is; comes before the images. Since version 12.
    For(Credentials),
    /// What it has to itself; comes before the images, and not if that is nothing. Since version 12.
    Private(Private),
    /// It has this terminal; comes before the images. Since version 12.
    Terminal(Carried),
    /// Its terminal has another size. Since version 12.
    Resize(WindowSize),
    /// As [`Self::Freeze`], but most pages may stay there and be served. Since version 12.
    FreezePartly,
    /// As [`Self::Made`], but most pages are not among the images and come when they are asked for. Since version 12.
    MadePartly,
    /// What CRIU asks for pages, in order, with what it says by `--ps-socket`. Since version 12.
    WantPages(Bytes),
    /// The answers, likewise. Since version 12.
    Pages(Bytes),
    /// What it may use at most; comes before the images, and not if that is everything. Since version 12.
    Limits(Limits),
    /// It has such a file as input; comes before the images. Since version 12.
    InputFile(InputAt),
    /// The source is to send its pages while it runs. Since version 12.
    CopyAhead,
    /// As [`Self::Freeze`], but what has gone ahead need not be among the images. Since version 12.
    FreezeAhead,
    /// Pages of it that go ahead; later ones take the place of earlier ones. Since version 12.
    Ahead(Piece),
    /// Its pipes, which were not known when pages began to go ahead; comes before the images. Since version 12.
    Pipes(Vec<Pipe>),
    /// As [`Self::Made`], but what is not among the images has gone ahead. Since version 12.
    MadeAhead,
}

/// From the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum FromGuest {
    /// It is made, and waits.
    Restored,
    /// It cannot be made.
    NotRestored(String),
    /// It runs.
    Running,
    /// Output.
    Output(Stream, Bytes),
    /// It has closed this output.
    OutputEnd(Stream),
    /// So much input has been passed on.
    InputCredit(u32),
    /// Nobody reads its input any more.
    InputClosed,
    /// A piece of an image.
    Image(Image),
    /// Input that it has not read; the pieces come in order.
    Unread(Bytes),
    /// All images have been sent; its pipes have these numbers.
    Dumped(Vec<Pipe>),
    /// It cannot be imaged, and goes on.
    NotDumped(String),
    /// It has exited with this status.
    Exited(i32),
    /// A signal has ended it.
    Killed(i32),
    /// The sender lives.
    Ping,
    /// How its terminal is; comes before the word that all images have been sent, and before that of its end. Since version 12.
    Terminal(Carried),
    /// As [`Self::Dumped`], but pages are missing, and are served until it ends or goes on. Since version 12.
    DumpedPartly(Vec<Pipe>),
    /// As [`ToGuest::WantPages`], from the copy. Since version 12.
    WantPages(Bytes),
    /// As [`ToGuest::Pages`], from the source. Since version 12.
    Pages(Bytes),
    /// The copy has all its pages. Since version 12.
    Whole,
    /// Pages are lost: of the source they cannot be had, or the copy has ended for want of them. Since version 12.
    PagesLost(String),
    /// So many more of its processes were ended for want of memory; comes before the word that all images have been sent, and
    /// before that of its end. Since version 12.
    OutOfMemory(u64),
    /// How far it has read in the file that it has as input; comes before the word that all images have been sent, and before that
    /// of its end. Since version 12.
    InputFile(InputAt),
    /// As [`ToGuest::Ahead`], from the source. Since version 12.
    Ahead(Piece),
    /// Most of its pages have gone ahead, or it goes whole. Since version 12.
    CopiedAhead,
    /// As [`Self::Dumped`], but what is not among the images has gone ahead. Since version 12.
    DumpedAhead(Vec<Pipe>),
}

/// A piece of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Image {
    /// Name of its file, without slashes.
    pub(super) name: String,
    /// The bytes.
    pub(super) bytes: Bytes,
}

/// Of a page, where CRIU moves processes.
pub(super) const PAGE_BYTES: usize = 4096;
/// Upper limit of the pages of a piece that are not zeros.
pub(super) const PIECE_PAGES_MAX: u32 = 15;
const _: () = assert!(PIECE_PAGES_MAX as usize * PAGE_BYTES <= IMAGE_BYTES_MAX);
/// Upper limit of the pages of a piece.
const ZEROS_MAX: u32 = 1 << 12;

/// Pages of a process, one behind the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Piece {
    pub(super) pid: i32,
    /// Of the first.
    pub(super) address: u64,
    pub(super) content: Content,
}

/// What is in pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Content {
    /// So many of zeros.
    Zeros(u32),
    Plain(Bytes),
    /// So many, as a block of LZ4.
    Packed(u32, Bytes),
}

impl Content {
    /// Returns its bytes on the way.
    pub(super) const fn len(&self) -> usize {
        match self {
            Self::Zeros(_) => 0,
            Self::Plain(bytes) | Self::Packed(_, bytes) => bytes.len(),
        }
    }
}

impl Piece {
    pub(super) fn pages(&self) -> u32 {
        match &self.content {
            Content::Zeros(pages) | Content::Packed(pages, _) => *pages,
            Content::Plain(bytes) => u32::try_from(bytes.len() / PAGE_BYTES).unwrap_or(u32::MAX),
        }
    }

    /// Returns whether it can be what it says. It comes from another node.
    pub(super) fn is_in_bounds(&self) -> bool {
        let most = match &self.content {
            Content::Zeros(_) => ZEROS_MAX,
            Content::Plain(_) | Content::Packed(..) => PIECE_PAGES_MAX,
        };
        let pages = self.pages();
        let bytes = u64::from(pages) * PAGE_BYTES as u64;
        self.address.is_multiple_of(PAGE_BYTES as u64)
            && self.address.checked_add(bytes).is_some()
            && (1..=most).contains(&pages)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::terminal::Modes;
    use super::*;
    use consistency::wire::{decode, encode};
    use serde::de::DeserializeOwned;
    use std::fmt::Debug;

    #[track_caller]
    fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(message: &T, golden: &[u8]) {
        assert_eq!(
            &encode(message)[..],
            golden,
            "{message:?} changed on the wire"
        );
        let back = decode::<T>(golden).expect("well formed");
        assert_eq!(&back, message);
    }

    #[test]
    fn golden_bytes() {
        let image = || Image {
            name: "a".into(),
            bytes: Bytes::from_static(b"b"),
        };
        let pipe = || Pipe {
            stream: Some(Stream::Out),
            inode: 5,
            open: true,
        };
        let byte = Bytes::from_static(b"x");
        let arrival = Arrival {
            pid: 9,
            pipes: vec![pipe()],
        };
        check(&arrival, &[18, 1, 1, 0, 5, 1]);
        check(&ToGuest::Image(image()), &[0, 1, b'a', 1, b'b']);
        check(&ToGuest::Made, &[1]);
        check(&ToGuest::Run, &[2]);
        check(&ToGuest::Input(byte.clone()), &[3, 1, b'x']);
        check(&ToGuest::InputEnd, &[4]);
        check(&ToGuest::Credit(Stream::Err, 7), &[5, 1, 7]);
        check(&ToGuest::Closed(Stream::Out), &[6, 0]);
        check(&ToGuest::Signal(15, true), &[7, 30, 1]);
        check(&ToGuest::Freeze, &[8]);
        check(&ToGuest::Thaw, &[9]);
        check(&ToGuest::End, &[10]);
        check(&ToGuest::Ping, &[11]);
        check(&ToGuest::Keep, &[12]);
        let user = Credentials {
            uid: 1,
            gid: 2,
            groups: vec![3],
        };
        check(&ToGuest::For(user), &[13, 1, 2, 1, 3]);
        let (net, ipc) = (false, true);
        check(&ToGuest::Private(Private { net, ipc }), &[14, 0, 1]);
        let size = WindowSize {
            rows: 24,
            columns: 80,
            ..WindowSize::default()
        };
        let carried = || Carried {
            leader: 4,
            foreground: 5,
            like: Terminal {
                size,
                modes: Modes {
                    input: 1,
                    output: 2,
                    control: 3,
                    local: 4,
                    characters: Bytes::from_static(b"c"),
                },
            },
            unread: Bytes::from_static(b"u"),
        };
        let bytes = [8, 10, 24, 80, 0, 0, 1, 2, 3, 4, 1, b'c', 1, b'u'];
        check(&ToGuest::Terminal(carried()), &[&[15], &bytes[..]].concat());
        check(&ToGuest::Resize(size), &[16, 24, 80, 0, 0]);
        let (mem_bytes, cpus) = (Some(9), None);
        check(&ToGuest::Limits(Limits { mem_bytes, cpus }), &[21, 1, 9, 0]);
        check(&FromGuest::OutOfMemory(2), &[20, 2]);
        let (at, holder) = (5, Some((9, 1)));
        let input = InputAt { at, holder };
        check(&ToGuest::InputFile(input), &[22, 5, 1, 18, 2]);
        check(&FromGuest::InputFile(input), &[21, 5, 1, 18, 2]);
        check(
            &FromGuest::Terminal(carried()),
            &[&[14], &bytes[..]].concat(),
        );
        check(&ToGuest::FreezePartly, &[17]);
        check(&ToGuest::MadePartly, &[18]);
        check(&ToGuest::WantPages(byte.clone()), &[19, 1, b'x']);
        check(&ToGuest::Pages(byte.clone()), &[20, 1, b'x']);
        let piece = |content| Piece {
            pid: 9,
            address: 4096,
            content,
        };
        check(&ToGuest::CopyAhead, &[23]);
        check(&ToGuest::FreezeAhead, &[24]);
        let bytes = [25, 18, 251, 0, 16, 0, 7];
        check(&ToGuest::Ahead(piece(Content::Zeros(7))), &bytes);
        let bytes = [25, 18, 251, 0, 16, 1, 1, b'x'];
        check(&ToGuest::Ahead(piece(Content::Plain(byte.clone()))), &bytes);
        check(&ToGuest::Pipes(vec![pipe()]), &[26, 1, 1, 0, 5, 1]);
        check(&ToGuest::MadeAhead, &[27]);
        let bytes = [22, 18, 251, 0, 16, 2, 3, 1, b'x'];
        check(
            &FromGuest::Ahead(piece(Content::Packed(3, byte.clone()))),
            &bytes,
        );
        check(&FromGuest::CopiedAhead, &[23]);
        check(&FromGuest::DumpedAhead(vec![pipe()]), &[24, 1, 1, 0, 5, 1]);
        check(&FromGuest::Restored, &[0]);
        check(&FromGuest::NotRestored("w".into()), &[1, 1, b'w']);
        check(&FromGuest::Running, &[2]);
        check(
            &FromGuest::Output(Stream::Out, byte.clone()),
            &[3, 0, 1, b'x'],
        );
        check(&FromGuest::OutputEnd(Stream::Err), &[4, 1]);
        check(&FromGuest::InputCredit(3), &[5, 3]);
        check(&FromGuest::InputClosed, &[6]);
        check(&FromGuest::Image(image()), &[7, 1, b'a', 1, b'b']);
        check(&FromGuest::Unread(byte.clone()), &[8, 1, b'x']);
        check(&FromGuest::Dumped(vec![pipe()]), &[9, 1, 1, 0, 5, 1]);
        check(&FromGuest::NotDumped("w".into()), &[10, 1, b'w']);
        check(&FromGuest::Exited(1), &[11, 2]);
        check(&FromGuest::Killed(9), &[12, 18]);
        check(&FromGuest::Ping, &[13]);
        check(&FromGuest::DumpedPartly(vec![pipe()]), &[15, 1, 1, 0, 5, 1]);
        check(&FromGuest::WantPages(byte.clone()), &[16, 1, b'x']);
        check(&FromGuest::Pages(byte), &[17, 1, b'x']);
        check(&FromGuest::Whole, &[18]);
        check(&FromGuest::PagesLost("w".into()), &[19, 1, b'w']);
    }
}
