//! Numbers of the kernel's user API that the `libc` crate lacks.
//!
//! Each is from the header of the same name under `include/uapi/linux`.

/// `if_link.h`, VETH_INFO_PEER.
pub const VETH_INFO_PEER: u16 = 1;

/// `if_link.h`: how the kernel makes link-local addresses.
pub const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
/// `if_link.h`: it makes none.
pub const IN6_ADDR_GEN_MODE_NONE: u8 = 1;

/// `if_link.h`, IFLA_VXLAN_*: attributes of a VXLAN device.
pub mod vxlan {
    /// VNI, 24 bits.
    pub const ID: u16 = 1;
    /// Interface under the tunnel.
    pub const LINK: u16 = 3;
    /// Outer IPv4 source.
    pub const LOCAL: u16 = 4;
    /// Whether source addresses are learned from traffic.
    pub const LEARNING: u16 = 7;
    /// Outer UDP source ports, `struct ifla_vxlan_port_range`, big endian.
    pub const PORT_RANGE: u16 = 10;
    /// Outer UDP destination port, big endian.
    pub const PORT: u16 = 15;
    /// Outer IPv6 source.
    pub const LOCAL6: u16 = 17;
    /// UDP checksum over outer IPv4.
    pub const UDP_CSUM: u16 = 18;
    /// Present and true: no UDP checksum sent over outer IPv6.
    pub const UDP_ZERO_CSUM6_TX: u16 = 19;
    /// Present and true: no UDP checksum asked for over outer IPv6.
    pub const UDP_ZERO_CSUM6_RX: u16 = 20;
    /// The device takes tunnel metadata from routes or programs ("external").
    pub const COLLECT_METADATA: u16 = 25;
}

/// `rtnetlink.h`, RTAX_*: metrics inside RTA_METRICS.
pub mod rtax {
    /// Path MTU.
    pub const MTU: u16 = 2;
    /// Advertised TCP segment size.
    pub const ADVMSS: u16 = 8;
}

/// `rtnetlink.h`: next hop is on the link whatever the routes say.
pub const RTNH_F_ONLINK: u32 = 4;

/// `rtnetlink.h`: RTM_NEWNEXTHOP.
pub const RTM_NEWNEXTHOP: u16 = 104;
/// `rtnetlink.h`: RTM_DELNEXTHOP.
pub const RTM_DELNEXTHOP: u16 = 105;
/// `rtnetlink.h`: RTM_GETNEXTHOP.
pub const RTM_GETNEXTHOP: u16 = 106;

/// `nexthop.h`, NHA_*: attributes of a nexthop object.
pub mod nha {
    /// Number of the object.
    pub const ID: u16 = 1;
    /// Interface.
    pub const OIF: u16 = 5;
    /// Address of the next hop.
    pub const GATEWAY: u16 = 6;
}

/// `rtnetlink.h`: attribute of a route that names a nexthop object.
pub const RTA_NH_ID: u16 = 30;
/// `rtnetlink.h`: next hop of another family than the route.
pub const RTA_VIA: u16 = 18;

/// `net_namespace.h`: NETNSA_NSID.
pub const NETNSA_NSID: u16 = 1;
/// `net_namespace.h`: NETNSA_FD.
pub const NETNSA_FD: u16 = 3;
/// `net_namespace.h`: NETNSA_NSID_NOT_ASSIGNED.
pub const NSID_NOT_ASSIGNED: i32 = -1;

/// `netlink.h`: NLMSGERR_ATTR_MSG, the extended ACK's text.
pub const NLMSGERR_ATTR_MSG: u16 = 1;

/// `neighbour.h`: put there by another program, a routing daemon for one.
pub const NTF_EXT_LEARNED: u8 = 1 << 4;

/// `sockios.h`: a descriptor of a socket's network namespace.
pub const SIOCGSKNS: i32 = 0x894C;
