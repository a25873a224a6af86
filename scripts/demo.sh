#!/usr/bin/env bash
# The main job, on three nodes that are one machine's namespaces: build Lua across them, edit here, compile there,
# relink elsewhere, and count what went wrong. KEEP=1 leaves the cluster up.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
glu=$root/target/release/glu
state=${STATE:-/var/tmp/glu-demo}
cycles=${CYCLES:-20}
tree=/cluster/lua
began=$(date +%s.%N)
step=0
log=$(mktemp)

say() { step=$((step + 1)); printf '\n[%d/8] %s\n' "$step" "$*"; }
fail() { printf 'demo: %s\n' "$*" >&2; exit 1; }
on() { local node=$1; shift; "$glu" dev exec --state "$state" "$node" -- "$@"; }
at() { local node=$1; shift; on "$node" sh -c "cd $tree && $*"; }
since() { awk -v a="$1" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f s", b - a }'; }

finish() {
	status=$?
	rm -f "$log"
	if [ "${KEEP:-}" = 1 ] && [ "$status" = 0 ]; then
		printf '\nThe cluster stays up. Step into a node:\n  %s dev shell --state %s 2\nTake it down:\n  %s dev down --state %s\n' \
			"$glu" "$state" "$glu" "$state"
	else
		"$glu" dev down --state "$state" || status=1
	fi
	exit "$status"
}

[ "$(id -u)" = 0 ] || fail "needs root for namespaces and mounts: run it with sudo"
[ -x "$glu" ] || fail "$glu is missing: run 'make demo'"

say "sources of Lua out of the crate lua-src"
cargo fetch --quiet --locked --manifest-path "$root/scripts/demo/Cargo.toml"
crate=$(cargo metadata --quiet --locked --format-version 1 --manifest-path "$root/scripts/demo/Cargo.toml" |
	grep -o '"manifest_path":"[^"]*/lua-src-[^"]*/Cargo.toml"' | cut -d'"' -f4 | xargs dirname)
sources=$(ls -d "$crate"/lua-5.4.*)
printf '%s: %s files\n' "$(basename "$sources")" "$(find "$sources" -name '*.[ch]' | wc -l)"

say "three nodes, each with its own network, mounts, processes and host name"
"$glu" dev down --state "$state" >/dev/null 2>&1 || true
trap finish EXIT
t=$(date +%s.%N)
"$glu" dev up --nodes 3 --state "$state"
up_time=$(since "$t")

say "the sources go into /cluster on node 1"
t=$(date +%s.%N)
on 1 mkdir -p $tree/obj
tar -C "$sources" -cf - . | on 1 sh -c "mkdir -p $tree/src && tar -C $tree/src -xf -"
on 1 sh -c "cat > $tree/src/main.c" <"$root/scripts/demo/main.c"
on 1 sh -c "cat > $tree/Makefile" <"$root/scripts/demo/lua.mk"
on 1 sh -c "cat > $tree/try.lua" <"$root/scripts/demo/try.lua"
copy_time=$(since "$t")
printf 'node 3 sees %s files\n' "$(on 3 sh -c "find $tree -type f | wc -l")"

say "glumake on node 1"
t=$(date +%s.%N)
on 1 sh -c "cd $tree && glumake -j6 lua" | tee "$log"
build_time=$(since "$t")
awk '/^(compile|link)/ { n[$NF]++ } END { for (node in n) printf "  %s ran %d recipes\n", node, n[node] }' "$log" | sort
for node in node1 node2 node3; do
	grep -q "^compile .* on $node\$" "$log" || fail "no compile ran on $node"
done

say "$cycles cycles: edit on one node, compile on the next, relink on the third"
decisions=0 wrong=0 looks=0 stale=0
t=$(date +%s.%N)
files=(lapi lauxlib lbaselib lcode lgc lvm ltable lstring lparser lobject)
check() { # NAME EXPECTED ACTUAL
	decisions=$((decisions + 1))
	[ "$2" = "$3" ] || { wrong=$((wrong + 1)); printf 'WRONG DECISION: %s: expected "%s", got "%s"\n' "$1" "$2" "$3"; }
}
for ((i = 1; i <= cycles; i++)); do
	a=$((i % 3 + 1)) b=$(((i + 1) % 3 + 1)) c=$(((i + 2) % 3 + 1))
	file=${files[i % ${#files[@]}]}
	at $a "echo 'const char glu_edit_$i[] = \"edit $i\";' >> src/$file.c"
	check "cycle $i: compile on node $b" "compile src/$file.c on node$b" "$(at $b "make obj/$file.o" | grep -v '^make')"
	check "cycle $i: relink on node $c" "link lua on node$c" "$(at $c "make lua" | grep -v '^make')"
	check "cycle $i: nothing to do on node $a" "edit $i" "$(at $a "make -q lua && grep -ao 'edit $i' lua | head -1")"
	truth=$(at $c "stat -c '%n %i %s %.Y %.Z %a' src/$file.c obj/$file.o lua")
	for node in $a $b; do
		looks=$((looks + 3))
		seen=$(at $node "stat -c '%n %i %s %.Y %.Z %a' src/$file.c obj/$file.o lua")
		differ=$(diff <(echo "$truth") <(echo "$seen") | grep -c '^>' || true)
		stale=$((stale + differ))
	done
	printf '\r  cycle %d/%d: %d decisions, %d wrong; %d observations, %d stale' "$i" "$cycles" "$decisions" "$wrong" "$looks" "$stale"
done
cycle_time=$(since "$t")
echo

say "the program that was built runs on every node"
for node in 1 2 3; do printf 'node %d: ' $node; at $node ./lua try.lua; done

say "devices and processes of the other nodes"
echo "ls -l /cluster/node3/dev on node 1 (the first lines):"
on 1 ls -l /cluster/node3/dev | sed -n 1,8p
on 3 sleep 300 &
sleeper=$!
pid=
for _ in $(seq 100); do
	pid=$(on 3 sh -c 'ps -eo pid=,args=' | awk '$2 == "sleep" && $3 == "300" { print $1; exit }')
	[ -n "$pid" ] && break
	read -rt 0.1 <> <(:) || true
done
[ -n "$pid" ] || fail "the process on node 3 did not appear within 10 s"
where=$(on 1 cat "/cluster/proc/$pid/where")
printf 'cat /cluster/proc/%s/where on node 1: %s\n' "$pid" "$where"
kill "$sleeper"
wait "$sleeper" 2>/dev/null || true
[ "$where" = 3 ] || fail "process $pid of node 3 is said to be on node $where"

say "summary"
printf '  cluster up          %s\n  copy of the sources %s\n  build by glumake    %s\n  %d cycles           %s\n  all                 %s\n' \
	"$up_time" "$copy_time" "$build_time" "$cycles" "$cycle_time" "$(since "$began")"
printf '  decisions of make: %d, wrong: %d\n  observations: %d, stale: %d\n' "$decisions" "$wrong" "$looks" "$stale"
[ "$wrong" = 0 ] && [ "$stale" = 0 ] || fail "$wrong wrong decisions, $stale stale observations"
