//! Shows the processes of all nodes.

use std::process::ExitCode;

fn main() -> ExitCode {
    mount_tools::ps::main()
}
