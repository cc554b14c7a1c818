#!/bin/sh
# A minimal Debian or Ubuntu in a directory. Needs root.
#
# usage: debian-root.sh make SUITE DIR [PACKAGE...]
#        debian-root.sh run DIR COMMAND...
#
# make  debootstrap --variant=minbase, from MIRROR where that is set; certificates that
#       this machine trusts besides the distribution's are trusted there too
# run   runs a command as that system's root, in mount and PID namespaces that end with
#       it; the network is this machine's. BIND names a directory of this machine that it
#       sees under the same path.
set -eu
cd "$(dirname "$0")/.."

make_root() {
	suite=$1 directory=$2
	shift 2
	packages=$(IFS=,; echo "$*")
	hack/need.sh debootstrap debian-archive-keyring
	mkdir -p "$directory"
	# shellcheck disable=SC2086 # no argument where there is no mirror
	debootstrap --variant=minbase ${packages:+--include="$packages"} \
		"$suite" "$directory" ${MIRROR:-} >"$directory.log" 2>&1 || {
		tail -n 20 "$directory.log" >&2
		return 1
	}
	rm "$directory.log"
	# It becomes `/`, which every user enters.
	chmod 755 "$directory"
	certificates=/usr/local/share/ca-certificates
	mkdir -p "$directory$certificates"
	for certificate in "$certificates"/*.crt; do
		[ ! -e "$certificate" ] || cp "$certificate" "$directory$certificates"
	done
	# Where ca-certificates is installed later, its installation does this.
	[ ! -x "$directory/usr/sbin/update-ca-certificates" ] ||
		chroot "$directory" update-ca-certificates >/dev/null 2>&1
}

# pivot_root instead of chroot: the kernel allows no user namespace to a process in a chroot.
# shellcheck disable=SC2016 # expanded by the shell that runs it
ENTER='
root=$1
shift
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=755 run "$root/run"
if [ -n "$BIND" ]; then
	mkdir -p "$root$BIND"
	mount --bind "$BIND" "$root$BIND"
fi
mkdir -p "$root/old-root"
cd "$root"
pivot_root . old-root
umount -l /old-root
rmdir /old-root
cd /root
exec "$@"
'

run() {
	directory=$(realpath "$1")
	shift
	exec env -i BIND="${BIND:-}" HOME=/root TERM="${TERM:-dumb}" CI="${CI:-}" \
		PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
		unshare --mount --pid --fork --kill-child sh -e -c "$ENTER" sh "$directory" "$@"
}

case ${1-} in
make)
	shift
	make_root "$@"
	;;
run)
	shift
	run "$@"
	;;
*)
	sed -n '2,/^set/s/^# \{0,1\}//p' hack/debian-root.sh >&2
	exit 2
	;;
esac
