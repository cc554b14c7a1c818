//! A conflist is changed on one node after the other: both versions are alive for a
//! while, nobody fails, and in the end all is as the new one wants it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Families, Spread, Topology};
use serde_json::{Value, json};

use crate::stage::{DEADLINE, Stage, TRIGGERS, Trigger};
use crate::traffic::{Calm, Traffic};

/// Four nodes: the connection between the last two has nothing to do with the first two's
/// change, and theirs nothing with that of the last two.
struct Roll {
    stage: Stage,
    traffic: Traffic,
}

impl Roll {
    fn new() -> Result<Roll> {
        let topology = Topology::nodes(4, Spread::Own, Families::V4, Families::Both);
        let stage = Stage::with_pods(topology, json!({}))?;
        let traffic = stage.traffic()?;
        Ok(Roll { stage, traffic })
    }

    fn roll(&mut self, name: &str, keys: &Value, trigger: Trigger) -> Result<()> {
        let mut calm = Calm { stall: Duration::ZERO, retransmissions: 0 };
        let started = Instant::now();
        for (changed, unaffected) in [([0, 1], [2, 3]), ([2, 3], [0, 1])] {
            let streams = self.stage.streams(unaffected)?;
            let mark = streams.mark()?;
            changed.into_iter().try_for_each(|index| self.change(index, keys, trigger))?;
            let now = streams.assert_calm(&mark)?;
            calm.stall = calm.stall.max(now.stall);
            calm.retransmissions += now.retransmissions;
        }
        let done = Instant::now();
        let talks = self.traffic.wait_all(done, DEADLINE)?;
        let run = done - started;
        let Calm { stall, retransmissions } = calm;
        println!(
            "{name}: {trigger:?} node by node took {run:.0?}, all talk {talks:.0?} later; unaffected \
             TCP: longest wait {stall:.0?}, {retransmissions} segments again"
        );
        for index in 0..4 {
            ensure!(self.stage.is_converged(index)?, "{name} on node {index}: something is left");
        }
        Ok(())
    }

    /// Changes one node; those that are still to change go on as they are.
    fn change(&mut self, index: usize, keys: &Value, trigger: Trigger) -> Result<()> {
        self.stage.configure(index, keys.clone())?;
        for other in 0..4 {
            let trigger = if other == index { trigger } else { Trigger::Status };
            let outcome = self.stage.trigger(other, trigger);
            outcome.with_context(|| format!("{keys} on node {index}"))?;
        }
        Ok(())
    }
}

#[test]
fn the_vni_is_changed_node_by_node() -> Result<()> {
    e2e::needs_lab!();
    let mut roll = Roll::new()?;
    let mut old = 1;
    for (vni, trigger) in (7..).zip(TRIGGERS) {
        roll.roll("VNI changed", &json!({ "vni": vni }), trigger)?;
        for node in roll.stage.lab.nodes() {
            let left = node.run(&["ip", "link", "show", &format!("weft.{old}")])?;
            ensure!(!left.success(), "the old device stayed: {left}");
        }
        old = vni;
    }
    Ok(())
}

#[test]
fn the_mode_is_changed_node_by_node_and_back() -> Result<()> {
    e2e::needs_lab!();
    let mut roll = Roll::new()?;
    for number in 1..=4 {
        let route = format!("ip route add 10.0.{number}.0/24 via 192.168.{number}.1");
        roll.stage.lab.router().sh(&route)?;
    }
    // IPv6 has no underlay of its own here, and so stays in the tunnel.
    let native = json!({
        "routingMode": "native", "tunnelPort": 8472, "ipv4NativeRoutingCIDR": "10.0.0.0/8",
        "ipv6NativeRoutingCIDR": "fdff::/16", "mtu": 1450,
    });
    for trigger in TRIGGERS {
        for (name, keys) in [("mode changed", &native), ("mode changed back", &json!({}))] {
            roll.roll(name, keys, trigger)?;
            let is_native = keys == &native;
            for node in roll.stage.lab.nodes() {
                let routes = node.run_ok(&["ip", "route", "show", "proto", "87"])?;
                ensure!(is_native != routes.contains("weft.1"), "{routes}");
            }
        }
    }
    Ok(())
}
