#!/bin/sh
# Builds the whole workspace, tests included, with the minimum Rust of Cargo.toml: with
# rustup's toolchain of that version, else with Debian 13's compiler in a minimal system
# (needs root). Both are kept in target/msrv.
set -eu
cd "$(dirname "$0")/.."
minimum=$(sed -n 's/^rust-version = "\([0-9.]*\)".*/\1/p' Cargo.toml)
directory=$PWD/target/msrv
mkdir -p "$directory"

build='build --quiet --workspace --all-targets --locked'
export CARGO_TARGET_DIR="$directory/build" CARGO_PROFILE_DEV_DEBUG=0

if cargo "+$minimum" --version >/dev/null 2>&1; then
	# shellcheck disable=SC2086 # a list of words
	cargo "+$minimum" $build
	version=$(rustc "+$minimum" --version)
else
	root=$directory/root
	if [ ! -e "$root.made" ]; then
		rm -rf "$root"
		hack/debian-root.sh make trixie "$root" ca-certificates cargo gcc libc6-dev
		touch "$root.made"
	fi
	in_root() {
		BIND=$PWD hack/debian-root.sh run "$root" sh -e -c "cd '$PWD'
			export CARGO_HOME='$directory/cargo' CARGO_TARGET_DIR='$CARGO_TARGET_DIR'
			export CARGO_PROFILE_DEV_DEBUG=$CARGO_PROFILE_DEV_DEBUG
			$*"
	}
	version=$(in_root rustc --version)
	case $version in
	"rustc $minimum."*) ;;
	*)
		echo "msrv.sh: Debian 13 has $version, not $minimum: install $minimum with rustup" >&2
		exit 1
		;;
	esac
	in_root cargo "$build"
fi
echo "msrv.sh: the workspace builds with $version"
