//! What was changed by hand comes back; what was not is left alone.

use std::time::Duration;

use anyhow::Result;
use e2e::{Cluster, Family, Monitor, Node, Output, PingOptions, Pod, Section, Snapshot, conf};
use serde_json::json;

use crate::{assert_ping, only};

/// What a test waits at most for an event.
const DEADLINE: Duration = Duration::from_secs(10);

/// The kernel's state between nodes; a pod's coming and going changes leases alone.
fn state(node: &Node) -> Result<Snapshot> {
    Ok(node.snapshot()?.without(&[Section::Files]))
}

/// Waits until duplicate address detection is over, the last that the kernel does by itself.
fn no_tentative_address(node: &Node) -> Result<()> {
    let has_none =
        || Ok(node.run_ok(&["ip", "address", "show", "tentative"])?.is_empty().then_some(()));
    node.wait_until("duplicate address detection", DEADLINE, has_none)
}

/// Damages that concern every peer, or all pods: the next ADD sees them.
const PLAIN: [&str; 18] = [
    "ip link del weft.1",
    "ip link set weft.1 down",
    "ip link set weft.1 address 02:00:00:00:00:99",
    "ip link set weft.1 mtu 1400",
    "ip link set weft.1 down; ip link set weft.1 name other.1",
    "ip link set weft.1 type vxlan local 192.168.211.129",
    "ip link del weft.1; ip link add weft.1 type vxlan id 1 dstport 4789 local 192.168.211.128",
    "ip link del weft.1; ip link add weft.1 type vxlan id 2 dstport 8472 local 192.168.211.128",
    "ip link del weft.1; \
     ip link add weft.1 type vxlan id 1 dstport 8472 dev eth0 local 192.168.211.128",
    "ip address del 10.0.1.0/32 dev weft.1",
    "ip route del unreachable 10.0.1.0/24 metric 8",
    "for n in 0 1 2; do ip route del 10.0.$n.0/24 metric 8; done",
    "for id in $(ip nexthop show proto 87 | cut -d ' ' -f 2); do ip nexthop del id $id; done",
    "for n in 0 2; do ip neigh del 10.0.$n.0 dev weft.1; done",
    "for n in 0 2; do \
     ip neigh replace 10.0.$n.0 lladdr 02:00:00:00:00:99 nud permanent dev weft.1; done",
    "bridge fdb | sed -n 's/ self.*//; s/^.* dev weft.1/fdb del &/p' | bridge -batch -",
    "nft list tables | grep -v weft_spoof | sed 's/^/delete /' | nft -f -",
    "nft list tables | grep -v weft_spoof | sed 's/^/flush /' | nft -f -",
];

/// Damages of one peer or of none, which an ADD may miss; a sync, and STATUS, do not.
const SUBTLE: [&str; 13] = [
    "ip link set weft.1 alias ''",
    "ip address add 10.0.1.77/32 dev weft.1",
    "ip route del 10.0.2.0/24",
    "ip route change 10.0.2.0/24 via 10.0.0.0 dev weft.1 onlink proto 87 metric 8",
    "ip neigh del 10.0.2.0 dev weft.1",
    "ip neigh replace 10.0.2.0 lladdr 02:00:00:00:00:99 nud permanent dev weft.1",
    "ip neigh replace 10.0.2.0 lladdr 0a:58:0a:00:02:00 nud reachable dev weft.1",
    "bridge fdb del 0a:58:0a:00:02:00 dev weft.1 dst 192.168.44.128",
    "bridge fdb replace 0a:58:0a:00:02:00 dev weft.1 dst 192.168.44.99 self permanent",
    "ip route add 10.0.9.0/24 via 10.0.2.0 dev weft.1 onlink proto 87 metric 8",
    "ip route add unreachable 10.0.9.0/24 proto 87",
    "ip neigh add 10.0.9.0 lladdr 0a:58:0a:00:09:00 nud permanent dev weft.1",
    "bridge fdb append 0a:58:0a:00:09:00 dev weft.1 dst 192.168.9.1 self permanent",
];

/// The lesson with a pod on worker1 and one on worker2, and worker1's state.
fn converged() -> Result<(Cluster, Pod, Pod, Snapshot)> {
    let cluster = Cluster::lesson(conf::TUNNEL)?;
    let (a, b) = (cluster.pod("worker1", "pod-a")?, cluster.pod("worker2", "pod-b")?);
    let good = state(cluster.node("worker1")?)?;
    Ok((cluster, a, b, good))
}

/// The changes that `weft plan` or `weft sync` names, without nexthops that go with the
/// device: a sync finds them gone.
fn changes(output: &Output) -> Vec<&str> {
    let lines: Vec<&str> = output.stdout.lines().skip(1).collect();
    let anew = lines.iter().any(|line| line.starts_with("  ip link del"));
    lines.into_iter().filter(|line| !(anew && line.starts_with("  ip nexthop del"))).collect()
}

#[test]
fn sync_restores_whatever_was_changed_by_hand() -> Result<()> {
    e2e::needs_lab!();
    let (cluster, a, b, good) = converged()?;
    let node = cluster.node("worker1")?;
    for damage in PLAIN.into_iter().chain(SUBTLE) {
        node.sh(damage)?;
        let damaged = state(node)?;
        assert!(!good.diff(&damaged).is_empty(), "`{damage}` changes nothing");
        let plan = cluster.weft("worker1", &["plan"])?;
        assert_eq!(plan.status.code(), Some(2), "after `{damage}`: {plan}");
        damaged.assert_same(&state(node)?);
        let sync = cluster.weft("worker1", &["sync"])?;
        assert!(sync.success(), "after `{damage}`: {sync}");
        assert_eq!(changes(&plan), changes(&sync), "after `{damage}`");
        let diff = good.diff(&state(node)?);
        assert!(diff.is_empty(), "after `{damage}` and {sync}:\n{diff}");
        let plan = cluster.weft("worker1", &["plan"])?;
        assert_eq!(plan.status.code(), Some(0), "after `{damage}` and sync: {plan}");
        assert_ping(&a, b.addr(Family::V4)?, &PingOptions::default())?;
    }
    Ok(())
}

#[test]
fn the_next_add_restores_whatever_was_changed_by_hand() -> Result<()> {
    e2e::needs_lab!();
    let (cluster, a, b, good) = converged()?;
    let node = cluster.node("worker1")?;
    for damage in PLAIN {
        node.sh(damage)?;
        let pod = cluster.pod("worker1", "pod-new")?;
        assert_ping(&pod, b.addr(Family::V4)?, &PingOptions::default())?;
        cluster.remove("worker1", &pod)?;
        let diff = good.diff(&state(node)?);
        assert!(diff.is_empty(), "after `{damage}`, ADD and DEL:\n{diff}");
    }
    assert_ping(&a, b.addr(Family::V4)?, &PingOptions::default())
}

#[test]
fn status_and_gc_restore_what_an_add_may_miss() -> Result<()> {
    e2e::needs_lab!();
    let (cluster, a, b, good) = converged()?;
    let (node, chain) = (cluster.node("worker1")?, cluster.chain("worker1")?);
    for damage in SUBTLE.into_iter().chain([PLAIN[0]]) {
        node.sh(damage)?;
        chain.status()?;
        let diff = good.diff(&state(node)?);
        assert!(diff.is_empty(), "after `{damage}` and STATUS:\n{diff}");
        node.sh(damage)?;
        chain.gc(&[("pod-a", "eth0")]).map_err(|errors| anyhow::anyhow!("{errors:?}"))?;
        let diff = good.diff(&state(node)?);
        assert!(diff.is_empty(), "after `{damage}` and GC:\n{diff}");
        assert_ping(&a, b.addr(Family::V4)?, &PingOptions::default())?;
    }
    Ok(())
}

#[test]
fn a_second_sync_says_nothing_to_the_kernel() -> Result<()> {
    e2e::needs_lab!();
    let cluster = Cluster::lesson(conf::TUNNEL)?;
    cluster.pod("worker1", "pod-a")?;
    let node = cluster.node("worker1")?;
    no_tentative_address(node)?;
    // The ADD before may have left it to this sync to write down what it found.
    cluster.weft("worker1", &["sync"])?.ok()?;
    let before = node.snapshot()?;
    let monitor = Monitor::start(node)?;
    for command in [&["sync"][..], &["plan"]] {
        let output = cluster.weft("worker1", command)?;
        assert!(output.success() && output.stdout.contains("nothing"), "{output}");
    }
    cluster.chain("worker1")?.status()?;
    node.sh("ip route add unreachable 192.0.2.7/32 table 7; ip route del unreachable 192.0.2.7/32 table 7")?;
    loop {
        let event = monitor.next(DEADLINE, |_| true)?;
        if event.contains("192.0.2.7") {
            break;
        }
        // The kernel's own: the state of learned neighbours, and the monitor's mark.
        let own = event.contains("[NEIGH]") && !event.contains("PERMANENT");
        assert!(own || event.contains("192.0.2.255"), "{event}");
    }
    before.assert_same(&node.snapshot()?);
    Ok(())
}

#[test]
fn what_is_not_weft_s_stays() -> Result<()> {
    e2e::needs_lab!();
    let cluster = Cluster::lesson(conf::TUNNEL)?;
    cluster.pod("worker1", "pod-a")?;
    let node = cluster.node("worker1")?;
    node.sh("ip route add 10.9.0.0/16 via 192.168.211.129 proto static
        ip route add 10.8.0.0/16 via 192.168.211.129 proto bird
        ip neigh add 192.168.211.7 lladdr 02:0:0:0:0:7 nud permanent dev eth0
        ip nexthop add id 77 via 192.168.211.129 dev eth0 proto static
        ip link add vxlan9 type vxlan id 9 dstport 8472 local 192.168.211.128
        ip address add 10.7.0.1/24 dev vxlan9; ip link set vxlan9 up
        bridge fdb append 02:00:00:00:00:09 dev vxlan9 dst 192.168.9.1
        bridge fdb append 02:00:00:00:00:08 dev weft.1 dst 192.168.9.1 extern_learn
        ip neigh add 10.0.2.9 lladdr 02:00:00:00:00:08 dev weft.1 extern_learn
        nft add table inet mine; nft add chain inet mine forward")?;
    let before = state(node)?;
    let plan = cluster.weft("worker1", &["plan"])?;
    assert_eq!(plan.status.code(), Some(0), "{plan}");
    cluster.weft("worker1", &["sync"])?.ok()?;
    before.assert_same(&state(node)?);
    cluster.weft("worker1", &["teardown"])?.ok()?;
    cluster.weft("worker1", &["sync"])?.ok()?;
    let now = state(node)?;
    // Entries on the device go with the device.
    let lost = before.diff(&now);
    let others: Vec<&str> =
        lost.lines().filter(|line| !line.contains("02:00:00:00:00:08")).collect();
    assert!(others.is_empty(), "{others:?}");
    Ok(())
}

#[test]
fn a_node_that_left_the_map_disappears_everywhere() -> Result<()> {
    e2e::needs_lab!();
    let cluster = Cluster::lesson(conf::TUNNEL)?;
    let (a, c) = (cluster.pod("worker1", "pod-a")?, cluster.pod("control-plane", "pod-c")?);
    let b = cluster.pod("worker2", "pod-b")?;
    let map: serde_json::Value = conf::NODES.parse()?;
    let mut smaller = map.clone();
    smaller["nodes"].as_array_mut().map(Vec::pop);
    let with_all = [state(cluster.node("worker1")?)?, state(cluster.node("control-plane")?)?];
    const SECTIONS: [Section; 5] =
        [Section::Routes, Section::Neighbours, Section::Fdb, Section::Nexthops, Section::Nftables];
    let trace = |line: &&str| {
        ["10.0.2.", "192.168.44.128", "0a:58:0a:00:02:00"].iter().any(|t| line.contains(t))
    };
    for before in &with_all {
        for section in SECTIONS {
            assert!(before.section(section).any(|line| trace(&line)), "{section:?}");
        }
    }
    cluster.lab().write_node_map(&smaller)?;
    // One node by the command, one by the next ADD.
    cluster.weft("worker1", &["sync"])?.ok()?;
    let pod = cluster.pod("control-plane", "pod-new")?;
    cluster.remove("control-plane", &pod)?;
    for name in ["worker1", "control-plane"] {
        let now = state(cluster.node(name)?)?;
        for section in SECTIONS {
            assert_eq!(now.section(section).find(trace), None, "{name} {section:?}");
        }
    }
    assert_ping(&a, c.addr(Family::V4)?, &PingOptions::default())?;
    // It comes back.
    cluster.lab().write_node_map(&map)?;
    cluster.sync_all()?;
    for (before, name) in with_all.iter().zip(["worker1", "control-plane"]) {
        before.assert_same(&state(cluster.node(name)?)?);
    }
    assert_ping(&a, b.addr(Family::V4)?, &PingOptions::default())
}

#[test]
fn a_node_s_new_address_is_applied_in_place() -> Result<()> {
    e2e::needs_lab!();
    let cluster = Cluster::lesson(conf::TUNNEL)?;
    let (a, b) = (cluster.pod("worker1", "pod-a")?, cluster.pod("worker2", "pod-b")?);
    let worker2 = cluster.node("worker2")?;
    let index = |node: &Node| -> Result<String> {
        Ok(only(&node.json(&["ip", "-j", "link", "show", "weft.1"])?)["ifindex"].to_string())
    };
    let indices = (index(cluster.node("worker1")?)?, index(worker2)?);
    worker2.sh(
        "ip address del 192.168.44.128/24 dev eth0; ip address add 192.168.44.200/24 dev eth0
        ip route replace default via 192.168.44.129",
    )?;
    let mut map: serde_json::Value = conf::NODES.parse()?;
    map["nodes"][2]["addresses"] = json!(["192.168.44.200"]);
    cluster.lab().write_node_map(&map)?;
    cluster.sync_all()?;
    assert_eq!((index(cluster.node("worker1")?)?, index(worker2)?), indices, "no device is new");
    let capture = cluster.lab().router().capture("net44", "udp port 8472")?;
    assert_ping(&a, b.addr(Family::V4)?, &PingOptions::default())?;
    let mut ends = Vec::new();
    for packet in capture.stop()? {
        ends.extend(
            packet.frame()?.ip().map(|ip| (ip.source.to_string(), ip.destination.to_string())),
        );
    }
    let (one, two) = ("192.168.211.128".to_string(), "192.168.44.200".to_string());
    assert_eq!(ends, [(one.clone(), two.clone()), (two, one)]);
    Ok(())
}
