//! What an ADD does not do when nothing changed, and what it notices when something did.

use anyhow::{Context, Result, bail, ensure};
use e2e::{Chain, Families, Topology};
use serde_json::{Value, json};

use crate::stage::{Stage, Trigger, conflist};

/// worker1, with one single peer, so that it is the one that is asked for.
const HIT: usize = 1;

fn two_nodes() -> Result<Stage> {
    let mut topology = Topology::lesson(Families::V4, Families::Both);
    topology.hosts.pop();
    topology.links.pop();
    let mut stage = Stage::without_pods(topology, json!({}))?;
    for index in 0..2 {
        let pod = stage.pod(index, "pod")?;
        stage.pods.push(pod);
    }
    stage.settle()?;
    Ok(stage)
}

/// What strace tells of an ADD of every plugin on a node, of the calls that `calls` names.
pub(crate) fn traced(stage: &Stage, index: usize, calls: &str) -> Result<String> {
    let node = stage.node(index);
    let bin = stage.bin.display();
    for plugin in ["veth", "routing"] {
        let script = format!(
            "#!/bin/sh\nexec strace -f -qq -e signal=none -e trace={calls} -o /run/traced/{plugin}.$CNI_COMMAND {bin}/{plugin}\n"
        );
        node.write_file(&format!("/run/traced/{plugin}"), script)?;
        node.sh(&format!("chmod +x /run/traced/{plugin}"))?;
    }
    let chain =
        Chain::new(node, conflist(json!({})), &[std::path::Path::new("/run/traced"), &stage.bin]);
    let pod = node.pod("traced")?;
    chain.add(&pod, "eth0")?;
    chain.del(&pod, "eth0")?;
    pod.delete()?;
    let (veth, routing) = ("/run/traced/veth.ADD", "/run/traced/routing.ADD");
    Ok(format!("{}{}", node.read_file(veth)?, node.read_file(routing)?))
}

/// The names of files that an ADD of every plugin opens.
fn opened(stage: &Stage) -> Result<String> {
    traced(stage, HIT, "open,openat,openat2,execve")
}

#[test]
fn an_add_opens_no_map() -> Result<()> {
    e2e::needs_lab!("strace");
    let stage = two_nodes()?;
    let seen = opened(&stage)?;
    ensure!(seen.contains("pods.stamp"), "no stamp was read: {seen}");
    ensure!(!seen.contains("nodes.json"), "the map was opened: {seen}");
    // That this can fail: with the stamp away it is opened.
    stage.node(HIT).sh("rm /run/weft/pods.stamp")?;
    let seen = opened(&stage)?;
    ensure!(seen.contains("nodes.json"), "without a stamp it has to be read: {seen}");
    Ok(())
}

/// What is wrong, and how it is made so.
const SEEN: [(&str, &str); 10] = [
    ("device down and up", "ip link set weft.1 down; ip link set weft.1 up"),
    ("device gone", "ip link del weft.1"),
    ("nft ruleset flushed", "nft flush ruleset"),
    ("one nft chain flushed", "nft flush chain inet weft_87_masquerade leaving"),
    ("IPv4 route gone", "ip route del 10.0.0.0/24"),
    ("IPv6 route gone", "ip -6 route del fd10::/64"),
    ("IPv4 neighbour gone", "ip neigh del 10.0.0.0 dev weft.1"),
    ("IPv6 neighbour gone", "ip neigh del fe80::858:aff:fe00:0 dev weft.1"),
    ("FDB entry gone", "bridge fdb del 0a:58:0a:00:00:00 dev weft.1"),
    (
        "FDB entry elsewhere",
        "bridge fdb replace 0a:58:0a:00:00:00 dev weft.1 dst 192.168.9.9 self permanent",
    ),
];

#[test]
fn an_add_notices_what_a_probe_can_show() -> Result<()> {
    e2e::needs_lab!();
    let stage = two_nodes()?;
    for (name, damage) in SEEN {
        stage.node(HIT).sh(damage).context(name)?;
        ensure!(!stage.is_converged(HIT)?, "{name}: nothing is wrong");
        stage.trigger(HIT, Trigger::Add)?;
        ensure!(stage.is_converged(HIT)?, "{name}: not noticed");
    }
    Ok(())
}

#[test]
fn an_add_notices_changed_keys_map_address_and_mtu() -> Result<()> {
    e2e::needs_lab!();
    let mut stage = two_nodes()?;
    let node = stage.node(HIT).clone();
    let device = || node.run_ok(&["ip", "-d", "link", "show", "weft.1"]);

    stage.configure(HIT, json!({ "mtu": 1400 }))?;
    stage.trigger(HIT, Trigger::Add)?;
    ensure!(stage.pods[HIT].run_ok(&["ip", "link", "show", "eth0"])?.contains("mtu 1400 "));
    stage.configure(HIT, json!({}))?;
    stage.trigger(HIT, Trigger::Add)?;
    ensure!(stage.pods[HIT].run_ok(&["ip", "link", "show", "eth0"])?.contains("mtu 1450 "));

    node.sh("ip link set eth0 mtu 1400")?;
    stage.trigger(HIT, Trigger::Add)?;
    ensure!(device()?.contains("mtu 1350 "), "{}", device()?);

    stage.settle()?;
    node.sh("ip address del 192.168.211.128/24 dev eth0; ip address add 192.168.211.9/24 dev eth0
        ip route add default via 192.168.211.129")?;
    stage.trigger(HIT, Trigger::Add)?;
    ensure!(device()?.contains("local 192.168.211.9 "), "{}", device()?);

    stage.settle()?;
    let mut map = stage.lab.topology().node_map();
    add_node(&mut map)?;
    stage.lab.write_node_map(&map)?;
    stage.trigger(HIT, Trigger::Add)?;
    ensure!(node.run_ok(&["ip", "route", "show", "10.0.9.0/24"])?.contains("weft.1"));
    Ok(())
}

fn add_node(map: &mut Value) -> Result<()> {
    let Some(nodes) = map["nodes"].as_array_mut() else { bail!("no nodes") };
    nodes.push(json!({ "name": "new", "addresses": ["192.168.9.1"], "podCIDRs": ["10.0.9.0/24"] }));
    Ok(())
}
