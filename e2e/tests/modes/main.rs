//! The ways between nodes, in the lab, by weft's own executables: which way packets
//! go, which address they show, what they may be large, what is refused.

mod advertisements;
mod guard;
mod hybrid;
mod look;
mod loops;
mod masquerade;
mod matrix;
mod spoof;
mod switch;
mod wire;

use std::net::IpAddr;

use anyhow::Result;
use e2e::{Family, Node, PingOptions, PingResult, Place, ping};
use serde_json::{Value, json};

/// A conflist whose `routing` has these keys.
fn conflist(routing: Value) -> Value {
    conflist_of(json!({}), routing)
}

/// A conflist whose `veth` and `routing` have these keys.
fn conflist_of(veth: Value, routing: Value) -> Value {
    let ipam = json!({ "type": "host-local" });
    let mut plugins =
        [json!({ "type": "veth", "ipam": ipam, "capabilities": { "ips": true } }), json!({})];
    plugins[1]["type"] = json!("routing");
    for (plugin, keys) in plugins.iter_mut().zip([veth, routing]) {
        for (key, value) in keys.as_object().into_iter().flatten() {
            plugin[key] = value.clone();
        }
    }
    json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": plugins })
}

/// The first address of a node's first pod range of a family: its VXLAN device's.
fn pod_network(node: &Node, family: Family) -> Result<IpAddr> {
    Ok(node.pod_range(family)?.network())
}

/// Pings with a patience that a busy machine needs.
fn pinged(from: &Place, to: IpAddr, options: PingOptions) -> Result<PingResult> {
    ping(from, to, &PingOptions { wait: 10.0, ..options })
}

/// Pings; it has to be answered.
#[track_caller]
fn assert_ping(from: &Place, to: IpAddr, options: PingOptions) -> Result<()> {
    let result = pinged(from, to, options)?;
    assert!(result.all(), "{}", result.output);
    Ok(())
}
