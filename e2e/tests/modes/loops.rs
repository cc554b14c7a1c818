//! A packet to an address that no pod has is answered by an error where its range
//! ends, and never comes back on the wire.

use std::net::IpAddr;

use anyhow::Result;
use e2e::{
    Cluster, Daemon, Families, Family, Frame, Ip, PingOptions, Place, Spread, Topology, ping,
};
use serde_json::{Value, json};

use crate::conflist;
use crate::look::{DEADLINE, echoes, frames, inner};

const ECHOES: &str = "icmp or icmp6 or udp port 8472";
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// What ping sends with; each router takes one off.
const TTL: u8 = 64;

fn native() -> Value {
    json!({
        "routingMode": "native",
        "ipv4NativeRoutingCIDR": "10.0.0.0/8", "ipv6NativeRoutingCIDR": "fd10::/16",
    })
}

fn hybrid() -> Value {
    json!({ "routingMode": "hybrid", "links": ["192.168.1.0/24", "fd00:1::/64"] })
}

/// An address of a node's range that no pod has.
fn free(node: u8, family: Family) -> Result<IpAddr> {
    let text = match family {
        Family::V4 => format!("10.0.{node}.99"),
        Family::V6 => format!("fd10:0:0:{node}::99"),
    };
    Ok(text.parse()?)
}

/// Whether a frame is "destination unreachable" for a packet to `to`.
fn is_unreachable(frame: &Frame, to: IpAddr) -> bool {
    let icmp = frame.innermost().ip().and_then(Ip::icmp);
    icmp.is_some_and(|icmp| {
        icmp.kind == if icmp.v6 { 1 } else { 3 }
            && icmp.quoted.as_ref().is_some_and(|quoted| quoted.destination == to)
    })
}

/// Two nodes as far apart as `spread` puts them, `routing` on both, a pod on node1.
struct Range {
    cluster: Cluster,
    pod: Place,
}

impl Range {
    /// The router has static routes to pods, or learns them from this daemon.
    fn start(spread: Spread, routing: Value, daemon: Option<Daemon>) -> Result<Range> {
        let topology = Topology::nodes(2, spread, Families::Both, Families::Both);
        let topology = topology.with_outside(Families::Both);
        let cluster = Cluster::start(topology, &conflist(routing))?;
        cluster.set_rp_filter("1")?;
        match daemon {
            None => cluster.route_to_all()?,
            Some(daemon) => cluster.start_bgp(daemon)?,
        }
        let pod = Place::clone(&*cluster.pod("node1", "pod-a")?);
        cluster.sync_all()?;
        Ok(Range { cluster, pod })
    }

    /// Sends one packet, waits for the error at the sender, and returns the TTLs of the
    /// packet as it shows on node2's `eth0`.
    fn answered(&self, from: &Place, to: IpAddr, size: u32) -> Result<Vec<u8>> {
        let wire = self.cluster.node("node2")?.capture("eth0", ECHOES)?;
        let errors = from.capture("eth0", ECHOES)?;
        let options = PingOptions { size, wait: 0.1, ..PingOptions::default() };
        let result = ping(from, to, &options)?;
        assert_eq!((result.sent, result.received), (1, 0), "{}", result.output);
        errors.wait_for(DEADLINE, |packet| {
            packet.frame().is_ok_and(|frame| is_unreachable(&frame, to))
        })?;
        let errors = frames(errors)?;
        let count = errors.iter().filter(|frame| is_unreachable(frame, to)).count();
        assert_eq!(count, 1, "one error for one packet to {to} from {}", from.name());
        let frames = frames(wire)?;
        let seen = echoes(&frames, true, size);
        Ok(seen.into_iter().map(|frame| inner(frame).ttl).collect())
    }

    /// From node1's pod and node1 over `routers` routers and from outside, to free
    /// addresses of node2's range; from the pod to one of its own node's.
    fn ends_every_packet(&self, from_pod: u8) -> Result<()> {
        let node1 = Place::clone(self.cluster.node("node1")?);
        let outside = Place::clone(self.cluster.node("outside")?);
        for family in FAMILIES {
            let far = free(2, family)?;
            assert_eq!(self.answered(&self.pod, far, 61)?, [from_pod], "from a pod to {far}");
            assert_eq!(self.answered(&node1, far, 62)?, [from_pod + 1], "from a node to {far}");
            assert_eq!(self.answered(&outside, far, 63)?, [TTL - 1], "from outside to {far}");
            let near = free(1, family)?;
            assert!(self.answered(&self.pod, near, 64)?.is_empty(), "it left for {near}");
        }
        Ok(())
    }
}

#[test]
fn in_tunnel_mode() -> Result<()> {
    e2e::needs_lab!();
    // The tunnel is one hop: node1 takes one off for its pod.
    Range::start(Spread::Own, json!({}), None)?.ends_every_packet(TTL - 1)
}

#[test]
fn in_native_mode() -> Result<()> {
    e2e::needs_lab!();
    Range::start(Spread::Own, native(), None)?.ends_every_packet(TTL - 2)
}

/// Neither daemon takes the route away that ends it, nor gives another way out.
#[test]
fn in_native_mode_with_bird() -> Result<()> {
    e2e::needs_lab!("bird");
    Range::start(Spread::Own, native(), Some(Daemon::Bird))?.ends_every_packet(TTL - 2)
}

#[test]
fn in_native_mode_with_frr() -> Result<()> {
    e2e::needs_lab!("vtysh", "/usr/lib/frr/bgpd");
    Range::start(Spread::Own, native(), Some(Daemon::Frr))?.ends_every_packet(TTL - 2)
}

#[test]
fn in_hybrid_mode_on_a_shared_link() -> Result<()> {
    e2e::needs_lab!();
    Range::start(Spread::Shared(2), hybrid(), None)?.ends_every_packet(TTL - 1)
}

/// What the captures show without the route that ends it.
#[test]
fn without_the_own_range_route_packets_bounce() -> Result<()> {
    e2e::needs_lab!();
    let range = Range::start(Spread::Own, native(), None)?;
    range.cluster.set_rp_filter("0")?;
    let node2 = range.cluster.node("node2")?;
    node2.ip_batch("route del unreachable 10.0.2.0/24\n")?;
    let capture = node2.capture("eth0", "icmp")?;
    let options = PingOptions { size: 65, wait: 0.1, ..PingOptions::default() };
    ping(&range.pod, free(2, Family::V4)?, &options)?;
    capture.wait_for(DEADLINE, |packet| {
        packet.frame().is_ok_and(|frame| {
            echoes(&[frame], true, 65).first().is_some_and(|frame| inner(frame).ttl < TTL / 2)
        })
    })?;
    Ok(())
}
