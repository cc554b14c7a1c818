//! What `weft export` prints, fed as it is to a shell on the router, to BIRD and to FRR.

use anyhow::{Context, Result, ensure};
use e2e::{
    Chain, Daemon, Families, Family, Lab, Node, PingOptions, Pod, Topology, ping, weft_bin_dir,
};
use ipnetwork::IpNetwork;
use serde_json::{Value, json};

const CONFLIST: &str = "/etc/cni/net.d/10-pods.conflist";

/// The lesson's nodes in native mode, and two more: `elsewhere`, whose pods are outside
/// the native CIDRs and so in the tunnel, and `worker3`, which is not in the map yet.
struct Cluster {
    lab: Lab,
    whole_map: Value,
    pods: Vec<Pod>,
}

impl Cluster {
    fn start() -> Result<Cluster> {
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
        let lab = Lab::start(topology)?;
        let whole_map = lab.topology().node_map();
        let mut map = whole_map.clone();
        map["nodes"].as_array_mut().context("nodes")?.retain(|node| node["name"] != "worker3");
        lab.write_node_map(&map)?;
        let mut cluster = Cluster { lab, whole_map, pods: Vec::new() };
        for name in ["worker1", "worker2", "elsewhere"] {
            cluster.add_pod(name)?;
        }
        Ok(cluster)
    }

    fn node(&self, name: &str) -> Result<&Node> {
        self.lab.node(name)
    }

    fn add_pod(&mut self, node: &str) -> Result<()> {
        let conflist = json!({
            "cniVersion": "1.0.0", "name": "pods", "plugins": [
                { "type": "veth", "ipam": { "type": "host-local" } },
                { "type": "routing", "routingMode": "native", "tunnelPort": 8472,
                  "ipv4NativeRoutingCIDR": "10.0.0.0/8", "ipv6NativeRoutingCIDR": "fd10::/16" },
            ],
        });
        let node = self.lab.node(node)?;
        node.write_file(CONFLIST, conflist.to_string())?;
        let pod = node.pod("pod")?;
        Chain::new(node, conflist, &[&weft_bin_dir()?]).add(&pod, "eth0")?;
        self.pods.push(pod);
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

    /// What `weft export WORDS` prints on a node.
    fn export(&self, node: &str, words: &[&str]) -> Result<String> {
        let weft = weft_bin_dir()?.join("weft");
        let mut command = vec![weft.as_os_str(), "export".as_ref()];
        command.extend(words.iter().map(AsRef::<std::ffi::OsStr>::as_ref));
        self.node(node)?.run_ok(&command)
    }

    fn start_daemon(&self, daemon: Daemon, node: &str) -> Result<()> {
        daemon.start(self.node(node)?, &self.export(node, &[daemon.word()])?)
    }

    fn start_router(&self, daemon: Daemon) -> Result<()> {
        let config = self.export("worker1", &[daemon.word(), "--router"])?;
        daemon.start(self.lab.router(), &config)
    }
}

/// Every route, rule and next hop of a node's that is weft's.
fn routes_of_weft(node: &Node) -> Result<String> {
    node.sh("ip route show table all proto 87; ip -6 route show table all proto 87
             ip route show proto 88; ip -6 route show proto 88; ip nexthop show proto 87")
}

#[test]
fn the_exported_routes_are_what_the_router_lacks() -> Result<()> {
    let cluster = Cluster::start()?;
    assert!(!cluster.reach_within("worker1", "worker2", 1.0)?, "the router knows pods already");
    assert!(cluster.reach("worker1", "elsewhere")?, "the tunnel needs no router");
    let script = cluster.export("worker1", &["router"])?;
    let commands: Vec<&str> = script.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(commands.len(), 8, "two ranges of four nodes: {script}");
    assert!(commands.contains(&"ip route add 10.0.2.0/24 via 192.168.44.128"), "{script}");
    assert!(commands.contains(&"ip -6 route add fd10:0:0:2::/64 via fd00:44::128"), "{script}");
    cluster.lab.router().sh(&script)?;
    assert!(cluster.reach("worker1", "worker2")?);
    assert!(cluster.reach("worker2", "worker1")?);
    Ok(())
}

#[test]
fn bird_replaces_static_routes() -> Result<()> {
    replaces_static_routes(Daemon::Bird)
}

#[test]
fn frr_replaces_static_routes() -> Result<()> {
    replaces_static_routes(Daemon::Frr)
}

fn replaces_static_routes(daemon: Daemon) -> Result<()> {
    let mut cluster = Cluster::start()?;
    let before = routes_of_weft(cluster.node("worker1")?)?;
    assert!(before.contains("172.20.0.0/24"), "no route through the tunnel: {before}");
    assert!(!cluster.reach_within("worker1", "worker2", 1.0)?, "the router knows pods already");

    cluster.start_router(daemon)?;
    for node in ["worker1", "worker2", "elsewhere"] {
        cluster.start_daemon(daemon, node)?;
    }
    cluster.lab.router().wait_for_next_hop("10.0.1.0/24", Some("192.168.211.128"))?;
    cluster.lab.router().wait_for_next_hop("fd10:0:0:1::/64", Some("fd00:211::128"))?;
    cluster.lab.router().wait_for_next_hop("10.0.2.0/24", Some("192.168.44.128"))?;
    cluster.lab.router().wait_for_next_hop("fd10:0:0:2::/64", Some("fd00:44::128"))?;
    assert!(cluster.reach("worker1", "worker2")?);
    assert!(cluster.reach("worker2", "worker1")?);
    assert!(cluster.reach("worker1", "elsewhere")?);
    assert_eq!(routes_of_weft(cluster.node("worker1")?)?, before, "{daemon:?} touched our routes");

    // A node that the router has never heard of.
    cluster.lab.write_node_map(&cluster.whole_map)?;
    cluster.add_pod("worker3")?;
    assert!(
        !cluster.reach_within("worker3", "worker1", 1.0)?,
        "the router knows the new node's pods already"
    );
    cluster.start_daemon(daemon, "worker3")?;
    cluster.lab.router().wait_for_next_hop("10.0.3.0/24", Some("192.168.44.140"))?;
    cluster.lab.router().wait_for_next_hop("fd10:0:0:3::/64", Some("fd00:44::140"))?;
    assert!(cluster.reach("worker3", "worker1")?);

    // One that leaves.
    daemon.stop(cluster.node("worker2")?)?;
    cluster.lab.router().wait_for_next_hop("10.0.2.0/24", None)?;
    cluster.lab.router().wait_for_next_hop("fd10:0:0:2::/64", None)?;
    assert!(!cluster.reach_within("worker1", "worker2", 1.0)?);
    assert!(cluster.reach("worker3", "worker1")?, "another node's session went with it");
    Ok(())
}

#[test]
fn bird_takes_no_range_from_another_node() -> Result<()> {
    takes_no_range_from_another_node(Daemon::Bird)
}

#[test]
fn frr_takes_no_range_from_another_node() -> Result<()> {
    takes_no_range_from_another_node(Daemon::Frr)
}

/// worker1's own daemon is silent, so that only what the router's filter says keeps a
/// neighbour from having its range.
fn takes_no_range_from_another_node(daemon: Daemon) -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.start_router(daemon)?;
    cluster.lab.write_node_map(&cluster.whole_map)?;
    cluster.node("worker3")?.write_file(CONFLIST, cluster.node("worker1")?.read_file(CONFLIST)?)?;
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
        cluster.lab.router().wait_for_next_hop(own, Some(next_hop))?;
        for range in others {
            let hop = cluster.lab.router().next_hop(range)?;
            assert_eq!(hop, None, "{node} took {range}");
        }
    }
    cluster.start_daemon(daemon, "worker1")?;
    cluster.lab.router().wait_for_next_hop("10.0.1.0/24", Some("192.168.211.128"))
}

#[test]
fn export_needs_to_know_whom_to_talk_to() -> Result<()> {
    let lab = Lab::lesson()?;
    let node = lab.node("worker1")?;
    let conflist = json!({ "cniVersion": "1.0.0", "name": "pods",
        "plugins": [{ "type": "routing", "routingMode": "native" }] });
    node.write_file(CONFLIST, conflist.to_string())?;
    let weft = weft_bin_dir()?.join("weft");
    let weft = weft.to_str().context("a path in UTF-8")?;
    let bird = node.run_ok(&[weft, "export", "bird"])?;
    assert!(bird.contains("neighbor 192.168.211.129 as 64513;"), "{bird}");
    for (words, says) in [
        (vec!["bird", "worker2"], "--peer"),
        (vec!["bird", "nobody", "--peer", "192.168.44.129"], "nobody"),
        (vec!["bird", "--as", "0"], "AS number"),
        (vec!["bird", "--as", "64513"], "must differ"),
        (vec!["frr", "--router", "worker2"], "not both"),
        (vec!["bird", "--peer", "router"], "IP address"),
        (vec!["quagga"], "router, bird or frr"),
        (vec!["router", "--peer", "192.168.44.129"], "--peer"),
    ] {
        let output = node.run(&[&[weft, "export"], &words[..]].concat())?;
        assert_eq!(output.status.code(), Some(1), "{words:?}: {output}");
        assert!(output.stderr.contains(says) && output.stdout.is_empty(), "{words:?}: {output}");
    }
    let words = [weft, "export", "bird", "worker2", "--peer", "192.168.44.129", "--as", "65001"];
    let bird = node.run_ok(&words)?;
    assert!(bird.contains("local 192.168.44.128 as 65001;"), "{bird}");
    Ok(())
}
