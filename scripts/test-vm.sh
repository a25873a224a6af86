#!/bin/bash
# Three virtual machines, each with a stock Debian kernel of its own, as one cluster: QEMU with software emulation, so it runs
# anywhere, and slowly. What they do is in scripts/vm/smoke.sh.
#
#   GLU_BIN_DIR=target/release scripts/test-vm.sh
#
# CHECKS=three_are_up,disks_of_others does those alone; disks_are_measured is done if it is named.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
bin=${GLU_BIN_DIR:-$target/release}
image=$target/vm/image
run=$target/vm/run
within=${WITHIN:-1500}
nodes=(1 2 3)
programs=(glu glud glurun glukill glumake glumake-sh glups glustat migrate loadlevel)
declare -A machines

say() { printf 'test-vm: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }
finish() {
	code=$?
	for node in "${!machines[@]}"; do stop "$node"; done
	[ "$code" = 0 ] || say "the consoles: $run/console-*"
	exit "$code"
}

needs() {
	local missing=() need program package
	for need in "qemu-system-x86_64 qemu-system-x86" "mmdebstrap mmdebstrap" "mksquashfs squashfs-tools" "busybox busybox-static" \
		"cpio cpio" "depmod kmod"; do
		read -r program package <<<"$need"
		command -v "$program" >/dev/null || missing+=("$package")
	done
	[ "${#missing[@]}" -gt 0 ] || return 0
	say "installing ${missing[*]}"
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null >/dev/null
}

# Makes the disk that has the programs and each node's configuration.
make_disk() {
	local tree=$run/tree node
	mkdir -p "$tree/bin"
	for program in "${programs[@]}"; do
		[ -x "$bin/$program" ] || fail "$bin/$program is missing: run 'make release'"
		install -s "$bin/$program" "$tree/bin/"
	done
	# With its own libraries, in another place.
	mkdir "$tree/criu"
	cp -a "$target/criu/root" "$tree/criu/"
	sed "s|$target/criu/root|/glu/criu/root|g" "$target/criu/criu" >"$tree/criu/criu"
	chmod +x "$tree/criu/criu"
	install "$root/scripts/vm/init" "$root/scripts/vm/smoke.sh" "$root/scripts/vm/"*.py "$tree/"
	"$bin/glu" init vm "$tree/etc" node1=10.77.0.1:7420 node2=10.77.0.2:7420 node3=10.77.0.3:7420 >/dev/null
	for node in "${nodes[@]}"; do
		# Emulated processors are slow, and many more want the real ones.
		sed -i '/^listen/a lease_term_ms = 10000' "$tree/etc/node$node/glud.toml"
		printf '\n[migration]\ncriu = "/glu/criu/criu"\n' >>"$tree/etc/node$node/glud.toml"
		printf '\n[devices]\nblock = "write"\nterminal = "write"\n' >>"$tree/etc/node$node/glud.toml"
	done
	mksquashfs "$tree" "$run/glu.sqfs" -comp lz4 -noappend -no-progress -quiet
}

boot() {
	local node=$1 disk
	for disk in state spare; do
		[ -f "$run/$disk-$node" ] || truncate -s 1G "$run/$disk-$node"
	done
	# The second serial lines of nodes 2 and 3 are joined.
	local line=(-serial null)
	case $node in
	2) line=(-chardev "socket,id=line,path=$run/line,reconnect=1" -serial chardev:line) ;;
	3) line=(-chardev "socket,id=line,path=$run/line,server=on,wait=off" -serial chardev:line) ;;
	esac
	# What one sends all get.
	qemu-system-x86_64 -accel tcg,thread=multi -machine pc -cpu max -m 512 -smp 1 \
		-nodefaults -no-user-config -display none -no-reboot -serial stdio "${line[@]}" \
		-kernel "$image/vmlinuz" -initrd "$image/initrd.gz" -append "console=ttyS0 quiet panic=-1 glu.node=$node glu.checks=${CHECKS:-}" \
		-drive "file=$image/root.sqfs,format=raw,if=virtio,readonly=on,file.locking=off" \
		-drive "file=$run/glu.sqfs,format=raw,if=virtio,readonly=on,file.locking=off" \
		-drive "file=$run/state-$node,format=raw,if=virtio,cache=unsafe" \
		-drive "file=$run/spare-$node,format=raw,if=virtio,cache=unsafe" \
		-netdev socket,id=lan,mcast=239.77.0.1:7420,localaddr=127.0.0.1 \
		-device "virtio-net-pci,netdev=lan,mac=52:54:00:77:00:0$node" -device virtio-rng-pci \
		</dev/null >>"$run/console-$node" 2>&1 &
	machines[$node]=$!
}

stop() {
	kill -KILL "${machines[$1]}" 2>/dev/null || true
	wait "${machines[$1]}" 2>/dev/null || true
	unset "machines[$1]"
}

# Does and tells what node 1 says until it is done.
follow() {
	local line failures=0 count=0
	while read -r -t "$((end > SECONDS ? end - SECONDS : 1))" line; do
		line=${line%$'\r'}
		case $line in
		"VM ok "*) say "ok: ${line#VM ok }"; count=$((count + 1)) ;;
		"VM failed "*) say "FAILED: ${line#VM failed }"; failures=$((failures + 1)) ;;
		"VM row "*) say "${line#VM row }" ;;
		"VM kill "*) stop "${line#VM kill }" ;;
		"VM boot "*) boot "${line#VM boot }" ;;
		"VM done") say "$count right, $failures wrong, $SECONDS s"; return "$failures" ;;
		esac
	done
	fail "not done within $within s"
}

[ "$(id -u)" = 0 ] || fail "needs root for an image and a network: run it with sudo"
if [ "${1:-}" != inside ]; then
	needs
	"$root/scripts/vm/image.sh" "$image"
	"$root/scripts/criu.sh" own >/dev/null
	# A network of their own, which ends with the last of them.
	exec unshare --net "$0" inside
fi
ip link set lo up multicast on
ip route add 224.0.0.0/4 dev lo
rm -rf "$run"
mkdir -p "$run"
make_disk
trap finish EXIT
end=$((SECONDS + within))
for node in "${nodes[@]}"; do boot "$node"; done
follow < <(tail --pid=$$ -n +1 -F "$run/console-1" 2>/dev/null)
