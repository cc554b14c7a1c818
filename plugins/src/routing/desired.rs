//! What the kernel shall hold for a node map: a pure function.

use std::net::IpAddr;

use cluster::{
    Decision, Family, Links, Map, Mode, Node, Policy, Reason, Way, links_of, pod_network_address,
    vtep_link_local, vtep_mac,
};
use cni::Error;
use ipnetwork::IpNetwork;
use kernel::link::{Vxlan, VxlanDevice};
use kernel::neighbour::{FdbEntry, Neighbour, State};
use kernel::nexthop::Nexthop;
use kernel::route::{Kind, Route, Scope};

use super::config::Config;
use super::held::Held;
use super::host::{OnLink, Position, Underlay};
use crate::failure::invalid_config;

/// Metric of every route of ours but [`OWN_RANGE_IPV6`]. Left out, IPv6 routes would get 1024 and lose
/// to those that BIRD (32) and FRR (20) put there, where IPv4's 0 would win.
pub(super) const METRIC: u32 = 8;
/// Metric of the route for an own IPv6 range: greater than that of the kernel's route for
/// an address with a prefix (256, `IP6_RT_PRIO_ADDRCONF`), so that a bridge that has the
/// range on it keeps it, and less than that of routes made without one (1024).
const OWN_RANGE_IPV6: u32 = 512;
/// Least MTU with IPv6 (RFC 8200 section 5).
const MIN_MTU_IPV6: u32 = 1280;

/// The state that configuration and map ask for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Desired {
    /// The VXLAN device; none where no tunnel is configured.
    pub(crate) device: Option<VxlanDevice>,
    /// Addresses of the device.
    pub(crate) addresses: Vec<IpNetwork>,
    /// MTU of pods, bytes.
    pub(crate) pod_mtu: u32,
    /// Entries on the device.
    pub(crate) neighbours: Vec<Neighbour>,
    /// Entries on the device.
    pub(crate) fdb: Vec<FdbEntry>,
    /// Objects that `routes` use.
    pub(crate) nexthops: Vec<Nexthop>,
    /// Routes between nodes, and of our own ranges.
    pub(crate) routes: Vec<Route>,
    /// What belongs to quarantined nodes: left as it is.
    pub(crate) held: Held,
    /// Peers that could not be given a way, for people.
    pub(crate) notes: Vec<String>,
    /// Other programs' routes that take the place of ours, for people.
    pub(crate) shadowed: Vec<String>,
}

/// What [`desired`] decides from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inputs<'a> {
    pub(crate) config: &'a Config,
    pub(crate) map: &'a Map,
    pub(crate) own: &'a Node,
    pub(crate) underlay: &'a Underlay,
    pub(crate) on_link: &'a OnLink,
}

/// Number of the VXLAN device until [`Desired::place`] tells it.
const TO_COME: u32 = 0;

impl Desired {
    /// Puts what belongs on the VXLAN device on that of number `device`.
    pub(crate) fn place(&mut self, device: u32) {
        self.neighbours.iter_mut().for_each(|neighbour| neighbour.index = device);
        self.fdb.iter_mut().for_each(|entry| entry.index = device);
        for nexthop in self.nexthops.iter_mut().filter(|nexthop| nexthop.dev == TO_COME) {
            nexthop.dev = device;
        }
        for route in self.routes.iter_mut().filter(|route| route.dev == Some(TO_COME)) {
            route.dev = Some(device);
        }
    }
}

/// The policy that decides ways, as the configuration has it.
pub(crate) fn policy(config: &Config, map: &Map) -> Policy {
    let links: Links = if config.links.is_empty() {
        links_of(map)
    } else {
        config.links.iter().copied().collect()
    };
    Policy {
        mode: config.mode,
        tunnel: config.tunnel_port.is_some(),
        native_cidrs: config.native_cidrs.clone(),
        links,
    }
}

/// The VXLAN device that the configuration asks for.
pub(crate) fn device(
    config: &Config,
    own: &Node,
    underlay: &Underlay,
) -> Result<Option<VxlanDevice>, Error> {
    let Some(port) = config.tunnel_port else { return Ok(None) };
    let settings = Vxlan {
        vni: config.vni,
        port,
        source_ports: config.source_ports,
        local: Some(underlay.local),
        underlay: Some(underlay.index),
        learning: false,
        udp_checksum: true,
        external: false,
    };
    let mtu = tunnel_mtu(config, own, underlay)?;
    Ok(Some(VxlanDevice { name: config.device.clone(), mac: vtep_mac(own).0, mtu, settings }))
}

/// MTU of pods.
pub(crate) fn pod_mtu(config: &Config, own: &Node, underlay: &Underlay) -> Result<u32, Error> {
    let most = match config.mode {
        Mode::Tunnel => tunnel_mtu(config, own, underlay)?,
        Mode::Native | Mode::Hybrid => underlay.mtu,
    };
    let mtu = config.mtu.unwrap_or(most);
    if mtu > most {
        return Err(invalid_config(format!(
            "mtu: {mtu} is more than the {most} bytes that {} (MTU {}) leaves to pods; lower mtu or \
             raise that of the link",
            underlay.name, underlay.mtu
        )));
    }
    if mtu < MIN_MTU_IPV6 && own.ranges(Family::V6).next().is_some() {
        return Err(invalid_config(format!(
            "mtu: pods would get {mtu} bytes, less than the {MIN_MTU_IPV6} that IPv6 needs; raise \
             mtu or the MTU of {}",
            underlay.name
        )));
    }
    Ok(mtu)
}

fn tunnel_mtu(config: &Config, own: &Node, underlay: &Underlay) -> Result<u32, Error> {
    let least = if own.ranges(Family::V6).next().is_some() { MIN_MTU_IPV6 } else { 68 };
    let overhead = config.overhead();
    match underlay.mtu.checked_sub(overhead).filter(|&mtu| mtu >= least) {
        Some(mtu) => Ok(mtu),
        None => Err(invalid_config(format!(
            "the MTU of {} ({}) less the tunnel's {overhead} bytes is below the {least} that pods \
             need; raise it, or set underlay",
            underlay.name, underlay.mtu
        ))),
    }
}

/// Everything that the kernel shall hold. Known before the VXLAN device is there,
/// so that what is refused is refused before anything is changed.
pub(crate) fn desired(inputs: Inputs) -> Result<Desired, Error> {
    let Inputs { config, map, own, underlay, .. } = inputs;
    let mut state = Desired {
        device: device(config, own, underlay)?,
        pod_mtu: pod_mtu(config, own, underlay)?,
        held: Held::of(map, own),
        ..Desired::default()
    };
    if state.device.is_some() {
        state.addresses = device_addresses(own);
    }
    for range in &own.pod_ranges {
        state.routes.push(own_range_route(*range, config.protocol));
    }
    let policy = policy(config, map);
    for peer in map.nodes.iter().filter(|node| node.name != own.name) {
        add_peer(&mut state, inputs, &policy, peer)?;
    }
    let shadowed = state.routes.iter().filter_map(|route| inputs.on_link.shadow(route));
    state.shadowed = shadowed.collect();
    Ok(state)
}

/// The pod networks' addresses, and the link-local address that IPv6 peers send
/// by, which the kernel's own choice (`addr_gen_mode`) need not be.
fn device_addresses(own: &Node) -> Vec<IpNetwork> {
    let networks = Family::ALL.into_iter().filter_map(|family| pod_network_address(own, family));
    let mut addresses: Vec<IpNetwork> = networks.map(IpNetwork::from).collect();
    if own.ranges(Family::V6).next().is_some() {
        let link_local = IpAddr::V6(vtep_link_local(vtep_mac(own)));
        addresses.extend(IpNetwork::new(link_local, 64));
    }
    addresses
}

/// Ends loops: what no pod answers for goes no further. Also what BGP daemons
/// announce.
fn own_range_route(range: IpNetwork, protocol: u8) -> Route {
    let metric = if range.is_ipv6() { OWN_RANGE_IPV6 } else { METRIC };
    Route { kind: Kind::Unreachable, metric, ..Route::to(range, protocol) }
}

fn add_peer(
    state: &mut Desired,
    inputs: Inputs,
    policy: &Policy,
    peer: &Node,
) -> Result<(), Error> {
    for family in Family::ALL {
        match policy.way(inputs.own, peer, family) {
            None => {}
            Some(Decision { way: Way::Tunnel, .. }) => add_tunnel(state, inputs, peer, family),
            Some(Decision { way: Way::Native, reason }) => {
                add_native(state, inputs, peer, family, reason)?;
            }
        }
    }
    Ok(())
}

fn add_tunnel(state: &mut Desired, inputs: Inputs, peer: &Node, family: Family) {
    let Inputs { config, own, .. } = inputs;
    let index = TO_COME;
    let Some(end) = peer.tunnel_end(config.underlay_family) else {
        state.notes.push(format!(
            "node {} has no {} address and is skipped: it cannot be reached through the tunnel",
            peer.name, config.underlay_family
        ));
        return;
    };
    let mac = vtep_mac(peer);
    let Some(via) = tunnel_next_hop(peer, family) else { return };
    let mtu = state.device.as_ref().map(|device| device.mtu);
    let entry =
        Neighbour { index, ip: via, mac: Some(mac.0), state: State::Permanent, external: false };
    state.neighbours.push(entry);
    // Both families share one entry.
    let fdb =
        FdbEntry { index, mac: mac.0, dst: Some(end), state: State::Permanent, external: false };
    if state.fdb.last() != Some(&fdb) {
        state.fdb.push(fdb);
    }
    for range in peer.ranges(family) {
        let mut route = Route::to(*range, config.protocol);
        route.metric = METRIC;
        route.src = pod_network_address(own, family);
        route.mtu = mtu;
        go_by(&mut route, via, index, state);
        state.routes.push(route);
    }
}

/// A peer's address on the tunnel's inside. An IPv6 gateway must be link-local: a
/// global one is refused, `onlink` or not, once any other device has a route
/// that covers it (`ip6_route_check_nh_onlink`).
pub(crate) fn tunnel_next_hop(peer: &Node, family: Family) -> Option<IpAddr> {
    match family {
        Family::V4 => pod_network_address(peer, family),
        Family::V6 => Some(vtep_link_local(vtep_mac(peer)).into()),
    }
}

fn add_native(
    state: &mut Desired,
    inputs: Inputs,
    peer: &Node,
    family: Family,
    reason: Reason,
) -> Result<(), Error> {
    let Inputs { config, on_link, .. } = inputs;
    let Some(via) = peer.tunnel_end(family) else {
        state.notes.push(format!(
            "node {} has no {family} address, so no {family} route to its pods can be made; \
             the host's own routes are used",
            peer.name
        ));
        return Ok(());
    };
    let position = on_link.position(via);
    if let (Reason::SharedLink(link), false) = (reason, matches!(position, Position::OnLink(_))) {
        state.notes.push(format!(
            "node {} ({via}) is on the same link ({link}) by the node map, but {}; correct links, \
             or this host's addresses and routes",
            peer.name,
            in_the_way(position)
        ));
    }
    match position {
        _ if !config.auto_direct_node_routes => {}
        Position::OnLink(dev) => {
            for range in peer.ranges(family) {
                let mut route = Route::to(*range, config.protocol);
                route.metric = METRIC;
                go_by(&mut route, via, dev, state);
                state.routes.push(route);
            }
        }
        _ if config.skip_unreachable => {}
        position => return Err(off_link(peer, via, &in_the_way(position))),
    }
    Ok(())
}

fn in_the_way(position: Position) -> String {
    match position {
        Position::OnLink(_) => "it is on-link".to_owned(),
        Position::Behind(gateway) => format!("gateway {gateway} is in the way"),
        Position::Unknown => "this host has no route to it".to_owned(),
    }
}

fn off_link(peer: &Node, via: IpAddr, why: &str) -> Error {
    invalid_config(format!(
        "node {} ({via}) is on no link of this node: {why}; set directRoutingSkipUnreachable to \
         true if the network routes to its pods, or use routingMode hybrid",
        peer.name
    ))
}

/// Sends `route` to `via` on `dev`. IPv4 routes do it by a nexthop object: those
/// that differ in the gateway alone sit in one list that the kernel walks at
/// each insertion (`fib_find_info`), 2.1 s for 10,000 against 0.24 s.
fn go_by(route: &mut Route, via: IpAddr, dev: u32, state: &mut Desired) {
    match via {
        IpAddr::V6(_) => {
            route.via = Some(via);
            route.dev = Some(dev);
        }
        IpAddr::V4(ip) => {
            let id = nexthop_id(ip, route.protocol);
            let nexthop = Nexthop { id, dev, via, protocol: route.protocol, onlink: true };
            if state.nexthops.last() != Some(&nexthop) {
                state.nexthops.push(nexthop);
            }
            route.nexthop = Some(id);
            route.scope = Scope::Universe;
        }
    }
}

/// The id of the nexthop object for gateway `ip`, the same at each run: the address
/// itself, for the default protocol. Never 0, for which the kernel would choose one.
fn nexthop_id(ip: std::net::Ipv4Addr, protocol: u8) -> u32 {
    match ip.to_bits() ^ (u32::from(protocol ^ super::config::DEFAULT_PROTOCOL) << 24) {
        0 => u32::MAX,
        id => id,
    }
}
