//! Pseudo-terminals that stand for terminals and serial lines of other nodes, each served by a process in the background.
//!
//! The process has a file in [`DIR`] with its pid, what it stands for and whether that can be reached; it has the file
//! locked as long as it runs. When the line goes (its node, or this node's daemon, ends) the pseudo-terminal stays: what
//! programs write waits, and when the line is back it is set as they have set the pseudo-terminal.
//!
//! | state | event | then |
//! | --- | --- | --- |
//! | write | a read or a write of the line fails, or it hangs up | lost |
//! | lost | the line opens again (looked at every [`TRY_EVERY`]) | set it, write |
//! | both | SIGTERM (`glu detach`) | set the line back as it was at first, end |

use super::DeviceName;
use super::console::Near;
use super::line::Line;
use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, dup2_stderr, dup2_stdout, setsid};
use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// Where the files are: gone with the processes when the machine starts again.
const DIR: &str = "/run/glu/attached";
/// How often a line that has gone is tried, and one that ends is looked at.
const TRY_EVERY: Duration = Duration::from_millis(500);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// One that is served.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct StandIn {
    name: PathBuf,
    pid: i32,
    state: State,
    device: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Write,
    Lost,
}

impl State {
    const fn word(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Lost => "lost",
        }
    }
}

/// As `glu attach --list` shows it.
impl fmt::Display for StandIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, device) = (self.name.display(), self.device.display());
        write!(f, "{name} {device} {}", self.state.word())
    }
}

/// Starts a process that serves a line; returns the name of the pseudo-terminal.
pub(super) fn start(device: &DeviceName, mount: &Path) -> Result<String> {
    let program = std::env::current_exe().context("this program")?;
    let mut serves = Command::new(program);
    serves.args(["console", "--pty", "--attached", "--mount"]);
    serves.arg(mount).arg(device.to_string());
    serves
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut serves = serves.spawn().context("start what serves it")?;
    let mut name = String::new();
    if let Some(output) = serves.stdout.take() {
        BufReader::new(output).read_line(&mut name)?;
    }
    if name.is_empty() {
        let mut why = String::new();
        if let Some(mut errors) = serves.stderr.take() {
            errors.read_to_string(&mut why)?;
        }
        serves.wait()?;
        bail!("{}", why.trim().trim_start_matches("glu: "));
    }
    Ok(name.trim_end().to_owned())
}

/// Serves a line until SIGTERM.
pub(super) fn serve(device: &DeviceName, mount: &Path) -> Result<()> {
    // Not with the terminal that it was started from.
    setsid().context("leave the terminal")?;
    let mut end = SigSet::empty();
    end.add(Signal::SIGTERM);
    end.thread_block().context("signals")?;
    let end = SignalFd::with_flags(&end, SfdFlags::SFD_CLOEXEC).context("signals")?;
    let mut line = Line::open(device, mount, None)?;
    let (mut near, name) = Near::pty(&line)?;
    let entry = Entry::new(Path::new(DIR), &name, device.below(mount))?;
    println!("{}", name.display());
    std::env::set_current_dir("/").context("leave the directory")?;
    let null = File::options().write(true).open("/dev/null")?;
    dup2_stdout(&null)
        .and_then(|()| dup2_stderr(&null))
        .context("leave the terminal")?;
    while near.relay(&line, Some(end.as_fd())).is_err() {
        entry.tell(State::Lost)?;
        let before = line.before;
        line = loop {
            if stopped(end.as_fd(), TRY_EVERY)? {
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

/// Waits a while, or until this is to end.
fn stopped(end: BorrowedFd<'_>, patience: Duration) -> Result<bool> {
    let mut polled = [PollFd::new(end, PollFlags::POLLIN)];
    let patience = PollTimeout::try_from(patience).expect("short");
    match poll(&mut polled, patience) {
        Ok(count) => Ok(count > 0),
        Err(nix::Error::EINTR) => Ok(false),
        Err(error) => Err(error).context("poll"),
    }
}

/// The file of a process that serves, locked by it, and removed at its end.
struct Entry {
    file: File,
    path: PathBuf,
    device: PathBuf,
}

impl Entry {
    fn new(dir: &Path, name: &Path, device: PathBuf) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let path = dir.join(file_name(name));
        let shown = path.display().to_string();
        loop {
            let mut options = OpenOptions::new();
            let options = options.write(true).create(true).truncate(true).mode(0o644);
            let file = options.open(&path).context(shown.clone())?;
            file.lock().context(shown.clone())?;
            // Whoever lists takes away what nobody has locked, as this was a moment ago.
            if file.metadata()?.nlink() > 0 {
                let entry = Self { file, path, device };
                entry.tell(State::Write)?;
                return Ok(entry);
            }
        }
    }

    fn tell(&self, state: State) -> Result<()> {
        let (pid, word) = (std::process::id(), state.word());
        let text = format!("{pid} {word} {}\n", self.device.display());
        self.file.set_len(0)?;
        self.file.write_all_at(text.as_bytes(), 0)?;
        Ok(())
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, "the entry of a stand-in stays");
        }
    }
}

/// `/dev/pts/7` is in `pts-7`.
fn file_name(name: &Path) -> String {
    let below = name.strip_prefix("/dev").unwrap_or(name);
    below.to_string_lossy().replace('/', "-")
}

/// Returns all that are served.
pub(super) fn all() -> Result<Vec<StandIn>> {
    all_in(Path::new(DIR))
}

fn all_in(dir: &Path) -> Result<Vec<StandIn>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| dir.display().to_string())?,
    };
    let mut all = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let Ok(mut file) = File::open(&path) else {
            continue;
        };
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                file.read_to_string(&mut text)?;
                all.extend(parse(&path, &text));
            }
            // Its process was killed.
            Ok(()) => drop(fs::remove_file(&path)),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
    }
    all.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(all)
}

/// `None` while its process is writing it.
fn parse(path: &Path, text: &str) -> Option<StandIn> {
    let mut words = text.strip_suffix('\n')?.splitn(3, ' ');
    let pid = words.next()?.parse().ok()?;
    let state = match words.next()? {
        "write" => State::Write,
        "lost" => State::Lost,
        _ => return None,
    };
    let name = path.file_name()?.to_str()?.replacen('-', "/", 1);
    Some(StandIn {
        name: Path::new("/dev").join(name),
        pid,
        state,
        device: words.next()?.into(),
    })
}

/// Returns the one with a name.
pub(super) fn find(name: &Path) -> Result<Option<StandIn>> {
    Ok(all()?.into_iter().find(|one| one.name == name))
}

impl StandIn {
    /// Ends it.
    pub(super) fn end(self, patience: Duration) -> Result<ExitCode> {
        let name = self.name.display();
        kill(Pid::from_raw(self.pid), Signal::SIGTERM)
            .with_context(|| format!("end process {}, which serves {name}", self.pid))?;
        let end = Instant::now() + patience;
        while find(&self.name)?.is_some_and(|one| one.pid == self.pid) {
            if Instant::now() > end {
                bail!("process {}, which serves {name}, does not end", self.pid);
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_served_is_listed_until_its_process_ends() {
        let dir = tempfile::tempdir().expect("a directory");
        let list = || all_in(dir.path()).expect("listed");
        let name = Path::new("/dev/pts/7");
        assert_eq!(all_in(&dir.path().join("none")).expect("listed"), []);
        let entry = Entry::new(dir.path(), name, "/cluster/node3/dev/a b".into()).expect("made");
        assert_eq!(
            list()[0].to_string(),
            "/dev/pts/7 /cluster/node3/dev/a b write"
        );
        entry.tell(State::Lost).expect("told");
        let [one] = &list()[..] else {
            panic!("one");
        };
        assert_eq!(one.state, State::Lost);
        assert_eq!(Ok(one.pid), i32::try_from(std::process::id()));
        drop(entry);
        assert_eq!(list(), []);
        // One that was killed leaves a file that nobody has locked.
        fs::write(
            dir.path().join("pts-9"),
            "1 write /cluster/node3/dev/ttyS0\n",
        )
        .expect("written");
        assert_eq!(list(), []);
        assert!(!dir.path().join("pts-9").exists());
        assert_eq!(parse(Path::new("pts-9"), "1 write"), None);
    }
}
