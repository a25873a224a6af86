//! The private mount namespace of a shell: `/cluster/proc` over `/proc`.
//!
//! In it `self` is a directory of the cluster's tree, whose descriptors are texts, not files. `/dev/fd`, `/dev/stdin`
//! and their like therefore lead into the kernel's own procfs, by links mounted over those links.
//!
//! Who is not root needs a user namespace to mount anything. It maps the user alone, so setuid programs do not work
//! in it and other users' files show as `nobody`'s.

use super::processors::Processors;
use super::sys;
use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

/// An empty directory that daemons make beside their socket: nothing outside of a shell is ever in it.
pub(crate) const VIEW_NAME: &str = "view";
/// The directory of those sockets.
const RUN: &str = "/run/glu";

/// Links of `/dev` into `/proc`, and where they lead from `/proc/self`.
const LINKS: [(&str, &str); 4] = [
    ("fd", "fd"),
    ("stdin", "fd/0"),
    ("stdout", "fd/1"),
    ("stderr", "fd/2"),
];

/// Moves this process into such a namespace.
pub(super) fn enter(root: &Path, processors: &Processors) -> Result<()> {
    let (user, group) = (geteuid(), getegid());
    if user.is_root() {
        unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    } else {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUSER).context(
            "cannot make a user namespace (does sysctl allow them? user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)",
        )?;
        let write = |file: &str, text: String| {
            fs::write(format!("/proc/self/{file}"), text).with_context(|| format!("write {file}"))
        };
        write("setgroups", "deny".into())?;
        write("uid_map", format!("{user} {user} 1"))?;
        write("gid_map", format!("{group} {group} 1"))?;
    }
    // What is mounted outside later is seen here, not the other way round.
    let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&str>, "/", None::<&str>, slave, None::<&str>).context("make mounts private")?;
    let view = Path::new(RUN).join(VIEW_NAME);
    mount_links(&view).with_context(|| {
        let view = view.display();
        format!(
            "cannot mount on {view}: the node's daemon makes it if its control_socket is beside it"
        )
    })?;
    processors.show(&view)?;
    bind(root, Path::new("/proc"))
}

fn mount_links(view: &Path) -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let size = Some("mode=755,size=64k");
    mount(Some("glush"), view, Some("tmpfs"), flags, size)?;
    let proc = view.join("proc");
    fs::create_dir(&proc)?;
    bind(Path::new("/proc"), &proc)?;
    for (name, target) in LINKS {
        let (link, device) = (view.join(name), Path::new("/dev").join(name));
        // Some systems have no such links.
        if device.is_symlink() {
            symlink(proc.join("self").join(target), &link)?;
            sys::mount_link(&link, &device).with_context(|| device.display().to_string())?;
        }
    }
    Ok(())
}

pub(super) fn bind(from: &Path, to: &Path) -> Result<()> {
    // With all that is mounted below: without it, that would show what the mounts hide, and so is refused.
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(from), to, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("mount {} on {}", from.display(), to.display()))
}
