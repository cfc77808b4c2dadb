# berth: build, try, test. `make demo` and `make test` install what is missing on a Debian 12 machine, as root.
SHELL := /bin/bash
.DEFAULT_GOAL := help
# As in scripts/environment.sh: root may have neither HOME nor sbin.
export HOME := $(or $(HOME),/root)
export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH):/usr/local/sbin:/usr/sbin:/sbin

.PHONY: help packages build guest demo demo-down test check docs clean
.PHONY: bench-placement bench-routers bench-durable bench-scale bench-failover bench-bus bench-boot bench-agent bench-plumbing

help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

packages: ## Install what building, running and testing needs
	@scripts/install-packages.sh all

build: ## Build every binary
	@scripts/install-packages.sh build
	cargo build --workspace --locked

guest: ## Build the test guest
	@scripts/install-packages.sh run guest
	@scripts/guest-image.sh

demo: ## From nothing to a VM that answers, on this machine
	@scripts/demo/up.sh

demo-down: ## Remove every trace of the demo
	@scripts/demo/down.sh

test: ## Every test
	@scripts/test.sh

bench-bus: ## Confirmed publishing beside bare lapin, on the broker of the tests (which keeps running)
	@scripts/install-packages.sh build run test
	@scripts/test-services.sh start
	@variables=$$(scripts/test-services.sh env) && eval "$$variables" && \
		cargo bench -p berth-common --bench bus --locked

check: ## Formatting and lints
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo clippy --workspace --test laws --test libvirt --test lvm --test usage --test vlan --locked -- -D warnings

bench-placement: ## How long placement decisions take
	@scripts/install-packages.sh build
	cargo bench -p berth-scheduler --bench placement --locked

bench-routers: ## What a change costs beside 10, 100 and 1,000 routers of one external network
	@scripts/install-packages.sh build
	cargo bench -p berth-scheduler --bench routers --locked

bench-durable: ## Placements per second beside the bare broker
	@scripts/install-packages.sh build run test
	@bench/durable.sh

bench-scale: ## What 1,000 hosts and 100,000 instances cost the scheduler
	@scripts/install-packages.sh build run test
	@bench/scale.sh

bench-failover: ## How long until a second scheduler takes over
	@scripts/install-packages.sh build run test
	@bench/failover.sh

bench-boot: ## How long until a guest runs, beside the same by hand
	@scripts/install-packages.sh build run guest test
	@bench/host.sh boot

bench-agent: ## What the agent takes while 50 guests run
	@scripts/install-packages.sh build run guest test
	@bench/host.sh agent

bench-plumbing: ## What 100 ports cost beside the same by hand, and a change of rules as ports grow
	@scripts/install-packages.sh build run
	@bench/plumbing.sh

docs: ## Write docs/messages.md anew from the types
	BERTH_WRITE_DOCS=1 cargo test -p berth-common --test messages

clean: ## Remove build products and caches
	cargo clean
	rm -rf .cache
