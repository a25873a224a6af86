//! Moves a process to another node.

use std::process::ExitCode;

fn main() -> ExitCode {
    mount_tools::moves::migrate()
}
