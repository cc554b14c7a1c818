//! Which node this host is.

use std::net::IpAddr;

use cluster::{By, Host, Map, OwnError, own_node};
use ipnetwork::IpNetwork;
use serde_json::json;

fn map() -> Map {
    let nodes = json!({"nodes": [
        {"name": "one", "addresses": ["192.168.1.1"], "podCIDRs": ["10.0.1.0/24", "fd00:1::/64"]},
        {"name": "two", "addresses": ["192.168.1.2", "2001:db8::2"], "podCIDRs": ["10.0.2.0/24"]},
        {"name": "nat1", "addresses": ["10.99.0.5"], "tunnelAddress": "198.51.100.1",
         "podCIDRs": ["10.0.3.0/24"]},
        {"name": "nat2", "addresses": ["10.99.0.5"], "tunnelAddress": "198.51.100.2",
         "podCIDRs": ["10.0.4.0/24"]},
        {"name": "new", "addresses": ["192.168.1.5"]},
        {"name": "bad", "addresses": ["192.168.1.6"], "podCIDRs": ["10.0.6.1/24"]},
        {"name": "shadow", "addresses": ["192.168.1.1"], "podCIDRs": ["10.0.7.1/24"]}]});
    Map::from_value(&nodes, "/etc/weft/nodes.d").unwrap()
}

fn on(addresses: &[(&str, &str)]) -> Vec<(IpAddr, String)> {
    addresses.iter().map(|(ip, name)| (ip.parse().unwrap(), (*name).to_owned())).collect()
}

fn name_of(map: &Map, host: &Host) -> String {
    own_node(map, host).unwrap().node.name.clone()
}

#[test]
fn by_address_before_anything_else() {
    let map = map();
    let addresses = on(&[
        ("127.0.0.1", "lo"),
        ("fe80::1", "eth0"),
        ("192.168.1.1", "eth0"),
        ("192.168.1.1", "eth1"),
    ]);
    let host = Host { addresses: &addresses, node_name: Some("two"), ..Host::default() };
    let own = own_node(&map, &host).unwrap();
    assert_eq!(own.node.name, "one");
    assert_eq!(own.by, By::Address("192.168.1.1".parse().unwrap(), "eth0".to_owned()));
    let addresses = on(&[("198.51.100.2", "eth0")]);
    assert_eq!(name_of(&map, &Host { addresses: &addresses, ..Host::default() }), "nat2");
}

#[test]
fn two_by_address_is_an_error_unless_a_written_name_settles_it() {
    let map = map();
    for ips in [vec![("10.99.0.5", "eth0")], vec![("192.168.1.1", "eth0"), ("192.168.1.2", "eth1")]]
    {
        let addresses = on(&ips);
        let host = Host { addresses: &addresses, host_name: Some("nat1"), ..Host::default() };
        let error = own_node(&map, &host).unwrap_err();
        assert!(matches!(error, OwnError::Ambiguous(_)));
        assert!(error.to_string().contains(ips[0].0), "{error}");
    }
    let addresses = on(&[("10.99.0.5", "eth0")]);
    let host = Host { addresses: &addresses, name_file: Some("nat2"), ..Host::default() };
    assert_eq!(name_of(&map, &host), "nat2");
    let host = Host { addresses: &addresses, node_name: Some("one"), ..Host::default() };
    assert!(matches!(own_node(&map, &host), Err(OwnError::Ambiguous(_))));
}

#[test]
fn then_by_name_in_order() {
    let map = map();
    let own_ranges: [IpNetwork; 1] = ["10.0.3.0/24".parse().unwrap()];
    let host = Host {
        node_name: Some("one"),
        name_file: Some("two"),
        host_name: Some("nat1"),
        own_ranges: &own_ranges,
        ..Host::default()
    };
    assert_eq!(name_of(&map, &host), "one");
    assert_eq!(name_of(&map, &Host { node_name: None, ..host }), "two");
    assert_eq!(name_of(&map, &Host { node_name: None, name_file: None, ..host }), "nat1");
    let strange = Host { node_name: None, name_file: None, host_name: Some("strange"), ..host };
    let own = own_node(&map, &strange).unwrap();
    assert_eq!((own.node.name.as_str(), own.by), ("nat1", By::OwnRange(own_ranges[0])));
    for host in [
        Host { node_name: Some("gone"), ..host },
        Host { node_name: None, name_file: Some("gone"), ..host },
    ] {
        let error = own_node(&map, &host).unwrap_err();
        assert!(
            matches!(error, OwnError::Unknown(_)) && error.to_string().contains("\"gone\""),
            "{error}"
        );
    }
}

#[test]
fn ranges_of_two_nodes_are_an_error() {
    let own_ranges: Vec<IpNetwork> =
        ["fd00:1::/64", "10.0.2.0/24"].map(|r| r.parse().unwrap()).into();
    let error = own_node(&map(), &Host { own_ranges: &own_ranges, ..Host::default() }).unwrap_err();
    assert!(matches!(error, OwnError::Ambiguous(_)), "{error}");
}

#[test]
fn incomplete_and_quarantined_records_are_told_apart() {
    let map = map();
    let addresses = on(&[("192.168.1.5", "eth0")]);
    let error = own_node(&map, &Host { addresses: &addresses, ..Host::default() }).unwrap_err();
    assert!(matches!(&error, OwnError::NoRangeYet { node, .. } if node.name == "new"), "{error}");
    assert!(error.to_string().contains("no pod range"), "{error}");
    let error = own_node(&map, &Host { host_name: Some("bad"), ..Host::default() }).unwrap_err();
    assert!(matches!(&error, OwnError::Quarantined { node, .. } if node.name == "bad"), "{error}");
    assert!(error.to_string().contains("host bits"), "{error}");
}

#[test]
fn unknown_names_both_sides() {
    let map = map();
    let addresses = on(&[("192.168.5.2", "eth0"), ("fe80::1", "eth0"), ("169.254.1.1", "eth0")]);
    let host = Host { addresses: &addresses, host_name: Some("host7"), ..Host::default() };
    let error = own_node(&map, &host).unwrap_err().to_string();
    for part in ["/etc/weft/nodes.d", "192.168.5.2 on eth0", "host7", "one 192.168.1.1", "nodeName"]
    {
        assert!(error.contains(part), "{error}");
    }
    assert!(!error.contains("fe80") && !error.contains("not found"), "{error}");
}

#[test]
fn a_map_of_which_nothing_can_be_read_is_not_listed_as_nothing() {
    let nodes =
        json!({"nodes": [{"name": "bad", "addresses": ["x"], "podCIDRs": ["10.0.6.0/24"]}]});
    let map = Map::from_value(&nodes, "/etc/weft/nodes.d").unwrap();
    let addresses = on(&[("192.168.1.9", "eth0")]);
    let host = Host { addresses: &addresses, ..Host::default() };
    let text = own_node(&map, &host).unwrap_err().to_string();
    assert!(text.contains("the map has no usable record; set nodeName"), "{text}");
}
