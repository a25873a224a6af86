//! The shell that `glumake` names to make.

fn main() {
    mount_tools::run::shell::main()
}
