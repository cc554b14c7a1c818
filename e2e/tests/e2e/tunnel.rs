//! The lesson's first step: what is on the wire, and what is in each node's kernel.

use std::time::Duration;

use anyhow::{Context, Result};
use e2e::{
    Cluster, Families, Family, Frame, Lab, Mac, Packet, PingOptions, Section, Topology, conf,
};
use serde_json::{Value, json};

use crate::{assert_ping, matching, only};

/// What a test waits at most for a packet that has been sent.
const DEADLINE: Duration = Duration::from_secs(10);

/// MAC of a node's VTEP: 0a:58 and its pod network.
fn vtep(third: u8) -> Mac {
    Mac([0x0a, 0x58, 10, 0, third, 0])
}

/// Asserts all that the lesson says of an echo through the tunnel, as it is on a link.
fn assert_lesson_frame(
    packet: &Packet,
    from: (&str, u8),
    to: (&str, u8),
    ttl: u8,
) -> Result<Frame> {
    let frame = packet.frame()?;
    assert_eq!(frame.length, 148);
    assert_eq!(frame.ethertype, 0x0800);
    let outer = frame.ip().context("no outer IP")?;
    let (source, destination) = (outer.source.to_string(), outer.destination.to_string());
    assert_eq!((source.as_str(), destination.as_str()), (from.0, to.0));
    assert_eq!((outer.protocol, outer.ttl, outer.header, outer.length), (17, ttl, 20, 134));
    assert!(!outer.is_fragment());
    let udp = outer.udp().context("no UDP")?;
    assert_eq!(udp.destination, 8472);
    assert!(udp.source >= 1024, "the source port is {}", udp.source);
    assert_ne!(udp.checksum, 0, "the tunnel has UDP checksums on");
    let vxlan = udp.vxlan.as_ref().context("no VXLAN")?;
    assert_eq!((vxlan.flags, vxlan.vni), (8, 1));
    let inner = &vxlan.inner;
    assert_eq!((inner.length, inner.ethertype), (98, 0x0800));
    assert_eq!((inner.source, inner.destination), (vtep(from.1), vtep(to.1)));
    let packet = inner.ip().context("no inner IP")?;
    assert_eq!(packet.source.to_string(), format!("10.0.{}.2", from.1));
    assert_eq!(packet.destination.to_string(), format!("10.0.{}.2", to.1));
    assert_eq!((packet.protocol, packet.ttl, packet.length), (1, 63, 84));
    assert_eq!(packet.icmp().context("no ICMP")?.length, 64);
    Ok(frame)
}

#[test]
fn a_ping_between_pods_is_vxlan_between_nodes_on_the_router() -> Result<()> {
    e2e::needs_lab!();
    let cluster = Cluster::lesson(conf::TUNNEL)?;
    let router_before = cluster.lab().router().snapshot()?;
    let (a, b) = (cluster.pod("worker1", "pod-a")?, cluster.pod("worker2", "pod-b")?);
    // The first ping between nodes: nothing has to be warmed up, not even ARP is lost.
    let near = cluster.lab().router().capture("net211", "ip")?;
    let far = cluster.lab().router().capture("net44", "ip")?;
    let third = cluster.lab().router().capture("net146", "ip")?;
    assert_ping(&a, b.addr(Family::V4)?, &PingOptions::default())?;
    let (one, two) = (("192.168.211.128", 1), ("192.168.44.128", 2));
    // Each link: the request and the reply, and no other IP packet.
    for (capture, to_ttl, back_ttl) in [(near, 64, 63), (far, 63, 64)] {
        let is_reply = |packet: &Packet| {
            let frame = packet.frame().ok();
            let icmp = frame.as_ref().and_then(|frame| frame.innermost().ip()?.icmp());
            icmp.is_some_and(|icmp| icmp.is_reply())
        };
        capture.wait_for(DEADLINE, is_reply)?;
        let packets = capture.stop()?;
        let [request, reply] = &packets[..] else { panic!("{} packets", packets.len()) };
        let request = assert_lesson_frame(request, one, two, to_ttl)?;
        assert_lesson_frame(reply, two, one, back_ttl)?;
        let icmp = request.innermost().ip().and_then(|ip| ip.icmp()).context("no ICMP")?;
        assert!(icmp.is_request());
    }
    assert!(third.stop()?.is_empty(), "the third network has no part in it");
    router_before.assert_same(&cluster.lab().router().snapshot()?);
    let routes = cluster.lab().router().snapshot()?;
    let of_pods = |route: &&str| route.contains("\"10.");
    assert_eq!(routes.section(Section::Routes).find(of_pods), None, "the router knows pods");
    Ok(())
}

#[test]
fn the_source_port_tells_flows_apart_and_stays_with_a_flow() -> Result<()> {
    e2e::needs_lab!();
    let cluster = Cluster::lesson(conf::TUNNEL)?;
    let (a, b) = (cluster.pod("worker1", "pod-a")?, cluster.pod("worker2", "pod-b")?);
    let to = b.addr(Family::V4)?.to_string();
    let capture =
        cluster.lab().router().capture("net211", "udp port 8472 and src 192.168.211.128")?;
    // UDP from 16 ports, 3 datagrams each.
    for port in 40000..40016 {
        let script = format!("exec 3<>/dev/udp/{to}/{port}; for i in 1 2 3; do printf x >&3; done");
        a.run_ok(&["bash", "-c", &script])?;
    }
    let inner_port = |frame: &Frame| frame.innermost().ip()?.udp().map(|udp| udp.destination);
    capture.wait_for(DEADLINE, |packet| {
        packet.frame().is_ok_and(|frame| inner_port(&frame) == Some(40015))
    })?;
    let mut ports = std::collections::BTreeMap::<u16, Vec<u16>>::new();
    for packet in capture.stop()? {
        let frame = packet.frame()?;
        let (Some(flow), Some(udp)) = (inner_port(&frame), frame.ip().and_then(|ip| ip.udp()))
        else {
            continue;
        };
        ports.entry(flow).or_default().push(udp.source);
    }
    assert!(ports.len() >= 16, "{ports:?}");
    assert!(ports.values().all(|used| used.iter().all(|port| *port == used[0])), "{ports:?}");
    let different: std::collections::BTreeSet<u16> = ports.values().map(|used| used[0]).collect();
    assert!(different.len() > 8, "{ports:?}");
    Ok(())
}

#[test]
fn device_entries_and_routes_are_as_documented() -> Result<()> {
    e2e::needs_lab!();
    let cluster = Cluster::lesson(conf::TUNNEL)?;
    cluster.pod("worker1", "pod-a")?;
    let node = cluster.node("worker1")?;
    assert_device(&node.json(&["ip", "-d", "-j", "link", "show", "weft.1"])?);
    let address = node.json(&["ip", "-j", "-4", "address", "show", "weft.1"])?;
    let address = only(&only(&address)["addr_info"]);
    assert_eq!((&address["local"], &address["prefixlen"]), (&json!("10.0.1.0"), &json!(32)));
    assert_eq!(node.sysctl("net/ipv6/conf/weft.1/accept_ra")?, "0");
    assert_eq!(node.sysctl("net/ipv4/ip_forward")?, "1");

    let neighbours = node.json(&["ip", "-j", "neigh", "show", "dev", "weft.1"])?;
    let fdb = node.json(&["bridge", "-j", "fdb", "show", "dev", "weft.1"])?;
    let routes = node.json(&["ip", "-d", "-j", "route", "show", "proto", "87"])?;
    let peers = [(0, "192.168.146.130"), (2, "192.168.44.128")];
    for (third, end) in peers {
        let (via, mac) = (format!("10.0.{third}.0"), vtep(third).to_string());
        let found = matching(&neighbours, &[("dst", &via), ("lladdr", &mac)]);
        assert_eq!(found.len(), 1, "{neighbours}");
        assert_eq!(found[0]["state"], json!(["PERMANENT"]));
        let found = matching(&fdb, &[("mac", &mac), ("dst", end), ("state", "permanent")]);
        assert_eq!(found.len(), 1, "{fdb}");
        assert_eq!(found[0]["flags"], json!(["self"]));
        let found = matching(&routes, &[("dst", &format!("10.0.{third}.0/24"))]);
        assert_eq!(found.len(), 1, "{routes}");
        assert_peer_route(found[0], &via);
    }
    assert_eq!(neighbours.as_array().map(Vec::len), Some(peers.len()), "{neighbours}");
    assert_eq!(fdb.as_array().map(Vec::len), Some(peers.len()), "{fdb}");
    let own = matching(&routes, &[("dst", "10.0.1.0/24"), ("type", "unreachable")]);
    assert_eq!(own.len(), 1, "{routes}");
    assert_eq!(own[0]["metric"], 8);
    assert_eq!(routes.as_array().map(Vec::len), Some(peers.len() + 1), "{routes}");
    let nexthops = node.json(&["ip", "-j", "nexthop", "show"])?;
    let ours = matching(&nexthops, &[("protocol", "87"), ("dev", "weft.1")]);
    assert_eq!(ours.len(), peers.len(), "{nexthops}");
    assert_eq!(nexthops.as_array().map(Vec::len), Some(peers.len()), "{nexthops}");
    Ok(())
}

fn assert_device(links: &Value) {
    let link = only(links);
    assert_eq!((&link["address"], &link["mtu"]), (&json!("0a:58:0a:00:01:00"), &json!(1450)));
    let flags = link["flags"].as_array().expect("flags");
    assert!(flags.contains(&json!("UP")), "{link}");
    let info = &link["linkinfo"];
    assert_eq!(info["info_kind"], "vxlan");
    let data = &info["info_data"];
    assert_eq!((&data["id"], &data["port"]), (&json!(1), &json!(8472)));
    assert_eq!((&data["local"], &data["link"]), (&json!("192.168.211.128"), &json!("eth0")));
    assert_eq!((&data["learning"], &data["udp_csum"]), (&json!(false), &json!(true)), "{data}");
    // Not external: no such key, or since iproute2 6.15 one that says so.
    assert!(data.get("group").is_none() && data["external"] != true, "{data}");
}

fn assert_peer_route(route: &Value, via: &str) {
    assert_eq!(route["dev"], "weft.1", "{route}");
    assert_eq!(route["gateway"], json!(via), "{route}");
    assert_eq!(route["metric"], 8, "{route}");
    assert_eq!(route["prefsrc"], "10.0.1.0", "{route}");
    assert_eq!(only(&route["metrics"])["mtu"], 1450, "{route}");
    assert!(route["flags"].as_array().is_some_and(|flags| flags.contains(&json!("onlink"))));
}

#[test]
fn an_address_that_no_pod_has_is_refused_at_once_and_loops_nowhere() -> Result<()> {
    e2e::needs_lab!();
    let cluster = Cluster::lesson(conf::TUNNEL)?;
    let (a, _b) = (cluster.pod("worker1", "pod-a")?, cluster.pod("worker2", "pod-b")?);
    for nobody in ["10.0.1.77", "10.0.2.77"] {
        let result =
            e2e::ping(&a, nobody.parse()?, &PingOptions { wait: 5.0, ..Default::default() })?;
        assert!(!result.all());
        let said = &result.output.stdout;
        assert!(said.contains("Destination Host Unreachable"), "{}", result.output);
    }
    Ok(())
}

#[test]
fn pods_reach_the_outside_by_their_node_s_address() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::start(Topology::lesson(Families::V4, Families::V4).with_outside(Families::V4))?;
    let cluster = Cluster::new(lab, &conf::TUNNEL.parse()?)?;
    let a = cluster.pod("worker1", "pod-a")?;
    let outside = cluster.node("outside")?;
    let capture = outside.capture("eth0", "icmp")?;
    assert_ping(&a, outside.address(Family::V4)?, &PingOptions::default())?;
    let packets = capture.stop()?;
    let frame = packets.first().context("no packet")?.frame()?;
    let source = frame.ip().context("no IP")?.source;
    assert_eq!(source, cluster.node("worker1")?.address(Family::V4)?);
    Ok(())
}
