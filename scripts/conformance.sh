#!/usr/bin/env bash
# The test suites of others: pjdfstest and fsx, on /cluster and on the local filesystem beside it. What the local one passes
# /cluster must pass. fsx takes one path for all its operations, so a test of ours has two nodes change one file in turn.
# The summary goes to docs/results/conformance.md.
#
#   FSX_OPS=1000000 STATE=/var/tmp/glu-conformance scripts/conformance.sh
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
bin=${GLU_BIN_DIR:-$target/debug}
tools=$target/conformance
state=${STATE:-/var/tmp/glu-conformance}
config=$root/scripts/conformance
result=${RESULT:-$root/docs/results/conformance.md}
ops=${FSX_OPS:-100000}
seed=${SEED:-1}
# Operations in one run of fsx: each mapped read leaves a mapping behind, of which a process has 65,530, and with 30,000 of them
# a truncation takes 0.5 ms instead of 0.04 ms.
FSX_RUN=20000
# An operation takes well under this many milliseconds; what hangs is ended and named.
fsx_within=$((60 + ops / 50))
status=0

say() { printf 'conformance: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }
finish() {
	code=$?
	# They tell whether a node was too busy to keep its session.
	for node in 1 2; do
		cp "$state/node$node/glud.log" "$tools/glud-$node.log" || code=1
	done
	"$bin/glu" dev down --state "$state" || code=1
	[ ! -d "$tools/local" ] || rm -rf "$tools/local"
	exit "$code"
}

# Runs pjdfstest in a directory, with one of another filesystem beside it; the summary line goes to standard output.
pjdfstest() {
	local log=$tools/pjdfstest-$1.log dir=$2 other=$3
	mkdir -p "$dir" "$other"
	chmod 755 "$dir" "$other"
	timeout --kill-after=10 600 "$tools/bin/pjdfstest" -c "$config/pjdfstest.toml" -p "$dir" -s "$other" \
		>"$log" 2>&1 || true
	grep '^Summary:' "$log" || echo "Summary: none, it did not end: $log"
}

# Runs fsx on a file, in runs of seeds of their own.
fsx() {
	local log=$tools/fsx-$1.log file=$2 seed=$3 left=$4 some
	mkdir -p "$(dirname "$file")"
	while [ "$left" -gt 0 ]; do
		some=$((left < FSX_RUN ? left : FSX_RUN))
		(cd "$tools" && timeout --kill-after=10 "$fsx_within" "$tools/bin/fsx" -q -N "$some" -S "$seed" \
			-f "$config/fsx.toml" "$file") >"$log" 2>&1 || { echo "failed with seed $seed: $log"; return; }
		left=$((left - some))
		seed=$((seed + 2))
	done
	echo "no error"
}

[ "$(id -u)" = 0 ] || fail "needs root for namespaces and mounts: run it with sudo"
[ -x "$bin/glu" ] || fail "$bin/glu is missing: run 'make build'"
say "pjdfstest and fsx out of crates.io"
for tool in pjdfstest@0.2.2 fsx@0.3.2; do
	[ -x "$tools/bin/${tool%@*}" ] || cargo install --quiet --root "$tools" "$tool"
done

say "a cluster of two nodes"
"$bin/glu" dev down --state "$state" >/dev/null 2>&1 || true
trap finish EXIT
"$bin/glu" dev up --nodes 2 --state "$state"
# Users other than root pass through.
chmod 755 "$state" "$state/node1" "$state/node2"
one=$state/node1/cluster
two=$state/node2/cluster

say "pjdfstest"
pjd_local=$(pjdfstest local "$tools/local/pjd" "$one/other")
pjd_one=$(pjdfstest node1 "$one/pjd1" "$tools/local/other")
pjd_two=$(pjdfstest node2 "$two/pjd2" "$tools/local/other")

say "fsx, $ops operations on each of two nodes at once, on files of their own"
fsx_two_file=$tools/fsx-two.result
fsx two "$two/fsx/two" "$((seed + 1))" "$ops" >"$fsx_two_file" &
fsx_one=$(fsx one "$one/fsx/one" "$seed" "$ops")
wait
fsx_two=$(cat "$fsx_two_file")
[ "$(cmp "$one/fsx/one" "$two/fsx/one" 2>&1)$(cmp "$one/fsx/two" "$two/fsx/two" 2>&1)" = "" ] || fsx_two="nodes differ"

say "one file that both nodes change in turn, $ops steps"
turns_log=$tools/fsx-in-turn.log
if (cd "$root" && GLU_BIN_DIR=$bin FSX_OPS=$ops SEED=$seed timeout --kill-after=30 "$((120 + ops / 20))" \
	cargo test --package tests --test fsx -- --ignored --nocapture for_long) >"$turns_log" 2>&1; then
	turns="no difference"
else
	turns="failed: $turns_log"
fi

mkdir -p "$(dirname "$result")"
cat >"$result" <<END
# Conformance

Made by \`make conformance\` on $(date -u +%F), Linux $(uname -r).

pjdfstest 0.2.2, naptime 0.02 (the configuration is in \`scripts/conformance/\`):

| where | result |
| --- | --- |
| local filesystem ($(findmnt -n -o FSTYPE -T "$tools")) | ${pjd_local#Summary: } |
| /cluster on node 1 | ${pjd_one#Summary: } |
| /cluster on node 2 | ${pjd_two#Summary: } |

fsx 0.3.2, $ops operations each in runs of $FSX_RUN, seeds from $seed on, both nodes at once, then the files compared across the nodes:

| where | result |
| --- | --- |
| node 1 | $fsx_one |
| node 2 | $fsx_two |

\`tests/tests/fsx.rs\`, one file that both nodes change in turn, $ops steps, seed $seed, each compared with an array: $turns.
END
cat "$result"

# What fails on the local filesystem, too, is the suite's own; anything else is ours.
failures() { grep -vE ' (ok|skipped)$|^[[:space:]]|^Summary' "$1" | awk '/::/ { print $1 }' | sort -u; }
for node in node1 node2; do
	ours=$(comm -13 <(failures "$tools/pjdfstest-local.log") <(failures "$tools/pjdfstest-$node.log"))
	[ -z "$ours" ] || { say "$node fails: $ours"; status=1; }
done
case "$pjd_local$pjd_one$pjd_two" in *none*) status=1 ;; esac
[ "$fsx_one$fsx_two$turns" = "no errorno errorno difference" ] || status=1
exit "$status"
