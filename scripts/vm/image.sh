#!/bin/bash
# Makes what a virtual machine boots from: a stock Debian kernel with its modules, and a small read-only root. Nothing is made
# again that is there already.
#
#   scripts/vm/image.sh DIRECTORY
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
dir=$1
suite=bookworm
kernel=linux-image-cloud-amd64
packages=kmod,iproute2,fuse3,e2fsprogs,procps,make,python3,netbase
# The initial root needs these to find the root.
modules="virtio_pci virtio_blk virtio_net virtio_rng squashfs overlay"

stamp="$(sha256sum "$here/image.sh" | cut -d' ' -f1) $(apt-cache policy "$kernel" | sed -n 's/ *Candidate: //p')"
if [ -f "$dir/stamp" ] && [ "$(cat "$dir/stamp")" = "$stamp" ]; then
	exit 0
fi
rm -rf "$dir"
mkdir -p "$dir/kernel" "$dir/initrd/modules"
cd "$dir"

echo "image: the kernel out of the packages of Debian"
package=$(apt-cache depends "$kernel" | sed -n 's/ *Depends: \(linux-image-.*\)/\1/p')
apt-get download -q "$package" 2>/dev/null
dpkg-deb -x "$package"_*.deb kernel
version=$(ls kernel/lib/modules)
mv "kernel/boot/vmlinuz-$version" vmlinuz

echo "image: the root"
mmdebstrap --quiet --variant=minbase --mode=root --include="$packages" "$suite" root
mkdir -p root/usr/lib/modules
cp -a "kernel/lib/modules/$version" root/usr/lib/modules/
depmod -b root "$version"
mkdir -p root/glu root/cluster root/etc/glu
mksquashfs root root.sqfs -comp lz4 -noappend -no-progress -quiet -e var/cache/apt usr/share/doc usr/share/man

echo "image: the initial root"
for module in $modules; do
	modprobe -d root -S "$version" --show-depends "$module" | sed -n 's/^insmod //p'
done | awk '!seen[$1]++ { print $1 }' | while read -r file; do
	cp "$file" initrd/modules/
	basename "$file" >>initrd/order
done
mkdir -p initrd/{bin,proc,sys,dev,lower,upper,root}
cp "$(command -v busybox)" initrd/bin/busybox
cat >initrd/init <<'END'
#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
while read -r module; do $b insmod "/modules/$module"; done </order
left=100
while [ ! -b /dev/vda ] && [ "$left" -gt 0 ]; do $b sleep 0.1; left=$((left - 1)); done
$b mount -t squashfs -o ro /dev/vda /lower
$b mount -t tmpfs upper /upper
$b mkdir /upper/up /upper/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/upper/up,workdir=/upper/work overlay /root
$b mount -t squashfs -o ro /dev/vdb /root/glu
for dir in dev proc sys; do $b mount --move /$dir /root/$dir; done
exec $b switch_root /root /glu/init
END
chmod +x initrd/init
(cd initrd && find . | cpio --quiet -o -H newc | gzip -1) >initrd.gz
rm -rf kernel root initrd ./*.deb
echo "$stamp" >stamp
