//! The map or a part of it cannot be used.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::{Chain, Families, Topology};
use serde_json::{Value, json};

use crate::stage::{DEADLINE, Stage, Trigger, conflist};
use crate::traffic::Calm;

const LAST: usize = 2;

fn without(map: &Value, index: usize) -> Value {
    let mut map = map.clone();
    if let Some(nodes) = map["nodes"].as_array_mut() {
        nodes.remove(index);
    }
    map
}

/// Everything of a node's that others could hold.
fn traces(stage: &Stage, index: usize, words: &[&str]) -> Result<Vec<String>> {
    let state = stage.state(index, &["weft.1"])?;
    let lines = state.lines().filter(|line| words.iter().any(|word| line.contains(word)));
    Ok(lines.map(str::to_owned).collect())
}

/// Its own record is gone: pods go on, nothing is taken away, and it says so.
#[test]
fn a_nodes_own_record_vanishes() -> Result<()> {
    e2e::needs_lab!();
    let stage = Stage::new(json!({}))?;
    let traffic = stage.traffic()?;
    let map = stage.lab.topology().node_map();
    let before = stage.state(LAST, &["weft.1"])?;
    stage.lab.write_node_map(&without(&map, LAST))?;
    let Err(error) = stage.chains[LAST].status() else { bail!("STATUS without a record") };
    ensure!(error.code == 50 && error.msg.contains("worker2"), "{error}");
    let error = stage.pod(LAST, "refused").err().context("ADD without a record")?;
    ensure!(error.to_string().contains("code 7"), "{error}");
    let runtime = e2e::Runtime { container: "refused", netns: "", ifname: "eth0" };
    stage.chains[LAST].del_with(runtime)?;
    ensure!(stage.state(LAST, &["weft.1"])? == before, "something was taken away");
    traffic.wait_all(Instant::now(), DEADLINE).map(drop)
}

/// Records with mistakes, each of which once was worker2's.
fn mistakes(map: &Value) -> Vec<(&'static str, Value)> {
    let with = |key: &str, value: Value| {
        let mut map = map.clone();
        map["nodes"][LAST][key] = value;
        map
    };
    let twin = |mut record: Value, key: &str, value: Value| {
        record[key] = value;
        let mut map = map.clone();
        map["nodes"].as_array_mut().expect("the map has nodes").push(record);
        map
    };
    let record = map["nodes"][LAST].clone();
    vec![
        ("address mistyped", with("addresses", json!(["192.168.44.1288"]))),
        ("range mistyped", with("podCIDRs", json!(["10.0.2.0/33", "fd10:0:0:2::/64"]))),
        ("all ranges mistyped", with("podCIDRs", json!(["10.0.2/24", "fd10:0:0:2::/129"]))),
        ("name twice", twin(record.clone(), "podCIDRs", json!(["10.0.77.0/24"]))),
        ("ranges overlap", twin(record, "name", json!("impostor"))),
    ]
}

/// Nothing of a node's with a bad record stops working, anywhere, however often nodes
/// sync, and new pods elsewhere get their network.
#[test]
fn one_bad_record_takes_nothing_down() -> Result<()> {
    e2e::needs_lab!();
    let stage = Stage::new(json!({}))?;
    let (traffic, streams) = (stage.traffic()?, stage.streams([0, 1])?);
    let map = stage.lab.topology().node_map();
    for (name, bad) in mistakes(&map) {
        let mark = streams.mark()?;
        let started = Instant::now();
        stage.lab.write_node_map(&bad)?;
        for index in 0..LAST {
            let sync = stage.weft(index, &["sync"])?;
            ensure!(sync.status.code() == Some(1), "{name}: sync does not tell: {sync}");
            stage.trigger(index, Trigger::Status).context(name)?;
            stage.trigger(index, Trigger::Add).context(name)?;
        }
        // That node itself may be unable to add pods, but must not take anything away.
        let sync = stage.weft(LAST, &["sync"])?;
        ensure!(sync.status.code() == Some(1), "{name}: sync does not tell: {sync}");
        if let Err(error) = stage.chains[LAST].status() {
            ensure!(error.code == 50 && error.msg.contains("worker2"), "{name}: {error}");
        }
        let since = Instant::now();
        traffic.wait_all(since, DEADLINE).context(name)?;
        let gap = traffic.longest_gap(started, |_| true);
        ensure!(gap < Duration::from_secs(1), "{name}: stalled {gap:?}");
        stage.lab.write_node_map(&map)?;
        stage.trigger_all(Trigger::Sync)?;
        let Calm { stall, retransmissions } = streams.assert_calm(&mark).context(name)?;
        println!(
            "{name}: longest gap {gap:.0?}; unaffected TCP: longest wait {stall:.0?}, \
             {retransmissions} segments again"
        );
    }
    Ok(())
}

/// A map that cannot be read at all: the last good copy goes on being used.
#[test]
fn the_map_breaks_and_vanishes() -> Result<()> {
    e2e::needs_lab!();
    let stage = Stage::new(json!({}))?;
    let traffic = stage.traffic()?;
    let breaks = [
        "echo '{' >/etc/weft/nodes.d/nodes.json",
        "rm /etc/weft/nodes.d/*",
        "rm -r /etc/weft/nodes.d",
    ];
    for script in breaks {
        for index in 0..3 {
            stage.node(index).sh(script)?;
            let sync = stage.weft(index, &["sync"])?;
            ensure!(sync.status.code() == Some(1), "{script}: sync does not tell: {sync}");
            stage.node(index).sh("ip link del weft.1")?;
        }
        let broken = Instant::now();
        stage.trigger_all(Trigger::Status)?;
        stage.trigger_all(Trigger::Add)?;
        let talks = traffic.wait_all(broken, DEADLINE)?;
        println!("{script}: STATUS by the last good copy, all talk after {talks:.0?}");
    }
    Ok(())
}

/// One file of several is broken and no copy is there, as after a reboot: what can be
/// read is used, and what is there is not taken away.
#[test]
fn a_file_breaks_and_no_copy_is_left() -> Result<()> {
    e2e::needs_lab!();
    let stage = Stage::new(json!({}))?;
    let map = stage.lab.topology().node_map();
    stage.lab.write_node_map(&without(&map, LAST))?;
    for index in 0..LAST {
        stage.node(index).write_file("/etc/weft/nodes.d/torn.json", "{")?;
        stage.node(index).sh("rm -r /run/weft")?;
        let sync = stage.weft(index, &["sync"])?;
        ensure!(sync.status.code() == Some(1), "sync does not tell: {sync}");
        ensure!(sync.stderr.contains("torn.json"), "{sync}");
        stage.trigger(index, Trigger::Status)?;
        stage.trigger(index, Trigger::Add)?;
        let left = traces(&stage, index, &["10.0.2.0", "192.168.44.128"])?;
        ensure!(!left.is_empty(), "what the torn file may tell of is gone");
        // Nothing is left to hold: what can be read is made.
        stage.node(index).sh("rm -r /run/weft && ip link del weft.1")?;
        stage.trigger(index, Trigger::Add)?;
        let peer = ["10.0.1.0", "10.0.0.0"][index];
        let made = traces(&stage, index, &[peer])?;
        ensure!(made.iter().any(|line| line.contains("dev weft.1")), "{made:#?}");
    }
    Ok(())
}

/// Each of two networks with one protocol would take the other's routes for its own.
#[test]
fn a_second_network_with_the_same_protocol_is_refused() -> Result<()> {
    e2e::needs_lab!();
    for keys in [json!({}), json!({ "routingMode": "native" })] {
        let topology = Topology::lesson(Families::V4, Families::V4);
        let stage = Stage::without_pods(topology, keys.clone())?;
        // The stamp is all that tells of a native network.
        stage.settle()?;
        let mut second = conflist(keys);
        second["name"] = json!("second");
        second["plugins"][1]["vni"] = json!(2);
        let before = stage.state(0, &[])?;
        let chain = Chain::new(stage.node(0), second.clone(), &[&stage.bin]);
        let Err(error) = chain.status() else { bail!("{second}: no error") };
        ensure!(error.msg.contains("routeProtocol") && error.msg.contains("pods"), "{error}");
        ensure!(stage.state(0, &[])? == before, "{error}");
        stage.trigger(0, Trigger::Status)?;
    }
    Ok(())
}

#[test]
fn a_node_alone_has_its_device_and_waits() -> Result<()> {
    e2e::needs_lab!();
    let topology = Topology::lesson(Families::V4, Families::V4);
    let stage = Stage::without_pods(topology, json!({}))?;
    let map = stage.lab.topology().node_map();
    let alone = json!({ "nodes": [map["nodes"][0]] });
    stage.lab.write_node_map(&alone)?;
    stage.trigger(0, Trigger::Sync)?;
    ensure!(stage.is_converged(0)?);
    stage.trigger(0, Trigger::Add)
}
