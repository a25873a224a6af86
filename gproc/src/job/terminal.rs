//! What a job may want beyond its request, above all a terminal, and the terminals themselves.
//!
//! A job with a terminal has a pseudo terminal on its host, whose line discipline does all: the owner's own is in raw
//! mode meanwhile, and is given what the job has left: the modes, and what was typed and not read.

use super::limits::Limits;
use super::private::Private;
use super::sys;
use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::libc;
use nix::pty::openpty;
use nix::sys::termios::{
    ControlFlags, InputFlags, LocalFlags, OutputFlags, SetArg, Termios, tcgetattr, tcsetattr,
};
use nix::unistd::{Gid, Pid, Uid, fchown};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

/// Extras in one request: one of each kind.
pub const EXTRAS_MAX: usize = 16;

/// Typed bytes that a terminal holds for its readers, and so what may be left unread: the kernel's own limit.
const TYPED_BYTES_MAX: usize = 4096;

/// What a job may want beyond its request. A node that does not know one refuses the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Extra {
    /// Descriptors 0 and 1 are a terminal; so is descriptor 2 where it is the same as 1.
    Terminal(Terminal),
    /// The owner wants to know how much of its input the job has read.
    TellInput,
    /// The input is this file of the cluster's tree, at this place: the job may have the file itself.
    InputFile(InputFile),
    /// What the job is to see as the name of its machine: the owner's.
    HostName(Bytes),
    /// Descriptor 3 (`PMI_FD`) is a socket whose other end the owner has: the processes of one command talk through it.
    Wire,
    /// The owner wants to hear, as the job goes on, how much of its input the job has read.
    FollowInput,
    /// What it may use at most.
    Limits(Limits),
    /// The processes of one command that a node runs enter barriers together; the number is the command's alone among
    /// those of its user.
    Gather(u64),
    /// It takes turns with other gangs.
    Gang,
    /// Checkpoints are made of it.
    Checkpoints(Checkpoints),
    /// What it has to itself. Since version 12.
    Private(Private),
    /// It runs already: this child of its owner is to go on on one of the nodes of the request, another one than its home.
    /// Its owner hears by [`FromJob::Told`](super::protocol::FromJob::Told) whether it does. Of interest to its home alone.
    Forked(u32),
}

/// How a job is kept safe from the loss of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoints {
    /// A checkpoint is made so often, in seconds; none: when somebody asks for one.
    pub every_s: Option<u32>,
    /// It goes on from the newest when its node is lost.
    pub restart: bool,
}

/// The version of the protocol from which on nodes know [`Extra::Checkpoints`].
const CHECKPOINTS_SINCE: u32 = 12;

/// The version of the protocol from which on nodes know [`Extra::Private`].
const PRIVATE_SINCE: u32 = 12;

/// The version of the protocol from which on nodes know [`Extra::Gang`].
const GANG_SINCE: u32 = 11;

/// The version of the protocol from which on nodes know [`Extra::Gather`].
const GATHER_SINCE: u32 = 11;

/// The version of the protocol from which on nodes know [`Extra::FollowInput`].
const FOLLOW_SINCE: u32 = 11;

/// The version of the protocol from which on nodes know [`Extra::Limits`].
const LIMITS_SINCE: u32 = 11;

/// A file that is the same on all nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// Absolute path.
    pub path: Bytes,
    /// What shows that it is the file that is meant.
    pub inode: u64,
    /// Where to go on reading.
    pub offset: u64,
}

impl Extra {
    /// Returns whether the job may run without it.
    pub(super) fn is_optional(&self) -> bool {
        match self {
            Self::Terminal(_)
            | Self::Limits(_)
            | Self::Checkpoints(_)
            | Self::Private(_)
            | Self::Forked(_) => false,
            Self::TellInput
            | Self::InputFile(_)
            | Self::HostName(_)
            | Self::Wire
            | Self::FollowInput
            | Self::Gather(_)
            | Self::Gang => true,
        }
    }

    /// Returns the version of the protocol from which on nodes know it; older ones may know none at all.
    pub(super) fn since(&self) -> u32 {
        match self {
            Self::Terminal(_)
            | Self::TellInput
            | Self::InputFile(_)
            | Self::HostName(_)
            | Self::Wire
            | Self::Forked(_) => 0,
            Self::FollowInput => FOLLOW_SINCE,
            Self::Limits(_) => LIMITS_SINCE,
            Self::Gather(_) => GATHER_SINCE,
            Self::Gang => GANG_SINCE,
            Self::Checkpoints(_) => CHECKPOINTS_SINCE,
            Self::Private(_) => PRIVATE_SINCE,
        }
    }

    /// Returns what a job has with it, for messages.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Terminal(_) => "a terminal",
            Self::Limits(_) => "limits",
            Self::Checkpoints(_) => "checkpoints",
            Self::Private(_) => "a network or IPC of their own",
            Self::Forked(_) => "processes that run already",
            Self::TellInput
            | Self::InputFile(_)
            | Self::HostName(_)
            | Self::Wire
            | Self::FollowInput
            | Self::Gather(_)
            | Self::Gang => "extras",
        }
    }
}

/// The owner's terminal as it is when the job starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// Its size.
    pub size: WindowSize,
    /// Its modes.
    pub modes: Modes,
}

/// The size of a terminal, as in `struct winsize`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
    /// Width in pixels, 0 if not known.
    pub x_pixels: u16,
    /// Height in pixels, 0 if not known.
    pub y_pixels: u16,
}

/// The modes of a terminal, as in `struct termios`. The numbers are those of x86-64 and aarch64, which are the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Modes {
    /// `c_iflag`.
    pub input: u32,
    /// `c_oflag`.
    pub output: u32,
    /// `c_cflag`.
    pub control: u32,
    /// `c_lflag`.
    pub local: u32,
    /// `c_cc`.
    pub characters: Bytes,
}

impl WindowSize {
    /// Returns the size of a terminal.
    ///
    /// # Errors
    /// If it is none.
    pub fn of(terminal: BorrowedFd<'_>) -> io::Result<Self> {
        let size = sys::window_size(terminal)?;
        Ok(Self {
            rows: size.ws_row,
            columns: size.ws_col,
            x_pixels: size.ws_xpixel,
            y_pixels: size.ws_ypixel,
        })
    }

    fn as_winsize(self) -> libc::winsize {
        libc::winsize {
            ws_row: self.rows,
            ws_col: self.columns,
            ws_xpixel: self.x_pixels,
            ws_ypixel: self.y_pixels,
        }
    }
}

impl Modes {
    /// Returns the modes of a terminal.
    ///
    /// # Errors
    /// If it is none.
    pub fn of(terminal: BorrowedFd<'_>) -> io::Result<Self> {
        let modes = tcgetattr(terminal)?;
        Ok(Self {
            input: modes.input_flags.bits(),
            output: modes.output_flags.bits(),
            control: modes.control_flags.bits(),
            local: modes.local_flags.bits(),
            characters: Bytes::copy_from_slice(&modes.control_chars),
        })
    }

    /// Gives a terminal these modes, once all output has left it.
    ///
    /// # Errors
    /// If it is none.
    pub fn set(&self, terminal: BorrowedFd<'_>) -> io::Result<()> {
        let mut modes = tcgetattr(terminal)?;
        modes.input_flags = InputFlags::from_bits_retain(self.input);
        modes.output_flags = OutputFlags::from_bits_retain(self.output);
        modes.control_flags = ControlFlags::from_bits_retain(self.control);
        // With this one the line discipline leaves its work to the other end.
        modes.local_flags = LocalFlags::from_bits_retain(self.local) - LocalFlags::EXTPROC;
        for (own, new) in modes.control_chars.iter_mut().zip(&self.characters) {
            *own = *new;
        }
        Ok(tcsetattr(terminal, SetArg::TCSADRAIN, &modes)?)
    }
}

/// Has a terminal pass every byte on as it comes.
///
/// # Errors
/// If it is none.
pub fn make_raw(terminal: BorrowedFd<'_>) -> io::Result<()> {
    let mut modes: Termios = tcgetattr(terminal)?;
    nix::sys::termios::cfmakeraw(&mut modes);
    Ok(tcsetattr(terminal, SetArg::TCSADRAIN, &modes)?)
}

/// The pseudo terminal of a job.
#[derive(Debug)]
pub(super) struct Pty {
    /// The daemon's end; non-blocking.
    master: OwnedFd,
    /// The job's end. The daemon keeps it to see what was typed and not read.
    slave: OwnedFd,
    typing: Typing,
    /// How a job that has ended on another node has left it.
    left: Mutex<Option<Held>>,
}

/// Held by who types: a terminal is [held](Pty::hold) between two keys.
pub(super) type Typing = Arc<Mutex<()>>;

/// A terminal whose job stands still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// Its size and modes.
    pub(super) like: Terminal,
    /// What was typed and not read, as the job is to read it.
    pub(super) unread: Bytes,
}

impl Pty {
    /// Makes a terminal like the owner's, which belongs to user `uid`.
    pub(super) fn open(like: &Terminal, uid: u32) -> io::Result<Self> {
        let pair = openpty(Some(&like.size.as_winsize()), None)?;
        for fd in [&pair.master, &pair.slave] {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        }
        fcntl(
            &pair.master,
            FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK),
        )?;
        like.modes.set(pair.slave.as_fd())?;
        // The group stays: that of terminals. A daemon that is not root has the terminal already.
        match fchown(&pair.slave, Some(Uid::from_raw(uid)), None::<Gid>) {
            Ok(()) | Err(Errno::EPERM) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Self {
            master: pair.master,
            slave: pair.slave,
            typing: Typing::default(),
            left: Mutex::default(),
        })
    }

    /// Returns the job's end.
    pub(super) fn slave(&self) -> io::Result<OwnedFd> {
        self.slave.try_clone()
    }

    /// Returns the daemon's end.
    pub(super) fn master(&self) -> io::Result<OwnedFd> {
        self.master.try_clone()
    }

    /// Returns what is to be held while something is typed.
    pub(super) fn typing(&self) -> Typing {
        Arc::clone(&self.typing)
    }

    /// Returns another opening of the job's end, which does not make anybody wait.
    pub(super) fn open_slave(&self) -> io::Result<OwnedFd> {
        sys::open_again(self.slave.as_fd())
    }

    /// Sends a signal to the program that has the terminal, or its group. As that may be in the background, both are signalled
    /// that should go on.
    pub(super) fn signal(&self, program: Pid, number: i32, group: bool) -> io::Result<()> {
        if !group {
            return sys::signal_process(program, number);
        }
        let foreground = self.foreground().unwrap_or(program);
        if number == libc::SIGCONT && foreground != program {
            sys::signal_group(program, number)?;
        }
        sys::signal_group(foreground, number)
    }

    /// Takes what was typed and not read from a job that stands still. From now on what is typed waits, and passes unchanged to
    /// who reads the job's end.
    pub(super) fn hold(&self) -> io::Result<Held> {
        let _typing = self.typing.lock().expect("no holder panics");
        let like = Terminal {
            size: self.size()?,
            modes: Modes::of(self.slave.as_fd())?,
        };
        let unread = self.take_typed(LocalFlags::ICANON)?.into();
        make_raw(self.slave.as_fd())?;
        Ok(Held { like, unread })
    }

    /// Is again as it was held; what was typed since is typed now.
    pub(super) fn go_on(&self, held: &Held) -> io::Result<()> {
        let _typing = self.typing.lock().expect("no holder panics");
        let since = self.take_typed(LocalFlags::ICANON)?;
        let mut quiet = tcgetattr(&self.slave)?;
        let canonical = LocalFlags::from_bits_retain(held.like.modes.local) & LocalFlags::ICANON;
        quiet.input_flags = InputFlags::empty();
        quiet.local_flags = canonical;
        quiet.control_chars.fill(libc::_POSIX_VDISABLE);
        quiet.control_chars[libc::VMIN] = 1;
        tcsetattr(&self.slave, SetArg::TCSANOW, &quiet)?;
        for byte in &held.unread {
            sys::put_typed(self.slave.as_fd(), *byte)?;
        }
        held.like.modes.set(self.slave.as_fd())?;
        // It is no more than fits.
        nix::unistd::write(&self.master, &since)?;
        Ok(())
    }

    /// The job has ended on another node, and has left a terminal like this there.
    pub(super) fn is_left(&self, left: Held) {
        *self.left.lock().expect("no holder panics") = Some(left);
    }

    /// Returns its size.
    pub(super) fn size(&self) -> io::Result<WindowSize> {
        WindowSize::of(self.master.as_fd())
    }

    /// Tells the job of another size.
    pub(super) fn resize(&self, size: WindowSize) -> io::Result<()> {
        sys::set_window_size(self.master.as_fd(), &size.as_winsize())
    }

    /// Returns the process group that has the terminal.
    pub(super) fn foreground(&self) -> Option<Pid> {
        let group = nix::unistd::tcgetpgrp(&self.master).ok()?;
        (group.as_raw() > 1).then_some(group)
    }

    /// Returns how the job has left the modes.
    pub(super) fn modes(&self) -> io::Result<Modes> {
        match &*self.left.lock().expect("no holder panics") {
            Some(left) => Ok(left.like.modes.clone()),
            None => Modes::of(self.slave.as_fd()),
        }
    }

    /// Takes what was typed and nobody has read, also of a line that is not complete.
    pub(super) fn take_unread(&self) -> io::Result<Bytes> {
        let left = self.left.lock().expect("no holder panics").take();
        let mut unread = left.map_or_else(Vec::new, |left| left.unread.into());
        unread.extend(self.take_typed(LocalFlags::ICANON | LocalFlags::ECHO)?);
        Ok(unread.into())
    }

    /// Reads what was typed, also of a line that is not complete, after taking these of the modes.
    fn take_typed(&self, without: LocalFlags) -> io::Result<Vec<u8>> {
        let mut modes = tcgetattr(&self.slave)?;
        modes.local_flags -= without;
        modes.control_chars[libc::VMIN] = 0;
        modes.control_chars[libc::VTIME] = 0;
        tcsetattr(&self.slave, SetArg::TCSANOW, &modes)?;
        let mut unread = Vec::new();
        let mut piece = [0; TYPED_BYTES_MAX];
        while unread.len() < 2 * TYPED_BYTES_MAX {
            // The kernel says so only after it has looked at all that was written to the other end.
            match nix::unistd::read(&self.slave, &mut piece) {
                // The job may have its end not wait.
                Ok(0) | Err(Errno::EAGAIN) => break,
                len => unread.extend_from_slice(&piece[..len?]),
            }
        }
        Ok(unread)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::job) fn like_none() -> Terminal {
        let pair = openpty(None, None).expect("a terminal");
        Terminal {
            size: WindowSize {
                rows: 31,
                columns: 77,
                ..WindowSize::default()
            },
            modes: Modes::of(pair.slave.as_fd()).expect("modes"),
        }
    }

    #[test]
    fn a_terminal_is_like_the_owner_s() {
        let mut like = like_none();
        like.modes.local &= !LocalFlags::ECHO.bits();
        let mut characters = like.modes.characters.to_vec();
        characters[libc::VERASE] = 8;
        like.modes.characters = characters.into();
        let pty = Pty::open(&like, 0).expect("opens");
        let slave = pty.slave().expect("dups");
        assert_eq!(WindowSize::of(slave.as_fd()).expect("a size"), like.size);
        assert_eq!(pty.modes().expect("modes"), like.modes);
        let size = WindowSize {
            rows: 5,
            ..like.size
        };
        pty.resize(size).expect("resizes");
        assert_eq!(WindowSize::of(slave.as_fd()).expect("a size"), size);
    }

    fn write(pty: &Pty, text: &str) {
        nix::unistd::write(&pty.master, text.as_bytes()).expect("types");
    }

    fn read(pty: &Pty) -> String {
        let mut line = [0; 100];
        let len = nix::unistd::read(pty.slave().expect("dups"), &mut line).expect("reads");
        String::from_utf8_lossy(&line[..len]).into_owned()
    }

    fn shown(pty: &Pty) -> String {
        let mut shown = [0; 100];
        let len = nix::unistd::read(&pty.master, &mut shown).unwrap_or(0);
        String::from_utf8_lossy(&shown[..len]).into_owned()
    }

    /// What is typed is shown by a thread of the kernel's.
    #[track_caller]
    fn expect(pty: &Pty, text: &str) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let mut all = String::new();
        while all != text {
            assert!(
                std::time::Instant::now() < deadline,
                "{all:?}, not {text:?}"
            );
            all += &shown(pty);
        }
    }

    #[test]
    fn mv9_a_terminal_that_was_held_goes_on_here_or_there() {
        let here = Pty::open(&like_none(), 0).expect("opens");
        write(&here, "one\rtw");
        expect(&here, "one\r\ntw");
        let held = here.hold().expect("held");
        assert_eq!(&*held.unread, b"one\ntw");
        // Meanwhile a key does not signal, and nothing is shown.
        write(&here, "o\x7fo\x03\r");
        assert_eq!(shown(&here), "");
        let raw = here.open_slave().expect("opens");
        let mut meanwhile = [0; 100];
        let len = nix::unistd::read(&raw, &mut meanwhile).expect("reads");
        assert_eq!(&meanwhile[..len], b"o\x7fo\x03\r");

        // There it is in the queue again, as it was: one line, and the beginning of another.
        let there = Pty::open(&held.like, 0).expect("opens");
        if let Err(error) = there.go_on(&held) {
            assert!(!nix::unistd::geteuid().is_root(), "{error}");
            eprintln!("only root may put something into a queue");
            return;
        }
        assert_eq!(there.modes().expect("modes"), held.like.modes);
        assert_eq!(shown(&there), "");
        assert_eq!(read(&there), "one\n");
        write(&there, "\x7fwo\r");
        assert_eq!(read(&there), "two\n");

        // Back here: what was typed meanwhile is edited, and shown, now.
        write(&here, "x\x7fo\r");
        here.go_on(&held).expect("goes on");
        assert_eq!(here.modes().expect("modes"), held.like.modes);
        expect(&here, "x\x08 \x08o\r\n");
        assert_eq!((read(&here), read(&here)), ("one\n".into(), "two\n".into()));
    }

    #[test]
    fn mv9_how_a_job_has_left_another_terminal_counts() {
        let pty = Pty::open(&like_none(), 0).expect("opens");
        let mut like = like_none();
        like.modes.local &= !LocalFlags::ECHO.bits();
        pty.is_left(Held {
            like: like.clone(),
            unread: Bytes::from_static(b"left "),
        });
        write(&pty, "more\r");
        assert_eq!(pty.modes().expect("modes"), like.modes);
        assert_eq!(&*pty.take_unread().expect("reads"), b"left more\n");
    }

    #[test]
    fn what_was_typed_and_not_read_is_found() {
        let pty = Pty::open(&like_none(), 0).expect("opens");
        let write = |text: &str| nix::unistd::write(&pty.master, text.as_bytes());
        write("one\rtwo\rthr").expect("types");
        let mut line = [0; 100];
        let len = nix::unistd::read(pty.slave().expect("dups"), &mut line).expect("reads");
        assert_eq!(&line[..len], b"one\n");
        assert_eq!(&*pty.take_unread().expect("reads"), b"two\nthr");
        assert_eq!(&*pty.take_unread().expect("reads"), b"");
    }
}
