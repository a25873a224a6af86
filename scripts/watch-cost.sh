#!/usr/bin/env bash
# What it costs to look for watchers: the processor time of a node's daemon over 30 s, with 300 processes that sleep
# beside it.
# The table goes to standard output; docs/results/watchers.md keeps it.
#
#   EACH=30 PROCESSES=300 scripts/watch-cost.sh
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
bin=${GLU_BIN_DIR:-$target/debug}
watch=${WATCH:-$target/debug/watch}
state=${STATE:-$target/tmp/glu-watch-cost}
each=${EACH:-30}
processes=${PROCESSES:-300}
# Ends what goes on, on all nodes: they have this machine's files.
stop=$state.stop
children=()

finish() {
	code=$?
	[ ${#children[@]} = 0 ] || kill "${children[@]}" 2>/dev/null || true
	"$bin/glu" dev down --state "$state" || code=1
	rm -f "$stop"
	exit "$code"
}

on() { local node=$1; shift; "$bin/glu" dev exec --state "$state" "$node" -- "$@"; }

# Starts something on a node that goes on until the end of this script.
begin() {
	on "$@" >/dev/null 2>&1 </dev/null &
	children+=($!)
}

# Milliseconds that node 2's daemon has run.
ran() { on 2 cat "/proc/$daemon/stat" | awk -v hz="$(getconf CLK_TCK)" '{ sub(/.*\) /, ""); print ($12 + $13) * 1000 / hz }'; }

row() {
	local before after
	# What began with the situation is over by then.
	sleep 6
	before=$(ran)
	sleep "$each"
	after=$(ran)
	printf '| %s | %s ms |\n' "$1" $((after - before))
}

[ "$(id -u)" = 0 ] || { echo "needs root for namespaces and mounts: run it with sudo" >&2; exit 1; }
rm -f "$stop"
"$bin/glu" dev down --state "$state" >/dev/null 2>&1 || true
trap finish EXIT
"$bin/glu" dev up --nodes 2 --state "$state" >&2
on 1 mkdir -p /cluster/dir/watched
# shellcheck disable=SC2016 # for the node's shell; its watcher is a child of the daemon
daemon=$(on 2 sh -c 'grep -l "^.* (glud) S 1 " /proc/[0-9]*/stat | cut -d / -f 3')

printf '| %s processes on node 2, %s s | its daemon ran |\n| --- | --- |\n' "$processes" "$each"
row "nobody watches, nothing happens, without the processes"
begin 2 sh -c "for i in \$(seq $processes); do sleep 1000000 & done; wait"
row "nobody watches, nothing happens"
# shellcheck disable=SC2016 # for the node's shell
begin 1 sh -c 'while [ ! -e "$0" ]; do mkdir /cluster/dir/new; rmdir /cluster/dir/new; sleep 0.1; done' "$stop"
row "nobody watches, node 1 makes and removes 10 directories a second"
# shellcheck disable=SC2016 # for the node's shell
begin 2 sh -c 'while [ ! -e "$0" ]; do ls -l /cluster/dir; sleep 0.1; done' "$stop"
row "the same, and node 2 lists them"
touch "$stop"
begin 2 "$watch" /cluster/dir
row "a process watches, nothing happens"
