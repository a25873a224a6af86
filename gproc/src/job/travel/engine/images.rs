//! Images of a job as files, while they are made or read.

use super::super::wire::{IMAGE_BYTES_MAX, Image};
use bytes::Bytes;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Where they are: in memory. They hold all that a process knows, so they are on no disk and nobody else's to read.
const MEMORY: &str = "/dev/shm";
/// Lines of CRIU's log that say why.
const WHY_LINES: usize = 2;

/// A directory of images; it goes with this.
#[derive(Debug)]
pub(in super::super) struct Images(PathBuf);

impl Images {
    /// Makes an empty directory for a daemon of this name.
    pub(in super::super) fn new(instance: &str) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = Path::new(MEMORY).join(format!("glu-{instance}-{number}"));
        DirBuilder::new().mode(0o700).create(&dir)?;
        Ok(Self(dir))
    }

    /// Removes what daemons of this name have left.
    pub(super) fn remove_all(instance: &str) {
        let left = format!("glu-{instance}-");
        for entry in fs::read_dir(MEMORY).into_iter().flatten().flatten() {
            if entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(left.as_bytes())
            {
                fs::remove_dir_all(entry.path()).ok();
            }
        }
    }

    pub(in super::super) fn dir(&self) -> &Path {
        &self.0
    }

    /// Images that are nowhere.
    #[cfg(test)]
    pub(in super::super) fn none() -> Self {
        Self("/nonexistent".into())
    }

    /// Returns the images in pieces that fit a frame.
    pub(super) fn pieces(&self) -> io::Result<Vec<Image>> {
        let mut pieces = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            if path.extension().is_none_or(|kind| kind != "img") {
                continue;
            }
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let content = Bytes::from(fs::read(&path)?);
            let piece = |bytes| Image {
                name: name.clone(),
                bytes,
            };
            if content.is_empty() {
                pieces.push(piece(Bytes::new()));
            }
            let starts = (0..content.len()).step_by(IMAGE_BYTES_MAX);
            pieces.extend(
                starts.map(|at| piece(content.slice(at..content.len().min(at + IMAGE_BYTES_MAX)))),
            );
        }
        Ok(pieces)
    }

    /// Opens an image to be written on. The name comes from another node.
    pub(in super::super) fn add(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if !name.ends_with(".img") || name.starts_with('.') || !name.bytes().all(plain) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "no name of an image",
            ));
        }
        let mut options = File::options();
        let options = options.append(true).create(true).mode(0o600);
        options.open(self.0.join(name))?.write_all(bytes)
    }

    /// Returns what the log says of a failure.
    pub(in super::super) fn why(&self, what: &str) -> io::Error {
        let log = fs::read(self.0.join(format!("{what}.log"))).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        // That of the descriptors' limit tells nothing: a node's root may lack the right to raise it.
        let errors = log
            .lines()
            .filter(|line| line.contains("Error") && !line.contains("RLIMIT_NOFILE"));
        let errors = errors.filter_map(|line| line.split_once("): ").map(|(_, why)| why));
        let errors: Vec<&str> = errors.take(WHY_LINES).collect();
        io::Error::other(if errors.is_empty() {
            format!("criu {what} failed")
        } else {
            errors.join("; ")
        })
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(dir = %self.0.display(), %error, "left images behind");
        }
    }
}
