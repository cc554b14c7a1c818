//! Whose address is seen, through Services and without, and what is left alone.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use e2e::{Cluster, Families, Family, Node, PingOptions, Pod, Topology};
use serde_json::{Value, json};

use crate::look::{echoes, frames, inner};
use crate::wire::seen;
use crate::{assert_ping, conflist, pinged, pod_network};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// Where pods serve.
const PORT: u16 = 8080;
const NODE_PORT: u16 = 30_080;
/// Cluster addresses of one Service; the second as where kube-proxy does not know
/// the cluster's range and marks nothing that pods or hosts send.
const SERVICES: [[&str; 2]; 2] = [["10.96.0.1", "fd96::1"], ["10.96.0.2", "fd96::2"]];

fn topology() -> Topology {
    Topology::lesson(Families::Both, Families::Both).with_outside(Families::Both)
}

fn native_keys() -> Value {
    json!({
        "routingMode": "native",
        "ipv4NativeRoutingCIDR": "10.0.0.0/8", "ipv6NativeRoutingCIDR": "fd10::/16",
    })
}

/// Rules as kube-proxy writes them for one Service of each kind with one endpoint
/// (pkg/proxy/nftables: nat-prerouting, nat-output, nat-postrouting, mark-for-masquerade).
fn services(endpoint: &Pod) -> Result<String> {
    let mut rules = String::new();
    let families = [("ip", "10.0.0.0/8", Family::V4), ("ip6", "fd10::/16", Family::V6)];
    for (index, (ip, cluster, family)) in families.into_iter().enumerate() {
        let address = endpoint.addr(family)?;
        let to = SocketAddr::new(address, PORT);
        let [marked, unmarked] = SERVICES.map(|service| service[index]);
        rules.push_str(&format!(
            "add rule inet proxy services {ip} daddr {marked} tcp dport 80 \
               {ip} saddr != {cluster} jump mark-for-masquerade\n\
             add rule inet proxy services {ip} daddr {marked} tcp dport 80 dnat {ip} to {to}\n\
             add rule inet proxy services {ip} daddr {unmarked} tcp dport 80 dnat {ip} to {to}\n\
             add rule inet proxy services meta nfproto {} fib daddr type local \
               tcp dport {NODE_PORT} jump node-port{index}\n\
             add rule inet proxy node-port{index} jump mark-for-masquerade\n\
             add rule inet proxy node-port{index} meta l4proto tcp dnat {ip} to {to}\n",
            if ip == "ip" { "ipv4" } else { "ipv6" }
        ));
    }
    Ok(format!(
        "add table inet proxy
         add chain inet proxy mark-for-masquerade
         add rule inet proxy mark-for-masquerade meta mark set meta mark or 0x4000
         add chain inet proxy node-port0
         add chain inet proxy node-port1
         add chain inet proxy services
         add chain inet proxy prerouting {{ type nat hook prerouting priority dstnat; }}
         add rule inet proxy prerouting jump services
         add chain inet proxy output {{ type nat hook output priority -100; }}
         add rule inet proxy output jump services
         add chain inet proxy postrouting {{ type nat hook postrouting priority srcnat; }}
         add rule inet proxy postrouting meta mark & 0x4000 == 0 return
         add rule inet proxy postrouting meta mark set meta mark xor 0x4000
         add rule inet proxy postrouting masquerade fully-random\n{rules}"
    ))
}

/// worker1 with a pod and kube-proxy's rules, their endpoint a pod on worker2.
struct Served {
    cluster: Cluster,
    local: Pod,
    remote: Pod,
}

impl Served {
    fn start(routing: Value) -> Result<Served> {
        let cluster = Cluster::start(topology(), &conflist(routing))?;
        cluster.set_rp_filter("1")?;
        let (local, remote) = (cluster.pod("worker1", "pod-a")?, cluster.pod("worker2", "pod-b")?);
        cluster.node("worker1")?.command(&["nft", "-f", "-"]).stdin(services(&remote)?).ok()?;
        Ok(Served { cluster, local, remote })
    }

    /// The address that the endpoint sees of a connection of `client` to `dial`.
    fn seen(&self, client: &e2e::Place, dial: SocketAddr, family: Family) -> Result<IpAddr> {
        let at = SocketAddr::new(self.remote.addr(family)?, PORT);
        seen(client, dial, &self.remote, at).with_context(|| format!("{} to {dial}", client.name()))
    }

    /// Through Services from the node, from outside, from a pod; `as_node` is what the
    /// remote pod sees of the node.
    fn assert_services(&self, as_node: impl Fn(&Node, Family) -> Result<IpAddr>) -> Result<()> {
        let worker1 = self.cluster.node("worker1")?;
        let outside = self.cluster.node("outside")?;
        for (index, family) in FAMILIES.into_iter().enumerate() {
            let as_node = as_node(worker1, family)?;
            for service in SERVICES {
                let service = SocketAddr::new(service[index].parse()?, 80);
                assert_eq!(self.seen(worker1, service, family)?, as_node, "{service}");
                let of_pod = self.local.addr(family)?;
                assert_eq!(self.seen(&self.local, service, family)?, of_pod, "{service}");
            }
            let node_port = SocketAddr::new(worker1.address(family)?, NODE_PORT);
            for client in [&**outside, &**worker1] {
                assert_eq!(self.seen(client, node_port, family)?, as_node, "{}", client.name());
            }
            let source = Some(worker1.address(family)?.to_string());
            let options = PingOptions { source, size: 71, ..PingOptions::default() };
            let capture = self.remote.capture("eth0", "icmp or icmp6")?;
            assert_ping(worker1, self.remote.addr(family)?, options)?;
            let frames = frames(capture)?;
            assert_eq!(inner(echoes(&frames, true, 71)[0]).source, as_node);
        }
        Ok(())
    }

    /// Without a Service: pod to pod, and from outside, whose replies stay as they are.
    fn assert_direct(&self) -> Result<()> {
        let outside = self.cluster.node("outside")?;
        for family in FAMILIES {
            let server = SocketAddr::new(self.remote.addr(family)?, PORT);
            assert_eq!(self.seen(&self.local, server, family)?, self.local.addr(family)?);
            // The client takes an answer from the pod's own address alone.
            assert_eq!(self.seen(outside, server, family)?, outside.address(family)?);
            let at = SocketAddr::new(outside.address(family)?, PORT);
            let of_node = self.cluster.node("worker1")?.address(family)?;
            assert_eq!(seen(&self.local, at, outside, at)?, of_node);
        }
        Ok(())
    }
}

#[test]
fn in_tunnel_mode() -> Result<()> {
    e2e::needs_lab!();
    testing::need!(testing::privilege());
    let served = Served::start(json!({}))?;
    served.assert_services(pod_network)?;
    served.cluster.route_to("worker2")?;
    served.assert_direct()
}

#[test]
fn in_native_mode() -> Result<()> {
    e2e::needs_lab!();
    testing::need!(testing::privilege());
    let served = Served::start(native_keys())?;
    served.cluster.route_to_all()?;
    served.assert_services(|node, family| node.address(family))?;
    served.assert_direct()
}

/// worker1 and worker2 reach each other natively, worker1 and control-plane through
/// the tunnel.
#[test]
fn in_hybrid_mode() -> Result<()> {
    e2e::needs_lab!();
    testing::need!(testing::privilege());
    let hybrid = json!({
        "routingMode": "hybrid",
        "ipv4NativeRoutingCIDR": ["10.0.1.0/24", "10.0.2.0/24"],
        "ipv6NativeRoutingCIDR": ["fd10:0:0:1::/64", "fd10:0:0:2::/64"],
    });
    let mut served = Served::start(hybrid)?;
    served.cluster.route_to("worker1")?;
    served.cluster.route_to("worker2")?;
    served.assert_services(|node, family| node.address(family))?;
    served.assert_direct()?;
    served.remote = served.cluster.pod("control-plane", "pod-c")?;
    let worker1 = served.cluster.node("worker1")?;
    worker1.run_ok(&["nft", "delete", "table", "inet", "proxy"])?;
    worker1.command(&["nft", "-f", "-"]).stdin(services(&served.remote)?).ok()?;
    served.assert_services(pod_network)
}

/// The source that a host outside sees of a pod's echo request, answered or not.
fn seen_outside(cluster: &Cluster, pod: &Pod, family: Family) -> Result<IpAddr> {
    let outside = cluster.node("outside")?;
    let capture = outside.capture("eth0", "icmp or icmp6")?;
    let options = PingOptions { size: 72, ..PingOptions::default() };
    let result = pinged(pod, outside.address(family)?, options)?;
    assert!(result.all(), "{}", result.output);
    let frames = frames(capture)?;
    Ok(inner(echoes(&frames, true, 72)[0]).source)
}

#[test]
fn off_and_on_again_and_not_for_some_destinations() -> Result<()> {
    e2e::needs_lab!();
    testing::need!(testing::privilege());
    let off = conflist(json!({ "ipMasq": false }));
    let mut cluster = Cluster::start(topology(), &off)?;
    let pod = cluster.pod("worker1", "pod-a")?;
    cluster.route_to("worker1")?;
    let worker1 = Node::clone(cluster.node("worker1")?);
    for family in FAMILIES {
        assert_eq!(seen_outside(&cluster, &pod, family)?, pod.addr(family)?);
    }
    assert!(!worker1.run(&["nft", "list", "table", "inet", "weft_87_masquerade"])?.success());

    cluster.set_conflist(&conflist(json!({})))?;
    cluster.sync_all()?;
    for family in FAMILIES {
        assert_eq!(seen_outside(&cluster, &pod, family)?, worker1.address(family)?);
    }
    let some = json!(["203.0.113.0/24", "2001:db8:113::/64"]);
    cluster.set_conflist(&conflist(json!({ "nonMasqueradeCIDRs": some })))?;
    cluster.sync_all()?;
    for family in FAMILIES {
        assert_eq!(seen_outside(&cluster, &pod, family)?, pod.addr(family)?);
        let elsewhere = cluster.lab().router().clone();
        let router = if family == Family::V4 { "192.168.44.129" } else { "fd00:44::129" };
        let capture = elsewhere.capture("net211", "icmp or icmp6")?;
        assert_ping(&pod, router.parse()?, PingOptions { size: 73, ..PingOptions::default() })?;
        let frames = frames(capture)?;
        let source = inner(echoes(&frames, true, 73)[0]).source;
        assert_eq!(source, worker1.address(family)?, "other destinations");
    }
    Ok(())
}

/// Native CIDRs that hold nodes' addresses: in tunnel mode a node would answer by
/// the tunnel what came beside it, so that pods' addresses do not show there.
#[test]
fn native_cidrs_exempt_nodes_only_where_the_answer_comes_back() -> Result<()> {
    e2e::needs_lab!();
    testing::need!(testing::privilege());
    let keys = |mode: &str| {
        json!({
            "routingMode": mode,
            "ipv4NativeRoutingCIDR": ["10.0.0.0/8", "192.168.0.0/16"],
            "ipv6NativeRoutingCIDR": ["fd00::/8"],
        })
    };
    let mut cluster = Cluster::start(topology(), &conflist(keys("tunnel")))?;
    cluster.set_rp_filter("1")?;
    let pod = cluster.pod("worker1", "pod-a")?;
    cluster.sync_all()?;
    cluster.route_to_all()?;
    for (mode, as_pod) in [("tunnel", false), ("native", true)] {
        cluster.set_conflist(&conflist(keys(mode)))?;
        cluster.sync_all()?;
        let (worker1, worker2) = (cluster.node("worker1")?, cluster.node("worker2")?);
        for family in FAMILIES {
            let capture = worker2.capture("eth0", "icmp or icmp6")?;
            let options = PingOptions { size: 74, ..PingOptions::default() };
            assert_ping(&pod, worker2.address(family)?, options)?;
            let frames = frames(capture)?;
            let expected = if as_pod { pod.addr(family)? } else { worker1.address(family)? };
            assert_eq!(inner(echoes(&frames, true, 74)[0]).source, expected, "{mode}");
        }
    }
    Ok(())
}
