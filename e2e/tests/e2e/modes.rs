//! From the tunnel to native routing and to a mixture of both, under living pods.

use anyhow::{Context, Result};
use e2e::{Cluster, Family, PingOptions, Place, Pod, conf, ping};

use crate::{assert_ping, only};

/// How a ping between two pods looks on the router's interface: its length there, and
/// whether that is inside the tunnel; of the request and of the reply.
fn seen(router: &Place, link: &str, from: &Pod, to: &Pod) -> Result<Vec<(usize, bool)>> {
    let capture = router.capture(link, "ip")?;
    assert_ping(from, to.addr(Family::V4)?, &PingOptions::default())?;
    let mut shapes = Vec::new();
    for packet in capture.stop()? {
        let frame = packet.frame()?;
        shapes.push((frame.length, frame.vxlan().is_some()));
    }
    Ok(shapes)
}

#[test]
fn native_takes_the_tunnel_away_and_needs_the_router_s_routes() -> Result<()> {
    e2e::needs_lab!();
    let mut cluster = Cluster::lesson(conf::TUNNEL)?;
    let (a, b) = (cluster.pod("worker1", "pod-a")?, cluster.pod("worker2", "pod-b")?);
    let (to, near) = (b.addr(Family::V4)?, cluster.pod("worker1", "pod-near")?);
    cluster.set_conflist(&conf::NATIVE.parse()?)?;
    // One node by `weft sync`, one by the next ADD.
    cluster.weft("worker1", &["sync"])?.ok()?;
    cluster.pod("worker2", "pod-new")?;
    for name in ["worker1", "worker2"] {
        let node = cluster.node(name)?;
        let devices = node.run_ok(&["ip", "-o", "link", "show", "type", "vxlan"])?;
        assert!(devices.is_empty(), "{name} has a VXLAN device: {devices}");
        let routes = node.json(&["ip", "-j", "-d", "route", "show", "proto", "87"])?;
        assert_eq!(only(&routes)["type"], "unreachable", "{routes}");
        let nexthops = node.run_ok(&["ip", "nexthop", "show", "proto", "87"])?;
        assert!(nexthops.is_empty(), "{nexthops}");
        assert_eq!(cluster.weft(name, &["plan"])?.status.code(), Some(0));
    }
    for pod in [&a, &b] {
        let link = pod.json(&["ip", "-j", "link", "show", "eth0"])?;
        assert_eq!(only(&link)["mtu"], 1500, "nothing is wrapped around any more");
    }
    assert_ping(&a, near.addr(Family::V4)?, &PingOptions::default())?;

    let router = &cluster.lab().router().clone();
    let capture = router.capture("net211", "ip and src net 10.0.0.0/8")?;
    assert!(!ping(&a, to, &PingOptions { wait: 0.2, ..PingOptions::default() })?.all());
    let packets = capture.stop()?;
    let frame = packets.first().context("nothing reached the router")?.frame()?;
    assert_eq!((frame.length, frame.vxlan()), (98, None));
    let ip = frame.ip().context("no IP")?;
    assert_eq!((ip.source, ip.destination), (a.addr(Family::V4)?, to));

    ["worker1", "worker2"].into_iter().try_for_each(|node| cluster.route_to(node))?;
    assert_eq!(seen(router, "net44", &a, &b)?, [(98, false), (98, false)]);
    assert_ping(&a, to, &PingOptions::exact(1500, to))?;
    assert!(ping(&a, to, &PingOptions::exact(1501, to))?.too_big());

    // And back.
    cluster.set_conflist(&conf::TUNNEL.parse()?)?;
    cluster.sync_all()?;
    assert_eq!(seen(router, "net44", &a, &b)?, [(148, true), (148, true)]);
    assert_ping(&a, to, &PingOptions::exact(1450, to))
}

#[test]
fn hybrid_takes_one_way_for_both_directions_of_each_pair() -> Result<()> {
    e2e::needs_lab!();
    let cluster = Cluster::lesson(conf::HYBRID)?;
    let control = cluster.pod("control-plane", "pod-c")?;
    let (a, b) = (cluster.pod("worker1", "pod-a")?, cluster.pod("worker2", "pod-b")?);
    ["control-plane", "worker1"].into_iter().try_for_each(|node| cluster.route_to(node))?;
    let router = cluster.lab().router();
    let (native, tunnel) = ([(98, false); 2], [(148, true); 2]);
    for (from, to) in [(&control, &a), (&a, &control)] {
        assert_eq!(seen(router, "net146", from, to)?, native);
    }
    for (from, to) in [(&control, &b), (&a, &b), (&b, &a), (&b, &control)] {
        assert_eq!(seen(router, "net44", from, to)?, tunnel);
    }
    // The way's own MTU: pods have the underlay's, the tunnel's route tells less.
    let to = a.addr(Family::V4)?;
    assert_ping(&control, to, &PingOptions::exact(1500, to))?;
    let to = b.addr(Family::V4)?;
    assert!(ping(&control, to, &PingOptions::exact(1451, to))?.too_big());
    assert_ping(&control, to, &PingOptions::exact(1450, to))
}
