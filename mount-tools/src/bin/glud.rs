//! `glud`: the daemon of one node.

use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;

/// The daemon of one node of a Glu cluster.
#[derive(Debug, Parser)]
#[command(name = "glud", version)]
struct Glud {
    /// The node's configuration.
    #[arg(long, default_value = "/etc/glu/glud.toml")]
    config: PathBuf,
}

fn main() -> ExitCode {
    let glud = match Glud::try_parse() {
        Ok(glud) => glud,
        Err(error) => return mount_tools::cli::refuse("glud", &error),
    };
    match mount_tools::node::main(&glud.config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("glud: {error:#}");
            ExitCode::FAILURE
        }
    }
}
