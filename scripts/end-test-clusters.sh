#!/bin/bash
# Ends the clusters that killed test runs left in target/tmp; those of running tests too.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-target}
for state in "$target"/tmp/glu-*/; do
    [[ -d $state ]] || continue
    for glu in "$target"/{debug,release}/glu; do
        [[ -x $glu ]] || continue
        timeout --verbose --kill-after=10 120 "$glu" dev down --state "$state" && break
    done || echo "a test cluster stays in $state: end it with 'glu dev down --state $state'" >&2
done
rm -f "$target"/tmp/stand-in-glud-*
