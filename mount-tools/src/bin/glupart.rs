//! Partitions and reservations of nodes.

use std::process::ExitCode;

fn main() -> ExitCode {
    mount_tools::batch::part_main()
}
