#!/bin/sh
# Builds, and installs the executable under each of its names into DIRECTORY.
# Every file appears by rename, so that a runtime never meets half of one.
set -eu
directory=$1
executable=$("$(dirname "$0")/build.sh")
cd "$(dirname "$0")/.."

mkdir -p "$directory"
temporary=$directory/.weft.$$
trap 'rm -f "$temporary"' EXIT
cp "$executable" "$temporary"
chmod 755 "$temporary"
for name in veth host-local routing loopback; do
	ln "$temporary" "$directory/.$name.$$"
	mv -f "$directory/.$name.$$" "$directory/$name"
done
mv -f "$temporary" "$directory/weft"
echo "installed weft, veth, host-local, routing and loopback in $directory"
