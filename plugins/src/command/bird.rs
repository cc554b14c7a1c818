//! BIRD 2's configuration.

use std::net::IpAddr;

use cluster::Family;
use ipnetwork::IpNetwork;

use super::bgp::{Accepted, Inside, ROUTER_ID, Router, Session, Speaker};
use super::print::one_line;

/// How soon a session starts, and how soon a dead end is noticed, in seconds.
const TIMERS: &str = "  hold time 30;
  connect delay time 1;
  connect retry time 10;
  error wait time 2, 30;
";

/// The whole configuration of a node.
pub(super) fn node(speaker: &Speaker) -> String {
    let mut text = format!(
        "# BGP of node {}: announces its pod ranges and learns nothing.\n",
        one_line(&speaker.name)
    );
    add_notes(&mut text, &speaker.notes);
    text += &format!("\nrouter id {};\n\nprotocol device {{\n}}\n", speaker.id);
    for session in &speaker.sessions {
        text += &node_session(session, speaker);
    }
    text
}

fn node_session(session: &Session, speaker: &Speaker) -> String {
    let Session { family, local, routers, ranges } = session;
    let (number, channel) = names(*family);
    let routes: String =
        ranges.iter().map(|range| format!("  route {range} blackhole;\n")).collect();
    let mut text = format!(
        "
# Known to BIRD alone: without a protocol \"kernel\" it puts nothing in the kernel.
protocol static weft_own{number} {{
  {channel};
{routes}}}
"
    );
    for (position, router) in routers.iter().enumerate() {
        text += &format!(
            "
protocol bgp weft_router{number}_{} {{
  local {local} as {};
  neighbor {router} as {};
{TIMERS}  {channel} {{
    import none;
    export where net ~ [ {} ];
  }};
}}
",
            position + 1,
            speaker.nodes_as,
            speaker.router_as,
            list(ranges, ""),
        );
    }
    text
}

/// The whole configuration of the router.
pub(super) fn router(router: &Router) -> String {
    let mut text =
        "# BGP of the router: takes nodes' pod ranges and announces nothing.\n".to_owned();
    add_notes(&mut text, &router.notes);
    if router.needs_id {
        text +=
            &format!("\n# Any number will do that no other router has.\nrouter id {ROUTER_ID};\n");
    }
    text += "\nprotocol device {\n}\n";
    for accepted in &router.families {
        text += &filter(accepted);
        text += &router_protocols(accepted, router);
    }
    text
}

fn filter(accepted: &Accepted) -> String {
    let (number, _) = names(accepted.family);
    let line = |(addresses, ranges): &(Vec<IpAddr>, Vec<IpNetwork>)| {
        let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
        // The space keeps the colon out of an IPv6 address.
        let (from, ranges) = (addresses.join(", "), list(ranges, ""));
        format!("    {from} : if net ~ [ {ranges} ] then accept;\n")
    };
    let nodes: String = accepted.nodes.iter().map(line).collect();
    let known: Vec<IpNetwork> =
        accepted.nodes.iter().flat_map(|(_, ranges)| ranges).copied().collect();
    let mut text = format!(
        "
filter weft_from_nodes{number} {{
  if bgp_next_hop != from then reject;
  # Each node's ranges from that node.
  case from {{
{nodes}  }}
  # Nobody else has them, nor a part of them.
  if net ~ [ {} ] then reject;
",
        list(&known, "+")
    );
    if !accepted.new.is_empty() {
        let new: Vec<String> = accepted.new.iter().map(pattern).collect();
        text += "  # Those of nodes that are not in the map yet.\n";
        text += &format!("  if net ~ [ {} ] then accept;\n", new.join(", "));
    }
    text + "  reject;\n}\n"
}

fn router_protocols(accepted: &Accepted, router: &Router) -> String {
    let (number, channel) = names(accepted.family);
    let any = match accepted.family {
        Family::V4 => "0.0.0.0/0",
        Family::V6 => "::/0",
    };
    format!(
        "
protocol bgp weft_nodes{number} {{
  local as {};
  neighbor range {any} as {};
  dynamic name \"weft_node{number}_\";
{TIMERS}  {channel} {{
    import filter weft_from_nodes{number};
    export none;
  }};
}}

protocol kernel weft_kernel{number} {{
  {channel} {{
    import none;
    export where proto ~ \"weft_node{number}_*\";
  }};
}}
",
        router.router_as, router.nodes_as
    )
}

fn add_notes(text: &mut String, notes: &[String]) {
    for note in notes {
        *text += &format!("# {}\n", one_line(note));
    }
}

/// Suffix of names, and the channel.
fn names(family: Family) -> (u8, &'static str) {
    match family {
        Family::V4 => (4, "ipv4"),
        Family::V6 => (6, "ipv6"),
    }
}

fn list(ranges: &[IpNetwork], suffix: &str) -> String {
    let items: Vec<String> = ranges.iter().map(|range| format!("{range}{suffix}")).collect();
    items.join(", ")
}

fn pattern(inside: &Inside) -> String {
    format!("{}{{{},{}}}", inside.cidr, inside.shortest, inside.longest)
}

#[cfg(test)]
mod tests {
    use cluster::Family;

    use super::*;

    #[test]
    fn a_node_announces_its_ranges_to_each_router() {
        let address = |text: &str| -> IpAddr { text.parse().expect("an address") };
        let session = Session {
            family: Family::V4,
            local: address("192.168.1.2"),
            routers: vec![address("192.168.1.1"), address("192.168.1.3")],
            ranges: ["10.0.1.0/24", "10.1.1.0/24"].map(|r| r.parse().expect("a range")).to_vec(),
        };
        let speaker = Speaker {
            name: "a\nb".to_owned(),
            id: std::net::Ipv4Addr::new(192, 168, 1, 2),
            nodes_as: 64512,
            router_as: 64513,
            sessions: vec![session],
            notes: Vec::new(),
        };
        let text = node(&speaker);
        assert_eq!(text.matches("route 10.").count(), 2, "{text}");
        assert_eq!(text.matches("export where net ~ [ 10.0.1.0/24, 10.1.1.0/24 ];").count(), 2);
        assert!(text.contains("weft_router4_1") && text.contains("neighbor 192.168.1.3 as 64513;"));
        assert!(text.starts_with("# BGP of node a b:"), "{text}");
    }

    #[test]
    fn lengths_bound_new_ranges() {
        let cidr = "10.0.0.0/8".parse().expect("a network");
        assert_eq!(pattern(&Inside { cidr, shortest: 23, longest: 24 }), "10.0.0.0/8{23,24}");
    }
}
