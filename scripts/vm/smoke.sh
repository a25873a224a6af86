#!/bin/bash
# What three machines with kernels of their own do as one; runs on node 1 of `scripts/test-vm.sh`, which reads the lines that
# begin with `VM `: ok, failed, done, and `kill N` and `boot N`, which it does. What a check says goes into one line of these.
set -u
cd /cluster

ok() { echo "VM ok $*"; }
failed() { echo "VM failed $*"; }
# check WHAT COMMAND...: the command succeeds, and says why if it does not.
check() {
	local what=$1 said
	shift
	if said=$("$@" 2>&1); then ok "$what"; else failed "$what: ${said//$'\n'/ | }"; fi
}
# until_so SECONDS COMMAND...
until_so() {
	local end=$((SECONDS + $1))
	shift
	until "$@" >/dev/null 2>&1; do
		((SECONDS < end)) || { echo "not within time: $*"; return 1; }
		sleep 0.2
	done
}
on() { local node=$1; shift; glurun -w "$node" "$@"; }
same() { [ "$1" = "$2" ] || { echo "'$1' is not '$2'"; return 1; }; }
state_is() { glustat -w "$1" | grep -qw "$2"; }

three_are_up() { until_so 240 state_is 2 idle && until_so 240 state_is 3 idle; }
kernels_differ() {
	local boots
	boots=$(glurun -a cat /proc/sys/kernel/random/boot_id | sort -u | wc -l)
	same "$boots" 3
}
nothing_is_old() {
	local round
	for round in $(seq 10); do
		echo "$round" >seen
		same "$(on 2 cat seen)" "$round" || return
		on 3 sh -c "echo $round again >>seen"
		same "$(tail -n 1 seen)" "$round again" || return
		same "$(on 2 stat -c %s seen)" "$(stat -c %s seen)" || return
		on 2 mv seen moved
		[ ! -e seen ] || { echo "still there in round $round"; return 1; }
		on 3 rm moved
		[ ! -e moved ] || { echo "still there in round $round"; return 1; }
	done
}
# GLUnix's Table 4: edit here, compile there, link here.
make_is_right() {
	local round
	mkdir make && cd make || return
	printf 'all: a b\n\tcat a b >$@\na: a.c\n\tcp $< $@\nb: b.c\n\tcp $< $@\n' >Makefile
	echo b >b.c
	for round in $(seq 5); do
		echo "$round" >a.c
		glumake -j4 >/dev/null || return
		same "$(cat all)" "$round"$'\nb' || return
		same "$(on 3 make -q && echo nothing to do)" "nothing to do" || return
	done
}
# Each of two nodes counts in a mapped page under a lock. Before Linux 6.6 that is refused, not wrong.
mapped_pages_agree() {
	local release
	release=$(uname -r)
	truncate -s 4096 counter
	cat >count.py <<'END'
import fcntl, mmap, struct
with open('/cluster/counter', 'r+b') as file:
    page = mmap.mmap(file.fileno(), 4096)
    for _ in range(100):
        fcntl.lockf(file, fcntl.LOCK_EX)
        page[:8] = struct.pack('<Q', struct.unpack('<Q', page[:8])[0] + 1)
        fcntl.lockf(file, fcntl.LOCK_UN)
END
	if [ "$(printf '%s\n6.6\n' "$release" | sort -V | head -n 1)" != 6.6 ]; then
		on 2 python3 /cluster/count.py 2>&1 | grep 'Errno 19' >/dev/null
		return
	fi
	on 2 python3 /cluster/count.py &
	on 3 python3 /cluster/count.py || return
	wait $! || return
	same "$(od -A n -t u8 -N 8 counter | tr -d ' ')" 200
}
processes_are_one_table() {
	on 3 sleep 1000 &
	local job=$! pid
	until_so 20 sh -c 'glups -ef -w 3 | grep -q "sleep 1000"' || return
	pid=$(glups -e -o pid,args -w 3 | awk '/sleep 1000/ && !/glurun/ { print $1; exit }')
	grep -q sleep "/cluster/proc/$pid/comm" || { echo "no such process: $pid"; return 1; }
	glukill -TERM "$pid" || return
	wait "$job"
	same $? 143
}
# From kernel to kernel and back, with memory that goes ahead.
processes_move() {
	local job pid node kernel=1
	cat >mover.py <<'END'
import hashlib, os, sys, time
memory = [os.urandom(1 << 20) for _ in range(16)]
boot = lambda: open('/proc/sys/kernel/random/boot_id').read()
known = lambda: hashlib.sha256(b''.join(memory)).digest()
begun, there, before = known(), {boot()}, os.getpid()
print(before, flush=True)
while not os.path.exists('/cluster/enough'):
    if boot() not in there:
        there.add(boot())
        print('kernel', len(there), flush=True)
    time.sleep(.1)
print(len(there), known() == begun, os.getpid() == before)
END
	on 2 python3 mover.py 2>&1 | cat >mover.out &
	job=$!
	until_so 60 test -s mover.out || return
	pid=$(head -n 1 mover.out)
	for node in 3 1 2; do
		migrate "$pid" "$node" || { cat "/cluster/proc/$pid/cantmove"; return 1; }
		same "$(cat "/cluster/proc/$pid/where")" "$node" || return
		same "$(cut -d ' ' -f 6 "/cluster/proc/$pid/moved")" pre-copy || return
		[ "$node" = 2 ] || until_so 60 grep -x "kernel $((kernel += 1))" mover.out || return
	done
	touch enough
	wait "$job"
	same "$(tail -n 1 mover.out)" "3 True True"
}
devices_of_others() {
	dd if=/cluster/node2/dev/zero bs=64k count=16 status=none | cmp -n 1048576 - /dev/zero || return
	timeout 20 dd if=/cluster/node2/dev/kmsg bs=8192 count=1 status=none | grep -q 'Linux version'
}
# Another machine's disk, with a filesystem made here.
disks_of_others() {
	local disk mount=/tmp/disk
	modprobe loop
	disk=$(glu attach --with loop node2/dev/vdd) || return
	mkfs.ext4 -q "$disk" && mkdir -p $mount && mount "$disk" $mount || return
	dd if=/dev/urandom of=$mount/file bs=64k count=64 status=none
	sum=$(sha256sum <$mount/file)
	umount $mount && e2fsck -fn "$disk" >/dev/null && glu detach "$disk" || return
	same "$(on 2 sh -c 'mkdir -p /tmp/disk && mount -o ro /dev/vdd /tmp/disk && sha256sum </tmp/disk/file && umount /tmp/disk')" "$sum"
}
# The same as a network block device, which outlives the daemon of this node.
disks_outlive_the_daemon() {
	local disk mount=/tmp/disk sum writer said
	disk=$(glu attach node3/dev/vdd 2>&1) || { echo "$disk"; return 1; }
	case $disk in /dev/nbd*) ;; *) echo "$disk is no network block device"; return 1 ;; esac
	same "$(glu attach --list)" "$disk /cluster/node3/dev/vdd write" || return
	same "$(blockdev --getsize64 "$disk")" 1073741824 || return
	mkfs.ext4 -q "$disk" && mkdir -p $mount && mount "$disk" $mount || return
	dd if=/dev/urandom of=$mount/before bs=64k count=64 status=none || return
	sum=$(sha256sum <$mount/before)
	# Some is on its way, more is written while nobody answers.
	cd /
	kill -KILL "$(pgrep -o -x glud)"
	umount -l /cluster
	dd if=/dev/urandom of=$mount/meanwhile bs=64k count=16 status=none &
	writer=$!
	starts_again || return
	wait $writer || return
	sync -f $mount/meanwhile || return
	sum+=$(sha256sum <$mount/meanwhile)
	said=$(glu detach "$disk" 2>&1) && { echo "it was detached while it was mounted"; return 1; }
	case $said in *"is in use"*) ;; *) echo "$said"; return 1 ;; esac
	umount $mount && e2fsck -fn "$disk" >/dev/null && glu detach "$disk" || return
	same "$(glu attach --list)" "" || return
	same "$(on 3 sh -c 'mkdir -p /tmp/disk && mount -o ro /dev/vdd /tmp/disk && cd /tmp/disk &&
		sha256sum <before && sha256sum <meanwhile && cd / && umount /tmp/disk' | tr -d '\n')" "${sum//$'\n'/}" || return
	disk=$(glu attach --read-only node3/dev/vdd) || return
	same "$(glu attach --list)" "$disk /cluster/node3/dev/vdd read" || return
	dd if=/dev/zero of="$disk" bs=4k count=1 oflag=direct status=none 2>/dev/null && { echo "written"; return 1; }
	e2fsck -fn "$disk" >/dev/null && glu detach "$disk"
}
# What stands for a disk against its file in the tree, and against the disk on its own node.
disks_are_measured() {
	local nbd loop
	modprobe loop
	cp /glu/disk.py . || return
	on 3 python3 /cluster/disk.py "its own node" /dev/vdd >/dev/ttyS0 || return
	python3 disk.py "the file in the tree" /cluster/node3/dev/vdd >/dev/ttyS0 || return
	nbd=$(glu attach --with nbd node3/dev/vdd) && python3 disk.py nbd "$nbd" >/dev/ttyS0 && glu detach "$nbd" || return
	loop=$(glu attach --with loop node3/dev/vdd) && python3 disk.py loop "$loop" >/dev/ttyS0 && glu detach "$loop"
}
# Node 3's second serial line, which leads to that of node 2; there somebody may log in.
lines_of_others() {
	local line reader
	line=$(glu attach node3/dev/ttyS1 2>&1) || { echo "$line"; return 1; }
	same "$line" /dev/glu/node3/ttyS1 || return
	same "$(glu attach --list)" "$line /cluster/node3/dev/ttyS1 write" || return
	[ -c "$line" ] && test -t 0 <"$line" || { echo "$line is no terminal"; return 1; }
	stty -F "$line" 19200 raw -echo || return
	same "$(stty -F "$line" speed) $(on 3 stty -F /dev/ttyS1 speed)" "19200 19200" || return
	timeout -s INT 2 cat "$line"
	same $? 124 || return
	cp /glu/login.py /glu/user.py . || return
	rm -f ready
	timeout 200 python3 user.py "$line" ready &
	reader=$!
	until_so 100 test -e ready || return
	on 2 timeout 200 python3 /cluster/login.py &
	wait $reader || return
	wait $! || return
	# Who has it open sees nothing of a daemon that is started again.
	exec 9<>"$line"
	head -c 5 <&9 >/tmp/heard &
	reader=$!
	cd /
	kill -KILL "$(pgrep -o -x glud)"
	umount -l /cluster
	until_so 60 is_listed "$line" lost || return
	starts_again || return
	until_so 60 is_listed "$line" write || return
	on 2 sh -c 'stty -F /dev/ttyS1 raw -echo && printf again >/dev/ttyS1' || return
	wait $reader
	same "$(cat /tmp/heard)" again || return
	same "$(stty -F "$line" speed) $(on 3 stty -F /dev/ttyS1 speed)" "19200 19200" || return
	exec 9>&-
	glu detach "$line" || return
	[ ! -e "$line" ] || { echo "$line is still there"; return 1; }
}
is_listed() { glu attach --list | grep -q "^$1 .* $2\$"; }
# As scripts/vm/init has done it.
starts_again() {
	setsid glud >/dev/ttyS0 2>&1 &
	until_so 120 mountpoint -q /cluster && until_so 120 glu status
}
# The whole machine goes, with what its kernel had not written.
power_fails() {
	on 3 sh -c 'echo synced >synced && sync synced'
	on 3 sh -c 'flock -x synced -c "echo locked; sleep 1000"' >locked.out 2>/dev/null &
	until_so 30 grep -q locked locked.out || return
	echo "VM kill 3" >/dev/ttyS0
	until_so 60 flock -n -x synced true || return
	same "$(cat synced)" synced || return
	until_so 60 state_is 3 down || return
	on 2 sh -c 'echo more >>synced' || return
	echo "VM boot 3" >/dev/ttyS0
	until_so 240 state_is 3 idle || return
	same "$(on 3 tail -n 1 synced)" more
}

all=(three_are_up kernels_differ nothing_is_old make_is_right mapped_pages_agree processes_are_one_table processes_move devices_of_others
	disks_of_others disks_outlive_the_daemon lines_of_others power_fails)
IFS=, read -r -a some <<<"$(sed -n 's/.*glu.checks=\([a-z_,]*\).*/\1/p' /proc/cmdline)"
for what in "${some[@]:-${all[@]}}"; do
	check "${what//_/ } ($SECONDS s)" "$what"
	cd /cluster || break
done
echo "VM done"
