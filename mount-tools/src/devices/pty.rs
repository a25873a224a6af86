//! A pseudo-terminal that stands for a terminal or serial line of another node, served in the background.
//!
//! When the line goes (its node, or this node's daemon, ends) the pseudo-terminal stays: what programs write waits, and
//! when the line is back it is set as they have set the pseudo-terminal.
//!
//! | state | event | then |
//! | --- | --- | --- |
//! | write | a read or a write of the line fails, or it hangs up | lost |
//! | lost | the line opens again (looked at every [`TRY_EVERY`]) | set it, write |
//! | both | SIGTERM (`glu detach`) | set the line back as it was at first, end |

use super::DeviceName;
use super::console::Near;
use super::line::Line;
use super::stand_in::{Background, Entry, State};
use anyhow::Result;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

/// How often a line that has gone is tried.
const TRY_EVERY: Duration = Duration::from_millis(500);

/// Serves a line until SIGTERM.
pub(super) fn serve(device: &DeviceName, mount: &Path) -> Result<()> {
    let background = Background::begin()?;
    let mut line = Line::open(device, mount, None)?;
    let (mut near, name) = Near::pty(&line)?;
    let entry = Entry::new(&name, device.below(mount), State::Write)?;
    println!("{}", name.display());
    background.leave()?;
    while near.relay(&line, Some(background.as_fd())).is_err() {
        entry.tell(State::Lost)?;
        let before = line.before;
        line = loop {
            if background.is_told_to_end(TRY_EVERY)? {
                return Ok(());
            }
            if let Ok(line) = Line::open(device, mount, None) {
                break line;
            }
        };
        // Not as this has left it.
        line.before = before;
        if near.settle(&line).is_ok() {
            entry.tell(State::Write)?;
        }
    }
    Ok(())
}
