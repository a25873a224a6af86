//! Counts the starts of a node, so that what an earlier life sent late is told apart from what this one sends.

use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

/// The counter in a node's state directory.
const NAME: &str = "incarnation";

/// Returns the number of the last start, 0 before the first.
///
/// # Errors
/// The counter cannot be read or is no number.
pub(crate) fn last(state_dir: &Path) -> Result<u32> {
    let path = state_dir.join(NAME);
    match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse::<u32>().with_context(|| {
            format!("{}: {text:?} is no number: write one in that is larger than the number of starts so far", path.display())
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error).with_context(|| format!("{}: cannot be read", path.display())),
    }
}

/// Counts this start and returns its number, from 1.
///
/// # Errors
/// The counter cannot be read or is no number: a start without it could be taken for an earlier one.
pub(super) fn next(state_dir: &Path) -> Result<u32> {
    let path = state_dir.join(NAME);
    let last = last(state_dir)?;
    let next = last
        .checked_add(1)
        .with_context(|| format!("{}: counted to its end", path.display()))?;
    let write = || -> std::io::Result<()> {
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        writeln!(file, "{next}")?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(state_dir)?.sync_all()
    };
    write().with_context(|| format!("{}: cannot be written", path.display()))?;
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_on_and_refuses_what_is_no_number() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(next(dir.path()).expect("first"), 1);
        assert_eq!(next(dir.path()).expect("second"), 2);
        fs::write(dir.path().join("incarnation"), "x").expect("write");
        let error = next(dir.path()).expect_err("refused").to_string();
        assert!(error.contains("no number"), "{error}");
    }
}
