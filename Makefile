# What one types. `make` alone lists it. Everything honours CARGO_TARGET_DIR; tools that are not part of a Rust
# installation are pinned and live in a cache of their own (see tests/interop/tools).

SHELL := /bin/sh
.DEFAULT_GOAL := help

# rustup looks for its toolchains under HOME. With another HOME than the one it was installed under (an empty one, say)
# its cargo finds none, so say where they are.
rust_home := $(patsubst %/.cargo/bin/cargo,%,$(shell command -v cargo))
ifeq ($(RUSTUP_HOME)$(wildcard $(HOME)/.rustup),)
ifneq ($(wildcard $(rust_home)/.rustup),)
export RUSTUP_HOME := $(rust_home)/.rustup
export CARGO_HOME ?= $(rust_home)/.cargo
endif
endif

target := $(or $(CARGO_TARGET_DIR),target)
makima := $(target)/debug/makima
tools := tests/interop/tools
baseline := tests/proto-baseline.binpb

.PHONY: help
help: ## What there is to type
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

.PHONY: build
build: ## The binary, for trying it out
	cargo build --bin makima

.PHONY: demo
demo: build ## A contract of dependent tasks on two daemons, here and now
	$(makima) demo

.PHONY: chaos
chaos: build ## The demo with a daemon, a worktree and the server lost on the way
	$(makima) demo --chaos

.PHONY: test
test: ## Everything, on SQLite and on a Postgres of its own
	@tests/prepare
	INSTA_UPDATE=no cargo test

.PHONY: simulate
simulate: ## A fleet in memory, 20000 histories of failures (RUNS, SEED choose others)
	@# Ours alone is optimised: what it depends on is as the other tests have it.
	MAKIMA_SIMULATE_RUNS=$(or $(RUNS),$(MAKIMA_SIMULATE_RUNS),20000) MAKIMA_SIMULATE_SEED=$(or $(SEED),$(MAKIMA_SIMULATE_SEED),1) \
	    cargo test --config profile.dev.package.makima.opt-level=1 --lib ledger::simulation -- --nocapture

.PHONY: faults
faults: ## Faults from seeds on both databases: RUNS=100 each, the first SEED=1
	@tests/prepare
	MAKIMA_FAULT_RUNS=$(or $(RUNS),100) MAKIMA_FAULT_SEED=$(or $(SEED),1) \
	    cargo test --test it faults::faults_on_ -- --nocapture

.PHONY: bench
bench: ## How fast it is, beside what this machine can do: ONLY=lifecycles, QUICK=1, ROUNDS=5, DATABASES=sqlite
	@tests/prepare
	MAKIMA_BENCH_QUICK=$(QUICK) MAKIMA_BENCH_ONLY=$(ONLY) MAKIMA_BENCH_ROUNDS=$(ROUNDS) MAKIMA_BENCH_DATABASES=$(DATABASES) \
	    MAKIMA_BENCH_PEERS=$(PEERS) MAKIMA_BENCH_JSON="$(or $(JSON),$(abspath $(target))/bench.json)" \
	    cargo bench --bench load $(if $(PROFILE),--profile $(PROFILE))

.PHONY: interop
interop: build ## grpcurl, a Python client and the real Claude Code CLI against it
	@python=$$($(tools) python) && claude=$$($(tools) claude) && \
	    "$$python" tests/interop/run.py --makima "$(makima)" --claude "$$claude"

.PHONY: lint
lint: ## Format, clippy, the protos' style and their compatibility
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	@buf=$$($(tools) buf) && set -x && "$$buf" lint && "$$buf" breaking --against $(baseline)

.PHONY: proto-baseline
proto-baseline: ## Takes the protos as they are for what `lint` compares with (when an issue closes)
	@buf=$$($(tools) buf) && set -x && "$$buf" build --exclude-source-info -o $(baseline)

.PHONY: snapshots
snapshots: ## Takes the text that tests print for what they compare with; read the diff
	INSTA_UPDATE=always cargo test
