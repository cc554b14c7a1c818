#!/bin/sh
# A Kubernetes cluster in containers (kind) whose pod network is weft.
#
# usage: kind.sh all [copy|manifests]      create, install, test, delete
#        kind.sh create|test|delete
#        kind.sh install [copy|manifests]
#        kind.sh stage DIR NODELIST        what `install copy` copies to each node,
#                                          for the nodes of NODELIST, the output of
#                                          `kubectl get nodes --output json`
#
# copy puts the files on the nodes with docker; manifests builds the image and applies
# conf/kubernetes. Needs docker, kind and kubectl, and changes the current context of
# kubectl as kind does. CLUSTER names the cluster (weft). WEFT names an executable to
# take instead of building one.
set -eu
caller=$PWD
cd "$(dirname "$0")/.."
CLUSTER=${CLUSTER:-weft}
IMAGE=weft:0.1.0
KUBECTL_IMAGE=weft-kubectl:0.1.0

cluster_config() {
	cat <<'END'
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
networking:
  disableDefaultCNI: true
  podSubnet: 10.244.0.0/16
nodes:
  - role: control-plane
  - role: worker
  - role: worker
END
}

cluster_nodes() {
	kind get nodes --name "$CLUSTER"
}

# wait_for SECONDS WHAT COMMAND...: until the command succeeds.
wait_for() {
	seconds=$1 what=$2
	shift 2
	until "$@"; do
		seconds=$((seconds - 1))
		if [ "$seconds" -le 0 ]; then
			echo "kind.sh: waited in vain until $what" >&2
			return 1
		fi
		sleep 1
	done
}

# Whether every node has its pod range: what weft cannot do without.
every_node_has_a_range() {
	ranges=$(kubectl get nodes --output jsonpath='{range .items[*]}{.spec.podCIDR}{"\n"}{end}')
	[ "$(printf '%s\n' "$ranges" | grep -c /)" = "$(cluster_nodes | wc -l)" ]
}

create() {
	cluster_config | kind create cluster --name "$CLUSTER" --config -
	wait_for 60 "every node has a pod range" every_node_has_a_range
}

# stage DIR NODELIST
stage() {
	executable=${WEFT:-$(hack/build.sh)}
	mkdir -p "$1"
	cp hack/kind-node.sh "$1/kind-node.sh"
	cp "$executable" "$1/weft"
	cp conf/tunnel.conflist "$1/10-weft.conflist"
	"$1/weft" nodes import - <"$2" >"$1/nodes.json"
}

install_by_copy() {
	directory=$(mktemp -d)
	trap 'rm -rf "$directory"' EXIT
	kubectl get nodes --output json >"$directory/nodelist.json"
	stage "$directory/weft" "$directory/nodelist.json"
	for node in $(cluster_nodes); do
		docker exec "$node" mkdir -p /root/weft
		docker cp "$directory/weft/." "$node:/root/weft"
		docker exec "$node" sh /root/weft/kind-node.sh
	done
}

install_by_manifests() {
	hack/image.sh "$IMAGE"
	hack/image.sh --kubectl "$KUBECTL_IMAGE"
	kind load docker-image "$IMAGE" "$KUBECTL_IMAGE" --name "$CLUSTER"
	kubectl apply --filename conf/kubernetes/node-map.yaml
	# Once now, rather than at the next full minute.
	kubectl --namespace kube-system create job --from=cronjob/weft-node-map weft-node-map-first
	kubectl --namespace kube-system wait --for=condition=Complete --timeout=180s \
		job/weft-node-map-first
	kubectl apply --filename conf/kubernetes/weft.yaml
	kubectl --namespace kube-system rollout status --timeout=180s daemonset/weft
}

install() {
	case $1 in
	copy) install_by_copy ;;
	manifests) install_by_manifests ;;
	*)
		echo "kind.sh: install copy, or install manifests" >&2
		return 2
		;;
	esac
	kubectl wait --for=condition=Ready --timeout=180s nodes --all
}

# from POD COMMAND...: run in a pod of the probe.
from() {
	pod=$1
	shift
	kubectl exec "$pod" -- "$@"
}

# Each pod reaches each pod, by small and by large packets.
pods_to_pods() {
	kubectl get pods --selector app.kubernetes.io/name=probe \
		--output jsonpath='{range .items[*]}{.metadata.name} {.status.podIP}{"\n"}{end}' >"$1"
	while read -r client _; do
		while read -r server address; do
			echo "$client -> $server ($address)"
			answer=$(from "$client" wget -q -T 10 -O - "http://$address:8080/" </dev/null)
			[ "$answer" = "$server" ]
			from "$client" wget -q -T 10 -O /dev/null "http://$address:8080/megabyte" </dev/null
		done <"$1"
	done <"$1"
}

# Each pod reaches the service by its cluster address and by its name, and the API
# server, which is on a node's own address.
pods_to_services() {
	address=$(kubectl get service probe --output jsonpath='{.spec.clusterIP}')
	while read -r client _; do
		echo "$client -> services"
		from "$client" wget -q -T 10 -O /dev/null "http://$address/" </dev/null
		from "$client" nslookup kubernetes.default.svc.cluster.local </dev/null
		from "$client" wget -q -T 10 -O /dev/null \
			http://probe.default.svc.cluster.local/ </dev/null
		from "$client" nc -w 10 kubernetes.default.svc.cluster.local 443 </dev/null
	done <"$1"
}

# The node's kernel is what the node map asks for, and the node reaches the pods.
nodes_are_converged() {
	for node in $(cluster_nodes); do
		docker exec "$node" /opt/cni/bin/weft status
		docker exec "$node" /opt/cni/bin/weft plan
		while read -r server address; do
			echo "$node -> $server ($address)"
			docker exec "$node" curl --silent --show-error --fail --max-time 10 \
				--output /dev/null "http://$address:8080/" </dev/null
		done <"$1"
	done
}

connectivity() {
	kubectl --namespace kube-system rollout status --timeout=180s deployment/coredns
	kubectl apply --filename hack/kind-probe.yaml
	kubectl rollout status --timeout=180s daemonset/probe
	pods=$(mktemp)
	pods_to_pods "$pods"
	pods_to_services "$pods"
	nodes_are_converged "$pods"
	rm -f "$pods"
	echo "kind.sh: every pod reaches every pod, the services and the nodes"
}

delete() {
	kind delete cluster --name "$CLUSTER"
}

case ${1-} in
create) create ;;
install) install "${2:-copy}" ;;
test) connectivity ;;
delete) delete ;;
stage)
	stage "$(cd "$caller" && realpath --canonicalize-missing "$2")" \
		"$(cd "$caller" && realpath "$3")"
	;;
all)
	create
	install "${2:-copy}"
	connectivity
	delete
	;;
*)
	sed -n '2,/^set/s/^# \{0,1\}//p' hack/kind.sh >&2
	exit 2
	;;
esac
