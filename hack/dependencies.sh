#!/bin/sh
# Checks the dependencies: licences, advisories, sources and duplicates by cargo-deny
# (deny.toml), and whether every one is used by cargo-machete. Both are built once, into
# target/tools.
#
# usage: dependencies.sh [CHECK...]    cargo-deny's checks; all by default, where
#                                      `advisories` needs the advisory database
set -eu
cd "$(dirname "$0")/.."
. hack/rust.sh
tools=$PWD/target/tools
export CARGO_TARGET_DIR="$tools/build"
cargo install --quiet --locked --root "$tools" cargo-machete@0.9.1 cargo-deny@0.18.3
PATH=$tools/bin:$PATH
cargo deny --locked check "$@"
for directory in . fuzz; do
	cargo machete "$directory"
done
