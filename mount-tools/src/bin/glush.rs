//! A shell whose processes are those of the whole cluster.

use std::process::ExitCode;

fn main() -> ExitCode {
    mount_tools::shell::main()
}
