#!/bin/bash
# Prints the path of a CRIU that can move processes here; gets one into target/criu first if the system's cannot.
# Nothing outside of target/ is touched: what is not of this distribution does not get installed.
#
#   scripts/criu.sh own     that of target/, whatever the system has
set -euo pipefail
cd "$(dirname "$0")/.."

# The release of Debian that has CRIU 4.2.1. Older ones fail on kernels since 6.16.
suite=forky
# What has been seen working; see docs/decisions/0012-migration.md.
oldest=4.2
mkdir -p "${CARGO_TARGET_DIR:-target}"
into=$(cd "${CARGO_TARGET_DIR:-target}" && pwd)/criu

# Whether a program is a CRIU that is new enough.
fits() {
    local version
    version=$("$1" --version 2>/dev/null | sed -n 's/^Version: //p')
    [[ -n $version && $(printf '%s\n' "$oldest" "$version" | sort -V | head -n1) == "$oldest" ]]
}

# One at a time: tests run side by side.
exec 9>"$into.lock"
flock 9

systems=$(command -v criu || true)
[[ ${1:-} != own ]] || systems=
for program in "$systems" "$into/criu"; do
    if [[ -n $program ]] && fits "$program"; then
        echo "$program"
        exit
    fi
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists/partial,archives/partial,parts} "$into"

# The mirror that the system itself uses.
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -m1 'deb\.debian\.org\|/debian$' || true)
mirror=${mirror:-http://deb.debian.org/debian}
keys=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keys] $mirror $suite main" >"$work/sources.list"
: >"$work/status"
options=(
    -o "Dir::Etc::sourcelist=$work/sources.list" -o "Dir::Etc::sourceparts=$work/parts"
    -o "Dir::State::lists=$work/lists" -o "Dir::State::status=$work/status"
    -o "Dir::Cache::archives=$work/archives" -o "Dir::Cache::pkgcache=" -o "Dir::Cache::srcpkgcache="
    -o "APT::Sandbox::User=root" -o "Acquire::Languages=none" -o "Acquire::Retries=3"
    -o "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false"
    -o "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false"
)
{
    apt-get "${options[@]}" -qq update
    # With an empty status everything that CRIU needs is new, down to the C library.
    apt-get "${options[@]}" -qq -y --no-install-recommends --download-only install criu
} >&2
rm -rf "$into/root"
for package in "$work"/archives/*.deb; do
    dpkg-deb -x "$package" "$into/root"
done

# A program that runs with its own libraries, whatever the system has. It is looked for once: each move starts it twice.
# Packages put them below /lib or /usr/lib; which of the two changes within a suite.
root=$into/root
shopt -s nullglob
loaders=("$root"{,/usr}/lib64/ld-linux-* "$root"{,/usr}/lib/ld-linux-*)
libraries=("$root"{,/usr}/lib/*-linux-gnu)
shopt -u nullglob
if ((${#loaders[@]} == 0 || ${#libraries[@]} == 0)); then
    echo "criu: the packages of Debian $suite hold no C library where it is expected, below lib or usr/lib" >&2
    exit 1
fi
cat >"$into/criu.new" <<SCRIPT
#!/bin/sh
exec "${loaders[0]}" --library-path "$(IFS=: && echo "${libraries[*]}")" "$root/usr/sbin/criu" "\$@"
SCRIPT
chmod +x "$into/criu.new"
mv "$into/criu.new" "$into/criu"
fits "$into/criu" || { echo "the CRIU of Debian $suite does not run here" >&2; exit 1; }
echo "$into/criu"
