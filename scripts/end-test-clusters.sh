#!/bin/bash
# Ends the clusters that killed test runs left in target/tmp; those of running tests too.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-target}
for state in "$target"/tmp/glu-*/; do
    [[ -d $state ]] || continue
    for glu in "$target"/{debug,release}/glu; do
        [[ -x $glu ]] || continue
        # Nothing is mounted there after a `down` that succeeded: what is left is a test's own.
        if timeout --verbose --kill-after=10 120 "$glu" dev down --state "$state"; then
            rm -rf --one-file-system "$state"
            break
        fi
    done
    [[ ! -d $state ]] || echo "a test cluster stays in $state: 'glu dev down --state $state' ends it" >&2
done
rm -f "$target"/tmp/stand-in-glud-*
