//! BIRD 2's configuration.

use std::fmt::Write;

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
    let Session { family, local, router, ranges } = session;
    let (number, channel) = names(*family);
    let routes = ranges.iter().fold(String::new(), |mut lines, range| {
        // Writing to a String cannot fail.
        let _ = writeln!(lines, "  route {range} blackhole;");
        lines
    });
    format!(
        "
# Known to BIRD alone: without a protocol \"kernel\" it puts nothing in the kernel.
protocol static weft_own{number} {{
  {channel};
{routes}}}

protocol bgp weft_router{number} {{
  local {local} as {};
  neighbor {router} as {};
{TIMERS}  {channel} {{
    import none;
    export where net ~ [ {} ];
  }};
}}
",
        speaker.nodes_as,
        speaker.router_as,
        list(ranges, ""),
    )
}

/// The whole configuration of the router.
pub(super) fn router(router: &Router) -> String {
    let mut text =
        "# BGP of the router: takes nodes' pod ranges and announces nothing.\n".to_owned();
    add_notes(&mut text, &router.notes);
    if router.needs_id {
        text += &format!("\nrouter id {ROUTER_ID};\n");
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
    let nodes = accepted.nodes.iter().fold(String::new(), |mut lines, (address, ranges)| {
        // Writing to a String cannot fail.
        let _ = writeln!(lines, "    {address} : if net ~ [ {} ] then accept;", list(ranges, ""));
        lines
    });
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
