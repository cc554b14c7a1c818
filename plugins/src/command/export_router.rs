//! `weft export router`: the routes that the physical network's router misses.

use std::fmt::Write;
use std::process::ExitCode;

use anyhow::Result;
use cluster::{Family, Map, Mode, Node};

use super::conflist::RoutingNetwork;
use super::print::{one_line, print};
use crate::routing::config::{Config, mode_word};

pub(super) const HELP: &str = "\
Usage: weft export router [--conf FILE]

Prints the routes that the physical network's router needs to carry pods'
packets: one `ip route add` a line for each pod range of each node in the node
map, all other lines comments. Run the text in a shell on the router.

The next hop is the address that the other nodes reach the node by: its
tunnelAddress where that is of the range's family, else its first address of it.
A node without such an address gets a comment. Quarantined nodes get one too.
";

/// Prints the routes for one network.
pub(super) fn run(network: &RoutingNetwork) -> Result<ExitCode> {
    let loaded = network.config.source.load()?;
    for warning in &loaded.warnings {
        eprintln!("weft: warning: {warning}");
    }
    print(&text(&network.config, &loaded.map))?;
    Ok(ExitCode::SUCCESS)
}

/// The routes as a shell script; pure.
fn text(config: &Config, map: &Map) -> String {
    let mut lines = vec![
        format!(
            "network {}, routingMode {}, {} node(s) of {}",
            config.network,
            mode_word(config.mode),
            map.nodes.len(),
            map.origin
        ),
        need(config).to_owned(),
    ];
    lines = lines.iter().map(|line| comment(line)).collect();
    for node in &map.nodes {
        lines.extend(node_lines(node));
    }
    let waiting = map.incomplete.iter().map(|node| (node.name.as_str(), "no range or address yet"));
    let wrong = map.quarantined.iter().map(|q| (q.item.as_str(), q.why.as_str()));
    let skipped = waiting.chain(wrong);
    lines.extend(skipped.map(|(name, why)| comment(&format!("{name} is left out: {why}"))));
    lines.iter().fold(String::new(), |mut text, line| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{line}");
        text
    })
}

/// Who needs the routes.
fn need(config: &Config) -> &'static str {
    match (config.mode, config.tunnel_port) {
        (Mode::Tunnel, _) => {
            "pods of different nodes reach each other through the tunnel and need none of these \
             routes; with them, hosts outside reach pods"
        }
        (Mode::Native, None) => "pods of nodes on different links cannot talk without these routes",
        (Mode::Native, Some(_)) | (Mode::Hybrid, _) => {
            "pairs of nodes that go through the tunnel, or share a link, need none of these routes"
        }
    }
}

fn node_lines(node: &Node) -> Vec<String> {
    let route = |range: &ipnetwork::IpNetwork| {
        let family = Family::of_network(range);
        match (node.tunnel_end(family), family) {
            (Some(via), Family::V4) => format!("ip route add {range} via {via}"),
            (Some(via), Family::V6) => format!("ip -6 route add {range} via {via}"),
            (None, _) => {
                let name = &node.name;
                comment(&format!("no route to {range}: node {name} has no {family} address"))
            }
        }
    };
    std::iter::once(comment(&node.name)).chain(node.pod_ranges.iter().map(route)).collect()
}

fn comment(text: &str) -> String {
    format!("# {}", one_line(text))
}

#[cfg(test)]
mod tests {
    use serde_json::{Map as Keys, Value, json};

    use super::*;

    fn exported(keys: Value, map: Value) -> String {
        let keys: Keys<String, Value> = serde_json::from_value(keys).expect("an object");
        let config = Config::of("pods", &cni::Object::root(&keys)).expect("good keys");
        text(&config, &Map::from_value(&map, "nodes").expect("a map"))
    }

    fn commands(text: &str) -> Vec<&str> {
        text.lines().filter(|line| !line.starts_with('#')).collect()
    }

    #[test]
    fn every_range_of_every_node_gets_a_command() {
        let map = json!({ "nodes": [
            { "name": "a", "addresses": ["192.168.1.1", "fd00::1"],
              "podCIDRs": ["10.0.1.0/24", "fd10:1::/64", "10.1.1.0/24"] },
            { "name": "b", "addresses": ["192.168.2.1"], "podCIDRs": ["10.0.2.0/24"] },
        ] });
        let expected = [
            "ip route add 10.0.1.0/24 via 192.168.1.1",
            "ip -6 route add fd10:1::/64 via fd00::1",
            "ip route add 10.1.1.0/24 via 192.168.1.1",
            "ip route add 10.0.2.0/24 via 192.168.2.1",
        ];
        for mode in ["native", "tunnel", "hybrid"] {
            let text = exported(json!({ "routingMode": mode }), map.clone());
            assert_eq!(commands(&text), expected, "{mode}");
        }
    }

    #[test]
    fn what_has_no_route_is_a_comment() {
        let map = json!({ "nodes": [
            { "name": "v4only", "addresses": ["192.168.1.1"], "podCIDRs": ["fd10:1::/64"] },
            { "name": "new", "addresses": ["192.168.3.1"] },
            { "name": "twin", "addresses": ["192.168.4.1"], "podCIDRs": ["10.0.4.0/24"] },
            { "name": "twin2", "addresses": ["192.168.5.1"], "podCIDRs": ["10.0.4.0/24"] },
        ] });
        let text = exported(json!({ "routingMode": "native" }), map);
        assert_eq!(commands(&text), [""; 0]);
        assert!(text.contains("# no route to fd10:1::/64: node v4only has no IPv6 address"));
        assert!(text.contains("new is left out"), "{text}");
        assert!(text.contains("overlaps"), "{text}");
    }

    #[test]
    fn a_name_cannot_smuggle_in_a_command() {
        let map = json!({ "nodes": [
            { "name": "x\nreboot", "addresses": ["192.168.1.1"], "podCIDRs": ["10.0.1.0/24"] },
            { "name": "y", "addresses": ["192.168.2.1"], "podCIDRs": ["10.0.2.0/24"] },
        ] });
        let text = exported(json!({ "routingMode": "native" }), map);
        assert!(commands(&text).iter().all(|line| line.starts_with("ip route add ")), "{text}");
    }
}
