//! The node map as kubelet delivers it: a link to a link to a file in a directory that
//! is replaced.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use e2e::{Chain, Lab, Node};
use serde_json::{Value, json};

use crate::objects;
use crate::stage::{
    Volume, attach, image, import, install, node_list, repository, runtime, with_own_opt,
};

/// A size limit of the API server's for all of a ConfigMap's data, in bytes
/// (MaxSecretSize in pkg/apis/core/types.go, 1 MiB).
const CONFIG_MAP: usize = 1 << 20;

/// The lesson's nodes and more of them, as a map.
fn map_of(lab: &Lab, more: usize) -> Result<String> {
    let mut list = node_list(lab)?;
    let items = list["items"].as_array_mut().context("no items")?;
    for number in 0..more {
        let range = format!("10.1.{number}.0/24");
        items.push(objects::node(&format!("more{number}"), &format!("192.0.2.{number}"), &[range]));
    }
    import(&lab.nodes()[0], &list)
}

/// How many peers the kernel has a route to.
fn peers(node: &Node) -> Result<usize> {
    let routes = node.json(&["ip", "-j", "route", "show", "proto", "87", "type", "unicast"])?;
    Ok(routes.as_array().map_or(0, Vec::len))
}

/// A node with weft, its map in the volume of pod `first`.
fn installed(lab: &Lab, more: usize) -> Result<(Chain, Volume)> {
    let node = &lab.nodes()[0];
    with_own_opt(node)?;
    node.sh("rm /etc/weft/nodes.d/nodes.json")?;
    let mut volume = Volume::new(node, "first")?;
    volume.write(&map_of(lab, more)?)?;
    install(node, image()?.path(), "first")?;
    Ok((runtime(node)?, volume))
}

fn weft(node: &Node, words: &[&str]) -> Result<e2e::Output> {
    let mut argv = vec!["/opt/cni/bin/weft"];
    argv.extend(words);
    node.run(&argv)
}

/// An ADD and a DEL.
fn come_and_go(node: &Node, runtime: &Chain, name: &str) -> Result<()> {
    let pod = attach(node, runtime, name)?;
    runtime.del(&pod, "eth0")?;
    pod.delete()
}

#[test]
fn a_map_that_kubelet_swaps_under_syncs_and_adds_is_always_whole() -> Result<()> {
    e2e::needs_lab!("busybox");
    let lab = Lab::lesson()?;
    let (runtime, mut volume) = installed(&lab, 0)?;
    let node = &lab.nodes()[0];
    let maps = [map_of(&lab, 40)?, map_of(&lab, 0)?];
    let rounds = if std::env::var_os("WEFT_SOAK").is_some() { 400 } else { 40 };
    let running = AtomicBool::new(true);
    thread::scope(|scope| -> Result<()> {
        let swaps = scope.spawn(|| -> Result<usize> {
            let mut swaps = 0;
            while running.load(Ordering::Relaxed) {
                volume.write(&maps[swaps % 2])?;
                swaps += 1;
            }
            volume.write(&maps[0])?;
            Ok(swaps)
        });
        let adds = scope.spawn(|| -> Result<()> {
            (0..rounds).try_for_each(|n| come_and_go(node, &runtime, &format!("pod{n}")))
        });
        let synced = (0..rounds).try_for_each(|_| {
            // No warning either: that would be an exit status of 1.
            weft(node, &["sync"])?.ok().map(drop)
        });
        let added = adds.join().expect("the thread panicked");
        running.store(false, Ordering::Relaxed);
        let swaps = swaps.join().expect("the thread panicked")?;
        synced?;
        added?;
        ensure!(swaps > rounds, "only {swaps} swaps");
        Ok(())
    })?;
    // The next ADD sees the last of them by itself.
    come_and_go(node, &runtime, "last")?;
    ensure!(peers(node)? == 42, "{} peers", peers(node)?);
    Ok(())
}

#[test]
fn the_next_add_follows_a_change_and_a_new_pod() -> Result<()> {
    e2e::needs_lab!("busybox");
    let lab = Lab::lesson()?;
    let (runtime, mut volume) = installed(&lab, 0)?;
    let node = &lab.nodes()[0];
    come_and_go(node, &runtime, "pod0")?;
    ensure!(peers(node)? == 2);
    volume.write(&map_of(&lab, 3)?)?;
    come_and_go(node, &runtime, "pod1")?;
    ensure!(peers(node)? == 5);
    let mut second = Volume::new(node, "second")?;
    second.write(&map_of(&lab, 1)?)?;
    install(node, image()?.path(), "second")?;
    volume.remove()?;
    come_and_go(node, &runtime, "pod2")?;
    ensure!(peers(node)? == 3);
    weft(node, &["sync"])?.ok().map(drop)
}

/// The DaemonSet's pod is gone and kubelet's copy with it: the node goes on with the
/// last good copy, and says so, until another pod's copy is linked.
#[test]
fn a_node_whose_copy_is_gone_goes_on_with_the_last_good_one() -> Result<()> {
    e2e::needs_lab!("busybox");
    let lab = Lab::lesson()?;
    let (runtime, volume) = installed(&lab, 5)?;
    let node = &lab.nodes()[0];
    come_and_go(node, &runtime, "pod0")?;
    volume.remove()?;
    come_and_go(node, &runtime, "pod1")?;
    runtime.status()?;
    ensure!(peers(node)? == 7);
    let sync = weft(node, &["sync"])?;
    ensure!(!sync.success() && sync.stderr.contains("nodes.d/nodes.json"), "{sync}");
    node.sh("ip link del weft.1")?;
    come_and_go(node, &runtime, "pod2")?;
    ensure!(peers(node)? == 7, "{} peers", peers(node)?);
    Volume::new(node, "second")?.write(&map_of(&lab, 1)?)?;
    install(node, image()?.path(), "second")?;
    weft(node, &["sync"])?.ok()?;
    ensure!(peers(node)? == 3);
    Ok(())
}

/// A ConfigMap without a map yet: the node is installed and not ready, and is ready
/// with the first copy that has one.
#[test]
fn a_node_waits_for_its_first_map() -> Result<()> {
    e2e::needs_lab!("busybox");
    let lab = Lab::lesson()?;
    let node = &lab.nodes()[0];
    with_own_opt(node)?;
    node.sh("rm /etc/weft/nodes.d/nodes.json")?;
    let mut volume = Volume::new(node, "first")?;
    install(node, image()?.path(), "first")?;
    let runtime = runtime(node)?;
    let error = runtime.status().expect_err("there is no map");
    ensure!(error.code == 50 && error.msg.contains("nodes.json"), "{error}");
    let pod = node.pod("early")?;
    let error = runtime.add(&pod, "eth0").expect_err("there is no map");
    ensure!(error.code == 7, "{error}");
    volume.write(&map_of(&lab, 0)?)?;
    runtime.status()?;
    runtime.add(&pod, "eth0")?;
    Ok(())
}

/// Bytes a node of the compact map, and how many nodes a ConfigMap holds.
fn measured(node: &Node, name: &str, ranges: &[&str], count: usize) -> Result<(usize, usize)> {
    let one = |number: usize| {
        let (high, low) = (100 + number / 100, 100 + number % 100);
        let fill =
            |text: &str| text.replace("HI", &high.to_string()).replace("LO", &low.to_string());
        let hex = |text: &str| text.replace("NUM", &format!("{:x}", 0x1000 + number));
        let ranges: Vec<String> = ranges.iter().map(|range| hex(&fill(range))).collect();
        let mut object = objects::node(&fill(name), &fill("10.20.HI.LO"), &ranges);
        if ranges.len() > 1 {
            let address = hex("2001:db8:1234:5678::NUM");
            let also = json!({ "address": address, "type": "InternalIP" });
            object["status"]["addresses"].as_array_mut().expect("a list").push(also);
        }
        object
    };
    let list: Value = objects::list((0..count).map(one).collect());
    let size = import(node, &list)?.len();
    Ok((size / count, CONFIG_MAP * count / size))
}

/// The figures of the documentation.
#[test]
fn a_config_map_holds_as_many_nodes_as_documented() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::lesson()?;
    let node = &lab.nodes()[0];
    let v4 = &["10.HI.LO.0/24"][..];
    let dual = &["10.HI.LO.0/24", "fd00:10:244:NUM::/64"][..];
    let (short, long) = ("worker-HILO", "ip-10-20-HI-LO.eu-central-1.compute.internal");
    let documented = fs::read_to_string(repository("docs/kubernetes.md"))?;
    for (name, ranges, families) in
        [(short, v4, "IPv4"), (long, v4, "IPv4"), (short, dual, "both"), (long, dual, "both")]
    {
        let (bytes, nodes) = measured(node, name, ranges, 300)?;
        // Rounded down to hundreds: nothing here is exact to the node.
        let row = format!("| {} | {families} | {bytes} | {} |", name.len(), nodes / 100 * 100);
        ensure!(documented.contains(&row), "docs/kubernetes.md has no row {row}");
    }
    Ok(())
}
