//! Every mode with every family of pods: which way packets go, which address is seen,
//! how large they may be. Reverse path filtering is strict everywhere.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result};
use e2e::{
    Capture, Cluster, Daemon, Families, Family, Frame, PingOptions, Place, Pod, Spread, Topology,
};
use serde_json::{Value, json};

use crate::look::{assert_no_source_was_refused, echoes, frames, inner, link, mtu, tunnel_ends};
use crate::{assert_ping, conflist, pinged, pod_network};

/// How the router knows the ways to pods.
enum Learns {
    /// Static routes, to these nodes' ranges.
    Static(&'static [&'static str]),
    /// BGP, as `weft export` prints it for this daemon.
    Bgp(Daemon),
}

/// A mode as node1 has it with its peers node2 and node3.
struct Mode {
    spread: Spread,
    /// Whether the physical network has the families of the pods and no other.
    pure: bool,
    routing: Value,
    /// Outside of the tunnel.
    outer: Family,
    /// Whether node2's and node3's pods are reached natively.
    native: [bool; 2],
    router: Learns,
    /// MTU of pods, and of what they send through the tunnel.
    mtu: [u32; 2],
}

fn tunnel() -> Mode {
    Mode {
        spread: Spread::Own,
        pure: false,
        routing: json!({}),
        outer: Family::V4,
        native: [false, false],
        router: Learns::Static(&[]),
        mtu: [1450, 1450],
    }
}

fn tunnel_over_ipv6() -> Mode {
    let routing = json!({ "underlayFamily": "ipv6" });
    Mode { routing, outer: Family::V6, mtu: [1430, 1430], ..tunnel() }
}

fn native() -> Mode {
    Mode {
        routing: json!({
            "routingMode": "native",
            "ipv4NativeRoutingCIDR": "10.0.0.0/8", "ipv6NativeRoutingCIDR": "fd10::/16",
        }),
        native: [true, true],
        pure: true,
        router: Learns::Static(&NODES),
        mtu: [1500, 1450],
        ..tunnel()
    }
}

fn native_with_bird() -> Mode {
    Mode { router: Learns::Bgp(Daemon::Bird), ..native() }
}

fn native_with_frr() -> Mode {
    Mode { router: Learns::Bgp(Daemon::Frr), ..native() }
}

fn hybrid_on_a_shared_link() -> Mode {
    let links = ["192.168.1.0/24", "192.168.2.0/24", "fd00:1::/64", "fd00:2::/64"];
    Mode {
        spread: Spread::Shared(2),
        routing: json!({ "routingMode": "hybrid", "links": links }),
        native: [true, false],
        mtu: [1500, 1450],
        ..tunnel()
    }
}

fn hybrid_by_cidr() -> Mode {
    Mode {
        routing: json!({
            "routingMode": "hybrid",
            "ipv4NativeRoutingCIDR": ["10.0.1.0/24", "10.0.2.0/24"],
            "ipv6NativeRoutingCIDR": ["fd10:0:0:1::/64", "fd10:0:0:2::/64"],
        }),
        native: [true, false],
        router: Learns::Static(&["node1", "node2"]),
        mtu: [1500, 1450],
        ..tunnel()
    }
}

/// How a packet shows on node1's `eth0`.
enum Way {
    /// Bare; on a shared link, addressed to this node's MAC.
    Bare(Option<&'static str>),
    /// In the tunnel to this node.
    Tunnel(&'static str),
}

/// One ping, known in the captures by its size, and what is expected of it.
struct Flow {
    what: String,
    size: u32,
    /// Whether node1 sends the request.
    outgoing: bool,
    way: Way,
    /// Where its arrival is captured.
    at: &'static str,
    /// The source that is seen there.
    source: IpAddr,
    destination: IpAddr,
}

/// A cluster in one mode, with a pod on each node, being watched.
struct Cell {
    mode: Mode,
    cluster: Cluster,
    pods: Vec<Pod>,
    captures: BTreeMap<&'static str, Capture>,
    flows: Vec<Flow>,
}

const NODES: [&str; 3] = ["node1", "node2", "node3"];
const PODS: [&str; 3] = ["pod1", "pod2", "pod3"];
const ECHOES: &str = "icmp or icmp6 or udp port 8472";

impl Cell {
    fn start(mode: Mode, pods: Families) -> Result<Cell> {
        let underlay = if mode.pure { pods } else { Families::Both };
        let topology = Topology::nodes(3, mode.spread, underlay, pods).with_outside(underlay);
        let cluster = Cluster::start(topology, &conflist(mode.routing.clone()))?;
        cluster.set_rp_filter("1")?;
        match mode.router {
            Learns::Static(nodes) => nodes.iter().try_for_each(|node| cluster.route_to(node))?,
            Learns::Bgp(daemon) => cluster.start_bgp(daemon)?,
        }
        let pods = NODES.into_iter().zip(PODS).map(|(node, pod)| cluster.pod(node, pod));
        let pods = pods.collect::<Result<Vec<Pod>>>()?;
        let mut cell = Cell { mode, cluster, pods, captures: BTreeMap::new(), flows: Vec::new() };
        for (name, place) in cell.places()? {
            cell.captures.insert(name, place.capture("eth0", ECHOES)?);
        }
        Ok(cell)
    }

    /// Where captures run.
    fn places(&self) -> Result<Vec<(&'static str, Place)>> {
        let mut places = Vec::new();
        for name in NODES.into_iter().chain(["outside"]) {
            places.push((name, Place::clone(self.cluster.node(name)?)));
        }
        places.extend(PODS.into_iter().zip(self.pods.iter().map(|pod| Place::clone(pod))));
        Ok(places)
    }

    /// Sends one ping of a size of its own and notes what is expected of it.
    fn ping(&mut self, from: &Place, mut flow: Flow) -> Result<()> {
        flow.size = 100 + self.flows.len() as u32;
        let options = PingOptions { size: flow.size, ..PingOptions::default() };
        assert_ping(from, flow.destination, options).context(flow.what.clone())?;
        self.flows.push(flow);
        Ok(())
    }

    fn is_native(&self, peer: usize) -> bool {
        self.mode.native[peer - 1]
    }

    fn way(&self, peer: usize) -> Way {
        let shared = self.mode.spread != Spread::Own;
        match self.is_native(peer) {
            true => Way::Bare(Some(NODES[peer]).filter(|_| shared)),
            false => Way::Tunnel(NODES[peer]),
        }
    }

    fn family(&mut self, family: Family) -> Result<()> {
        let node1 = self.cluster.node("node1")?.clone();
        let node_address = node1.address(family)?;
        let pod1 = self.pods[0].clone();
        let pod_address = pod1.addr(family)?;
        for peer in [1, 2] {
            let other_pod = self.pods[peer].addr(family)?;
            let other_node = self.cluster.node(NODES[peer])?.address(family)?;
            let flow = |what: &str, at, way, source, destination| Flow {
                what: format!("{family:?} {what} of {}", NODES[peer]),
                size: 0,
                outgoing: true,
                way,
                at,
                source,
                destination,
            };
            let to_pod = flow("pod to pod", PODS[peer], self.way(peer), pod_address, other_pod);
            self.ping(&pod1, to_pod)?;
            let bare = Way::Bare(None);
            let to_node = flow("pod to node", NODES[peer], bare, node_address, other_node);
            self.ping(&pod1, to_node)?;
            let native = self.is_native(peer);
            let own = if native { node_address } else { pod_network(&node1, family)? };
            let from_node = flow("node to pod", PODS[peer], self.way(peer), own, other_pod);
            self.ping(&node1, from_node)?;
            let most = self.mode.mtu[usize::from(!native)];
            full_size(&pod1, other_pod, most)?;
            full_size(&pod1, other_node, self.mode.mtu[0])?;
            full_size(&node1, other_pod, most)?;
        }
        self.outside(family)
    }

    /// Both directions with a host outside, the second with a route on the router.
    fn outside(&mut self, family: Family) -> Result<()> {
        let node_address = self.cluster.node("node1")?.address(family)?;
        let outside = self.cluster.node("outside")?.clone();
        let outside_address = outside.address(family)?;
        let pod1 = self.pods[0].clone();
        let out = Flow {
            what: format!("{family:?} pod to outside"),
            size: 0,
            outgoing: true,
            way: Way::Bare(None),
            at: "outside",
            source: node_address,
            destination: outside_address,
        };
        self.ping(&pod1, out)?;
        if matches!(self.mode.router, Learns::Static(nodes) if !nodes.contains(&"node1")) {
            let range = self.cluster.node("node1")?.pod_range(family)?;
            let route = format!("route add {range} via {node_address}\n");
            self.cluster.lab().router().ip_batch(&route)?;
        }
        let inbound = Flow {
            what: format!("{family:?} outside to pod"),
            size: 0,
            outgoing: false,
            way: Way::Bare(None),
            at: "pod1",
            source: outside_address,
            destination: pod1.addr(family)?,
        };
        self.ping(&outside, inbound)?;
        full_size(&outside, pod1.addr(family)?, self.mode.mtu[0])?;
        full_size(&pod1, outside_address, self.mode.mtu[0])
    }

    /// Compares the captures with what was expected.
    fn verify(mut self) -> Result<()> {
        let mut captured = BTreeMap::new();
        for (name, capture) in std::mem::take(&mut self.captures) {
            captured.insert(name, frames(capture)?);
        }
        self.flows.iter().try_for_each(|flow| self.verify_flow(flow, &captured))?;
        assert_no_source_was_refused(&self.cluster)
    }

    fn verify_flow(&self, flow: &Flow, captured: &BTreeMap<&str, Vec<Frame>>) -> Result<()> {
        let what = &flow.what;
        let arrived = echoes(&captured[flow.at], true, flow.size);
        assert_eq!(arrived.len(), 1, "{what}: requests at {}", flow.at);
        let ip = inner(arrived[0]);
        assert_eq!((ip.source, ip.destination), (flow.source, flow.destination), "{what}");
        for request in [true, false] {
            let passed = echoes(&captured["node1"], request, flow.size);
            assert_eq!(passed.len(), 1, "{what}: on node1's eth0, request: {request}");
            self.verify_way(flow, passed[0], request == flow.outgoing)?;
        }
        Ok(())
    }

    fn verify_way(&self, flow: &Flow, frame: &Frame, outgoing: bool) -> Result<()> {
        let what = &flow.what;
        let bare = 14 + if flow.destination.is_ipv4() { 20 } else { 40 } + 8 + flow.size;
        let around = match (&flow.way, self.mode.outer) {
            (Way::Bare(_), _) => 0,
            (Way::Tunnel(_), Family::V4) => 50,
            (Way::Tunnel(_), Family::V6) => 70,
        };
        assert_eq!(frame.length, (bare + around) as usize, "{what}: {frame}");
        match flow.way {
            Way::Tunnel(peer) => {
                let own = self.cluster.node("node1")?.address(self.mode.outer)?;
                let other = self.cluster.node(peer)?.address(self.mode.outer)?;
                let ends = if outgoing { (own, other) } else { (other, own) };
                assert_eq!(tunnel_ends(frame), Some(ends), "{what}: {frame}");
            }
            Way::Bare(neighbour) => {
                assert!(frame.vxlan().is_none(), "{what}: {frame}");
                if let Some(peer) = neighbour {
                    let mac = link(self.cluster.node(peer)?, "eth0")?["address"].clone();
                    let far = if outgoing { frame.destination } else { frame.source };
                    assert_eq!(mac, far.to_string(), "{what}: not straight: {frame}");
                }
            }
        }
        Ok(())
    }
}

/// The largest packet passes, and one byte more is refused, by who sends it or an
/// error on the way.
fn full_size(from: &Place, to: IpAddr, most: u32) -> Result<()> {
    assert_ping(from, to, PingOptions::exact(most, to))?;
    let result = pinged(from, to, PingOptions::exact(most + 1, to))?;
    assert!(result.too_big(), "{most} bytes and one: {}", result.output);
    Ok(())
}

/// A test's whole body.
fn works(mode: Mode, pods: Families) -> Result<()> {
    e2e::needs_lab!();
    match mode.router {
        Learns::Bgp(Daemon::Bird) => e2e::needs_lab!("bird"),
        Learns::Bgp(Daemon::Frr) => e2e::needs_lab!("vtysh", "/usr/lib/frr/bgpd"),
        Learns::Static(_) => {}
    }
    let mut cell = Cell::start(mode, pods)?;
    for pod in &cell.pods {
        assert_eq!(mtu(pod, "eth0")?, u64::from(cell.mode.mtu[0]), "{}", pod.name());
    }
    for family in [Family::V4, Family::V6] {
        if (family == Family::V4 && pods.v4()) || (family == Family::V6 && pods.v6()) {
            cell.family(family)?;
        }
    }
    cell.verify()
}

macro_rules! matrix {
    ($($mode:ident)*) => {$(
        mod $mode {
            #[test]
            fn ipv4() -> anyhow::Result<()> {
                super::works(super::$mode(), e2e::Families::V4)
            }

            #[test]
            fn ipv6() -> anyhow::Result<()> {
                super::works(super::$mode(), e2e::Families::V6)
            }

            #[test]
            fn dual() -> anyhow::Result<()> {
                super::works(super::$mode(), e2e::Families::Both)
            }
        }
    )*};
}

matrix!(
    tunnel tunnel_over_ipv6
    native native_with_bird native_with_frr
    hybrid_on_a_shared_link hybrid_by_cidr
);
