//! Pods that send from addresses which are not their own.

use kernel::netlink::Socket;
use kernel::nft::generation;

use crate::lab::{changed, counted, echo, icmp6, in_lab, inject, run, within};
use crate::spoof_check;

/// A node with two pods as the `veth` plugin makes them, an uplink with a
/// default route, and a witness that counts what the node lets past routing.
const NODE: &str = r#"
ip netns add node
ip -n node link set lo up
ip netns add outside
ip -n node link add eth0 type veth peer name eth0 netns outside
ip -n outside link set eth0 up
ip -n node addr add 192.0.2.1/24 dev eth0
ip -n node addr add 2001:db8::1/64 dev eth0 nodad
ip -n node link set eth0 up
ip -n node route add default via 192.0.2.254
ip -n node route add default via 2001:db8::fe
ip -n node route add unreachable 10.0.1.0/24
ip -n node route add unreachable fd00:1::/64
ip netns exec node sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
for i in 2 3; do
  ip netns add pod$i
  ip -n pod$i link set lo up
  ip -n node link add veth$i group 2003134068 type veth peer name eth0 netns pod$i
  ip netns exec node sysctl -qw net.ipv6.conf.veth$i.accept_ra=0 net.ipv6.conf.veth$i.accept_dad=0
  ip netns exec pod$i sysctl -qw net.ipv6.conf.eth0.accept_dad=0
  ip -n node addr add 10.0.1.1/32 dev veth$i
  ip -n node addr add fd00:1::1/128 dev veth$i nodad
  ip -n node link set veth$i up
  ip -n pod$i link set eth0 up
  ip -n pod$i addr add 10.0.1.$i/24 dev eth0 noprefixroute
  ip -n pod$i addr add fd00:1::$i/64 dev eth0 noprefixroute nodad
  ip -n pod$i route add 10.0.1.1 dev eth0
  ip -n pod$i route add default via 10.0.1.1
  ip -n pod$i route add fd00:1::1 dev eth0
  ip -n pod$i route add default via fd00:1::1
  ip -n node route add 10.0.1.$i dev veth$i src 192.0.2.1
  ip -n node route add fd00:1::$i dev veth$i
  mac=$(ip -n node -br link show dev veth$i | awk '{print $3}')
  ip -n pod$i neigh add 10.0.1.1 lladdr $mac dev eth0 nud permanent
  ip -n pod$i neigh add fd00:1::1 lladdr $mac dev eth0 nud permanent
done
"#;

/// Counts what gets past the check from `veth2`, by source address.
const WITNESS: &str = r#"
ip netns exec node nft 'table inet witness {
  chain received {
    type filter hook prerouting priority -290
    iifname veth2 ip saddr { 10.0.1.2, 10.0.1.3, 10.0.1.9, 10.0.1.1, 192.0.2.1, 198.51.100.1 } counter comment "any"
    iifname veth2 ip6 saddr { fd00:1::2, fd00:1::3, fd00:1::9, fd00:1::1, 2001:db8::1, 2001:db8:9::1 } icmpv6 type echo-request counter comment "any"
    iifname veth2 ip6 saddr :: icmpv6 type nd-neighbor-solicit counter comment "any"
    iifname veth2 ip6 saddr fe80::/10 icmpv6 type nd-neighbor-solicit counter comment "any"
  }
}'
"#;

const FORGED: &[(&str, &str, &str)] = &[
    ("a free address", "10.0.1.9", "192.0.2.1"),
    ("the neighbour's", "10.0.1.3", "192.0.2.1"),
    ("the neighbour's, forwarded", "10.0.1.3", "203.0.113.1"),
    ("the gateway's", "10.0.1.1", "192.0.2.1"),
    ("the node's", "192.0.2.1", "10.0.1.3"),
    ("somebody's behind the default route", "198.51.100.1", "10.0.1.3"),
    ("a free address, v6", "fd00:1::9", "2001:db8::1"),
    ("the neighbour's, v6", "fd00:1::3", "2001:db8::1"),
    ("the neighbour's, forwarded, v6", "fd00:1::3", "2001:db8:7::1"),
    ("the gateway's, v6", "fd00:1::1", "2001:db8::1"),
    ("the node's, v6", "2001:db8::1", "fd00:1::3"),
    ("somebody's behind the default route, v6", "2001:db8:9::1", "fd00:1::3"),
];

fn dropped() -> u64 {
    counted("node", spoof_check::TABLE).values().sum()
}

fn passed() -> u64 {
    counted("node", "witness").values().sum()
}

#[test]
fn pods_send_from_their_own_addresses_only() {
    in_lab(|| {
        run(NODE);
        run(WITNESS);
        within("node", || spoof_check::ensure(None).unwrap());
        for rp_filter in 0..=2 {
            run(&format!("ip netns exec node sysctl -qw net.ipv4.conf.all.rp_filter={rp_filter}"));
            for (what, from, to) in FORGED {
                let before = (dropped(), passed());
                inject("pod2", &echo(from, to), 0);
                let after = changed(what, &before, || (dropped(), passed()));
                assert_eq!(after, (before.0 + 1, before.1), "{what}, all.rp_filter={rp_filter}");
            }
            let before = dropped();
            for (from, to) in [
                ("10.0.1.2", "192.0.2.1"),
                ("10.0.1.2", "10.0.1.1"),
                ("10.0.1.2", "10.0.1.3"),
                ("fd00:1::2", "2001:db8::1"),
                ("fd00:1::2", "fd00:1::1"),
                ("fd00:1::2", "fd00:1::3"),
            ] {
                run(&format!("ip netns exec pod2 ping -q -c1 -W2 -I {from} {to}"));
            }
            assert_eq!(dropped(), before, "own addresses, all.rp_filter={rp_filter}");
        }
    });
}

/// Neighbour solicitations for the host end's link-local address: of duplicate
/// address detection, and from a link-local address.
#[test]
fn neighbour_discovery_passes() {
    in_lab(|| {
        run(NODE);
        run(WITNESS);
        within("node", || spoof_check::ensure(None).unwrap());
        let show = "ip -n pod2 -o link show dev eth0 | cut -d: -f1";
        let index = run(show).trim().parse().unwrap();
        let target: std::net::Ipv6Addr = "fd00:1::2".parse().unwrap();
        let mut solicitation = vec![135, 0, 0, 0, 0, 0, 0, 0];
        solicitation.extend(target.octets());
        for from in ["::", "fe80::2"] {
            let before = (dropped(), passed());
            let to = "ff02::1:ff00:2".parse().unwrap();
            inject("pod2", &icmp6(from.parse().unwrap(), to, &solicitation), index);
            let after = changed(from, &before, || (dropped(), passed()));
            assert_eq!(after, (before.0, before.1 + 1), "from {from}");
        }
        // What the kernels themselves exchange: resolving without a permanent
        // entry, in both directions, and a fresh address with its detection.
        let before = dropped();
        run("ip -n pod2 neigh del fd00:1::1 dev eth0
             ip netns exec pod2 sysctl -qw net.ipv6.conf.eth0.accept_dad=1
             ip -n pod2 addr add fd00:1::22/64 dev eth0 noprefixroute
             ip netns exec pod2 ping -q -c1 -W2 -I fd00:1::2 fd00:1::1
             ip netns exec node ping -q -c1 -W2 fd00:1::2");
        assert_eq!(dropped(), before);
    });
}

#[test]
fn the_check_comes_back_after_a_flush_and_goes_when_told() {
    in_lab(|| {
        run("ip netns add node");
        let list = || run("ip netns exec node nft list tables");
        let ours = format!("table inet {}\n", spoof_check::TABLE);
        for _ in 0..2 {
            within("node", || spoof_check::ensure(None).unwrap());
            assert_eq!(list(), ours);
            run("ip netns exec node nft flush ruleset");
            assert_eq!(list(), "");
        }
        within("node", || spoof_check::ensure(None).unwrap());
        // Taken at its word while nobody changes anything, and no longer.
        let seen = within("node", || generation(&mut Socket::netfilter().unwrap()).unwrap());
        within("node", || spoof_check::ensure(Some(seen)).unwrap());
        assert_eq!(list(), ours);
        run("ip netns exec node nft flush ruleset");
        within("node", || spoof_check::ensure(Some(seen)).unwrap());
        assert_eq!(list(), ours);
        assert!(within("node", || spoof_check::remove().unwrap()));
        assert_eq!(list(), "");
        assert!(!within("node", || spoof_check::remove().unwrap()));
    });
}
