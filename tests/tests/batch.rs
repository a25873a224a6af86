//! Batch jobs on real nodes: users, scripts, arrays, reservations, and what the loss of the scheduler's node does.

use std::time::Duration;
use tests::{Cluster, DEADLINE, Output, wait_until};

/// As an ordinary user, in a directory of its own.
const USER: &str = "setpriv --reuid 1234 --regid 1234 --clear-groups env HOME=/tmp";
/// A job that a cut-off or lost node has had is started again after 20 s, and the node must be noticed first.
const AGAIN_WITHIN: Duration = Duration::from_secs(60);

fn run(cluster: &Cluster, node: u32, script: &str) -> Output {
    cluster.sh(node, &format!("cd /cluster; {script}"))
}

/// Returns the node whose scheduler works: it writes its pid into the lock's file.
fn scheduler(cluster: &Cluster, asked_on: u32) -> u32 {
    let pid = || run(cluster, asked_on, "cat .glu/batch/lock").stdout;
    let mut node = None;
    wait_until("a scheduler that works", DEADLINE, || {
        let pid = pid();
        let here = |node: &u32| {
            let own = format!("tr '\\0' ' ' < /proc/{}/cmdline", pid.trim());
            cluster.node(*node).sh(&own).stdout.contains("--schedule")
        };
        node = cluster.nodes().map(|node| node.number()).find(here);
        node.is_some()
    });
    node.expect("it was found")
}

#[test]
fn users_submit_scripts_arrays_and_what_waits_for_them() {
    let cluster = Cluster::up(2);
    let run = |node, script: &str| run(&cluster, node, script);
    run(1, "mkdir u && chown 1234:1234 u && chmod 700 u").ok();

    // As its user, with its environment and directory, wherever it runs.
    let script = "#!/bin/sh\n#GLU -n 2 -J two\n#GLU -o two.out\necho $(id -u) $GREETING $GLU_VNN $(umask)\npwd\n";
    run(
        1,
        &format!(
            "printf '{}' > u/two; chmod +x u/two; chown 1234 u/two",
            script.replace('\n', "\\n")
        ),
    )
    .ok();
    let submitted = run(
        1,
        &format!("cd u; umask 27; GREETING=hello {USER} glubatch submit ./two"),
    )
    .ok();
    assert_eq!(submitted, "1");
    assert_eq!(run(2, "glubatch wait 1").code(), Some(0));
    let out = run(2, "sort u/two.out").ok();
    let line = |vnn| format!("1234 hello {vnn} 0027");
    assert_eq!(
        out,
        format!("/cluster/u\n/cluster/u\n{}\n{}", line(0), line(1))
    );
    assert_eq!(run(2, "stat -c '%u %a' u/two.out").ok(), "1234 640");
    assert_eq!(
        run(2, "glubatch show --json 1 | grep -c '\"name\":\"two\"'").ok(),
        "1"
    );

    // Others see it, and change nothing.
    let held = run(
        1,
        &format!("cd u; {USER} glubatch submit --hold -w 2 sh -c 'echo ran; exit 7'"),
    )
    .ok();
    assert_eq!(held, "2");
    let stranger = "setpriv --reuid 4321 --regid 4321 --clear-groups";
    let refused = run(2, &format!("{stranger} glubatch cancel 2"));
    assert!(refused.stderr.contains("job 2 is not yours"), "{refused}");
    assert_eq!(
        run(
            2,
            &format!("{stranger} glubatch list | grep -c '^2 .* held'")
        )
        .ok(),
        "1"
    );
    let secret = run(2, &format!("{stranger} cat .glu/batch/env/2"));
    assert!(secret.stderr.contains("Permission denied"), "{secret}");
    run(
        2,
        &format!("{USER} glubatch submit -D /cluster/u -d afterok:2 true"),
    )
    .ok();
    run(
        2,
        &format!("{USER} glubatch submit -D /cluster/u -d afternotok:2 touch came"),
    )
    .ok();
    run(2, &format!("{USER} glubatch release 2")).ok();
    assert_eq!(run(1, "glubatch wait 2 4").code(), Some(7));
    assert_eq!(
        run(1, "cat u/glubatch-2.out; ls u/came").ok(),
        "ran\nu/came"
    );
    assert_eq!(
        run(1, "glubatch wait 3").code(),
        Some(125),
        "what it waited for can never be"
    );

    // What it asks for it may use, and no more.
    let large = "head -c 200M /dev/zero | tail -n 1";
    let limited = format!(
        "cd u; {USER} glubatch submit -c 1 --mem 64 --no-requeue -o large sh -c '{large}; exit 7'"
    );
    let number = run(1, &limited).ok();
    let ended = run(2, &format!("glubatch wait {number}"));
    assert_eq!(ended.code(), Some(7), "the shell goes on: {ended}");
    let told = run(2, "cat u/large").ok();
    let why = "a process of the job ended, which used more than 64 MiB (--mem)";
    assert!(told.contains(why), "{told}");
    // What cannot be is refused, and says why.
    for (line, why) in [
        ("submit -p nowhere true", "no partition `nowhere`"),
        ("submit -d after:99 true", "no job 99"),
        ("cancel 99", "no job 99"),
        ("submit -n 0 true", "0 is not in"),
        ("wait 99", "no job 99"),
    ] {
        let refused = run(1, &format!("glubatch {line}"));
        assert!(
            refused.stderr.contains(why) && refused.stderr.lines().count() == 1,
            "{refused}"
        );
    }
    run(1, "printf garbage > .glu/batch/requests/x.json; mkfifo .glu/batch/requests/y.json; ln -s /etc/passwd .glu/batch/requests/z.json").ok();
    let nowhere = run(
        1,
        &format!("{USER} glubatch submit -D /cluster -o no/where true"),
    )
    .ok();
    assert_eq!(run(1, &format!("glubatch wait {nowhere}")).code(), Some(2));
    let reason = run(1, &format!("glubatch show {nowhere}")).ok();
    assert!(reason.contains("cannot be written"), "{reason}");

    // An array, two at a time, of which one is taken out.
    let array = run(
        1,
        "glubatch submit -a 1-6%2 -o /dev/null sh -c 'echo $GLU_ARRAY_INDEX >> list; sleep 0.2'",
    )
    .ok();
    run(1, &format!("glubatch cancel {array}_6")).ok();
    run(
        2,
        &format!("glubatch wait {array}_1 {array}_2 {array}_3 {array}_4 {array}_5"),
    )
    .ok();
    assert_eq!(run(2, "sort list | tr -d '\\n'").ok(), "12345");
    assert_eq!(
        run(
            2,
            &format!("glubatch list -a | grep -c '^{array}_6 .* cancelled'")
        )
        .ok(),
        "1"
    );

    // What glurun is to leave alone is a job, and ends with nothing of the one who asked.
    let detached = "sh -c 'A=5 glurun --detach --private net -w 2 sh -c \"sleep 0.3; echo \\$A \\$GLU_NODE; readlink /proc/self/ns/net\"'";
    let detached = run(1, detached).ok();
    run(2, &format!("glubatch wait {detached}")).ok();
    let said = run(2, &format!("cat glurun-{detached}.out")).ok();
    let network = said.strip_prefix("5 2\n").expect("its output");
    assert_ne!(network, run(2, "readlink /proc/self/ns/net").ok());

    // Time, and a program that does not want to end.
    let long = run(1, "glubatch submit -t 0:01 -o /dev/null sh -c 'trap : TERM; sleep 1000 & wait; echo late > late'").ok();
    assert_eq!(run(2, &format!("glubatch wait {long}")).code(), Some(125));
    assert_eq!(
        run(
            2,
            &format!("glubatch list -a | grep -c '^{long} .* timeout'")
        )
        .ok(),
        "1"
    );
}

#[test]
fn reserved_nodes_are_for_their_users() {
    let cluster = Cluster::up(2);
    let run = |script: &str| run(&cluster, 1, script);
    run("glupart set pair -w 1-2 --owners 1234 --time 60").ok();
    let job =
        run("glubatch submit -p pair -w 2 -o /dev/null sh -c 'echo $$ >> runs; sleep 1000'").ok();
    wait_until("the job", DEADLINE, || !run("cat runs").stdout.is_empty());

    let reserve = format!("{USER} glupart reserve demo -w 2 -t 10");
    run(&reserve).ok();
    assert_eq!(run("glupart list | grep -c '^demo '").ok(), "1");
    let left = || run(&format!("glubatch list | grep '^{job} '")).stdout;
    wait_until("the job to leave the node", DEADLINE, || {
        left().contains("waiting")
    });
    let own = run(&format!(
        "mkdir v; chown 1234 v; {USER} glubatch submit -D /cluster/v -w 2 true"
    ))
    .ok();
    assert_eq!(run(&format!("glubatch wait {own}")).code(), Some(0));
    assert!(left().contains("waiting"), "{}", left());

    // Nor does what is no batch job start there for others.
    let here = |who: &str| run(&format!("{who} glurun -w 2 cat /cluster/proc/self/where"));
    let stranger = "setpriv --reuid 4321 --clear-groups";
    let refused = here(stranger);
    let why = "node 2 is reserved for others than user 4321 (`demo`): `glupart list`";
    assert_eq!(refused.code(), Some(125), "{refused}");
    assert!(refused.stderr.contains(why), "{refused}");
    assert_eq!(here(USER).ok(), "2");

    let other = run("setpriv --reuid 4321 --clear-groups glupart unreserve demo");
    assert!(other.stderr.contains("not yours"), "{other}");
    run(&format!("{USER} glupart unreserve demo")).ok();
    assert_eq!(here(stranger).ok(), "2");
    wait_until("the job to begin again", DEADLINE, || {
        left().contains("running")
    });
    run(&format!("glubatch cancel {job}")).ok();
    run(&format!("glubatch wait {job}"));
    assert_eq!(run("wc -l < runs").ok(), "2");
}

/// What a job does of which two at a time would be seen.
const ONCE: &str = "exec 9> once; flock -n 9 || echo twice >> twice; echo $GLU_NODE >> runs";

#[test]
fn the_queue_outlives_the_scheduler_s_node() {
    let cluster = Cluster::up(3);
    let first = scheduler(&cluster, 1);
    let [other, elsewhere] = [first % 3 + 1, (first + 1) % 3 + 1];
    let run = |script: &str| run(&cluster, other, script);
    let submit = |options: &str, script: &str| {
        run(&format!(
            "glubatch submit -o /dev/null {options} sh -c '{script}'"
        ))
        .ok()
    };
    // One runs when its scheduler goes, one waits for it, and one does not want to be started again.
    let on = format!("-w {elsewhere}");
    let ends = "[ $(wc -l < runs) = 1 ] && sleep 1000; echo done >> ends";
    let job = submit(&on, &format!("{ONCE}; {ends}"));
    let once = submit(&format!("{on} --no-requeue"), "sleep 1000");
    let next = submit(&format!("-d afterok:{job}"), "echo next >> ends");
    wait_until("the job", DEADLINE, || !run("cat runs").stdout.is_empty());

    cluster.kill(first);
    assert_ne!(scheduler(&cluster, other), first);
    let wait = format!("cd /cluster; glubatch wait {job} {next}");
    let waited = cluster.node(other).sh_within(AGAIN_WITHIN, &wait);
    assert_eq!(waited.code(), Some(0), "{waited}");
    assert_eq!(run("cat ends").ok(), "done\nnext");
    assert_eq!(run("wc -l < runs").ok(), "2");
    assert_eq!(
        run("ls twice").code(),
        Some(2),
        "the job ran twice at a time"
    );
    let lost = run(&format!("glubatch list -a | grep -c '^{once} .* lost'"));
    assert_eq!(lost.ok(), "1");
}

#[test]
fn a_scheduler_that_is_cut_off_ends_its_jobs_before_another_starts_them() {
    let cluster = Cluster::up(3);
    let first = scheduler(&cluster, 1);
    let other = first % 3 + 1;
    let run = |script: &str| run(&cluster, other, script);
    let own = cluster.state().join("alive");
    let own = own.display();
    // Of the node alone, so that it can be read while that is cut off.
    let alive = format!("while :; do date +%s > {own}; sleep 0.2; done");
    let job = run(&format!(
        "glubatch submit -o /dev/null -w {first} sh -c '{ONCE}; {alive}'"
    ))
    .ok();
    wait_until("the job", DEADLINE, || !run("cat runs").stdout.is_empty());
    cluster.cut(first);
    wait_until("another scheduler", AGAIN_WITHIN, || {
        scheduler(&cluster, other) != first
    });
    let waits = || run(&format!("glubatch list | grep '^{job} .* waiting'"));
    wait_until("the job to be put back", DEADLINE, || {
        waits().code() == Some(0)
    });
    let put_back = run("date +%s -r $(ls -t .glu/batch/jobs/*.json | head -n 1)").ok();
    let put_back: u64 = put_back.parse().expect("seconds");
    let pgrep = "! pgrep -f '[d]ate +%s > '";
    wait_until("the end of what was cut off", DEADLINE, || {
        cluster.sh(first, pgrep).code() == Some(0)
    });
    let last = cluster.sh(other, &format!("cat {own}")).ok();
    let last: u64 = last.parse().expect("seconds");
    assert!(
        last < put_back + 20,
        "it ran until {last} and may be started 20 s after {put_back}"
    );
    cluster.heal(first);
    let again = || run("wc -l < runs").stdout == "2";
    wait_until("the job to begin again", AGAIN_WITHIN, again);
    assert_eq!(
        run("ls twice").code(),
        Some(2),
        "the job ran twice at a time"
    );
    run(&format!("glubatch cancel {job}")).ok();
}
