//! Kubernetes: what of `conf/kubernetes`, `hack/kind.sh` and `docs/kubernetes.md` can be
//! run without a cluster, run on the lab's nodes.

mod flannel;
mod installer;
mod lint;
mod node_map;
mod objects;
mod stage;
