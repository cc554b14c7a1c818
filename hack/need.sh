#!/bin/sh
# Installs those of the named Debian packages that are missing. Services that come
# with them are not started. What another package provides (Docker's containerd.io has
# containerd and runc) is not missing: installing it would remove that one.
set -eu

# " name name … ": installed packages and what they provide, without versions.
installed=$(dpkg-query --show --showformat='${db:Status-Status} ${Package}, ${Provides}\n' 2>/dev/null |
	sed -n '/^installed /{ s///; s/([^)]*)//g; s/,/ /g; p; }' | tr -s ' \n' ' ')
missing=
for package in "$@"; do
	case " $installed" in
	*" $package "*) ;;
	*) missing="$missing $package" ;;
	esac
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
