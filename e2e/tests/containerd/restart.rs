//! containerd ends and comes back: with pods that live on, and in the middle of making them.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{Node, RESULTS, blocks, conf};
use nix::sys::signal::Signal;

use crate::daemon::Daemon;
use crate::stage::{Stage, assert_reaches, prerequisites, serve, soak};

/// The only pod's network namespace, as `ip netns` names it.
fn only_namespace(node: &Node) -> Result<String> {
    let names: Vec<String> = namespaces(node)?;
    match &names[..] {
        [name] => Ok(name.clone()),
        _ => None.with_context(|| format!("{names:?}")),
    }
}

fn namespaces(node: &Node) -> Result<Vec<String>> {
    let entries = node.path("/run/netns").read_dir()?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// "1234 packets transmitted, 1233 received, …" of ping's summary.
fn counts(summary: &str) -> Option<(u32, u32)> {
    let mut numbers = summary.split(", ").map(|part| part.split(' ').next()?.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

#[test]
fn pods_live_on_when_containerd_is_restarted() -> Result<()> {
    testing::need!(prerequisites());
    let mut stage = Stage::lesson(conf::TUNNEL)?;
    let far = stage.daemons[1].client()?;
    let to = far.run("far")?;
    serve(&far, &to)?;
    let pod = stage.daemons[0].client()?.run("near")?;
    let node = stage.daemons[0].node().clone();
    let (namespace, address) = (only_namespace(&node)?, to.addresses[0].to_string());
    let words = ["ip", "netns", "exec", &namespace, "ping", "-n", "-i", "0.002", &address];
    let mut pings = node.spawn(&words)?;
    let mut said = pings.lines()?;
    said.until("bytes from")?;
    // The pipe must not fill up.
    let rest = thread::spawn(move || said.rest());
    stage.daemons[0].stop()?;
    stage.daemons[0].start()?;
    stage.daemons[0].kill()?;
    stage.daemons[0].start()?;
    pings.signal(Signal::SIGINT)?;
    let status = pings.wait()?;
    let said = rest.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
    let summary = said.iter().find(|line| line.contains("packets transmitted"));
    let summary = summary.context("no summary")?;
    println!("while containerd was restarted twice: {summary}");
    let (sent, received) = counts(summary).context("no counts")?;
    // The last one's answer may have been on its way.
    ensure!(status.success() && received > 1 && sent - received <= 1, "{summary}");
    let near = stage.daemons[0].client()?;
    assert_eq!(near.addresses(&pod.id)?, pod.addresses);
    serve(&near, &pod)?;
    assert_reaches(&near, &pod, &to)?;
    assert_reaches(&far, &to, &pod)?;
    near.remove(&pod.id)?;
    far.remove(&to.id)?;
    stage.assert_as_before()
}

/// Runs what the documents say is to be done after a crash.
fn clean_up(node: &Node) -> Result<()> {
    let commands = blocks("docs/runtimes.md", "## containerd after a crash")?;
    commands.iter().try_for_each(|block| block.follow(node))
}

/// What a SIGKILL between opening and writing leaves.
#[test]
fn a_pod_whose_cached_result_is_empty_can_be_removed_once_that_is_gone() -> Result<()> {
    testing::need!(prerequisites());
    let stage = Stage::lesson(conf::TUNNEL)?;
    let (client, node) = (stage.daemons[0].client()?, stage.daemons[0].node());
    let pod = client.run("pod")?;
    node.write_file(&format!("{RESULTS}/pods-{}-eth0", pod.id), "")?;
    // A later libcni reads on.
    if let Err(error) = client.remove(&pod.id) {
        ensure!(format!("{error:#}").contains("unexpected end of JSON input"), "{error:#}");
        clean_up(node)?;
        client.remove(&pod.id)?;
    }
    stage.assert_as_before()
}

/// Pods asked for at the same time.
const STORM: usize = 12;

/// containerd 1.6 writes down a pod's network namespace after it has made it and before
/// it calls any plugin. One that it was killed in between for is lost to it, and empty.
#[test]
fn nothing_leaks_when_containerd_is_killed_while_pods_are_made() -> Result<()> {
    testing::need!(prerequisites());
    let mut stage = Stage::lesson(conf::TUNNEL)?;
    let rounds = if soak() { 20 } else { 3 };
    for round in 0..rounds {
        // Ever later.
        let made = kill_in_a_storm(&mut stage.daemons[0], 1 + round % STORM)?;
        let daemon = &mut stage.daemons[0];
        daemon.start()?;
        let client = daemon.client()?;
        let pods = client.list()?;
        println!("killed with {made} leases of {STORM}; then knows {} pods", pods.len());
        ensure!(made > 0 && pods.len() >= made, "{pods:?}");
        clean_up(daemon.node())?;
        pods.iter().try_for_each(|pod| client.remove(&pod.id))?;
        remove_lost_namespaces(daemon.node())?;
        assert_a_tick_frees_the_rest(&stage, 0)?;
    }
    // It works as if nothing had been.
    let pod = stage.daemons[0].client()?.run("after")?;
    stage.daemons[0].client()?.remove(&pod.id)?;
    stage.assert_as_before()
}

#[test]
fn nothing_leaks_when_containerd_is_killed_while_pods_are_removed() -> Result<()> {
    testing::need!(prerequisites());
    let mut stage = Stage::lesson(conf::TUNNEL)?;
    let daemon = &mut stage.daemons[0];
    let (client, node) = (daemon.client()?, daemon.node().clone());
    let names = (0..STORM).map(|number| format!("pod-{number}"));
    let pods = names.map(|name| client.run_sandbox(&name)).collect::<Result<Vec<_>>>()?;
    let clients = pods.iter().map(|_| daemon.client()).collect::<Result<Vec<_>>>()?;
    thread::scope(|scope| {
        for (client, pod) in clients.into_iter().zip(&pods) {
            scope.spawn(move || client.remove(pod));
        }
        node.wait_until("pods are removed", Duration::from_secs(60), || {
            Ok((node.leases("pods").len() < STORM / 2).then_some(()))
        })?;
        daemon.kill()
    })?;
    daemon.start()?;
    let (client, left) = (daemon.client()?, daemon.client()?.list()?);
    println!("killed while it removed {STORM} pods, of which {} were left", left.len());
    clean_up(&node)?;
    left.iter().try_for_each(|pod| client.remove(&pod.id))?;
    assert_a_tick_frees_the_rest(&stage, 0)?;
    stage.assert_as_before()
}

/// Asserts that no lease is left after a sync. containerd 1.7 sends no DEL for a pod whose ADD it
/// did not see the end of; with 1.6 none may be left before.
fn assert_a_tick_frees_the_rest(stage: &Stage, index: usize) -> Result<()> {
    let node = stage.daemons[index].node();
    // Plugins outlive a containerd that is killed, and no event says that the last has ended.
    node.sh("while grep -qs CNI_CONTAINERID= /proc/[0-9]*/environ; do sleep 0.01; done")?;
    let left = node.leases("pods");
    println!("{} leases are left to the next tick", left.len());
    let version = node.run_ok(&["containerd", "--version"])?;
    if version.contains(" 1.6.") {
        ensure!(left.is_empty(), "{version} has left {left:?}");
    } else {
        // Without a DEL libcni keeps what it has of them, and all pods are removed.
        node.sh(&format!("rm -rf {RESULTS}"))?;
    }
    stage.cluster.weft(node.name(), &["sync"])?.ok()?;
    let left = node.leases("pods");
    ensure!(left.is_empty(), "leases of {left:?}");
    Ok(())
}

/// Removes the network namespaces that no pod has, each of which must be as new, and
/// the empty files that they were to be bound to.
fn remove_lost_namespaces(node: &Node) -> Result<()> {
    for name in namespaces(node)? {
        let path = format!("/run/netns/{name}");
        if node.run(&["mountpoint", "--quiet", &path])?.success() {
            let links = node.run_ok(&["ip", "-n", &name, "-o", "link", "show"])?;
            ensure!(links.lines().count() == 1 && links.contains(": lo:"), "{name}: {links}");
            node.run_ok(&["umount", "-n", "-l", &path])?;
        }
        node.run_ok(&["rm", &path])?;
    }
    Ok(())
}

/// Asks for many pods at the same time and kills containerd when so many have an
/// address; how many have one then.
fn kill_in_a_storm(daemon: &mut Daemon, when: usize) -> Result<usize> {
    let clients = (0..STORM).map(|_| daemon.client()).collect::<Result<Vec<_>>>()?;
    thread::scope(|scope| {
        let node = daemon.node().clone();
        for (number, client) in clients.into_iter().enumerate() {
            // Fails, or does not, by when containerd ends.
            scope.spawn(move || client.run_sandbox(&format!("storm-{number}")));
        }
        node.wait_until("pods are made", Duration::from_secs(60), || {
            Ok((node.leases("pods").len() >= when).then_some(()))
        })?;
        daemon.kill()?;
        Ok(node.leases("pods").len())
    })
}
