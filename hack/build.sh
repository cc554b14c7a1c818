#!/bin/sh
# Builds a release executable as one static file and prints its path: weft's, or that of
# PACKAGE's BINARY.
#
# usage: build.sh [PACKAGE BINARY]
#
# A musl build starts in less than half the time of a static glibc build, so it is taken
# where the toolchain has the target. WEFT_LIBC=glibc takes glibc all the same.
set -eu
package=${1:-weft} binary=${2:-weft}
cd "$(dirname "$0")/.."
. hack/rust.sh

machine=$(rustc -vV | sed -n 's/^host: \([^-]*\)-.*/\1/p')
musl=$machine-unknown-linux-musl

if [ "${WEFT_LIBC:-}" = glibc ]; then
	target=$machine-unknown-linux-gnu
elif [ -d "$(rustc --print sysroot)/lib/rustlib/$musl/lib" ]; then
	target=$musl
else
	echo "this toolchain lacks the target $musl: linking glibc statically;" \
		"plugins start faster with musl (rustup target add $musl)" >&2
	target=$machine-unknown-linux-gnu
fi
# Fixed addresses save the loader's relocation at every start.
flags="-C target-feature=+crt-static -C relocation-model=static"
# Code and constants in one mapping instead of four: page faults are a seventh of a pod
# ADD's CPU time. The mapping starts at a multiple of 2 MB, so it can be one huge page.
flags="$flags -C link-arg=-Wl,-z,noseparate-code"

RUSTFLAGS="${RUSTFLAGS:-} $flags" cargo build --quiet --locked --release --target "$target" \
	--package "$package" --bin "$binary" >&2
echo "${CARGO_TARGET_DIR:-target}/$target/release/$binary"
