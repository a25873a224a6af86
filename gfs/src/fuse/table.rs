//! The table of mounts that a thread sees, as the kernel shows it in mountinfo.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountLine {
    /// Names the mount while it is there.
    pub id: u64,
    /// Names the file system: `major:minor`.
    pub device: String,
    /// The directory of the file system that is seen at `point`.
    pub root: PathBuf,
    /// Where it is mounted.
    pub point: PathBuf,
    /// Flags of this mount alone, `rw` or `ro` first.
    pub options: String,
    /// Type of the file system.
    pub kind: String,
    /// Options of the file system, `rw` or `ro` first.
    pub super_options: String,
}

/// Returns all mounts, those made last at the end.
///
/// # Errors
/// If /proc cannot be read.
pub fn mounts() -> io::Result<Vec<MountLine>> {
    // The thread's table, not the process's: the main thread may have ended or live in another namespace.
    let table = fs::read("/proc/thread-self/mountinfo")?;
    let lines = table.split(|byte| *byte == b'\n');
    Ok(lines.filter_map(mount_line).collect())
}

/// Returns what is mounted on `point`, the topmost if it is several.
///
/// # Errors
/// If /proc cannot be read.
pub fn top_mount(point: &Path) -> io::Result<Option<MountLine>> {
    Ok(mounts()?.into_iter().rfind(|line| line.point == point))
}

fn mount_line(line: &[u8]) -> Option<MountLine> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let path = |bytes| PathBuf::from(std::ffi::OsString::from_vec(unescaped(bytes)));
    let mut fields = line.split(|byte| *byte == b' ');
    let id = text(fields.next()?).parse().ok()?;
    let device = text(fields.nth(1)?);
    let root = path(fields.next()?);
    let point = path(fields.next()?);
    let options = text(fields.next()?);
    let mut fields = fields.skip_while(|field| *field != b"-");
    let kind = text(fields.nth(1)?);
    let super_options = text(fields.nth(1)?);
    Some(MountLine {
        id,
        device,
        root,
        point,
        options,
        kind,
        super_options,
    })
}

/// Undoes the octal escapes of mountinfo.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| OsStr::from_bytes(digits).to_str())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_lines_of_mountinfo() {
        let check = |line: &str, expected: Option<[&str; 6]>| {
            let found = mount_line(line.as_bytes());
            let expected = expected.map(|[device, root, point, options, kind, super_options]| {
                let [options, kind] = [options, kind].map(str::to_owned);
                MountLine {
                    id: 36,
                    device: device.to_owned(),
                    root: root.into(),
                    point: point.into(),
                    options,
                    kind,
                    super_options: super_options.to_owned(),
                }
            });
            assert_eq!(found, expected, "{line}");
        };
        check("", None);
        check("36 35 98:0 / /mnt rw,noatime", None);
        check(
            "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root ro,errors=continue",
            Some([
                "98:0",
                "/mnt1",
                "/mnt2",
                "rw,noatime",
                "ext3",
                "ro,errors=continue",
            ]),
        );
        check(
            "36 22 0:57 / /a\\040b\\134c rw - fuse.glu glu rw,user_id=0",
            Some(["0:57", "/", "/a b\\c", "rw", "fuse.glu", "rw,user_id=0"]),
        );
    }
}
