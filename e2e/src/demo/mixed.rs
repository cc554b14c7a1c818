//! Step 4.

use std::iter;

use anyhow::Result;
use e2e::{Frame, Layer, conf};

use super::native::add_routes;
use super::{Demo, Step, ensure_bytes, say};

pub(super) const STEP: Step = Step {
    title: "mixed: some nodes native, the rest in the tunnel",
    shows: "\
The way belongs to a pair of nodes. With ipv4NativeRoutingCIDR 10.0.0.0/23 the physical
network carries the pods of control-plane and worker1; between those two nothing is
encapsulated. worker2's 10.0.2.0/24 is outside: with it both others use the tunnel, even
where the router has a route. Node map and conflist alone decide, so that both ends of a
flow decide alike: under strict rp_filter, a node that sends one way and is answered the
other drops the answers.",
    conflist: conf::TUNNEL,
    run,
};

fn run(demo: &Demo) -> Result<()> {
    demo.switch(conf::HYBRID)?;
    add_routes(demo)?;
    say("Where each node sends packets to the pods of the others:");
    for (node, to) in [
        ("worker1", "10.0.0.2"),
        ("control-plane", "10.0.1.2"),
        ("worker1", "10.0.2.2"),
        ("worker2", "10.0.1.2"),
        ("control-plane", "10.0.2.2"),
        ("worker2", "10.0.0.2"),
    ] {
        demo.show(demo.cluster.node(node)?, &["ip", "route", "get", to])?;
    }
    say("The same pod talks to one natively and to the other through the tunnel:");
    let native = demo.reaches("pod-a", "pod-c", "net211")?;
    let tunnel = demo.reaches("pod-a", "pod-b", "net211")?;
    say("The two requests side by side, as they came in on the router's interface net211:");
    say(&beside(&native.request, &tunnel.request));
    say("And the replies, each the way that its request went:");
    say(&beside(&native.reply, &tunnel.reply));
    say("Begun at the other end it is the same:");
    let other_native = demo.reaches("pod-c", "pod-a", "net146")?;
    let other_tunnel = demo.reaches("pod-b", "pod-a", "net44")?;
    for (exchange, tunnel) in
        [(native, false), (tunnel, true), (other_native, false), (other_tunnel, true)]
    {
        ensure_bytes(&exchange.request, tunnel)?;
        ensure_bytes(&exchange.reply, tunnel)?;
    }
    Ok(())
}

/// Two frames in two columns, a layer a line, what they carry in line with each other.
fn beside(shorter: &Frame, longer: &Frame) -> String {
    let (left, right) = (shorter.layers(), longer.layers());
    let only_right = right.len().saturating_sub(left.len());
    let mut left: Vec<Option<&Layer>> = left.iter().map(Some).collect();
    left.splice(1..1, iter::repeat_n(None, only_right));
    let rows = left.into_iter().zip(&right);
    let mut lines: Vec<String> = rows
        .map(|(left, right)| columns(&left.map_or_else(String::new, cell), &cell(right)))
        .collect();
    let total = |frame: &Frame| format!("{:>4}  bytes on the wire", frame.length);
    lines.push(columns(&total(shorter), &total(longer)));
    lines.join("\n")
}

fn cell(layer: &Layer) -> String {
    format!("{:>4}  {:<8}  {}", layer.bytes, layer.name, layer.fields)
}

fn columns(left: &str, right: &str) -> String {
    format!("    {left:<56}{right}").trim_end().to_string()
}
