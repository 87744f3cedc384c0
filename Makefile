# What one types. `make` alone lists it. Everything honours CARGO_TARGET_DIR; tools that are not part of a Rust
# installation are pinned and live in a cache of their own (see tests/interop/tools).

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

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

# For the build that is optimized by a profile: it, the build that makes it, and where both are.
host = $(shell rustc -vV | sed -n 's/^host: //p')
profdata = $(shell rustc --print sysroot)/lib/rustlib/$(host)/bin/llvm-profdata
profile := $(abspath $(target))/pgo/makima.profdata
counted := $(abspath $(target))/pgo/counted
# Both with the same settings otherwise: those are in the names of functions, by which the profile is read.
counting = RUSTFLAGS="$(RUSTFLAGS) -Cprofile-generate=$(counted)" CARGO_TARGET_DIR="$(target)/pgo/counting"
optimized = RUSTFLAGS="$(RUSTFLAGS) -Cprofile-use=$(profile)" CARGO_TARGET_DIR="$(target)/pgo"

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
bench: $(if $(PGO),$(profile)) ## How fast it is, beside what this machine can do: ONLY=lifecycles, QUICK=1, ROUNDS=5, DATABASES=sqlite, PGO=1
	@tests/prepare
	MAKIMA_BENCH_QUICK=$(QUICK) MAKIMA_BENCH_ONLY=$(ONLY) MAKIMA_BENCH_ROUNDS=$(ROUNDS) MAKIMA_BENCH_DATABASES=$(DATABASES) \
	    MAKIMA_BENCH_PEERS=$(PEERS) MAKIMA_BENCH_JSON="$(or $(JSON),$(abspath $(target))/bench.json)" \
	    $(if $(PGO),$(optimized)) cargo bench --bench load $(if $(PROFILE),--profile $(PROFILE)) $(if $(PGO),--target $(host))

.PHONY: release
release: $(profile) ## The binary as fast as it gets: built twice, for what the first one did most (PGO); some half an hour
	$(optimized) cargo build --release --bin makima --target $(host)
	@echo "$(target)/pgo/$(host)/release/makima"

# What the benches do with a build that counts. Made once; `rm` it to have it made again.
$(profile):
	@tests/prepare
	@test -x "$(profdata)" || rustup component add llvm-tools || { echo "there is no $(profdata): rustup component add llvm-tools" >&2; exit 1; }
	rm -rf "$(counted)" "$(target)/pgo/$(host)"
	$(counting) cargo bench --bench load --target $(host) --no-run
	$(counting) LLVM_PROFILE_FILE="$(counted)/%m.profraw" MAKIMA_BENCH_ONLY=lifecycles,starts,real MAKIMA_BENCH_ROUNDS=1 \
	    MAKIMA_BENCH_JSON="$(counted)/bench.json" cargo bench --bench load --target $(host)
	"$(profdata)" merge -o "$@" "$(counted)"/*.profraw

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
