//! Network devices: veth pairs across namespaces, VXLAN devices, and changes to
//! a device that is there (rtnetlink(7), `include/uapi/linux/if_link.h`).

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::netlink::{Attribute, Message, Reply, Rtnetlink};
use crate::uapi::{IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE, VETH_INFO_PEER, vxlan};
use crate::{MacAddress, format_mac};

/// Link group of the host ends of our veth pairs, "weft" in ASCII: one static
/// firewall rule (`iifgroup`) holds for all of them.
pub const HOST_END_GROUP: u32 = 0x7765_6674;
/// Link group of the host ends whose pods may send from any address, so that the
/// rule that checks the others does not see them.
pub const HOST_END_GROUP_UNCHECKED: u32 = HOST_END_GROUP + 1;
/// Link group of the host ends that are being removed: many links are deleted at once
/// by their group. One that is killed over it leaves links that nothing else takes for its own.
pub const HOST_END_GROUP_REMOVED: u32 = HOST_END_GROUP + 2;
/// Every link group of host ends that pods use.
pub const HOST_END_GROUPS: [u32; 2] = [HOST_END_GROUP, HOST_END_GROUP_UNCHECKED];

/// Length of `struct ifinfomsg`.
const IFINFOMSG: usize = 16;
/// IFF_UP.
const UP: u32 = libc::IFF_UP as u32;

/// A device as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Link {
    /// Number, unique in its namespace.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Type ("veth", "vxlan"); absent for physical devices.
    pub kind: Option<String>,
    /// Hardware address, if it has one of six bytes.
    pub mac: Option<MacAddress>,
    /// Bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Whether it is the loopback device.
    pub loopback: bool,
    /// Free text of its owner.
    pub alias: Option<String>,
    /// Link group.
    pub group: u32,
    /// Device that it is part of: a bridge, a bond, a VRF.
    pub controller: Option<u32>,
    /// Index of the lower device, or of a veth's other end.
    pub lower: Option<u32>,
    /// Number of the namespace of `lower`, where that is another one.
    pub lower_nsid: Option<i32>,
    /// Settings of a VXLAN device.
    pub vxlan: Option<Vxlan>,
}

/// Settings of a VXLAN device (RFC 7348).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Vxlan {
    /// VNI; 0 for a device that takes its tunnels from metadata.
    pub vni: u32,
    /// Outer UDP destination port.
    pub port: u16,
    /// Lowest and highest outer UDP source port; 0-0 is the kernel's choice.
    pub source_ports: (u16, u16),
    /// Outer source address.
    pub local: Option<IpAddr>,
    /// Index of the underlay device.
    pub underlay: Option<u32>,
    /// Whether it learns peers from traffic.
    pub learning: bool,
    /// Whether it sends UDP checksums over its outer family.
    pub udp_checksum: bool,
    /// Whether tunnels come from metadata ("external").
    pub external: bool,
}

/// A veth pair to be made with one end in each of two namespaces. The request is
/// sent in the pod's namespace, so that addresses can follow it in one batch.
#[derive(Clone, Copy, Debug)]
pub struct VethPair<'a> {
    /// Name of the pod's end.
    pub pod_name: &'a str,
    /// MAC of the pod's end.
    pub pod_mac: MacAddress,
    /// Name of the host's end.
    pub host_name: &'a str,
    /// MAC of the host's end.
    pub host_mac: MacAddress,
    /// Index of both ends: chosen by us, so that the requests that follow need
    /// not ask for it. EEXIST where it is taken in the pod's namespace (`rtnl_newlink`),
    /// EBUSY where it is on the host (`dev_index_reserve`).
    pub index: u32,
    /// MTU of both ends, bytes.
    pub mtu: u32,
    /// Link group of the host's end: one of [`HOST_END_GROUPS`].
    pub group: u32,
    /// Namespace of the host's end.
    pub host_netns: BorrowedFd<'a>,
}

/// A VXLAN device to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanDevice {
    /// Name.
    pub name: String,
    /// MAC; given at creation, so that no udev rule rewrites it.
    pub mac: MacAddress,
    /// Bytes.
    pub mtu: u32,
    /// The rest.
    pub settings: Vxlan,
}

/// What to change of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkChange<'a> {
    /// New name; the device must be down.
    pub name: Option<&'a str>,
    /// Administrative state.
    pub up: Option<bool>,
    /// Bytes.
    pub mtu: Option<u32>,
    /// Hardware address.
    pub mac: Option<MacAddress>,
    /// Free text, at most 255 bytes (IFALIASZ).
    pub alias: Option<&'a str>,
    /// Link group.
    pub group: Option<u32>,
    /// Outer source of a VXLAN device.
    pub vxlan_local: Option<IpAddr>,
    /// No IPv6 link-local address of the kernel's own making
    /// (IN6_ADDR_GEN_MODE_NONE); refused where the kernel has no IPv6.
    pub no_link_local: bool,
}

impl VethPair<'_> {
    /// The request that makes the pair, the pod's end up.
    pub fn message(&self) -> Message {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let mut message = Message::new(libc::RTM_NEWLINK, flags, &header(self.index, UP, UP));
        message.attr_str(libc::IFLA_IFNAME, self.pod_name);
        message.attr_mac(libc::IFLA_ADDRESS, &self.pod_mac);
        message.attr_u32(libc::IFLA_MTU, self.mtu);
        message.nest(libc::IFLA_LINKINFO, |info| {
            info.attr_str(libc::IFLA_INFO_KIND, "veth");
            info.nest(libc::IFLA_INFO_DATA, |data| {
                data.nest(VETH_INFO_PEER, |peer| self.peer(peer));
            });
        });
        message
    }

    fn peer(&self, peer: &mut Message) {
        peer.raw(&header(self.index, 0, 0));
        peer.attr_str(libc::IFLA_IFNAME, self.host_name);
        peer.attr_mac(libc::IFLA_ADDRESS, &self.host_mac);
        peer.attr_u32(libc::IFLA_MTU, self.mtu);
        peer.attr_u32(libc::IFLA_GROUP, self.group);
        peer.attr_u32(libc::IFLA_NET_NS_FD, self.host_netns.as_raw_fd() as u32);
    }
}

impl VxlanDevice {
    /// The request that makes the device, still down.
    pub fn message(&self) -> Message {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let mut message = Message::new(libc::RTM_NEWLINK, flags, &header(0, 0, 0));
        message.attr_str(libc::IFLA_IFNAME, &self.name);
        message.attr_mac(libc::IFLA_ADDRESS, &self.mac);
        message.attr_u32(libc::IFLA_MTU, self.mtu);
        message.nest(libc::IFLA_LINKINFO, |info| {
            info.attr_str(libc::IFLA_INFO_KIND, "vxlan");
            info.nest(libc::IFLA_INFO_DATA, |data| self.settings.attributes(data));
        });
        message
    }

    /// The device as arguments of `ip link add`; `underlay` is the lower
    /// device's name.
    pub fn words(&self, underlay: &str) -> String {
        let Vxlan { vni, port, source_ports: (low, high), local, .. } = self.settings;
        let local = local.map_or(String::new(), |ip| format!(" local {ip}"));
        let range =
            if (low, high) == (0, 0) { String::new() } else { format!(" srcport {low} {high}") };
        format!(
            "{} address {} mtu {} type vxlan id {vni}{local} dev {underlay} dstport {port}{range} \
             nolearning",
            self.name,
            format_mac(&self.mac),
            self.mtu,
        )
    }
}

impl Vxlan {
    fn attributes(&self, data: &mut Message) {
        data.attr_u32(vxlan::ID, self.vni);
        data.attr(vxlan::PORT, &self.port.to_be_bytes());
        data.attr_u8(vxlan::LEARNING, self.learning.into());
        if self.source_ports != (0, 0) {
            let [low, high] = [self.source_ports.0, self.source_ports.1].map(u16::to_be_bytes);
            data.attr(vxlan::PORT_RANGE, &[low, high].concat());
        }
        if let Some(underlay) = self.underlay {
            data.attr_u32(vxlan::LINK, underlay);
        }
        if let Some(local) = self.local {
            data.attr_ip(local_attribute(local), local);
        }
        // Checksums let the receiver validate the inner packet and merge
        // segments (GRO); over IPv6 they are the default that must not be
        // switched off.
        if self.local.is_none_or(|ip| ip.is_ipv4()) {
            data.attr_u8(vxlan::UDP_CSUM, self.udp_checksum.into());
        } else {
            data.attr_u8(vxlan::UDP_ZERO_CSUM6_TX, (!self.udp_checksum).into());
            data.attr_u8(vxlan::UDP_ZERO_CSUM6_RX, (!self.udp_checksum).into());
        }
    }

    fn parse(data: Attribute) -> Self {
        let mut settings = Self {
            vni: 0,
            port: 0,
            source_ports: (0, 0),
            local: None,
            underlay: None,
            learning: false,
            udp_checksum: false,
            external: false,
        };
        let (mut checksum4, mut zero_checksum6) = (false, false);
        for attribute in data.nested() {
            let flag = attribute.u8() == Some(1);
            match attribute.kind {
                vxlan::ID => settings.vni = attribute.u32().unwrap_or(0),
                vxlan::PORT => settings.port = attribute.be16().unwrap_or(0),
                vxlan::PORT_RANGE => settings.source_ports = port_range(attribute),
                vxlan::LOCAL | vxlan::LOCAL6 => {
                    settings.local = attribute.ip().filter(|ip| !ip.is_unspecified());
                }
                vxlan::LINK => settings.underlay = attribute.u32().filter(|&index| index != 0),
                vxlan::LEARNING => settings.learning = flag,
                vxlan::UDP_CSUM => checksum4 = flag,
                vxlan::UDP_ZERO_CSUM6_TX => zero_checksum6 = flag,
                vxlan::COLLECT_METADATA => settings.external = flag,
                _ => {}
            }
        }
        let over_ipv6 = settings.local.is_some_and(|ip| ip.is_ipv6());
        settings.udp_checksum = if over_ipv6 { !zero_checksum6 } else { checksum4 };
        settings
    }
}

impl LinkChange<'_> {
    /// The request that makes the change to the device of number `index`.
    pub fn message(&self, index: u32) -> Message {
        let (flags, mask) = match self.up {
            None => (0, 0),
            Some(true) => (UP, UP),
            Some(false) => (0, UP),
        };
        let mut message = Message::new(libc::RTM_NEWLINK, 0, &header(index, flags, mask));
        if let Some(name) = self.name {
            message.attr_str(libc::IFLA_IFNAME, name);
        }
        if let Some(mtu) = self.mtu {
            message.attr_u32(libc::IFLA_MTU, mtu);
        }
        if let Some(mac) = &self.mac {
            message.attr_mac(libc::IFLA_ADDRESS, mac);
        }
        if let Some(alias) = self.alias {
            // The kernel wants no closing NUL here and refuses 256 bytes.
            message
                .attr(libc::IFLA_IFALIAS, alias.as_bytes().get(..255).unwrap_or(alias.as_bytes()));
        }
        if let Some(group) = self.group {
            message.attr_u32(libc::IFLA_GROUP, group);
        }
        if self.no_link_local {
            message.nest(libc::IFLA_AF_SPEC, |families| {
                families.nest(libc::AF_INET6 as u16, |ipv6| {
                    ipv6.attr_u8(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE);
                });
            });
        }
        if let Some(local) = self.vxlan_local {
            message.nest(libc::IFLA_LINKINFO, |info| {
                info.attr_str(libc::IFLA_INFO_KIND, "vxlan");
                info.nest(libc::IFLA_INFO_DATA, |data| {
                    data.attr_ip(local_attribute(local), local);
                });
            });
        }
        message
    }

    /// The change as arguments of `ip link set NAME`.
    pub fn words(&self) -> String {
        let mut words = Vec::new();
        words.extend(self.name.map(|name| format!("name {name}")));
        words.extend(self.mtu.map(|mtu| format!("mtu {mtu}")));
        words.extend(self.mac.map(|mac| format!("address {}", format_mac(&mac))));
        words.extend(self.alias.map(|alias| format!("alias {alias:?}")));
        words.extend(self.group.map(|group| format!("group {group}")));
        words.extend(self.vxlan_local.map(|ip| format!("type vxlan local {ip}")));
        words.extend(self.no_link_local.then(|| "addrgenmode none".to_owned()));
        words.extend(self.up.map(|up| if up { "up" } else { "down" }.to_owned()));
        words.join(" ")
    }
}

/// The request that deletes the device called `name`.
pub fn delete_by_name(name: &str) -> Message {
    let mut message = Message::new(libc::RTM_DELLINK, 0, &header(0, 0, 0));
    message.attr_str(libc::IFLA_IFNAME, name);
    message
}

/// The request that deletes the device of number `index`.
pub fn delete(index: u32) -> Message {
    Message::new(libc::RTM_DELLINK, 0, &header(index, 0, 0))
}

/// The request that deletes every device of link group `group`, whatever it is. The kernel
/// waits once for all of them, some 25 ms, and not for each (`rtnl_group_dellink`).
pub fn delete_group(group: u32) -> Message {
    let mut message = Message::new(libc::RTM_DELLINK, 0, &header(0, 0, 0));
    message.attr_u32(libc::IFLA_GROUP, group);
    message
}

impl Rtnetlink {
    /// The device called `name`.
    pub fn link_by_name(&mut self, name: &str) -> Result<Option<Link>> {
        let mut message = question(0);
        message.attr_str(libc::IFLA_IFNAME, name);
        self.get(message, parse).map_err(|e| e.about(format_args!("cannot look up link {name}")))
    }

    /// The device of number `index`.
    pub fn link(&mut self, index: u32) -> Result<Option<Link>> {
        let found = self.get(question(index), parse);
        found.map_err(|e| e.about(format_args!("cannot look up the link of index {index}")))
    }

    /// All devices.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        self.list_links(None)
    }

    /// All devices of type `kind`.
    pub fn links_of_kind(&mut self, kind: &str) -> Result<Vec<Link>> {
        self.list_links(Some(kind))
    }

    fn list_links(&mut self, kind: Option<&str>) -> Result<Vec<Link>> {
        let body = header(0, 0, 0);
        let mut message = Message::new(libc::RTM_GETLINK, libc::NLM_F_DUMP, &body);
        message.attr_u32(libc::IFLA_EXT_MASK, SKIP_STATISTICS);
        if let Some(kind) = kind {
            message.nest(libc::IFLA_LINKINFO, |info| {
                info.attr_str(libc::IFLA_INFO_KIND, kind);
            });
        }
        match self.dump(&message, parse) {
            // A kind whose module was never loaded has no devices either.
            Err(e) if kind.is_some() && e.errno == Errno::EOPNOTSUPP => Ok(Vec::new()),
            other => other.map_err(|e: Error| e.about("cannot list links")),
        }
    }
}

/// RTEXT_FILTER_SKIP_STATS: counters cost more than the rest together.
const SKIP_STATISTICS: u32 = libc::RTEXT_FILTER_SKIP_STATS as u32;

/// The request for the device of number `index`.
pub fn question(index: u32) -> Message {
    let mut message = Message::new(libc::RTM_GETLINK, 0, &header(index, 0, 0));
    message.attr_u32(libc::IFLA_EXT_MASK, SKIP_STATISTICS);
    message
}

/// `struct ifinfomsg`.
fn header(index: u32, flags: u32, mask: u32) -> [u8; IFINFOMSG] {
    let mut header = [0; IFINFOMSG];
    let fields = [(4, index), (8, flags), (12, mask)];
    for (at, value) in fields {
        if let Some(field) = header.get_mut(at..at + 4) {
            field.copy_from_slice(&value.to_ne_bytes());
        }
    }
    header
}

fn local_attribute(local: IpAddr) -> u16 {
    if local.is_ipv4() { vxlan::LOCAL } else { vxlan::LOCAL6 }
}

fn port_range(attribute: Attribute) -> (u16, u16) {
    match attribute.payload {
        &[a, b, c, d] => (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])),
        _ => (0, 0),
    }
}

pub(crate) fn parse(reply: &Reply) -> Option<Link> {
    if reply.kind != libc::RTM_NEWLINK {
        return None;
    }
    let word = |at: usize| reply.body.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let flags = word(8)?;
    let mut link = Link {
        index: word(4)?,
        name: String::new(),
        kind: None,
        mac: None,
        mtu: 0,
        up: flags & UP != 0,
        loopback: flags & libc::IFF_LOOPBACK as u32 != 0,
        alias: None,
        group: 0,
        controller: None,
        lower: None,
        lower_nsid: None,
        vxlan: None,
    };
    for attribute in reply.attributes(IFINFOMSG) {
        match attribute.kind {
            libc::IFLA_IFNAME => link.name = attribute.str()?.to_owned(),
            libc::IFLA_ADDRESS => link.mac = attribute.mac(),
            libc::IFLA_MTU => link.mtu = attribute.u32()?,
            libc::IFLA_IFALIAS => link.alias = attribute.str().map(str::to_owned),
            libc::IFLA_GROUP => link.group = attribute.u32()?,
            libc::IFLA_MASTER => link.controller = attribute.u32(),
            libc::IFLA_LINK => link.lower = attribute.u32().filter(|&index| index != 0),
            libc::IFLA_LINK_NETNSID => link.lower_nsid = attribute.u32().map(|id| id as i32),
            libc::IFLA_LINKINFO => parse_info(&mut link, attribute),
            _ => {}
        }
    }
    Some(link)
}

fn parse_info(link: &mut Link, info: Attribute) {
    for attribute in info.nested() {
        match attribute.kind {
            libc::IFLA_INFO_KIND => link.kind = attribute.str().map(str::to_owned),
            libc::IFLA_INFO_DATA if link.kind.as_deref() == Some("vxlan") => {
                link.vxlan = Some(Vxlan::parse(attribute));
            }
            _ => {}
        }
    }
}
