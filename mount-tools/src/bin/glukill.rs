//! Sends signals to processes of any node.

use std::process::ExitCode;

fn main() -> ExitCode {
    mount_tools::kill::main()
}
