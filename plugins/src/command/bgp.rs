//! `weft export bird` and `weft export frr`: BGP in place of static routes.
//!
//! A node announces its own pod ranges to the router and learns nothing: its
//! packets to other nodes take the host's own routes, as with static routes on the
//! router. The sessions are external BGP, whose packets have a TTL of 1 (RFC 4271
//! section 5.1.3), so that nobody behind a node can have one.

use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use cluster::{Family, Map, Node};
use ipnetwork::IpNetwork;
use kernel::Rtnetlink;

use super::conflist::RoutingNetwork;
use super::print::print;
use super::{bird, frr};
use crate::node;
use crate::routing::config::Config;

pub(super) const HELP: &str = "\
Usage: weft export router [--conf FILE]
       weft export bird|frr [NODE] [--peer ADDRESS]... [--as N] [--router-as N]
       weft export bird|frr --router [--as N] [--router-as N]

`export router` prints the physical router's static routes to pods; see
weft help export router. The others print the BGP configuration that replaces
them, whole, as /etc/bird/bird.conf or /etc/frr/frr.conf:

  of this node (or of NODE), which announces its own pod ranges, each by its
  prefix, and learns nothing;
  with --router, of the router, which takes from each node the ranges that the
  node map gives to it. A pod range that is no known node's is taken from any
  neighbour on its links if it is inside ipv4NativeRoutingCIDR or
  ipv6NativeRoutingCIDR and as long as the others, so that a node added later is
  reached without a change of the router.

  --peer ADDRESS   A router, at least one for IPv4 and one for IPv6; by default
                   the gateway of this host's route to the other nodes
  --as N           AS number of the nodes, 64512 by default
  --router-as N    AS number of the router, 64513 by default

Neither daemon touches a route of weft's: on a node, they put nothing in the
kernel. Run the command again where the node's own pod ranges change.
";

/// AS numbers for private use begin here (RFC 6996).
pub(super) const NODES_AS: u32 = 64512;
/// The one after it.
pub(super) const ROUTER_AS: u32 = 64513;
/// Identifier of a router that has no IPv4 address to take one from: the IPv4
/// dummy address (RFC 7600 section 4.8), which is nobody's.
pub(super) const ROUTER_ID: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

/// The daemon that is to read the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Daemon {
    Bird,
    Frr,
}

/// Who is to run it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    ThisNode,
    Node(String),
    Router,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) daemon: Daemon,
    pub(super) whose: Whose,
    /// `--peer`.
    pub(super) peers: Vec<IpAddr>,
    /// `--as`.
    pub(super) nodes_as: u32,
    /// `--router-as`.
    pub(super) router_as: u32,
}

/// A node's part.
#[derive(Clone, Debug)]
pub(super) struct Speaker {
    pub(super) name: String,
    pub(super) id: Ipv4Addr,
    pub(super) nodes_as: u32,
    pub(super) router_as: u32,
    /// One a family.
    pub(super) sessions: Vec<Session>,
    /// What could not be had, for people.
    pub(super) notes: Vec<String>,
}

/// Sessions with the routers, and what is announced in them.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) family: Family,
    pub(super) local: IpAddr,
    pub(super) routers: Vec<IpAddr>,
    pub(super) ranges: Vec<IpNetwork>,
}

/// The router's part.
#[derive(Clone, Debug)]
pub(super) struct Router {
    /// Whether an identifier must be given, for want of IPv4.
    pub(super) needs_id: bool,
    pub(super) nodes_as: u32,
    pub(super) router_as: u32,
    /// One a family that there are pod ranges of.
    pub(super) families: Vec<Accepted>,
    /// What could not be had, for people.
    pub(super) notes: Vec<String>,
}

/// What the router takes of one family.
#[derive(Clone, Debug)]
pub(super) struct Accepted {
    pub(super) family: Family,
    /// Each node's addresses, those that its session may come from, and its ranges.
    pub(super) nodes: Vec<(Vec<IpAddr>, Vec<IpNetwork>)>,
    /// Where further nodes' ranges may be.
    pub(super) new: Vec<Inside>,
}

/// Ranges inside a CIDR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Inside {
    pub(super) cidr: IpNetwork,
    /// Prefix lengths, in bits.
    pub(super) shortest: u8,
    pub(super) longest: u8,
}

/// Prints the configuration for one network.
pub(super) fn run(request: &Request, network: &RoutingNetwork) -> Result<ExitCode> {
    let loaded = network.config.source.load()?;
    for warning in &loaded.warnings {
        eprintln!("weft: warning: {warning}");
    }
    let text = match &request.whose {
        Whose::Router => {
            let router = router(request, &network.config, &loaded.map);
            if router.families.is_empty() {
                bail!(
                    "{} has no node with an address and pod ranges of one family",
                    loaded.map.origin
                );
            }
            match request.daemon {
                Daemon::Bird => bird::router(&router),
                Daemon::Frr => frr::router(&router)?,
            }
        }
        whose => {
            let speaker = speaker(request, whose, &network.config, &loaded.map)?;
            match request.daemon {
                Daemon::Bird => bird::node(&speaker),
                Daemon::Frr => frr::node(&speaker),
            }
        }
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn speaker(request: &Request, whose: &Whose, config: &Config, map: &Map) -> Result<Speaker> {
    let mut host = Rtnetlink::open()?;
    let own = match whose {
        Whose::Node(name) => {
            let named = map.nodes.iter().find(|node| node.name == *name).cloned();
            named.with_context(|| {
                format!("{} has no node {name:?} with addresses and pod ranges", map.origin)
            })?
        }
        _ => node::own(map, &config.source, Some(config.protocol), &mut host)?,
    };
    let mut peers = request.peers.clone();
    if peers.is_empty() && *whose == Whose::ThisNode {
        peers = gateways(map, &own, &mut host)?;
    }
    let speaker = sessions(request, &own, &peers);
    if speaker.sessions.is_empty() {
        bail!(
            "no BGP session can be configured for node {}: {}",
            own.name,
            speaker.notes.join("; ")
        );
    }
    Ok(speaker)
}

/// The gateways by which this host reaches other nodes, one a family.
fn gateways(map: &Map, own: &Node, host: &mut Rtnetlink) -> Result<Vec<IpAddr>> {
    let mut gateways = Vec::new();
    for family in Family::ALL {
        let others = map.nodes.iter().filter(|node| node.name != own.name);
        for end in others.filter_map(|node| node.tunnel_end(family)) {
            let Some(via) = host.route_to(end)?.and_then(|way| way.via) else { continue };
            if !is_link_local(via) {
                gateways.push(via);
                break;
            }
        }
    }
    Ok(gateways)
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// The node's part: pure.
fn sessions(request: &Request, own: &Node, peers: &[IpAddr]) -> Speaker {
    let mut speaker = Speaker {
        name: own.name.clone(),
        id: identifier(own),
        nodes_as: request.nodes_as,
        router_as: request.router_as,
        sessions: Vec::new(),
        notes: Vec::new(),
    };
    for family in Family::ALL {
        let ranges: Vec<IpNetwork> = own.ranges(family).copied().collect();
        if ranges.is_empty() {
            continue;
        }
        let local = first_address(own, family);
        let routers = peers.iter().filter(|ip| Family::of(**ip) == family);
        let routers: Vec<IpAddr> = routers.copied().collect();
        match local {
            Some(local) if !routers.is_empty() => {
                speaker.sessions.push(Session { family, local, routers, ranges });
            }
            None => {
                let note = format!("the node has no {family} address to announce its ranges from");
                speaker.notes.push(note);
            }
            Some(_) => speaker.notes.push(format!(
                "no {family} router is known to announce the {family} ranges of {} to; name it \
                 with --peer",
                own.name
            )),
        }
    }
    speaker
}

/// The address that the node's sessions are from: not `tunnelAddress`, which need
/// not be on any interface of it.
fn first_address(node: &Node, family: Family) -> Option<IpAddr> {
    node.addresses.iter().map(|address| address.ip).find(|ip| Family::of(*ip) == family)
}

/// The node's first IPv4 address; of an IPv6 node a number that it shares with
/// nobody: the last four octets of its VTEP's MAC address, made a unicast address,
/// for not every speaker takes any number (RFC 4271 section 4.2 before RFC 6286).
fn identifier(own: &Node) -> Ipv4Addr {
    if let Some(IpAddr::V4(ip)) = first_address(own, Family::V4) {
        return ip;
    }
    let [_, _, a, b, c, d] = cluster::vtep_mac(own).0;
    let unicast = if (1..224).contains(&a) { a } else { a & 0x7f | 0x40 };
    Ipv4Addr::new(unicast, b, c, d)
}

/// The router's part: pure.
fn router(request: &Request, config: &Config, map: &Map) -> Router {
    let families: Vec<Accepted> =
        Family::ALL.into_iter().filter_map(|family| accepted(config, map, family)).collect();
    let closed = families.iter().filter(|accepted| accepted.new.is_empty());
    let mut notes: Vec<String> = without_address(map).collect();
    notes.extend(closed.map(|accepted| {
        let family = accepted.family;
        let key = match family {
            Family::V4 => "ipv4NativeRoutingCIDR",
            Family::V6 => "ipv6NativeRoutingCIDR",
        };
        format!(
            "no {key} holds the nodes' pod ranges: {family} ranges of nodes added to the map \
             later are not taken until this is exported again"
        )
    }));
    Router {
        needs_id: families.iter().all(|accepted| accepted.family == Family::V6),
        nodes_as: request.nodes_as,
        router_as: request.router_as,
        notes,
        families,
    }
}

fn without_address(map: &Map) -> impl Iterator<Item = String> {
    let pairs = map.nodes.iter().flat_map(|node| Family::ALL.map(|family| (node, family)));
    let pairs = pairs.filter(|(node, family)| {
        node.ranges(*family).next().is_some() && addresses(node, *family).is_empty()
    });
    pairs.map(|(node, family)| {
        format!("node {} has no {family} address to announce its {family} ranges from", node.name)
    })
}

/// Where a node's session may come from: its own address, or what NAT makes of it.
fn addresses(node: &Node, family: Family) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = first_address(node, family).into_iter().collect();
    addresses.extend(node.tunnel_end(family).filter(|ip| !addresses.contains(ip)));
    addresses
}

fn accepted(config: &Config, map: &Map, family: Family) -> Option<Accepted> {
    let nodes = map.nodes.iter().map(|node| {
        let ranges: Vec<IpNetwork> = node.ranges(family).copied().collect();
        (addresses(node, family), ranges)
    });
    let nodes = nodes.filter(|(addresses, ranges)| !addresses.is_empty() && !ranges.is_empty());
    let nodes: Vec<(Vec<IpAddr>, Vec<IpNetwork>)> = nodes.collect();
    let cidrs = config.native_cidrs.iter().filter(|cidr| Family::of_network(cidr) == family);
    let ranges: Vec<IpNetwork> = nodes.iter().flat_map(|(_, ranges)| ranges).copied().collect();
    let new = cidrs.filter_map(|cidr| inside(*cidr, &ranges)).collect();
    (!nodes.is_empty()).then_some(Accepted { family, nodes, new })
}

fn inside(cidr: IpNetwork, ranges: &[IpNetwork]) -> Option<Inside> {
    let within = ranges
        .iter()
        .filter(|range| range.prefix() >= cidr.prefix() && cidr.contains(range.network()));
    let lengths: Vec<u8> = within.map(IpNetwork::prefix).collect();
    let shortest = lengths.iter().copied().min()?;
    let longest = lengths.iter().copied().max()?;
    Some(Inside { cidr, shortest, longest })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn identifiers_without_ipv4_are_unicast_and_differ() {
        let mut seen = HashSet::from([ROUTER_ID]);
        for number in 0..1000 {
            let range = format!("fd10:0:0:{number:x}::/64").parse().expect("a range");
            let node = Node { pod_ranges: vec![range], ..Node::default() };
            let id = identifier(&node);
            assert!((1..224).contains(&id.octets()[0]), "{id}");
            assert!(seen.insert(id), "{id} twice");
        }
        let vtep_mac = "02:00:00:00:00:00".parse().ok();
        let id = identifier(&Node { vtep_mac, ..Node::default() });
        assert_eq!(id, Ipv4Addr::new(64, 0, 0, 0));
    }

    #[test]
    fn a_session_may_come_from_the_first_address_or_the_tunnel_s() {
        let node = Node {
            addresses: ["fd00::1", "192.168.1.1", "192.168.1.2"]
                .map(|text| text.parse().expect("an address"))
                .to_vec(),
            tunnel_address: "198.51.100.1".parse().ok(),
            ..Node::default()
        };
        let of = |family| -> Vec<String> {
            addresses(&node, family).iter().map(IpAddr::to_string).collect()
        };
        assert_eq!(of(Family::V4), ["192.168.1.1", "198.51.100.1"]);
        assert_eq!(of(Family::V6), ["fd00::1"]);
    }
}
