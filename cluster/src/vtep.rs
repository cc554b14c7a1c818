//! What a node's VXLAN device is called by: names that peers derive from the
//! map instead of exchanging them.

use std::net::{IpAddr, Ipv6Addr};

use crate::node::{Family, Mac, Node};

/// The two octets that derived MAC addresses begin with: locally administered,
/// unicast, and the ones that container networks have long used for "the IPv4
/// address follows".
const DERIVED: [u8; 2] = [0x0a, 0x58];

/// The MAC address of a node's VXLAN device: the record's `vtepMAC`, else
/// `0a:58` and the network address of the node's first IPv4 pod range, else (no
/// IPv4) `0a:58` and a hash of the network address of its first IPv6 pod range.
///
/// The hash is 64-bit FNV-1a over the sixteen octets, its halves xored
/// (draft-eastlake-fnv, "xor-folding"). In 32 bits two of 10,000 nodes without
/// IPv4 collide with a chance of one in a hundred; the map then quarantines
/// both, and a `vtepMAC` in one of them settles it.
///
/// A node without any pod range is in no applied map; it gets the hash of `::`.
pub fn vtep_mac(node: &Node) -> Mac {
    if let Some(mac) = node.vtep_mac {
        return mac;
    }
    let tail = match node.range_v4() {
        Some(range) => range.network().octets(),
        None => folded_hash(node.range_v6().map_or(Ipv6Addr::UNSPECIFIED, |r| r.network())),
    };
    let [a, b, c, d] = tail;
    Mac([DERIVED[0], DERIVED[1], a, b, c, d])
}

/// The link-local address of the device with this MAC address: `fe80::/64` and
/// the modified EUI-64 identifier (RFC 4291, appendix A). It is the gateway of
/// the IPv6 routes to a peer's pods.
pub fn vtep_link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// The address of a node inside the pod network: the network address of its
/// first pod range of `family`, which no pod is ever given.
pub fn pod_network_address(node: &Node, family: Family) -> Option<IpAddr> {
    node.ranges(family).next().map(|range| range.network())
}

fn folded_hash(address: Ipv6Addr) -> [u8; 4] {
    let hash = address.octets().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, octet| {
        (hash ^ u64::from(*octet)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let [a, b, c, d, e, f, g, h] = hash.to_be_bytes();
    [a ^ e, b ^ f, c ^ g, d ^ h]
}
