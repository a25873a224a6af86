#!/bin/bash
# Installs the Debian packages that building, running and testing need, those only that are missing.
set -euo pipefail

# What provides what is looked for, as "command package"; libc6-dev has no command of its own.
needs=(
    "cc gcc"
    "c++ g++"
    "ip iproute2"
    "less less"
    "losetup mount"
    "make make"
    "mkfs.ext4 e2fsprogs"
    "dpkg-deb dpkg"
    "faketime faketime"
    "fusermount3 fuse3"
    "getfattr attr"
    "git git"
    "htop htop"
    "nsenter util-linux"
    "pkg-config pkg-config"
    "pgrep procps"
    "python3 python3"
    "rsync rsync"
    "script bsdutils"
    "sqlite3 sqlite3"
    "ssh openssh-client"
    "tar tar"
    "timeout coreutils"
    "tmux tmux"
    "vim vim"
)

missing=()
for need in "${needs[@]}"; do
    read -r program package <<<"$need"
    command -v "$program" >/dev/null || missing+=("$package")
done
[[ -e /usr/include/stdlib.h ]] || missing+=(libc6-dev)
[[ -e /usr/sbin/sshd ]] || missing+=(openssh-server)

if ((${#missing[@]} > 0)); then
    if ((EUID != 0)); then
        echo "setup: these packages are missing, install them as root: ${missing[*]}" >&2
        exit 1
    fi
    echo "setup: installing ${missing[*]}"
    # Tests start a server of their own; this machine is not to get one by the way.
    units=()
    if [[ " ${missing[*]} " == *" openssh-server "* && -d /etc/systemd/system &&
        ! -e /etc/systemd/system/ssh.service && ! -e /etc/systemd/system/ssh.socket ]]; then
        units=(ssh.service ssh.socket)
    fi
    for unit in "${units[@]}"; do
        ln -s /dev/null "/etc/systemd/system/$unit"
    done
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null >/dev/null
    for unit in "${units[@]}"; do
        rm "/etc/systemd/system/$unit"
        # Whoever wants it enables it.
        deb-systemd-helper disable "$unit" >/dev/null 2>&1 || true
    done
fi

if ! command -v cargo >/dev/null; then
    echo "setup: cargo is missing: install Rust 1.90 or newer (https://rustup.rs)" >&2
    exit 1
fi
if [[ ! -c /dev/fuse ]]; then
    modprobe fuse 2>/dev/null || true
    if [[ ! -c /dev/fuse ]]; then
        echo "setup: there is no /dev/fuse: the kernel has no FUSE, or this container may not use it" >&2
        exit 1
    fi
fi
