#!/bin/sh
# Installs those of the named Debian packages that are missing. Services that come
# with them are not started.
set -eu

missing=
for package in "$@"; do
	state=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
	[ "$state" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null; then
	echo "needed here, and no apt-get to install it with:$missing" >&2
	exit 1
fi
echo "installing:$missing"
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
	# invoke-rc.d(8): 101 forbids starting.
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
	trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086 # a list of words
if ! apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1; then
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi
