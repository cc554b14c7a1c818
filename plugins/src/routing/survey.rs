//! What stands between this node and each peer, for `weft status`.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use cluster::{Decision, Family, Map, Node, Way, vtep_mac};
use cni::Error;
use ipnetwork::IpNetwork;
use kernel::link::Link;
use kernel::route::{Filter, TABLE_MAIN};
use kernel::{MacAddress, Rtnetlink};

use super::config::Config;
use super::desired::{Desired, Inputs, METRIC, desired, policy, tunnel_next_hop};
use super::difference::{Change, difference};
use super::firewall;
use super::held::Held;
use super::host::{OnLink, underlay};
use super::observed::Observed;
use crate::failure::refused;
use crate::node::{self, Loaded};

/// What was found.
#[derive(Debug)]
pub(crate) struct Survey {
    /// The map.
    pub(crate) loaded: Loaded,
    /// This node.
    pub(crate) own: Node,
    /// How it was recognised: a clause for people.
    pub(crate) by: String,
    /// Name and MTU in bytes of the link to the other nodes.
    pub(crate) underlay: (String, u32),
    /// The VXLAN device, where a tunnel is wanted and it is there.
    pub(crate) device: Option<Link>,
    /// MTU of pods, bytes.
    pub(crate) pod_mtu: u32,
    /// Each peer, once a family that both have pods of.
    pub(crate) peers: Vec<Peer>,
    /// nf_tables tables, and whether each is as it shall be.
    pub(crate) tables: Vec<(String, bool)>,
    /// Peers that could not be given a way, for people.
    pub(crate) notes: Vec<String>,
}

/// The way to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Name.
    pub(crate) name: String,
    /// Of the pods' addresses.
    pub(crate) family: Family,
    /// Which way, and why.
    pub(crate) decision: Decision,
    /// Whether the kernel has it.
    pub(crate) state: State,
}

/// Whether the kernel has the way to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    /// Route, neighbour, forwarding entry: something of it is not there.
    Missing,
    /// Another program's route, of this protocol, goes to a pod range of the peer.
    Foreign(u8),
    /// All there.
    Ok,
    /// Native and off-link: the host's routes are used, not weft's.
    HostRoutes,
}

/// Looks at everything, changes nothing.
pub(crate) fn survey(config: &Config, host: &mut Rtnetlink) -> Result<Survey, Error> {
    let loaded = config.source.load()?;
    let (own, by) = node::recognise(&loaded.map, &config.source, Some(config.protocol), host)?;
    let underlay = underlay(config, &loaded.map, &own, host)?;
    let on_link = OnLink::read(config, host)?;
    let device = device(config, host)?;
    let index = device.as_ref().map_or(0, |link| link.index);
    let (map, own_node) = (&loaded.map, &own);
    let inputs = Inputs { config, map, own: own_node, underlay: &underlay, on_link: &on_link };
    let mut wanted = desired(inputs)?;
    wanted.place(index);
    let observed = Observed::read(device.as_ref(), config.protocol, host)?;
    wanted.held.spread(&observed);
    let tables = firewall::tables(config, map, own_node, &underlay, &wanted.held);
    let gaps = Gaps::of(&difference(&wanted, &observed, index));
    let foreign = foreign_routes(config.protocol, host)?;
    Ok(Survey {
        peers: peers(inputs, &wanted, &gaps, &foreign),
        tables: firewall::present(&tables)?,
        underlay: (underlay.name, underlay.mtu),
        pod_mtu: wanted.pod_mtu,
        notes: [wanted.notes, wanted.shadowed].concat(),
        loaded,
        own,
        by,
        device,
    })
}

/// The VXLAN device, where a tunnel is wanted and it is there.
fn device(config: &Config, host: &mut Rtnetlink) -> Result<Option<Link>, Error> {
    let link = match config.tunnel_port {
        Some(_) => host.link_by_name(&config.device).map_err(refused)?,
        None => None,
    };
    Ok(link.filter(|link| link.vxlan.is_some()))
}

/// What belongs to quarantined nodes, by their records and by the kernel.
pub(crate) fn held(
    config: &Config,
    map: &Map,
    own: &Node,
    host: &mut Rtnetlink,
) -> Result<Held, Error> {
    let observed = Observed::read(device(config, host)?.as_ref(), config.protocol, host)?;
    let mut held = Held::of(map, own);
    held.spread(&observed);
    Ok(held)
}

/// What is not there, or not as it shall be.
#[derive(Debug, Default)]
struct Gaps {
    ranges: HashSet<IpNetwork>,
    neighbours: HashSet<IpAddr>,
    macs: HashSet<MacAddress>,
}

impl Gaps {
    fn of(changes: &[Change]) -> Self {
        let mut gaps = Self::default();
        for change in changes {
            match change {
                Change::AddRoute(route) => {
                    gaps.ranges.insert(route.dst);
                }
                Change::SetNeighbour(neighbour) => {
                    gaps.neighbours.insert(neighbour.ip);
                }
                Change::SetFdb(entry) => {
                    gaps.macs.insert(entry.mac);
                }
                _ => {}
            }
        }
        gaps
    }

    fn concern(&self, peer: &Node, family: Family, way: Way) -> bool {
        let route = peer.ranges(family).any(|range| self.ranges.contains(range));
        let entry = way == Way::Tunnel
            && (tunnel_next_hop(peer, family).is_some_and(|ip| self.neighbours.contains(&ip))
                || self.macs.contains(&vtep_mac(peer).0));
        route || entry
    }
}

fn foreign_routes(protocol: u8, host: &mut Rtnetlink) -> Result<HashMap<IpNetwork, u8>, Error> {
    let mut foreign = HashMap::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let filter = Filter { family: family as u8, table: TABLE_MAIN, ..Filter::default() };
        let routes = host.routes(filter).map_err(refused)?;
        // Those of a greater metric lose to ours.
        let others =
            routes.iter().filter(|route| route.protocol != protocol && route.metric <= METRIC);
        foreign.extend(others.map(|route| (route.dst, route.protocol)));
    }
    Ok(foreign)
}

fn peers(
    inputs: Inputs,
    wanted: &Desired,
    gaps: &Gaps,
    foreign: &HashMap<IpNetwork, u8>,
) -> Vec<Peer> {
    let policy = policy(inputs.config, inputs.map);
    let routed: HashSet<IpNetwork> = wanted.routes.iter().map(|route| route.dst).collect();
    let mut peers = Vec::new();
    for node in inputs.map.nodes.iter().filter(|node| node.name != inputs.own.name) {
        for family in Family::ALL {
            let Some(decision) = policy.way(inputs.own, node, family) else { continue };
            let other = node.ranges(family).find_map(|range| foreign.get(range));
            let ours = node.ranges(family).any(|range| routed.contains(range));
            let state = match other {
                _ if gaps.concern(node, family, decision.way) && other.is_none() => State::Missing,
                _ if !ours && decision.way == Way::Native => State::HostRoutes,
                Some(protocol) => State::Foreign(*protocol),
                None if ours => State::Ok,
                None => State::Missing,
            };
            peers.push(Peer { name: node.name.clone(), family, decision, state });
        }
    }
    peers
}
