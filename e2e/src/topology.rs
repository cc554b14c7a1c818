//! What a lab is made of, as plain data: physical links, nodes, addresses, pod ranges.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, ensure};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde_json::{Value, json};

/// Which address families something has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// Both.
    Both,
}

impl Families {
    /// Whether IPv4 is among them.
    pub fn v4(self) -> bool {
        self != Families::V6
    }

    /// Whether IPv6 is among them.
    pub fn v6(self) -> bool {
        self != Families::V4
    }

    fn select(self, networks: [IpNetwork; 2]) -> Vec<IpNetwork> {
        let wanted = |network: &IpNetwork| if network.is_ipv4() { self.v4() } else { self.v6() };
        networks.into_iter().filter(wanted).collect()
    }
}

/// One family, where a helper needs exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

/// A physical network. The router has an interface of the link's name on it.
#[derive(Clone, Debug)]
pub struct Link {
    /// Name, and that of the router's interface: at most 15 bytes.
    pub name: String,
    /// MTU of every interface on it, in bytes of IP packet.
    pub mtu: u32,
    /// The router's addresses on it, with the link's prefix length.
    pub router: Vec<IpNetwork>,
}

/// A host on a link: interface `eth0`, default routes via the router.
#[derive(Clone, Debug)]
pub struct Host {
    /// Name, also the host name: at most 63 bytes.
    pub name: String,
    /// Index into [`Topology::links`].
    pub link: usize,
    /// Addresses of `eth0`, with the link's prefix length.
    pub addresses: Vec<IpNetwork>,
    /// Pod ranges; a host that has none is no node: it is not in the node map.
    pub pod_ranges: Vec<IpNetwork>,
}

/// Links, the hosts on them, and one router that is on every link.
#[derive(Clone, Debug)]
pub struct Topology {
    /// The physical networks.
    pub links: Vec<Link>,
    /// Nodes, and hosts that are none.
    pub hosts: Vec<Host>,
}

/// How [`Topology::nodes`] spreads nodes over links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Every node on a physical network of its own.
    Own,
    /// So many nodes on each physical network, one after another.
    Shared(usize),
}

/// What a link carries unless a test says otherwise: Ethernet's 1500.
const MTU: u32 = 1500;

impl Topology {
    /// The lesson's: control-plane, worker1 and worker2 on 192.168.146.0/24, .211.0/24
    /// and .44.0/24, the router .129 on each, pod ranges 10.0.0.0/24 to 10.0.2.0/24.
    /// IPv6, where asked for, is fd00:146::/64 and so on with the same last numbers,
    /// and fd10:0:0:N::/64 for pods.
    pub fn lesson(underlay: Families, pods: Families) -> Topology {
        let nodes = [("control-plane", 146, 130), ("worker1", 211, 128), ("worker2", 44, 128)];
        let mut topology = Topology { links: Vec::new(), hosts: Vec::new() };
        for (index, (name, third, last)) in nodes.into_iter().enumerate() {
            let v4 = |last| v4([192, 168, third, last], 24);
            let v6 = |last| v6([0xfd00, hex(third.into()), 0, 0, 0, 0, 0, hex(last)], 64);
            let link =
                topology.add_link(&format!("net{third}"), underlay.select([v4(129), v6(129)]));
            let addresses = underlay.select([v4(last), v6(last.into())]);
            topology.add_host(name, link, addresses, pods.select(pod_ranges(index)));
        }
        topology
    }

    /// `count` (2 to 250) nodes `node1`… on 192.168.L.0/24 and fd00:L::/64 (L counts
    /// links from 1, the router has .254 and ::fe), pod ranges 10.0.N.0/24 and
    /// fd10:0:0:N::/64 with N from 1.
    pub fn nodes(count: usize, spread: Spread, underlay: Families, pods: Families) -> Topology {
        let mut topology = Topology { links: Vec::new(), hosts: Vec::new() };
        let each = match spread {
            Spread::Own => 1,
            Spread::Shared(each) => each.max(1),
        };
        for index in 0..count {
            let number = index / each + 1;
            let v4 = |last: usize| v4([192, 168, number as u8, last as u8], 24);
            let v6 = |last: usize| v6([0xfd00, number as u16, 0, 0, 0, 0, 0, last as u16], 64);
            if index % each == 0 {
                topology.add_link(&format!("net{number}"), underlay.select([v4(254), v6(254)]));
            }
            let last = index % each + 1;
            let addresses = underlay.select([v4(last), v6(last)]);
            let ranges = pods.select(pod_ranges(index + 1));
            topology.add_host(&format!("node{}", index + 1), number - 1, addresses, ranges);
        }
        topology
    }

    /// Adds `outside`, a host behind the router that is no node and knows nothing of
    /// pods: 203.0.113.2/24 and 2001:db8:113::2/64 on a link of its own.
    pub fn with_outside(mut self, families: Families) -> Topology {
        let v4 = |last| v4([203, 0, 113, last], 24);
        let v6 = |last| v6([0x2001, 0xdb8, 0x113, 0, 0, 0, 0, last], 64);
        let link = self.add_link("netout", families.select([v4(1), v6(1)]));
        self.add_host("outside", link, families.select([v4(2), v6(2)]), Vec::new());
        self
    }

    /// Sets the MTU of every link, in bytes of IP packet.
    pub fn with_mtu(mut self, mtu: u32) -> Topology {
        for link in &mut self.links {
            link.mtu = mtu;
        }
        self
    }

    /// Adds a link with the router's addresses on it; returns its index.
    pub fn add_link(&mut self, name: &str, router: Vec<IpNetwork>) -> usize {
        self.links.push(Link { name: name.to_string(), mtu: MTU, router });
        self.links.len() - 1
    }

    /// Adds a host to a link.
    pub fn add_host(
        &mut self,
        name: &str,
        link: usize,
        addresses: Vec<IpNetwork>,
        pod_ranges: Vec<IpNetwork>,
    ) {
        self.hosts.push(Host { name: name.to_string(), link, addresses, pod_ranges });
    }

    /// The node map of this topology: `{"nodes": [{name, addresses, podCIDRs}]}`.
    pub fn node_map(&self) -> Value {
        let nodes: Vec<Value> =
            self.hosts.iter().filter(|host| !host.pod_ranges.is_empty()).map(record).collect();
        json!({ "nodes": nodes })
    }

    pub(crate) fn check(&self) -> Result<()> {
        for link in &self.links {
            ensure!(link.name.len() <= 15, "link name {} is longer than 15 bytes", link.name);
        }
        for (index, host) in self.hosts.iter().enumerate() {
            ensure!(host.link < self.links.len(), "{} is on no link", host.name);
            let twin = self.hosts[..index].iter().any(|other| other.name == host.name);
            ensure!(!twin && host.name != "router", "two hosts are called {}", host.name);
        }
        Ok(())
    }

    pub(crate) fn on_link(&self, link: usize) -> impl Iterator<Item = (usize, &Host)> {
        self.hosts.iter().enumerate().filter(move |(_, host)| host.link == link)
    }
}

/// Prints the links and who is on each, as a person would draw it.
impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "router")?;
        for (number, link) in self.links.iter().enumerate() {
            let last = number + 1 == self.links.len();
            let (branch, stem) = if last { ('\u{2514}', ' ') } else { ('\u{251c}', '\u{2502}') };
            writeln!(
                f,
                " {branch}\u{2500} {:<12} {} mtu {}",
                link.name,
                join(&link.router),
                link.mtu
            )?;
            for (_, host) in self.on_link(number) {
                let pods = if host.pod_ranges.is_empty() { "not a node" } else { "pods" };
                let (own, ranges) = (join(&host.addresses), join(&host.pod_ranges));
                writeln!(f, " {stem}     {:<14} {own}  {pods} {ranges}", host.name)?;
            }
        }
        Ok(())
    }
}

fn join(networks: &[IpNetwork]) -> String {
    let texts: Vec<String> = networks.iter().map(IpNetwork::to_string).collect();
    texts.join(" ")
}

/// A host's record in the node map.
fn record(host: &Host) -> Value {
    let addresses: Vec<String> = host.addresses.iter().map(|net| net.ip().to_string()).collect();
    let ranges: Vec<String> = host.pod_ranges.iter().map(IpNetwork::to_string).collect();
    json!({ "name": host.name, "addresses": addresses, "podCIDRs": ranges })
}

fn pod_ranges(number: usize) -> [IpNetwork; 2] {
    [v4([10, 0, number as u8, 0], 24), v6([0xfd10, 0, 0, number as u16, 0, 0, 0, 0], 64)]
}

/// The 16 bits that print in hexadecimal as `number` does in decimal: 146 is 0x146.
fn hex(number: u16) -> u16 {
    number / 100 * 0x100 + number / 10 % 10 * 0x10 + number % 10
}

fn v4(octets: [u8; 4], prefix: u8) -> IpNetwork {
    let network = Ipv4Network::new(Ipv4Addr::from(octets), prefix);
    IpNetwork::V4(network.expect("the prefix length is a constant of this file"))
}

fn v6(segments: [u16; 8], prefix: u8) -> IpNetwork {
    let network = Ipv6Network::new(Ipv6Addr::from(segments), prefix);
    IpNetwork::V6(network.expect("the prefix length is a constant of this file"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lesson_is_the_documented_one() {
        let map = Topology::lesson(Families::V4, Families::V4).node_map();
        let expected = json!({ "nodes": [
            { "name": "control-plane", "addresses": ["192.168.146.130"], "podCIDRs": ["10.0.0.0/24"] },
            { "name": "worker1", "addresses": ["192.168.211.128"], "podCIDRs": ["10.0.1.0/24"] },
            { "name": "worker2", "addresses": ["192.168.44.128"], "podCIDRs": ["10.0.2.0/24"] } ] });
        assert_eq!(map, expected);
        let dual = Topology::lesson(Families::Both, Families::Both).node_map();
        assert_eq!(dual["nodes"][0]["addresses"][1], "fd00:146::130");
        assert_eq!(dual["nodes"][2]["podCIDRs"][1], "fd10:0:0:2::/64");
    }

    #[test]
    fn shared_links_fill_up_one_after_another() {
        let topology = Topology::nodes(5, Spread::Shared(2), Families::V4, Families::V4);
        let links: Vec<usize> = topology.hosts.iter().map(|host| host.link).collect();
        assert_eq!(links, [0, 0, 1, 1, 2]);
        assert_eq!(topology.hosts[3].addresses[0].to_string(), "192.168.2.2/24");
        topology.check().expect("a generated topology is valid");
    }
}
