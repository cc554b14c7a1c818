#!/bin/sh
# Tries the README on fresh machines: a minimal system with nothing but git and make, a
# clean clone of HEAD, `make demo` and `make test` as the README says, and an installation
# without a network from vendored sources. Needs root; 10 to 15 minutes a suite.
#
# usage: fresh.sh [SUITE...]    bookworm and trixie by default; noble with its MIRROR set
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- bookworm trixie

# What is run in the minimal system. CI makes a missing prerequisite of a test a failure.
README='
cd /root/weft
make demo
CI=true make test
'
OFFLINE='
cd /root/weft
mkdir .cargo
cargo vendor --locked --quiet >.cargo/config.toml
rm -rf /root/.cargo/registry
unshare --net make install DESTDIR=/root/installed
/root/installed/opt/cni/bin/weft version
'

for suite in "$@"; do
	root=$(mktemp -d "/var/tmp/weft-fresh-$suite.XXXXXX")
	trap 'rm -rf "$root"' EXIT
	echo "fresh.sh: $suite: a minimal system with git and make"
	hack/debian-root.sh make "$suite" "$root" git make
	git clone --quiet --no-hardlinks . "$root/root/weft"
	hack/debian-root.sh run "$root" sh -e -c "$README"
	hack/debian-root.sh run "$root" sh -e -c "$OFFLINE"
	rm -rf "$root"
	echo "fresh.sh: $suite: passed"
done
