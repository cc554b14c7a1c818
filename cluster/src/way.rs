//! Which way a pair of nodes sends pod traffic: through the tunnel or as plain
//! routes on the physical network.
//!
//! One destination has one route whatever the source, so the way belongs to a
//! pair of nodes and a family, never to a pair of ranges: strict reverse-path
//! filtering drops what comes back by another way. It is a function of the map
//! and the configuration alone and symmetric in the two nodes, so that both ends
//! decide alike without talking.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::map::Map;
use crate::node::{Family, Node, NodeAddress, network_form};

/// `routingMode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Every pair through VXLAN.
    Tunnel,
    /// No pair through VXLAN, but see [`Policy::way`].
    Native,
    /// Native where the physical network can carry it, else VXLAN.
    Hybrid,
}

/// The way between two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// Encapsulated in VXLAN.
    Tunnel,
    /// As it is, routed by the physical network.
    Native,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tunnel => "tunnel",
            Self::Native => "native",
        })
    }
}

/// A way and the rule that decided it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The way.
    pub way: Way,
    /// The rule.
    pub reason: Reason,
}

/// The rule that decided a way. Its `Display` is a clause for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// `routingMode` is `tunnel`.
    TunnelMode,
    /// `routingMode` is `native`, without a tunnel or without a native CIDR of
    /// the family.
    NativeMode,
    /// There is no tunnel (`tunnelPort` 0), whatever else holds.
    NoTunnel,
    /// Every pod range of both nodes is inside the native CIDRs.
    InsideNativeCidr,
    /// `native` mode, and this pod range of one of the two is outside the native
    /// CIDRs.
    OutsideNativeCidr(IpNetwork),
    /// Both nodes are on this link.
    SharedLink(IpNetwork),
    /// `hybrid` mode: the two are not on one link, and this pod range of one of
    /// them is outside the native CIDRs.
    Apart(IpNetwork),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TunnelMode => write!(f, "routingMode is tunnel"),
            Self::NativeMode => write!(f, "routingMode is native"),
            Self::NoTunnel => write!(f, "tunnelPort is 0, so there is no tunnel"),
            Self::InsideNativeCidr => {
                write!(f, "every pod range of both nodes is inside the native routing CIDR")
            }
            Self::OutsideNativeCidr(range) => {
                write!(f, "pod range {range} is outside the native routing CIDR")
            }
            Self::SharedLink(link) => write!(f, "both nodes are on the link {link}"),
            Self::Apart(range) => write!(
                f,
                "the nodes share no link and pod range {range} is outside the native routing CIDR"
            ),
        }
    }
}

/// What of the configuration decides ways.
#[derive(Clone, Debug)]
pub struct Policy {
    /// `routingMode`.
    pub mode: Mode,
    /// Whether there is a tunnel: `tunnelPort` is not 0.
    pub tunnel: bool,
    /// `ipv4NativeRoutingCIDR` and `ipv6NativeRoutingCIDR`.
    pub native_cidrs: Vec<IpNetwork>,
    /// `links`, else [`links_of`] the map.
    pub links: Links,
}

impl Policy {
    /// The way between `a` and `b` for pod traffic of `family`; `None` where one
    /// of them has no pod range of it, so that there is nothing to route.
    /// `way(a, b, f) == way(b, a, f)`, always.
    ///
    /// - `tunnel`: VXLAN.
    /// - `native`: native; but with a tunnel and a native CIDR of the family, a
    ///   pair that is not wholly inside takes VXLAN.
    /// - `hybrid`: native if the pair is wholly inside the native CIDRs or on
    ///   one link, else VXLAN.
    ///
    /// A pair is wholly inside if every range of that family of both nodes is
    /// inside one of the native CIDRs.
    ///
    /// The link that counts is that of the nodes' addresses of the *inner*
    /// family ([`Node::tunnel_end`]), whatever family the tunnel has outside:
    /// a direct route needs a next hop of its own family. A node behind NAT
    /// counts as where its `tunnelAddress` is, since nodes of two sites may well
    /// have the same private network.
    pub fn way(&self, a: &Node, b: &Node, family: Family) -> Option<Decision> {
        if a.ranges(family).next().is_none() || b.ranges(family).next().is_none() {
            return None;
        }
        let (way, reason) = match self.mode {
            Mode::Native if !self.tunnel || !self.has_native_cidr(family) => {
                (Way::Native, Reason::NativeMode)
            }
            _ if !self.tunnel => (Way::Native, Reason::NoTunnel),
            Mode::Tunnel => (Way::Tunnel, Reason::TunnelMode),
            Mode::Native => match self.outside(a, b, family) {
                None => (Way::Native, Reason::InsideNativeCidr),
                Some(range) => (Way::Tunnel, Reason::OutsideNativeCidr(range)),
            },
            Mode::Hybrid => self.hybrid(a, b, family),
        };
        Some(Decision { way, reason })
    }

    fn hybrid(&self, a: &Node, b: &Node, family: Family) -> (Way, Reason) {
        let Some(range) = self.outside(a, b, family) else {
            return (Way::Native, Reason::InsideNativeCidr);
        };
        match self.links.shared(a, b, family) {
            Some(link) => (Way::Native, Reason::SharedLink(link)),
            None => (Way::Tunnel, Reason::Apart(range)),
        }
    }

    fn has_native_cidr(&self, family: Family) -> bool {
        self.native_cidrs.iter().any(|cidr| Family::of_network(cidr) == family)
    }

    /// The lowest range of the pair that is not inside a native CIDR: the lowest
    /// and not the first, so that both ends name the same one.
    fn outside(&self, a: &Node, b: &Node, family: Family) -> Option<IpNetwork> {
        let ranges = a.ranges(family).chain(b.ranges(family)).copied();
        ranges.filter(|range| !self.native_cidrs.iter().any(|cidr| holds(cidr, range))).min()
    }
}

/// Whether every address of `inner` is one of `outer`.
fn holds(outer: &IpNetwork, inner: &IpNetwork) -> bool {
    outer.prefix() <= inner.prefix() && outer.contains(inner.network())
}

/// A set of physical links' CIDRs that finds the longest one holding an address
/// in as many look-ups as there are different prefix lengths.
#[derive(Clone, Debug, Default)]
pub struct Links {
    networks: HashSet<IpNetwork>,
    /// The prefix lengths in use, longest first, IPv4 and IPv6.
    lengths: [Vec<u8>; 2],
}

impl Links {
    /// The longest CIDR that holds `ip`.
    pub fn of(&self, ip: IpAddr) -> Option<IpNetwork> {
        let lengths = &self.lengths[slot(Family::of(ip))];
        let candidates = lengths.iter().filter_map(|len| IpNetwork::new(ip, *len).ok());
        candidates.map(network_form).find(|network| self.networks.contains(network))
    }

    /// The link that both nodes' addresses of `family` are on.
    pub fn shared(&self, a: &Node, b: &Node, family: Family) -> Option<IpNetwork> {
        let link = self.of(a.tunnel_end(family)?)?;
        let other = self.of(b.tunnel_end(family)?)?;
        (link == other).then_some(link)
    }
}

impl FromIterator<IpNetwork> for Links {
    /// Host bits do not count.
    fn from_iter<T: IntoIterator<Item = IpNetwork>>(networks: T) -> Self {
        let mut links = Self::default();
        for network in networks.into_iter().map(network_form) {
            links.networks.insert(network);
            let lengths = &mut links.lengths[slot(Family::of_network(&network))];
            if !lengths.contains(&network.prefix()) {
                lengths.push(network.prefix());
            }
        }
        for lengths in &mut links.lengths {
            lengths.sort_unstable_by(|a, b| b.cmp(a));
        }
        links
    }
}

fn slot(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

/// The physical links that the map itself tells of: the networks of the
/// addresses that carry a prefix length. Quarantined and incomplete records
/// count too, so that a mistake in one record changes no other pair's way.
pub fn links_of(map: &Map) -> Links {
    let quarantined = map.quarantined.iter().map(|q| &q.node);
    let nodes = map.nodes.iter().chain(&map.incomplete).chain(quarantined);
    nodes.flat_map(|node| &node.addresses).filter_map(NodeAddress::network).collect()
}
