//! `glurun --rsh`, as programs call a remote shell.

use tests::Cluster;

#[test]
fn programs_that_want_a_remote_shell_get_one() {
    let cluster = Cluster::up(2);
    let own = cluster.state().join("own").display().to_string();
    let run = |script: &str| cluster.sh(1, &format!("cd /; {}", script.replace("OWN", &own)));
    let words = "glurun --rsh node2 'echo \"$GLU_NODE\";' echo '\"a  b\"'; echo $?";
    assert_eq!(run(words).ok(), "2\na  b\n0");
    assert_eq!(run("echo in | glurun --rsh 2 cat").ok(), "in");
    assert_eq!(run("echo in | glurun --rsh -n 2 cat").ok(), "");
    assert_eq!(run("glurun --rsh 2 exit 3").code(), Some(3));

    // What is not on /cluster goes there and back, whatever bytes it has.
    run("mkdir OWN; cd OWN; mkdir from; head -c 3000000 /dev/urandom > from/big; seq 1000 > from/small").ok();
    let there =
        "rsync --archive --rsh 'glurun --rsh' OWN/from/ node2:OWN/to && diff -r OWN/from OWN/to";
    run(there).ok();
    run("echo more >> OWN/to/big; rsync --archive --rsh 'glurun --rsh' node2:OWN/to/ OWN/back && diff -r OWN/to OWN/back").ok();

    let refused = run("glurun --rsh somebody@node2 true");
    assert_eq!(refused.code(), Some(2), "{refused}");
    assert!(
        refused.stderr.contains("not as somebody"),
        "said what is wrong: {refused}"
    );
    assert_eq!(run("glurun --rsh node7 true").code(), Some(125));
}
