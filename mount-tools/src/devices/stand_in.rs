//! Stand-ins for devices of other nodes, each served by a process in the background.
//!
//! The process has a file in [`DIR`] with its pid, what it stands for and whether that can be reached; it has the file
//! locked as long as it runs, which is until SIGTERM (`glu detach`).

use super::{DeviceName, nbd};
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
/// How often one that ends is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long one may take to end: a disk that has gone holds its requests for 30 s.
const END_WITHIN: Duration = Duration::from_secs(40);

/// What stands for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Kind {
    /// A network block device, for disks.
    Nbd,
    /// A loop device, for disks.
    Loop,
    /// A character device in user space, for lines.
    Cuse,
    /// A pseudo-terminal, for lines.
    Pty,
}

impl Kind {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Nbd => "nbd",
            Self::Loop => "loop",
            Self::Cuse => "cuse",
            Self::Pty => "pty",
        }
    }
}

/// One that is served.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct StandIn {
    name: PathBuf,
    pid: i32,
    state: State,
    device: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Read,
    Write,
    Lost,
}

/// What the list calls them.
const STATES: [(State, &str); 3] = [
    (State::Read, "read"),
    (State::Write, "write"),
    (State::Lost, "lost"),
];

impl State {
    fn word(self) -> &'static str {
        let row = STATES.iter().find(|(state, _)| *state == self);
        row.map(|(_, word)| *word).expect("it has all")
    }
}

/// As `glu attach --list` shows it.
impl fmt::Display for StandIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, device) = (self.name.display(), self.device.display());
        write!(f, "{name} {device} {}", self.state.word())
    }
}

/// Starts a process that serves a device; returns the name of what stands for it.
pub(super) fn start(
    kind: Kind,
    device: &DeviceName,
    mount: &Path,
    read_only: bool,
) -> Result<String> {
    let program = std::env::current_exe().context("this program")?;
    let mut serves = Command::new(program);
    serves.args(["attach", "--serve", "--with", kind.word(), "--mount"]);
    serves.arg(mount).arg(device.to_string());
    if read_only {
        serves.arg("--read-only");
    }
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

/// A process that serves: it has left who started it, and is told when to end.
#[derive(Debug)]
pub(super) struct Background(SignalFd);

impl Background {
    /// Begins, before there are other threads.
    pub(super) fn begin() -> Result<Self> {
        // Not with the terminal that it was started from.
        setsid().context("leave the terminal")?;
        let mut end = SigSet::empty();
        end.add(Signal::SIGTERM);
        end.thread_block().context("signals")?;
        let end = SignalFd::with_flags(&end, SfdFlags::SFD_CLOEXEC).context("signals")?;
        Ok(Self(end))
    }

    /// Leaves the directory and the output, when all is told.
    pub(super) fn leave(&self) -> Result<()> {
        std::env::set_current_dir("/").context("leave the directory")?;
        let null = File::options().write(true).open("/dev/null")?;
        dup2_stdout(&null)
            .and_then(|()| dup2_stderr(&null))
            .context("leave the terminal")
    }

    /// Waits a while, or until this is to end.
    pub(super) fn is_told_to_end(&self, patience: Duration) -> Result<bool> {
        let mut polled = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(patience).expect("short");
        match poll(&mut polled, patience) {
            Ok(count) => Ok(count > 0),
            Err(nix::Error::EINTR) => Ok(false),
            Err(error) => Err(error).context("poll"),
        }
    }
}

/// Has something to read when this is to end.
impl AsFd for Background {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The file of a process that serves, locked by it, and removed at its end.
#[derive(Debug)]
pub(super) struct Entry {
    file: File,
    path: PathBuf,
    device: PathBuf,
}

impl Entry {
    pub(super) fn new(name: &Path, device: PathBuf, state: State) -> Result<Self> {
        Self::new_in(Path::new(DIR), name, device, state)
    }

    fn new_in(dir: &Path, name: &Path, device: PathBuf, state: State) -> Result<Self> {
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
                entry.tell(state)?;
                return Ok(entry);
            }
        }
    }

    pub(super) fn tell(&self, state: State) -> Result<()> {
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

/// `/dev/pts/7` is in `pts-7`; a `-` of the name is doubled.
fn file_name(name: &Path) -> String {
    let below = name.strip_prefix("/dev").unwrap_or(name);
    below.to_string_lossy().replace('-', "--").replace('/', "-")
}

fn device_name(file: &str) -> PathBuf {
    let parts = file.split("--").map(|part| part.replace('-', "/"));
    Path::new("/dev").join(Vec::from_iter(parts).join("-"))
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
    let told = words.next()?;
    let (state, _) = STATES.iter().find(|(_, word)| *word == told)?;
    Some(StandIn {
        name: device_name(path.file_name()?.to_str()?),
        pid,
        state: *state,
        device: words.next()?.into(),
    })
}

/// Returns the one with a name.
pub(super) fn find(name: &Path) -> Result<Option<StandIn>> {
    Ok(all()?.into_iter().find(|one| one.name == name))
}

impl StandIn {
    /// Ends it.
    pub(super) fn end(self) -> Result<ExitCode> {
        let name = self.name.display();
        let mut lost = Ok(());
        if nbd::is_one(&self.name) {
            lost = nbd::release(&self.name);
            if matches!(&lost, Err(error) if error.kind() == ErrorKind::ResourceBusy) {
                bail!("{name} is in use: unmount it, or end who has it open");
            }
        }
        kill(Pid::from_raw(self.pid), Signal::SIGTERM)
            .with_context(|| format!("end process {}, which serves {name}", self.pid))?;
        let end = Instant::now() + END_WITHIN;
        while find(&self.name)?.is_some_and(|one| one.pid == self.pid) {
            if Instant::now() > end {
                bail!("process {}, which serves {name}, does not end", self.pid);
            }
            std::thread::sleep(LOOK_EVERY);
        }
        lost.with_context(|| format!("{name} has ended; what was not written yet is lost"))?;
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
        let entry = Entry::new_in(
            dir.path(),
            name,
            "/cluster/node3/dev/a b".into(),
            State::Write,
        )
        .expect("made");
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

    #[test]
    fn names_of_files() {
        for (name, file) in [
            ("/dev/pts/7", "pts-7"),
            ("/dev/nbd0", "nbd0"),
            ("/dev/glu/node3/usb-a--b", "glu-node3-usb--a----b"),
        ] {
            assert_eq!(file_name(Path::new(name)), file);
            assert_eq!(device_name(file), Path::new(name));
        }
    }
}
