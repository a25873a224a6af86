# The commands of this repository; `make` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Seconds: what hangs is ended and named, never waited for.
SETUP_TIMEOUT := 900
BUILD_TIMEOUT := 2400
TEST_TIMEOUT := 1800
LONG_TIMEOUT := 3600

within = timeout --verbose --kill-after=30

.PHONY: help setup build release demo check test test-long bench clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: ## Install the Debian packages that are missing
	@$(within) $(SETUP_TIMEOUT) scripts/setup.sh

build: ## Build everything for development
	$(within) $(BUILD_TIMEOUT) cargo build --workspace

release: ## Build the programs for use
	$(within) $(BUILD_TIMEOUT) cargo build --release --workspace --bins

demo: release ## Show a cluster of three nodes at work
	scripts/demo.sh

check: ## Check format, lints and dependencies
	cargo fmt --all --check
	$(within) $(BUILD_TIMEOUT) cargo clippy --workspace --all-targets --quiet -- -D warnings
	@$(within) $(BUILD_TIMEOUT) scripts/check-dependencies.sh

test: setup check ## Everything a change must pass
	$(within) $(BUILD_TIMEOUT) cargo build --workspace --all-targets --quiet
	scripts/test.sh $(TEST_TIMEOUT)

test-long: setup ## The tests that take minutes, too
	$(within) $(BUILD_TIMEOUT) cargo build --workspace --all-targets --quiet
	scripts/test.sh $(LONG_TIMEOUT) -- --include-ignored

bench: setup release ## Measure against the local filesystem
	$(within) $(LONG_TIMEOUT) cargo bench --workspace

clean: ## Remove what was built, and leftover test clusters
	scripts/end-test-clusters.sh
	cargo clean
