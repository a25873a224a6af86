//! Where the programs under test are, and where tests may write.

use super::Cluster;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

/// Names a directory of ready programs, which are then used as they are.
const READY_MADE: &str = "GLU_BIN_DIR";

/// `target/<profile>` of this test run, or [`READY_MADE`], with the programs up to date.
static PROGRAMS: LazyLock<PathBuf> = LazyLock::new(|| match env::var_os(READY_MADE) {
    Some(dir) => dir.into(),
    None => build(),
});

/// Returns the path of the program `name` of this workspace.
///
/// # Panics
/// There is none after a build.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let path = PROGRAMS.join(name);
    assert!(
        path.is_file(),
        "{} is missing: mount-tools has no program {name}?",
        path.display()
    );
    path
}

/// Compiles a program in C of `tests/tests`, with `libglu.so` and `glu.h` as `make install` lays them out; returns its path.
///
/// # Panics
/// It cannot be compiled.
#[must_use]
#[track_caller]
pub fn program_in_c(cluster: &Cluster, name: &str) -> PathBuf {
    let dir = cluster.state().join("c");
    fs::create_dir(&dir).expect("made");
    let library = PROGRAMS.join("libglu.so");
    fs::copy(library, dir.join("libglu.so.0")).expect("there after a build");
    std::os::unix::fs::symlink("libglu.so.0", dir.join("libglu.so")).expect("linked");
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = dir.join(name);
    let compiled = Command::new("cc")
        .args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(&program)
        .arg(here.join(format!("tests/{name}.c")))
        .arg("-I")
        .arg(here.join("../mount-tools/libglu"))
        .arg("-L")
        .arg(&dir)
        .args(["-lglu", "-Wl,-rpath,$ORIGIN"])
        .output()
        .expect("there is a C compiler");
    assert!(compiled.status.success(), "{compiled:?}");
    program
}

/// Returns the path of a CRIU that can move processes; gets one if this machine has none.
///
/// # Panics
/// It cannot be had.
#[must_use]
pub fn criu() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/criu.sh");
    let mut command = Command::new(script);
    let output = command.stderr(Stdio::inherit()).output();
    let output = output.expect("scripts/criu.sh runs");
    assert!(
        output.status.success(),
        "scripts/criu.sh: {}",
        output.status
    );
    let path = String::from_utf8(output.stdout).expect("a path in UTF-8");
    path.trim_end().into()
}

/// Returns a directory for what tests write; it survives them, so they clean up.
#[must_use]
pub fn scratch_dir() -> PathBuf {
    let dir = profile_dir().with_file_name("tmp");
    fs::create_dir_all(&dir).expect("make target/tmp");
    dir
}

/// Builds the programs: cargo does so on its own only for the tests of the same package, and a test
/// of yesterday's daemon says nothing.
fn build() -> PathBuf {
    let dir = profile_dir();
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--package", "mount-tools", "--bins"]);
    command.args(["--package", "libglu", "--lib"]);
    if dir.ends_with("release") {
        command.arg("--release");
    }
    command
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
        .stdin(Stdio::null());
    let status = command
        .status()
        .expect("cargo is installed where tests are run from source");
    assert!(
        status.success(),
        "`cargo build -p mount-tools --bins -p libglu --lib` failed; set {READY_MADE} to use programs as they are"
    );
    dir
}

/// Returns `target/<profile>`: tests run from `deps` in it, programs from the directory itself.
fn profile_dir() -> PathBuf {
    let program = env::current_exe().expect("a running program has a path");
    let dir = program.parent().expect("a program lies in a directory");
    if dir.ends_with("deps") {
        dir.parent()
            .expect("deps lies in target/<profile>")
            .to_owned()
    } else {
        dir.to_owned()
    }
}
