#!/bin/bash
# Runs all tests: test.sh SECONDS [-- ARGUMENTS OF THE TEST PROGRAMS]
# No cluster outlives it, however it ends.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=$1
shift
# Just built; the harness need not ask cargo again.
export GLU_BIN_DIR=${CARGO_TARGET_DIR:-$PWD/target}/debug
trap scripts/end-test-clusters.sh EXIT
timeout --verbose --kill-after=30 "$seconds" cargo test --workspace --no-fail-fast "$@" </dev/null
