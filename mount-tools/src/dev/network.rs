//! The network between the nodes: a hub with a bridge, and one cable (veth pair) per node.
//!
//! Nothing of it is in the host's network namespace, so clusters share the same addresses without
//! meeting, and nothing is left when the namespaces are gone.

use super::mounts;
use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

const BRIDGE: &str = "hub";
const PREFIX_BITS: u8 = 24;

/// Returns the address of node `number`.
pub(super) fn address(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 77, high, low)
}

/// Returns the hardware address of node `number`. It outlives the node's power, as that of a network card does: the other
/// nodes' neighbour tables keep it for a while.
fn hardware_address(number: u16) -> String {
    let [high, low] = number.to_be_bytes();
    format!("02:67:6c:75:{high:02x}:{low:02x}")
}

/// Makes the hub at `hub` if it is not there.
pub(super) fn make_hub(hub: &Path) -> Result<()> {
    if mounts::is_mounted(hub)? {
        return Ok(());
    }
    File::create(hub).with_context(|| format!("create {}", hub.display()))?;
    on_own_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace (are you root?)")?;
        ip(&["link", "set", "lo", "up"])?;
        ip(&["link", "add", BRIDGE, "type", "bridge"])?;
        ip(&["link", "set", BRIDGE, "up"])?;
        mounts::bind(Path::new("/proc/thread-self/ns/net"), hub)
    })
}

/// Lays node `number`'s cable and gives the node its address; to be called inside the node's
/// network namespace.
pub(super) fn attach(hub: &Path, number: u16) -> Result<()> {
    let hub_path = hub
        .to_str()
        .context("the state directory's name is not UTF-8")?;
    let port = port(number);
    let address = format!("{}/{PREFIX_BITS}", address(number));
    ip(&["link", "set", "lo", "up"])?;
    ip(&[
        "link",
        "add",
        "eth0",
        "address",
        &hardware_address(number),
        "type",
        "veth",
        "peer",
        "name",
        &port,
        "netns",
        hub_path,
    ])?;
    ip(&["address", "add", &address, "dev", "eth0"])?;
    ip(&["link", "set", "eth0", "up"])?;
    in_hub(hub, || ip(&["link", "set", &port, "master", BRIDGE, "up"]))
}

/// Takes the cable away, if there is one.
pub(super) fn detach(hub: &Path, number: u16) -> Result<()> {
    let port = port(number);
    in_hub(hub, || {
        if ip(&["link", "show", "dev", &port]).is_err() {
            return Ok(());
        }
        // The end of the node's namespace removes the cable too, at a time of its own.
        match ip(&["link", "delete", "dev", &port]) {
            Err(_) if ip(&["link", "show", "dev", &port]).is_err() => Ok(()),
            other => other,
        }
    })
}

/// Cuts the node off, or heals the cut.
pub(super) fn set_cut(hub: &Path, number: u16, cut: bool) -> Result<()> {
    let port = port(number);
    in_hub(hub, || {
        ip(&["link", "set", &port, if cut { "down" } else { "up" }])
    })
}

/// Names the hub's end of a node's cable.
fn port(number: u16) -> String {
    format!("port{number}")
}

fn in_hub(hub: &Path, work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    on_own_thread(|| {
        let namespace =
            File::open(hub).with_context(|| format!("open the hub {}", hub.display()))?;
        setns(&namespace, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("enter the hub {}", hub.display()))?;
        work()
    })
}

/// Runs `work` on a thread of its own: a thread that changed its namespaces is of no other use.
pub(super) fn on_own_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Runs iproute2's `ip` in the calling thread's network namespace.
fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(args)
        .stdin(Stdio::null())
        .output()
        .context("run `ip` (Debian package iproute2)")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`ip {}` failed: {}", args.join(" "), said.trim());
    }
    Ok(())
}
