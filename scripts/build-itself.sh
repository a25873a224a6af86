#!/usr/bin/env bash
# This very project built on /cluster: everything on one node, after which cargo on the other has nothing to build; then a
# change there, after which the first has nothing to build. What is printed docs/results/long-runs.md keeps.
#
#   cargo build --release --workspace --bins && scripts/build-itself.sh
#
# Without debug information and incremental builds, which would be most of what is written. Needs room for two copies of what
# cargo builds, some 6 GB. REVISION says what is built.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
bin=${GLU_BIN_DIR:-$root/target/release}
state=${STATE:-/var/tmp/glu-build-itself}
within=${WITHIN:-3000}
export CARGO_PROFILE_DEV_DEBUG=0 CARGO_INCREMENTAL=0

fail() { echo "build-itself: $*" >&2; exit 1; }
finish() {
	code=$?
	"$bin/glu" dev down --state "$state" || code=1
	exit "$code"
}

# Prints what cargo compiles.
cargo_on() {
	local node=$1 said
	shift
	said=$(timeout --verbose --kill-after=10 "$within" "$bin/glu" dev exec --state "$state" "$node" -- \
		sh -c "cd /cluster/project && unset CARGO_TARGET_DIR && cargo $* --workspace --offline --color never 2>&1") ||
		fail "cargo $* on node $node: $said"
	grep -o 'Compiling [^ ]*' <<<"$said" || true
}

# Times a command of cargo on a node and says how much it compiled; none is expected unless said otherwise.
step() {
	local node=$1 expected=$2 began compiled
	shift 2
	began=$(date +%s)
	compiled=$(cargo_on "$node" "$@" | wc -l)
	echo "node $node: cargo $*: $compiled compiled, $(($(date +%s) - began)) s"
	case $expected in
		none) [ "$compiled" = 0 ] || fail "node $node built what the other had built" ;;
		some) [ "$compiled" != 0 ] || fail "node $node did not see a change" ;;
	esac
}

[ "$(id -u)" = 0 ] || fail "needs root for namespaces and mounts: run it with sudo"
"$bin/glu" dev down --state "$state" >/dev/null 2>&1 || true
trap finish EXIT
"$bin/glu" dev up --nodes 2 --state "$state" >&2
echo "load average $(cut -d ' ' -f 1 /proc/loadavg)"
cargo fetch --quiet --locked --manifest-path "$root/Cargo.toml"
mkdir "$state/node1/cluster/project"
git -C "$root" archive "${REVISION:-HEAD}" | tar -x -C "$state/node1/cluster/project"
step 1 some build
step 1 some test --no-run
step 2 none build
step 2 none test --no-run
echo '// A change.' >>"$state/node2/cluster/project/gdev/src/lib.rs"
step 2 some build
step 1 none build
