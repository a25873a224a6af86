#!/bin/bash
# Checks licences, sources and duplicates of the dependencies by deny.toml.
# Advisories are not checked here: their database lies outside of the crate registry.
set -euo pipefail
cd "$(dirname "$0")/.."

version=0.20.2

if ! command -v cargo-deny >/dev/null; then
    echo "check-dependencies: building cargo-deny $version (a few minutes, once per machine)"
    # It reads a few hundred manifests: the time is in its compilation, not in its runs.
    CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_DEBUG=false \
        CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        cargo install --quiet --locked "cargo-deny@$version" </dev/null
    export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
fi
cargo deny --locked --workspace --all-features check --hide-inclusion-graph licenses bans sources
