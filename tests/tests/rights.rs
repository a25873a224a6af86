//! Whom nodes are for: `/cluster/node<N>` says who may run processes there.
//!
//! Needs root and /dev/fuse.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};
use tests::{Cluster, Output, moves, wait_until};

const LONG: Duration = Duration::from_secs(60);
const STRANGER: &str = "setpriv --reuid 4321 --regid 4321 --clear-groups";
const MEMBER: &str = "setpriv --reuid 4322 --regid 4321 --groups 5,77";
const HERE: &str = "cat /cluster/proc/self/where";

#[test]
fn a_node_runs_whom_it_is_for() {
    let cluster = Cluster::up(3);
    let run = |node, script: &str| cluster.node(node).sh_within(LONG, script);
    let shown = |node| run(node, "stat -c %a:%u:%g /cluster/node3").ok();
    // Everybody, as long as nobody has said otherwise.
    assert_eq!(shown(2).trim(), "555:0:0");
    let there = |who: &str| run(1, &format!("{who} glurun -w 3 {HERE}"));
    assert_eq!(there(STRANGER).ok().trim(), "3");
    let refused = run(1, &format!("{STRANGER} chmod 777 /cluster/node3"));
    assert!(refused.to_string().contains("not permitted"), "{refused}");

    run(1, "chgrp 77 /cluster/node3 && chmod 750 /cluster/node3").ok();
    assert_eq!(shown(2).trim(), "750:0:77");
    for node in [1, 3] {
        let refused = run(node, &format!("{STRANGER} glurun -w 3 true"));
        assert_eq!(refused.code(), Some(125), "{refused}");
        let why = "node 3 is closed to user 4321: `ls -ld /cluster/node3` shows whom it is for";
        assert!(refused.to_string().contains(why), "{refused}");
    }
    assert_eq!(there(MEMBER).ok().trim(), "3");
    assert_eq!(there("").ok().trim(), "3");
    // Where it is all the same, one that is open.
    let anywhere = run(1, &format!("{STRANGER} glurun -n 9 {HERE}")).ok();
    assert_eq!(anywhere.lines().count(), 9, "{anywhere}");
    assert!(!anywhere.contains('3'), "{anywhere}");
    let open = run(1, &format!("{STRANGER} glurun -w 2-3 {HERE}")).ok();
    assert_eq!(open.trim(), "2");
    let nodes = run(2, "glu nodes --json").ok();
    let nodes: serde_json::Value = serde_json::from_str(&nodes).expect("json");
    let third = &nodes[2];
    assert_eq!((&third["mode"], &third["gid"]), (&0o750.into(), &77.into()));
    assert_eq!(run(2, "glu nodes").ok().lines().count(), 4);

    // A batch job waits until it is let in, and says so.
    let submit = "cd /tmp && glubatch submit -w 3 -o /dev/null -e /dev/null true";
    let job = run(1, &format!("{STRANGER} sh -c '{submit}'")).ok();
    let job = job.trim();
    wait_until("the reason", LONG, || {
        let shown = run(1, &format!("glubatch show {job}")).ok();
        shown.contains("the nodes that it may use have 0")
    });
    // Its new owner lets everybody in.
    run(1, "chown 4322 /cluster/node3").ok();
    run(2, &format!("{MEMBER} chmod 755 /cluster/node3")).ok();
    run(1, &format!("glubatch wait {job}")).ok();
    // Kept over the loss of the leader, and of a daemon that has known it.
    run(1, "chmod 700 /cluster/node3").ok();
    for node in [1, 2] {
        cluster.kill(node);
        cluster.start(node);
    }
    wait_until("the rights", LONG, || {
        cluster
            .sh(2, "stat -c %a:%u /cluster/node3")
            .to_string()
            .contains("700:4322")
    });
    let refused = run(2, &format!("{STRANGER} glurun -w 3 true"));
    assert_eq!(refused.code(), Some(125), "{refused}");
}

/// A cluster whose node 2 has a console.
struct Desk {
    cluster: Cluster,
    console: PathBuf,
}

impl Desk {
    /// `more`: what else is in its `[desktop]`.
    fn new(more: &str) -> Self {
        let cluster = moves::cluster_that_moves(2);
        let console = cluster.state().join("desk");
        let desk = Self { cluster, console };
        desk.use_it(7200);
        let path = desk.cluster.state().join("node2/glud.toml");
        let config = fs::read_to_string(&path).expect("its configuration");
        let console = &desk.console;
        let section = format!("[desktop]\nidle_s = 3600\nwatch = [{console:?}]\n{more}\n[tls]");
        fs::write(&path, config.replacen("[tls]", &section, 1)).expect("written");
        desk.cluster.kill(2);
        desk.cluster.start(2);
        desk.becomes("0");
        // The connection of before is given up after a while.
        wait_until("node 2 to take guests", LONG, || {
            desk.run(1, "glurun -w 2 true").status.success()
        });
        desk
    }

    fn run(&self, node: u32, script: &str) -> Output {
        self.cluster.node(node).sh_within(LONG, script)
    }

    /// Uses it, so many seconds ago.
    fn use_it(&self, ago: u64) {
        let file = fs::File::create(&self.console).expect("its console");
        let at = SystemTime::now() - Duration::from_secs(ago);
        file.set_times(fs::FileTimes::new().set_accessed(at))
            .expect("its last use");
    }

    fn becomes(&self, value: &str) {
        wait_until("what node 2 says of itself", LONG, || {
            let shown = self.run(1, "cat /cluster/proc/cluster/node2/in_use");
            shown.status.success() && shown.stdout.trim() == value
        });
    }
}

#[test]
fn guests_that_stay_stand_still_while_the_owner_works() {
    let desk = Desk::new("freeze = true\n");
    // Files of the tree: one that is open on its node alone ties a job to it.
    let works = |name: &str| format!("sh -c 'while sleep 0.1; do echo >> /cluster/{name}; done'");
    // From node 1 three on node 2, and one of its own.
    let guest = desk
        .cluster
        .spawn(1, &format!("exec glurun -w 2 {}", works("guest")));
    let killed = desk
        .cluster
        .spawn(1, &format!("exec glurun -w 2 {}", works("killed")));
    let _mover = desk
        .cluster
        .spawn(1, &format!("exec glurun -w 2 {}", works("mover")));
    let _own = desk
        .cluster
        .spawn(2, &format!("exec glurun -w 2 {}", works("own")));
    let size = |name: &str| {
        let about = fs::metadata(desk.cluster.path(1).join(name));
        about.map_or(0, |about| about.len())
    };
    wait_until("jobs that work", LONG, || {
        ["guest", "killed", "mover", "own"]
            .iter()
            .all(|name| size(name) > 0)
    });
    desk.use_it(0);
    desk.becomes("1");
    wait_until("guests that stand still", LONG, || {
        let (guests, own) = (size("guest") + size("killed"), size("own"));
        wait_until("work of the node's own", LONG, || size("own") > own + 10);
        size("guest") + size("killed") == guests
    });
    // For longer than the silence after which a node counts as lost; one is killed meanwhile.
    drop(killed);
    wait_until("the end of a killed one", LONG, || {
        desk.run(2, "pgrep -f '^sh -c while.*/killed'").code() == Some(1)
    });
    let (still, own) = (size("guest"), size("own"));
    wait_until("work of the node's own", LONG, || size("own") > own + 130);
    assert_eq!(size("guest"), still);
    // One that moves away goes on there.
    let mover = desk.run(2, "pgrep -f '^sh -c while.*/mover'").ok();
    let before = size("mover");
    desk.run(1, &format!("echo 1 > /cluster/proc/{mover}/goto"))
        .ok();
    wait_until("one that has moved to go on", LONG, || {
        size("mover") > before + 5
    });
    desk.use_it(7200);
    desk.becomes("0");
    wait_until("guests that go on", LONG, || size("guest") > still + 5);
    drop(guest);
    wait_until("the end of a job", LONG, || {
        desk.run(2, "pgrep -f '^sh -c while.*/guest'").code() == Some(1)
    });
}

#[test]
fn a_node_says_which_users_of_other_nodes_it_takes() {
    let cluster = moves::cluster_that_moves(2);
    let path = cluster.state().join("node2/glud.toml");
    let config = fs::read_to_string(&path).expect("its configuration");
    let guests = "[guests]\nroot = false\nstrangers = false\n[tls]";
    fs::write(&path, config.replacen("[tls]", guests, 1)).expect("written");
    cluster.kill(2);
    cluster.start(2);
    let nobody = "setpriv --reuid nobody --clear-groups";
    wait_until("node 2 to take guests", LONG, || {
        cluster.sh(1, &format!("{nobody} glurun -w 2 true")).code() == Some(0)
    });
    for (who, why) in [
        ("", "node 2 takes no processes of other nodes' root"),
        (STRANGER, "node 2 has no account for user 4321"),
    ] {
        let refused = cluster.sh(1, &format!("{who} glurun -w 2 true"));
        assert_eq!(refused.code(), Some(125), "{refused}");
        assert!(refused.to_string().contains(why), "{refused}");
        // It is about guests alone.
        cluster.sh(2, &format!("{who} glurun -w 2 true")).ok();
    }

    // Nor does it take them when they have begun elsewhere.
    let job = cluster.spawn(
        1,
        "cd /; exec glurun -w 1 sh -c 'echo $$; while :; do sleep 1; done'",
    );
    wait_until("a job", LONG, || !job.stdout().is_empty());
    let pid = job.stdout().trim().to_owned();
    let moved = cluster.sh(1, &format!("migrate {pid} 2"));
    assert!(!moved.status.success(), "{moved}");
    let place = cluster
        .sh(1, &format!("cat /cluster/proc/{pid}/where"))
        .ok();
    assert_eq!(place, "1", "it goes on where it was");
}

#[test]
fn a_node_at_which_somebody_works_takes_no_guests() {
    let desk = Desk::new("");
    let run = |node, script: &str| desk.run(node, script);
    desk.use_it(0);
    desk.becomes("1");
    let refused = run(1, "glurun -w 2 true");
    assert_eq!(refused.code(), Some(125), "{refused}");
    let why = "node 2 takes no processes of other nodes while somebody works at it";
    assert!(refused.to_string().contains(why), "{refused}");
    // Elsewhere there is room, and its own programs run.
    let anywhere = run(1, &format!("glurun -n 5 {HERE}")).ok();
    assert!(!anywhere.contains('2'), "{anywhere}");
    assert_eq!(run(2, &format!("glurun -w 2 {HERE}")).ok().trim(), "2");
    let shown = run(1, "glustat").ok();
    let line = shown.lines().find(|line| line.contains("inuse"));
    let told = line.is_some_and(|line| line.contains("somebody works at it"));
    assert!(told, "{shown}");

    desk.use_it(7200);
    desk.becomes("0");
    run(1, "glurun -w 2 true").ok();

    // A guest that is levelled leaves when the owner comes back.
    run(1, "printf '#!/bin/sh\\necho $$; while :; do sleep 1; done\\n' > /cluster/guest; chmod 755 /cluster/guest").ok();
    run(1, "echo guest > /cluster/proc/cluster/loadlevellist").ok();
    let guest = desk
        .cluster
        .spawn(1, "cd /; exec glurun -w 2 /cluster/guest");
    wait_until("a guest", LONG, || !guest.stdout().is_empty());
    let file = |name: &str| {
        let pid = guest.stdout();
        run(1, &format!("cat /cluster/proc/{}/{name}", pid.trim())).stdout
    };
    assert_eq!(file("where").trim(), "2");
    desk.use_it(0);
    wait_until("the guest to leave", LONG, || file("where").trim() == "1");
    assert_eq!(file("nmigs").trim(), "1");
}
