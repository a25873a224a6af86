//! The pages of a frozen job that moves by post-copy: its source gives them to whoever makes the copy, as that asks for them.
//!
//! CRIU's `dump --lazy-pages` makes all images but those pages, and then holds the job for whoever asks it for them by a
//! socket. Here nobody does: the job is frozen, so its memory is there to be read, which needs no room in pipes. The questions
//! and answers are those of CRIU's page server; home carries them and does not look into them.

use super::engine::{Helper, Images, Start};
use super::guest::blocking;
use super::wire::{self, IMAGE_BYTES_MAX};
use bytes::{BufMut, Bytes, BytesMut};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const PAGE_BYTES: u64 = wire::PAGE_BYTES as u64;
/// Pages in one answer: what somebody waits for does not wait for more than these.
const PAGES_MAX: u64 = 256;
/// Bytes of answers that are made at once. CRIU asks for a range at a time, and for a page for each thread that waits.
const ANSWERS_MAX: usize = 16 << 20;
/// How long CRIU may take to let a job go.
const GONE_WITHIN: Duration = Duration::from_secs(10);
/// Pause between looks at what cannot be waited for otherwise.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// As CRIU has it on the wire: a number of 32 bits for what it is, four bytes of nothing, and three numbers of 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Question {
    what: u32,
    pages: u64,
    address: u64,
    pid: u64,
}

impl Question {
    const BYTES: usize = 32;
    /// Wants pages.
    const GET: u32 = 7;
    /// Brings pages that are there.
    const ADD: u32 = 6 | 4 << 16;
    /// Wants nothing more.
    const CLOSE: [u32; 2] = [0x1023, 0x1024];

    fn take(from: &mut BytesMut) -> Option<Self> {
        if from.len() < Self::BYTES {
            return None;
        }
        let bytes = from.split_to(Self::BYTES);
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        Some(Self {
            what: u32::from_le_bytes(bytes[..4].try_into().expect("4 bytes")),
            pages: number(8),
            address: number(16),
            pid: number(24),
        })
    }

    fn put(self, into: &mut BytesMut) {
        into.put_u32_le(self.what);
        into.put_u32_le(0);
        into.put_u64_le(self.pages);
        into.put_u64_le(self.address);
        into.put_u64_le(self.pid);
    }
}

/// A frozen job whose pages are served.
#[derive(Debug)]
pub(super) struct Served {
    /// Holds it until the socket is closed.
    criu: Helper,
    socket: Option<UnixStream>,
    images: Images,
    members: BTreeSet<i32>,
    /// Of a question that has not come whole.
    begun: BytesMut,
}

impl Served {
    /// Has CRIU make the images; returns when they are there.
    pub(super) fn begin(
        mut criu: Command,
        images: Images,
        members: BTreeSet<i32>,
        within: Duration,
    ) -> io::Result<Self> {
        criu.arg("--lazy-pages");
        let Begun {
            criu,
            socket,
            mut ready,
        } = begin(criu)?;
        let served = Self {
            criu,
            socket: Some(socket),
            images,
            members,
            begun: BytesMut::new(),
        };
        if !is_ready(&mut ready, within)? {
            return Err(served.images.why("dump"));
        }
        Ok(served)
    }

    pub(super) const fn images(&self) -> &Images {
        &self.images
    }

    pub(super) const fn members(&self) -> &BTreeSet<i32> {
        &self.members
    }

    /// Takes a piece of what is asked; returns what there is to answer, in pieces that fit a frame. Blocks for the copy of
    /// some pages.
    pub(super) fn answer(&mut self, asked: &[u8]) -> io::Result<Vec<Bytes>> {
        self.begun.extend_from_slice(asked);
        let mut answers = BytesMut::new();
        while let Some(question) = Question::take(&mut self.begun) {
            if Question::CLOSE.contains(&question.what) {
                answers.put_i32_le(0);
                continue;
            }
            let pid = i32::try_from(question.pid).ok();
            let pid = pid.filter(|pid| self.members.contains(pid));
            let pages = question.pages.min(PAGES_MAX);
            let known = question.what == Question::GET && answers.len() < ANSWERS_MAX;
            let (true, Some(pid), 1..) = (known, pid, pages) else {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "this is no question of a CRIU that is known",
                ));
            };
            let what = Question::ADD;
            Question {
                what,
                pages,
                ..question
            }
            .put(&mut answers);
            let at = answers.len();
            let len = usize::try_from(pages * PAGE_BYTES).expect("a megabyte");
            answers.resize(at + len, 0);
            File::open(format!("/proc/{pid}/mem"))?
                .read_exact_at(&mut answers[at..], question.address)?;
        }
        let answers = answers.freeze();
        let starts = (0..answers.len()).step_by(IMAGE_BYTES_MAX);
        let piece = |at| answers.slice(at..answers.len().min(at + IMAGE_BYTES_MAX));
        Ok(starts.map(piece).collect())
    }
}

impl Drop for Served {
    /// CRIU lets the job go, which stays frozen. Blocks.
    fn drop(&mut self) {
        drop(self.socket.take());
        let deadline = Instant::now() + GONE_WITHIN;
        while let Ok(None) = self.criu.try_wait() {
            if Instant::now() > deadline {
                self.criu.end();
                return;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// Answers what is asked for pages.
pub(super) async fn answer(served: Arc<Mutex<Served>>, asked: Bytes) -> io::Result<Vec<Bytes>> {
    blocking(move || {
        let mut served = served.lock().expect("no holder panics");
        served.answer(&asked)
    })
    .await
}

/// A CRIU that begins to give pages, or to get them.
pub(super) struct Begun {
    pub(super) criu: Helper,
    /// What it says and hears of pages.
    pub(super) socket: UnixStream,
    /// What [`is_ready`] waits for.
    pub(super) ready: io::PipeReader,
}

/// Starts a CRIU that gives pages, or gets them.
pub(super) fn begin(mut criu: Command) -> io::Result<Begun> {
    let (socket, theirs) = UnixStream::pair()?;
    let (ready, tell) = io::pipe()?;
    criu.arg("--ps-socket").arg(theirs.as_raw_fd().to_string());
    criu.arg("--status-fd").arg(tell.as_raw_fd().to_string());
    let how = Start {
        kept: &[theirs.as_fd(), tell.as_fd()],
        outlives: true,
        ..Start::default()
    };
    Ok(Begun {
        criu: Helper::start(&criu, how)?,
        socket,
        ready,
    })
}

/// Waits until CRIU says by its `--status-fd` that it is ready; `false`: it has ended.
pub(super) fn is_ready(ready: &mut io::PipeReader, within: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + within;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(ready.as_fd(), PollFlags::POLLIN)];
        match poll(
            &mut fds,
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX),
        ) {
            // A child of the daemon has ended, as it may be.
            Err(Errno::EINTR) => continue,
            Ok(0) => {
                let why = "CRIU took too long to begin";
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            polled => polled?,
        };
        match ready.read(&mut [0; 1]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return Ok(read? == 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of this process, as if it were the job.
    fn served() -> Served {
        let criu = Helper::start(&Command::new("cat"), Start::default());
        Served {
            criu: criu.expect("cat starts"),
            socket: None,
            images: Images::none(),
            members: BTreeSet::from([std::process::id().cast_signed()]),
            begun: BytesMut::new(),
        }
    }

    fn question(what: u32, pages: u64, address: *const u8) -> BytesMut {
        let mut bytes = BytesMut::new();
        let question = Question {
            what,
            pages,
            address: address as u64,
            pid: std::process::id().into(),
        };
        question.put(&mut bytes);
        bytes
    }

    #[test]
    fn pages_are_answered_however_the_question_comes() {
        let memory: Vec<u8> = (0..3 * 4096_u32).map(|n| (n % 251) as u8).collect();
        let asked = question(Question::GET, 2, memory.as_ptr());
        assert_eq!(asked[..8], [7, 0, 0, 0, 0, 0, 0, 0], "CRIU 4.2");
        let mut served = served();
        assert!(served.answer(&asked[..20]).expect("a part").is_empty());
        let answer = served.answer(&asked[20..]).expect("the rest").concat();
        assert_eq!(answer[..8], [6, 0, 4, 0, 0, 0, 0, 0], "CRIU 4.2");
        assert_eq!(answer[8..32], asked[8..32]);
        assert_eq!(answer[32..], memory[..2 * 4096]);
        let ended = served.answer(&question(0x1024, 0, std::ptr::null()));
        assert_eq!(ended.expect("an answer").concat(), [0; 4]);
    }

    #[test]
    fn fewer_pages_come_than_were_asked_for() {
        let memory = vec![1_u8; 300 * 4096];
        let answer = served().answer(&question(Question::GET, 300, memory.as_ptr()));
        let answer = answer.expect("pages").concat();
        assert_eq!(answer[8..16], PAGES_MAX.to_le_bytes());
        assert_eq!(answer.len() as u64, 32 + PAGES_MAX * PAGE_BYTES);
    }

    #[test]
    fn nonsense_is_refused() {
        let memory = vec![1_u8; 4096];
        for (what, pages) in [(9, 1), (Question::GET, 0)] {
            let asked = question(what, pages, memory.as_ptr());
            served().answer(&asked).expect_err("no question");
        }
        let mut stranger = question(Question::GET, 1, memory.as_ptr());
        stranger[24..32].copy_from_slice(&1_u64.to_le_bytes());
        served()
            .answer(&stranger)
            .expect_err("no process of the job");
        let nowhere = question(Question::GET, 1, std::ptr::null());
        served().answer(&nowhere).expect_err("no page");
    }
}
