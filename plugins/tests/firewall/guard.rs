//! Frames for pods that come from whom they must not.

use std::net::IpAddr;

use kernel::link::HOST_END_GROUPS;
use kernel::netlink::Socket;
use kernel::nft::remove;

use crate::lab::{
    CLUSTER, changed, counted, in_lab, inject, install, ip, prerequisites, received, run, udp,
    wait_for, within,
};
use crate::masquerading::{list, protect};
use crate::peer_guard::{PeerGuard, table_name};

const PORT: u16 = 8472;
const VNI: u8 = 1;
const UDP: u8 = 17;

/// Something that must not be decapsulated.
struct Attack {
    what: String,
    sender: &'static str,
    packets: Vec<Vec<u8>>,
    /// The device that decapsulates it if nobody stops it.
    victim: (&'static str, &'static str),
}

/// A second tunnel over IPv6, and no strict reverse path filtering on the nodes,
/// which would stop some of the attacks by itself.
const MORE: &str = r#"
for i in 1 2; do
  ip netns exec node$i sysctl -qw net.ipv4.conf.all.rp_filter=2
  ip -n node$i link add weft6 type vxlan id 1 dstport 8472 local 2001:db8:$i::1 dev eth0 nolearning
  ip -n node$i link set weft6 up
done
"#;

/// Services whose endpoint is a tunnel's end.
const SERVICES: &str = r#"
ip netns exec node1 nft '
table ip services {
  chain pre { type nat hook prerouting priority dstnat
    ip daddr 10.96.0.1 udp dport 80 dnat to 192.168.2.1:8472
    ip daddr 10.96.0.2 udp dport 80 dnat to 192.168.1.1:8472
    ip daddr 192.168.1.1 udp dport 30000 dnat to 192.168.2.1:8472
    ip daddr 192.168.1.1 udp dport 30001 dnat to 192.168.1.1:8472
  }
  chain post { type nat hook postrouting priority 90
    iifname eth0 udp dport 8472 masquerade
  }
}'
"#;

/// What node `number` guards against.
fn guard(number: u8, guard: bool, no_track: bool) {
    let peer = 3 - number;
    let ends = [format!("192.168.{peer}.1"), format!("2001:db8:{peer}::1")];
    let ends: Vec<IpAddr> = list(&[ends[0].as_str(), ends[1].as_str()]);
    let guard = PeerGuard {
        protocol: 87,
        tunnel_ends: &ends,
        other_addresses: &[],
        local: Some(address(&format!("192.168.{number}.1"))),
        underlay: "eth0",
        port: PORT,
        vni: VNI.into(),
        device: "weft.1",
        host_ends: &HOST_END_GROUPS,
        guard,
        no_track,
    };
    install(&format!("node{number}"), &guard.table().unwrap());
}

/// VXLAN header and inner frame: an echo request from the second pod.
fn frame(vni: u8) -> Vec<u8> {
    let mut bytes = vec![8, 0, 0, 0, 0, 0, vni, 0];
    bytes.extend([0x0a, 0x58, 0x0a, 0, 1, 0, 2, 0, 0, 0, 0, 1, 8, 0]);
    bytes.extend(crate::lab::echo("10.0.2.2", "10.0.1.2"));
    bytes
}

fn datagram(from: IpAddr, to: IpAddr, port: u16) -> Vec<u8> {
    udp(from, to, port, &frame(VNI))
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn attack(
    what: &str,
    (sender, from): (&'static str, &str),
    (to, port): (&str, u16),
    victim: &'static str,
) -> Attack {
    let (from, to) = (address(from), address(to));
    let device = if from.is_ipv4() { "weft.1" } else { "weft6" };
    let packets = vec![ip(from, to, UDP, 0, &datagram(from, to, port))];
    Attack { what: what.to_owned(), sender, packets, victim: (victim, device) }
}

/// From a host on the first node's link that is no peer.
fn from_foreign_host() -> Vec<Attack> {
    let v4 = |what, to| attack(what, ("intruder", "192.168.1.66"), (to, PORT), "node1");
    let v6 = |what, to| attack(what, ("intruder", "2001:db8:1::66"), (to, PORT), "node1");
    let mut attacks = vec![
        v4("unicast", "192.168.1.1"),
        v4("limited broadcast", "255.255.255.255"),
        v4("the link's broadcast", "192.168.1.255"),
        v4("multicast", "224.0.0.1"),
        v6("unicast, v6", "2001:db8:1::1"),
        v6("multicast, v6", "ff02::1"),
    ];
    attacks.extend(behind_extension_headers());
    attacks.extend(fragmented());
    attacks
}

const HOP_BY_HOP: u8 = 0;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// An extension header that holds nothing but padding.
fn padding(next: u8) -> Vec<u8> {
    vec![next, 0, 1, 4, 0, 0, 0, 0]
}

fn fragment_header(next: u8, offset: usize, more: bool) -> Vec<u8> {
    let [high, low] = ((offset as u16) | u16::from(more)).to_be_bytes();
    vec![next, 0, high, low, 1, 2, 3, 4]
}

fn behind_extension_headers() -> Vec<Attack> {
    let (from, to) = (address("2001:db8:1::66"), address("2001:db8:1::1"));
    let datagram = datagram(from, to, PORT);
    let options = [padding(UDP), datagram.clone()].concat();
    let both = [padding(DESTINATION_OPTIONS), options.clone()].concat();
    let atomic = [fragment_header(UDP, 0, false), datagram].concat();
    let named = [
        ("behind destination options", DESTINATION_OPTIONS, options),
        ("behind hop-by-hop and destination options", HOP_BY_HOP, both),
        ("an atomic fragment", FRAGMENT, atomic),
    ];
    named
        .map(|(what, next, payload)| foreign(what, vec![ip(from, to, next, 0, &payload)], "weft6"))
        .into()
}

/// The first fragment as short as can be: the UDP header alone.
fn fragmented() -> Vec<Attack> {
    const MORE_FRAGMENTS: u16 = 0x2000;
    let (from, to) = (address("192.168.1.66"), address("192.168.1.1"));
    let payload = datagram(from, to, PORT);
    let first = ip(from, to, UDP, MORE_FRAGMENTS, &payload[..8]);
    let second = ip(from, to, UDP, 1, &payload[8..]);
    let reversed = vec![second.clone(), first.clone()];

    let (from, to) = (address("2001:db8:1::66"), address("2001:db8:1::1"));
    let payload = [padding(UDP), datagram(from, to, PORT)].concat();
    let (head, tail) = payload.split_at(16);
    let head = [fragment_header(DESTINATION_OPTIONS, 0, true), head.to_vec()].concat();
    let tail = [fragment_header(DESTINATION_OPTIONS, 16, false), tail.to_vec()].concat();
    let packets = [head, tail].map(|payload| ip(from, to, FRAGMENT, 0, &payload));
    vec![
        foreign("fragments", vec![first, second], "weft.1"),
        foreign("fragments, last first", reversed, "weft.1"),
        foreign("fragments behind an extension header", packets.into(), "weft6"),
    ]
}

fn foreign(what: &str, packets: Vec<Vec<u8>>, device: &'static str) -> Attack {
    Attack { what: what.to_owned(), sender: "intruder", packets, victim: ("node1", device) }
}

/// From a pod of the first node, and through Services.
fn from_inside() -> Vec<Attack> {
    let pod = |from| ("pod1", from);
    vec![
        attack("pod to its node", pod("10.0.1.2"), ("192.168.1.1", PORT), "node1"),
        attack("pod to another node", pod("10.0.1.2"), ("192.168.2.1", PORT), "node2"),
        attack("pod to everybody", pod("10.0.1.2"), ("255.255.255.255", PORT), "node1"),
        attack("pod as the peer", pod("192.168.2.1"), ("192.168.1.1", PORT), "node1"),
        attack("pod to its node, v6", pod("fd00:1::2"), ("2001:db8:1::1", PORT), "node1"),
        attack("pod to another node, v6", pod("fd00:1::2"), ("2001:db8:2::1", PORT), "node2"),
        attack("pod as the peer, v6", pod("2001:db8:2::1"), ("2001:db8:1::1", PORT), "node1"),
        // IPv4 takes a source of the host's own for a martian, guard or no guard.
        attack("pod as its node, v6", pod("2001:db8:1::1"), ("2001:db8:2::1", PORT), "node2"),
        attack("Service to the other node", pod("10.0.1.2"), ("10.96.0.1", 80), "node2"),
        attack("Service to the pod's node", pod("10.0.1.2"), ("10.96.0.2", 80), "node1"),
        attack(
            "NodePort to the other node",
            ("intruder", "192.168.1.66"),
            ("192.168.1.1", 30_000),
            "node2",
        ),
        attack(
            "NodePort to the node itself",
            ("intruder", "192.168.1.66"),
            ("192.168.1.1", 30_001),
            "node1",
        ),
    ]
}

impl Attack {
    /// What was dropped by the first node's guard, and what was decapsulated,
    /// after the attack as against before.
    fn outcome(&self) -> (u64, u64) {
        let reading = || {
            let dropped = counted("node1", &table_name(87)).values().sum::<u64>();
            (dropped, received(self.victim.0, self.victim.1))
        };
        let before = reading();
        let index = run(&format!("ip -n {} -o link show dev eth0 | cut -d: -f1", self.sender));
        for packet in &self.packets {
            inject(self.sender, packet, index.trim().parse().unwrap());
        }
        let after = changed(&self.what, &before, reading);
        (after.0 - before.0, after.1 - before.1)
    }
}

/// Every attack succeeds without the guard, and none with it.
fn withstand(attacks: &[Attack]) {
    for attack in attacks {
        assert_eq!(attack.outcome(), (0, 1), "harmless anyway: {}", attack.what);
    }
    for no_track in [false, true] {
        guard(1, true, no_track);
        for attack in attacks {
            assert_eq!(attack.outcome(), (1, 0), "{}, noTrack {no_track}", attack.what);
        }
    }
}

#[test]
fn what_comes_from_no_tunnel_end_is_dropped() {
    in_lab(|| {
        run(CLUSTER);
        run(MORE);
        withstand(&from_foreign_host());
    });
}

/// Connection tracking puts fragments together before the guard sees them.
#[test]
fn what_comes_from_no_tunnel_end_is_dropped_with_connection_tracking() {
    in_lab(|| {
        run(CLUSTER);
        run(MORE);
        protect(&[], &[], &[]);
        withstand(&from_foreign_host());
    });
}

/// The second node is guarded all the time, which does not help it: what the
/// first one forwards for the pod shows the first one's address.
#[test]
fn what_pods_and_services_send_to_tunnel_ends_is_dropped() {
    in_lab(|| {
        run(CLUSTER);
        run(MORE);
        run(SERVICES);
        protect(&[], &[], &[]);
        guard(2, true, true);
        withstand(&from_inside());
    });
}

/// A peer's pods, or who poses as the peer inside the tunnel.
#[test]
fn a_tunnel_inside_the_tunnel_is_dropped() {
    in_lab(|| {
        run(CLUSTER);
        run(MORE);
        for (from, to) in [("192.168.2.1", "10.0.1.0"), ("2001:db8:2::1", "fd00:1::")] {
            within("node1", || remove(&mut Socket::netfilter().unwrap(), &table_name(87)).unwrap());
            let device = if to == "10.0.1.0" { "weft.1" } else { "weft6" };
            let nested = Attack {
                what: format!("nested, to {to}"),
                ..attack("", ("node2", from), (to, PORT), "node1")
            };
            let before = received("node1", device);
            let expected = before + if device == "weft.1" { 2 } else { 1 };
            inject("node2", &nested.packets[0], 0);
            wait_for(&nested.what, || received("node1", device) == expected);
            guard(1, true, true);
            inject("node2", &nested.packets[0], 0);
            let drops = || counted("node1", &table_name(87)).values().sum::<u64>();
            wait_for(&nested.what, || drops() == 1);
            let outer = u64::from(device == "weft.1");
            assert_eq!(received("node1", device), expected + outer, "{}", nested.what);
        }
    });
}

#[test]
fn peers_and_other_tunnels_are_let_through() {
    for tracked in [false, true] {
        in_lab(move || {
            run(CLUSTER);
            if tracked {
                protect(&[], &[], &[]);
            }
            guard(1, true, true);
            guard(2, true, true);
            // A narrow link: what the tunnel sends over it comes in fragments.
            run("ip -n router link set port-node2 mtu 600
                 ip -n node2 link set eth0 mtu 600
                 ip netns exec pod1 ping -q -c1 -W5 10.0.2.2
                 ip netns exec pod1 ping -q -c1 -W5 fd00:2::2
                 ip netns exec pod1 ping -q -c1 -W5 -s 1200 10.0.2.2
                 ip -n node1 link add other type vxlan id 7 dstport 8472 local 192.168.1.1 dev eth0
                 ip -n node1 link set other up");
            assert!(reassembled("node1") > 0 && reassembled("node2") > 0);
            let before = received("node1", "other");
            let (from, to) = (address("192.168.1.66"), address("192.168.1.1"));
            let other = ip(from, to, UDP, 0, &udp(from, to, PORT, &frame(7)));
            inject("intruder", &other, 0);
            assert_eq!(
                changed("another tunnel", &before, || received("node1", "other")),
                before + 1
            );
            for node in ["node1", "node2"] {
                let dropped: u64 = counted(node, &table_name(87)).values().sum();
                assert_eq!(dropped, 0, "{node}, with connection tracking: {tracked}");
            }
        });
    }
}

/// Datagrams that a node put together from fragments.
fn reassembled(node: &str) -> u64 {
    let snmp = within(node, || std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap());
    let mut lines = snmp.lines().filter(|line| line.starts_with("Ip:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let column = names.split(' ').position(|name| name == "ReasmOKs").unwrap();
    values.split(' ').nth(column).unwrap().parse().unwrap()
}

/// Whether node 1 tracks the tunnel as a connection, after a ping through it.
fn tunnel_is_tracked(guarded: bool, no_track: bool) -> bool {
    let (sender, receiver) = std::sync::mpsc::channel();
    in_lab(move || {
        run(CLUSTER);
        protect(&[], &[], &[]);
        if guarded || no_track {
            guard(1, guarded, no_track);
        }
        run("ip netns exec pod1 ping -q -c1 -W5 10.0.2.2");
        let path = "/proc/thread-self/net/nf_conntrack";
        let connections = within("node1", || std::fs::read_to_string(path).unwrap());
        assert!(connections.contains("dst=10.0.2.2"), "the pods' connection is tracked");
        sender.send(connections.contains("dport=8472")).unwrap();
    });
    receiver.recv().unwrap()
}

#[test]
fn the_tunnel_is_kept_out_of_connection_tracking() {
    testing::need!(prerequisites());
    assert!(tunnel_is_tracked(true, false));
    assert!(!tunnel_is_tracked(true, true));
    assert!(!tunnel_is_tracked(false, true));
}
