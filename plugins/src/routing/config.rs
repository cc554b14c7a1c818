//! The keys of `routing`.

use cluster::{Family, Mode};
use cni::{Code, Error, Network, Object};
use ipnetwork::IpNetwork;

use crate::failure::invalid_config;
use crate::node::Source;

/// The route protocol by default; `/etc/iproute2/rt_protos` knows no other use.
pub(crate) const DEFAULT_PROTOCOL: u8 = 87;
/// The VXLAN port that Linux, flannel and Cilium use by default
/// (`drivers/net/vxlan`, from before RFC 7348 gave it 4789).
const DEFAULT_TUNNEL_PORT: u16 = 8472;
/// VNIs have 24 bits (RFC 7348 section 5).
const MAX_VNI: u64 = (1 << 24) - 1;
/// Longest interface name (IFNAMSIZ less its NUL).
const MAX_IFNAME: usize = 15;
/// Protocols below RTPROT_STATIC + 1 are the kernel's and the administrator's.
const LOWEST_PROTOCOL: u64 = 5;

/// Every key that [`Config::of`] reads.
pub(crate) const KEYS: [&str; 21] = [
    "routingMode",
    "nodesDir",
    "nodes",
    "nodeName",
    "vni",
    "tunnelPort",
    "tunnelSourcePortRange",
    "device",
    "underlay",
    "underlayFamily",
    "mtu",
    "ipv4NativeRoutingCIDR",
    "ipv6NativeRoutingCIDR",
    "links",
    "autoDirectNodeRoutes",
    "directRoutingSkipUnreachable",
    "ipMasq",
    "nonMasqueradeCIDRs",
    "peerGuard",
    "noTrack",
    "routeProtocol",
];
/// Those whose values are networks.
pub(crate) const CIDR_KEYS: [&str; 4] =
    ["ipv4NativeRoutingCIDR", "ipv6NativeRoutingCIDR", "links", "nonMasqueradeCIDRs"];

/// The plugin's configuration, read and checked.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// `name` of the network.
    pub(crate) network: String,
    /// `routingMode`.
    pub(crate) mode: Mode,
    /// `nodesDir`, `nodes`, `nodeName`.
    pub(crate) source: Source,
    /// `vni`.
    pub(crate) vni: u32,
    /// `tunnelPort`; none where it is 0, which is no tunnel.
    pub(crate) tunnel_port: Option<u16>,
    /// `tunnelSourcePortRange`.
    pub(crate) source_ports: (u16, u16),
    /// `device`.
    pub(crate) device: String,
    /// `underlay`: name of the interface.
    pub(crate) underlay: Option<String>,
    /// `underlayFamily`.
    pub(crate) underlay_family: Family,
    /// `mtu`, bytes.
    pub(crate) mtu: Option<u32>,
    /// `ipv4NativeRoutingCIDR` and `ipv6NativeRoutingCIDR`.
    pub(crate) native_cidrs: Vec<IpNetwork>,
    /// `links`.
    pub(crate) links: Vec<IpNetwork>,
    /// `autoDirectNodeRoutes`.
    pub(crate) auto_direct_node_routes: bool,
    /// `directRoutingSkipUnreachable`.
    pub(crate) skip_unreachable: bool,
    /// `ipMasq`.
    pub(crate) ip_masq: bool,
    /// `nonMasqueradeCIDRs`.
    pub(crate) non_masquerade_cidrs: Vec<IpNetwork>,
    /// `peerGuard`.
    pub(crate) peer_guard: bool,
    /// `noTrack`.
    pub(crate) no_track: bool,
    /// `routeProtocol`.
    pub(crate) protocol: u8,
}

impl Config {
    /// Reads the keys of a network whose plugin is `routing`.
    pub(crate) fn read(network: &Network) -> Result<Self, Error> {
        Self::of(&network.name, &network.keys())
    }

    /// Reads `keys`, those of the plugin in the network called `name`.
    pub(crate) fn of(name: &str, keys: &Object) -> Result<Self, Error> {
        let mode = mode(keys)?;
        let vni = keys.integer("vni", 1, MAX_VNI)?.unwrap_or(1) as u32;
        let device = keys.text("device")?.map_or_else(|| format!("weft.{vni}"), str::to_owned);
        let native_cidrs =
            [native_cidrs(keys, Family::V4)?, native_cidrs(keys, Family::V6)?].concat();
        let config = Self {
            network: name.to_owned(),
            mode,
            source: Source::read(keys)?,
            vni,
            tunnel_port: tunnel_port(keys, mode)?,
            source_ports: source_ports(keys)?,
            device: interface_name("device", &device)?,
            underlay: keys.text("underlay")?.map(|u| interface_name("underlay", u)).transpose()?,
            underlay_family: underlay_family(keys)?,
            mtu: mtu(keys)?,
            native_cidrs,
            links: networks(keys, "links")?,
            auto_direct_node_routes: keys.bool("autoDirectNodeRoutes")?.unwrap_or(true),
            skip_unreachable: keys.bool("directRoutingSkipUnreachable")?.unwrap_or(true),
            ip_masq: keys.bool("ipMasq")?.unwrap_or(true),
            non_masquerade_cidrs: networks(keys, "nonMasqueradeCIDRs")?,
            peer_guard: keys.bool("peerGuard")?.unwrap_or(true),
            no_track: keys.bool("noTrack")?.unwrap_or(true),
            protocol: protocol(keys)?,
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), Error> {
        if self.tunnel_port.is_none() && self.mode != Mode::Native {
            return Err(invalid_config(format!(
                "tunnelPort: 0 means no tunnel, which routingMode {} needs; remove tunnelPort or \
                 set routingMode to \"native\"",
                mode_word(self.mode)
            )));
        }
        Ok(())
    }

    /// Bytes that the tunnel adds: outer IP, UDP, VXLAN and inner Ethernet
    /// headers (RFC 7348 section 5).
    pub(crate) fn overhead(&self) -> u32 {
        let outer_ip = match self.underlay_family {
            Family::V4 => 20,
            Family::V6 => 40,
        };
        outer_ip + 8 + 8 + 14
    }
}

/// `routingMode` as it is written.
pub(crate) fn mode_word(mode: Mode) -> &'static str {
    match mode {
        Mode::Tunnel => "tunnel",
        Mode::Native => "native",
        Mode::Hybrid => "hybrid",
    }
}

fn mode(keys: &Object) -> Result<Mode, Error> {
    match keys.text("routingMode")? {
        None | Some("tunnel") => Ok(Mode::Tunnel),
        Some("native") => Ok(Mode::Native),
        Some("hybrid") => Ok(Mode::Hybrid),
        Some(other) => {
            let path = keys.path_of("routingMode");
            let msg = format!("{path}: {other:?} is none of tunnel, native, hybrid");
            Err(invalid_config(msg))
        }
    }
}

fn tunnel_port(keys: &Object, mode: Mode) -> Result<Option<u16>, Error> {
    let default = if mode == Mode::Native { 0 } else { DEFAULT_TUNNEL_PORT };
    let port = keys.integer("tunnelPort", 0, u16::MAX.into())?.map_or(default, |port| port as u16);
    Ok((port != 0).then_some(port))
}

fn source_ports(keys: &Object) -> Result<(u16, u16), Error> {
    let Some(text) = keys.text("tunnelSourcePortRange")? else { return Ok((0, 0)) };
    let range = text.split_once('-').and_then(|(low, high)| {
        Some((low.trim().parse::<u16>().ok()?, high.trim().parse::<u16>().ok()?))
    });
    // The kernel takes the upper bound as exclusive, so that equal ones divide by
    // zero ports (`udp_flow_src_port`).
    range.filter(|&(low, high)| (low, high) == (0, 0) || (low > 0 && low < high)).ok_or_else(|| {
        let path = keys.path_of("tunnelSourcePortRange");
        invalid_config(format!(
            "{path}: {text:?} is not LOW-HIGH with LOW below HIGH, such as \"49152-65535\", nor \"0-0\""
        ))
    })
}

fn underlay_family(keys: &Object) -> Result<Family, Error> {
    match keys.text("underlayFamily")? {
        None | Some("ipv4") => Ok(Family::V4),
        Some("ipv6") => Ok(Family::V6),
        Some(other) => {
            let path = keys.path_of("underlayFamily");
            Err(invalid_config(format!("{path}: {other:?} is neither ipv4 nor ipv6")))
        }
    }
}

fn mtu(keys: &Object) -> Result<Option<u32>, Error> {
    // 0 is how Go programs write "the default".
    let mtu = keys.integer("mtu", 0, u16::MAX.into())?.filter(|&mtu| mtu != 0);
    match mtu {
        Some(mtu) if mtu < 68 => {
            let path = keys.path_of("mtu");
            Err(invalid_config(format!("{path}: {mtu} is less than 68 bytes, the least of IPv4")))
        }
        mtu => Ok(mtu.map(|mtu| mtu as u32)),
    }
}

fn protocol(keys: &Object) -> Result<u8, Error> {
    let number = keys.integer("routeProtocol", LOWEST_PROTOCOL, 255)?;
    let number = number.map_or(DEFAULT_PROTOCOL, |number| number as u8);
    if number == crate::attachment::POD_ROUTE_PROTOCOL {
        let path = keys.path_of("routeProtocol");
        let msg = format!("{path}: {number} marks the routes to this node's own pods; use another");
        return Err(invalid_config(msg));
    }
    Ok(number)
}

fn interface_name(key: &str, name: &str) -> Result<String, Error> {
    let bad = |c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace();
    if name.is_empty()
        || name.len() > MAX_IFNAME
        || name == "."
        || name == ".."
        || name.contains(bad)
    {
        return Err(invalid_config(format!(
            "{key}: {name:?} is no interface name (1 to 15 bytes, none of / : % and white space)"
        )));
    }
    Ok(name.to_owned())
}

/// A CIDR or a list of them, all of `family`.
fn native_cidrs(keys: &Object, family: Family) -> Result<Vec<IpNetwork>, Error> {
    let key = match family {
        Family::V4 => "ipv4NativeRoutingCIDR",
        Family::V6 => "ipv6NativeRoutingCIDR",
    };
    let cidrs = match keys.get(key) {
        Some(serde_json::Value::String(text)) if text.is_empty() => Vec::new(),
        Some(serde_json::Value::String(text)) => vec![network(text, &keys.path_of(key))?],
        _ => networks(keys, key)?,
    };
    match cidrs.iter().find(|cidr| Family::of_network(cidr) != family) {
        Some(cidr) => {
            Err(invalid_config(format!("{}: {cidr} is not an {family} CIDR", keys.path_of(key))))
        }
        None => Ok(cidrs),
    }
}

fn networks(keys: &Object, key: &str) -> Result<Vec<IpNetwork>, Error> {
    keys.list(key, |value, path| match value.as_str() {
        Some(text) => network(text, &path),
        None => Err(invalid_config(format!("{path}: must be a CIDR, not {value}"))),
    })
}

fn network(text: &str, path: &str) -> Result<IpNetwork, Error> {
    let parsed = text.parse::<IpNetwork>().ok().filter(|_| text.contains('/'));
    let network = parsed.and_then(|n| IpNetwork::new(n.network(), n.prefix()).ok());
    network.ok_or_else(|| {
        Error::new(
            Code::InvalidConfig,
            format!("{path}: {text:?} is not a CIDR such as 10.0.0.0/8"),
        )
    })
}
