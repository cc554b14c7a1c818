//! Step 3's second half.

use anyhow::Result;
use e2e::Daemon;

use super::{Demo, ensure_bytes, say};

/// Has a daemon on every node and on the router do what static routes did, and ends it.
pub(super) fn instead_of_routes(demo: &Demo, daemon: Daemon) -> Result<()> {
    let (lab, word) = (demo.cluster.lab(), daemon.word());
    let worker1 = demo.cluster.node("worker1")?;
    demo.show(worker1, &["weft", "export", word])?;
    demo.show(worker1, &["weft", "export", word, "--router"])?;
    demo.cluster.start_bgp(daemon)?;
    say("The sessions are up, and the router has a route to every node's pods:");
    demo.show(lab.router(), &["ip", "route"])?;
    ensure_bytes(&demo.reaches("pod-a", "pod-b", "net211")?.request, false)?;
    ensure_bytes(&demo.reaches("pod-b", "pod-c", "net44")?.request, false)?;
    say("weft's own routes are untouched:");
    demo.nothing_left_to_do("worker1")?;
    lab.each_node(|node| daemon.stop(node))?;
    demo.cluster
        .nodes()
        .try_for_each(|node| demo.cluster.wait_for_announced(node.name(), false))?;
    say("With the nodes' daemons ended, what they announced is withdrawn:");
    demo.show(lab.router(), &["ip", "route"])?;
    daemon.stop(lab.router())
}
