//! Whose address each side of a conversation sees.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;

use crate::lab::{CLUSTER, in_lab, install, run, talk};
use crate::masquerade::Masquerade;

pub(crate) fn list<T: std::str::FromStr>(items: &[&str]) -> Vec<T>
where
    T::Err: std::fmt::Debug,
{
    items.iter().map(|item| item.parse().unwrap()).collect()
}

const POD_RANGES: &[&str] = &["10.0.1.0/24", "10.0.2.0/24", "fd00:1::/64", "fd00:2::/64"];
/// The nodes' links, in both families.
const NATIVE: &[&str] = &["192.168.0.0/16", "10.0.0.0/8", "2001:db8::/45", "fd00::/8"];
const NODES: &[&str] = &["192.168.1.1", "192.168.2.1", "2001:db8:1::1", "2001:db8:2::1"];

/// Node 1 with the tunnel.
pub(crate) fn protect(native: &[&str], nodes: &[&str], exempt: &[&str]) {
    let (native, exempt): (Vec<IpNetwork>, Vec<IpNetwork>) = (list(native), list(exempt));
    let nodes: Vec<IpAddr> = list(nodes);
    let masquerade = Masquerade {
        protocol: 87,
        own_ranges: &list(&["10.0.1.0/24", "fd00:1::/64"]),
        pod_ranges: &list(POD_RANGES),
        native_cidrs: &native,
        tunnel_nodes: &nodes,
        non_masquerade_cidrs: &exempt,
        device: Some("weft.1"),
    };
    install("node1", &masquerade.table());
}

fn seen(client: (&str, &str), dial: &str, server: (&str, &str)) -> String {
    talk(client, dial, server).ip().to_string()
}

/// The address that the server at `to` sees of the first pod.
fn pod1_seen_at(server: &str, to: &str) -> String {
    let to: IpAddr = to.parse().unwrap();
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let to = SocketAddr::new(to, 7000).to_string();
    seen(("pod1", any), &to, (server, &to))
}

#[test]
fn pods_show_the_nodes_address_outside_and_their_own_inside() {
    in_lab(|| {
        run(CLUSTER);
        protect(&[], &[], &[]);
        assert_eq!(pod1_seen_at("outside", "203.0.113.9"), "192.168.1.1");
        assert_eq!(pod1_seen_at("outside", "2001:db8:9::9"), "2001:db8:1::1");
        assert_eq!(pod1_seen_at("node2", "192.168.2.1"), "192.168.1.1");
        assert_eq!(pod1_seen_at("node2", "2001:db8:2::1"), "2001:db8:1::1");
        assert_eq!(pod1_seen_at("pod2", "10.0.2.2"), "10.0.1.2");
        assert_eq!(pod1_seen_at("pod2", "fd00:2::2"), "fd00:1::2");
        assert_eq!(pod1_seen_at("node1", "192.168.1.1"), "10.0.1.2");
    });
}

#[test]
fn source_ports_are_random() {
    in_lab(|| {
        run(CLUSTER);
        protect(&[], &[], &[]);
        let dial = |i| {
            let to = format!("203.0.113.9:{}", 7000 + i);
            talk(("pod1", "10.0.1.2:40000"), &to, ("outside", &to)).port()
        };
        let ports: BTreeSet<u16> = (0..4).map(dial).collect();
        assert!(ports.len() > 2 && !ports.contains(&40_000), "{ports:?}");
    });
}

#[test]
fn native_and_exempt_destinations_see_the_pod() {
    in_lab(|| {
        run(CLUSTER);
        // Wholly native: nodes are exempt as well.
        protect(NATIVE, &[], &[]);
        assert_eq!(pod1_seen_at("intruder", "192.168.1.66"), "10.0.1.2");
        assert_eq!(pod1_seen_at("intruder", "2001:db8:1::66"), "fd00:1::2");
        assert_eq!(pod1_seen_at("outside", "203.0.113.9"), "192.168.1.1");
        // In the tunnel native CIDRs never exempt nodes, but others in them.
        protect(NATIVE, NODES, &["203.0.113.0/24"]);
        assert_eq!(pod1_seen_at("node2", "192.168.2.1"), "192.168.1.1");
        assert_eq!(pod1_seen_at("node2", "2001:db8:2::1"), "2001:db8:1::1");
        assert_eq!(pod1_seen_at("intruder", "192.168.1.66"), "10.0.1.2");
        assert_eq!(pod1_seen_at("outside", "203.0.113.9"), "10.0.1.2");
        assert_eq!(pod1_seen_at("outside", "2001:db8:9::9"), "2001:db8:1::1");
    });
}

#[test]
fn answers_to_connections_from_outside_keep_the_pods_address() {
    in_lab(|| {
        run(CLUSTER);
        protect(&[], &[], &[]);
        // `talk` would not take an answer from any other address.
        let to_pod = |client, dial| seen(client, dial, ("pod1", dial));
        assert_eq!(to_pod(("outside", "0.0.0.0:0"), "10.0.1.2:7000"), "203.0.113.9");
        assert_eq!(to_pod(("outside", "[::]:0"), "[fd00:1::2]:7000"), "2001:db8:9::9");
    });
}

/// Services of a cluster: an address that leads to the remote pod, for the
/// node's own processes, and a port of the node that does so for everybody.
const SERVICES: &str = r#"
ip -n node1 route add 10.96.0.0/16 via 192.168.1.254
ip netns exec node1 nft '
table inet services {
  chain pre { type nat hook prerouting priority dstnat
    ip daddr 192.168.1.1 udp dport 30000 dnat ip to 10.0.2.2:7000
    ip6 daddr 2001:db8:1::1 udp dport 30000 dnat ip6 to [fd00:2::2]:7000
  }
  chain out { type nat hook output priority -100
    ip daddr 10.96.0.1 udp dport 80 dnat ip to 10.0.2.2:7000
  }
}'
"#;

#[test]
fn what_is_no_pods_enters_the_tunnel_as_the_tunnels_end() {
    in_lab(|| {
        run(CLUSTER);
        run(SERVICES);
        protect(NATIVE, NODES, &[]);
        let at_pod2 = |client, dial| seen(client, dial, ("pod2", "10.0.2.2:7000"));
        let at_pod2_v6 = |client, dial| seen(client, dial, ("pod2", "[fd00:2::2]:7000"));
        assert_eq!(at_pod2(("node1", "0.0.0.0:0"), "10.0.2.2:7000"), "10.0.1.0");
        assert_eq!(at_pod2(("node1", "192.168.1.1:0"), "10.0.2.2:7000"), "10.0.1.0");
        assert_eq!(at_pod2(("node1", "0.0.0.0:0"), "10.96.0.1:80"), "10.0.1.0");
        assert_eq!(at_pod2(("outside", "0.0.0.0:0"), "192.168.1.1:30000"), "10.0.1.0");
        assert_eq!(at_pod2_v6(("node1", "[2001:db8:1::1]:0"), "[fd00:2::2]:7000"), "fd00:1::");
        assert_eq!(at_pod2_v6(("outside", "[::]:0"), "[2001:db8:1::1]:30000"), "fd00:1::");
    });
}

/// What kube-proxy marked is its own to rewrite, whichever table came first. It
/// rewrites to an address here that tells its rule from ours.
#[test]
fn marked_packets_are_left_to_kube_proxy() {
    const KUBE_PROXY: &str = r#"
      ip -n node1 addr add 192.168.1.77/24 dev eth0
      ip netns exec node1 nft '
      table ip kube-proxy {
        chain pre { type filter hook prerouting priority -150
          iifname host-end udp dport 7001 meta mark set mark or 0x4000
        }
        chain post { type nat hook postrouting priority srcnat
          mark and 0x4000 == 0 return
          meta mark set mark and 0xffffbfff
          snat to 192.168.1.77
        }
      }'"#;
    for ours_first in [true, false] {
        in_lab(move || {
            run(CLUSTER);
            if ours_first {
                protect(&[], &[], &[]);
                run(KUBE_PROXY);
            } else {
                run(KUBE_PROXY);
                protect(&[], &[], &[]);
            }
            let to = |port| {
                let to = format!("203.0.113.9:{port}");
                seen(("pod1", "0.0.0.0:0"), &to, ("outside", &to))
            };
            assert_eq!(to(7001), "192.168.1.77", "marked, ours first: {ours_first}");
            assert_eq!(to(7002), "192.168.1.1", "unmarked, ours first: {ours_first}");
        });
    }
}
