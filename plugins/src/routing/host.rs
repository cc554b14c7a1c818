//! What this host is like: the link under the tunnel, and what is on-link.

use std::collections::HashMap;
use std::net::IpAddr;

use cluster::{Family, Map, Node};
use cni::Error;
use ipnetwork::IpNetwork;
use kernel::Rtnetlink;
use kernel::link::Link;
use kernel::route::{Filter, Kind, Route, TABLE_MAIN};

use super::config::Config;
use super::record;
use crate::attachment::POD_ROUTE_PROTOCOL;
use crate::attachment::is_host_end;
use crate::failure::{invalid_config, refused};
use crate::node;

/// The link under the tunnel, and this node's end on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Underlay {
    /// Number.
    pub(crate) index: u32,
    /// Name.
    pub(crate) name: String,
    /// Bytes.
    pub(crate) mtu: u32,
    /// Administratively up: taken down, it loses the host's routes that ours depend on.
    pub(crate) up: bool,
    /// Outer source of what we send.
    pub(crate) local: IpAddr,
}

/// Finds the underlay: the interface that the configuration names, else the one
/// by which the peers are reached, else (a node alone) the one with our address.
/// Without a tunnel nothing is sent from its address, and any family will do.
pub(crate) fn underlay(
    config: &Config,
    map: &Map,
    own: &Node,
    host: &mut Rtnetlink,
) -> Result<Underlay, Error> {
    let chosen = config.underlay_family;
    let other = Family::ALL.into_iter().filter(|&f| f != chosen && config.tunnel_port.is_none());
    for family in std::iter::once(chosen).chain(other) {
        if let Some(underlay) = underlay_of(family, config, map, own, host)? {
            return Ok(underlay);
        }
    }
    Err(invalid_config(none_found(config, map, own)))
}

fn underlay_of(
    family: Family,
    config: &Config,
    map: &Map,
    own: &Node,
    host: &mut Rtnetlink,
) -> Result<Option<Underlay>, Error> {
    if let Some(name) = &config.underlay {
        let link = host.link_by_name(name).map_err(refused)?;
        let Some(link) = link else {
            let have = link_names(host)?;
            return Err(invalid_config(format!(
                "underlay: this host has no interface {name} (it has {have}); correct the name or remove the key"
            )));
        };
        return Ok(local_on(&link, own, family, host)?.map(|local| found(&link, local)));
    }
    if let Some(underlay) = by_route_to_peers(family, config, map, own, host)? {
        return Ok(Some(underlay));
    }
    Ok(node::link_of(own, Some(family), host)?.map(|(link, local)| found(&link, local)))
}

fn none_found(config: &Config, map: &Map, own: &Node) -> String {
    let family = config.underlay_family;
    if let Some(name) = &config.underlay {
        return format!(
            "underlay: interface {name} has no {family} address; choose another, or set \
             underlayFamily"
        );
    }
    let peers = map.nodes.iter().filter(|node| node.name != own.name).count();
    let advice = match map.nodes.iter().any(|node| node.tunnel_end(family).is_some()) {
        true => "set underlay, or correct the addresses in the node map",
        false => "no node of the map has one: set underlayFamily to the other family",
    };
    format!(
        "no interface leads to the other nodes: none of {peers} peers has an {family} address that \
         this host has a route to, and none of node {}'s addresses is on this host; {advice}",
        own.name
    )
}

fn by_route_to_peers(
    family: Family,
    config: &Config,
    map: &Map,
    own: &Node,
    host: &mut Rtnetlink,
) -> Result<Option<Underlay>, Error> {
    let peers = map.nodes.iter().filter(|node| node.name != own.name);
    for end in peers.filter_map(|node| node.tunnel_end(family)) {
        let Some(way) = host.route_to(end).map_err(refused)? else { continue };
        let Some(dev) = way.dev.filter(|_| way.kind == Kind::Unicast) else { continue };
        let Some(link) = host.link(dev).map_err(refused)? else { continue };
        // A peer whose address lies inside a pod range of ours leads nowhere.
        if is_host_end(&link) || link.name == config.device {
            continue;
        }
        if let Some(local) = local_on(&link, own, family, host)?.or(way.src) {
            return Ok(Some(found(&link, local)));
        }
    }
    Ok(None)
}

/// Our address for the tunnel on `link`: that of the map; where the map's is on no
/// interface (NAT), the first that the link has.
fn local_on(
    link: &Link,
    own: &Node,
    family: Family,
    host: &mut Rtnetlink,
) -> Result<Option<IpAddr>, Error> {
    let held = host.addresses(None).map_err(refused)?;
    let of_map = own.addresses.iter().map(|address| address.ip);
    let mut of_map = of_map.filter(|ip| Family::of(*ip) == family);
    if let Some(ip) = of_map.find(|ip| held.iter().any(|a| a.address.ip() == *ip)) {
        return Ok(Some(ip));
    }
    let on_link = held.iter().filter(|a| a.index == link.index).map(|a| a.address.ip());
    let mut usable = on_link.filter(|ip| Family::of(*ip) == family && !is_link_local(*ip));
    Ok(usable.next())
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

fn found(link: &Link, local: IpAddr) -> Underlay {
    Underlay { index: link.index, name: link.name.clone(), mtu: link.mtu, up: link.up, local }
}

fn link_names(host: &mut Rtnetlink) -> Result<String, Error> {
    let links = host.links().map_err(refused)?;
    let names = links.iter().filter(|link| !is_host_end(link) && !link.loopback);
    Ok(names.map(|link| link.name.as_str()).collect::<Vec<_>>().join(", "))
}

/// The host's own routes, as far as they tell whether an address is on-link: ours
/// are left out, so that the answer is the same before and after a sync.
#[derive(Clone, Debug, Default)]
pub(crate) struct OnLink {
    routes: HashMap<IpNetwork, NextHop>,
    /// Metric and protocol of the first route to each destination.
    first: HashMap<IpNetwork, (u32, u8)>,
    /// Prefix lengths in use, longest first.
    lengths: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct NextHop {
    dev: Option<u32>,
    via: Option<IpAddr>,
}

/// Where a peer's node address is, by the host's own routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Position {
    /// On the link of this number.
    OnLink(u32),
    /// Behind this gateway.
    Behind(IpAddr),
    /// No route leads there, or one that cannot be told.
    Unknown,
}

impl OnLink {
    /// Reads the main table.
    pub(crate) fn read(config: &Config, host: &mut Rtnetlink) -> Result<Self, Error> {
        let former = record::former_protocol(config);
        let ours = [Some(config.protocol), former, Some(POD_ROUTE_PROTOCOL)];
        let mut table = Self::default();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let filter = Filter { family: family as u8, table: TABLE_MAIN, ..Filter::default() };
            for route in host.routes(filter).map_err(refused)? {
                if !ours.contains(&Some(route.protocol)) {
                    table.add(&route);
                }
            }
        }
        table.lengths.sort_unstable_by(|a, b| b.cmp(a));
        table.lengths.dedup();
        Ok(table)
    }

    fn add(&mut self, route: &Route) {
        // IPv6 reads none as the lowest precedence that a program asks for.
        let metric = if route.dst.is_ipv6() && route.metric == 0 { 1024 } else { route.metric };
        self.first.entry(route.dst).or_insert((metric, route.protocol));
        if route.kind == Kind::Unicast {
            let hop = NextHop { dev: route.dev, via: route.via };
            // Of several to one destination the first listed has the least metric.
            self.routes.entry(route.dst).or_insert(hop);
            self.lengths.push(route.dst.prefix());
        }
    }

    /// What to say of another program's route that takes the place of `route`.
    pub(crate) fn shadow(&self, route: &Route) -> Option<String> {
        let (metric, protocol) = self.first.get(&route.dst).filter(|(m, _)| *m <= route.metric)?;
        Some(format!(
            "another program's route to {} (protocol {protocol}, metric {metric}) takes precedence \
             over ours; remove it unless that is what you want",
            route.dst
        ))
    }

    /// Where `ip` is.
    pub(crate) fn position(&self, ip: IpAddr) -> Position {
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        let lengths = self.lengths.iter().filter(|&&length| length <= bits);
        let networks = lengths.filter_map(|&length| {
            let network = IpNetwork::new(ip, length).ok()?;
            IpNetwork::new(network.network(), length).ok()
        });
        match networks.filter_map(|network| self.routes.get(&network)).next() {
            Some(NextHop { via: Some(via), .. }) => Position::Behind(*via),
            Some(NextHop { dev: Some(dev), .. }) => Position::OnLink(*dev),
            _ => Position::Unknown,
        }
    }
}
