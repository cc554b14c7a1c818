//! weft's plugins in one chain with Debian's build of the reference plugins.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::{Family, Lab, Node, Pod, conf, tcp_for};
use serde_json::{Value, json};

use crate::client::{Libcni, go};
use crate::{assert_as_before, attached, install, installed, reaches};

/// Port of the node that portmap maps to iperf3's own in the pod.
const HOST_PORT: u16 = 8080;

/// Bits per second that bandwidth lets through to the pod.
const RATE: u64 = 20_000_000;

/// The MAC that tuning gives to the pod.
const MAC: &str = "02:11:22:33:44:55";

fn conflist(plugins: &[Value]) -> Value {
    json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": plugins })
}

fn veth() -> Value {
    json!({ "type": "veth", "ipam": { "type": "host-local" } })
}

fn routing() -> Value {
    json!({ "type": "routing" })
}

/// portmap, bandwidth, tuning and firewall.
fn reference() -> [Value; 4] {
    [
        json!({ "type": "portmap", "snat": true, "capabilities": { "portMappings": true } }),
        json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } }),
        json!({ "type": "tuning", "mac": MAC, "sysctl": { "net.core.somaxconn": "500" } }),
        json!({ "type": "firewall", "backend": "iptables" }),
    ]
}

/// Moves bytes to a pod's iperf3 through the port of its node.
fn through_host_port(from: &Node, node: &Node, pod: &Pod) -> Result<()> {
    let mut server = pod.spawn(&["iperf3", "--server", "--one-off", "--forceflush"])?;
    let mut said = server.lines()?;
    said.until("listening")?;
    let (address, port) = (node.address(Family::V4)?.to_string(), HOST_PORT.to_string());
    let client = ["iperf3", "--client", &address, "--port", &port, "--bytes", "65536", "--json"];
    let report = from.json(&client)?;
    let sent = report["end"]["sum_sent"]["bytes"].as_u64();
    ensure!(sent.is_some_and(|sent| sent >= 65536), "{report}");
    Ok(())
}

/// What each of the reference plugins is for, on a pod of worker1, seen from worker2.
fn assert_each_works(lab: &Lab, pod: &Pod, peer: &Pod) -> Result<()> {
    let node = lab.node("worker1")?;
    for family in [Family::V4, Family::V6] {
        assert!(reaches(pod, peer, family, 1450)? && reaches(peer, pod, family, 1450)?);
    }
    assert_eq!(pod.sysctl("net/core/somaxconn")?, "500");
    let link = pod.json(&["ip", "-j", "link", "show", "eth0"])?;
    assert_eq!((&link[0]["address"], &link[0]["mtu"]), (&json!(MAC), &json!(1450)), "{link}");
    through_host_port(lab.node("control-plane")?, node, pod)?;
    let bulk = tcp_for(peer, pod, pod.addr(Family::V4)?, 1)?;
    assert!(bulk.rate < 2.0 * RATE as f64 && bulk.received > 0, "{} bit/s", bulk.rate);
    // firewall lets the pod out where the policy is to drop, and answers in.
    node.run_ok(&["iptables", "-P", "FORWARD", "DROP"])?;
    assert!(
        reaches(pod, peer, Family::V4, 84)?,
        "the firewall plugin's rules do not match the pod"
    );
    let dropped = e2e::PingOptions::default();
    assert!(!e2e::ping(peer, pod.addr(Family::V4)?, &dropped)?.all(), "nothing drops here");
    node.run_ok(&["iptables", "-P", "FORWARD", "ACCEPT"]).map(drop)
}

/// One pod's life in a chain, which is to leave nothing.
fn chained(plugins: &[Value]) -> Result<()> {
    let lab = installed(Lab::lesson_dual()?, &conf::TUNNEL.parse()?)?;
    let (node, far) = (lab.node("worker1")?, lab.node("worker2")?);
    let (peer, _) = attached(&Libcni::new(far)?, far, "peer")?;
    install(node, "new", &conflist(plugins))?;
    let mut arguments = json!({
        "bandwidth": { "ingressRate": RATE, "ingressBurst": RATE / 10,
                       "egressRate": RATE, "egressBurst": RATE / 10 } });
    // CHECK of portmap 1.1 looks for the rules of IPv4 in the table of IPv6 and fails on any
    // chain; without mappings it looks for nothing.
    let check = Libcni::new(node)?.capabilities(&arguments);
    arguments["portMappings"] =
        json!([{ "hostPort": HOST_PORT, "containerPort": 5201, "protocol": "tcp" }]);
    let cni = Libcni::new(node)?.capabilities(&arguments);
    // Once, for the tables and chains that plugins leave for the next pod; the policy is
    // set so that its chain is there.
    let (first, _) = attached(&cni, node, "first")?;
    node.run_ok(&["iptables", "-P", "FORWARD", "ACCEPT"])?;
    cni.del(&first)?;
    first.delete()?;
    let before = node.snapshot()?;
    let (pod, _) = attached(&cni, node, "pod")?;
    check.check(&pod)?;
    assert_each_works(&lab, &pod, &peer)?;
    check.check(&pod)?;
    cni.del(&pod)?;
    pod.delete()?;
    assert_as_before(&before, &node.snapshot()?);
    Ok(())
}

#[test]
fn reference_plugins_after_ours() -> Result<()> {
    e2e::needs_lab!("strip", "iperf3", "iptables", "/usr/lib/cni/portmap");
    testing::need!(go());
    chained(&[&[veth(), routing()][..], &reference()].concat())
}

#[test]
fn reference_plugins_between_ours() -> Result<()> {
    e2e::needs_lab!("strip", "iperf3", "iptables", "/usr/lib/cni/portmap");
    testing::need!(go());
    chained(&[&[veth()][..], &reference(), &[routing()]].concat())
}

/// A reference interface plugin with our `routing` behind it, and our `host-local`, which
/// gives it addresses of the node's range, under it.
fn behind(interface: &Value) -> Result<()> {
    let conflist = conflist(&[interface.clone(), routing()]);
    let lab = installed(Lab::lesson_dual()?, &conflist)?;
    let nodes = [lab.node("worker1")?, lab.node("worker2")?];
    let mut pods = Vec::new();
    let mut before = Vec::new();
    for node in nodes {
        let cni = Libcni::new(node)?;
        // This one stays, so that a bridge has a port, its carrier and its MTU.
        let (first, _) = attached(&cni, node, "first")?;
        node.wait_until("addresses are no duplicates", Duration::from_secs(20), || {
            let tentative = node.run_ok(&["ip", "-6", "address", "show", "tentative"])?;
            Ok(tentative.is_empty().then_some(()))
        })?;
        before.push(node.snapshot()?);
        let (pod, _) = attached(&cni, node, "pod")?;
        cni.check(&pod)?;
        pods.extend([first, pod]);
    }
    for from in &pods {
        for to in pods.iter().filter(|to| to.name() != from.name()) {
            for family in [Family::V4, Family::V6] {
                let there = reaches(from, to, family, 1450)?;
                assert!(there, "{} to {} by {family:?}", from.name(), to.name());
            }
        }
    }
    for ((node, before), pods) in nodes.iter().zip(&before).zip(pods.chunks(2)) {
        let cni = Libcni::new(node)?;
        cni.del(&pods[1])?;
        pods[1].delete()?;
        assert_as_before(before, &node.snapshot()?);
        cni.del(&pods[0])?;
        let leases = node.run_ok(&["find", "/var/lib/cni/networks/pods", "-name", "*10*1*"])?;
        assert_eq!(leases, "");
    }
    Ok(())
}

/// Our `host-local` for a reference plugin, which takes routes from it alone.
fn ipam() -> Value {
    json!({ "type": "host-local", "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }] })
}

#[test]
fn routing_behind_the_reference_ptp() -> Result<()> {
    e2e::needs_lab!("strip", "/usr/lib/cni/ptp");
    testing::need!(go());
    behind(&json!({ "type": "ptp", "ipam": ipam() }))
}

#[test]
fn routing_behind_the_reference_bridge() -> Result<()> {
    e2e::needs_lab!("strip", "/usr/lib/cni/bridge");
    testing::need!(go());
    behind(&json!({ "type": "bridge", "bridge": "cni0", "isGateway": true,
                    "hairpinMode": true, "ipam": ipam() }))
}
