//! Step 1.

use anyhow::Result;
use e2e::conf;

use super::{CONFLIST, Demo, Step, ensure_bytes, indent, say};

pub(super) const STEP: Step = Step {
    title: "tunnel: the router knows nothing of pods",
    shows: "\
What a packet between pods of different nodes looks like in a VXLAN tunnel: the
physical network sees node talk to node, over UDP, and needs to know of nothing else.",
    conflist: conf::TUNNEL,
    run,
};

fn run(demo: &Demo) -> Result<()> {
    println!("Three nodes on three physical networks, and a router that forwards between them:\n");
    say(&indent(&demo.cluster.lab().topology().to_string()));
    say("Every node has the same two files, and nothing else is configured.");
    let worker1 = demo.cluster.node("worker1")?;
    demo.show(worker1, &["cat", CONFLIST])?;
    demo.show(worker1, &["cat", e2e::NODE_MAP])?;
    say("A container runtime has attached a pod on each node: ADD of veth, then of routing.");
    for pod in &demo.pods {
        demo.show(pod, &["ip", "-br", "-4", "address", "show", "eth0"])?;
    }
    say("They reach each other at once:");
    let seen = demo.reaches("pod-a", "pod-b", "net211")?;
    say("The echo request as the router forwarded it, captured on its interface net211:");
    say(&indent(&seen.request.to_string()));
    ensure_bytes(&seen.request, true)?;
    ensure_bytes(&seen.reply, true)?;
    say("So does the pod on control-plane, which is a node like the others:");
    ensure_bytes(&demo.reaches("pod-c", "pod-b", "net146")?.request, true)?;
    say("The router's routes, in which there is no pod:");
    demo.show(demo.router(), &["ip", "route"])?;
    say("What weft put into worker1's kernel, and whether anything is left to do:");
    demo.show(worker1, &["ip", "route", "show", "proto", "87"])?;
    demo.show(worker1, &["bridge", "fdb", "show", "dev", "weft.1"])?;
    demo.show(worker1, &["ip", "neighbour", "show", "dev", "weft.1"])?;
    demo.nothing_left_to_do("worker1")
}
