//! Booting and killing one node.

use super::network::{self, on_own_thread};
use super::process::ProcessId;
use super::state::{NodeDir, StateDir, node_name};
use super::{init, mounts};
use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// The most nodes of one cluster: the last quarter of the 64 pid ranges is a guard band.
pub const NODES_MAX: u16 = 47;

/// Init mounts a few things and reports; that takes milliseconds on an idle machine.
const BOOT_WAIT: Duration = Duration::from_secs(20);
/// The kernel ends a pid namespace at once, unless a process hangs in a driver.
const KILL_WAIT: Duration = Duration::from_secs(20);

/// The variables a node's daemon takes over from whoever boots the node.
const KEPT_ENVIRONMENT: [&str; 5] = ["PATH", "HOME", "LANG", "RUST_LOG", "RUST_BACKTRACE"];

/// Boots node `number` on its own disk and returns its init once that supervises glud.
pub(super) fn boot(dir: &StateDir, number: u16, glud: &Path) -> Result<ProcessId> {
    let node = dir.node(number);
    let boot = || {
        mounts::detach_below(node.path())?;
        clear_run(&node)?;
        mounts::share(node.path())?;
        network::detach(&dir.hub(), number)?;
        let mut child = on_own_thread(|| start_init(dir, &node, number, glud))?;
        let process = ProcessId::of(child.id().cast_signed());
        let result = match (process, child.stdout.take()) {
            (Some(process), Some(report)) => wait_for_report(report).map(|()| process),
            _ => Err(anyhow::anyhow!(
                "its init ended at once: {}",
                node.log_tail(3)
            )),
        };
        if result.is_err() {
            abandon(&mut child);
        }
        result
    };
    boot().with_context(|| format!("boot {}", node_name(number)))
}

/// Ends every process of the node at once, as a power cut would, after its network went silent.
///
/// What its processes had written to the host's files is kept by the host's kernel even if it was
/// never synced: in this a power cut of a real machine is harsher.
pub(super) fn kill(dir: &StateDir, number: u16, init: Option<ProcessId>) -> Result<()> {
    let node = dir.node(number);
    let kill = || {
        if let Some(init) = init.filter(ProcessId::is_alive) {
            // Else the dying sockets would tell the peers. Not being able to is no reason to let it live.
            let silenced = network::set_cut(&dir.hub(), number, true);
            kill_init(&init, &node.cluster())?;
            silenced?;
        }
        mounts::detach_below(&node.cluster())?;
        network::detach(&dir.hub(), number)
    };
    kill().with_context(|| format!("kill {}", node_name(number)))
}

/// Ends every init that works on `dir`, whether `cluster.json` knows it or not.
pub(super) fn kill_all(dir: &StateDir) -> Result<()> {
    let state = dir.path().as_os_str().as_encoded_bytes();
    let inits = super::process::find(|args| {
        args.get(1) == Some(&init::SUBCOMMAND.as_bytes())
            && args
                .windows(2)
                .any(|pair| pair == [b"--state".as_slice(), state])
    })
    .context("look for the nodes' inits in /proc")?;
    for init in inits {
        kill_init(&init, dir.path())?;
    }
    Ok(())
}

/// Kills an init and with it its node. The connections of the trees mounted below `mounts` are aborted: a daemon that
/// was killed while its kernel waits in it for one of its own requests could not die otherwise.
fn kill_init(init: &ProcessId, mounts: &Path) -> Result<()> {
    let connections = gfs::fuse::abort_files_below(mounts).with_context(|| {
        format!(
            "find the connections of the mounts below {}",
            mounts.display()
        )
    })?;
    init.kill_then(KILL_WAIT, || {
        for mut connection in connections {
            // Harmless if it is over already.
            drop(connection.write_all(b"1"));
        }
    })
}

/// `/run` is empty after a boot; with it goes what says that the last life was ready.
fn clear_run(node: &NodeDir) -> Result<()> {
    let run = node.run();
    let clear = || {
        match fs::remove_dir_all(&run) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        fs::create_dir(&run)
    };
    clear().with_context(|| format!("empty {}", run.display()))
}

/// Enters new namespaces with the calling thread and starts init in them.
fn start_init(dir: &StateDir, node: &NodeDir, number: u16, glud: &Path) -> Result<Child> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(node.log())
        .with_context(|| format!("open {}", node.log().display()))?;
    let program = std::env::current_exe().context("find the path of this program")?;
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC,
    )
    .context("make the node's namespaces (are you root?)")?;
    nix::unistd::sethostname(node_name(number)).context("name the host")?;
    network::attach(&dir.hub(), number)?;
    // Only now: the first process started after it is the pid 1 of the new namespace.
    unshare(CloneFlags::CLONE_NEWPID).context("make the node's pid namespace")?;
    Command::new(program)
        .arg(init::SUBCOMMAND)
        .arg("--state")
        .arg(dir.path())
        .arg("--node")
        .arg(number.to_string())
        .arg("--glud")
        .arg(glud)
        .env_clear()
        .envs(
            KEPT_ENVIRONMENT
                .iter()
                .filter_map(|name| Some((name, std::env::var_os(name)?))),
        )
        .env("GLU_NODE", number.to_string())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .context("start init")
}

/// Waits for init's one line: `ok`, or what went wrong.
fn wait_for_report(report: ChildStdout) -> Result<()> {
    let (sender, receiver) = mpsc::sync_channel(1);
    // The reader ends with the pipe: either init reported and closed it, or `abandon` killed init.
    thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(report).read_line(&mut line);
        // A caller that no longer listens has given the node up.
        drop(sender.send(read.map(|_| line)));
    });
    match receiver.recv_timeout(BOOT_WAIT) {
        Ok(Ok(line)) if line.trim() == init::REPORT_OK => Ok(()),
        Ok(Ok(line)) => bail!("{}", line.trim()),
        Ok(Err(e)) => Err(e).context("hear from init"),
        Err(_) => bail!("init said nothing for {BOOT_WAIT:?}"),
    }
}

fn abandon(child: &mut Child) {
    // Both can only fail when it has ended already, which is what is wanted.
    drop(child.kill());
    drop(child.wait());
}
