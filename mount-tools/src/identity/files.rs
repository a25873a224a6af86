//! The files that identities live in: created once, keys closed to others.

use super::IdentityError;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

/// No certificate or key comes near this; a wrong path (`/dev/zero`) must not fill the memory.
const FILE_BYTES_MAX: u64 = 64 << 10;

pub(super) fn create_dir(dir: &Path) -> Result<(), IdentityError> {
    let made = DirBuilder::new().recursive(true).mode(0o755).create(dir);
    made.map_err(io_error("create directory", dir))
}

/// Creates a file with exactly this mode, whatever the umask, and makes it durable; never overwrites.
pub(super) fn create(path: &Path, contents: &str, mode: u32) -> Result<(), IdentityError> {
    let opened = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    let mut file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            return Err(IdentityError::Exists(path.to_owned()));
        }
        Err(error) => return Err(io_error("create", path)(error)),
    };
    file.write_all(contents.as_bytes())
        .and_then(|()| file.set_permissions(std::fs::Permissions::from_mode(mode)))
        .and_then(|()| file.sync_all())
        .map_err(io_error("write", path))?;
    // The name is durable only with its directory.
    let dir = path.parent().unwrap_or_else(|| Path::new("."));
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(io_error("sync", dir))
}

/// Reads a file; `cure` says how it would come to be there.
pub(super) fn read(path: &Path, cure: &'static str) -> Result<String, IdentityError> {
    contents(open(path, cure)?, path)
}

/// Reads a private key, unless others can read it, too.
pub(super) fn read_key(path: &Path, cure: &'static str) -> Result<String, IdentityError> {
    let file = open(path, cure)?;
    let metadata = file.metadata().map_err(io_error("look at", path))?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        let path = path.to_owned();
        return Err(IdentityError::Mode { path, mode });
    }
    contents(file, path)
}

fn open(path: &Path, cure: &'static str) -> Result<File, IdentityError> {
    File::open(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => IdentityError::Missing {
            path: path.to_owned(),
            cure,
        },
        _ => io_error("open", path)(error),
    })
}

fn contents(file: File, path: &Path) -> Result<String, IdentityError> {
    let mut text = String::new();
    file.take(FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(io_error("read", path))?;
    Ok(text)
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::Io {
        doing,
        path,
        source,
    }
}
