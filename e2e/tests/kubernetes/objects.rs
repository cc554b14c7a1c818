//! Kubernetes objects as an API server lists them, made for these tests.

use e2e::{Family, Node};
use serde_json::{Value, json};

/// A Node with what real ones carry beside what weft reads.
pub(crate) fn node(name: &str, address: &str, ranges: &[String]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": name, "uid": "4b1e61c7-66a6-4d0c-8f6d-8f9a5f8a0c11",
            "resourceVersion": "81235", "creationTimestamp": "2026-11-02T08:15:30Z",
            "labels": {
                "beta.kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
                "kubernetes.io/hostname": name, "kubernetes.io/os": "linux"
            },
            "annotations": {
                "node.alpha.kubernetes.io/ttl": "0",
                "volumes.kubernetes.io/controller-managed-attach-detach": "true"
            }
        },
        "spec": {
            "podCIDR": ranges[0], "podCIDRs": ranges,
            "taints": [{ "effect": "NoSchedule", "key": "node.kubernetes.io/not-ready" }]
        },
        "status": {
            "addresses": [
                { "address": address, "type": "InternalIP" },
                { "address": name, "type": "Hostname" },
                { "address": "203.0.113.7", "type": "ExternalIP" }
            ],
            "capacity": { "cpu": "4", "memory": "16283396Ki", "pods": "110" },
            "conditions": [{
                "lastHeartbeatTime": "2026-11-02T08:16:31Z", "status": "False", "type": "Ready",
                "message": "container runtime network not ready: cni plugin not initialized",
                "reason": "KubeletNotReady"
            }],
            "images": [{ "names": ["registry.example/pause:3.10"], "sizeBytes": 320_368 }],
            "nodeInfo": {
                "architecture": "amd64", "containerRuntimeVersion": "containerd://2.1.4",
                "kubeletVersion": "v1.34.0", "operatingSystem": "linux"
            }
        }
    })
}

/// The output of `kubectl get nodes --output json`.
pub(crate) fn list(nodes: Vec<Value>) -> Value {
    json!({
        "apiVersion": "v1", "kind": "List", "items": nodes, "metadata": { "resourceVersion": "" }
    })
}

/// A host of the lab as a Node.
pub(crate) fn of_host(host: &Node) -> anyhow::Result<Value> {
    let ranges: Vec<String> = host.host().pod_ranges.iter().map(ToString::to_string).collect();
    Ok(node(host.name(), &host.address(Family::V4)?.to_string(), &ranges))
}
