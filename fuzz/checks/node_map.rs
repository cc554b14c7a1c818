//! The node map, and what is concluded from it.

use std::collections::HashSet;
use std::fmt::Display;
use std::net::IpAddr;

use cluster::{
    By, Family, Host, Links, Map, Mode, Node, Policy, links_of, own_node, pod_network_address,
    vtep_link_local, vtep_mac,
};
use ipnetwork::IpNetwork;

/// As many nodes as are compared with each other.
const COMPARED: usize = 12;

/// One JSON document, a file of the map.
pub(crate) fn check(data: &[u8]) {
    let map = match Map::from_json(data, "fuzz") {
        Ok(map) => map,
        Err(error) => return is_one_line(&error),
    };
    for problem in map.problems.iter().chain(&map.unreadable) {
        is_one_line(problem);
    }
    survives_compact_json(&map);
    applied_nodes_agree(&map.nodes);
    each_node_finds_itself(&map);
    ways_are_symmetric(&map);
}

/// Messages go into logs line by line.
fn is_one_line(message: &impl Display) {
    let text = message.to_string();
    assert!(!text.contains('\n'), "{text:?}");
}

fn survives_compact_json(map: &Map) {
    let compact = map.to_compact_json();
    // An empty list in the map is a map that names no node.
    if map.nodes.is_empty() && map.incomplete.is_empty() && map.quarantined.is_empty() {
        return;
    }
    let again = Map::from_json(compact.as_bytes(), "compact").expect("our own output");
    assert_eq!(again.nodes, map.nodes);
    assert_eq!(again.incomplete, map.incomplete);
    let kept = |map: &Map| -> Vec<(Node, String)> {
        map.quarantined.iter().map(|q| (q.node.clone(), q.why.clone())).collect()
    };
    assert_eq!(kept(&again), kept(map));
    assert_eq!(again.to_compact_json(), compact);
}

/// No two applied nodes claim the same thing, or the kernel would have the choice.
fn applied_nodes_agree(nodes: &[Node]) {
    let (mut names, mut macs, mut ends) = (HashSet::new(), HashSet::new(), HashSet::new());
    for node in nodes {
        assert!(names.insert(node.name.as_str()), "two nodes {:?}", node.name);
        let mac = vtep_mac(node);
        assert!(mac.is_unicast() && macs.insert(mac), "VTEP MAC {mac}");
        let _ = vtep_link_local(mac);
        for family in Family::ALL {
            assert!(node.tunnel_end(family).is_none_or(|end| ends.insert(end)));
            let own = pod_network_address(node, family);
            assert_eq!(own.is_some(), node.ranges(family).next().is_some());
        }
    }
    for (i, node) in nodes.iter().enumerate().take(COMPARED) {
        for other in nodes.iter().skip(i + 1).take(COMPARED) {
            for (a, b) in
                node.pod_ranges.iter().flat_map(|a| other.pod_ranges.iter().map(move |b| (a, b)))
            {
                let apart = a.is_ipv4() != b.is_ipv4()
                    || !(a.contains(b.network()) || b.contains(a.network()));
                assert!(apart, "{a} and {b} overlap");
            }
        }
    }
}

fn each_node_finds_itself(map: &Map) {
    for node in map.nodes.iter().take(COMPARED) {
        let named = Host { node_name: Some(&node.name), ..Host::default() };
        let own = own_node(map, &named);
        assert!(own.is_err() || own.is_ok_and(|own| own.node == node && own.by == By::NodeName));
        for address in &node.addresses {
            let held: [(IpAddr, String); 1] = [(address.ip, "eth0".into())];
            by(map, &Host { addresses: &held, ..Host::default() }, |own| {
                own.has_address(address.ip)
            });
        }
        for range in &node.pod_ranges {
            by(map, &Host { own_ranges: &[*range], ..Host::default() }, |own| own == node);
        }
    }
}

/// Whom the host finds, if anybody, has what it was found by.
fn by(map: &Map, host: &Host, is: impl Fn(&Node) -> bool) {
    match own_node(map, host) {
        Ok(own) => assert!(is(own.node), "{host:?} is taken for {:?} {}", own.node, own.by),
        Err(error) => is_one_line(&error),
    }
}

fn ways_are_symmetric(map: &Map) {
    let of_map: Vec<IpNetwork> =
        map.nodes.iter().filter_map(|node| node.pod_ranges.first()).take(2).copied().collect();
    for mode in [Mode::Tunnel, Mode::Native, Mode::Hybrid] {
        for (native_cidrs, links) in
            [(of_map.clone(), links_of(map)), (Vec::new(), Links::from_iter(of_map.clone()))]
        {
            for tunnel in [true, false] {
                let (native_cidrs, links) = (native_cidrs.clone(), links.clone());
                both_ends_agree(map, &Policy { mode, tunnel, native_cidrs, links });
            }
        }
    }
}

fn both_ends_agree(map: &Map, policy: &Policy) {
    for a in map.nodes.iter().take(COMPARED) {
        for b in map.nodes.iter().take(COMPARED) {
            for family in Family::ALL {
                let way = policy.way(a, b, family);
                assert_eq!(way, policy.way(b, a, family), "{} and {}", a.name, b.name);
                assert!(way.is_none_or(|way| !way.reason.to_string().is_empty()));
            }
        }
    }
}
