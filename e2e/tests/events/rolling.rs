//! A conflist is changed on one node after the other: both versions are alive for a
//! while, nobody fails, and in the end all is as the new one wants it.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::stage::{DEADLINE, Stage, TRIGGERS, Trigger};

fn roll(stage: &mut Stage, keys: &Value, trigger: Trigger) -> Result<()> {
    for index in 0..3 {
        stage.configure(index, keys.clone())?;
        // The nodes that are still to change go on as they are.
        for other in 0..3 {
            let trigger = if other == index { trigger } else { Trigger::Status };
            stage.trigger(other, trigger).with_context(|| format!("{keys} on node {index}"))?;
        }
    }
    Ok(())
}

#[test]
fn the_vni_is_changed_node_by_node() -> Result<()> {
    let mut stage = Stage::new(json!({}))?;
    let traffic = stage.traffic()?;
    let mut old = 1;
    for (vni, trigger) in (7..).zip(TRIGGERS) {
        let started = Instant::now();
        roll(&mut stage, &json!({ "vni": vni }), trigger)?;
        let done = Instant::now();
        let talks = traffic.wait_all(done, DEADLINE)?;
        let run = done - started;
        println!(
            "VNI changed: {trigger:?} node by node took {run:.0?}, all talk {talks:.0?} later"
        );
        for index in 0..3 {
            let left = stage.node(index).run(&["ip", "link", "show", &format!("weft.{old}")])?;
            ensure!(!left.success(), "the old device stayed: {left}");
            ensure!(stage.is_converged(index)?);
        }
        old = vni;
    }
    Ok(())
}

#[test]
fn the_mode_is_changed_node_by_node_and_back() -> Result<()> {
    let mut stage = Stage::new(json!({}))?;
    let traffic = stage.traffic()?;
    for (range, via) in [(0, "146.130"), (1, "211.128"), (2, "44.128")] {
        stage.lab.router().sh(&format!("ip route add 10.0.{range}.0/24 via 192.168.{via}"))?;
    }
    // IPv6 has no underlay of its own here, and so stays in the tunnel.
    let native = json!({
        "routingMode": "native", "tunnelPort": 8472, "ipv4NativeRoutingCIDR": "10.0.0.0/8",
        "ipv6NativeRoutingCIDR": "fdff::/16", "mtu": 1450,
    });
    for trigger in TRIGGERS {
        for keys in [&native, &json!({})] {
            roll(&mut stage, keys, trigger)?;
            let done = Instant::now();
            let talks = traffic.wait_all(done, DEADLINE).with_context(|| keys.to_string())?;
            println!("mode changed node by node: {trigger:?}, all talk {talks:.0?} later");
            let is_native = keys == &native;
            for index in 0..3 {
                ensure!(stage.is_converged(index)?);
                let routes = stage.node(index).run_ok(&["ip", "route", "show", "proto", "87"])?;
                ensure!(is_native != routes.contains("weft.1"), "{routes}");
            }
        }
    }
    Ok(())
}
