//! What captures, devices and counters show.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::{Capture, Cluster, Frame, Ip, Place};
use serde_json::Value;

/// What a test waits at most for something that takes milliseconds.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// Ends a capture; its packets decoded.
pub(crate) fn frames(capture: Capture) -> Result<Vec<Frame>> {
    capture.stop()?.iter().map(e2e::Packet::frame).collect()
}

/// Echo requests or replies with `size` bytes of data among frames, tunnelled or not.
pub(crate) fn echoes(frames: &[Frame], request: bool, size: u32) -> Vec<&Frame> {
    let wanted = |frame: &&Frame| {
        let icmp = frame.innermost().ip().and_then(Ip::icmp);
        icmp.is_some_and(|icmp| {
            let kind = if request { icmp.is_request() } else { icmp.is_reply() };
            kind && icmp.length == size as usize + 8
        })
    };
    frames.iter().filter(wanted).collect()
}

/// The innermost IP packet of a frame that is known to have one.
pub(crate) fn inner(frame: &Frame) -> &Ip {
    frame.innermost().ip().expect("echoes are IP packets")
}

/// The outer addresses of a frame in the tunnel.
pub(crate) fn tunnel_ends(frame: &Frame) -> Option<(IpAddr, IpAddr)> {
    frame.vxlan()?;
    frame.ip().map(|ip| (ip.source, ip.destination))
}

/// The link's object of `ip -j -s -d link`.
pub(crate) fn link(place: &Place, name: &str) -> Result<Value> {
    let links = place.json(&["ip", "-j", "-s", "-d", "link", "show", "dev", name])?;
    Ok(links[0].clone())
}

/// A link's MTU in bytes.
pub(crate) fn mtu(place: &Place, name: &str) -> Result<u64> {
    link(place, name)?["mtu"].as_u64().context("a link has an MTU")
}

/// Packets that a device has received.
pub(crate) fn received(place: &Place, name: &str) -> Result<u64> {
    link(place, name)?["stats64"]["rx"]["packets"].as_u64().context("a link counts packets")
}

/// Packets that reverse path filtering has dropped (IPReversePathFilter, SNMP
/// counter of Linux).
fn refused_sources(place: &Place) -> Result<u64> {
    let text = place.run_ok(&["cat", "/proc/net/netstat"])?;
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = lines.next().zip(lines.next()).context("no TcpExt counters")?;
    let mut pairs = names.split(' ').zip(values.split(' '));
    let found = pairs.find(|(name, _)| *name == "IPReversePathFilter");
    Ok(found.context("no IPReversePathFilter")?.1.parse()?)
}

/// No host dropped a packet for its source, by reverse path filtering.
pub(crate) fn assert_no_source_was_refused(cluster: &Cluster) -> Result<()> {
    let hosts = cluster.lab().nodes().iter().map(|node| &**node);
    for place in hosts.chain([cluster.lab().router()]) {
        assert_eq!(refused_sources(place)?, 0, "{}", place.name());
    }
    Ok(())
}

/// Names of the host ends of a node's pods.
pub(crate) fn host_ends(node: &Place) -> Result<Vec<String>> {
    let links = node.json(&["ip", "-j", "link", "show", "type", "veth"])?;
    let names = links.as_array().into_iter().flatten().filter_map(|link| link["ifname"].as_str());
    Ok(names.filter(|name| *name != "eth0").map(str::to_owned).collect())
}

/// What a node's nf_tables hold.
pub(crate) fn ruleset(node: &Place) -> Result<Vec<Value>> {
    let ruleset = node.json(&["nft", "-j", "list", "ruleset"])?;
    Ok(ruleset["nftables"].as_array().cloned().unwrap_or_default())
}

/// Packets that the dropping rules of weft's tables have counted, of one whose name
/// begins with `table`.
pub(crate) fn dropped(node: &Place, table: &str) -> Result<u64> {
    let mut sum = 0;
    for entry in ruleset(node)? {
        let rule = &entry["rule"];
        if !rule["table"].as_str().is_some_and(|name| name.starts_with(table)) {
            continue;
        }
        let expressions = rule["expr"].as_array().map(Vec::as_slice).unwrap_or_default();
        if expressions.iter().any(|expression| expression.get("drop").is_some()) {
            let mut counters = expressions.iter().filter_map(|e| e["counter"]["packets"].as_u64());
            sum += counters.next().context("a rule that drops does not count")?;
        }
    }
    Ok(sum)
}

/// The elements of a set of one of weft's tables, as nft prints them; none where there
/// is no such set.
pub(crate) fn set_elements(node: &Place, table: &str, name: &str) -> Result<Option<Vec<String>>> {
    for entry in ruleset(node)? {
        let set = &entry["set"];
        if set["table"] == table && set["name"] == name {
            let elements = set["elem"].as_array().into_iter().flatten();
            return Ok(Some(elements.map(element).collect()));
        }
    }
    Ok(None)
}

fn element(value: &Value) -> String {
    match &value["prefix"] {
        Value::Null => value.as_str().map_or_else(|| value.to_string(), str::to_owned),
        prefix => format!("{}/{}", prefix["addr"].as_str().unwrap_or_default(), prefix["len"]),
    }
}

/// Asks until the answer is another than `before`, and returns it.
pub(crate) fn changed<T: PartialEq>(
    what: &str,
    before: &T,
    mut ask: impl FnMut() -> Result<T>,
) -> Result<T> {
    let end = Instant::now() + DEADLINE;
    loop {
        let now = ask()?;
        if now != *before {
            return Ok(now);
        }
        ensure!(Instant::now() < end, "{what}: nothing happens");
    }
}

/// Asks until the answer is `wanted`.
pub(crate) fn becomes<T: PartialEq + std::fmt::Debug>(
    what: &str,
    wanted: &T,
    mut ask: impl FnMut() -> Result<T>,
) -> Result<()> {
    let end = Instant::now() + DEADLINE;
    loop {
        let now = ask()?;
        if now == *wanted {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("{what}: {now:?} instead of {wanted:?}");
        }
    }
}
