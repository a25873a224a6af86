//! `glu`: the command line tool.

use std::process::ExitCode;

fn main() -> ExitCode {
    mount_tools::cli::main()
}
