//! The exact size that passes, and what happens to one byte more.

use anyhow::{Context, Result};
use e2e::{
    Cluster, Families, Family, Lab, PingOptions, Pod, Topology, conf, ping, tcp_bulk,
    with_routing_keys,
};
use serde_json::{Value, json};

use crate::{assert_ping, only};

/// MTU of a pod's end and of its host's end.
fn mtus(pod: &Pod) -> Result<(u64, u64)> {
    let inside = pod.json(&["ip", "-j", "link", "show", "eth0"])?;
    let outside = pod.node().json(&["ip", "-j", "link", "show", &host_end(pod)?])?;
    let number = |links: &Value| only(links)["mtu"].as_u64().context("no MTU");
    Ok((number(&inside)?, number(&outside)?))
}

/// The name of a pod's host end.
fn host_end(pod: &Pod) -> Result<String> {
    let inside = pod.json(&["ip", "-j", "link", "show", "eth0"])?;
    let index = &only(&inside)["link_index"];
    let outside = pod.node().json(&["ip", "-j", "link"])?;
    let mut links = outside.as_array().into_iter().flatten();
    let link = links.find(|link| link["ifindex"] == *index).context("no host end")?;
    Ok(link["ifname"].as_str().context("no name")?.to_string())
}

/// Asserts that packets of `most` bytes pass both ways and that a byte more is refused
/// by the sender's own interface.
fn assert_most(a: &Pod, b: &Pod, most: u32) -> Result<()> {
    for (from, to) in [(a, b), (b, a)] {
        let to = to.addr(Family::V4)?;
        assert_ping(from, to, &PingOptions::exact(most, to))?;
        let result = ping(from, to, &PingOptions::exact(most + 1, to))?;
        assert!(result.received == 0 && result.too_big_here(), "{}", result.output);
    }
    Ok(())
}

#[test]
fn a_pod_sends_what_the_underlay_leaves_and_not_a_byte_more() -> Result<()> {
    e2e::needs_lab!();
    for underlay in [1500, 1400, 9000] {
        let lab = Lab::start(Topology::lesson(Families::V4, Families::V4).with_mtu(underlay))?;
        let cluster = Cluster::new(lab, &conf::TUNNEL.parse()?)?;
        let (a, b) = (cluster.pod("worker1", "pod-a")?, cluster.pod("worker2", "pod-b")?);
        let expected = u64::from(underlay - 50);
        assert_eq!(mtus(&a)?, (expected, expected), "on {underlay}");
        assert_most(&a, &b, underlay - 50)?;
        // From the node too, whose device has the same MTU.
        let node = cluster.node("worker1")?;
        let to = b.addr(Family::V4)?;
        assert_ping(node, to, &PingOptions::exact(underlay - 50, to))?;
        assert!(ping(node, to, &PingOptions::exact(underlay - 49, to))?.too_big());
        // Larger ones are cut into fragments by the pod where it may.
        let large = PingOptions { size: 4000, ..PingOptions::default() };
        assert_ping(&a, to, &large)?;
    }
    Ok(())
}

#[test]
fn a_pod_with_a_larger_mtu_is_told_the_route_s() -> Result<()> {
    e2e::needs_lab!("iperf3");
    let cluster = Cluster::lesson(conf::TUNNEL)?;
    let (a, b) = (cluster.pod("worker1", "pod-a")?, cluster.pod("worker2", "pod-b")?);
    a.node().run_ok(&["ip", "link", "set", &host_end(&a)?, "mtu", "1500"])?;
    a.run_ok(&["ip", "link", "set", "eth0", "mtu", "1500"])?;
    let to = b.addr(Family::V4)?;
    let capture = a.capture("eth0", "icmp")?;
    let result = ping(&a, to, &PingOptions::exact(1500, to))?;
    assert!(!result.all() && result.too_big(), "{}", result.output);
    let mut told = None;
    for packet in capture.stop()? {
        let frame = packet.frame()?;
        told = told.or(frame.ip().and_then(|ip| ip.icmp()?.too_big()));
    }
    assert_eq!(told, Some(1450));
    assert_ping(&a, to, &PingOptions::exact(1450, to))?;
    // TCP finds the size by itself.
    tcp_bulk(&a, &b, to, 1 << 20)?;
    Ok(())
}

#[test]
fn the_key_mtu_reaches_pods_new_and_old() -> Result<()> {
    e2e::needs_lab!();
    let mut cluster = Cluster::lesson(conf::TUNNEL)?;
    let a = cluster.pod("worker1", "pod-a")?;
    cluster.set_conflist(&with_routing_keys(conf::TUNNEL, &json!({ "mtu": 1300 }))?)?;
    let b = cluster.pod("worker2", "pod-b")?;
    assert_eq!(mtus(&b)?, (1300, 1300));
    assert_eq!(mtus(&a)?, (1450, 1450));
    cluster.sync_all()?;
    assert_eq!(mtus(&a)?, (1300, 1300));
    assert_most(&a, &b, 1300)?;
    cluster.set_conflist(&conf::TUNNEL.parse()?)?;
    cluster.sync_all()?;
    assert_eq!((mtus(&a)?, mtus(&b)?), ((1450, 1450), (1450, 1450)));
    assert_most(&a, &b, 1450)?;
    // More than the underlay carries is refused, and nothing changes.
    cluster.set_conflist(&with_routing_keys(conf::TUNNEL, &json!({ "mtu": 1451 }))?)?;
    let output = cluster.weft("worker1", &["sync"])?;
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stderr.contains("1451") && output.stderr.contains("1450"), "{output}");
    assert_most(&a, &b, 1450)
}

#[test]
fn an_underlay_whose_mtu_shrinks_is_followed() -> Result<()> {
    e2e::needs_lab!();
    let cluster = Cluster::lesson(conf::TUNNEL)?;
    let (a, b) = (cluster.pod("worker1", "pod-a")?, cluster.pod("worker2", "pod-b")?);
    for node in cluster.lab().nodes() {
        node.run_ok(&["ip", "link", "set", "eth0", "mtu", "1400"])?;
    }
    for link in &cluster.lab().topology().links {
        cluster.lab().router().run_ok(&["ip", "link", "set", &link.name, "mtu", "1400"])?;
    }
    cluster.sync_all()?;
    assert_eq!(mtus(&a)?, (1350, 1350));
    assert_most(&a, &b, 1350)
}
