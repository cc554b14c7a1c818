//! What `weft export` prints, fed as it is to a shell on the router, to BIRD and to FRR.

use anyhow::{Context, Result, ensure};
use e2e::{Cluster, Daemon, Families, Family, Node, PingOptions, Pod, Topology, ping};
use ipnetwork::IpNetwork;
use serde_json::{Value, json};

/// The lesson's nodes in native mode, and two more: `elsewhere`, whose pods are outside
/// the native CIDRs and so in the tunnel, and `worker3`, which is not in the map yet.
struct Growing {
    cluster: Cluster,
    whole_map: Value,
    pods: Vec<Pod>,
}

impl Growing {
    fn start() -> Result<Growing> {
        let mut topology = Topology::lesson(Families::Both, Families::Both);
        let networks = |texts: [&str; 2]| -> Result<Vec<IpNetwork>> {
            texts.iter().map(|text| text.parse().context("a network")).collect()
        };
        topology.add_host(
            "elsewhere",
            0,
            networks(["192.168.146.140/24", "fd00:146::140/64"])?,
            networks(["172.20.0.0/24", "fd20::/64"])?,
        );
        topology.add_host(
            "worker3",
            2,
            networks(["192.168.44.140/24", "fd00:44::140/64"])?,
            networks(["10.0.3.0/24", "fd10:0:0:3::/64"])?,
        );
        let conflist = json!({
            "cniVersion": "1.0.0", "name": "pods", "plugins": [
                { "type": "veth", "ipam": { "type": "host-local" } },
                { "type": "routing", "routingMode": "native", "tunnelPort": 8472,
                  "ipv4NativeRoutingCIDR": "10.0.0.0/8", "ipv6NativeRoutingCIDR": "fd10::/16" },
            ],
        });
        let cluster = Cluster::start(topology, &conflist)?;
        let whole_map = cluster.lab().topology().node_map();
        let mut map = whole_map.clone();
        map["nodes"].as_array_mut().context("nodes")?.retain(|node| node["name"] != "worker3");
        cluster.lab().write_node_map(&map)?;
        let mut growing = Growing { cluster, whole_map, pods: Vec::new() };
        for name in ["worker1", "worker2", "elsewhere"] {
            growing.add_pod(name)?;
        }
        Ok(growing)
    }

    fn add_pod(&mut self, node: &str) -> Result<()> {
        self.pods.push(self.cluster.pod(node, "pod")?);
        Ok(())
    }

    fn pod(&self, node: &str) -> Result<&Pod> {
        let pod = self.pods.iter().find(|pod| pod.name() == format!("{node}/pod"));
        pod.with_context(|| format!("no pod on {node}"))
    }

    /// Whether the pods of two nodes reach each other, in both families, which agree.
    fn reach(&self, from: &str, to: &str) -> Result<bool> {
        self.reach_within(from, to, 10.0)
    }

    /// Likewise with the answer awaited for so many seconds: few where none is to come,
    /// many where a busy machine may delay it.
    fn reach_within(&self, from: &str, to: &str, wait: f32) -> Result<bool> {
        let mut all = Vec::new();
        for family in [Family::V4, Family::V6] {
            let to = self.pod(to)?.addr(family)?;
            let options = PingOptions { wait, ..PingOptions::default() };
            all.push(ping(self.pod(from)?, to, &options)?.all());
        }
        ensure!(all.first() == all.last(), "IPv4 and IPv6 differ from {from} to {to}: {all:?}");
        Ok(all.contains(&true))
    }
}

/// Every route, rule and next hop of a node's that is weft's.
fn routes_of_weft(node: &Node) -> Result<String> {
    node.sh("ip route show table all proto 87; ip -6 route show table all proto 87
             ip route show proto 88; ip -6 route show proto 88; ip nexthop show proto 87")
}

#[test]
fn the_exported_routes_are_what_the_router_lacks() -> Result<()> {
    e2e::needs_lab!();
    let growing = Growing::start()?;
    assert!(!growing.reach_within("worker1", "worker2", 1.0)?, "the router knows pods already");
    assert!(growing.reach("worker1", "elsewhere")?, "the tunnel needs no router");
    let script = growing.cluster.export("worker1", &["router"])?;
    let commands: Vec<&str> = script.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(commands.len(), 8, "two ranges of four nodes: {script}");
    assert!(commands.contains(&"ip route add 10.0.2.0/24 via 192.168.44.128"), "{script}");
    assert!(commands.contains(&"ip -6 route add fd10:0:0:2::/64 via fd00:44::128"), "{script}");
    growing.cluster.lab().router().sh(&script)?;
    assert!(growing.reach("worker1", "worker2")?);
    assert!(growing.reach("worker2", "worker1")?);
    Ok(())
}

#[test]
fn bird_replaces_static_routes() -> Result<()> {
    e2e::needs_lab!("bird");
    replaces_static_routes(Daemon::Bird)
}

#[test]
fn frr_replaces_static_routes() -> Result<()> {
    e2e::needs_lab!("vtysh", "/usr/lib/frr/bgpd");
    replaces_static_routes(Daemon::Frr)
}

fn replaces_static_routes(daemon: Daemon) -> Result<()> {
    let mut growing = Growing::start()?;
    let before = routes_of_weft(growing.cluster.node("worker1")?)?;
    assert!(before.contains("172.20.0.0/24"), "no route through the tunnel: {before}");
    assert!(!growing.reach_within("worker1", "worker2", 1.0)?, "the router knows pods already");

    growing.cluster.start_router(daemon)?;
    let known = ["worker1", "worker2", "elsewhere"];
    known.into_iter().try_for_each(|node| growing.cluster.start_daemon(daemon, node))?;
    known.into_iter().try_for_each(|node| growing.cluster.wait_for_announced(node, true))?;
    assert!(growing.reach("worker1", "worker2")?);
    assert!(growing.reach("worker2", "worker1")?);
    assert!(growing.reach("worker1", "elsewhere")?);
    let after = routes_of_weft(growing.cluster.node("worker1")?)?;
    assert_eq!(after, before, "{daemon:?} touched our routes");

    // A node that the router has never heard of.
    growing.cluster.lab().write_node_map(&growing.whole_map)?;
    growing.add_pod("worker3")?;
    assert!(
        !growing.reach_within("worker3", "worker1", 1.0)?,
        "the router knows the new node's pods already"
    );
    growing.cluster.start_daemon(daemon, "worker3")?;
    growing.cluster.wait_for_announced("worker3", true)?;
    assert!(growing.reach("worker3", "worker1")?);

    // One that leaves.
    daemon.stop(growing.cluster.node("worker2")?)?;
    growing.cluster.wait_for_announced("worker2", false)?;
    assert!(!growing.reach_within("worker1", "worker2", 1.0)?);
    assert!(growing.reach("worker3", "worker1")?, "another node's session went with it");
    Ok(())
}

#[test]
fn bird_takes_no_range_from_another_node() -> Result<()> {
    e2e::needs_lab!("bird");
    takes_no_range_from_another_node(Daemon::Bird)
}

#[test]
fn frr_takes_no_range_from_another_node() -> Result<()> {
    e2e::needs_lab!("bird", "vtysh", "/usr/lib/frr/bgpd");
    takes_no_range_from_another_node(Daemon::Frr)
}

/// worker1's own daemon is silent, so that only what the router's filter says keeps a
/// neighbour from having its range.
fn takes_no_range_from_another_node(daemon: Daemon) -> Result<()> {
    let Growing { cluster, whole_map, .. } = Growing::start()?;
    cluster.start_router(daemon)?;
    cluster.lab().write_node_map(&whole_map)?;
    let router = cluster.lab().router();
    // worker2 is known to the router, worker3 is not.
    for (node, own, next_hop) in
        [("worker2", "10.0.2.0/24", "192.168.44.128"), ("worker3", "10.0.3.0/24", "192.168.44.140")]
    {
        let config = cluster.export(node, &["bird"])?;
        let others = ["10.0.1.0/24", "10.0.1.128/25", "10.0.0.0/16", "192.168.211.0/24"];
        let routes: String =
            others.iter().map(|range| format!("  route {range} blackhole;\n")).collect();
        let own_route = format!("  route {own} blackhole;\n");
        let list = format!("net ~ [ {own} ]");
        ensure!(config.contains(&own_route) && config.contains(&list), "{config}");
        let config = config.replace(&own_route, &format!("{routes}{own_route}"));
        // Its own is announced with the others, so that all have been judged when it is there.
        let config = config.replace(&list, "net ~ [ 0.0.0.0/0+ ]");
        Daemon::Bird.start(cluster.node(node)?, &config)?;
        router.wait_for_next_hop(own, Some(next_hop))?;
        for range in others {
            assert_eq!(router.next_hop(range)?, None, "{node} took {range}");
        }
    }
    cluster.start_daemon(daemon, "worker1")?;
    cluster.wait_for_announced("worker1", true)
}

#[test]
fn export_needs_to_know_whom_to_talk_to() -> Result<()> {
    e2e::needs_lab!();
    let conflist = json!({ "cniVersion": "1.0.0", "name": "pods",
        "plugins": [{ "type": "routing", "routingMode": "native" }] });
    let cluster = Cluster::start(Topology::lesson(Families::V4, Families::V4), &conflist)?;
    let bird = cluster.export("worker1", &["bird"])?;
    assert!(bird.contains("neighbor 192.168.211.129 as 64513;"), "{bird}");
    for (words, says) in [
        (vec!["bird", "worker2"], "--peer"),
        (vec!["bird", "nobody", "--peer", "192.168.44.129"], "nobody"),
        (vec!["bird", "--as", "0"], "AS number"),
        (vec!["bird", "--as", "64513"], "must differ"),
        (vec!["frr", "--router", "worker2"], "not both"),
        (vec!["bird", "--peer", "router"], "IP address"),
        (vec!["bird", "--peer", "192.168.211.129/24"], "a network"),
        (vec!["frr", "--peer", "fe80::1"], "link-local"),
        (vec!["quagga"], "router, bird or frr"),
        (vec!["router", "--peer", "192.168.44.129"], "--peer"),
    ] {
        let output = cluster.weft("worker1", &[&["export"], &words[..]].concat())?;
        assert_eq!(output.status.code(), Some(1), "{words:?}: {output}");
        assert!(output.stderr.contains(says) && output.stdout.is_empty(), "{words:?}: {output}");
    }
    let words = ["bird", "worker2", "--peer", "192.168.44.129", "--as", "65001"];
    let bird = cluster.export("worker1", &words)?;
    assert!(bird.contains("local 192.168.44.128 as 65001;"), "{bird}");
    Ok(())
}

#[test]
fn bird_takes_what_odd_maps_make() -> Result<()> {
    e2e::needs_lab!("bird");
    takes_what_odd_maps_make(Daemon::Bird)
}

#[test]
fn frr_takes_what_odd_maps_make() -> Result<()> {
    e2e::needs_lab!("vtysh", "/usr/lib/frr/bgpd");
    takes_what_odd_maps_make(Daemon::Frr)
}

/// Names full of the daemons' punctuation, ranges of every length, no address for a
/// range, a tunnel address that is on no interface, records that are not applied.
fn takes_what_odd_maps_make(daemon: Daemon) -> Result<()> {
    let conflist = json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": [
        { "type": "routing", "routingMode": "native", "ipv4NativeRoutingCIDR": "10.0.0.0/8" }] });
    let topology = Topology::lesson(Families::Both, Families::Both);
    let cluster = Cluster::start(topology, &conflist)?;
    let odd = "a}\"';#!/*é{\\";
    let record = |name: &str, addresses: Value, ranges: Value| json!({ "name": name, "addresses": addresses, "podCIDRs": ranges });
    let mut map = json!({ "nodes": [
        record(odd, json!(["192.168.146.130"]), json!(["10.0.0.0/24", "fd10::/64"])),
        record("worker1", json!(["fd00:211::128", "192.168.211.128/24"]),
               json!(["10.0.1.0/24", "10.64.0.0/10", "10.0.9.9/32", "fd10:0:0:1::/64"])),
        record("worker2", json!(["192.168.44.128", "192.168.44.130", "fd00:44::128"]),
               json!(["10.0.2.0/24", "fd10:0:0:2::/64"])),
        record("six", json!(["fd00:9::1"]), json!(["fd10:0:0:9::/64", "10.0.10.0/24"])),
        record("twin1", json!(["192.168.9.1"]), json!(["10.0.20.0/24"])),
        record("twin2", json!(["192.168.9.2"]), json!(["10.0.20.0/25"])),
        record("waits", json!([]), json!([])),
    ] });
    map["nodes"][2]["tunnelAddress"] = json!("198.51.100.44");
    cluster.lab().write_node_map(&map)?;
    cluster.start_router(daemon)?;
    for node in ["control-plane", "worker1", "worker2"] {
        cluster.start_daemon(daemon, node)?;
    }
    for node in ["worker1", "worker2"] {
        cluster.wait_for_announced(node, true)?;
    }
    let router = cluster.lab().router();
    for (range, via) in [
        ("10.0.0.0/24", "192.168.146.130"),
        ("10.64.0.0/10", "192.168.211.128"),
        ("10.0.9.9/32", "192.168.211.128"),
    ] {
        router.wait_for_next_hop(range, Some(via))?;
    }
    assert_eq!(router.next_hop("fd10::/64")?, None, "nobody has an address to announce it from");
    let whole = cluster.export("worker1", &[daemon.word(), "--router"])?;
    let missing = whole.lines().filter(|line| line.contains("address to announce its IPv"));
    assert_eq!(missing.count(), 2, "{whole}");
    Ok(())
}
