#!/bin/bash
# Runs all tests: test.sh SECONDS [-- ARGUMENTS OF THE TEST PROGRAMS]
# No cluster outlives it, however it ends.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=$1
shift
trap scripts/end-test-clusters.sh EXIT
timeout --verbose --kill-after=30 "$seconds" cargo test --workspace --no-fail-fast "$@" </dev/null
