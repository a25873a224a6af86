//! Shows the state of all nodes.

use std::process::ExitCode;

fn main() -> ExitCode {
    mount_tools::stat::main()
}
