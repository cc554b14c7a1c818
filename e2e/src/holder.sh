# The first process of a lab: it is PID 1 of the lab's PID namespace and lives
# until its standard input ends, that is until whoever started the lab is gone.
# Arguments: the names of the nodes.
set -e
# Before the new /proc is mounted, ours still tells the PID seen from outside.
read -r outside rest </proc/self/stat
mount -n -t proc proc /proc
mount -n -t tmpfs -o mode=755 lab /run
mkdir -p /run/.lab/node /run/.lab/host/etc /run/.lab/host/lib /run/.lab/links/etc /run/.lab/links/lib
mount -n --rbind /etc /run/.lab/host/etc
mount -n --rbind /var/lib /run/.lab/host/lib

# What a node sees of the host's /etc and /var/lib: a link per entry. Relative
# links are copied as they are, they would not resolve from another directory.
links() {
    ln -s -t "$2" "$1"/* 2>/dev/null || true
    find "$1" -maxdepth 1 -type l -exec cp -P --remove-destination -t "$2" {} +
}
links /run/.lab/host/etc /run/.lab/links/etc
links /run/.lab/host/lib /run/.lab/links/lib
rm -f /run/.lab/links/etc/weft /run/.lab/links/etc/cni /run/.lab/links/lib/cni
echo "holder $outside"

for name in "$@"; do
    unshare --mount --net --uts sh -c "$NODE_SCRIPT" sh "$name" </dev/null &
done
# With SIGCHLD ignored the kernel itself reaps daemons that lost their parent.
exec env --ignore-signal=CHLD cat >/dev/null 2>&1
