//! Two nodes on one link, and a pod on each, in every layout that is compared.

use std::net::IpAddr;

use anyhow::{Context, Result};
use e2e::{Cluster, Families, Family, Lab, Node, Place, Pod, Spread, Topology, with_routing_keys};
use serde_json::{Value, json};

/// How the two ends are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    Hosts,
    Routed,
    Native,
    Tunnel,
    Flannel,
    NoSpoofCheck,
    NoMasquerade,
    NoPeerGuard,
    Tracked,
    PodGro,
    BigGso,
    NoChecksumOffload,
    FixedSourcePort,
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

impl Layout {
    /// Its name in tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Hosts => "host to host",
            Self::Routed => "plain veth, routed",
            Self::Native => "weft, native",
            Self::Tunnel => "weft, tunnel",
            Self::Flannel => "flannel's layout",
            Self::NoSpoofCheck => "spoofCheck false",
            Self::NoMasquerade => "ipMasq false",
            Self::NoPeerGuard => "peerGuard false",
            Self::Tracked => "noTrack false",
            Self::PodGro => "GRO on the pods' veth",
            Self::BigGso => "GSO and GRO to 192 KiB",
            Self::NoChecksumOffload => "no tx checksum offload",
            Self::FixedSourcePort => "8 source ports",
        }
    }

    /// What it is, for the legend.
    pub(super) fn about(self) -> &'static str {
        match self {
            Self::Hosts => "node to node, no pods",
            Self::Routed => {
                "a veth pair, a route for each pod, a route to the other node's range; no nf_tables"
            }
            Self::Native => "`routingMode` `native`, everything else by default",
            Self::Tunnel => "everything by default",
            Self::Flannel => {
                "bridge, veth with hairpin, VXLAN device, entries and iptables rules as flannel's vxlan backend makes them"
            }
            Self::NoSpoofCheck => "`veth` without the rule against forged sources",
            Self::NoMasquerade => {
                "`routing` without masquerade: no connection tracking of pods' packets"
            }
            Self::NoPeerGuard => "`routing` without the rules on who may send VXLAN",
            Self::Tracked => "`routing` with the tunnel in connection tracking",
            Self::PodGro => {
                "`ethtool -K … gro on` at both ends of the pods' pairs and of the cables"
            }
            Self::BigGso => {
                "`ip link set … gso_max_size 196608 gso_ipv4_max_size` and gro likewise, everywhere"
            }
            Self::NoChecksumOffload => "`ethtool -K weft.1 tx-checksum-ip-generic off`",
            Self::FixedSourcePort => "`tunnelSourcePortRange` \"50000-50007\"",
        }
    }

    /// Keys of `routing` and of `veth`.
    fn keys(self) -> (Value, Value) {
        let none = json!({});
        match self {
            Self::Native => {
                (json!({ "routingMode": "native", "ipv4NativeRoutingCIDR": "10.0.0.0/16" }), none)
            }
            Self::NoSpoofCheck => (none, json!({ "spoofCheck": false })),
            Self::NoMasquerade => (json!({ "ipMasq": false }), none),
            Self::NoPeerGuard => (json!({ "peerGuard": false }), none),
            Self::Tracked => (json!({ "noTrack": false }), none),
            Self::FixedSourcePort => (json!({ "tunnelSourcePortRange": "50000-50007" }), none),
            _ => (none.clone(), none),
        }
    }

    /// Shell run on each node, and on its pod, once all is there.
    fn touch(self) -> Option<&'static str> {
        match self {
            Self::PodGro => Some(
                "for device in $(ls /sys/class/net); do ethtool -K $device gro on 2>/dev/null || true; done",
            ),
            Self::BigGso => Some(
                "for device in $(ip -o link | sed -n 's/^[0-9]*: \\([^:@]*\\).*/\\1/p'); do
                     [ $device = lo ] || ip link set $device gso_max_size 196608 gro_max_size 196608 \
                         gso_ipv4_max_size 196608 gro_ipv4_max_size 196608
                 done",
            ),
            Self::NoChecksumOffload => Some(
                "[ ! -e /sys/class/net/weft.1 ] || ethtool -K weft.1 tx-checksum-ip-generic off >/dev/null",
            ),
            _ => None,
        }
    }
}

impl Stage {
    /// Builds a layout in a lab of its own.
    pub(super) fn start(layout: Layout) -> Result<Stage> {
        let topology = Topology::nodes(2, Spread::Shared(2), Families::V4, Families::V4);
        let lab = Lab::start(topology)?;
        match layout {
            Layout::Hosts => Stage::hosts(lab),
            Layout::Routed | Layout::Flannel => Stage::by_hand(lab, layout),
            _ => Stage::weft(lab, layout),
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

    fn weft(lab: Lab, layout: Layout) -> Result<Stage> {
        let (routing, veth) = layout.keys();
        let mut conflist = with_routing_keys(e2e::conf::TUNNEL, &routing)?;
        for (key, value) in veth.as_object().into_iter().flatten() {
            conflist["plugins"][0][key] = value.clone();
        }
        let cluster = Cluster::new(lab, &conflist)?;
        let mut pods = Vec::new();
        for name in names(cluster.lab()) {
            let pod = cluster.pod(&name, "pod")?;
            let address = pod.addr(Family::V4)?;
            pods.push((pod, address));
        }
        cluster.sync_all()?;
        if let Some(script) = layout.touch() {
            for (name, (pod, _)) in names(cluster.lab()).iter().zip(&pods) {
                cluster.node(name)?.sh(script)?;
                pod.sh(script)?;
            }
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

fn names(lab: &Lab) -> Vec<String> {
    lab.nodes().iter().map(|node| node.name().to_owned()).collect()
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
