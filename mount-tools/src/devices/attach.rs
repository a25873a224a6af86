//! `glu attach` and `glu detach`: a device of this node that stands for a disk, terminal or line of another one.
//!
//! | device | with | what it is |
//! | --- | --- | --- |
//! | disk | `nbd`, where the kernel has it | a network block device that is served in the background ([`nbd`]) |
//! | disk | `loop` | a loop device over the disk's file in the tree, which every stock kernel has. It is as good as its file: when the daemon or the disk's node ends, it answers EIO from then on, and is to be detached and attached anew |
//! | line | `cuse`, where the kernel has it | a terminal that the line's own node is asked about ([`cuse`]) |
//! | line | `pty` | a pseudo-terminal, which knows speeds but no modem lines ([`pty`]) |

use super::modules::{CUSE, NBD};
use super::stand_in::Kind;
use super::{DeviceName, cuse, nbd, pty, refused, stand_in, sys};
use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use serde::Deserialize;
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};
use std::time::{Duration, Instant};

/// How long a loop device is waited for that others may have open, and how often it is looked at.
const END_PATIENCE: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(20);

#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// The disk or line: node3/dev/sdb, node3/dev/ttyS0. Without it, or with --list, what is attached is shown.
    #[arg(required_unless_present = "list", conflicts_with = "list")]
    device: Option<DeviceName>,
    /// Show what is attached.
    #[arg(long)]
    list: bool,
    /// To read only.
    #[arg(long)]
    read_only: bool,
    /// What stands for it; by itself the first that this node has: nbd, loop for disks; cuse, pty for
    /// lines.
    #[arg(long, value_name = "KIND")]
    with: Option<Kind>,
    /// Serve it, as the process in the background.
    #[arg(long, hide = true, requires = "with")]
    serve: bool,
    /// Where the tree is mounted.
    #[arg(long, value_name = "DIR", default_value = "/cluster")]
    mount: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Detach {
    /// What `glu attach` has printed: /dev/nbd0, /dev/loop4, /dev/glu/node3/ttyS0, /dev/pts/7.
    stand_in: PathBuf,
    /// Where the tree is mounted.
    #[arg(long, value_name = "DIR", default_value = "/cluster")]
    mount: PathBuf,
}

/// What losetup(8) tells of a loop device.
#[derive(Debug, Deserialize)]
struct Loop {
    name: PathBuf,
    #[serde(rename = "back-file")]
    back_file: Option<PathBuf>,
    ro: bool,
}

#[derive(Debug, Deserialize)]
struct Loops {
    loopdevices: Vec<Loop>,
}

impl Attach {
    pub(crate) fn run(self) -> Result<ExitCode> {
        match &self.device {
            Some(device) => self.attach(device)?,
            None => list(&self.mount)?,
        }
        Ok(ExitCode::SUCCESS)
    }

    fn attach(&self, device: &DeviceName) -> Result<()> {
        let path = device.below(&self.mount);
        if self.serve {
            return self.serve(device);
        }
        match sys::attribute(&path, c"user.glu.device") {
            Some(kind) if kind.starts_with('b') => self.attach_disk(device, &path),
            Some(_) if device.may_be_line() => self.attach_line(device),
            Some(_) => bail!("{}", no_stand_in(device, &path)),
            None => bail!("{}: there is no such device", path.display()),
        }
    }

    fn serve(&self, device: &DeviceName) -> Result<()> {
        match self.with {
            Some(Kind::Nbd) => nbd::serve(device, &self.mount, self.read_only),
            Some(Kind::Cuse) => cuse::serve(device, &self.mount),
            Some(Kind::Pty) => pty::serve(device, &self.mount),
            Some(Kind::Loop) | None => bail!("the kernel serves it"),
        }
    }

    fn attach_disk(&self, device: &DeviceName, path: &Path) -> Result<()> {
        let nbd = match self.with {
            Some(Kind::Loop) => false,
            Some(Kind::Cuse | Kind::Pty) => bail!("{device} is a disk: --with nbd or loop"),
            Some(Kind::Nbd) => {
                NBD.load()
                    .map_err(|why| anyhow!("{why}: --with loop needs none"))?;
                true
            }
            None => {
                let loaded = NBD.load();
                if let Err(why) = &loaded {
                    eprintln!("glu: {why}: a loop device instead, which ends when the daemon does");
                }
                loaded.is_ok()
            }
        };
        let mut options = OpenOptions::new();
        let opened = options.read(true).write(!self.read_only).open(path);
        drop(opened.map_err(|error| refused(path, error))?);
        if nbd {
            let name = stand_in::start(Kind::Nbd, device, &self.mount, self.read_only)?;
            println!("{name}");
            return Ok(());
        }
        let mut losetup = Command::new("losetup");
        losetup.args(["--find", "--show"]);
        if self.read_only {
            losetup.arg("--read-only");
        }
        let made = run(losetup.arg("--").arg(path))?;
        print!("{}", String::from_utf8_lossy(&made.stdout));
        Ok(())
    }

    fn attach_line(&self, device: &DeviceName) -> Result<()> {
        if self.read_only {
            bail!("{device} is no disk: only those can be attached to read alone");
        }
        let kind = match self.with {
            Some(Kind::Nbd | Kind::Loop) => bail!("{device} is no disk: --with cuse or pty"),
            Some(Kind::Pty) => Kind::Pty,
            Some(Kind::Cuse) => {
                CUSE.load()
                    .map_err(|why| anyhow!("{why}: --with pty needs none"))?;
                Kind::Cuse
            }
            None => match CUSE.load() {
                Ok(()) => Kind::Cuse,
                Err(why) => {
                    eprintln!("glu: {why}: a pseudo-terminal instead, without modem lines");
                    Kind::Pty
                }
            },
        };
        let name = stand_in::start(kind, device, &self.mount, false)?;
        println!("{name}");
        Ok(())
    }
}

impl Detach {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let name = self.stand_in.display();
        if let Some(line) = stand_in::find(&self.stand_in)? {
            return line.end();
        }
        let Some(file) = self.file()? else {
            bail!("{name} stands for no device of another node: glu attach --list shows what does");
        };
        run(Command::new("losetup").arg("--detach").arg(&self.stand_in))?;
        // The kernel keeps it for those who have it open, and tells nobody when they close it.
        let end = Instant::now() + END_PATIENCE;
        // Its number may be another's at once.
        while self.file()?.as_ref() == Some(&file) {
            if Instant::now() > end {
                bail!("{name} is in use: it goes when its last user closes or unmounts it");
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Returns the file of the disk that it stands for.
    fn file(&self) -> Result<Option<PathBuf>> {
        let attached = attached(&self.mount)?.into_iter();
        let this = attached.filter(|one| one.name == self.stand_in);
        Ok(this.filter_map(|one| one.back_file).next())
    }
}

fn list(mount: &Path) -> Result<()> {
    for Loop {
        name,
        back_file,
        ro,
    } in attached(mount)?
    {
        let file = back_file.unwrap_or_default();
        let way = if ro { "read" } else { "write" };
        println!("{} {} {way}", name.display(), file.display());
    }
    for line in stand_in::all()? {
        println!("{line}");
    }
    Ok(())
}

/// Returns the loop devices over devices of nodes.
fn attached(mount: &Path) -> Result<Vec<Loop>> {
    let output =
        run(Command::new("losetup").args(["--list", "--json", "--output", "NAME,BACK-FILE,RO"]))?;
    if output.stdout.is_empty() {
        return Ok(Vec::new());
    }
    let loops: Loops = serde_json::from_slice(&output.stdout).context("what losetup tells")?;
    let over = |stand_in: &Loop| {
        stand_in
            .back_file
            .as_deref()
            .is_some_and(|file| is_device(mount, file))
    };
    Ok(loops.loopdevices.into_iter().filter(over).collect())
}

fn is_device(mount: &Path, file: &Path) -> bool {
    let below = file.strip_prefix(mount).into_iter().flatten();
    let mut names = below.map(|name| name.to_string_lossy());
    names.next().is_some_and(|node| node.starts_with("node"))
        && names.next().as_deref() == Some("dev")
}

/// Says why a device that is neither a disk nor a line has no stand-in, and what there is.
fn no_stand_in(device: &DeviceName, path: &Path) -> String {
    format!(
        "{device} is neither a disk nor a line, and only those can be attached: read and write {} itself",
        path.display()
    )
}

fn run(command: &mut Command) -> Result<Output> {
    let output = match command.output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("losetup is missing: install mount (util-linux)")
        }
        output => output.context("losetup")?,
    };
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_devices() {
        let check = |file: &str, expected| {
            assert_eq!(is_device(Path::new("/cluster"), Path::new(file)), expected);
        };
        check("/cluster/node3/dev/sdb", true);
        check("/cluster/node3/proc/1/mem", false);
        check("/cluster/images/disk", false);
        check("/srv/node3/dev/sdb", false);
    }

    #[test]
    fn what_has_no_stand_in_says_so() {
        let device: DeviceName = "node3:hwrng".parse().expect("a device");
        let told = no_stand_in(&device, Path::new("/cluster/node3/dev/hwrng"));
        assert!(
            told.contains("neither") && told.contains("/cluster/node3/dev/hwrng itself"),
            "{told}"
        );
        assert!(!told.contains('\n'));
    }
}
