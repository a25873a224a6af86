#!/usr/bin/env bash
# Directories with very many names on real mounts of three nodes: making, listing (also while they change), looking up on
# another node, restarting, removing.
# What is printed docs/results/many-files.md keeps; it ends with an error if a listing is wrong.
#
#   cargo build --release --workspace --bins && scripts/many-files.sh
#
# FILES and DIRS say how many files and in how many directories, LOOKS how many are looked up one by one, REMOVES how many of
# each directory are removed.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
bin=${GLU_BIN_DIR:-$root/target/release}
many=${MANY:-$bin/many}
state=${STATE:-$root/target/tmp/glu-many-files}
files=${FILES:-1000000}
dirs=${DIRS:-1}
looks=${LOOKS:-20000}
per_dir=$((files / dirs))
removes=${REMOVES:-$per_dir}
# Ends the changes that go on beside a listing: the nodes have this machine's files.
stop=$state.stop

finish() {
	code=$?
	touch "$stop"
	"$bin/glu" dev down --state "$state" || code=1
	rm -f "$stop"
	exit "$code"
}

on() { local node=$1; shift; "$bin/glu" dev exec --state "$state" "$node" -- "$@"; }

# In each directory.
all() {
	local node=$1 what=$2 dir
	shift 2
	for dir in $(seq "$dirs"); do
		on "$node" "$many" "$what" "/cluster/many/$dir" "$@"
	done
}

seconds() { awk -v from="$1" -v to="$(date +%s.%N)" 'BEGIN { printf "%.1f s", to - from }'; }

[ "$(id -u)" = 0 ] || { echo "needs root for namespaces and mounts: run it with sudo" >&2; exit 1; }
rm -f "$stop"
"$bin/glu" dev down --state "$state" >/dev/null 2>&1 || true
trap finish EXIT
"$bin/glu" dev up --nodes 3 --state "$state" >&2
echo "$files files in $dirs directories; load average $(cut -d ' ' -f 1 /proc/loadavg)"
for dir in $(seq "$dirs"); do on 1 mkdir -p "/cluster/many/$dir"; done

echo "node 1 makes them:"
all 1 make 0 "$per_dir"
echo "node 2 lists them for the first time, and again:"
all 2 list "$per_dir"
all 2 list "$per_dir"
echo "node 3 lists one directory while node 1 makes and removes names there, and lists it itself:"
on 1 "$many" stir /cluster/many/1 "$stop" &
stirs=$!
for node in 3 3 1; do on "$node" "$many" list /cluster/many/1 "$per_dir"; done
touch "$stop"
wait "$stirs"
echo "node 3 looks up the first $looks of one directory, and again:"
on 3 "$many" look /cluster/many/1 0 "$looks"
on 3 "$many" look /cluster/many/1 0 "$looks"

for node in 3 1; do
	"$bin/glu" dev kill --state "$state" "$node"
	began=$(date +%s.%N)
	"$bin/glu" dev start --state "$state" "$node" >/dev/null
	echo "node $node is started again and serves after $(seconds "$began")"
done
echo "node 1 lists them after that:"
all 1 list "$per_dir"
echo "leaders so far: $(cat "$state"/node*/glud.log | grep -c ' metadata leader reign=')"
echo "node 2 removes $removes of each directory:"
all 2 remove 0 "$removes"
on 3 sh -c "[ \"\$(ls -A /cluster/many/1 | wc -l)\" = $((per_dir - removes)) ]"
