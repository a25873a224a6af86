//! Serves the buckets below a directory: `s3-server ADDRESS DIRECTORY`. For end-to-end tests, which run it in a node.

use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use tests::S3Server;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [addr, root] = args.as_slice() else {
        bail!("usage: s3-server ADDRESS DIRECTORY");
    };
    let addr = addr.parse().context("an address with a port")?;
    S3Server::start(addr, &PathBuf::from(root))?.wait();
    Ok(())
}
