#!/bin/sh
# What the DaemonSet's init container does on a node: the executables, then the node
# map, then the conflist that names them, each by rename. Run again (a new version of
# the DaemonSet, a restart) it replaces them the same way under living pods.
#
# HOST         where the node's directories are mounted
# CONFIG       directory of the conflist 10-weft.conflist
# KUBELET_DIR  kubelet's directory on the node (its --root-dir)
# POD_UID      this pod's UID, under which kubelet keeps the pod's volumes
set -eu
HOST=${HOST-/host}
CONFIG=${CONFIG:-/config}
KUBELET_DIR=${KUBELET_DIR:-/var/lib/kubelet}

bin=$HOST/opt/cni/bin
# Distributions put the reference host-local and loopback there; they are kept.
weft install --bin "$bin" --replace-foreign

# The map is a link into kubelet's own copy of the ConfigMap: kubelet writes every
# change there for as long as the pod is, and nothing of weft's has to run for it.
map=$KUBELET_DIR/pods/$POD_UID/volumes/kubernetes.io~configmap/nodes/nodes.json
maps=$HOST/etc/weft/nodes.d
mkdir -p "$maps"
ln -sf "$map" "$maps/.nodes.json.new"
mv -f "$maps/.nodes.json.new" "$maps/nodes.json"

weft install --bin "$bin" --replace-foreign \
	--conf "$CONFIG/10-weft.conflist" --conf-dir "$HOST/etc/cni/net.d"
