//! Ways between nodes, and the names derived from the map.

use std::net::IpAddr;

use cluster::{
    Decision, Family, Links, Mac, Map, Mode, Node, Policy, Reason, Way, links_of,
    pod_network_address, vtep_link_local, vtep_mac,
};
use ipnetwork::IpNetwork;
use proptest::prelude::*;
use serde_json::json;

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn node(name: &str, addresses: &[&str], ranges: &[&str]) -> Node {
    Node {
        name: name.to_owned(),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        pod_ranges: ranges.iter().map(|r| net(r)).collect(),
        ..Node::default()
    }
}

fn policy(mode: Mode, tunnel: bool, cidrs: &[&str], links: &[&str]) -> Policy {
    let native_cidrs = cidrs.iter().map(|c| net(c)).collect();
    Policy { mode, tunnel, native_cidrs, links: links.iter().map(|l| net(l)).collect() }
}

fn way(policy: &Policy, a: &Node, b: &Node, family: Family) -> Option<Way> {
    policy.way(a, b, family).map(|decision| decision.way)
}

#[test]
fn tunnel_and_native_mode() {
    let a = node("a", &["192.168.1.1/24"], &["10.0.1.0/24", "fd00:1::/64"]);
    let b = node("b", &["192.168.1.2/24"], &["10.0.2.0/24", "172.20.0.0/24", "fd00:2::/64"]);
    let (v4, v6) = (Family::V4, Family::V6);
    let tunnel = policy(Mode::Tunnel, true, &["0.0.0.0/0"], &["192.168.1.0/24"]);
    assert_eq!(way(&tunnel, &a, &b, v4), Some(Way::Tunnel));
    let native = policy(Mode::Native, false, &["10.0.0.0/8"], &[]);
    assert_eq!(way(&native, &a, &b, v4), Some(Way::Native));
    let both = policy(Mode::Native, true, &["10.0.0.0/8"], &[]);
    let outside = Reason::OutsideNativeCidr(net("172.20.0.0/24"));
    assert_eq!(both.way(&a, &b, v4), Some(Decision { way: Way::Tunnel, reason: outside }));
    assert_eq!(way(&both, &a, &b, v6), Some(Way::Native), "no native CIDR of this family");
    let whole = policy(Mode::Native, true, &["10.0.0.0/8", "172.16.0.0/12"], &[]);
    assert_eq!(whole.way(&a, &b, v4).unwrap().reason, Reason::InsideNativeCidr);
    let part = policy(Mode::Native, true, &["10.0.2.0/25", "172.16.0.0/12"], &[]);
    assert_eq!(
        way(&part, &b, &b, v4),
        Some(Way::Tunnel),
        "a CIDR inside the range is not around it"
    );
}

#[test]
fn hybrid_by_cidr_and_by_link() {
    let a = node("a", &["192.168.1.1"], &["10.0.1.0/24"]);
    let b = node("b", &["192.168.1.200"], &["10.0.2.0/24"]);
    let c = node("c", &["192.168.2.1"], &["172.20.0.0/24"]);
    let links = policy(Mode::Hybrid, true, &[], &["192.168.1.0/24", "192.168.2.0/24"]);
    let shared = Reason::SharedLink(net("192.168.1.0/24"));
    assert_eq!(links.way(&a, &b, Family::V4).unwrap().reason, shared);
    assert_eq!(way(&links, &a, &c, Family::V4), Some(Way::Tunnel));
    let longest = policy(Mode::Hybrid, true, &[], &["192.168.0.0/16", "192.168.1.128/25"]);
    assert_eq!(way(&longest, &a, &b, Family::V4), Some(Way::Tunnel));
    assert_eq!(way(&longest, &a, &c, Family::V4), Some(Way::Native));
    let cidr = policy(Mode::Hybrid, true, &["10.0.0.0/8"], &[]);
    assert_eq!(way(&cidr, &a, &b, Family::V4), Some(Way::Native));
    assert_eq!(way(&cidr, &a, &c, Family::V4), Some(Way::Tunnel));
    let no_tunnel = policy(Mode::Hybrid, false, &["10.0.0.0/8"], &[]);
    assert_eq!(no_tunnel.way(&a, &c, Family::V4).unwrap().reason, Reason::NoTunnel);
    assert_eq!(cidr.way(&a, &b, Family::V6), None, "nothing to route");
}

#[test]
fn a_link_counts_for_the_family_of_the_pods() {
    let a = node("a", &["192.168.1.1/24"], &["10.0.1.0/24", "fd00:1::/64"]);
    let b = node("b", &["192.168.1.2/24", "2001:db8::2/64"], &["10.0.2.0/24", "fd00:2::/64"]);
    let map = Map { nodes: vec![a.clone(), b.clone()], ..Map::default() };
    let policy =
        Policy { mode: Mode::Hybrid, tunnel: true, native_cidrs: vec![], links: links_of(&map) };
    assert_eq!(way(&policy, &a, &b, Family::V4), Some(Way::Native));
    assert_eq!(way(&policy, &a, &b, Family::V6), Some(Way::Tunnel), "a has no IPv6 next hop");
    // Behind NAT: its private network says nothing of where it is.
    let nat = Node { tunnel_address: Some("198.51.100.1".parse().unwrap()), ..a };
    assert_eq!(way(&policy, &nat, &b, Family::V4), Some(Way::Tunnel));
}

#[test]
fn names_are_derived() {
    let four = node("a", &["192.168.1.1"], &["fd00:1::/64", "10.0.1.0/24"]);
    assert_eq!(vtep_mac(&four).to_string(), "0a:58:0a:00:01:00");
    assert_eq!(vtep_link_local(vtep_mac(&four)).to_string(), "fe80::858:aff:fe00:100");
    assert_eq!(pod_network_address(&four, Family::V6), Some("fd00:1::".parse::<IpAddr>().unwrap()));
    let six = node("a", &["2001:db8::1"], &["fd00:1::/64"]);
    // FNV-1a, 64 bits, of the sixteen octets, folded; computed independently.
    assert_eq!(vtep_mac(&six).to_string(), "0a:58:56:93:1b:82");
    assert_eq!(pod_network_address(&six, Family::V4), None);
    let given = Node { vtep_mac: Some("02:00:00:00:00:01".parse().unwrap()), ..four };
    assert_eq!(vtep_mac(&given).to_string(), "02:00:00:00:00:01");
}

#[test]
fn hashed_macs_of_neighbouring_ranges_differ() {
    let mut seen = std::collections::HashSet::new();
    for n in 0..10_000u32 {
        let range = format!("fd00:0:{:x}:{:x}::/64", n / 256, n % 256);
        assert!(seen.insert(vtep_mac(&node("a", &[], &[&range]))), "{range}");
    }
}

#[test]
fn macs_parse() {
    assert_eq!("0A:58:0a:00:01:ff".parse::<Mac>().unwrap().to_string(), "0a:58:0a:00:01:ff");
    for bad in [
        "",
        "0a",
        "0a:58:0a:00:01",
        "0a:58:0a:00:01:ff:00",
        "0a:58:0a:00:01:+f",
        "a:58:0a:00:01:ff",
    ] {
        assert!(bad.parse::<Mac>().is_err(), "{bad}");
    }
    assert!(!Mac([1, 0, 0, 0, 0, 0]).is_unicast());
    assert!(!Mac([0; 6]).is_unicast());
}

#[test]
fn every_node_with_a_link_of_its_own_is_quick() {
    let nodes: Vec<_> = (0..10_000u32)
        .map(|n| {
            let (high, low) = (n / 256, n % 256);
            json!({"name": format!("n{n}"), "addresses": [format!("172.{}.{low}.1/24", 16 + high)],
                   "podCIDRs": [format!("10.{high}.{low}.0/24")]})
        })
        .collect();
    let map = Map::from_value(&json!(nodes), "test").unwrap();
    assert!(map.is_sound());
    let links = links_of(&map);
    let policy = Policy { mode: Mode::Hybrid, tunnel: true, native_cidrs: vec![], links };
    let start = std::time::Instant::now();
    let own = &map.nodes[0];
    let tunnels =
        map.nodes.iter().filter(|peer| way(&policy, own, peer, Family::V4) == Some(Way::Tunnel));
    assert_eq!(tunnels.count(), 9_999);
    let took = start.elapsed();
    println!("10,000 ways: {took:?}");
    assert!(took.as_millis() < 1_000, "{took:?}");
}

fn any_range() -> impl Strategy<Value = (u8, u8)> {
    (any::<u8>(), 0u8..4)
}

/// Maps of up to six nodes: each with up to three /24 and /64 pod ranges, inside
/// and outside of what may be the native CIDR, and addresses on a few links of
/// different lengths.
fn any_map() -> impl Strategy<Value = Map> {
    let one = (
        prop::collection::vec(any_range(), 0..4),
        prop::collection::vec(any_range(), 0..3),
        prop::option::of((
            any::<u8>(),
            prop::sample::select(vec![None, Some(24), Some(25), Some(16)]),
        )),
        prop::option::of((1u8..255, prop::sample::select(vec![None, Some(64), Some(120)]))),
        prop::option::of(any::<u8>()),
    );
    prop::collection::vec(one, 2..7).prop_map(|nodes| {
        let slash = |len: Option<u8>| len.map_or(String::new(), |len| format!("/{len}"));
        let nodes = nodes.into_iter().enumerate().map(|(i, (four, six, a4, a6, tunnel))| {
            let mut addresses = Vec::new();
            addresses.extend(a4.map(|(n, len)| format!("192.168.{}.{n}{}", n % 3, slash(len))));
            addresses.extend(a6.map(|(n, len)| format!("2001:db8::{n:x}{}", slash(len))));
            let four = four.iter().map(|(n, m)| format!("{}.0.{n}.0/24", 10 + m));
            let six = six.iter().map(|(n, m)| format!("fd0{m}:{n:x}::/64"));
            json!({
                "name": format!("n{i}"), "addresses": addresses,
                "podCIDRs": four.chain(six).collect::<Vec<_>>(),
                "tunnelAddress": tunnel.map(|n| format!("192.168.1.{n}")),
            })
        });
        let nodes: Vec<_> = nodes.collect();
        Map::from_value(&json!(nodes), "test").unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Each end decides alone, from the same map read in its own order of links,
    /// for each destination range; whatever the source, a flow and its replies
    /// go the same way.
    #[test]
    fn both_directions_go_the_same_way(
        map in any_map(),
        mode in prop::sample::select(vec![Mode::Tunnel, Mode::Native, Mode::Hybrid]),
        tunnel in any::<bool>(),
        cidrs in prop::sample::subsequence(
            vec!["10.0.0.0/8", "11.0.0.0/9", "12.0.0.0/16", "13.0.7.0/25", "fd00::/16", "fd01::/24"], 0..6),
        links in prop::option::of(prop::sample::subsequence(
            vec!["192.168.0.0/16", "192.168.1.0/24", "192.168.1.128/25", "2001:db8::/64"], 0..5)),
    ) {
        let here = Policy {
            mode, tunnel,
            native_cidrs: cidrs.iter().map(|c| net(c)).collect(),
            links: match &links {
                Some(links) => links.iter().map(|l| net(l)).collect(),
                None => links_of(&map),
            },
        };
        let mut there = here.clone();
        there.native_cidrs.reverse();
        if let Some(links) = &links {
            there.links = links.iter().rev().map(|l| net(l)).collect::<Links>();
        }
        for family in Family::ALL {
            for a in &map.nodes {
                for b in &map.nodes {
                    let forth = here.way(a, b, family);
                    let back = there.way(b, a, family);
                    prop_assert_eq!(forth, back);
                    let pairs = a.ranges(family).flat_map(|s| b.ranges(family).map(move |d| (s, d)));
                    for (source, destination) in pairs {
                        let inside = |r: &IpNetwork| here.native_cidrs.iter().any(|c| {
                            c.is_ipv4() == r.is_ipv4() && c.contains(r.ip()) && c.prefix() <= r.prefix()
                        });
                        let decision = forth.expect("there is something to route");
                        // What the text of the contract says of any two ranges.
                        if mode == Mode::Tunnel && tunnel {
                            prop_assert_eq!(decision.way, Way::Tunnel);
                        }
                        if !tunnel {
                            prop_assert_eq!(decision.way, Way::Native);
                        }
                        if decision.reason == Reason::InsideNativeCidr {
                            prop_assert!(inside(source) && inside(destination));
                        }
                    }
                }
            }
        }
    }
}
