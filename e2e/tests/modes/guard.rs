//! Nobody but a peer gets a frame into the tunnel.

use std::net::IpAddr;

use anyhow::{Context, Result};
use e2e::{Cluster, Families, Family, PingOptions, Place, Pod, Topology};
use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use crate::look::{changed, dropped, echoes, frames, link, received, tunnel_ends};
use crate::wire::{
    DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, MORE_FRAGMENTS, UDP, echo_request, inject, ip, udp,
};
use crate::{assert_ping, conflist_of};

const PORT: u16 = 8472;
const DEVICE: &str = "weft.1";

/// Packets that must not be decapsulated on `victim`.
struct Attack {
    what: &'static str,
    sender: Place,
    packets: Vec<Vec<u8>>,
    victim: &'static str,
    /// Whether it comes by the tunnel, whose device counts what is around it, too.
    nested: bool,
}

/// worker1 with a pod, its peers, and a foreign host.
struct Fortress {
    cluster: Cluster,
    pod: Pod,
    outer: Family,
    /// A frame for the pod, in its VXLAN header.
    frame: Vec<u8>,
    /// What pods on worker1 have: addresses of the underlay's family.
    services: [&'static str; 2],
}

/// Without the spoof check, which would stop some attacks before the guard does.
fn keys(outer: Family, guard: bool) -> Value {
    let family = if outer == Family::V4 { "ipv4" } else { "ipv6" };
    let routing = json!({ "underlayFamily": family, "peerGuard": guard });
    conflist_of(json!({ "spoofCheck": false }), routing)
}

impl Fortress {
    fn start(outer: Family) -> Result<Fortress> {
        let topology = Topology::lesson(Families::Both, Families::Both);
        let mut topology = topology.with_outside(Families::Both);
        // worker2 has more addresses than that of its tunnel end, not all of them known.
        topology.hosts[2].addresses.extend(more_addresses(true)?);
        let cluster = Cluster::start(topology, &keys(outer, false))?;
        for address in more_addresses(false)? {
            let batch = format!("address add {address} dev eth0\n");
            cluster.node("worker2")?.ip_batch(&batch)?;
        }
        let pod = cluster.pod("worker1", "pod-a")?;
        cluster.sync_all()?;
        let frame = frame(&cluster, &pod)?;
        let services = match outer {
            Family::V4 => ["10.96.0.9", "10.96.0.10"],
            Family::V6 => ["fd96::9", "fd96::10"],
        };
        let fortress = Fortress { cluster, pod, outer, frame, services };
        fortress.install_services()?;
        Ok(fortress)
    }

    /// Services of worker1 whose endpoint is a tunnel end: worker2's, and its own.
    fn install_services(&self) -> Result<()> {
        let ip = if self.outer == Family::V4 { "ip" } else { "ip6" };
        let [to_peer, to_self] = self.services;
        let (own, peer) = (self.end("worker1")?, self.end("worker2")?);
        let to = |end: IpAddr| std::net::SocketAddr::new(end, PORT);
        let (to_worker2, to_worker1) = (to(peer), to(own));
        let script = format!(
            "table inet services {{
               chain prerouting {{
                 type nat hook prerouting priority dstnat
                 {ip} daddr {to_peer} udp dport 80 dnat {ip} to {to_worker2}
                 {ip} daddr {to_self} udp dport 80 dnat {ip} to {to_worker1}
                 {ip} daddr {own} udp dport 30000 dnat {ip} to {to_worker2}
                 {ip} daddr {own} udp dport 30001 dnat {ip} to {to_worker1}
               }}
               chain postrouting {{
                 type nat hook postrouting priority 90
                 iifname eth0 udp dport {PORT} masquerade
               }}
             }}"
        );
        let worker1 = self.cluster.node("worker1")?;
        worker1.command(&["nft", "-f", "-"]).stdin(script).ok().map(drop)
    }

    fn end(&self, node: &str) -> Result<IpAddr> {
        self.cluster.node(node)?.address(self.outer)
    }

    fn datagram(&self, from: IpAddr, to: IpAddr, port: u16) -> Vec<u8> {
        udp(from, to, port, &self.frame)
    }

    fn foreign(&self, what: &'static str, packets: Vec<Vec<u8>>) -> Result<Attack> {
        let sender = Place::clone(self.cluster.node("outside")?);
        Ok(Attack { what, sender, packets, victim: "worker1", nested: false })
    }

    fn of_foreign_host(&self) -> Result<Vec<Attack>> {
        let (from, to) = (self.end("outside")?, self.end("worker1")?);
        let plain = ip(from, to, UDP, 0, &self.datagram(from, to, PORT));
        let to_peer = ip(from, to, UDP, 0, &self.datagram(from, to, 30_000));
        let to_self = ip(from, to, UDP, 0, &self.datagram(from, to, 30_001));
        let mut attacks = vec![
            self.foreign("a foreign host", vec![plain])?,
            self.foreign("NodePort to the node itself", vec![to_self])?,
            Attack { victim: "worker2", ..self.foreign("NodePort to a peer", vec![to_peer])? },
        ];
        attacks.extend(match self.outer {
            Family::V4 => self.fragments(from, to)?,
            Family::V6 => self.extension_headers(from, to)?,
        });
        Ok(attacks)
    }

    /// The first fragment holds no more than the UDP header.
    fn fragments(&self, from: IpAddr, to: IpAddr) -> Result<Vec<Attack>> {
        let datagram = self.datagram(from, to, PORT);
        let (head, tail) = datagram.split_at(8);
        let first = ip(from, to, UDP, MORE_FRAGMENTS, head);
        let second = ip(from, to, UDP, 1, tail);
        Ok(vec![
            self.foreign("fragments", vec![first.clone(), second.clone()])?,
            self.foreign("fragments, last first", vec![second, first])?,
        ])
    }

    fn extension_headers(&self, from: IpAddr, to: IpAddr) -> Result<Vec<Attack>> {
        let datagram = self.datagram(from, to, PORT);
        let options = [padding(UDP), datagram.clone()].concat();
        let both = [padding(DESTINATION_OPTIONS), options.clone()].concat();
        let atomic = [fragment_header(UDP, 0, false), datagram].concat();
        let (head, tail) = options.split_at(16);
        let first = [fragment_header(DESTINATION_OPTIONS, 0, true), head.to_vec()].concat();
        let second = [fragment_header(DESTINATION_OPTIONS, 16, false), tail.to_vec()].concat();
        let packet = |next, payload: &[u8]| ip(from, to, next, 0, payload);
        let fragments = vec![packet(FRAGMENT, &first), packet(FRAGMENT, &second)];
        Ok(vec![
            self.foreign("destination options", vec![packet(DESTINATION_OPTIONS, &options)])?,
            self.foreign("hop-by-hop options too", vec![packet(HOP_BY_HOP, &both)])?,
            self.foreign("an atomic fragment", vec![packet(FRAGMENT, &atomic)])?,
            self.foreign("fragments behind options", fragments)?,
        ])
    }

    fn of_pod(&self) -> Result<Vec<Attack>> {
        let own = self.pod.addr(self.outer)?;
        let (node, peer) = (self.end("worker1")?, self.end("worker2")?);
        let [service_peer, service_self] = self.services;
        let attack = |what, from, to, port, victim| {
            let packets = vec![ip(from, to, UDP, 0, &self.datagram(from, to, port))];
            Attack { what, sender: Place::clone(&self.pod), packets, victim, nested: false }
        };
        let mut attacks = vec![
            attack("a pod to its node", own, node, PORT, "worker1"),
            attack("a pod to a peer", own, peer, PORT, "worker2"),
            attack("a pod as the peer, to its node", peer, node, PORT, "worker1"),
            attack("a Service to the peer", own, service_peer.parse()?, 80, "worker2"),
            attack("a Service to the node itself", own, service_self.parse()?, 80, "worker1"),
        ];
        for (known, what) in [(true, "a pod to a peer's second address"), (false, "… unknown")] {
            let addresses = more_addresses(known)?;
            let to = addresses.iter().map(IpNetwork::ip).find(|ip| Family::of(*ip) == self.outer);
            attacks.push(attack(what, own, to.context("an address")?, PORT, "worker2"));
        }
        let inside = crate::pod_network(self.cluster.node("worker2")?, self.outer)?;
        let nested = attack("a pod to a peer, in the tunnel", own, inside, PORT, "worker2");
        attacks.push(Attack { nested: true, ..nested });
        if self.outer == Family::V6 {
            // IPv4 takes a source of the host's own for a martian, guard or no guard.
            attacks.push(attack("a pod as its node, to a peer", node, peer, PORT, "worker2"));
        }
        Ok(attacks)
    }

    /// Dropped on worker1 or the victim, and decapsulated on the victim, by the attack.
    fn outcome(&self, attack: &Attack) -> Result<(u64, u64)> {
        let worker1 = self.cluster.node("worker1")?;
        let victim = self.cluster.node(attack.victim)?;
        let read = || -> Result<(u64, u64)> {
            let mut sum = dropped(worker1, "weft_87_tunnel")?;
            if attack.victim != "worker1" {
                sum += dropped(victim, "weft_87_tunnel")?;
            }
            Ok((sum, received(victim, DEVICE)?))
        };
        let before = read()?;
        for packet in &attack.packets {
            inject(&attack.sender, packet, None)?;
        }
        let around = u64::from(attack.nested);
        let after = changed(attack.what, &(before.0, before.1 + around), || {
            let (dropped, received) = read()?;
            Ok((dropped, received.max(before.1 + around)))
        })?;
        Ok((after.0 - before.0, after.1 - before.1 - around))
    }

    /// Every attack succeeds without the guard and none with it.
    fn withstands(&mut self) -> Result<()> {
        let mut attacks = self.of_foreign_host()?;
        attacks.extend(self.of_pod()?);
        for attack in &attacks {
            assert_eq!(self.outcome(attack)?, (0, 1), "harmless anyway: {}", attack.what);
        }
        self.cluster.set_conflist(&keys(self.outer, true))?;
        self.cluster.sync_all()?;
        for attack in &attacks {
            assert_eq!(self.outcome(attack)?, (1, 0), "{}", attack.what);
        }
        let remote = self.cluster.pod("worker2", "pod-b")?;
        for family in [Family::V4, Family::V6] {
            assert_ping(&self.pod, remote.addr(family)?, PingOptions::default())?;
        }
        Ok(())
    }
}

/// More addresses of worker2, in the node map or not.
fn more_addresses(known: bool) -> Result<Vec<IpNetwork>> {
    let last = if known { 200 } else { 201 };
    let texts = [format!("192.168.44.{last}/24"), format!("fd00:44::{last}/64")];
    Ok(texts.iter().map(|text| text.parse()).collect::<Result<_, _>>()?)
}

/// VXLAN header (RFC 7348 section 5) and an echo request from a peer's pod.
fn frame(cluster: &Cluster, pod: &Pod) -> Result<Vec<u8>> {
    let mac = link(cluster.node("worker1")?, DEVICE)?["address"].clone();
    let mut frame = vec![8, 0, 0, 0, 0, 0, 1, 0];
    for byte in mac.as_str().unwrap_or_default().split(':') {
        frame.push(u8::from_str_radix(byte, 16)?);
    }
    frame.extend([2, 0, 0, 0, 0, 1, 8, 0]);
    frame.extend(echo_request("10.0.2.9".parse()?, pod.addr(Family::V4)?, 0));
    Ok(frame)
}

/// An extension header of nothing but padding (PadN, RFC 8200 section 4.2).
fn padding(next: u8) -> Vec<u8> {
    vec![next, 0, 1, 4, 0, 0, 0, 0]
}

fn fragment_header(next: u8, offset: u16, more: bool) -> Vec<u8> {
    let [high, low] = (offset | u16::from(more)).to_be_bytes();
    vec![next, 0, high, low, 1, 2, 3, 4]
}

#[test]
fn over_ipv4() -> Result<()> {
    e2e::needs_lab!();
    testing::need!(testing::privilege());
    Fortress::start(Family::V4)?.withstands()
}

#[test]
fn over_ipv6() -> Result<()> {
    e2e::needs_lab!();
    testing::need!(testing::privilege());
    Fortress::start(Family::V6)?.withstands()
}

/// Whether worker2 tracks the tunnel's datagrams, after a ping through it.
fn is_tracked(cluster: &Cluster, from: &Pod, to: &Pod) -> Result<bool> {
    let worker2 = cluster.node("worker2")?;
    assert_ping(from, to.addr(Family::V4)?, PingOptions::default())?;
    let connections = worker2.run_ok(&["cat", "/proc/net/nf_conntrack"])?;
    assert!(connections.contains("10.0.2.2"), "the pods' own is tracked: {connections}");
    Ok(connections.contains("dport=8472"))
}

#[test]
fn the_tunnel_is_not_tracked_unless_asked_for() -> Result<()> {
    e2e::needs_lab!();
    let keys = |no_track: bool| conflist_of(json!({}), json!({ "noTrack": no_track }));
    for no_track in [true, false] {
        let topology = Topology::lesson(Families::V4, Families::V4);
        let cluster = Cluster::start(topology, &keys(no_track))?;
        let (a, b) = (cluster.pod("worker1", "pod-a")?, cluster.pod("worker2", "pod-b")?);
        assert_eq!(is_tracked(&cluster, &a, &b)?, !no_track, "noTrack {no_track}");
    }
    Ok(())
}

/// worker2's own address is known to nobody but the router, which translates it.
#[test]
fn a_node_behind_nat_is_reached_by_its_tunnel_address() -> Result<()> {
    e2e::needs_lab!();
    const PUBLIC: &str = "198.51.100.44";
    let topology = Topology::lesson(Families::V4, Families::Both);
    let mut map = topology.node_map();
    map["nodes"][2]["tunnelAddress"] = json!(PUBLIC);
    let cluster = Cluster::start(topology, &conflist_of(json!({}), json!({})))?;
    cluster.lab().write_node_map(&map)?;
    let private = cluster.node("worker2")?.address(Family::V4)?;
    let nat = format!(
        "table ip nat {{
           chain prerouting {{
             type nat hook prerouting priority dstnat
             iifname != net44 ip daddr {PUBLIC} dnat to {private}
           }}
           chain postrouting {{
             type nat hook postrouting priority srcnat
             iifname net44 ip saddr {private} snat to {PUBLIC}
           }}
         }}"
    );
    cluster.lab().router().command(&["nft", "-f", "-"]).stdin(nat).ok()?;
    let (a, b) = (cluster.pod("worker1", "pod-a")?, cluster.pod("worker2", "pod-b")?);
    let capture = cluster.node("worker1")?.capture("eth0", "udp port 8472")?;
    let own = cluster.node("worker1")?.address(Family::V4)?;
    for (index, family) in [Family::V4, Family::V6].into_iter().enumerate() {
        let size = 90 + 2 * index as u32;
        let options = |size| PingOptions { size, ..PingOptions::default() };
        assert_ping(&b, a.addr(family)?, options(size))?;
        assert_ping(&a, b.addr(family)?, options(size + 1))?;
    }
    let frames = frames(capture)?;
    for size in 90..94 {
        let [request, reply] = [true, false].map(|request| echoes(&frames, request, size));
        let to_us = Some((PUBLIC.parse()?, own));
        let from_us = Some((own, PUBLIC.parse()?));
        let expected = if size % 2 == 0 { [to_us, from_us] } else { [from_us, to_us] };
        assert_eq!([tunnel_ends(request[0]), tunnel_ends(reply[0])], expected, "{size}");
    }
    assert_eq!(dropped(cluster.node("worker1")?, "weft_87_tunnel")?, 0);
    Ok(())
}
