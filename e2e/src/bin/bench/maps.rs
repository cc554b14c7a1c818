//! Node maps of many nodes, in the two shapes that there are: our compact one, and what
//! `kubectl get nodes -o json` prints.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use serde_json::{Value, json};

/// How a map is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// As `weft nodes import` writes it.
    Compact,
    /// As kubectl prints it, about 20 KB a node.
    NodeList,
}

/// A node of a map.
struct Node {
    name: String,
    address: Ipv4Addr,
    ranges: Vec<String>,
}

impl Shape {
    /// As in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Compact => "compact",
            Self::NodeList => "NodeList",
        }
    }
}

/// Number `number`'s IPv4 pod range, a /24 from 10.64.0.0 on.
pub(crate) fn range(number: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a40_0000 + ((number as u32) << 8))
}

/// Its IPv6 pod range, a /64.
pub(crate) fn range6(number: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd10, 1, 0, number as u16, 0, 0, 0, 0)
}

/// Its node address; another one where it `changed`.
pub(crate) fn address(number: usize, changed: bool) -> Ipv4Addr {
    Ipv4Addr::from_bits(0xac10_0001 + number as u32 + if changed { 1 << 18 } else { 0 })
}

/// The IPv4 pod range of the node that a map is for: a /20.
pub(crate) const OWN_RANGE: &str = "10.16.0.0/20";
/// Its IPv6 pod range.
pub(crate) const OWN_RANGE6: &str = "fd10:0:0:1::/64";

/// A map for the node at `own`, with `peers` others, of which the first `changed` have
/// other addresses.
pub(crate) fn map(
    shape: Shape,
    own: Ipv4Addr,
    peers: usize,
    changed: usize,
    dual: bool,
) -> Result<String> {
    let families = if dual { 2 } else { 1 };
    let ranges = |v4: String, v6: String| [v4, v6].into_iter().take(families).collect();
    let own = Node {
        name: "own".to_owned(),
        address: own,
        ranges: ranges(OWN_RANGE.to_owned(), OWN_RANGE6.to_owned()),
    };
    let peer = |n: usize| Node {
        name: format!("peer{n}"),
        address: address(n, n < changed),
        ranges: ranges(format!("{}/24", range(n)), format!("{}/64", range6(n))),
    };
    let nodes = std::iter::once(own).chain((0..peers).map(peer));
    match shape {
        Shape::Compact => Ok(compact(nodes)),
        Shape::NodeList => node_list(nodes),
    }
}

fn compact(nodes: impl Iterator<Item = Node>) -> String {
    let mut text = String::from("{\"nodes\":[");
    for (at, node) in nodes.enumerate() {
        let Node { name, address, ranges } = node;
        let separator = if at == 0 { "" } else { ",\n" };
        // Writing to a string does not fail.
        let _ = write!(
            text,
            r#"{separator}{{"name":"{name}","addresses":["{address}"],"podCIDRs":["{}"]}}"#,
            ranges.join("\",\"")
        );
    }
    text.push_str("]}\n");
    text
}

/// One record is made and printed, the others are it with names and addresses exchanged.
fn node_list(nodes: impl Iterator<Item = Node>) -> Result<String> {
    let record = indented(&kubernetes_node())?;
    let mut text = String::from("{\n    \"apiVersion\": \"v1\",\n    \"items\": [\n");
    for (at, node) in nodes.enumerate() {
        if at > 0 {
            text.push_str(",\n");
        }
        let Node { name, address, ranges } = node;
        let first = ranges.first().map_or("", String::as_str);
        let record = record.replace("NAME", &name).replace("ADDRESS", &address.to_string());
        let record = record.replace("\"RANGES\"", &format!("\"{}\"", ranges.join("\", \"")));
        text.push_str(&record.replace("RANGE", first));
    }
    text.push_str(
        "\n    ],\n    \"kind\": \"List\",\n    \"metadata\": {\n        \"resourceVersion\": \"\"\n    }\n}\n",
    );
    Ok(text)
}

/// By four spaces, as kubectl does.
fn indented(value: &Value) -> Result<String> {
    let by_two = serde_json::to_string_pretty(value)?;
    let line = |line: &str| {
        let text = line.trim_start();
        format!("{}{text}", " ".repeat(2 * (line.len() - text.len())))
    };
    Ok(by_two.lines().map(line).collect::<Vec<_>>().join("\n"))
}

/// A Kubernetes Node as a node of some size has it: most of it is the list of the 50 images
/// that kubelet reports.
fn kubernetes_node() -> Value {
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({
            "lastHeartbeatTime": "2026-11-02T08:14:37Z", "lastTransitionTime": "2026-08-17T11:02:05Z",
            "message": message, "reason": reason, "status": status, "type": kind,
        })
    };
    let image = |n: u64| {
        let digest = format!("{:064x}", u128::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c));
        json!({
            "names": [
                format!("registry.example.com/platform/component-{n}@sha256:{digest}"),
                format!("registry.example.com/platform/component-{n}:v1.{n}.0"),
            ],
            "sizeBytes": 12_345_678 + n * 1_000_003,
        })
    };
    let resources = json!({
        "cpu": "16", "ephemeral-storage": "101430960Ki", "hugepages-1Gi": "0", "hugepages-2Mi": "0",
        "memory": "65838292Ki", "pods": "110",
    });
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "annotations": {
                "kubeadm.alpha.kubernetes.io/cri-socket": "unix:///run/containerd/containerd.sock",
                "node.alpha.kubernetes.io/ttl": "0",
                "volumes.kubernetes.io/controller-managed-attach-detach": "true",
            },
            "creationTimestamp": "2026-08-17T11:01:44Z",
            "labels": {
                "beta.kubernetes.io/arch": "amd64", "beta.kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64", "kubernetes.io/hostname": "NAME",
                "kubernetes.io/os": "linux", "topology.kubernetes.io/zone": "zone-a",
            },
            "name": "NAME", "resourceVersion": "48122931",
            "uid": "0f8fad5b-d9cb-469f-a165-70867728950e",
        },
        "spec": { "podCIDR": "RANGE", "podCIDRs": ["RANGES"], "providerID": "example://zone-a/NAME" },
        "status": {
            "addresses": [
                { "address": "ADDRESS", "type": "InternalIP" }, { "address": "NAME", "type": "Hostname" },
            ],
            "allocatable": resources, "capacity": resources,
            "conditions": [
                condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
                condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
                condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
                condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
            ],
            "daemonEndpoints": { "kubeletEndpoint": { "Port": 10250 } },
            "images": (0..50).map(image).collect::<Vec<_>>(),
            "nodeInfo": {
                "architecture": "amd64", "bootID": "b9a1b2c3-1d2e-4f50-8a6b-7c8d9e0f1a2b",
                "containerRuntimeVersion": "containerd://2.1.4", "kernelVersion": "6.18.0",
                "kubeProxyVersion": "", "kubeletVersion": "v1.34.1",
                "machineID": "a1b2c3d4e5f60718293a4b5c6d7e8f90", "operatingSystem": "linux",
                "osImage": "Debian GNU/Linux 13 (trixie)", "systemUUID": "4c4c4544-0051-3010-8043-b4c04f4d3332",
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_list_is_as_large_as_a_clusters() {
        let text = map(Shape::NodeList, Ipv4Addr::new(192, 168, 1, 1), 9, 0, true).unwrap();
        let node = text.len() / 10;
        assert!((18 << 10..22 << 10).contains(&node), "{node} bytes a node");
        let list: Value = serde_json::from_str(&text).unwrap();
        let last = &list["items"][9];
        assert_eq!(last["metadata"]["name"], "peer8");
        assert_eq!(last["spec"]["podCIDR"], "10.64.8.0/24");
        assert_eq!(last["spec"]["podCIDRs"], json!(["10.64.8.0/24", "fd10:1:0:8::/64"]));
        assert_eq!(last["status"]["addresses"][0]["address"], "172.16.0.9");
    }
}
