//! A terminal with a shell in a node, driven as a person would.

use crate::command::{Logs, without_caller};
use crate::{DEADLINE, wait_until};
use nix::pty::{OpenptyResult, Winsize, openpty};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// A shell for a terminal, of which what it shows can be compared.
pub const SHELL: [&str; 7] = [
    "env",
    "LC_ALL=C",
    "bash",
    "--noprofile",
    "--norc",
    "--noediting",
    "-i",
];

/// How long nothing may come until a screen counts as painted.
const QUIET: Duration = Duration::from_millis(700);

/// A terminal; what runs in it is killed when this is dropped.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    keyboard: File,
    /// Everything that was shown.
    shown: Arc<Mutex<(Vec<u8>, Instant)>>,
    /// Bytes of it that were looked at.
    seen: usize,
    logs: Logs,
}

impl Terminal {
    /// Starts a command as the leader of a session with a terminal of 24 lines of 80 characters.
    #[track_caller]
    pub(crate) fn start(command: &Command, logs: Logs) -> Self {
        let size = Winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let OpenptyResult { master, slave } = openpty(Some(&size), None).expect("make a terminal");
        let copy = |fd: &OwnedFd| Stdio::from(fd.try_clone().expect("duplicate a descriptor"));
        let mut leader = Command::new("setsid");
        leader
            .arg("--ctty")
            .arg(command.get_program())
            .args(command.get_args())
            .env("TERM", "vt100");
        without_caller(&mut leader);
        let child = leader
            .stdin(copy(&slave))
            .stdout(copy(&slave))
            .stderr(copy(&slave))
            .spawn()
            .expect("start setsid of util-linux");
        drop(slave);
        let shown = Arc::new(Mutex::new((Vec::new(), Instant::now())));
        let mut screen = File::from(master.try_clone().expect("duplicate a descriptor"));
        let kept = Arc::clone(&shown);
        thread::spawn(move || {
            let mut piece = [0; 4096];
            // Reading fails once nobody has the terminal open any more.
            while let Ok(len @ 1..) = screen.read(&mut piece) {
                let mut kept = kept.lock().expect("no holder panics");
                kept.0.extend_from_slice(&piece[..len]);
                kept.1 = Instant::now();
            }
        });
        Self {
            child,
            keyboard: master.into(),
            shown,
            seen: 0,
            logs,
        }
    }

    /// Types.
    #[track_caller]
    pub fn send(&mut self, text: &str) {
        let typed = self.keyboard.write_all(text.as_bytes());
        typed.expect("type at a terminal");
    }

    /// Waits until `text` is shown, and returns what was shown up to its end since the last look.
    ///
    /// # Panics
    /// It is not shown within [`DEADLINE`].
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        let end = Instant::now() + DEADLINE;
        loop {
            let shown = self.rest();
            let mut parts = shown.windows(text.len());
            if let Some(at) = parts.position(|part| part == text.as_bytes()) {
                self.seen += at + text.len();
                return lossy(&shown[..at + text.len()]);
            }
            let shown = lossy(&shown);
            assert!(
                Instant::now() < end,
                "waited {DEADLINE:?} for {text:?} on a terminal, in vain; it shows {shown:?}\n{}",
                self.logs.tails()
            );
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until the screen is painted, and returns what was shown since the last look.
    #[track_caller]
    pub fn painted(&mut self) -> String {
        wait_until("a screen that does not change", DEADLINE, || {
            let (shown, changed) = &*self.shown.lock().expect("no holder panics");
            shown.len() > self.seen && changed.elapsed() > QUIET
        });
        let shown = self.rest();
        self.seen += shown.len();
        lossy(&shown)
    }

    /// Gives the terminal another size.
    ///
    /// # Panics
    /// The kernel refuses.
    #[track_caller]
    pub fn resize(&self, rows: u16, columns: u16) {
        // stty sets one after the other, which is two new sizes.
        let set = "import fcntl, struct, sys, termios; \
                   size = struct.pack('HHHH', int(sys.argv[1]), int(sys.argv[2]), 0, 0); \
                   fcntl.ioctl(0, termios.TIOCSWINSZ, size)";
        let terminal = self.keyboard.try_clone().expect("duplicate a descriptor");
        let status = Command::new("python3")
            .args(["-c", set, &rows.to_string(), &columns.to_string()])
            .stdin(terminal)
            .status();
        assert!(status.expect("run python3").success());
    }

    fn rest(&self) -> Vec<u8> {
        let shown = self.shown.lock().expect("no holder panics");
        shown.0[self.seen..].to_vec()
    }
}

/// Programs try what a terminal understands with more than text.
fn lossy(shown: &[u8]) -> String {
    String::from_utf8_lossy(shown).into_owned()
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Both fail only for a child that has ended and was waited for.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
