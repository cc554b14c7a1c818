//! Who reaches whom.

use std::net::IpAddr;

use anyhow::{Context, Result};
use e2e::{
    Cluster, Families, Family, Lab, PingOptions, Pod, Spread, Topology, conf, ping, tcp_bulk,
    with_routing_keys,
};
use serde_json::json;

use crate::assert_ping;

const NODES: [&str; 3] = ["control-plane", "worker1", "worker2"];

/// Two pods on each node, each with its node's name.
fn two_each(cluster: &Cluster) -> Result<Vec<(&'static str, Pod)>> {
    let mut pods = Vec::new();
    for node in NODES {
        for name in ["one", "two"] {
            pods.push((node, cluster.pod(node, &format!("{node}-{name}"))?));
        }
    }
    Ok(pods)
}

/// A node's gateway address, which its pods' host ends have.
fn gateway(cluster: &Cluster, node: &str) -> Result<IpAddr> {
    let range = cluster.node(node)?.pod_range(Family::V4)?;
    range.iter().nth(1).context("the range has one address")
}

#[test]
fn every_pod_reaches_every_pod_node_and_gateway() -> Result<()> {
    e2e::needs_lab!();
    let cluster = Cluster::lesson(conf::TUNNEL)?;
    let pods = two_each(&cluster)?;
    let mut targets = Vec::new();
    for (_, pod) in &pods {
        targets.push(pod.addr(Family::V4)?);
    }
    for node in NODES {
        targets.push(cluster.node(node)?.address(Family::V4)?);
        targets.push(cluster.node(node)?.pod_range(Family::V4)?.network());
        targets.push(gateway(&cluster, node)?);
    }
    for (_, from) in &pods {
        for to in &targets {
            assert_ping(from, *to, &PingOptions::default())?;
        }
    }
    Ok(())
}

#[test]
fn every_node_reaches_every_pod_from_each_of_its_addresses() -> Result<()> {
    e2e::needs_lab!();
    let cluster = Cluster::lesson(conf::TUNNEL)?;
    let pods = two_each(&cluster)?;
    for from in NODES {
        let node = cluster.node(from)?;
        let own = node.address(Family::V4)?.to_string();
        let network = node.pod_range(Family::V4)?.network().to_string();
        let gateway = gateway(&cluster, from)?.to_string();
        for (_, pod) in &pods {
            for source in [None, Some(&own), Some(&network), Some(&gateway)] {
                let options = PingOptions { source: source.cloned(), ..PingOptions::default() };
                assert_ping(node, pod.addr(Family::V4)?, &options)?;
            }
        }
    }
    Ok(())
}

/// What a remote pod sees as the source of its own node's and of another node's packets.
#[test]
fn a_node_s_address_does_not_enter_the_tunnel() -> Result<()> {
    e2e::needs_lab!();
    let cluster = Cluster::lesson(conf::TUNNEL)?;
    let pod = cluster.pod("worker2", "pod-b")?;
    let node = cluster.node("worker1")?;
    cluster.weft("worker1", &["sync"])?.ok()?;
    let own = node.address(Family::V4)?;
    for source in [None, Some(own.to_string())] {
        let capture = pod.capture("eth0", "icmp")?;
        let options = PingOptions { source: source.clone(), ..PingOptions::default() };
        assert_ping(node, pod.addr(Family::V4)?, &options)?;
        let packets = capture.stop()?;
        let frame = packets.first().context("no packet")?.frame()?;
        let seen = frame.ip().context("no IP")?.source;
        assert_eq!(seen.to_string(), "10.0.1.0", "sent from {source:?}");
    }
    Ok(())
}

#[test]
fn a_pod_s_address_stays_its_own_between_pods() -> Result<()> {
    e2e::needs_lab!();
    let cluster = Cluster::lesson(conf::TUNNEL)?;
    let a = cluster.pod("worker1", "pod-a")?;
    for (node, name) in [("worker1", "pod-near"), ("worker2", "pod-far")] {
        let pod = cluster.pod(node, name)?;
        let capture = pod.capture("eth0", "icmp")?;
        assert_ping(&a, pod.addr(Family::V4)?, &PingOptions::default())?;
        let packets = capture.stop()?;
        let frame = packets.first().context("no packet")?.frame()?;
        assert_eq!(frame.ip().context("no IP")?.source, a.addr(Family::V4)?);
    }
    Ok(())
}

#[test]
fn tcp_in_bulk_both_ways() -> Result<()> {
    e2e::needs_lab!("iperf3");
    let cluster = Cluster::lesson(conf::TUNNEL)?;
    let (a, b) = (cluster.pod("worker1", "pod-a")?, cluster.pod("worker2", "pod-b")?);
    let node = cluster.node("control-plane")?;
    cluster.weft("control-plane", &["sync"])?.ok()?;
    const BYTES: u64 = 32 << 20;
    for (from, to) in [(&*a, &b), (&*b, &a), (&**node, &b)] {
        let bulk = tcp_bulk(from, to, to.addr(Family::V4)?, BYTES)?;
        assert!(bulk.sent >= BYTES && bulk.received > 0, "{}", bulk.report);
    }
    Ok(())
}

#[test]
fn a_pod_that_takes_another_s_address_is_not_heard() -> Result<()> {
    e2e::needs_lab!();
    let cluster = Cluster::lesson(conf::TUNNEL)?;
    let (a, b) = (cluster.pod("worker1", "pod-a")?, cluster.pod("worker2", "pod-b")?);
    a.ip_batch("address add 10.0.1.99/32 dev eth0\n")?;
    let capture = cluster.lab().router().capture("net211", "udp port 8472")?;
    let options = PingOptions { source: Some("10.0.1.99".into()), wait: 0.1, ..Default::default() };
    assert!(!ping(&a, b.addr(Family::V4)?, &options)?.all());
    assert!(capture.stop()?.is_empty(), "the spoofed packet left the node");
    assert_ping(&a, b.addr(Family::V4)?, &PingOptions::default())
}

/// A cluster of `count` nodes, `shared` on a link, with a pod on each; every pod pings
/// every other in both families.
fn all_reach_all(count: usize, shared: usize, underlay: Family) -> Result<()> {
    let topology = Topology::nodes(count, Spread::Shared(shared), Families::Both, Families::Both);
    let lab = Lab::start(topology)?;
    let outside = match underlay {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    let conflist = with_routing_keys(conf::TUNNEL, &json!({ "underlayFamily": outside }))?;
    let cluster = Cluster::new(lab, &conflist)?;
    let nodes: Vec<&str> = cluster.lab().nodes().iter().map(|node| node.name()).collect();
    let pods: Result<Vec<Pod>> = nodes.iter().map(|node| cluster.pod(node, "pod")).collect();
    let pods = pods?;
    let mut targets = Vec::new();
    for pod in &pods {
        targets.extend([pod.addr(Family::V4)?, pod.addr(Family::V6)?]);
    }
    let list: Vec<String> = targets.iter().map(ToString::to_string).collect();
    for pod in &pods {
        let all = format!(
            "for ip in {}; do ping -q -c 1 -W 5 $ip >/dev/null || echo $ip; done",
            list.join(" ")
        );
        let silent = pod.sh(&all)?;
        assert!(silent.trim().is_empty(), "{} hears nothing of {silent}", pod.node().name());
    }
    Ok(())
}

#[test]
fn two_nodes_reach_each_other() -> Result<()> {
    e2e::needs_lab!();
    all_reach_all(2, 2, Family::V4)
}

#[test]
fn three_nodes_reach_each_other_over_ipv6() -> Result<()> {
    e2e::needs_lab!();
    all_reach_all(3, 1, Family::V6)
}

#[test]
fn twenty_nodes_reach_each_other() -> Result<()> {
    e2e::needs_lab!();
    all_reach_all(20, 10, Family::V4)
}
