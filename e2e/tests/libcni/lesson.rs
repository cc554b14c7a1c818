//! The lesson's three nodes on libcni, and what only a real libcni does: its cache, its
//! versions, its judgement of VERSION.

use anyhow::{Context, Result};
use e2e::{Family, Lab, PingOptions, RESULTS, conf, ping};
use serde_json::{Value, json};

use crate::client::{Libcni, go};
use crate::{assert_as_before, attached, install, installed, reaches};

fn weft(words: &[&str]) -> Vec<String> {
    [&["/opt/cni/bin/weft"], words].concat().into_iter().map(str::to_owned).collect()
}

#[test]
fn three_nodes_by_tunnel_then_natively() -> Result<()> {
    e2e::needs_lab!("strip");
    testing::need!(go());
    let lab = installed(Lab::lesson()?, &conf::TUNNEL.parse()?)?;
    let mut pods = Vec::new();
    let mut before = Vec::new();
    for node in lab.nodes() {
        let cni = Libcni::new(node)?;
        let (first, _) = attached(&cni, node, "first")?;
        cni.del(&first)?;
        first.delete()?;
        before.push(node.snapshot()?);
        let (pod, result) = attached(&cni, node, "pod")?;
        assert_eq!(result["cniVersion"], "1.0.0", "{result}");
        cni.check(&pod)?;
        pods.push((cni, pod));
    }
    for (_, from) in &pods {
        for (_, to) in &pods {
            assert!(reaches(from, to, Family::V4, 1450)?, "{} to {}", from.name(), to.name());
        }
    }

    for node in lab.nodes() {
        install(node, "new", &conf::NATIVE.parse()?)?;
        node.run_ok(&weft(&["sync"]))?;
    }
    let (one, two) = (&pods[1].1, &pods[2].1);
    let lost = ping(one, two.addr(Family::V4)?, &PingOptions::default())?;
    assert!(!lost.all(), "the router knows no pods: {}", lost.output);
    let routes = lab.node("worker1")?.run_ok(&weft(&["export", "router"]))?;
    lab.router().sh(&routes)?;
    for (cni, from) in &pods {
        cni.check(from)?;
        assert!(pods.iter().all(|(_, to)| reaches(from, to, Family::V4, 1450).is_ok_and(|it| it)));
    }
    // DEL by another configuration than that of ADD.
    for (node, (cni, pod)) in lab.nodes().iter().zip(&pods) {
        cni.del(pod)?;
        pod.delete()?;
        install(node, "new", &conf::TUNNEL.parse()?)?;
        node.run_ok(&weft(&["sync"]))?;
    }
    for (node, before) in lab.nodes().iter().zip(&before) {
        assert_as_before(before, &node.snapshot()?);
    }
    Ok(())
}

/// The tunnel's conflist in a version of the protocol.
fn in_version(version: &str) -> Result<Value> {
    let mut conflist: Value = conf::TUNNEL.parse()?;
    conflist["cniVersion"] = json!(version);
    Ok(conflist)
}

#[test]
fn each_version_that_libcni_speaks() -> Result<()> {
    e2e::needs_lab!("strip");
    testing::need!(go());
    let lab = installed(Lab::lesson()?, &in_version("1.0.0")?)?;
    let node = lab.node("worker1")?;
    let cni = Libcni::new(node)?;
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        install(node, "new", &in_version(version)?)?;
        let said = cni.versions()?;
        for plugin in ["veth", "routing"] {
            let versions = said[plugin].as_array().context("no versions")?;
            assert!(versions.contains(&json!(version)), "{said}");
        }
        let (pod, result) = attached(&cni, node, "pod")?;
        assert_eq!(result["cniVersion"], version, "{result}");
        let of_address = if version == "1.0.0" { Value::Null } else { json!("4") };
        assert_eq!(result["ips"][0]["version"], of_address, "{result}");
        let check = cni.run("check", &[pod.netns()])?;
        if version == "0.3.1" {
            assert!(check.stderr.contains("does not support the CHECK command"), "{check}");
        } else {
            check.ok()?;
            pod.run_ok(&["ip", "route", "flush", "dev", "eth0"])?;
            let check = cni.run("check", &[pod.netns()])?;
            assert!(!check.success() && check.stderr.contains("route"), "{check}");
        }
        // The second finds neither cache nor interface, the third no namespace either.
        cni.del(&pod)?;
        cni.del(&pod)?;
        pod.delete()?;
        cni.del(&pod)?;
    }
    Ok(())
}

#[test]
fn del_by_the_cache_after_the_conflist_changed() -> Result<()> {
    e2e::needs_lab!("strip");
    testing::need!(go());
    let tunnel: Value = conf::TUNNEL.parse()?;
    let lab = installed(Lab::lesson()?, &tunnel)?;
    let node = lab.node("worker1")?;
    let cni = Libcni::new(node)?;
    let (first, _) = attached(&cni, node, "first")?;
    cni.del(&first)?;
    first.delete()?;
    let before = node.snapshot()?;
    let veth = &tunnel["plugins"][0];
    let soak = std::env::var_os("WEFT_SOAK").is_some();
    let all = ["0.3.1", "0.4.0", "1.0.0"];
    for (i, plugins) in [
        // What ADD was told, natively, chained with more, and without what is between nodes.
        json!([veth, { "type": "routing", "routingMode": "native",
                       "ipv4NativeRoutingCIDR": "10.0.0.0/8" }]),
        json!([veth, { "type": "routing" }, { "type": "portmap", "snat": true,
                       "capabilities": { "portMappings": true } }]),
        json!([veth]),
    ]
    .into_iter()
    .enumerate()
    {
        let versions = if soak { &all[..] } else { &all[i..=i] };
        for version in versions {
            let (pod, _) = attached(&cni, node, "pod")?;
            let changed = json!({ "cniVersion": version, "name": "pods", "plugins": plugins });
            install(node, "new", &changed)?;
            let cached = node.run_ok(&["ls", RESULTS])?;
            assert_eq!(cached.lines().count(), 1, "{cached}");
            cni.del(&pod).with_context(|| changed.to_string())?;
            pod.delete()?;
            install(node, "new", &tunnel)?;
            node.run_ok(&weft(&["sync"]))?;
            assert_as_before(&before, &node.snapshot()?);
        }
    }
    Ok(())
}
