#!/bin/sh
# Installs the Debian packages that a target needs and that are missing. Services that
# come with them are not started, and no installed package is removed. What another
# package provides (Docker's containerd.io has containerd and runc) is not missing.
#
# usage: need.sh demo | test | bench | lint | PACKAGE...
set -eu

# Every program that the targets execute; the packages of a minimal Debian or Ubuntu
# (debootstrap --variant=minbase) are not listed.
demo='iproute2 procps tcpdump iputils-ping bird2 frr iperf3 ca-certificates'
lint='shellcheck python3-venv golang-go ca-certificates'
bench='iproute2 procps iptables nftables containernetworking-plugins iperf3 ethtool'
test="$demo $lint nftables iptables jq strace systemd containernetworking-plugins
	containerd runc podman busybox-static golang-github-appc-cni-dev binutils"

case ${1-} in
demo) packages=$demo ;;
test) packages=$test ;;
bench) packages=$bench ;;
lint) packages=$lint ;;
*) packages=$* ;;
esac

# " name name … ": installed packages and what they provide, without versions.
installed=$(dpkg-query --show --showformat='${db:Status-Status} ${Package}, ${Provides}\n' 2>/dev/null |
	sed -n '/^installed /{ s///; s/([^)]*)//g; s/,/ /g; p; }' | tr -s ' \n' ' ')
missing=
for package in $packages; do
	case " $installed" in
	*" $package "*) ;;
	*) missing="$missing $package" ;;
	esac
done
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null; then
	echo "cannot install missing packages: apt-get not found; needed:$missing" >&2
	exit 1
fi
if [ "$(id -u)" != 0 ]; then
	echo "cannot install missing packages without root; run: apt-get install$missing" >&2
	exit 1
fi
echo "installing:$missing" >&2
log=$(mktemp)
policy=/usr/sbin/policy-rc.d
if [ -e "$policy" ]; then
	trap 'rm -f "$log"' EXIT
else
	# invoke-rc.d(8): 101 forbids starting.
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
	trap 'rm -f "$log" "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive

install() {
	# shellcheck disable=SC2086 # a list of words
	apt-get install -y -qq --no-install-recommends --no-remove \
		-o DPkg::Lock::Timeout=300 $missing >"$log" 2>&1
}

# The package lists may be old, or not there at all.
install || { apt-get update -qq && install; } || {
	cat "$log" >&2
	echo "cannot install:$missing" >&2
	exit 1
}
