#!/bin/bash
# Builds the daemon of an older revision and upgrades a cluster that runs it, node by node, to the present one.
# Usage: scripts/upgrade-test.sh OLD_REV
set -euo pipefail
cd "$(dirname "$0")/.."

if (($# != 1)); then
    echo "usage: $0 OLD_REV, of the protocol version before: git log -S WIRE_VERSION consistency/src/wire/mod.rs" >&2
    exit 2
fi
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
rev=$(git rev-parse --verify "$1^{commit}")
source=$target/old/source-$rev
if [[ ! -d $source ]]; then
    mkdir -p "$source.new"
    git archive "$rev" | tar -x -C "$source.new"
    mv "$source.new" "$source"
fi
# A target of its own, kept: the dependencies are the same from one revision to the next.
CARGO_TARGET_DIR=$target/old cargo build --quiet --manifest-path "$source/Cargo.toml" -p mount-tools --bin glud
GLU_OLD_GLUD=$target/old/debug/glud cargo test --quiet -p tests --test upgrade -- --nocapture
