//! A running lab: its nodes, its router, and the physical networks between them.

use std::fmt::Write;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, ensure};
use ipnetwork::IpNetwork;
use serde_json::Value;

use crate::holder::Holder;
use crate::place::Place;
use crate::pod::Pod;
use crate::topology::{Families, Family, Host, Topology};

/// The router's name, as a place and as its host name.
const ROUTER: &str = "router";

/// The shell's part of [`Lab::reboot`]. The boot ID is a file of the node's own, bound
/// over the kernel's; its content is a fresh UUID of the kernel's.
const REBOOT: &str = r"
for path in /run/netns/*; do umount -n $path 2>/dev/null || true; done
find /run -mindepth 1 -xdev ! -path '/run/.lab*' ! -path /run/netns ! -path /run/lock -delete
for link in $(ip -o link show | sed -n 's/^[0-9]*: \([^:@]*\).*/\1/p'); do
    case $link in lo|eth0) ;; *) ip link del $link 2>/dev/null || true ;; esac
done
nft flush ruleset
ip link set eth0 down
ip address flush dev eth0
ip address flush dev lo
for family in -4 -6; do
    ip $family route flush table all 2>/dev/null || true
    ip $family rule flush
done
ip link set lo down
ip nexthop flush >/dev/null
ip rule add pref 32766 table main
ip rule add pref 32767 table default
ip -6 rule add pref 32766 table main
echo 0 >/proc/sys/net/ipv4/ip_forward
echo 0 >/proc/sys/net/ipv6/conf/all/forwarding
umount -n /proc/sys/kernel/random/boot_id 2>/dev/null || true
cat /proc/sys/kernel/random/uuid >/run/boot_id
mount -n --bind /run/boot_id /proc/sys/kernel/random/boot_id
";

/// Where the node map is in each node's mount view.
pub const NODE_MAP: &str = "/etc/weft/nodes.d/nodes.json";

/// Nodes, a router and the networks between them, in namespaces that end with this value.
#[derive(Debug)]
pub struct Lab {
    topology: Topology,
    router: Place,
    switch: Place,
    nodes: Vec<Node>,
}

/// A host of the lab: a [`Place`] with addresses, a pod range and pods.
#[derive(Clone, Debug)]
pub struct Node {
    place: Place,
    host: Host,
}

impl Deref for Node {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl Lab {
    /// The lesson's topology with IPv4 alone: [`Topology::lesson`].
    pub fn lesson() -> Result<Lab> {
        Lab::start(Topology::lesson(Families::V4, Families::V4))
    }

    /// The lesson's topology with both families, outside and inside.
    pub fn lesson_dual() -> Result<Lab> {
        Lab::start(Topology::lesson(Families::Both, Families::Both))
    }

    /// Starts a lab: when this returns every node reaches every other through the
    /// router, which forwards and knows the physical networks alone, and the node map
    /// is at [`NODE_MAP`] on every host.
    pub fn start(topology: Topology) -> Result<Lab> {
        topology.check()?;
        let mut names: Vec<&str> = topology.hosts.iter().map(|host| host.name.as_str()).collect();
        names.push(ROUTER);
        let (holder, pids) = Holder::start(&names)?;
        let holder = Arc::new(holder);
        let place = |name: &str| -> Result<Place> {
            let pid = *pids.get(name).with_context(|| format!("{name} did not start"))?;
            Ok(Place::of_process(name, &holder, pid))
        };
        let nodes = topology
            .hosts
            .iter()
            .map(|host| place(&host.name).map(|place| Node { place, host: host.clone() }));
        let nodes = nodes.collect::<Result<Vec<Node>>>()?;
        let switch = Place::of_process("switch", &holder, 1);
        let lab = Lab { router: place(ROUTER)?, switch, nodes, topology };
        let host_pids: Vec<u32> = lab.nodes.iter().map(|node| pids[node.name()]).collect();
        lab.cable(pids[ROUTER], &host_pids)?;
        lab.configure_router()?;
        lab.each_node(Node::configure_of(&lab.topology))?;
        lab.router.wait_links()?;
        lab.switch.wait_links()?;
        lab.write_node_map(&lab.topology.node_map())?;
        Ok(lab)
    }

    /// All hosts, in the topology's order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A host by name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        let named = self.nodes.iter().find(|node| node.name() == name);
        named.with_context(|| format!("no node is called {name}"))
    }

    /// The router; its interface on a link has the link's name.
    pub fn router(&self) -> &Place {
        &self.router
    }

    /// Where the bridges of links with more than one host are, each named as its
    /// link; taking a port `h0`, `h1`… (by the host's index) down pulls that host's cable.
    pub fn switch(&self) -> &Place {
        &self.switch
    }

    /// What the lab was made from.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Replaces the node map on every host, by rename.
    pub fn write_node_map(&self, map: &Value) -> Result<()> {
        let text = format!("{map:#}\n");
        self.nodes.iter().try_for_each(|node| node.write_file(NODE_MAP, &text))
    }

    /// Runs `work` for every host, on as many threads as the machine has processors.
    pub fn each_node(&self, work: impl Fn(&Node) -> Result<()> + Sync) -> Result<()> {
        let threads = thread::available_parallelism().map_or(2, usize::from);
        let share = self.nodes.len().div_ceil(threads).max(1);
        let work = &work;
        thread::scope(|scope| {
            let some = |nodes: &'_ [Node]| nodes.iter().try_for_each(work);
            let chunks = self.nodes.chunks(share);
            let running: Vec<_> = chunks.map(|nodes| scope.spawn(move || some(nodes))).collect();
            running.into_iter().try_for_each(|thread| match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })
    }

    /// Pulls a host's cable (`false`) or plugs it in again: `eth0` stays up and loses its
    /// carrier; plugged in, it has it again when this returns. Where the host is alone on its link, the router's interface goes down
    /// instead and loses the routes that were added by way of it.
    pub fn set_cable(&self, node: &Node, plugged: bool) -> Result<()> {
        let index = self.topology.hosts.iter().position(|host| host.name == node.name());
        let index = index.with_context(|| format!("{} is not in this lab", node.name()))?;
        let link = node.host.link;
        let alone = self.topology.on_link(link).count() == 1;
        let (place, port) = if alone {
            (&self.router, self.topology.links[link].name.clone())
        } else {
            (&self.switch, format!("h{index}"))
        };
        let state = if plugged { "up" } else { "down" };
        place.run_ok(&["ip", "link", "set", &port, state])?;
        if plugged {
            place.wait_links()?;
            node.wait_link("eth0")?;
        }
        Ok(())
    }

    /// What a reboot leaves of a node: its disk (/etc, /var/lib) and its network as the
    /// topology has it. Gone are pods, every other link, address, route, rule and
    /// nf_tables table, and /run; forwarding is off and the boot ID
    /// (`/proc/sys/kernel/random/boot_id`) another one. Processes go on; end them first.
    pub fn reboot(&self, node: &Node) -> Result<()> {
        node.sh(REBOOT)?;
        Node::configure_of(&self.topology)(node)?;
        self.router.wait_links()?;
        self.switch.wait_links()
    }

    /// Connects hosts and router: a veth pair where a link has one host, else a bridge.
    fn cable(&self, router: u32, hosts: &[u32]) -> Result<()> {
        let mut batch = String::new();
        for (number, link) in self.topology.links.iter().enumerate() {
            let on_link: Vec<usize> =
                self.topology.on_link(number).map(|(index, _)| index).collect();
            let (name, mtu) = (&link.name, link.mtu);
            let router_end =
                format!("name {name} mtu {mtu} address {} netns {router}", mac(2, number));
            let host_end = |index: usize| {
                format!("name eth0 mtu {mtu} address {} netns {}", mac(1, index), hosts[index])
            };
            if let [only] = on_link[..] {
                writeln!(batch, "link add {} type veth peer {router_end}", host_end(only))?;
                continue;
            }
            writeln!(batch, "link add {name} mtu {mtu} type bridge mcast_snooping 0")?;
            let ends = on_link.iter().map(|index| (format!("h{index}"), host_end(*index)));
            for (port, end) in ends.chain([(format!("r{number}"), router_end)]) {
                writeln!(batch, "link add {port} mtu {mtu} type veth peer {end}")?;
                writeln!(batch, "link set {port} master {name} up")?;
            }
            writeln!(batch, "link set {name} up")?;
        }
        // The switch has no business with IP: no address of its own, no solicitations.
        self.switch.set_sysctls(&[("net/ipv6/conf/default/disable_ipv6", "1")])?;
        self.switch.ip_batch(&batch)
    }

    fn configure_router(&self) -> Result<()> {
        let mut script = String::from(
            "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding\n",
        );
        let mut batch = String::from("link set lo up\n");
        for link in &self.topology.links {
            script.push_str(&no_dad(&link.name));
            // The router keeps its IPv6 addresses when a cable is pulled.
            writeln!(script, "echo 1 >/proc/sys/net/ipv6/conf/{}/keep_addr_on_down", link.name)?;
            writeln!(batch, "link set {} up", link.name)?;
            batch.push_str(&add_addresses(&link.name, &link.router));
        }
        self.router.sh(&with_batch(&script, &batch)).map(drop)
    }
}

impl Node {
    /// Its addresses, prefix lengths and pod ranges as the topology gave them.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its first address of a family on `eth0`.
    pub fn address(&self, family: Family) -> Result<IpAddr> {
        let mut addresses = self.host.addresses.iter().map(IpNetwork::ip);
        let address = addresses.find(|address| Family::of(*address) == family);
        address.with_context(|| format!("{} has no {family:?} address", self.name()))
    }

    /// Makes a pod: a network namespace bound at `/run/netns/NAME` in this node's
    /// mount view, with nothing in it but a `lo` that is down, as container runtimes do.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        Pod::create(&self.place, name)
    }

    fn configure_of(topology: &Topology) -> impl Fn(&Node) -> Result<()> + Sync + '_ {
        |node| {
            let router = &topology.links[node.host.link].router;
            ensure!(!router.is_empty(), "the router has no address on {}'s link", node.name());
            let mut batch = String::from("link set lo up\nlink set eth0 up\n");
            batch.push_str(&add_addresses("eth0", &node.host.addresses));
            for gateway in router {
                if node.host.addresses.iter().any(|own| own.is_ipv4() == gateway.is_ipv4()) {
                    writeln!(batch, "route add default via {}", gateway.ip())?;
                }
            }
            node.place.sh(&with_batch(&no_dad("eth0"), &batch))?;
            node.place.wait_links()
        }
    }
}

/// Shell: no duplicate address detection on a physical interface that is still down.
/// Neighbour discovery for a forwarded packet uses the link-local address, which
/// detection would keep from use for the lab's first two seconds.
fn no_dad(device: &str) -> String {
    format!("echo 0 >/proc/sys/net/ipv6/conf/{device}/accept_dad\n")
}

/// A shell script that ends with a batch for `ip`: one process instead of two.
fn with_batch(script: &str, batch: &str) -> String {
    format!("{script}exec ip -batch - <<'END'\n{batch}END\n")
}

/// Batch lines that add addresses; IPv6 without duplicate address detection, which
/// would keep an address unusable for a second.
fn add_addresses(device: &str, addresses: &[IpNetwork]) -> String {
    let line = |network: &IpNetwork| {
        let nodad = if network.is_ipv6() { " nodad" } else { "" };
        format!("address add {network} dev {device}{nodad}\n")
    };
    addresses.iter().map(line).collect()
}

/// A locally administered MAC that tells whose it is: 1 a host's, 2 the router's.
fn mac(kind: u8, index: usize) -> String {
    format!("02:00:00:{kind:02x}:{:02x}:{:02x}", index >> 8, index & 0xff)
}
