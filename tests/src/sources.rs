//! C projects out of crates, to be built with make.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Returns the directory of the sources that a crate carries, fetched if need be.
///
/// `manifest` is that of a package, from the repository's root on, which names the crate as a dependency.
///
/// # Panics
/// They cannot be had.
#[must_use]
pub fn sources(manifest: &str, name: &str) -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(manifest);
    let cargo = |args: &[&str]| {
        let output = Command::new("cargo")
            .args(args)
            .arg("--manifest-path")
            .arg(&manifest)
            .output();
        let output = output.expect("cargo runs");
        assert!(output.status.success(), "cargo {args:?}: {output:?}");
        output.stdout
    };
    cargo(&["fetch", "--quiet", "--locked"]);
    let metadata = cargo(&["metadata", "--quiet", "--locked", "--format-version", "1"]);
    let metadata: serde_json::Value = serde_json::from_slice(&metadata).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let package = packages.iter().find(|package| package["name"] == name);
    let manifest =
        package.unwrap_or_else(|| panic!("{name} is no dependency"))["manifest_path"].as_str();
    let directory = Path::new(manifest.expect("a path")).parent();
    directory.expect("a directory").to_path_buf()
}
