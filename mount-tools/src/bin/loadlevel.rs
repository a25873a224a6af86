//! Says whether a process may move.

use std::process::ExitCode;

fn main() -> ExitCode {
    mount_tools::moves::loadlevel()
}
