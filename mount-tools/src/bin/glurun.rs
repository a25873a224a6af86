//! Runs a program on the best node of the cluster.

fn main() {
    mount_tools::run::command::main()
}
