#!/bin/sh
# Runs cargo. An ordinary user gets root in a user namespace: what the tests do to the
# kernel, they do in namespaces of their own.
set -eu
cd "$(dirname "$0")/.."
. hack/rust.sh
if [ "$(id -u)" = 0 ]; then
	exec cargo "$@"
fi
exec unshare --user --map-root-user --net --mount cargo "$@"
