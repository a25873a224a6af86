//! `glud`: the daemon of one node.

use clap::Parser;
use gproc::job::{holder, leader};
use mount_tools::batch::scheduler;
use mount_tools::node::watcher;
use std::path::{Path, PathBuf};
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
    let mut args = std::env::args_os().skip(1);
    match args.next() {
        Some(first) if first == watcher::ARGUMENT => {
            let daemon = args.next().and_then(|pid| pid.to_str()?.parse().ok());
            return outcome(watcher::main(daemon.unwrap_or(0)));
        }
        Some(first) if first == scheduler::ARGUMENT => {
            let daemon = args.next().and_then(|pid| pid.to_str()?.parse().ok());
            let mount = args.next().unwrap_or_default();
            return outcome(scheduler::main(daemon.unwrap_or(0), Path::new(&mount)));
        }
        Some(first) if first == leader::ARGUMENT => leader::main(args),
        Some(first) if first == leader::AGAIN_ARGUMENT => leader::main_again(args),
        Some(first) if first == holder::ARGUMENT => holder::main(args),
        _ => {}
    }
    let glud = match Glud::try_parse() {
        Ok(glud) => glud,
        Err(error) => return mount_tools::cli::refuse("glud", &error),
    };
    outcome(mount_tools::node::main(&glud.config))
}

fn outcome(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("glud: {error:#}");
            ExitCode::FAILURE
        }
    }
}
