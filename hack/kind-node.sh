#!/bin/sh
# Runs on a node of the kind cluster, in the directory that kind.sh copied there.
set -eu
cd "$(dirname "$0")"
# kind's node image brings the reference plugins.
./weft install --replace-foreign --map nodes.json --conf 10-weft.conflist
exec /opt/cni/bin/weft sync
