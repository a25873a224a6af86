//! The mount table: reading it, and the few changes a development cluster makes to it.

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// How often [`detach_below`] looks again; mounts are stacked a few deep at most.
const DETACH_PASSES_MAX: usize = 16;

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) point: PathBuf,
    pub(super) shared: bool,
}

/// Returns the mounts of the calling thread's namespace, in the order of the kernel's list.
pub(super) fn list() -> Result<Vec<Mount>> {
    let text = fs::read("/proc/thread-self/mountinfo").context("read the mount table")?;
    Ok(text
        .split(|byte| *byte == b'\n')
        .filter_map(parse)
        .collect())
}

/// Returns whether something is mounted exactly at `point`.
pub(super) fn is_mounted(point: &Path) -> Result<bool> {
    Ok(list()?.iter().any(|mount| mount.point == point))
}

/// Binds `dir` onto itself as a shared mount with a peer group of its own; nothing if it is one.
pub(super) fn share(dir: &Path) -> Result<()> {
    if !is_mounted(dir)? {
        bind(dir, dir)?;
    }
    // Private first: the bind of a directory on a shared mount starts in that mount's peer group.
    change(dir, MsFlags::MS_PRIVATE)?;
    change(dir, MsFlags::MS_SHARED)
}

/// Binds the directory or file `from` onto `to`.
pub(super) fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("bind {} onto {}", from.display(), to.display()))
}

/// Makes every shared mount but the one at `keep` a slave: it hears of the host's changes, and
/// tells of none.
pub(super) fn enslave_all_but(keep: &Path) -> Result<()> {
    for mount in list()?
        .iter()
        .filter(|mount| mount.shared && mount.point != keep)
    {
        match change(&mount.point, MsFlags::MS_SLAVE) {
            // Hidden below another mount, or on a dead one: nobody can reach it to mount anything there.
            Err(e)
                if matches!(
                    e.downcast_ref(),
                    Some(Errno::EINVAL | Errno::ENOENT | Errno::ENOTCONN)
                ) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Detaches (lazily) whatever is mounted at or below `dir`, last mounted first.
///
/// # Errors
/// Something is still mounted there afterwards: nothing below `dir` may be deleted then.
pub(super) fn detach_below(dir: &Path) -> Result<()> {
    for _ in 0..DETACH_PASSES_MAX {
        let mounts = list()?;
        let mut points = mounts
            .iter()
            .rev()
            .filter(|mount| mount.point.starts_with(dir))
            .peekable();
        if points.peek().is_none() {
            return Ok(());
        }
        for mount in points {
            match umount2(
                &mount.point,
                MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW,
            ) {
                // Gone with its parent, or with a peer; or on a mount that is dead, with which it goes.
                Ok(()) | Err(Errno::EINVAL | Errno::ENOENT | Errno::ENOTCONN) => {}
                Err(e) => {
                    return Err(e).with_context(|| format!("unmount {}", mount.point.display()));
                }
            }
        }
    }
    bail!(
        "something keeps being mounted below {}: nothing was deleted",
        dir.display()
    )
}

fn change(point: &Path, propagation: MsFlags) -> Result<()> {
    mount(None::<&str>, point, None::<&str>, propagation, None::<&str>)
        .with_context(|| format!("change how mounts at {} propagate", point.display()))
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let point = fields.nth(4)?;
    let shared = fields
        .skip(1)
        .take_while(|field| *field != b"-")
        .any(|field| field.starts_with(b"shared:"));
    Some(Mount {
        point: PathBuf::from(OsString::from_vec(unescape(point))),
        shared,
    })
}

/// Undoes the kernel's octal escapes of blanks and backslashes.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        let code = tail
            .first_chunk::<3>()
            .filter(|code| code.iter().all(|b| (b'0'..=b'7').contains(b)));
        match (byte, code) {
            (b'\\', Some([a, b, c])) => {
                out.push(((a & 3) << 6) | ((b & 7) << 3) | (c & 7));
                rest = tail.get(3..).unwrap_or_default();
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, expected: Option<(&str, bool)>) {
        let expected = expected.map(|(point, shared)| Mount {
            point: point.into(),
            shared,
        });
        assert_eq!(parse(line.as_bytes()), expected, "{line}");
    }

    #[test]
    fn lines_of_mountinfo() {
        check(
            "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw",
            Some(("/", false)),
        );
        check(
            "27 1 254:0 / /a rw shared:7 - ext4 /dev/vda rw",
            Some(("/a", true)),
        );
        check(
            "27 1 254:0 / /a rw master:3 shared:7 - fuse x rw",
            Some(("/a", true)),
        );
        check(
            "27 1 254:0 / /a rw master:3 - fuse shared:x rw",
            Some(("/a", false)),
        );
        check(
            "27 1 254:0 / /a\\040b\\134c rw - ext4 x rw",
            Some(("/a b\\c", false)),
        );
        check("27 1 254:0 / /a\\9 rw - ext4 x rw", Some(("/a\\9", false)));
        check("", None);
    }
}
