//! One node loses something of its own. Every trigger brings it back, and a pair of
//! nodes that has nothing to do with it notices nothing.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::stage::{DEADLINE, Stage, TRIGGERS, Trigger, difference};

/// worker1, the node that is damaged.
const HIT: usize = 1;
/// A retransmission's time-out is at least 200 ms (RTO_MIN); machines are busy.
const ONE_RETRANSMISSION: Duration = Duration::from_millis(1000);

/// What is damaged, how, and whether the damage is seen by an ADD: the device, a
/// table, or entries of all peers.
const DAMAGES: [(&str, &str, bool); 17] = [
    ("device deleted", "ip link del weft.1", true),
    ("device renamed", "ip link set weft.1 down; ip link set weft.1 name x1 up", true),
    ("MAC rewritten", "ip link set weft.1 address 02:00:00:00:00:99", true),
    ("device down and up", "ip link set weft.1 down; ip link set weft.1 up", true),
    ("device down", "ip link set weft.1 down", true),
    ("device's MTU lowered", "ip link set weft.1 mtu 1300", true),
    ("device's address gone", "ip address flush dev weft.1", true),
    ("device's end moved", "ip link set weft.1 type vxlan local 192.168.211.99", true),
    (
        "routes flushed",
        "ip route show proto 87 | sed 's/ nhid.*//; s/ proto.*//' | while read -r route; do \
         ip route del $route proto 87; done; ip -6 route flush proto 87",
        true,
    ),
    ("nexthops flushed", "ip nexthop flush proto 87 >/dev/null 2>&1", false),
    ("FDB flushed", "bridge fdb flush dev weft.1", true),
    (
        "neighbours flushed",
        "ip -4 neigh flush dev weft.1 nud permanent; ip -6 neigh flush dev weft.1 nud permanent",
        true,
    ),
    ("own range gone", "ip route del unreachable 10.0.1.0/24 metric 8", true),
    ("ruleset flushed", "nft flush ruleset", true),
    ("a table deleted", "nft delete table inet weft_87_tunnel", true),
    ("one peer's route gone", "ip route del 10.0.2.0/24", false),
    ("one peer's FDB entry gone", "bridge fdb del 0a:58:0a:00:02:00 dev weft.1", false),
];

#[test]
fn what_a_node_loses_comes_back_by_every_trigger() -> Result<()> {
    let stage = Stage::new(json!({}))?;
    let traffic = stage.traffic()?;
    let whole = stage.state(HIT, &["weft.1"])?;
    for (name, damage, seen_by_add) in DAMAGES {
        for trigger in TRIGGERS {
            if trigger == Trigger::Add && !seen_by_add {
                continue;
            }
            let context = || format!("{name}, {trigger:?}");
            let started = Instant::now();
            stage.node(HIT).sh(damage).with_context(context)?;
            ensure!(!stage.is_converged(HIT)?, "{}: nothing is wrong", context());
            let broken = Instant::now();
            stage.trigger(HIT, trigger).with_context(context)?;
            let run = broken.elapsed();
            let talks = traffic.wait_all(broken + run, DEADLINE).with_context(context)?;
            let gap = traffic.longest_gap(started, |nodes| !nodes.contains(&HIT));
            println!("{name}: {trigger:?} took {run:.0?}, all talk {talks:.0?} later");
            ensure!(gap < ONE_RETRANSMISSION, "{}: others stalled {gap:?}", context());
            ensure!(stage.is_converged(HIT)?, "{}: not whole", context());
            let now = stage.state(HIT, &["weft.1"])?;
            ensure!(now == whole, "{}:\n{}", context(), difference(&whole, &now));
        }
    }
    Ok(())
}

/// Taken down, the underlay loses what the host has on it, and nothing of the overlay.
#[test]
fn the_underlay_goes_down_and_comes_up() -> Result<()> {
    let stage = Stage::new(json!({}))?;
    let traffic = stage.traffic()?;
    let node = stage.node(HIT);
    let started = Instant::now();
    node.sh("ip link set eth0 down")?;
    // What runs meanwhile does no harm and does not fail.
    stage.trigger(HIT, Trigger::Status)?;
    stage.trigger(HIT, Trigger::Sync)?;
    node.sh("ip link set eth0 up; ip route add default via 192.168.211.129")?;
    let up = Instant::now();
    stage.trigger(HIT, Trigger::Status)?;
    let talks = traffic.wait_all(up, DEADLINE)?;
    println!("underlay down and up: STATUS, all talk after {talks:.0?}");
    ensure!(stage.is_converged(HIT)?);
    let gap = traffic.longest_gap(started, |nodes| !nodes.contains(&HIT));
    ensure!(gap < ONE_RETRANSMISSION, "others stalled {gap:?}");
    Ok(())
}

/// Without a tunnel the routes are on the underlay and go with it.
#[test]
fn the_underlay_of_direct_routes_goes_down_and_comes_up() -> Result<()> {
    use e2e::{Families, Spread, Topology};
    let topology = Topology::nodes(3, Spread::Shared(3), Families::Both, Families::Both);
    let mut stage = Stage::without_pods(topology, json!({ "routingMode": "native" }))?;
    for index in 0..3 {
        let pod = stage.pod(index, "pod")?;
        stage.pods.push(pod);
    }
    stage.settle()?;
    let traffic = stage.traffic()?;
    for trigger in TRIGGERS {
        let node = stage.node(HIT);
        node.sh(
            "ip link set eth0 down; ip link set eth0 up; ip address add fd00:1::2/64 dev eth0 nodad
            ip route add default via 192.168.1.254; ip -6 route add default via fd00:1::fe",
        )?;
        node.wait_until("eth0 has its carrier", DEADLINE, || {
            let link = node.json(&["ip", "-j", "link", "show", "eth0"])?;
            Ok((link[0]["operstate"] == "UP").then_some(()))
        })?;
        ensure!(!stage.is_converged(HIT)?, "the routes stayed");
        let up = Instant::now();
        stage.trigger(HIT, trigger)?;
        let talks = traffic.wait_all(up, DEADLINE).with_context(|| format!("{trigger:?}"))?;
        println!("native underlay down and up: {trigger:?}, all talk after {talks:.0?}");
        ensure!(stage.is_converged(HIT)?);
    }
    Ok(())
}

#[test]
fn the_underlays_mtu_goes_down_and_up() -> Result<()> {
    let stage = Stage::new(json!({}))?;
    let traffic = stage.traffic()?;
    for (mtu, trigger) in
        [(1400, Trigger::Sync), (1500, Trigger::Status), (1380, Trigger::Add), (1500, Trigger::Add)]
    {
        let node = stage.node(HIT);
        node.sh(&format!("ip link set eth0 mtu {mtu}"))?;
        ensure!(!stage.is_converged(HIT)?, "{mtu}: nothing to do");
        let broken = Instant::now();
        stage.trigger(HIT, trigger)?;
        let talks = traffic.wait_all(broken, DEADLINE)?;
        println!("underlay's MTU {mtu}: {trigger:?}, all talk after {talks:.0?}");
        let inner = mtu - 50;
        for (place, link) in [(&**node, "weft.1"), (&*stage.pods[HIT], "eth0")] {
            let shown = place.run_ok(&["ip", "link", "show", link])?;
            ensure!(shown.contains(&format!("mtu {inner} ")), "{trigger:?}: {shown}");
        }
        ensure!(stage.is_converged(HIT)?);
    }
    Ok(())
}

/// Of another program's route for a peer's range the operator is told; all other
/// peers are served, and when it goes ours comes.
#[test]
fn another_programs_route_is_in_the_way() -> Result<()> {
    let stage = Stage::new(json!({}))?;
    let traffic = stage.traffic()?;
    for metric in [8, 0] {
        let route = format!("unreachable 10.0.2.0/24 metric {metric}");
        let node = stage.node(HIT);
        node.sh(&format!("ip route del 10.0.2.0/24 proto 87; ip route add {route}"))?;
        node.sh("ip route del 10.0.0.0/24 proto 87")?;
        let broken = Instant::now();
        let sync = stage.weft(HIT, &["sync"])?;
        ensure!(sync.status.code() == Some(1) && sync.stderr.contains("10.0.2.0/24"), "{sync}");
        let kept =
            node.run_ok(&["ip", "route", "show", "10.0.2.0/24", "metric", &metric.to_string()])?;
        ensure!(kept.contains("unreachable"), "it is gone: {kept}");
        traffic.wait_for(broken, DEADLINE, |nodes| nodes == [0, HIT])?;
        stage.trigger(HIT, Trigger::Status)?;
        stage.trigger(HIT, Trigger::Add)?;
        node.sh(&format!("ip route del {route}"))?;
        let gone = Instant::now();
        stage.trigger(HIT, Trigger::Status)?;
        let talks = traffic.wait_all(gone, DEADLINE)?;
        println!("foreign route of metric {metric} gone: STATUS, all talk after {talks:.0?}");
        ensure!(stage.is_converged(HIT)?);
    }
    Ok(())
}
