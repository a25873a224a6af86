//! glurun between real nodes: input files, options, signals, many processes.

use std::time::Instant;
use tests::{Cluster, DEADLINE, wait_until};

#[test]
fn a_file_as_input_is_read_as_far_as_the_job_reads_it() {
    let cluster = Cluster::up(2);
    let own = cluster.state().join("own");
    let run = |script: &str| cluster.sh(1, &script.replace("OWN", &own.display().to_string()));
    // More than any buffer on the way, and a file that is on the node alone.
    run("seq 300000 > /cluster/f; seq 20000 > OWN; mkdir /cluster/d").ok();
    for reader in [
        "head -n 1",
        "sed 2q",
        "sh -c 'read a; echo $a'",
        "true",
        "cat",
    ] {
        let script = format!("(glurun -w 2 {reader}; cat) < /cluster/f | cmp - /cluster/f");
        run(&script).ok();
        let twice = format!("(read x; echo $x; glurun -w 2 {reader}; glurun -w 2 {reader}; cat)");
        run(&format!("{twice} < /cluster/f | cmp - /cluster/f")).ok();
    }
    // Where it has to be carried, what the job took at a time is gone: a shell takes single bytes.
    for reader in ["sh -c 'read a; echo $a'", "true", "cat"] {
        run(&format!("(glurun -w 2 {reader}; cat) < OWN | cmp - OWN")).ok();
    }
    run("for i in 1 2 3; do read x; glurun -w 2 true; echo $x; done < OWN | tr '\\n' ' ' | grep -x '1 2 3 '").ok();

    // A user reads what the user may read, and what somebody who may has opened.
    run("chmod 600 /cluster/f").ok();
    let user = "setpriv --reuid 1234 --regid 1234 --clear-groups";
    let given = run(&format!("{user} glurun -w 2 head -n 1 < /cluster/f"));
    assert_eq!(given.ok(), "1");
    let denied = run(&format!("{user} glurun -w 2 cat /cluster/f"));
    assert_eq!(denied.code(), Some(1), "{denied}");
}

#[test]
fn a_pipe_as_input_is_read_as_far_as_the_job_reads_it() {
    let cluster = Cluster::up(2);
    let run = |script: &str| {
        cluster
            .node(1)
            .spawn_command(&["bash", "-c", script])
            .wait(DEADLINE)
    };
    let lines = "cd /; seq 300000 > /tmp/lines.$$; (READERS; cat) < <(cat /tmp/lines.$$) | cmp - /tmp/lines.$$; \
        echo same $?; rm /tmp/lines.$$";
    for readers in [
        "glurun -w 2 sh -c 'read a; echo $a'",
        "glurun -w 2 true",
        "glurun -w 2 cat",
        "glurun -w 2 sed -u 1000q",
        "glurun -w 2 dd bs=500000 count=1 iflag=fullblock status=none",
        "read x; echo $x; glurun -w 2 sh -c 'read a; echo $a'; read x; echo $x; glurun -w 2 -l true",
        "glurun -n 2 -w 2 -i 1 sh -c 'test $GLU_VNN = 0 || { read a; echo $a; }'",
    ] {
        assert_eq!(
            run(&lines.replace("READERS", readers)).ok(),
            "same 0",
            "{readers}"
        );
    }
}

#[test]
fn what_uses_more_memory_than_it_may_is_ended() {
    let cluster = Cluster::up(2);
    for node in [1, 2] {
        let run = |script: &str| {
            let script = script.replace("LIMITED", &format!("cd /; glurun -w {node} --mem 64"));
            cluster.sh(1, &script)
        };
        // tail keeps a line to its end.
        let fits = run("LIMITED --cpus 1 sh -c 'head -c 20M /dev/zero | tail -n 1 | wc -c'");
        assert_eq!(fits.ok(), "20971520");
        let why = format!(
            "glurun: out of memory on node {node}: a process of the job ended, which used more than 64 MiB (--mem)"
        );
        let ended = run("head -c 200M /dev/zero | (LIMITED tail -n 1)");
        assert_eq!(ended.code(), Some(137), "{ended}");
        assert!(ended.stderr.contains(&why), "{ended}");
        // A part of it: the program itself goes on.
        let part = run("LIMITED sh -c 'head -c 200M /dev/zero | tail -n 1; echo went on'");
        assert_eq!(part.stdout, "went on", "{part}");
        assert!(part.stderr.contains(&why), "{part}");
    }
}

#[test]
fn a_job_sees_its_home_s_name() {
    let cluster = Cluster::up(2);
    let run = |script: &str| cluster.sh(1, script).ok();
    let names = run("cd /; hostname && glurun -w 2 hostname && glurun -w 1 hostname");
    let names: Vec<&str> = names.lines().collect();
    let [own, there, here] = names[..] else {
        panic!("{names:?}");
    };
    assert_eq!([there, here], [own; 2]);
    assert_ne!(
        cluster.sh(2, "hostname").ok(),
        own,
        "the host keeps its own"
    );
    assert_eq!(run("TZ=Asia/Tokyo glurun -w 2 date +%Z"), "JST");
}

#[test]
fn commands_on_all_nodes() {
    let cluster = Cluster::up(3);
    let run = |script: &str| cluster.sh(1, script);
    let rule = "----------------";
    let same = run("cd /; glurun -a -b echo hello").ok();
    assert_eq!(same, format!("{rule}\nnode[1-3] (3)\n{rule}\nhello"));
    let others = run("cd /; glurun -a -x 2 -b sh -c 'echo $GLU_NODE; echo err >&2'").ok();
    let expected = format!("{rule}\nnode1\n{rule}\n1\nerr\n{rule}\nnode3\n{rule}\n3\nerr");
    assert_eq!(others, expected);
    assert_eq!(
        run("cd /; glurun -N 2 sh -c 'echo $GLU_NODE' | sort").ok(),
        "1\n2"
    );
    let none = run("cd /; glurun -N 4 true");
    assert_eq!(none.code(), Some(125), "{none}");
    let chosen = "cd /; A=1 B=2 glurun -w 2 -D /usr --export PATH,A sh -c 'pwd; echo $A-$B'";
    assert_eq!(run(chosen).ok(), "/usr\n1-");

    let files = "cd /cluster; glurun -w 2 -D /cluster -o out -e err sh -c 'echo out; echo err >&2'";
    assert_eq!(run(files).ok(), "");
    assert_eq!(run("cd /cluster; cat out err; rm out err").ok(), "out\nerr");
    let nowhere = run("cd /cluster; glurun -o no/where true");
    assert_eq!(nowhere.code(), Some(2), "{nowhere}");

    // Times, and failures that end the others.
    let start = Instant::now();
    let late = run("cd /; glurun -t 0:01 -w 2 sleep 1000");
    assert_eq!(late.code(), Some(124), "{late}");
    let failed = run("cd /; glurun -K -n 3 sh -c '[ $GLU_VNN = 1 ] && exit 3; sleep 1000'");
    assert_eq!(
        failed.code(),
        Some(128 + 15),
        "the highest status: {failed}"
    );
    let waited = run("cd /; glurun -W 1 -n 3 sh -c '[ $GLU_VNN = 1 ] || sleep 1000'");
    assert_eq!(waited.code(), Some(128 + 15), "{waited}");
    assert!(start.elapsed() < DEADLINE, "they end others at once");
    assert_eq!(
        run("glurun --cpus 1 --mem 64 -w 2 sh -c 'echo $GLU_NODE'").ok(),
        "2"
    );
    let large = run("glurun --mem 99999999 true");
    assert_eq!(large.code(), Some(125), "{large}");
    let input = "seq 200000 | glurun -N 3 -i all sh -c 'cksum; [ $GLU_VNN = 0 ] || exit 1'";
    let sums = run(&format!("cd /; {input}"));
    assert_eq!(sums.code(), Some(1), "the highest status: {sums}");
    let mut lines: Vec<&str> = sums.stdout.lines().collect();
    lines.dedup();
    assert_eq!((sums.stdout.lines().count(), lines.len()), (3, 1), "{sums}");
    // Who does not read holds up nobody else.
    let some = "seq 200000 | glurun -N 3 -i all sh -c '[ $GLU_VNN = 1 ] || wc -l'";
    assert_eq!(run(&format!("cd /; {some}")).ok(), "200000\n200000");
    let one_by_one = "cd /; glurun -f 1 -n 3 sh -c 'echo $GLU_VNN; sleep 0.1; echo $GLU_VNN'";
    assert_eq!(run(one_by_one).ok(), "0\n0\n1\n1\n2\n2");
}

/// What one of several processes does with its wire, as programs with an MPI library do.
const ASK: &str = r#"ask() { echo "cmd=$1" >&$PMI_FD; read -r answer <&$PMI_FD; echo "$answer"; }"#;

#[test]
fn processes_of_one_command_find_each_other() {
    let cluster = Cluster::up(3);
    let run = |options: &str, script: &str| {
        let script = format!("{ASK}\n{script}").replace('\'', "'\\''");
        cluster.sh(1, &format!("cd /; glurun {options} bash -c '{script}'"))
    };
    let talk = "ask 'init pmi_version=1 pmi_subversion=1' >/dev/null; \
        ask \"put kvsname=glu key=k$PMI_RANK value=$GLU_NODE\" >/dev/null; ask barrier_in >/dev/null; \
        ask \"get kvsname=glu key=k$(((PMI_RANK + 1) % PMI_SIZE))\"; ask 'get key=PMI_process_mapping'; \
        ask finalize >/dev/null";
    let told = run("-N 3 -n 4 -l", talk).ok();
    let mut lines: Vec<&str> = told.lines().collect();
    lines.sort_unstable();
    let got =
        |of: &str, value: &str| format!("{of}: cmd=get_result rc=0 msg=success value={value}");
    let mut expected = Vec::new();
    for (of, next) in [("0", "2"), ("1", "3"), ("2", "1"), ("3", "1")] {
        expected.extend([
            got(of, "(vector,(0,1,1),(1,1,1),(2,1,1),(0,1,1))"),
            got(of, next),
        ]);
    }
    assert_eq!(lines, expected);

    // Who waits for one that is gone is ended.
    let lost = run("-N 3", "[ $PMI_RANK = 1 ] && exit 3; ask barrier_in");
    assert!(
        lost.stderr
            .contains("process 1 has ended, and others wait for it"),
        "{lost}"
    );
    assert_eq!(lost.code(), Some(128 + 15), "{lost}");
    // Those that do not run at a time do not wait for each other.
    assert_eq!(
        run("-n 3 -f 1", "echo ${PMI_FD:-none}").ok(),
        "none\nnone\nnone"
    );
}

#[test]
fn every_signal_is_sent_on_once() {
    let cluster = Cluster::up(2);
    let signals = "HUP ABRT USR1 USR2 ALRM TERM URG XCPU VTALRM PROF WINCH IO PWR 34 64";
    let traps = "for s in $(echo $SIGNALS); do trap \"echo got $s\" $s; done";
    let job = "echo ready; while :; do sleep 0.02; done";
    let out = cluster.state().join("out");
    let out = out.display();
    let script = format!(
        "cd /; export SIGNALS='{signals}'; glurun -w 2 bash -c '{traps}; {job}' > {out} & \
         until grep -q ready {out}; do sleep 0.05; done; \
         for s in $SIGNALS; do /bin/kill -s $s $! || exit 8; \
         until grep -q \"got $s\\$\" {out}; do sleep 0.05; done; done; \
         kill -KILL $!; wait $!; grep -c got {out}"
    );
    let output = cluster
        .node(1)
        .spawn_command(&["bash", "-c", &script])
        .wait(DEADLINE);
    let count = signals.split(' ').count();
    assert_eq!(output.ok(), count.to_string());
}

#[test]
fn many_processes_lose_nothing() {
    let cluster = Cluster::up(2);
    let own = cluster.state().join("own");
    let run = |script: &str| {
        let script = script.replace("OWN", &own.display().to_string());
        cluster.node(1).sh_within(3 * DEADLINE, &script)
    };
    let script = "cd /; glurun -n 100 sh -c 'seq 5000; seq 2000 >&2' > OWN.o 2> OWN.e; echo $?";
    assert_eq!(run(script).ok(), "0");
    assert_eq!(run("wc -l < OWN.o; wc -l < OWN.e").ok(), "500000\n200000");
    let script = "cd /; glurun -n 1000 sh -c 'echo $GLU_VNN' | sort -n | tr '\\n' ' ' | md5sum; \
                  seq 0 999 | tr '\\n' ' ' | md5sum";
    let output = run(script).ok();
    let sums: Vec<&str> = output.lines().collect();
    assert_eq!(sums[0], sums[1]);
    let script = "cd /; head -c 67108864 /dev/urandom > OWN.r; md5sum < OWN.r; \
                  cat OWN.r | glurun -w 2 cat | md5sum; glurun -w 2 yes | head -n 1";
    let output = run(script).ok();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!((lines[0], lines[2]), (lines[1], "y"));
}

/// A node dies under a command of thirty processes: those that ran there are told, one line each; the others go on, or end with
/// them where that is wished.
#[test]
fn a_node_that_dies_takes_its_processes_alone() {
    let cluster = Cluster::up(3);
    let run = |options: &str| {
        cluster.sh(1, "rm -f /cluster/began").ok();
        let script = "sh -c 'echo >> /cluster/began; sleep 10; echo done'";
        let command = format!("cd /; exec glurun {options} -l -N 3 -n 30 {script}");
        let running = cluster.spawn(1, &command);
        wait_until("thirty processes", DEADLINE, || {
            cluster.sh(1, "wc -l < /cluster/began").stdout.trim() == "30"
        });
        cluster.kill(3);
        running.wait(DEADLINE)
    };
    let ended = run("");
    assert_eq!(ended.code(), Some(125), "{ended}");
    assert_eq!(ended.stdout.matches("done").count(), 20, "{ended}");
    assert_eq!(ended.stderr.matches("glurun: ").count(), 10, "{ended}");

    cluster.start(3);
    wait_until("node 3 takes jobs", DEADLINE, || {
        cluster.sh(1, "glurun -w 3 true").code() == Some(0)
    });
    // The highest status counts, which is that of SIGTERM.
    let ended = run("-K");
    assert_eq!(ended.code(), Some(143), "{ended}");
    assert_eq!(ended.stdout.matches("done").count(), 0, "{ended}");
    for node in 1..=3 {
        let left = cluster.sh(node, "pgrep -x sleep").stdout;
        assert_eq!(left, "", "on node {node}");
    }
}
