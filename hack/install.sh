#!/bin/sh
# Builds, and installs the executable under each of its names into DIRECTORY; further
# arguments are those of `weft install`.
#
# usage: install.sh DIRECTORY [--replace-foreign]
set -eu
directory=$1
shift
executable=$("$(dirname "$0")/build.sh")
cd "$(dirname "$0")/.."
exec "$executable" install --bin "$directory" "$@"
