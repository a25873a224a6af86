#!/usr/bin/env bash
# Programs of Debian that stress file systems, on /cluster and on the local file system beside it: what the local one
# passes /cluster must pass. The summary goes to docs/results/soak.md.
#
#   SECONDS_EACH=30 STATE=/var/tmp/glu-soak scripts/soak.sh
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
bin=${GLU_BIN_DIR:-$target/debug}
state=${STATE:-/var/tmp/glu-soak}
result=${RESULT:-$root/docs/results/soak.md}
each=${SECONDS_EACH:-3}
logs=$target/soak
local=$logs/local
status=0

say() { printf 'soak: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }
finish() {
	code=$?
	"$bin/glu" dev down --state "$state" || code=1
	rm -rf "$local"
	exit "$code"
}

# Runs a command in a directory. On /cluster inside the node: a daemon cannot tell which signals kill a thread of
# another pid namespace, and ends its waits with EINTR.
run_local() { (cd "$local/$1" && shift && exec "$@"); }
run_cluster() {
	# shellcheck disable=SC2016 # for the other shell
	"$bin/glu" dev exec --state "$state" 1 -- sh -c 'cd "/cluster/$0" && exec "$@"' "$@"
}
export -f run_local run_cluster
export bin state local

# Runs a command with a time limit; adds a row to the table, and fails at the end if only /cluster fails.
row() {
	local what=$1 within=$2 on one=() log
	shift 2
	for on in local cluster; do
		log=$logs/$what-$on.log
		mkdir -p "${!on}/$what"
		if timeout --kill-after=10 "$within" bash -c 'run_"$@"' bash "$on" "$what" "$@" >"$log" 2>&1; then
			one+=("no error")
		else
			one+=("exit $?")
		fi
		timeout --signal=KILL 60 rm -rf "${!on:?}/$what" || one+=("and cannot be removed")
	done
	table+="| $what | ${one[0]} | ${one[1]} |"$'\n'
	[ "${one[1]}" = "no error" ] || [ "${one[0]}" = "${one[1]}" ] || { say "$what fails: $logs/$what-cluster.log"; status=1; }
}

[ "$(id -u)" = 0 ] || fail "needs root for namespaces and mounts: run it with sudo"
[ -x "$bin/glu" ] || fail "$bin/glu is missing: run 'make build'"
for tool in dbench fio rsync stress-ng; do
	command -v "$tool" >/dev/null || fail "$tool is missing: apt-get install dbench fio rsync stress-ng"
done
rm -rf "$logs"
mkdir -p "$local"
"$bin/glu" dev down --state "$state" >/dev/null 2>&1 || true
trap finish EXIT
"$bin/glu" dev up --nodes 2 --state "$state"
chmod 755 "$state" "$state/node1" "$state/node2"
# shellcheck disable=SC2034 # named by row
cluster=$state/node1/cluster
two=$state/node2/cluster

table=
say "fio"
verify=(fio --name=verify --size=64m --verify=crc32c --verify_fatal=1 --verify_state_save=0 --rw=randrw --group_reporting
	--numjobs=2 --bsrange=512-128k)
row fio-buffered 600 "${verify[@]}" --ioengine=psync
row fio-mmap 600 "${verify[@]}" --ioengine=mmap
row fio-direct 600 "${verify[@]}" --bsrange=4k-128k --ioengine=libaio --direct=1 --iodepth=8
say "dbench"
row dbench $((60 + 10 * each)) dbench --timelimit="$((5 * each))" 4
say "copies"
row rsync 300 sh -c "rsync -a '$root/gfs/' a && rsync -a a/ b && test -z \"\$(rsync -ani --delete '$root/gfs/' b)\""
row cp-reflink 300 sh -c "cp -a --reflink=auto '$root/gfs' a && cp -a --reflink=auto a b && diff -r a b && diff -r a '$root/gfs'"
row tar 300 sh -c "tar cf a.tar -C '$root' gfs && tar xf a.tar && tar df a.tar && diff -r gfs '$root/gfs'"
say "stress-ng, $each s each"
for stressor in ${STRESSORS:-$(stress-ng --class 'filesystem?' 2>/dev/null | sed 's/.*: //')}; do
	case $stressor in
	# Of the machine, not of the file system: they mount, or watch other file systems.
	bind-mount | mount | binderfs | ramfs | fanotify) continue ;;
	esac
	row "stress-ng-$stressor" $((60 + 10 * each)) stress-ng --"$stressor" 2 --timeout "$each" --verify --temp-path . --oom-avoid
done
[ -d "$two" ] && timeout --signal=KILL 60 ls "$two" >/dev/null || { say "node 2 does not answer"; status=1; }

mkdir -p "$(dirname "$result")"
cat >"$result" <<END
# Soak

Made by \`make soak\` on $(date -u +%F), Linux $(uname -r), $each s for each stressor; exit 3 of stress-ng means that it
could not run.

| what | local file system ($(findmnt -n -o FSTYPE -T "$logs")) | /cluster on one of two nodes |
| --- | --- | --- |
$table
END
cat "$result"
exit "$status"
