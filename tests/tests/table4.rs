//! The case of GLUnix's Table 4: edit a source, compile it on another node, relink here, run. On a file system with stale
//! attributes the run shows an old edit now and then.

use std::time::{Duration, Instant};
use tests::Cluster;

/// Cycles of each maker; `ROUNDS` asks for more.
fn rounds() -> u32 {
    let rounds = std::env::var("ROUNDS").ok();
    rounds.map_or(10, |rounds| rounds.parse().expect("a number"))
}

/// One maker: every cycle changes one of two sources, has make compile it elsewhere, links here, and runs the program.
const CYCLES: &str = r#"
set -e
mkdir /cluster/m$MAKER; cd /cluster/m$MAKER
cat > Makefile <<'END'
prog: a.o b.o
	cc -o prog a.o b.o
%.o: %.c
	glurun -w 2,3 cc -c -o $@ $<
END
printf 'int b(void);\n#include <stdio.h>\nint main(void) { printf("%%d %%d\\n", A, b()); }\n' > a.tail
one() { printf '#define A %d\n' $1 | cat - a.tail > a.c; a=$1; }
two() { printf 'int b(void) { return %d; }\n' $1 > b.c; b=$1; }
one 0; two 0
wrong=0
for cycle in $(seq $ROUNDS); do
    case $((cycle % 2)) in 0) one $cycle;; 1) two $cycle;; esac
    make -s >&2
    [ "$(./prog)" = "$a $b" ] || wrong=$((wrong + 1))
done
echo wrong $wrong
"#;

fn cycles(makers: u32, rounds: u32) {
    let cluster = Cluster::up(3);
    let start = Instant::now();
    let running: Vec<_> = (0..makers)
        .map(|maker| {
            cluster.spawn(
                1,
                &format!("export MAKER={maker} ROUNDS={rounds}\n{CYCLES}"),
            )
        })
        .collect();
    let patience = Duration::from_secs(60) + Duration::from_secs(2) * makers * rounds;
    for maker in running {
        assert_eq!(maker.wait(patience).ok(), "wrong 0");
    }
    println!(
        "{makers} makers, {rounds} cycles each: {:?}",
        start.elapsed()
    );
}

#[test]
fn what_was_edited_is_what_runs() {
    cycles(1, rounds());
}

#[test]
fn what_was_edited_is_what_runs_of_eight_makes_at_once() {
    cycles(8, rounds().div_ceil(8));
}

#[test]
#[ignore = "a gibibyte through all buffers: make test-long"]
fn a_gibibyte_through_cat_is_the_same() {
    let cluster = Cluster::up(2);
    let script = "cd /; head -c 1073741824 /dev/urandom | tee >(sha256sum > /tmp/sent.$$) | \
        glurun -w 2 cat | sha256sum > /tmp/got.$$; sleep 0; wait; cmp /tmp/sent.$$ /tmp/got.$$; echo same $?; \
        rm /tmp/sent.$$ /tmp/got.$$";
    let within = Duration::from_secs(600);
    let output = cluster
        .node(1)
        .spawn_command(&["bash", "-c", script])
        .wait(within);
    assert_eq!(output.ok(), "same 0");
}
