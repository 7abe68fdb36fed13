# What people and CI run; `make help` lists it. Every target does the set-up it needs (deploy/setup/setup.sh).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
export PATH := $(HOME)/.cargo/bin:$(PATH)
export TARGET := $(or $(CARGO_TARGET_DIR),target)

# Options of `make demo`, e.g. make demo ARGS="--once --playbook loops.yml"
ARGS ?=
# Suite of `make bench`: first, mesh, live, work, api. ARGS="--only mesh.rtt" measures some of its rows.
SUITE ?= first

# One cargo call with one set of packages, so that every call after it finds the same features and rebuilds nothing.
RELEASE = cargo build --release -p plexus -p plexus-controller -p plexus-tests -p xtask && $(NODE)
# plexus-node lies on every machine, so it is built alone, for size. Randomness comes from the kernel, whose own sources are
# enough: measuring the processor's jitter would take tens of milliseconds of every start. No tables for unwinding, packed relocations, and
# where Rust's own linker is the default, functions of the same code stand once.
comma := ,
FOLD = $(if $(filter x86_64,$(shell uname -m)),-C link-arg=-Wl$(comma)--icf=all)
NODE = RUSTFLAGS="-C link-arg=-Wl$(comma)-z$(comma)pack-relative-relocs -C force-unwind-tables=no $(FOLD)" \
	CFLAGS="-fno-asynchronous-unwind-tables -fno-unwind-tables" AWS_LC_SYS_NO_JITTER_ENTROPY=1 \
	cargo build --profile node -p plexus-node && ln -f "$$TARGET/node/plexus-node" "$$TARGET/release/plexus-node"

.DEFAULT_GOAL := help
.PHONY: help setup build demo demo-stop test verify bench sim chaos mutants fmt

help: ## Lists the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: ## Installs what is missing: podman, runc, the EE image, the awx command
	@deploy/setup/setup.sh

build: ## Builds the release binaries
	@deploy/setup/setup.sh rust
	@$(RELEASE)

demo: ## Runs a playbook across a hop; ARGS: --once --serve --playbook --inventory --ee --limit --tags --skip-tags --check --diff --extra-vars
	@deploy/setup/setup.sh
	@$(RELEASE)
	@"$$TARGET/release/xtask" demo $(ARGS)

demo-stop: ## Stops a running demo, from anywhere
	@deploy/setup/setup.sh rust
	@[ -x "$$TARGET/release/xtask" ] || $(RELEASE)
	@"$$TARGET/release/xtask" demo-stop

test: ## Everything that guards a change: format, lints, unit, integration and end-to-end tests, docs
	@tests/run.sh test

verify: ## The longer proofs: the crash sweep at more passages, the playbooks that run for minutes
	@tests/run.sh verify

bench: ## Measures and prints a table; SUITE=first, mesh, live, work or api, ARGS="--only ROW"
	@deploy/setup/setup.sh
	@$(RELEASE)
	@cargo build --release -p plexus-mesh --examples
	@"$$TARGET/release/xtask" bench --suite $(SUITE) $(ARGS)

sim: ## Lives troubled lives of a simulated mesh; SECONDS=60 SEED=0 NODES=40
	@deploy/setup/setup.sh rust
	@$(RELEASE)
	@"$$TARGET/release/xtask" sim --seconds $(or $(SECONDS),60) --seed $(or $(SEED),0) --nodes $(or $(NODES),40)

chaos: ## Kills, stops and cuts real processes at random; SEED=1 MINUTES=1
	@deploy/setup/setup.sh rust
	@cargo build --workspace --all-targets
	@PLEXUS_VERIFY=1 PLEXUS_SEED=$(or $(SEED),1) PLEXUS_MINUTES=$(or $(MINUTES),1) cargo test --workspace --test chaos

mutants: ## Takes safety lines out of the last commit, one at a time, and demands that tests fail; ARGS="--only NAME"
	@deploy/setup/setup.sh rust
	@cargo build --workspace --all-targets
	@"$$TARGET/debug/xtask" mutants $(ARGS)

fmt: ## Formats the source
	@cargo fmt
