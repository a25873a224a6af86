//! A build with make.

use super::{Bench, shell};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

impl Bench {
    pub(super) fn build(&mut self) {
        let (one, two, local) = (
            self.cluster.path(1),
            self.cluster.path(2),
            self.local.clone(),
        );
        let sources = sources();
        for dir in [&one, &local] {
            let tree = dir.join("lua");
            fs::create_dir_all(tree.join("obj")).expect("mkdir");
            fs::create_dir_all(tree.join("src")).expect("mkdir");
            shell(&format!(
                "cp '{}'/*.[ch] '{}/src/'",
                sources.display(),
                tree.display()
            ));
            let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/demo");
            fs::copy(format!("{demo}/main.c"), tree.join("src/main.c")).expect("copy");
            fs::copy(format!("{demo}/lua.mk"), tree.join("Makefile")).expect("copy");
        }
        self.row(
            "cold build, make -j2 on one node",
            "<= 1.12 x the time",
            3,
            1,
            |dir| {
                shell(&format!(
                    "cd '{}/lua' && rm -f lua obj/* && make -s -j2 lua",
                    dir.display()
                ));
            },
            &one,
            &local,
        );
        self.row(
            "no-op make, node that built",
            "<= 1.5 x the time",
            15,
            1,
            |dir| {
                shell(&format!("cd '{}/lua' && make -q lua", dir.display()));
            },
            &one,
            &local,
        );
        self.row(
            "no-op make, other node",
            "<= 1.5 x the time",
            15,
            1,
            |dir| {
                shell(&format!("cd '{}/lua' && make -q lua", dir.display()));
            },
            &two,
            &local,
        );
    }
}

/// Returns the directory of the demo's sources, out of the registry.
pub(super) fn sources() -> PathBuf {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/demo/Cargo.toml");
    shell(&format!(
        "cargo fetch --quiet --locked --manifest-path '{manifest}'"
    ));
    let args = [
        "metadata",
        "--quiet",
        "--locked",
        "--format-version",
        "1",
        "--manifest-path",
        manifest,
    ];
    let output = Command::new("cargo")
        .args(args)
        .output()
        .expect("cargo runs");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let lua = packages
        .iter()
        .find(|package| package["name"] == "lua-src")
        .expect("lua-src");
    let root = Path::new(lua["manifest_path"].as_str().expect("a path"))
        .parent()
        .expect("a directory")
        .to_path_buf();
    let versions = fs::read_dir(&root)
        .expect("readdir")
        .map(|entry| entry.expect("entry").path());
    versions
        .into_iter()
        .find(|path| path.to_string_lossy().contains("lua-5.4."))
        .expect("Lua 5.4")
}
