//! Pairs of nodes go one way whatever their ranges: nodes with several ranges, inside
//! and outside of the native CIDR, under strict reverse path filtering.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::Result;
use e2e::{Cluster, Families, Family, Frame, PingOptions, Pod, Spread, Topology};
use serde_json::json;

use crate::look::{assert_no_source_was_refused, echoes, frames, inner};
use crate::{assert_ping, conflist};

/// Nodes 1 and 2 have ranges inside of the native CIDRs alone, node 2 two of each
/// family; nodes 3 and 4, on one link, have one inside and one outside.
fn topology() -> Result<Topology> {
    let mut topology = Topology::nodes(4, Spread::Own, Families::Both, Families::Both);
    let link = topology.hosts[2].link;
    let fourth = &mut topology.hosts[3];
    fourth.link = link;
    fourth.addresses = vec!["192.168.3.2/24".parse()?, "fd00:3::2/64".parse()?];
    for (host, more) in [
        (1, ["10.77.2.0/24", "fd10:77:0:2::/64"]),
        (2, ["172.20.3.0/24", "fd20:0:0:3::/64"]),
        (3, ["172.20.4.0/24", "fd20:0:0:4::/64"]),
    ] {
        for range in more {
            topology.hosts[host].pod_ranges.push(range.parse()?);
        }
    }
    Ok(topology)
}

/// A pod, the node that it is on, and its addresses.
struct Member {
    node: usize,
    pod: Pod,
}

/// A pod for each IPv4 range of each node with an IPv6 range beside it.
fn members(cluster: &Cluster) -> Result<Vec<Member>> {
    let wanted: [(usize, &[&str]); 7] = [
        (1, &["10.0.1.9/24", "fd10:0:0:1::9/64"]),
        (2, &["10.0.2.9/24", "fd10:0:0:2::9/64"]),
        (2, &["10.77.2.9/24", "fd10:77:0:2::9/64"]),
        (3, &["10.0.3.9/24", "fd10:0:0:3::9/64"]),
        (3, &["172.20.3.9/24", "fd20:0:0:3::9/64"]),
        (4, &["10.0.4.9/24", "fd10:0:0:4::9/64"]),
        (4, &["172.20.4.9/24", "fd20:0:0:4::9/64"]),
    ];
    let member = |(number, &(node, ips)): (usize, &(usize, &[&str]))| {
        let pod = cluster.pod_at(&format!("node{node}"), &format!("pod{number}"), ips)?;
        Ok(Member { node, pod })
    };
    wanted.iter().enumerate().map(member).collect()
}

/// The pairs of pods' nodes, and every ping between them once each way; which of them
/// were seen in the tunnel and which bare is asserted by node1's, node2's and node3's
/// captures.
#[test]
fn every_range_of_a_pair_of_nodes_goes_the_same_way() -> Result<()> {
    e2e::needs_lab!();
    let routing = json!({
        "routingMode": "hybrid",
        "ipv4NativeRoutingCIDR": "10.0.0.0/8", "ipv6NativeRoutingCIDR": ["fd10::/16"],
        "links": ["192.168.0.0/16", "192.168.1.0/24", "192.168.2.0/24", "192.168.3.0/24",
                  "fd00:1::/64", "fd00:2::/64", "fd00:3::/64"],
    });
    let cluster = Cluster::start(topology()?, &conflist(routing))?;
    cluster.set_rp_filter("1")?;
    // What nobody needs on the wire, a router of a physical network need not know.
    cluster.route_to("node1")?;
    cluster.route_to("node2")?;
    let members = members(&cluster)?;
    cluster.sync_all()?;
    let mut captures = Vec::new();
    for node in cluster.nodes() {
        captures.push(node.capture("eth0", "icmp or icmp6 or udp port 8472")?);
    }
    let mut sent = Vec::new();
    for from in &members {
        for to in members.iter().filter(|to| to.node != from.node) {
            for family in [Family::V4, Family::V6] {
                let size = 200 + sent.len() as u32;
                let options = PingOptions { size, ..PingOptions::default() };
                let addresses = (from.pod.addr(family)?, to.pod.addr(family)?);
                assert_ping(&from.pod, addresses.1, options)?;
                sent.push((from.node, to.node, addresses, size));
            }
        }
    }
    let captured = captures.into_iter().map(frames).collect::<Result<Vec<_>>>()?;
    for &(from, to, addresses, size) in &sent {
        let tunnelled = !matches!((from, to), (1 | 2, 1 | 2) | (3 | 4, 3 | 4));
        assert_way(&captured[from - 1], size, addresses, tunnelled);
        assert_way(&captured[to - 1], size, addresses, tunnelled);
    }
    let pairs: BTreeSet<_> = sent.iter().map(|(from, to, ..)| (from, to)).collect();
    assert_eq!(pairs.len(), 12, "every pair of nodes, both ways");
    assert_no_source_was_refused(&cluster)
}

#[track_caller]
fn assert_way(frames: &[Frame], size: u32, (from, to): (IpAddr, IpAddr), tunnelled: bool) {
    for request in [true, false] {
        let seen = echoes(frames, request, size);
        assert_eq!(seen.len(), 1, "{from} to {to}, request: {request}");
        let ends = (inner(seen[0]).source, inner(seen[0]).destination);
        assert_eq!(ends, if request { (from, to) } else { (to, from) });
        assert_eq!(seen[0].vxlan().is_some(), tunnelled, "{from} to {to}: {}", seen[0]);
    }
}

/// `weft plan` finds nothing to do then: both ends hold what they shall.
#[test]
fn links_decide_both_ways_at_once() -> Result<()> {
    e2e::needs_lab!();
    let routing = json!({
        "routingMode": "hybrid",
        "links": ["192.168.1.0/24", "192.168.2.0/24"],
    });
    let topology = Topology::nodes(4, Spread::Shared(2), Families::V4, Families::V4);
    let mut cluster = Cluster::start(topology, &conflist(routing))?;
    cluster.set_rp_filter("1")?;
    let (a, b) = (cluster.pod("node1", "pod-a")?, cluster.pod("node2", "pod-b")?);
    let is_tunnelled = |cluster: &Cluster, size| -> Result<bool> {
        let capture = cluster.node("node2")?.capture("eth0", "icmp or udp port 8472")?;
        let options = PingOptions { size, ..PingOptions::default() };
        assert_ping(&a, b.addr(Family::V4)?, options)?;
        let frames = frames(capture)?;
        let ways = [true, false].map(|request| {
            let seen = echoes(&frames, request, size);
            assert_eq!(seen.len(), 1);
            seen[0].vxlan().is_some()
        });
        assert_eq!(ways[0], ways[1], "both directions go the same way");
        Ok(ways[0])
    };
    assert!(!is_tunnelled(&cluster, 81)?);
    // The links of the conflist decide, not what the kernel's routes would allow.
    let apart = json!({ "routingMode": "hybrid", "links": ["192.168.1.1/32", "192.168.1.2/32"] });
    cluster.set_conflist(&conflist(apart))?;
    cluster.sync_all()?;
    assert!(is_tunnelled(&cluster, 82)?);
    for node in cluster.nodes() {
        cluster.weft(node.name(), &["plan"])?.ok()?;
    }
    Ok(())
}

/// Links of the conflist that hold nodes of different networks: both ends still decide
/// alike, the kernel's routes are used as they are, and the operator is told.
#[test]
fn a_shared_link_that_the_host_s_routes_deny_is_reported() -> Result<()> {
    e2e::needs_lab!();
    let routing = json!({ "routingMode": "hybrid", "links": ["192.168.0.0/16"] });
    let topology = Topology::nodes(2, Spread::Own, Families::V4, Families::V4);
    let cluster = Cluster::start(topology, &conflist(routing))?;
    cluster.set_rp_filter("1")?;
    cluster.route_to_all()?;
    let (a, b) = (cluster.pod("node1", "pod-a")?, cluster.pod("node2", "pod-b")?);
    for (node, peer, address, gateway) in [
        ("node1", "node2", "192.168.2.1", "192.168.1.254"),
        ("node2", "node1", "192.168.1.1", "192.168.2.254"),
    ] {
        let note = format!(
            "node {peer} ({address}) is on the same link (192.168.0.0/16) by the node map, but \
             gateway {gateway} is in the way"
        );
        let synced = cluster.weft(node, &["sync"])?;
        // Nothing to retry: it stands until the operator corrects something.
        assert_eq!(synced.status.code(), Some(0), "{synced}");
        let planned = cluster.weft(node, &["plan"])?;
        assert_eq!(planned.status.code(), Some(0), "{planned}");
        for said in [synced.stderr, planned.stderr, cluster.weft(node, &["status"])?.ok()?] {
            assert!(said.contains(&note), "{said}");
        }
        let routes = cluster.node(node)?.json(&["ip", "-j", "route", "show", "proto", "87"])?;
        let routes = routes.as_array().map(Vec::as_slice).unwrap_or_default();
        assert!(matches!(routes, [own] if own["type"] == "unreachable"), "{routes:?}");
    }
    let capture = |node| cluster.node(node)?.capture("eth0", "icmp or udp port 8472");
    let captures = ["node1", "node2"].map(capture);
    let (from, to) = (a.addr(Family::V4)?, b.addr(Family::V4)?);
    assert_ping(&a, to, PingOptions { size: 83, ..PingOptions::default() })?;
    for capture in captures {
        assert_way(&frames(capture?)?, 83, (from, to), false);
    }
    assert_no_source_was_refused(&cluster)
}
