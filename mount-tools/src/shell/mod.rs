//! `glush`: a shell in which unmodified programs see and signal the processes of all nodes.
//!
//! This process becomes the shell; what it prepares first is inherited by all that the shell starts.
//!
//! - [`view`]: a private mount namespace with `/cluster/proc` over `/proc`.
//! - [`processors`]: the processors of all nodes in its `/sys/devices/system/cpu`.
//! - [`filter`]: system calls that name a process of another node are held by the kernel; all others are not touched.
//! - [`supervisor`]: a process of its own answers for them. It ends when the last process of the shell has ended.
//!
//! `docs/decisions/0010-glush.md` says why, and what stays local.

mod calls;
mod filter;
mod processors;
mod supervisor;
mod sys;
mod view;

pub(crate) use view::VIEW_NAME;

use crate::table;
use anyhow::{Context, Result, anyhow};
use consistency::NodeId;
use gproc::pids::{ClusterPid, range};
use nix::sys::statfs::{PROC_SUPER_MAGIC, statfs};
use processors::Processors;
use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// This program's name in its messages.
const NAME: &str = "glush";
/// Exit status for problems of the cluster, as of `glurun`.
const CLUSTER_STATUS: u8 = 125;
/// What runs scripts and commands, and people's commands if they have no other shell.
const SHELLS: [&str; 2] = ["/bin/bash", "/bin/sh"];

const HELP: &str = "\
A shell in which ps, top, pgrep, kill and other programs act on the processes of the whole cluster.

Usage: glush [ARGUMENTS OF THE SHELL]...
       glush -c COMMAND
       glush SCRIPT [ARGUMENTS]...     also as #!/usr/bin/glush

Without arguments it is $SHELL, else bash, or sh if there is none.
Process numbers are those of /cluster/proc. Signals to other nodes are checked there as kill(2) checks them.
A descriptor of a process of another node (pidfd) can be polled and signalled, not waited on.
Debuggers, priorities and real-time signals with values reach processes of this node only.";

/// Runs `glush` with the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    match args.get(1).and_then(|first| first.to_str()) {
        Some("--help") => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Some("--version") => {
            println!("{NAME} {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let Err(error) = start(args).map(|never| match never {});
    eprintln!("{NAME}: {error:#}");
    ExitCode::from(CLUSTER_STATUS)
}

/// Becomes the shell.
fn start(args: Vec<OsString>) -> Result<Infallible> {
    let shell = choose(&args, std::env::var_os("SHELL"), Path::is_file);
    if !is_within()? {
        enter(&table::root())?;
    }
    let argv = argv(&shell, args)?;
    let path = CString::new(shell.as_os_str().as_bytes())?;
    nix::unistd::execv(&path, &argv).with_context(|| format!("cannot run {}", shell.display()))
}

/// Returns whether an outer `glush` has prepared everything already; the kernel takes one listener for a process.
fn is_within() -> Result<bool> {
    let kind = statfs("/proc").context("/proc")?.filesystem_type();
    Ok(kind != PROC_SUPER_MAGIC)
}

fn enter(root: &Path) -> Result<()> {
    let node = own_node(root)?;
    let own =
        range(node).ok_or_else(|| anyhow!("node {node} has no process numbers of its own"))?;
    let processors = Processors::count(root, node).context("cannot count processors")?;
    // Before anything changes for this process: the supervisor is to see this machine as it is.
    let supervisor =
        supervisor::start(root).context("cannot start what answers for other nodes")?;
    view::enter(root, &processors)?;
    let listener = sys::install(&filter::program(&own));
    let listener = listener.context("cannot have system calls held (seccomp)")?;
    supervisor.take_over(listener)
}

/// Returns the node that this process is on.
fn own_node(root: &Path) -> Result<NodeId> {
    let link = root.join("self");
    let own = std::fs::read_link(&link);
    let own = own.with_context(|| {
        format!(
            "cannot read {}: is the node's daemon running? (another place is named with {})",
            link.display(),
            table::ROOT_ENV
        )
    })?;
    let pid = ClusterPid::parse(own.as_os_str().as_bytes());
    Ok(pid
        .with_context(|| format!("{}: no number", link.display()))?
        .home())
}

/// Returns which shell is to run.
fn choose(args: &[OsString], own: Option<OsString>, is_there: fn(&Path) -> bool) -> PathBuf {
    let own = own.map(PathBuf::from).filter(|own| {
        let itself = own.file_name() == Some(OsStr::new(NAME));
        !itself && own.is_absolute() && is_there(own)
    });
    // What a script means does not depend on who runs it.
    own.filter(|_| args.len() == 1).unwrap_or_else(|| {
        let [first, last] = SHELLS.map(Path::new);
        if is_there(first) { first } else { last }.to_owned()
    })
}

/// Returns the arguments of the shell: those of this program but for its name. A login shell stays one.
fn argv(shell: &Path, args: Vec<OsString>) -> Result<Vec<CString>> {
    let login = args
        .first()
        .is_some_and(|own| own.as_bytes().starts_with(b"-"));
    let mut name = OsString::from(if login { "-" } else { "" });
    name.push(shell.file_name().unwrap_or(shell.as_os_str()));
    let words = std::iter::once(name).chain(args.into_iter().skip(1));
    words
        .map(|word| Ok(CString::new(word.into_vec())?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(args: &[&str], own: Option<&str>, shell: &str, name: &str) {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        let there = |path: &Path| path != Path::new("/bin/gone");
        let chosen = choose(&args, own.map(OsString::from), there);
        assert_eq!(chosen, Path::new(shell));
        let argv = argv(&chosen, args.clone()).expect("no NUL");
        assert_eq!(argv[0].to_str(), Ok(name));
        let rest = argv[1..].iter().map(|word| word.to_bytes());
        assert!(rest.eq(args[1..].iter().map(|word| word.as_bytes())));
    }

    #[test]
    fn which_shell_runs() {
        check(&["glush"], Some("/bin/zsh"), "/bin/zsh", "zsh");
        check(&["-glush"], Some("/bin/zsh"), "/bin/zsh", "-zsh");
        check(&["glush"], None, "/bin/bash", "bash");
        check(&["glush"], Some("/usr/bin/glush"), "/bin/bash", "bash");
        check(&["glush"], Some("/bin/gone"), "/bin/bash", "bash");
        check(&["glush"], Some("zsh"), "/bin/bash", "bash");
        check(
            &["glush", "-c", "ps"],
            Some("/bin/zsh"),
            "/bin/bash",
            "bash",
        );
        check(&["glush", "./script", "-x"], None, "/bin/bash", "bash");
        let none = choose(&["glush".into()], None, |_| false);
        assert_eq!(none, Path::new("/bin/sh"));
    }
}
