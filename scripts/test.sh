#!/usr/bin/env bash
# Every test of berth: formatting and lints, unit and property tests, the bus and store suites against a real
# broker and real databases, the agent against a real kernel and libvirt, whole clouds. Installs what is missing
# and starts the services it needs; a tier that cannot run is a failure. Run as root.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$HOME/.cargo/bin:$PATH"

say() { printf '\n== %s (%ds)\n' "$*" "$SECONDS"; }

((EUID == 0)) || { echo "test: run as root: the tests make network namespaces and virtual machines" >&2; exit 1; }

say "packages"
scripts/install-packages.sh all

say "services and guest"
trap 'scripts/test-services.sh stop >/dev/null' EXIT
scripts/test-services.sh start
eval "$(scripts/test-services.sh env)"
scripts/guest-image.sh

say "formatting and lints"
cargo fmt --all --check
cargo clippy --workspace --all-targets --locked -- -D warnings

say "build"
cargo test --workspace --locked --no-run

say "unit, bus, store and agent tests"
cargo test --workspace --locked --exclude berth-tests

# The services as users get them, without what unit tests add to their libraries.
say "whole clouds"
cargo build --workspace --locked
cargo test --locked -p berth-tests -- --test-threads=2

say "all tests passed"
