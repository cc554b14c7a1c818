//! What DEL, GC and teardown leave: nothing.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{
    Chain, Cluster, Family, NODE_MAP, Node, PingOptions, Pod, Section, Snapshot, conf, weft_bin_dir,
};
use serde_json::{Value, json};

use crate::assert_ping;

/// What plugins keep: directories, what shows the order of addresses given out, locks.
fn durable(line: &str) -> bool {
    let path = line.trim_start_matches(['-', '+', ' ']).trim_start_matches("Files: ");
    let store = path.starts_with("/var/lib/cni/") && !path.contains("/10.0.");
    store || path.starts_with("/run/weft/")
}

/// Asserts that nothing but sysctls of forwarding and the lease store's own files differ.
#[track_caller]
fn assert_as_before(before: &Snapshot, now: &Snapshot) {
    let diff = before.diff(now);
    let others = diff.lines().filter(|line| {
        // With forwarding the kernel turns redirects off (`inet_forward_change`).
        let sysctl = line.contains("Sysctls: ")
            && (line.contains("forward") || line.contains("all/accept_redirects"));
        let kept = line.contains("Files: ") && durable(line);
        !sysctl && !kept
    });
    let others: Vec<&str> = others.collect();
    assert!(others.is_empty(), "left behind:\n{}", others.join("\n"));
}

fn machine(cluster: &Cluster) -> Result<Vec<Snapshot>> {
    cluster.lab().nodes().iter().map(|node| node.snapshot()).collect()
}

#[test]
fn del_and_teardown_leave_the_kernel_as_before() -> Result<()> {
    e2e::needs_lab!();
    let cluster = Cluster::lesson(conf::TUNNEL)?;
    let before = machine(&cluster)?;
    let mut pods = Vec::new();
    for node in cluster.lab().nodes() {
        for name in ["pod-a", "pod-b"] {
            pods.push((node.name().to_string(), cluster.pod(node.name(), name)?));
        }
    }
    let (first, last) = (&pods[0].1, &pods[pods.len() - 1].1);
    assert_ping(first, last.addr(Family::V4)?, &PingOptions::default())?;
    for (node, pod) in &pods {
        cluster.remove(node, pod)?;
    }
    for node in cluster.lab().nodes() {
        let output = cluster.weft(node.name(), &["teardown"])?;
        assert!(output.success() && output.stdout.contains("ip link del weft.1"), "{output}");
        let again = cluster.weft(node.name(), &["teardown"])?;
        assert!(again.success(), "{again}");
    }
    for (before, node) in before.iter().zip(cluster.lab().nodes()) {
        assert_as_before(before, &node.snapshot()?);
        assert!(!node.path("/run/weft").read_dir().is_ok_and(|mut dir| dir.next().is_some()));
    }
    Ok(())
}

#[test]
fn teardown_spares_living_pods_and_sync_brings_the_tunnel_back() -> Result<()> {
    e2e::needs_lab!();
    let cluster = Cluster::lesson(conf::TUNNEL)?;
    let (a, b) = (cluster.pod("worker1", "pod-a")?, cluster.pod("worker2", "pod-b")?);
    let near = cluster.pod("worker1", "pod-near")?;
    let node = cluster.node("worker1")?;
    let files = [Section::Files];
    let before = node.snapshot()?.without(&files);
    cluster.weft("worker1", &["teardown"])?.ok()?;
    let tables = node.run_ok(&["nft", "list", "tables"])?;
    assert!(!tables.contains("weft_"), "{tables}");
    assert_ping(&a, near.addr(Family::V4)?, &PingOptions::default())?;
    cluster.chain("worker1")?.check(&a, "eth0")?;
    cluster.weft("worker1", &["sync"])?.ok()?;
    before.assert_same(&node.snapshot()?.without(&files));
    assert_ping(&a, b.addr(Family::V4)?, &PingOptions::default())
}

#[test]
fn del_takes_what_its_add_made_and_may_come_again() -> Result<()> {
    e2e::needs_lab!();
    let cluster = Cluster::lesson(conf::TUNNEL)?;
    let first = cluster.pod("worker1", "pod-first")?;
    let node = cluster.node("worker1")?;
    let chain = cluster.chain("worker1")?;
    let before = node.snapshot()?;
    let pod = cluster.pod("worker1", "pod-a")?;
    assert!(!before.diff(&node.snapshot()?).is_empty());
    chain.del(&pod, "eth0")?;
    pod.delete()?;
    assert_as_before(&before, &node.snapshot()?);
    chain.del(&pod, "eth0")?;
    // The namespace gone first, and the node map too.
    let pod = cluster.pod("worker1", "pod-b")?;
    pod.delete()?;
    node.run_ok(&["rm", NODE_MAP])?;
    chain.del(&pod, "eth0")?;
    // The test itself took the map away.
    assert_as_before(&before, &node.snapshot()?.without(&[Section::Files]));
    assert_ping(&first, node.address(Family::V4)?, &PingOptions::default())
}

#[test]
fn gc_removes_what_is_not_valid() -> Result<()> {
    e2e::needs_lab!();
    let cluster = Cluster::lesson(conf::TUNNEL)?;
    let chain = cluster.chain("worker1")?;
    let node = cluster.node("worker1")?;
    let kept = cluster.pod("worker1", "pod-kept")?;
    let before = node.snapshot()?;
    let lost = cluster.pod("worker1", "pod-lost")?;
    // A runtime that lost its cache: only the plugins know.
    node.run_ok(&["rm", &format!("{}/pods-pod-lost-eth0", e2e::RESULTS)])?;
    chain.gc(&[("pod-kept", "eth0")]).map_err(|errors| anyhow::anyhow!("{errors:?}"))?;
    lost.delete()?;
    assert_as_before(&before, &node.snapshot()?);
    chain.check(&kept, "eth0")?;
    Ok(())
}

/// A chain of the network whose plugins run under strace, which notes netlink messages.
fn traced(node: &Node, network: &Value) -> Result<Chain> {
    let bin = weft_bin_dir()?;
    let real = bin.join("veth").display().to_string();
    let strace = "strace -f -qq -v -s 65536 -e trace=sendto,sendmsg -o /run/traced/calls";
    node.write_file("/run/traced/veth", format!("#!/bin/sh\nexec {strace} {real}\n"))?;
    node.sh("chmod +x /run/traced/veth")?;
    Ok(Chain::new(node, network.clone(), &[Path::new("/run/traced"), &bin]))
}

/// Names of the host ends of a network.
fn host_ends(node: &Node, network: &str) -> Result<Vec<String>> {
    let links = node.json(&["ip", "-j", "link", "show", "type", "veth"])?;
    let mark = format!("weft {network} ");
    let is_of = |link: &&Value| link["ifalias"].as_str().is_some_and(|a| a.starts_with(&mark));
    let links = links.as_array().map(Vec::as_slice).unwrap_or_default();
    let names = links.iter().filter(is_of).filter_map(|link| link["ifname"].as_str());
    Ok(names.map(str::to_owned).collect())
}

/// Each deletion of a link costs the kernel tens of milliseconds, in which nobody else
/// can change one: GC deletes all of a network in one call, and nothing of others.
#[test]
fn gc_removes_many_links_in_one_call() -> Result<()> {
    e2e::needs_lab!("strace");
    const COUNT: usize = 50;
    let cluster = Cluster::lesson(conf::TUNNEL)?;
    let (node, pods) = (cluster.node("worker1")?, cluster.chain("worker1")?);
    let other = json!({ "cniVersion": "1.1.0", "name": "other", "plugins": [{ "type": "veth",
        "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.9.0.0/16" }]] } }] });
    let others = Chain::new(node, other, &[&weft_bin_dir()?]);
    for number in 0..=COUNT {
        let pod = node.pod(&format!("pod-{number}"))?;
        pods.add(&pod, "eth0")?;
        others.add(&pod, "net1")?;
    }
    // A runtime that lost its cache, so that no DEL comes before GC.
    node.sh(&format!("rm -r {}", e2e::RESULTS))?;
    let mine = host_ends(node, "pods")?;
    ensure!(mine.len() == COUNT + 1, "{mine:?}");
    let kept = [("pod-0", "eth0")];
    let gc = |valid: &[(&str, &str)]| -> Result<(usize, Duration)> {
        let started = Instant::now();
        let chain = traced(node, pods.conflist())?;
        chain.gc(valid).map_err(|errors| anyhow::anyhow!("{errors:?}"))?;
        let calls = node.read_file("/run/traced/calls")?;
        Ok((calls.matches("RTM_DELLINK").count(), started.elapsed()))
    };
    let valid: Vec<String> = (0..COUNT - 2).map(|number| format!("pod-{number}")).collect();
    let valid: Vec<_> = valid.iter().map(|id| (id.as_str(), "eth0")).collect();
    let group = kernel::link::HOST_END_GROUP_REMOVED;
    // With somebody's link in the group it goes one at a time.
    node.sh(&format!("ip link add foreign type bridge; ip link set foreign group {group}"))?;
    let (deletions, took) = gc(&valid)?;
    ensure!(deletions == 3, "{deletions} deletions");
    println!("3 links, one by one: {took:.0?}");
    node.run_ok(&["ip", "link", "del", "foreign"])?;

    let left = host_ends(node, "pods")?;
    ensure!(left.len() == COUNT - 2, "{left:?}");
    // As a GC leaves it that was killed half way.
    let links = node.json(&["ip", "-j", "link", "show", "type", "veth"])?;
    let is_last =
        |link: &&Value| link["ifalias"].as_str().is_some_and(|a| a.contains("pod-47 eth0"));
    let last = links.as_array().and_then(|links| links.iter().find(is_last)).context("pod-47")?;
    node.ip_batch(&format!("link set {} down group {group}", last["ifname"]))?;
    let (deletions, took) = gc(&kept)?;
    println!("{} links in {deletions} call: {took:.0?}", left.len() - 1);
    ensure!(deletions == 1, "{deletions} deletions");
    ensure!(host_ends(node, "pods")?.len() == 1);
    ensure!(host_ends(node, "other")?.len() == COUNT + 1, "another network's are gone");
    let leases = node.sh("ls /var/lib/cni/networks/pods | grep -c '^10'")?;
    ensure!(leases.trim() == "1", "{leases}");
    Ok(())
}

/// Runs `work` for every number below `count`, all at the same time.
fn all_at_once<T: Send>(count: usize, work: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let work = &work;
    thread::scope(|scope| {
        let running: Vec<_> = (0..count).map(|n| scope.spawn(move || work(n))).collect();
        running
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

#[test]
fn two_hundred_at_once() -> Result<()> {
    e2e::needs_lab!();
    const COUNT: usize = 200;
    let cluster = Cluster::lesson(conf::TUNNEL)?;
    let node = cluster.node("worker1")?;
    let chain: &Chain = cluster.chain("worker1")?;
    let far = cluster.pod("worker2", "pod-far")?;
    cluster.pod("worker1", "pod-first")?;
    let before = node.snapshot()?;
    let pods: Vec<Pod> =
        (0..COUNT).map(|n| node.pod(&format!("pod-{n}"))).collect::<Result<_>>()?;
    let results = all_at_once(COUNT, |n| Ok(chain.add(&pods[n], "eth0")?))?;
    let address = |result: &Value| {
        result["ips"][0]["address"].as_str().map(str::to_string).context("no address")
    };
    let unique: BTreeSet<String> = results.iter().map(address).collect::<Result<_>>()?;
    assert_eq!(unique.len(), COUNT);
    let range = node.pod_range(Family::V4)?;
    for text in &unique {
        let network: ipnetwork::IpNetwork = text.parse()?;
        ensure!(range.contains(network.ip()), "{text} is not in {range}");
    }
    for pod in [&pods[0], &pods[COUNT / 2], &pods[COUNT - 1]] {
        assert_ping(pod, far.addr(Family::V4)?, &PingOptions::default())?;
        chain.check(pod, "eth0")?;
    }
    all_at_once(COUNT, |n| Ok(chain.del(&pods[n], "eth0")?))?;
    for pod in &pods {
        pod.delete()?;
    }
    assert_as_before(&before, &node.snapshot()?);
    let leases = node.sh("ls /var/lib/cni/networks/pods")?;
    let leases: Vec<&str> = leases.lines().filter(|name| name.starts_with("10.")).collect();
    assert_eq!(leases, ["10.0.1.2"], "the first pod's alone");
    Ok(())
}

#[test]
fn an_add_that_fails_leaves_nothing() -> Result<()> {
    e2e::needs_lab!();
    let cluster = Cluster::lesson(conf::TUNNEL)?;
    let chain = cluster.chain("worker1")?;
    let node = cluster.node("worker1")?;
    cluster.pod("worker1", "pod-first")?;
    let pod = node.pod("pod-a")?;
    pod.ip_batch("link add eth0 type bridge\n")?;
    let before = node.snapshot()?;
    let error = chain.add(&pod, "eth0").expect_err("eth0 is there");
    assert!(error.plugin == "veth" && error.msg.contains("eth0"), "{error}");
    assert_as_before(&before, &node.snapshot()?);
    // DEL after it takes nobody else's interface.
    chain.del(&pod, "eth0")?;
    pod.run_ok(&["ip", "link", "show", "eth0"])?;
    Ok(())
}
