//! Two nodes on one link, and a pod on each, in every layout that is compared.

use std::net::IpAddr;

use anyhow::{Context, Result};
use e2e::{
    Cluster, Families, Family, Lab, Node, Place, Pod, Spread, Topology, conf, with_routing_keys,
};
use serde_json::{Value, json};

/// How the two ends are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Node to node.
    Hosts,
    /// By hand: what `veth` and native routing come to, and nothing else.
    Routed,
    /// weft in native mode.
    Native,
    /// weft in tunnel mode.
    Tunnel,
    /// By hand: what flannel comes to.
    Flannel,
    /// weft with one thing changed.
    With(Mode, Change),
}

/// `routingMode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Native,
    Tunnel,
}

/// What is not as by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    NoSpoofCheck,
    NoMasquerade,
    NoRules,
    NoPeerGuard,
    Tracked,
    Gro,
    Steered,
    LongSegments,
    NoChecksumOffload,
    FewSourcePorts,
}

/// A layout, built: traffic goes `from` an end `to` the other, at its address.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) from: Place,
    pub(super) to: Place,
    pub(super) address: IpAddr,
    /// Ends with this value.
    _lab: Kept,
}

#[derive(Debug)]
enum Kept {
    Lab { _lab: Lab },
    Cluster { _cluster: Cluster },
}

/// Shell: a pod by a veth pair and host routes, as weft's `veth` makes it, with
/// nothing else. $POD is its namespace, $ADDRESS its address.
const ROUTED_POD: &str = "
ip link add pod0 type veth peer name eth0 netns $POD
ip link set pod0 up
ip route add $ADDRESS dev pod0
echo 1 >/proc/sys/net/ipv4/conf/pod0/proxy_arp
echo 1 >/proc/sys/net/ipv4/ip_forward
ip -n $POD link set eth0 up
ip -n $POD address add $ADDRESS/32 dev eth0
ip -n $POD route add 169.254.1.1 dev eth0
ip -n $POD route add default via 169.254.1.1
";

/// Shell: a node as flanneld (backend vxlan, its defaults) and the plugin `flannel` with
/// `bridge` behind it leave it. $OWN and $PEER are the nodes' pod networks without the
/// last number, $HOST and $PEER_HOST their addresses, $MAC and $PEER_MAC their devices'.
const FLANNEL_NODE: &str = "
echo 1 >/proc/sys/net/ipv4/ip_forward
ip link add flannel.1 address $MAC mtu 1450 type vxlan id 1 dev eth0 local $HOST dstport 8472 nolearning
ip address add $OWN.0/32 dev flannel.1
ip link set flannel.1 up
ip neigh add $PEER.0 lladdr $PEER_MAC dev flannel.1 nud permanent
bridge fdb add $PEER_MAC dev flannel.1 dst $PEER_HOST self permanent
ip route add $PEER.0/24 via $PEER.0 dev flannel.1 onlink
ip link add cni0 mtu 1450 type bridge
ip address add $OWN.1/24 dev cni0
ip link set cni0 up
ip link add pod0 mtu 1450 type veth peer name eth0 mtu 1450 netns $POD
ip link set pod0 master cni0 up
bridge link set dev pod0 hairpin on
ip -n $POD link set eth0 up
ip -n $POD address add $ADDRESS/24 dev eth0
ip -n $POD route add 10.0.0.0/16 via $OWN.1
ip -n $POD route add default via $OWN.1
iptables -N FLANNEL-FWD
iptables -A FORWARD -j FLANNEL-FWD
iptables -A FLANNEL-FWD -s 10.0.0.0/16 -j ACCEPT
iptables -A FLANNEL-FWD -d 10.0.0.0/16 -j ACCEPT
iptables -t nat -N FLANNEL-POSTRTG
iptables -t nat -A POSTROUTING -j FLANNEL-POSTRTG
iptables -t nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN
iptables -t nat -A FLANNEL-POSTRTG -s $OWN.0/24 -d 10.0.0.0/16 -j RETURN
iptables -t nat -A FLANNEL-POSTRTG -s 10.0.0.0/16 -d $OWN.0/24 -j RETURN
iptables -t nat -A FLANNEL-POSTRTG ! -s 10.0.0.0/16 -d $OWN.0/24 -j RETURN
iptables -t nat -A FLANNEL-POSTRTG -s 10.0.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully
iptables -t nat -A FLANNEL-POSTRTG ! -s 10.0.0.0/16 -d 10.0.0.0/16 -j MASQUERADE --random-fully
";

impl Mode {
    fn word(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Tunnel => "tunnel",
        }
    }
}

impl Layout {
    /// Its name in tables.
    pub(super) fn name(self) -> String {
        match self {
            Self::Hosts => "host to host".to_owned(),
            Self::Routed => "plain veth, routed".to_owned(),
            Self::Native => "weft, native".to_owned(),
            Self::Tunnel => "weft, tunnel".to_owned(),
            Self::Flannel => "flannel's layout".to_owned(),
            Self::With(mode, change) => format!("{}, {}", mode.word(), change.about()),
        }
    }

    /// What it is, for the legend; nothing where the name says it.
    pub(super) fn about(self) -> Option<&'static str> {
        match self {
            Self::Hosts => Some("node to node, no pods"),
            Self::Routed => Some(
                "a veth pair, a route for each pod, a route to the other node's range; no nf_tables",
            ),
            Self::Native => Some("`routingMode` `native`, everything else by default"),
            Self::Tunnel => Some("everything by default"),
            Self::Flannel => Some(
                "bridge, veth with hairpin, VXLAN device, entries and iptables rules as flannel's vxlan backend makes them",
            ),
            Self::With(..) => None,
        }
    }

    /// weft's mode, and what is changed.
    fn weft(self) -> Option<(Mode, Option<Change>)> {
        match self {
            Self::Native => Some((Mode::Native, None)),
            Self::Tunnel => Some((Mode::Tunnel, None)),
            Self::With(mode, change) => Some((mode, Some(change))),
            Self::Hosts | Self::Routed | Self::Flannel => None,
        }
    }
}

impl Change {
    fn about(self) -> &'static str {
        match self {
            Self::NoSpoofCheck => "`spoofCheck` false",
            Self::NoMasquerade => "`ipMasq` false",
            Self::NoRules => "`ipMasq` and `spoofCheck` false",
            Self::NoPeerGuard => "`peerGuard` false",
            Self::Tracked => "`noTrack` false",
            Self::Gro => "GRO on for every veth",
            Self::Steered => "pods' packets to any core (RPS)",
            Self::LongSegments => "GSO and GRO to 192 KiB",
            Self::NoChecksumOffload => "no checksum offload on the device",
            Self::FewSourcePorts => "8 source ports",
        }
    }

    /// Keys of `routing`, and of `veth`.
    fn keys(self) -> (Value, Value) {
        match self {
            Self::NoSpoofCheck => (json!({}), json!({ "spoofCheck": false })),
            Self::NoMasquerade => (json!({ "ipMasq": false }), json!({})),
            Self::NoRules => (json!({ "ipMasq": false }), json!({ "spoofCheck": false })),
            Self::NoPeerGuard => (json!({ "peerGuard": false }), json!({})),
            Self::Tracked => (json!({ "noTrack": false }), json!({})),
            Self::FewSourcePorts => (json!({ "tunnelSourcePortRange": "50000-50007" }), json!({})),
            Self::Gro | Self::Steered | Self::LongSegments | Self::NoChecksumOffload => {
                (json!({}), json!({}))
            }
        }
    }

    /// Shell run on each node and in its pod once all is there. $THIS is this executable.
    fn touch(self) -> &'static str {
        match self {
            Self::Gro => {
                "for device in $(ip -o link show type veth | sed -n 's/^[0-9]*: \\([^:@]*\\).*/\\1/p'); do
                     ethtool -K $device gro on
                 done"
            }
            // networking/scaling.rst of the kernel. /sys shows the namespace of who mounted it.
            Self::Steered => {
                "unshare --mount sh -ec '
                     mount -t sysfs sysfs /sys
                     for queue in /sys/class/net/veth*/queues/rx-*; do
                         [ ! -e $queue ] || echo 3 >$queue/rps_cpus
                     done'"
            }
            Self::LongSegments => "$THIS peer segments 196608",
            Self::NoChecksumOffload => {
                "! ip link show weft.1 2>/dev/null >&2 || ethtool -K weft.1 tx-checksum-ip-generic off >&2"
            }
            _ => "",
        }
    }
}

impl Stage {
    /// Builds a layout in a lab of its own.
    pub(super) fn start(layout: Layout) -> Result<Stage> {
        let topology = Topology::nodes(2, Spread::Shared(2), Families::V4, Families::V4);
        let lab = Lab::start(topology)?;
        match (layout, layout.weft()) {
            (_, Some((mode, change))) => Stage::weft(lab, mode, change),
            (Layout::Hosts, None) => Stage::hosts(lab),
            (_, None) => Stage::by_hand(lab, layout),
        }
    }

    fn hosts(lab: Lab) -> Result<Stage> {
        let [from, to] = two(&lab)?;
        let address = to.address(Family::V4)?;
        let (from, to): (Place, Place) = ((**from).clone(), (**to).clone());
        Ok(Stage { from, to, address, _lab: Kept::Lab { _lab: lab } })
    }

    fn by_hand(lab: Lab, layout: Layout) -> Result<Stage> {
        let nodes = two(&lab)?;
        let mut pods = Vec::new();
        for (node, peer) in [(nodes[0], nodes[1]), (nodes[1], nodes[0])] {
            let pod = node.pod("pod")?;
            pod.lo_up()?;
            let (own, other) = (network(node)?, network(peer)?);
            let (host, peer_host) = (node.address(Family::V4)?, peer.address(Family::V4)?);
            let variables = format!(
                "POD=pod ADDRESS={own}.2 OWN={own} PEER={other} HOST={host} PEER_HOST={peer_host}
                 MAC=0a:0a:0a:00:00:{} PEER_MAC=0a:0a:0a:00:00:{}\n",
                last(&own),
                last(&other),
            );
            let script = match layout {
                Layout::Flannel => FLANNEL_NODE.to_owned(),
                _ => format!("{ROUTED_POD}ip route add $PEER.0/24 via $PEER_HOST\n"),
            };
            node.sh(&format!("{variables}{script}"))?;
            pods.push((pod, format!("{own}.2").parse()?));
        }
        Stage::of_pods(pods, Kept::Lab { _lab: lab })
    }

    fn weft(lab: Lab, mode: Mode, change: Option<Change>) -> Result<Stage> {
        let mut keys = json!({ "routingMode": mode.word() });
        if mode == Mode::Native {
            keys["ipv4NativeRoutingCIDR"] = json!("10.0.0.0/16");
        }
        let mut conflist = with_routing_keys(conf::TUNNEL, &keys)?;
        let (routing, veth) = change.map_or((json!({}), json!({})), Change::keys);
        for (plugin, keys) in [veth, routing].iter().enumerate() {
            for (key, value) in keys.as_object().into_iter().flatten() {
                conflist["plugins"][plugin][key] = value.clone();
            }
        }
        let cluster = Cluster::new(lab, &conflist)?;
        let names: Vec<&str> = cluster.lab().nodes().iter().map(|node| node.name()).collect();
        let mut pods = Vec::new();
        for name in &names {
            let pod = cluster.pod(name, "pod")?;
            let address = pod.addr(Family::V4)?;
            pods.push((pod, address));
        }
        cluster.sync_all()?;
        let touch = change.map_or("", Change::touch);
        for (name, (pod, _)) in names.iter().zip(&pods) {
            let touch = |place: &Place| {
                place.command(&["sh", "-e"]).env("THIS", std::env::current_exe()?).stdin(touch).ok()
            };
            touch(cluster.node(name)?)?;
            touch(pod)?;
        }
        Stage::of_pods(pods, Kept::Cluster { _cluster: cluster })
    }

    fn of_pods(pods: Vec<(Pod, IpAddr)>, lab: Kept) -> Result<Stage> {
        let mut pods = pods.into_iter();
        let (from, to) = pods.next().zip(pods.next()).context("two pods")?;
        let (to, address) = to;
        Ok(Stage { from: (*from.0).clone(), to: (*to).clone(), address, _lab: lab })
    }
}

fn two(lab: &Lab) -> Result<[&Node; 2]> {
    lab.nodes().first().zip(lab.nodes().get(1)).map(|(a, b)| [a, b]).context("two nodes")
}

/// A node's pod range without its last number: `10.0.1` of 10.0.1.0/24.
fn network(node: &Node) -> Result<String> {
    let range = node.pod_range(Family::V4)?.network().to_string();
    range.rsplit_once('.').map(|(network, _)| network.to_owned()).context("a /24")
}

/// The last number, as two hexadecimal digits.
fn last(network: &str) -> String {
    let number: u8 = network.rsplit('.').next().and_then(|n| n.parse().ok()).unwrap_or(0);
    format!("{number:02x}")
}
