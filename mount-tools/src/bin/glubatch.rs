//! Jobs that wait for their turn.

use std::process::ExitCode;

fn main() -> ExitCode {
    mount_tools::batch::batch_main()
}
