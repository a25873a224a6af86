//! Every kind of change is heard by inotify on the other node, as it is on the node that makes it.

use super::{CHANGES, LOCKED, prepare};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;
use tests::{Cluster, Running, wait_until};

const WATCH: &str = env!("CARGO_BIN_EXE_watch");
const PATIENCE: Duration = Duration::from_secs(30);

/// What one of the nodes alone is told (`@`: the directory of the change).
const DIFFERENT: &[(&str, &str)] = &[
    // Opened for writing, and not changed.
    ("O_EXCL create", "IN_CLOSE_WRITE @/absent"),
    ("lock", "IN_CLOSE_WRITE @/f"),
    // A kernel does not tell of stores into its own pages.
    ("write through a shared mapping", "IN_MODIFY @/f"),
];

fn name(kind: &str) -> String {
    kind.replace(' ', "-")
}

/// Returns what was told below a directory, each once: a flush tells of several writes at once. Without the end of what is
/// watched itself, which `events.rs` looks at.
fn told(watcher: &Running, dir: &str) -> BTreeSet<String> {
    let text = watcher.stdout();
    let lines = text.lines().filter(|line| {
        line.contains(&format!(" {dir}/"))
            && !line.contains("/probe")
            && !line.starts_with("IN_DELETE_SELF ")
    });
    let without_cookies = lines.filter_map(|line| line.split(" move ").next());
    without_cookies.map(str::to_owned).collect()
}

#[test]
fn s1_every_kind_of_change_is_heard() {
    let cluster = Cluster::up(2);
    let one = cluster.path(1).join("w");
    fs::create_dir(&one).expect("mkdir");
    for (kind, _) in CHANGES {
        prepare(&one.join(name(kind)));
    }
    flush(&cluster);
    let [near, far] = [1, 2].map(|node| cluster.node(node).spawn_command(&[WATCH, "/cluster/w"]));
    await_watches(&far, &one);
    for (kind, change) in CHANGES {
        change(&one.join(name(kind)), 0);
        *LOCKED.lock().expect("no panic") = None;
    }
    // Content is told when it is flushed, and all in the order in which it came to be seen.
    flush(&cluster);
    fs::create_dir(one.join("end")).expect("mkdir");
    for watcher in [&near, &far] {
        wait_until("the end to be told", PATIENCE, || {
            watcher.stdout().contains("IN_CREATE /cluster/w/end/")
        });
    }
    let mut wrong = Vec::new();
    for (kind, _) in CHANGES {
        let dir = format!("/cluster/w/{}", name(kind));
        let (here, there) = (told(&near, &dir), told(&far, &dir));
        let differ: Vec<_> = here.symmetric_difference(&there).collect();
        let expected = DIFFERENT.iter().filter(|(of, _)| of == kind);
        let expected: Vec<_> = expected
            .map(|(_, event)| event.replace('@', &dir))
            .collect();
        if differ.iter().any(|event| !expected.contains(event)) {
            wrong.push(format!("{kind}: {here:?} on node 1, {there:?} on node 2"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Waits until what is done in all these directories is told.
fn await_watches(watcher: &Running, one: &Path) {
    let mut round = 0;
    wait_until("the watches to count on the other node", PATIENCE, || {
        round += 1;
        let text = watcher.stdout();
        let unheard = CHANGES.iter().filter(|(kind, _)| {
            // Watched last.
            !text.contains(&format!("IN_CREATE /cluster/w/{}/sub/probe", name(kind)))
        });
        let mut all = true;
        for (kind, _) in unheard {
            all = false;
            let probe = one.join(name(kind)).join(format!("sub/probe{round}"));
            fs::create_dir(&probe).expect("mkdir");
            fs::remove_dir(&probe).expect("rmdir");
        }
        all
    });
}

fn flush(cluster: &Cluster) {
    let all = "find /cluster/w -type f -exec sync {} +";
    cluster.sh(1, all).ok();
}
