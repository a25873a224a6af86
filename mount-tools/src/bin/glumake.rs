//! GNU make whose recipes run on all nodes of the cluster.

fn main() {
    mount_tools::run::make::main()
}
