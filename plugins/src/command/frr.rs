//! FRR's configuration.

use anyhow::{Result, ensure};
use cluster::Family;
use ipnetwork::IpNetwork;

use super::bgp::{Accepted, Inside, ROUTER_ID, Router, Session, Speaker};
use super::print::one_line;

/// Entries that a route map can have, less the two that are not for nodes
/// (`lib/routemap_cli.c`: sequence numbers from 1 to 65535).
const MAX_NODES: usize = 65_533;
/// Sessions that neighbours in a range may have, the most that there can be
/// (`bgpd/bgp_vty.c`); 100 where it is not set.
const MAX_SESSIONS: u32 = 65_535;

/// The whole configuration of a node.
pub(super) fn node(speaker: &Speaker) -> String {
    let mut text = format!(
        "! BGP of node {}: announces its pod ranges and learns nothing.\n",
        one_line(&speaker.name)
    );
    add_notes(&mut text, &speaker.notes);
    text += "!\nroute-map weft-nothing deny 1\nexit\n";
    for session in &speaker.sessions {
        text += &own_ranges(session);
    }
    text += &format!(
        "!\nrouter bgp {}\n bgp router-id {}\n no bgp default ipv4-unicast\n \
         no bgp network import-check\n",
        speaker.nodes_as, speaker.id
    );
    for session in &speaker.sessions {
        text += &session_lines(session, speaker.router_as);
    }
    text + "exit\n"
}

fn own_ranges(session: &Session) -> String {
    let (number, ip) = names(session.family);
    let name = format!("weft-own{number}");
    let list = prefix_list(&name, session.family, session.ranges.iter().map(exactly));
    format!("{list}!\nroute-map {name} permit 1\n match {ip} address prefix-list {name}\nexit\n")
}

fn session_lines(session: &Session, router_as: u32) -> String {
    let Session { family, local, routers, ranges } = session;
    let (number, ip) = names(*family);
    let ip = channel(ip);
    let mut text = String::new();
    for router in routers {
        text += &format!(
            " neighbor {router} remote-as {router_as}
 neighbor {router} update-source {local}
 neighbor {router} timers 10 30
 neighbor {router} timers connect 5
"
        );
    }
    text += &format!(" !\n address-family {ip} unicast\n");
    text.extend(ranges.iter().map(|range| format!("  network {range}\n")));
    for router in routers {
        text += &format!(
            "  neighbor {router} activate
  neighbor {router} route-map weft-nothing in
  neighbor {router} route-map weft-own{number} out
"
        );
    }
    text + " exit-address-family\n"
}

/// The whole configuration of the router.
pub(super) fn router(router: &Router) -> Result<String> {
    let mut text =
        "! BGP of the router: takes nodes' pod ranges and announces nothing.\n".to_owned();
    add_notes(&mut text, &router.notes);
    text += "!\nroute-map weft-nothing deny 1\nexit\n";
    for accepted in &router.families {
        let count: usize = accepted.nodes.iter().map(|(addresses, _)| addresses.len()).sum();
        ensure!(count <= MAX_NODES, "FRR can tell {MAX_NODES} nodes' addresses apart, not {count}");
        text += &from_nodes(accepted);
    }
    text += &format!("!\nrouter bgp {}\n", router.router_as);
    if router.needs_id {
        text += &format!(
            " ! Any number will do that no other router has.\n bgp router-id {ROUTER_ID}\n"
        );
    }
    text += &format!(" no bgp default ipv4-unicast\n bgp listen limit {MAX_SESSIONS}\n");
    for accepted in &router.families {
        text += &listen_lines(accepted.family, router.nodes_as);
    }
    Ok(text + "exit\n")
}

/// The route map that every announcement goes through: each node's ranges from
/// that node, no part of them from anybody else, then those of new nodes.
fn from_nodes(accepted: &Accepted) -> String {
    let Accepted { family, nodes, new } = accepted;
    let (number, ip) = names(*family);
    let mut lists = String::new();
    let mut map = String::new();
    let mut seq = 0;
    let mut entry = |verdict: &str, peer: String, list: &str| {
        seq += 1;
        let next_hop = match (verdict, family) {
            ("permit", Family::V4) => " set ip next-hop peer-address\n",
            // Else the link-local address that comes with it is used.
            ("permit", Family::V6) => {
                " set ipv6 next-hop peer-address\n set ipv6 next-hop prefer-global\n"
            }
            _ => "",
        };
        map += &format!(
            "!\nroute-map weft-from-nodes{number} {verdict} {seq}\n{peer} match {ip} address \
             prefix-list {list}\n{next_hop}exit\n"
        );
    };
    for (position, (addresses, ranges)) in nodes.iter().enumerate() {
        let name = format!("weft-node{number}-{}", position + 1);
        lists += &prefix_list(&name, *family, ranges.iter().map(exactly));
        for address in addresses {
            entry("permit", format!(" match peer {address}\n"), &name);
        }
    }
    let known = format!("weft-known{number}");
    let ranges = nodes.iter().flat_map(|(_, ranges)| ranges);
    lists += &prefix_list(&known, *family, ranges.map(with_parts));
    entry("deny", String::new(), &known);
    if !new.is_empty() {
        let name = format!("weft-new{number}");
        lists += &prefix_list(&name, *family, new.iter().map(of_new_nodes));
        entry("permit", String::new(), &name);
    }
    lists + &map
}

fn listen_lines(family: Family, nodes_as: u32) -> String {
    let (number, ip) = names(family);
    let ip = channel(ip);
    let any = match family {
        Family::V4 => "0.0.0.0/0",
        Family::V6 => "::/0",
    };
    let group = format!("weft-nodes{number}");
    format!(
        " neighbor {group} peer-group
 neighbor {group} remote-as {nodes_as}
 neighbor {group} timers 10 30
 bgp listen range {any} peer-group {group}
 !
 address-family {ip} unicast
  neighbor {group} activate
  neighbor {group} route-map weft-from-nodes{number} in
  neighbor {group} route-map weft-nothing out
 exit-address-family
"
    )
}

fn add_notes(text: &mut String, notes: &[String]) {
    for note in notes {
        *text += &format!("! {}\n", one_line(note));
    }
}

/// Suffix of names, and the word that commands begin with.
fn names(family: Family) -> (u8, &'static str) {
    match family {
        Family::V4 => (4, "ip"),
        Family::V6 => (6, "ipv6"),
    }
}

fn channel(ip: &str) -> &str {
    if ip == "ip" { "ipv4" } else { ip }
}

fn prefix_list(name: &str, family: Family, items: impl Iterator<Item = String>) -> String {
    let (_, ip) = names(family);
    let lines = items.enumerate();
    let lines =
        lines.map(|(i, item)| format!("{ip} prefix-list {name} seq {} permit {item}\n", i + 1));
    format!("!\n{}", lines.collect::<String>())
}

fn exactly(range: &IpNetwork) -> String {
    range.to_string()
}

/// The range and every part of it.
fn with_parts(range: &IpNetwork) -> String {
    let bits = Family::of_network(range).bits();
    if range.prefix() == bits { range.to_string() } else { format!("{range} le {bits}") }
}

/// FRR wants bounds that are longer than the prefix itself.
fn of_new_nodes(inside: &Inside) -> String {
    let Inside { cidr, shortest, longest } = *inside;
    let mut text = cidr.to_string();
    if shortest > cidr.prefix() {
        text += &format!(" ge {shortest}");
    }
    if longest > cidr.prefix() {
        text += &format!(" le {longest}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_longer_than_the_prefix() {
        let inside = |cidr: &str, shortest, longest| {
            of_new_nodes(&Inside { cidr: cidr.parse().expect("a network"), shortest, longest })
        };
        assert_eq!(inside("10.0.0.0/8", 24, 24), "10.0.0.0/8 ge 24 le 24");
        assert_eq!(inside("10.0.0.0/24", 24, 26), "10.0.0.0/24 le 26");
        assert_eq!(inside("10.0.0.0/24", 24, 24), "10.0.0.0/24");
        let parts = |range: &str| with_parts(&range.parse().expect("a network"));
        assert_eq!(parts("10.0.1.0/24"), "10.0.1.0/24 le 32");
        assert_eq!(parts("10.0.1.1/32"), "10.0.1.1/32");
        assert_eq!(parts("fd10::/64"), "fd10::/64 le 128");
    }
}
