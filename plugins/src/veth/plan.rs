//! What an attachment shall look like: a pure function of configuration and the
//! IPAM's answer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni::{AddResult, Error};
use ipnetwork::IpNetwork;
use kernel::MacAddress;
use kernel::address::Address;
use kernel::link::{HOST_END_GROUP, HOST_END_GROUP_UNCHECKED};
use kernel::neighbour::{Neighbour, State};
use kernel::route::{Route, Scope};

use super::config::{Config, MIN_MTU_IPV6};
use crate::attachment::{Id, POD_ROUTE_PROTOCOL};
use crate::failure::invalid_config;

/// RTPROT_BOOT, the protocol of routes made by `ip route add`: the container's.
const CONTAINER_ROUTE_PROTOCOL: u8 = 3;
/// Gateway of a pod whose IPAM gives none: link-local, as it is only ever a
/// next hop on the pod's own link.
const DEFAULT_GATEWAY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));
/// Likewise for IPv6.
const DEFAULT_GATEWAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));

/// An attachment as it shall be.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) host_name: String,
    pub(super) host_mac: MacAddress,
    pub(super) pod_mac: MacAddress,
    /// Number of both ends.
    pub(super) index: u32,
    pub(super) mtu: u32,
    /// Link group of the host's end.
    pub(super) group: u32,
    /// The pod's addresses, each with the gateway used for it.
    pub(super) addresses: Vec<(IpNetwork, IpAddr)>,
    /// Routes that the IPAM gives.
    pub(super) routes: Vec<cni::Route>,
}

impl Plan {
    /// The plan for what the IPAM gave.
    pub(super) fn new(
        id: Id,
        config: &Config,
        ipam: &AddResult,
        mtu: u32,
        index: u32,
    ) -> Result<Self, Error> {
        if ipam.ips.is_empty() {
            return Err(invalid_config("the IPAM plugin gave no address; check its configuration"));
        }
        let addresses: Vec<_> = ipam.ips.iter().map(|ip| (ip.address, gateway(ip))).collect();
        let has_ipv6 = addresses.iter().any(|(address, _)| address.is_ipv6());
        if has_ipv6 && mtu < MIN_MTU_IPV6 {
            return Err(invalid_config(format!(
                "mtu: {mtu} is less than {MIN_MTU_IPV6} bytes, the least of IPv6; raise it or \
                 give the pods no IPv6 address"
            )));
        }
        let derived_mac = || derived_mac(id, &addresses);
        Ok(Self {
            host_name: id.host_end(),
            host_mac: id.host_mac(),
            pod_mac: config.mac.map_or_else(derived_mac, |mac| mac.0),
            index,
            mtu,
            group: if config.spoof_check { HOST_END_GROUP } else { HOST_END_GROUP_UNCHECKED },
            addresses,
            routes: ipam.routes.clone(),
        })
    }

    /// Whether the pod has an address of the family.
    pub(super) fn has(&self, ipv6: bool) -> bool {
        self.addresses.iter().any(|(address, _)| address.is_ipv6() == ipv6)
    }

    /// The gateways, each once.
    fn gateways(&self) -> Vec<IpAddr> {
        let mut gateways: Vec<IpAddr> =
            self.addresses.iter().map(|(_, gateway)| *gateway).collect();
        gateways.sort_unstable();
        gateways.dedup();
        gateways
    }

    /// Addresses of the pod's end: no prefix route, for nothing but the gateway
    /// is on this link.
    pub(super) fn pod_addresses(&self) -> Vec<Address> {
        let address = |(address, _): &(IpNetwork, IpAddr)| Address {
            index: self.index,
            address: *address,
            prefix_route: false,
        };
        self.addresses.iter().map(address).collect()
    }

    /// Every next hop is the host's end, whose hardware address is known from the
    /// start; that holds for next hops that a route of the IPAM names, too.
    pub(super) fn pod_neighbours(&self) -> Vec<Neighbour> {
        let mut next_hops = self.gateways();
        next_hops.extend(self.routes.iter().filter_map(|route| route.gw));
        next_hops.sort_unstable();
        next_hops.dedup();
        let neighbour = |ip| Neighbour {
            index: self.index,
            ip,
            mac: Some(self.host_mac),
            state: State::Permanent,
            external: false,
        };
        next_hops.into_iter().map(neighbour).collect()
    }

    /// Routes in the pod: the gateways on the link, the IPAM's routes, and for each
    /// family without a default route that the pod does not have either, one
    /// where `default_route`, else one to the address's own subnet.
    pub(super) fn pod_routes(&self, default_route: bool, has_default: [bool; 2]) -> Vec<Route> {
        let mut routes: Vec<Route> =
            self.gateways().into_iter().map(|ip| self.on_link(ip)).collect();
        for ipv6 in [false, true].into_iter().filter(|&ipv6| self.has(ipv6)) {
            let has_default = has_default[usize::from(ipv6)];
            let given = self.given_routes(ipv6, has_default);
            let reaches_subnet =
                given.iter().any(|route| route.dst.prefix() == 0) || default_route && !has_default;
            if default_route && !has_default && !given.iter().any(is_default) {
                routes.extend(self.gateway_of(ipv6).map(|via| self.via(unspecified(ipv6), via)));
            }
            if !reaches_subnet {
                routes.extend(self.subnet_routes(ipv6));
            }
            routes.extend(given);
        }
        routes
    }

    /// The IPAM's routes of a family, without a default route where the pod has one.
    fn given_routes(&self, ipv6: bool, has_default: bool) -> Vec<Route> {
        let of_family = self.routes.iter().filter(|route| route.dst.is_ipv6() == ipv6);
        let routes = of_family.map(|route| self.given_route(route));
        routes.filter(|route| !(has_default && is_default(route))).collect()
    }

    fn given_route(&self, given: &cni::Route) -> Route {
        let via = given.gw.or_else(|| self.gateway_of(given.dst.is_ipv6()));
        let link_scope = given.scope == Some(libc::RT_SCOPE_LINK);
        let dst = IpNetwork::new(given.dst.network(), given.dst.prefix()).unwrap_or(given.dst);
        let mut route = Route::to(dst, CONTAINER_ROUTE_PROTOCOL);
        route.dev = Some(self.index);
        // Nothing but the gateway is on the link, whatever the scope asked for.
        route.via = via;
        route.onlink = via.is_some();
        route.scope = if link_scope && via.is_none() { Scope::Link } else { Scope::Universe };
        route.mtu = given.mtu;
        route.advmss = given.advmss;
        route.metric = given.priority.unwrap_or(0);
        route.table = given.table.filter(|&table| table != 0).unwrap_or(route.table);
        route
    }

    /// Routes by the gateway to the subnets of the pod's addresses, for a pod whose
    /// default route leads elsewhere.
    fn subnet_routes(&self, ipv6: bool) -> Vec<Route> {
        let of_family = self.addresses.iter().filter(|(address, _)| address.is_ipv6() == ipv6);
        let wide = of_family.filter(|(address, _)| address.prefix() < if ipv6 { 128 } else { 32 });
        wide.filter_map(|(address, gateway)| {
            let subnet = IpNetwork::new(address.network(), address.prefix()).ok()?;
            Some(self.via(subnet, *gateway))
        })
        .collect()
    }

    fn gateway_of(&self, ipv6: bool) -> Option<IpAddr> {
        let mut of_family = self.addresses.iter().filter(|(address, _)| address.is_ipv6() == ipv6);
        of_family.next().map(|(_, gateway)| *gateway)
    }

    fn on_link(&self, gateway: IpAddr) -> Route {
        let mut route = Route::to(host_prefix(gateway), CONTAINER_ROUTE_PROTOCOL);
        route.dev = Some(self.index);
        route.scope = if gateway.is_ipv4() { Scope::Link } else { Scope::Universe };
        route
    }

    fn via(&self, dst: IpNetwork, gateway: IpAddr) -> Route {
        let mut route = Route::to(dst, CONTAINER_ROUTE_PROTOCOL);
        route.dev = Some(self.index);
        route.via = Some(gateway);
        route.onlink = true;
        route
    }

    /// Addresses of the host's end: the gateways, as /32 (/128).
    pub(super) fn host_addresses(&self) -> Vec<Address> {
        let address =
            |ip| Address { index: self.index, address: host_prefix(ip), prefix_route: true };
        self.gateways().into_iter().map(address).collect()
    }

    /// The host's routes to the pod.
    pub(super) fn host_routes(&self) -> Vec<Route> {
        let route = |(address, _): &(IpNetwork, IpAddr)| {
            let mut route = Route::to(host_prefix(address.ip()), POD_ROUTE_PROTOCOL);
            route.dev = Some(self.index);
            route.scope = if address.is_ipv4() { Scope::Link } else { Scope::Universe };
            route
        };
        self.addresses.iter().map(route).collect()
    }

    /// The pod's hardware address: usable at once, but relearned if a later plugin
    /// changes it.
    pub(super) fn host_neighbours(&self) -> Vec<Neighbour> {
        let neighbour = |(address, _): &(IpNetwork, IpAddr)| Neighbour {
            index: self.index,
            ip: address.ip(),
            mac: Some(self.pod_mac),
            state: State::Stale,
            external: false,
        };
        self.addresses.iter().map(neighbour).collect()
    }
}

/// Whether a route is for every destination of its family.
pub(super) fn is_default(route: &Route) -> bool {
    route.dst.prefix() == 0 && route.table == kernel::route::TABLE_MAIN
}

/// `ip` as a network of one address.
pub(super) fn host_prefix(ip: IpAddr) -> IpNetwork {
    IpNetwork::from(ip)
}

fn unspecified(ipv6: bool) -> IpNetwork {
    let any: IpAddr =
        if ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    // 0 is a prefix length of both families.
    IpNetwork::new(any, 0).unwrap_or(IpNetwork::from(any))
}

fn gateway(ip: &cni::IpConfig) -> IpAddr {
    let default = if ip.address.is_ipv4() { DEFAULT_GATEWAY_V4 } else { DEFAULT_GATEWAY_V6 };
    ip.gateway.filter(|gateway| *gateway != ip.address.ip()).unwrap_or(default)
}

/// `0a:58` and the first IPv4 address, else a hash.
fn derived_mac(id: Id, addresses: &[(IpNetwork, IpAddr)]) -> MacAddress {
    let first = addresses.iter().find_map(|(address, _)| match address.ip() {
        IpAddr::V4(ip) => Some(ip.octets()),
        IpAddr::V6(_) => None,
    });
    match first {
        Some([a, b, c, d]) => [0x0a, 0x58, a, b, c, d],
        None => id.pod_mac(),
    }
}
