//! A sync that is killed at any system call leaves nothing that the next cannot
//! bring in order.

use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt;

use anyhow::{Context, Result, ensure};
use e2e::{Families, Spread, Topology};
use serde_json::{Value, json};

use crate::stage::{Stage, difference};

/// Every so many system calls without WEFT_SOAK.
const STEP: usize = 19;

/// What a sync starts from and what it is to come to.
struct Change {
    topology: Topology,
    /// Keys and node map before; none is a node that never had a sync.
    before: Option<(Value, Value)>,
    /// Keys after; the map is then the topology's.
    after: Value,
    /// The VXLAN devices that there are after.
    devices: &'static [&'static str],
}

fn lesson() -> Topology {
    Topology::lesson(Families::V4, Families::Both)
}

#[test]
fn the_first_sync() -> Result<()> {
    e2e::needs_lab!("strace");
    let change =
        Change { topology: lesson(), before: None, after: json!({}), devices: &["weft.1"] };
    killed_everywhere("first sync", &change)
}

#[test]
fn a_sync_from_another_vni() -> Result<()> {
    e2e::needs_lab!("strace");
    let topology = lesson();
    let map = topology.node_map();
    let before = Some((json!({ "vni": 9, "mtu": 1300, "ipMasq": false }), map));
    let change = Change { topology, before, after: json!({}), devices: &["weft.1"] };
    killed_everywhere("from another VNI", &change)
}

/// Nodes on one link: natively each is the other's gateway.
fn neighbours() -> Topology {
    Topology::nodes(3, Spread::Shared(3), Families::Both, Families::Both)
}

#[test]
fn a_sync_from_tunnel_to_native() -> Result<()> {
    e2e::needs_lab!("strace");
    let topology = neighbours();
    let before = Some((json!({}), topology.node_map()));
    let after = json!({ "routingMode": "native" });
    killed_everywhere("tunnel to native", &Change { topology, before, after, devices: &[] })
}

#[test]
fn a_sync_from_native_to_tunnel() -> Result<()> {
    e2e::needs_lab!("strace");
    let topology = neighbours();
    let before = Some((json!({ "routingMode": "native" }), topology.node_map()));
    let change = Change { topology, before, after: json!({}), devices: &["weft.1"] };
    killed_everywhere("native to tunnel", &change)
}

#[test]
fn a_sync_after_nodes_left() -> Result<()> {
    e2e::needs_lab!("strace");
    let topology = lesson();
    let mut map = topology.node_map();
    let gone = (1..=60).map(|number| {
        json!({
            "name": format!("gone{number}"), "addresses": [format!("192.168.9.{number}")],
            "podCIDRs": [format!("10.1.{number}.0/24"), format!("fd10:0:1:{number}::/64")],
        })
    });
    map["nodes"].as_array_mut().context("the map has nodes")?.extend(gone);
    let before = Some((json!({}), map));
    let change = Change { topology, before, after: json!({}), devices: &["weft.1"] };
    killed_everywhere("60 nodes gone", &change)
}

/// Kills the sync that makes the change at one system call after the other, each time
/// from the same start; the next sync has to make of it what a fresh node's would.
fn killed_everywhere(name: &str, change: &Change) -> Result<()> {
    let step = if std::env::var_os("WEFT_SOAK").is_some() { 1 } else { STEP };
    let mut stage = Stage::without_pods(change.topology.clone(), change.after.clone())?;
    stage.weft(0, &["sync"])?.ok()?;
    let fresh = stage.state(0, change.devices)?;
    restore(&mut stage, change)?;
    let calls = system_calls(&stage)?;
    ensure!(calls.len() > 100, "a sync makes more system calls than {calls:?}");
    let mut kills = 0;
    for call in calls.iter().skip(1).step_by(step) {
        let context = || format!("{name}, killed at {call}");
        restore(&mut stage, change)?;
        // How often it reads depends on how the kernel cuts its answers.
        if !kill_at(&stage, call)? {
            continue;
        }
        kills += 1;
        stage.weft(0, &["sync"])?.ok().with_context(context)?;
        ensure!(stage.is_converged(0)?, "{}", context());
        let state = stage.state(0, change.devices)?;
        ensure!(state == fresh, "{}: {}", context(), difference(&fresh, &state));
        let devices = vxlan_devices(&stage)?;
        ensure!(devices == change.devices, "{}: {devices:?}", context());
    }
    println!("{name}: killed {kills} times, step {step}, of {} system calls", calls.len());
    ensure!(kills * step * 10 > calls.len() * 9, "hardly ever killed");
    Ok(())
}

/// Puts the node in the state that the sync starts from, and configures what it is
/// to come to.
fn restore(stage: &mut Stage, change: &Change) -> Result<()> {
    let Some((keys, map)) = &change.before else {
        return stage.weft(0, &["teardown"])?.ok().map(drop);
    };
    stage.configure(0, keys.clone())?;
    stage.lab.write_node_map(map)?;
    stage.weft(0, &["sync"])?.ok()?;
    stage.configure(0, change.after.clone())?;
    stage.lab.write_node_map(&stage.lab.topology().node_map())?;
    ensure!(!stage.is_converged(0)?, "there is nothing for the sync to do");
    Ok(())
}

fn vxlan_devices(stage: &Stage) -> Result<Vec<String>> {
    let shown = stage.node(0).run_ok(&["ip", "-br", "link", "show", "type", "vxlan"])?;
    let names = shown.lines().filter_map(|line| line.split_whitespace().next());
    Ok(names.map(str::to_owned).collect())
}

/// The system calls of a sync, each as strace's name of it and how many of that name
/// there were until then, which is what `when` counts.
fn system_calls(stage: &Stage) -> Result<Vec<String>> {
    let weft = stage.bin.join("weft").display().to_string();
    stage.node(0).run_ok(&["strace", "-o", "/run/calls", &weft, "sync"])?;
    let mut counts: HashMap<String, usize> = HashMap::new();
    let mut calls = Vec::new();
    for line in stage.node(0).read_file("/run/calls")?.lines() {
        let name = line.split('(').next().unwrap_or_default();
        if name.is_empty() || name.contains(' ') {
            continue;
        }
        let count = counts.entry(name.to_owned()).or_default();
        *count += 1;
        calls.push(format!("{name}:signal=KILL:when={count}"));
    }
    Ok(calls)
}

/// Runs a sync and kills it at a system call; false if it made no such call.
fn kill_at(stage: &Stage, call: &str) -> Result<bool> {
    let weft = stage.bin.join("weft").display().to_string();
    let inject = format!("inject={call}");
    let run = stage.node(0).run(&["strace", "-o", "/dev/null", "-e", &inject, &weft, "sync"])?;
    if run.success() {
        return Ok(false);
    }
    // strace ends by the signal that its child ended by.
    ensure!(run.status.signal() == Some(9) || run.status.code() == Some(137), "{call}: {run}");
    Ok(true)
}
