//! A line at the bottom of a terminal that others write to, as apt has it: the rows above it scroll, it stays.

use ratatui::crossterm::cursor::{MoveTo, RestorePosition, SavePosition};
use ratatui::crossterm::terminal::{Clear, ClearType, size};
use ratatui::crossterm::{Command, QueueableCommand, queue};
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Between two states that are shown.
const PAUSE: Duration = Duration::from_millis(100);

/// A terminal with fewer rows has none to spare.
const ROWS_MIN: u16 = 5;

/// The rows that scroll: to this one from the first on; all of them without a number (DECSTBM, VT100).
struct Scrolls(Option<u16>);

impl Command for Scrolls {
    fn write_ansi(&self, f: &mut impl fmt::Write) -> fmt::Result {
        match self.0 {
            Some(last) => write!(f, "\x1b[1;{last}r"),
            None => write!(f, "\x1b[r"),
        }
    }
}

/// The line, on the terminal of this process's errors.
#[derive(Debug)]
pub(super) struct Progress {
    /// The size for which rows were set apart.
    size: Option<(u16, u16)>,
    shown: Option<Instant>,
}

impl Progress {
    /// Returns one, if errors go to a terminal that can show it.
    pub(super) fn find() -> Option<Self> {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let there = io::stderr().is_terminal() && !dumb;
        there.then_some(Self {
            size: None,
            shown: None,
        })
    }

    /// Shows a state, unless another one was shown just now.
    pub(super) fn show(&mut self, state: &impl fmt::Display) {
        if self.shown.is_some_and(|at| at.elapsed() < PAUSE) {
            return;
        }
        self.shown = Some(Instant::now());
        // A terminal that cannot be written to shows nothing.
        self.try_show(&state.to_string()).ok();
    }

    fn try_show(&mut self, text: &str) -> io::Result<()> {
        let (columns, rows) = size()?;
        if rows < ROWS_MIN {
            return Ok(());
        }
        // In one piece, among what others write.
        let mut bytes = Vec::new();
        if self.size != Some((columns, rows)) {
            self.size = Some((columns, rows));
            // What stands in the last row moves up.
            bytes.extend(b"\n");
            queue!(
                bytes,
                SavePosition,
                Scrolls(Some(rows - 1)),
                RestorePosition
            )?;
            bytes.extend(b"\x1b[1A");
        }
        let text: String = text.chars().take(usize::from(columns)).collect();
        queue!(
            bytes,
            SavePosition,
            MoveTo(0, rows - 1),
            Clear(ClearType::CurrentLine)
        )?;
        bytes.extend(text.as_bytes());
        bytes.queue(RestorePosition)?;
        io::stderr().write_all(&bytes)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        let Some((_, rows)) = self.size else {
            return;
        };
        let mut bytes = Vec::new();
        let queued = queue!(
            bytes,
            SavePosition,
            Scrolls(None),
            MoveTo(0, rows - 1),
            Clear(ClearType::CurrentLine),
            RestorePosition
        );
        queued.and_then(|()| io::stderr().write_all(&bytes)).ok();
    }
}
