//! Step 3's second half.

use anyhow::Result;
use e2e::{Daemon, Family};

use super::{Demo, ensure_bytes, say};

/// Has a daemon on every node and on the router do what static routes did, and ends it.
pub(super) fn instead_of_routes(demo: &Demo, daemon: Daemon) -> Result<()> {
    let (lab, word) = (demo.cluster.lab(), daemon.word());
    let worker1 = demo.cluster.node("worker1")?;
    demo.show(worker1, &["weft", "export", word])?;
    let config = demo.show(worker1, &["weft", "export", word, "--router"])?;
    daemon.start(lab.router(), &config)?;
    lab.each_node(|node| {
        let config = demo.cluster.weft(node.name(), &["export", word])?.ok()?;
        daemon.start(node, &config)
    })?;
    wait_for_routes(demo, true)?;
    say("The sessions are up, and the router has a route to every node's pods:");
    demo.show(lab.router(), &["ip", "route"])?;
    ensure_bytes(&demo.reaches("pod-a", "pod-b", "net211")?.request, false)?;
    ensure_bytes(&demo.reaches("pod-b", "pod-c", "net44")?.request, false)?;
    say("weft's own routes are untouched:");
    demo.nothing_left_to_do("worker1")?;
    lab.each_node(|node| daemon.stop(node))?;
    wait_for_routes(demo, false)?;
    say("With the nodes' daemons ended, what they announced is withdrawn:");
    demo.show(lab.router(), &["ip", "route"])?;
    daemon.stop(lab.router())
}

/// Waits until the router has a route to every node's pods by way of that node, or none.
fn wait_for_routes(demo: &Demo, announced: bool) -> Result<()> {
    demo.cluster.lab().nodes().iter().try_for_each(|node| {
        let range = node.pod_range(Family::V4)?.to_string();
        let via = node.address(Family::V4)?.to_string();
        demo.router().wait_for_next_hop(&range, announced.then_some(via.as_str()))
    })
}
