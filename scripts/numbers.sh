#!/bin/bash
# Makes the figures of docs/results/numbers.md and docs/results/failover.md; wants root and a quiet machine.
# ROUNDS, MIB, KILLS and RESTART_INODES say how much.
set -euo pipefail
cd "$(dirname "$0")/.."

measure() { cargo test "$@" -- --ignored --nocapture --test-threads=1; }
cargo build --workspace --bins
measure --package tests --test numbers
measure --package tests --test failover failover_is_measured
measure --release --package gfs --lib a_restart_is_measured
