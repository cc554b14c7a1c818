//! One node of the map, and the small types it is made of.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families, IPv4 first.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The family of a network.
    pub fn of_network(network: &IpNetwork) -> Self {
        if network.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The length of an address in bits: 32 or 128.
    pub fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// An Ethernet address. Written as six pairs of hexadecimal digits with colons
/// between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Whether an interface can have this address: not a group address
    /// (IEEE 802, lowest bit of the first octet) and not all zero. The kernel's
    /// `is_valid_ether_addr`, include/linux/etherdevice.h.
    pub fn is_unicast(&self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = String;

    /// Six pairs of hexadecimal digits, in either case, with colons between.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a MAC address (such as 0a:58:0a:00:01:00)");
        let mut octets = [0; 6];
        let mut pairs = text.split(':');
        for octet in &mut octets {
            let pair = pairs.next().ok_or_else(bad)?;
            if pair.len() != 2 || !pair.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *octet = u8::from_str_radix(pair, 16).map_err(|_| bad())?;
        }
        if pairs.next().is_some() { Err(bad()) } else { Ok(Self(octets)) }
    }
}

/// An address of a node, with the prefix length of the physical link it is on
/// where the map gives one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeAddress {
    /// The address.
    pub ip: IpAddr,
    /// The prefix length of the link, in bits.
    pub prefix_len: Option<u8>,
}

impl NodeAddress {
    /// The network of the link; `None` without a prefix length.
    pub fn network(&self) -> Option<IpNetwork> {
        let network = IpNetwork::new(self.ip, self.prefix_len?).ok()?;
        Some(network_form(network))
    }
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix_len {
            Some(len) => write!(f, "{}/{len}", self.ip),
            None => write!(f, "{}", self.ip),
        }
    }
}

impl FromStr for NodeAddress {
    type Err = String;

    /// `192.168.1.2` or `192.168.1.2/24`; only an address that a node can have.
    fn from_str(text: &str) -> Result<Self, String> {
        let (ip, prefix_len) = match text.split_once('/') {
            None => (text, None),
            Some((ip, len)) => (ip, Some(len)),
        };
        let ip: IpAddr = ip.parse().map_err(|_| {
            format!("{text:?} is not an IP address (such as 192.168.1.2 or 192.168.1.2/24)")
        })?;
        node_can_have(ip)?;
        let prefix_len = prefix_len.map(|len| prefix_length(len, ip, text)).transpose()?;
        Ok(Self { ip, prefix_len })
    }
}

/// One node of the map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its name, one of its own in the map.
    pub name: String,
    /// Its addresses on the physical network, in the map's order.
    pub addresses: Vec<NodeAddress>,
    /// The ranges that its pods' addresses come from, without host bits, in the
    /// map's order.
    pub pod_ranges: Vec<IpNetwork>,
    /// The address that other nodes send the tunnel to and see it come from,
    /// where that is not the first of `addresses`: a node behind NAT.
    pub tunnel_address: Option<IpAddr>,
    /// The MAC address of its VXLAN device, where it is not the derived one
    /// ([`crate::vtep_mac`]).
    pub vtep_mac: Option<Mac>,
}

impl Node {
    /// The address of `family` that other nodes reach this one by: the outer
    /// destination of the tunnel and the next hop of direct routes. The tunnel
    /// address where it is of that family, else the first address of it.
    pub fn tunnel_end(&self, family: Family) -> Option<IpAddr> {
        let mut all = self.tunnel_address.into_iter().chain(self.addresses.iter().map(|a| a.ip));
        all.find(|ip| Family::of(*ip) == family)
    }

    /// The pod ranges of `family`, in the map's order.
    pub fn ranges(&self, family: Family) -> impl Iterator<Item = &IpNetwork> {
        self.pod_ranges.iter().filter(move |range| Family::of_network(range) == family)
    }

    /// The first IPv4 pod range.
    pub fn range_v4(&self) -> Option<Ipv4Network> {
        self.pod_ranges.iter().find_map(|range| match range {
            IpNetwork::V4(range) => Some(*range),
            IpNetwork::V6(_) => None,
        })
    }

    /// The first IPv6 pod range.
    pub fn range_v6(&self) -> Option<Ipv6Network> {
        self.pod_ranges.iter().find_map(|range| match range {
            IpNetwork::V6(range) => Some(*range),
            IpNetwork::V4(_) => None,
        })
    }

    /// Whether `ip` is one of the node's addresses or its tunnel address.
    pub fn has_address(&self, ip: IpAddr) -> bool {
        self.tunnel_address == Some(ip) || self.addresses.iter().any(|a| a.ip == ip)
    }
}

/// A pod range: a CIDR with a prefix length and without host bits, of addresses
/// that pods can have.
pub(crate) fn pod_range(text: &str) -> Result<IpNetwork, String> {
    let bad = || format!("{text:?} is not a CIDR (such as 10.0.1.0/24)");
    let (ip, len) = text.split_once('/').ok_or_else(bad)?;
    let ip: IpAddr = ip.parse().map_err(|_| bad())?;
    let len = prefix_length(len, ip, text)?;
    let range = IpNetwork::new(ip, len).map_err(|_| bad())?;
    if range.network() != ip {
        return Err(format!("{text:?} has host bits set; did you mean {}?", network_form(range)));
    }
    pods_can_have(ip).map_err(|what| format!("{text:?} cannot be a pod range: {what}"))?;
    Ok(range)
}

/// A MAC address that a VXLAN device can have.
pub(crate) fn device_mac(text: &str) -> Result<Mac, String> {
    let mac: Mac = text.parse()?;
    if mac.is_unicast() {
        Ok(mac)
    } else {
        Err(format!("{text:?} is a group address or zero, which no interface can have"))
    }
}

/// An address that other nodes can send to, without a prefix length.
pub(crate) fn node_ip(text: &str) -> Result<IpAddr, String> {
    let ip = text.parse().map_err(|_| format!("{text:?} is not an IP address"))?;
    node_can_have(ip)?;
    Ok(ip)
}

/// `network` without its host bits.
pub(crate) fn network_form(network: IpNetwork) -> IpNetwork {
    // The prefix length is the network's own, so this cannot fail.
    IpNetwork::new(network.network(), network.prefix()).unwrap_or(network)
}

/// Digits alone, from 1 to the family's bits: 0 is every address there is,
/// which is no range of one node and no physical link.
fn prefix_length(digits: &str, ip: IpAddr, text: &str) -> Result<u8, String> {
    let bits = Family::of(ip).bits();
    let plain = digits.bytes().all(|b| b.is_ascii_digit());
    let length = digits.parse().ok().filter(|len| plain && (1..=bits).contains(len));
    length.ok_or_else(|| format!("{text:?} needs a prefix length from 1 to {bits}"))
}

fn node_can_have(ip: IpAddr) -> Result<(), String> {
    match unusable(ip) {
        Some(what) => Err(format!("{ip} cannot be a node's address: it is {what}")),
        None => Ok(()),
    }
}

fn pods_can_have(ip: IpAddr) -> Result<(), String> {
    match unusable(ip) {
        Some(what) => Err(format!("{ip} is {what}")),
        None => Ok(()),
    }
}

/// Why `ip` cannot be routed to; `None` where it can.
fn unusable(ip: IpAddr) -> Option<&'static str> {
    if ip.is_unspecified() {
        return Some("the unspecified address");
    }
    if ip.is_loopback() {
        return Some("a loopback address");
    }
    if ip.is_multicast() {
        return Some("a multicast address");
    }
    match ip {
        IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast address"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            Some("a link-local address, which means nothing without its interface")
        }
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Some("an IPv4-mapped address; write it as IPv4")
        }
        _ => None,
    }
}
