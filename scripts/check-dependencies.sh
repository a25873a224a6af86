#!/bin/bash
# Checks licences, sources and duplicates of the dependencies by deny.toml.
# Advisories are not checked here: their database lies outside of the crate registry.
set -euo pipefail
cd "$(dirname "$0")/.."

version=0.20.2
tools=${CARGO_TARGET_DIR:-target}/tools
export PATH="$tools/bin:$PATH"

if ! command -v cargo-deny >/dev/null; then
    # Built once per checkout; minutes on two cores.
    echo "check-dependencies: building cargo-deny $version into $tools"
    cargo install --quiet --locked --root "$tools" --no-track "cargo-deny@$version" </dev/null
fi
cargo deny --offline --workspace --all-features check --hide-inclusion-graph licenses bans sources
