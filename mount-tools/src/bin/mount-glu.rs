//! What mount(8) runs for `mount -t glu`, installed as /sbin/mount.glu: a crate cannot have a dot in its name.

use std::process::ExitCode;

fn main() -> ExitCode {
    mount_tools::mount::main()
}
