# make up      a cluster on this machine, and the quick start's URL
# make down    end it; nothing remains
# make test    unit tests of all crates, then tests on real clusters
# make apps-test   the demo applications in manifests/, from their Dockerfiles to their data
# make chaos   random kills of everything while pods churn; then nothing may be lost or left: make chaos MINUTES=10 STORE=etcd
# make bench   ours beside stock Kubernetes: make bench STOCK=<folder with stock's bin/>
# make conformance   Kubernetes' own suite: [FOCUS=regex] [TESTS=file of names] [STOCK=folder where it is built]
# make stock-diff  what stock answers to the same requests: make stock-diff STOCK=<its kubeconfig>
# make lint    formatting, clippy, licences and advisories

SHELL := /bin/bash
# What /version says was built.
export GIT_COMMIT := $(shell git rev-parse HEAD 2>/dev/null)
BIN := target/release
CORACLE := $(BIN)/coracle
WORKERS ?= 2
MINUTES ?= 10

.PHONY: help setup build up down status test unit cluster-test apps-test chaos bench stock-diff conformance lint

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

setup:
	@scripts/setup

# Every cargo command selects the whole workspace: with another selection dependencies get other features, and compile again.
# pause has few, and runs in every pod: it alone is static.
build: setup
	cargo build --release --workspace
	@cargo rustc --quiet --release -p pause --bin pause -- -C target-feature=+crt-static
	@mkdir -p $(BIN)/images && install -s -m 755 $(BIN)/pause $(BIN)/dns $(BIN)/images

up: build
	$(CORACLE) up --workers $(WORKERS)

down:
	@if [ -x $(CORACLE) ]; then $(CORACLE) down; else echo "nothing is built, so nothing runs"; fi

status:
	$(CORACLE) status

test: unit cluster-test

unit: build
	cargo test --release --workspace --exclude tests --no-fail-fast

# Every stage on the embedded store; on etcd those that a store could break, and those about etcd.
ON_ETCD := nodes_are_ready every_process up_again apply_file get_in_every delete_in_every killed errors no_request_is_lost store

cluster-test: build
	@scripts/setup tests
	cargo test --release --workspace --test spine
	STORE=etcd cargo test --release --workspace --test spine -- $(ON_ETCD)

# Random kills while fifty pods churn. A printed seed repeats a run: make chaos MINUTES=10 SEED=1 STORE=etcd
chaos: build
	$(BIN)/chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(if $(filter etcd,$(STORE)),--etcd)

apps-test: build
	cargo test --release --workspace --test apps

bench: build
	@test -n "$(STOCK)" || { echo "say where stock's binaries are: make bench STOCK=<folder with bin/>"; exit 2; }
	$(BIN)/bench --stock $(STOCK)

# The same requests to ours and to a running stock control plane, whose kubeconfig names its server by address.
stock-diff: build
	@test -n "$(STOCK)" || { echo "say where stock's kubeconfig is: make stock-diff STOCK=<file>"; exit 2; }
	@$(CORACLE) up --name stockdiff --workers 0; $(BIN)/stockdiff --ours /var/lib/coracle/stockdiff/admin.conf --stock $(STOCK); \
	code=$$?; $(CORACLE) down --name stockdiff; exit $$code

conformance: build
	@FOCUS='$(FOCUS)' TESTS='$(TESTS)' STOCK='$(STOCK)' tests/conformance/conformance $(BIN)

lint:
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets -- -D warnings
	@if command -v cargo-deny >/dev/null; then cargo deny check; else echo "cargo-deny is not installed: licences and advisories not checked"; fi
