//! The map changes, or a node does.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::{Chain, Families, Family, Topology};
use serde_json::{Value, json};

use crate::stage::{DEADLINE, Stage, TRIGGERS, Trigger, conflist};

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

#[test]
fn a_node_leaves_and_joins() -> Result<()> {
    let stage = Stage::new(json!({}))?;
    let traffic = stage.traffic()?;
    let map = stage.lab.topology().node_map();
    for trigger in TRIGGERS {
        let started = Instant::now();
        stage.lab.write_node_map(&without(&map, LAST))?;
        (0..LAST).try_for_each(|index| stage.trigger(index, trigger))?;
        for index in 0..LAST {
            let words = ["10.0.2.0", "192.168.44.128", "0a:58:0a:00:02:00", "fd10:0:0:2"];
            let left = traces(&stage, index, &words)?;
            ensure!(left.is_empty(), "{trigger:?}: {left:#?}");
        }
        // Its own record is gone: pods go on, nothing is taken away, and it says so.
        let before = stage.state(LAST, &["weft.1"])?;
        let Err(error) = stage.chains[LAST].status() else { bail!("STATUS without a record") };
        ensure!(error.code == 50 && error.msg.contains("worker2"), "{error}");
        let error = stage.pod(LAST, "refused").err().context("ADD without a record")?;
        ensure!(error.to_string().contains("code 7"), "{error}");
        stage.chains[LAST].del_with(e2e::Runtime {
            container: "refused",
            netns: "",
            ifname: "eth0",
        })?;
        stage.node(LAST).sh("umount -n /run/netns/refused; rm /run/netns/refused")?;
        ensure!(stage.state(LAST, &["weft.1"])? == before, "something was taken away");
        stage.lab.write_node_map(&map)?;
        let joined = Instant::now();
        stage.trigger_all(trigger)?;
        let run = joined.elapsed();
        let talks = traffic.wait_all(joined + run, DEADLINE)?;
        println!("node joins: {trigger:?} everywhere took {run:.0?}, all talk {talks:.0?} later");
        let gap = traffic.longest_gap(started, |nodes| !nodes.contains(&LAST));
        ensure!(gap < Duration::from_secs(1), "the others stalled {gap:?}");
    }
    Ok(())
}

#[test]
fn a_nodes_address_changes_in_either_order() -> Result<()> {
    let stage = Stage::new(json!({}))?;
    let traffic = stage.traffic()?;
    let mut map = stage.lab.topology().node_map();
    let node = stage.node(LAST);
    let mut old = "192.168.44.128".to_owned();
    for (number, trigger) in (201..).zip(TRIGGERS.into_iter().cycle().take(6)) {
        let new = format!("192.168.44.{number}");
        map["nodes"][LAST]["addresses"] = json!([new]);
        let move_address = || {
            node.sh(&format!(
                "ip address del {old}/24 dev eth0; ip address add {new}/24 dev eth0
                 ip route add default via 192.168.44.129"
            ))
        };
        let kernel_first = number % 2 == 0;
        if kernel_first {
            move_address()?;
            // Still known by its name; nothing fails meanwhile.
            stage.trigger_all(Trigger::Status)?;
            stage.lab.write_node_map(&map)?;
        } else {
            stage.lab.write_node_map(&map)?;
            stage.trigger_all(Trigger::Status)?;
            move_address()?;
        }
        let done = Instant::now();
        stage.trigger_all(trigger)?;
        let run = done.elapsed();
        let talks = traffic.wait_all(done + run, DEADLINE).with_context(|| new.clone())?;
        let order = if kernel_first { "kernel, then map" } else { "map, then kernel" };
        println!(
            "address changes ({order}): {trigger:?} took {run:.0?}, all talk {talks:.0?} later"
        );
        let link = node.run_ok(&["ip", "-d", "link", "show", "weft.1"])?;
        ensure!(link.contains(&format!("local {new} ")), "{link}");
        old = new;
    }
    Ok(())
}

#[test]
fn a_node_is_rebooted_and_rebuilt_under_its_name() -> Result<()> {
    for rebuilt in [false, true] {
        let mut stage = Stage::new(json!({}))?;
        let traffic = stage.traffic()?;
        drop(traffic);
        stage.pods.pop();
        let node = stage.node(LAST);
        stage.lab.reboot(node)?;
        if rebuilt {
            node.sh("rm -rf /var/lib/cni; ip address del 192.168.44.128/24 dev eth0
                ip address add 192.168.44.77/24 dev eth0
                ip route add default via 192.168.44.129")?;
            let mut map = stage.lab.topology().node_map();
            map["nodes"][LAST]["addresses"] = json!(["192.168.44.77"]);
            stage.lab.write_node_map(&map)?;
            stage.trigger(0, Trigger::Status)?;
            stage.trigger(1, Trigger::Add)?;
        }
        let started = Instant::now();
        let pod = stage.pod(LAST, "after")?;
        let added = started.elapsed();
        stage.pods.push(pod);
        let talks = stage.traffic()?.wait_all(started, DEADLINE)?;
        let what = if rebuilt { "rebuilt" } else { "rebooted" };
        println!("node {what}: its first ADD took {added:.0?}, all talk after {talks:.0?}");
        for index in 0..3 {
            ensure!(stage.is_converged(index)?, "{}", stage.weft(index, &["plan"])?);
        }
    }
    Ok(())
}

#[test]
fn pod_ranges_are_reassigned() -> Result<()> {
    for trigger in TRIGGERS {
        let mut stage = Stage::new(json!({}))?;
        let mut map = stage.lab.topology().node_map();
        // The last two exchange their ranges.
        let ranges = map["nodes"][1]["podCIDRs"].take();
        map["nodes"][1]["podCIDRs"] = map["nodes"][LAST]["podCIDRs"].take();
        map["nodes"][LAST]["podCIDRs"] = ranges;
        stage.lab.write_node_map(&map)?;
        let started = Instant::now();
        stage.trigger_all(trigger)?;
        let run = started.elapsed();
        for index in [1, LAST] {
            let pod = stage.pod(index, "new")?;
            let other = if index == 1 { "10.0.2." } else { "10.0.1." };
            ensure!(pod.addr(Family::V4)?.to_string().starts_with(other));
            stage.pods[index] = pod;
        }
        let talks = stage.traffic()?.wait_all(started, DEADLINE)?;
        println!("ranges exchanged: {trigger:?} took {run:.0?}, new pods talk after {talks:.0?}");
        for index in 0..3 {
            ensure!(stage.is_converged(index)?, "{}", stage.weft(index, &["plan"])?);
        }
    }
    Ok(())
}

#[test]
fn a_record_has_no_range_yet() -> Result<()> {
    let topology = Topology::lesson(Families::V4, Families::Both);
    let mut stage = Stage::without_pods(topology, json!({}))?;
    let whole = stage.lab.topology().node_map();
    let mut map = whole.clone();
    map["nodes"][LAST]["podCIDRs"] = json!([]);
    stage.lab.write_node_map(&map)?;
    for index in 0..LAST {
        let pod = stage.pod(index, "pod")?;
        stage.pods.push(pod);
    }
    let pod = stage.node(LAST).pod("pod")?;
    let Err(error) = stage.chains[LAST].add(&pod, "eth0") else { bail!("ADD without a range") };
    ensure!(error.code == 11 && error.msg.contains("podCIDRs"), "{error}");
    let Err(error) = stage.chains[LAST].status() else { bail!("STATUS without a range") };
    ensure!(error.code == 50, "{error}");
    stage.lab.write_node_map(&whole)?;
    let started = Instant::now();
    stage.chains[LAST].add(&pod, "eth0")?;
    stage.pods.push(pod);
    (0..LAST).try_for_each(|index| stage.trigger(index, Trigger::Status))?;
    let talks = stage.traffic()?.wait_all(started, DEADLINE)?;
    println!("range given: ADD there, STATUS elsewhere, all talk after {talks:.0?}");
    Ok(())
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
    let stage = Stage::new(json!({}))?;
    let traffic = stage.traffic()?;
    let map = stage.lab.topology().node_map();
    for (name, bad) in mistakes(&map) {
        let started = Instant::now();
        stage.lab.write_node_map(&bad)?;
        for index in 0..LAST {
            let sync = stage.weft(index, &["sync"])?;
            ensure!(sync.status.code() == Some(1), "{name}: sync does not tell: {sync}");
            stage.trigger(index, Trigger::Status).context(name)?;
            stage.trigger(index, Trigger::Add).context(name)?;
        }
        // That node itself may be unable to add pods, but must not take anything away.
        let _ = stage.weft(LAST, &["sync"])?;
        let _ = stage.chains[LAST].status();
        let since = Instant::now();
        traffic.wait_all(since, DEADLINE).context(name)?;
        let gap = traffic.longest_gap(started, |_| true);
        ensure!(gap < Duration::from_secs(1), "{name}: stalled {gap:?}");
        println!("{name}: longest gap {gap:.0?}");
        stage.lab.write_node_map(&map)?;
        stage.trigger_all(Trigger::Sync)?;
    }
    Ok(())
}

/// A map that cannot be read at all: the last good copy goes on being used.
#[test]
fn the_map_breaks_and_vanishes() -> Result<()> {
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
    let topology = Topology::lesson(Families::V4, Families::V4);
    let stage = Stage::without_pods(topology, json!({}))?;
    let map = stage.lab.topology().node_map();
    let alone = json!({ "nodes": [map["nodes"][0]] });
    stage.lab.write_node_map(&alone)?;
    stage.trigger(0, Trigger::Sync)?;
    ensure!(stage.is_converged(0)?);
    stage.trigger(0, Trigger::Add)
}
