#!/bin/sh
# cargo as root of its own user namespace where it is started by an ordinary
# user: what the tests do to the kernel they do in namespaces of their own.
set -eu
cd "$(dirname "$0")/.."
if [ "$(id -u)" = 0 ]; then
	exec cargo "$@"
fi
exec unshare --user --map-root-user --net --mount cargo "$@"
