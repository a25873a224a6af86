//! Files of a job that have a name, but not for the kernel any more. When it is told to forget a name that somebody has open or runs
//! (another node has changed the directory), it makes a new entry for it at the next look, and shows the old one as `(deleted)`. CRIU
//! finds no such file, so it is told that these are ours to open (`--external`, `--inherit-fd`): it opens them again by what we give it.
//!
//! Where they are goes with the images, in a file of its own.

use super::super::pipes::members;
use super::Images;
use consistency::wire::{decode, encode};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What the kernel adds to the name.
const DELETED: &[u8] = b" (deleted)";
/// The file among the images.
const FILE: &str = "glu-names.img";

/// Paths by what CRIU calls the files.
pub(super) type Names = BTreeMap<String, Vec<u8>>;

/// Finds them in a frozen job.
pub(super) fn find(dir: &Path, pid: i32) -> io::Result<Names> {
    let mut names = Names::new();
    for pid in members(dir, pid)? {
        let of = PathBuf::from(format!("/proc/{pid}"));
        let mut links = vec![of.join("exe")];
        for list in ["fd", "map_files"] {
            for entry in fs::read_dir(of.join(list))? {
                links.push(entry?.path());
            }
        }
        for link in links {
            // What somebody does to the file meanwhile, CRIU finds.
            names.extend(look(&link).ok().flatten());
        }
    }
    Ok(names)
}

/// Returns what CRIU calls a file, and where it is, if the kernel does not know that.
fn look(link: &Path) -> io::Result<Option<(String, Vec<u8>)>> {
    let path = fs::read_link(link)?;
    if !path.is_absolute() {
        return Ok(None);
    }
    let bytes = path.as_os_str().as_bytes();
    let bytes = bytes.strip_suffix(DELETED).unwrap_or(bytes);
    let path = PathBuf::from(OsString::from_vec(bytes.to_owned()));
    let mut options = File::options();
    let options = options.read(true).custom_flags(libc::O_PATH);
    let file = options.open(link)?;
    let stat = file.metadata()?;
    if !stat.is_file() || stat.nlink() == 0 {
        return Ok(None);
    }
    // The kernel finds out by this look.
    let named = fs::symlink_metadata(&path)?;
    if (named.dev(), named.ino()) != (stat.dev(), stat.ino()) {
        return Ok(None);
    }
    let now = fs::read_link(link)?;
    if !now.as_os_str().as_bytes().ends_with(DELETED) {
        return Ok(None);
    }
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    let mount = mount.and_then(|mount| mount.trim().parse::<u32>().ok());
    let mount = mount.ok_or(io::ErrorKind::InvalidData)?;
    let key = format!("file[{mount:x}:{:x}]", stat.ino());
    Ok(Some((key, path.into_os_string().into_vec())))
}

/// Notes them among the images.
pub(super) fn note(names: &Names, images: &Images) -> io::Result<()> {
    match names.is_empty() {
        true => Ok(()),
        false => fs::write(images.dir().join(FILE), encode(names)),
    }
}

/// Opens those that images note, by what CRIU calls them.
pub(super) fn open(images: &Images) -> io::Result<Vec<(String, OwnedFd)>> {
    let noted = match fs::read(images.dir().join(FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        noted => noted?,
    };
    let names: Names = decode(&noted).map_err(io::Error::other)?;
    let open = |(name, path): (String, Vec<u8>)| {
        let path = PathBuf::from(OsString::from_vec(path));
        let mut options = File::options();
        let options = options.read(true).custom_flags(libc::O_PATH);
        let file = options.open(&path).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        })?;
        Ok((name, OwnedFd::from(file)))
    };
    names.into_iter().map(open).collect()
}
