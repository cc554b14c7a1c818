//! The chains that are compared, and the nodes that they run on.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use anyhow::{Context, Result};
use e2e::Topology;
use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::pod::Pod;
use super::run::Executables;

/// MTU that every chain gives its pods: what is left of 1500 by VXLAN over IPv4.
const MTU: u32 = 1450;

/// Whose executables a chain is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    /// weft's.
    Ours,
    /// weft's, linked with glibc.
    OursGlibc,
    /// The reference plugins.
    Reference,
    /// The baseline.
    Bare,
}

/// A chain of plugins to be measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain {
    /// As in tables and on the command line.
    pub(crate) name: &'static str,
    /// What it is made of.
    pub(crate) about: &'static str,
    pub(crate) whose: Whose,
    plugins: fn(&Subnets) -> Vec<Value>,
}

/// The pod networks of a chain's node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subnets {
    number: u8,
    dual: bool,
}

/// Every chain, in the order of the tables.
pub(crate) const ALL: [Chain; 8] = [
    Chain {
        name: "bare",
        about: "one process that makes veth's kernel calls and nothing else",
        whose: Whose::Bare,
        plugins: |_| vec![json!({"type": "bare"})],
    },
    Chain {
        name: "weft veth",
        about: "veth + host-local",
        whose: Whose::Ours,
        plugins: |_| vec![weft_veth()],
    },
    Chain {
        name: "weft",
        about: "veth + host-local + routing: tunnel, masquerade, spoof check, peer guard",
        whose: Whose::Ours,
        plugins: |_| vec![weft_veth(), json!({"type": "routing", "routingMode": "tunnel"})],
    },
    Chain {
        name: "ptp",
        about: "ptp + host-local, no masquerade",
        whose: Whose::Reference,
        plugins: |subnets| vec![ptp(subnets, false)],
    },
    Chain {
        name: "ptp masq",
        about: "ptp with ipMasq + host-local",
        whose: Whose::Reference,
        plugins: |subnets| vec![ptp(subnets, true)],
    },
    Chain {
        name: "ptp masq port",
        about: "ptp with ipMasq + host-local + portmap, one host port",
        whose: Whose::Reference,
        plugins: |subnets| vec![ptp(subnets, true), portmap()],
    },
    Chain {
        name: "flannel",
        about: "bridge + host-local + portmap with one host port, as flannel writes it",
        whose: Whose::Reference,
        plugins: |subnets| vec![bridge(subnets), portmap()],
    },
    Chain {
        name: "weft glibc",
        about: "as weft, linked statically with glibc instead of musl",
        whose: Whose::OursGlibc,
        plugins: |_| vec![weft_veth(), json!({"type": "routing", "routingMode": "tunnel"})],
    },
];

fn weft_veth() -> Value {
    json!({"type": "veth", "ipam": {"type": "host-local"}})
}

fn ptp(subnets: &Subnets, masquerade: bool) -> Value {
    json!({"type": "ptp", "ipMasq": masquerade, "mtu": MTU, "ipam": subnets.reference_ipam(["0.0.0.0/0", "::/0"])})
}

/// The delegate configuration that flannel's plugin makes of its defaults and of the
/// `delegate` of its published conflist (hairpinMode, isDefaultGateway); masquerade is
/// its daemon's.
fn bridge(subnets: &Subnets) -> Value {
    json!({
        "type": "bridge", "bridge": "cni0", "mtu": MTU, "hairpinMode": true, "isGateway": true,
        "isDefaultGateway": true, "ipMasq": false,
        "ipam": subnets.reference_ipam(["10.0.0.0/8", "fd10::/32"]),
    })
}

fn portmap() -> Value {
    json!({"type": "portmap", "capabilities": {"portMappings": true}})
}

impl Chain {
    /// Its number, which its node and its addresses go by.
    fn number(&self) -> u8 {
        ALL.iter().position(|other| other.name == self.name).unwrap_or_default() as u8
    }

    fn subnets(&self, dual: bool) -> Subnets {
        Subnets { number: self.number(), dual }
    }

    pub(crate) fn node(&self) -> String {
        format!("node{}", self.number())
    }

    /// The plugins' configurations.
    pub(crate) fn plugins(&self, dual: bool) -> Vec<Value> {
        (self.plugins)(&self.subnets(dual))
    }

    /// Its `number`th pod.
    pub(crate) fn pod(&self, number: usize, dual: bool) -> Pod {
        let Subnets { number: node, .. } = self.subnets(dual);
        // The baseline allocates nothing: the number is the address.
        let [high, low] = ((number % 4000) as u16 + 2).to_be_bytes();
        let mut args = format!("IgnoreUnknown=1;IP4=10.{}.{high}.{low}", 16 + node);
        if dual {
            args.push_str(&format!(";IP6=fd10:0:0:{node:x}::{high:x}:{low:x}"));
        }
        let args = if self.whose == Whose::Bare { args } else { String::new() };
        Pod { id: format!("b{node}x{number:07}"), args, port: 20000 + (number % 20000) as u16 }
    }

    /// The node map of its node: itself and `nodes - 1` others behind the router.
    pub(crate) fn node_map(&self, nodes: usize, dual: bool) -> Value {
        let subnets = self.subnets(dual);
        let own = json!({
            "name": self.node(),
            "addresses": [Ipv4Addr::new(192, 168, 1, 1 + self.number()).to_string()],
            "podCIDRs": subnets.all(),
        });
        let peer = |n: usize| {
            let [high, low] = (n as u16).to_be_bytes();
            let mut ranges = vec![format!("10.{}.{low}.0/24", 128 + u16::from(high))];
            if dual {
                ranges.push(format!("fd20:0:0:{n:x}::/64"));
            }
            json!({"name": format!("peer{n}"), "addresses": [format!("172.16.{high}.{low}")],
                   "podCIDRs": ranges})
        };
        let mut records = vec![own];
        records.extend((1..nodes).map(peer));
        json!({"nodes": records})
    }

    /// Where its executables are.
    pub(crate) fn dir(&self, executables: &Executables) -> Result<PathBuf> {
        let dir = match self.whose {
            Whose::Ours => Some(executables.ours.as_path()),
            Whose::OursGlibc => executables.ours_glibc.as_deref(),
            Whose::Bare => executables.bare.parent(),
            Whose::Reference => Some(executables.reference.as_path()),
        };
        Ok(dir.with_context(|| format!("nothing was built for {}", self.name))?.to_owned())
    }
}

impl Subnets {
    fn all(&self) -> Vec<String> {
        let Self { number, dual } = *self;
        let mut all = vec![format!("10.{}.0.0/20", 16 + number)];
        if dual {
            all.push(format!("fd10:0:0:{number:x}::/64"));
        }
        all
    }

    /// What a node agent writes for the reference host-local; `routes` by family.
    fn reference_ipam(&self, routes: [&str; 2]) -> Value {
        let ranges: Vec<Value> = self.all().iter().map(|s| json!([{"subnet": s}])).collect();
        let routes = routes.into_iter().take(ranges.len());
        let routes: Vec<Value> = routes.map(|dst| json!({"dst": dst})).collect();
        json!({"type": "host-local", "ranges": ranges, "routes": routes})
    }
}

/// A node for each chain, all on one link.
pub(crate) fn topology(chains: &[Chain]) -> Result<Topology> {
    let mut topology = Topology { links: Vec::new(), hosts: Vec::new() };
    let v4 = |last: u8| IpNetwork::new(Ipv4Addr::new(192, 168, 1, last).into(), 24);
    let v6 = |last: u16| IpNetwork::new(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, last).into(), 64);
    let link = topology.add_link("net1", vec![v4(254)?, v6(254)?]);
    for chain in chains {
        let last = 1 + chain.number();
        let addresses = vec![v4(last)?, v6(last.into())?];
        topology.add_host(&chain.node(), link, addresses, Vec::new());
    }
    Ok(topology)
}
