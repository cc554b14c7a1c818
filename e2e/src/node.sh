# The process that holds one node's namespaces. Argument: the node's name.
set -e
trap 'echo "failed $1"' EXIT
new=/run/.lab/node
mount -n -t tmpfs -o mode=755 run "$new"
# Not /run/weft, not /var/lib/cni: as on a fresh machine, who needs them makes them.
mkdir -p "$new/.lab" "$new/netns" "$new/lock"
mount -n --rbind /run/.lab "$new/.lab"
mount -n --rbind "$new" /run
mount -n -t tmpfs -o mode=755 etc /etc
mount -n -t tmpfs -o mode=755 lib /var/lib
cp -a /run/.lab/links/etc/. /etc
cp -a /run/.lab/links/lib/. /var/lib
mkdir -p /etc/weft/nodes.d /etc/cni/net.d
hostname "$1"
trap - EXIT
echo "ready $1 $$"
exec sleep infinity >/dev/null 2>&1
