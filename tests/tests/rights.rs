//! Whom nodes are for: `/cluster/node<N>` says who may run processes there.
//!
//! Needs root and /dev/fuse.

use std::fs;
use std::time::{Duration, SystemTime};
use tests::{Cluster, wait_until};

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

#[test]
fn a_node_at_which_somebody_works_takes_no_guests() {
    let cluster = Cluster::up(2);
    let run = |node, script: &str| cluster.node(node).sh_within(LONG, script);
    let desk = cluster.state().join("desk");
    let use_it = |ago: u64| {
        let file = fs::File::create(&desk).expect("its console");
        let at = SystemTime::now() - Duration::from_secs(ago);
        file.set_times(fs::FileTimes::new().set_accessed(at))
            .expect("its last use");
    };
    use_it(7200);
    let path = cluster.state().join("node2/glud.toml");
    let config = fs::read_to_string(&path).expect("its configuration");
    let section = format!("[desktop]\nidle_s = 3600\nwatch = [{desk:?}]\n\n[tls]");
    fs::write(&path, config.replacen("[tls]", &section, 1)).expect("written");
    cluster.kill(2);
    cluster.start(2);
    let becomes = |value: &str| {
        wait_until("what node 2 says of itself", LONG, || {
            let shown = run(1, "cat /cluster/proc/cluster/node2/in_use");
            shown.status.success() && shown.stdout.trim() == value
        });
    };
    becomes("0");
    // The connection of before is given up after a while.
    wait_until("node 2 to take guests", LONG, || {
        run(1, "glurun -w 2 true").status.success()
    });

    use_it(0);
    becomes("1");
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

    use_it(7200);
    becomes("0");
    run(1, "glurun -w 2 true").ok();
}
