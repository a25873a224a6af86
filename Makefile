# The commands of this repository; `make` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Seconds: what hangs is ended and named, never waited for. Those of `make test` add up to less than
# a CI run may take, so that each step ends by its own limit, which cleans up.
SETUP_TIMEOUT := 300
LINT_TIMEOUT := 900
DEPENDENCIES_TIMEOUT := 500
BUILD_TIMEOUT := 900
TEST_TIMEOUT := 2200
LONG_TIMEOUT := 10000

# The last revision of the protocol version before the present one.
UPGRADE_FROM := 570be4e

# Where `make install` puts the programs. mount(8) looks for its helpers in /sbin alone.
PREFIX := /usr/local
DESTDIR :=
BIN_DIR = $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)/release
PROGRAMS := glu glud glurun glumake glumake-sh glubatch glupart glukill glups glush glustat migrate loadlevel

within = timeout --verbose --kill-after=30

.PHONY: help setup build release install demo check test test-long test-vm worlds upgrade-test bench conformance soak clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: ## Install the Debian packages that are missing, and get CRIU into target/
	@$(within) $(SETUP_TIMEOUT) scripts/setup.sh
	@$(within) $(SETUP_TIMEOUT) scripts/criu.sh >/dev/null

build: ## Build everything for development
	$(within) $(BUILD_TIMEOUT) cargo build --workspace

# Of all release builds: another compiler, for cargo, is another build.
release bench: export RUSTC_WORKSPACE_WRAPPER = $(CURDIR)/scripts/rustc.sh

release: ## Build the programs for use
	$(within) $(LONG_TIMEOUT) cargo build --release --workspace --bins
	$(within) $(LONG_TIMEOUT) cargo build --release -p libglu --lib

install: ## Install what `make release` built: PREFIX=/usr/local, DESTDIR=
	@[[ -x $(BIN_DIR)/glud ]] || { echo "nothing to install in $(BIN_DIR): run 'make release' first" >&2; exit 1; }
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)/sbin
	install $(addprefix $(BIN_DIR)/,$(PROGRAMS)) $(DESTDIR)$(PREFIX)/bin
	install -d $(DESTDIR)$(PREFIX)/lib $(DESTDIR)$(PREFIX)/include
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's|/usr/local|$(PREFIX)|' mount-tools/glud.service >$(DESTDIR)$(PREFIX)/lib/systemd/system/glud.service
	install -m 644 mount-tools/libglu/glu.h $(DESTDIR)$(PREFIX)/include
	install -m 644 $(BIN_DIR)/libglu.so $(DESTDIR)$(PREFIX)/lib/libglu.so.0
	ln -sf libglu.so.0 $(DESTDIR)$(PREFIX)/lib/libglu.so
	install $(BIN_DIR)/mount-glu $(DESTDIR)/sbin/mount.glu
	# The type that the kernel shows: `mount -o remount` of what is not in /etc/fstab looks for it.
	ln -sf mount.glu $(DESTDIR)/sbin/mount.fuse.glu

demo: release ## Show a cluster of three nodes at work
	scripts/demo.sh

check: ## Check format, lints and dependencies
	cargo fmt --all --check
	$(within) $(LINT_TIMEOUT) cargo clippy --workspace --all-targets --quiet -- -D warnings
	@$(within) $(DEPENDENCIES_TIMEOUT) scripts/check-dependencies.sh

test: setup check ## Everything a change must pass
	$(within) $(BUILD_TIMEOUT) cargo build --workspace --all-targets --quiet
	scripts/test.sh $(TEST_TIMEOUT)

test-long: setup ## The tests that take minutes, too
	$(within) $(BUILD_TIMEOUT) cargo build --workspace --all-targets --quiet
	CHAOS_SECONDS=600 ROUNDS=1000 HAMMER_OPS=10000 LINEAR_OPS=4000 FUZZ_CASES=10000000 PROCESSES=5000 FORKS=10000 TRAVELLER_MIB=1024 DEVICE_MIB=1024 scripts/test.sh $(LONG_TIMEOUT) -- --include-ignored
	WORLDS=10000 $(MAKE) worlds
	$(within) $(LONG_TIMEOUT) scripts/upgrade-test.sh $(UPGRADE_FROM)

worlds: ## Simulated clusters, optimised, with assertions: WORLDS=10000, or SEED=n for one
	CARGO_PROFILE_TEST_OPT_LEVEL=2 $(within) $(LONG_TIMEOUT) cargo test -p gfs --lib --target-dir $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)/opt worlds_keep -- --nocapture

upgrade-test: setup ## Upgrade a cluster in use from the revision UPGRADE_FROM, node by node
	$(within) $(LONG_TIMEOUT) scripts/upgrade-test.sh $(UPGRADE_FROM)

test-vm: setup release ## Three emulated machines with stock Debian kernels of their own; installs QEMU
	GLU_BIN_DIR=$(BIN_DIR) $(within) $(LONG_TIMEOUT) scripts/test-vm.sh

bench: setup release ## Measure against the local filesystem
	GLU_BIN_DIR=$(or $(CARGO_TARGET_DIR),$(CURDIR)/target)/release $(within) $(LONG_TIMEOUT) cargo run --release --quiet -p tests --bin bench

soak: setup ## dbench, fio, stress-ng and copies, from Debian; SECONDS_EACH=30 for longer
	$(within) $(BUILD_TIMEOUT) cargo build --workspace --bins --quiet
	$(within) $(LONG_TIMEOUT) scripts/soak.sh

conformance: setup ## pjdfstest and fsx on two nodes; FSX_OPS=1000000 for longer
	$(within) $(BUILD_TIMEOUT) cargo build --workspace --bins --quiet
	$(within) $(LONG_TIMEOUT) scripts/conformance.sh

clean: ## Remove what was built, and leftover test clusters
	scripts/end-test-clusters.sh
	cargo clean
