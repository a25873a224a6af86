//! Holds what gets the pages of a copy that lacks some (post-copy), and ends the copy before that can let go of it.
//!
//! The kernel gives a process an empty page where one is missing as soon as nobody has its userfaultfd open any more. CRIU's
//! `lazy-pages` has it open: were it to end before all pages are there, the copy would go on with memory that is not its own. So
//! another process traces it: `glud` once more. When CRIU ends badly, however that comes, it stands still with all that it has open
//! until the copy has been ended.
//!
//! Nobody else may have a userfaultfd open: CRIU closes that of a process which has all of its pages, and would not be rid of it. A
//! process that forks then would wait for ever for somebody to hear of it.
//!
//! The daemon tells in which group the copy is before that runs. When the daemon goes, the copy does.

use super::group;
use super::sys::{self, Traced};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::io::{self, BufRead, PipeWriter, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

/// What makes `glud` a holder. The pid of what it holds follows, and the descriptor by which it answers.
pub const ARGUMENT: &str = "--hold-pages";

/// It holds; it knows where the copy is; it ends the copy.
const ANSWER: &[u8] = b"1";

/// Is a holder.
pub fn main(argv: impl IntoIterator<Item = OsString>) -> ! {
    std::process::exit(i32::from(hold(argv).is_err()))
}

fn hold(argv: impl IntoIterator<Item = OsString>) -> io::Result<()> {
    let mut numbers = argv
        .into_iter()
        .map_while(|word| word.to_str()?.parse::<i32>().ok());
    let (Some(pid), Some(answers)) = (numbers.next(), numbers.next()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut answers = PipeWriter::from(sys::take_descriptor(answers));
    let held = Traced::new(Pid::from_raw(pid))?;
    answers.write_all(ANSWER)?;
    let copy = Arc::new(OnceLock::new());
    let (its, its_answers) = (Arc::clone(&copy), answers.try_clone()?);
    std::thread::spawn(move || {
        // However that ends, nobody knows any more that the copy is well.
        hear(&its, &its_answers).ok();
        end(&its, &its_answers);
        std::process::exit(0)
    });
    if !held.await_end().unwrap_or(false) {
        end(&copy, &answers);
    }
    // What is held goes on with the end of this process.
    Ok(())
}

/// Hears where the copy is; returns when the daemon lets go of this, or is gone.
fn hear(copy: &OnceLock<PathBuf>, mut answers: &PipeWriter) -> io::Result<()> {
    let mut daemon = io::stdin().lock();
    let mut path = Vec::new();
    daemon.read_until(b'\n', &mut path)?;
    if path.pop() != Some(b'\n') {
        return Ok(());
    }
    copy.set(OsString::from_vec(path).into()).ok();
    answers.write_all(ANSWER)?;
    daemon.read_exact(&mut [0])
}

/// Ends the copy, if there is one that may run.
fn end(copy: &OnceLock<PathBuf>, mut answers: &PipeWriter) {
    if let Some(dir) = copy.get() {
        // First: whoever sees the end of the copy is to know why.
        answers.write_all(ANSWER).ok();
        group::end_in(dir).ok();
    }
}
