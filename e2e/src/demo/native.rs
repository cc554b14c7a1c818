//! Steps 2 and 3.

use anyhow::{Context, Result, ensure};
use e2e::{Daemon, conf};

use super::{Demo, Step, bgp, ensure_bytes, indent, say};

pub(super) const SWITCH: Step = Step {
    title: "native: the same pods without a tunnel",
    shows: "\
The same pods without encapsulation: what leaves a node now is the pods' own packets,
and the physical network, which was never told where pods are, drops them.",
    conflist: conf::TUNNEL,
    run: switch,
};

pub(super) const ROUTES: Step = Step {
    title: "native, with the router told where pods are",
    shows: "\
What the physical network must know in native mode: one route per node. weft does not
configure it, but prints what it lacks: static routes first, then the same over BGP,
where every node announces its own pods.",
    conflist: conf::NATIVE,
    run: routes,
};

fn switch(demo: &Demo) -> Result<()> {
    demo.switch(conf::NATIVE)?;
    say("The VXLAN device is gone, and the pods, which went on running, have the 50 bytes back:");
    let worker1 = demo.cluster.node("worker1")?;
    let devices = demo.show(worker1, &["ip", "-br", "link", "show", "type", "vxlan"])?;
    ensure!(devices.is_empty(), "there still is a VXLAN device");
    let link = demo.show(demo.pod("pod-a")?, &["ip", "link", "show", "dev", "eth0"])?;
    ensure!(link.contains("mtu 1500 "), "the pod's MTU is not 1500");
    say("No ping between nodes is answered:");
    let request = demo.does_not_reach("pod-a", "pod-b", "net211")?;
    say("What reaches the router, on net211, is the pod's own packet, and it has no route for it:");
    say(&indent(&request.to_string()));
    ensure_bytes(&request, false)
}

fn routes(demo: &Demo) -> Result<()> {
    say("Static routes. Any node prints them, from the node map:");
    let script = add_routes(demo)?;
    demo.show(demo.router(), &["ip", "route"])?;
    say("The same pods, the same kernel on the nodes:");
    let seen = demo.reaches("pod-a", "pod-b", "net211")?;
    say("And the request on net211, 50 bytes shorter than in the tunnel:");
    say(&indent(&seen.request.to_string()));
    ensure_bytes(&seen.request, false)?;
    ensure_bytes(&seen.reply, false)?;
    demo.nothing_left_to_do("worker1")?;
    say("Without the routes it is over again:");
    delete_routes(demo, &script)?;
    ensure_bytes(&demo.does_not_reach("pod-a", "pod-b", "net211")?, false)?;
    say(
        "BGP in their place: BIRD on the router and on every node, each with exactly what weft prints.",
    );
    bgp::instead_of_routes(demo, Daemon::Bird)?;
    say("The same with FRR:");
    bgp::instead_of_routes(demo, Daemon::Frr)
}

/// Runs what `weft export router` prints in a shell on the router; returns it.
pub(super) fn add_routes(demo: &Demo) -> Result<String> {
    let script = demo.show(demo.cluster.node("worker1")?, &["weft", "export", "router"])?;
    ensure!(script.contains("\nip route add "), "there are no routes in it");
    say("Exactly that, run by a shell on the router.");
    demo.router().sh(&script).context("the routes that weft printed")?;
    Ok(script)
}

/// Takes those routes away again.
fn delete_routes(demo: &Demo, script: &str) -> Result<()> {
    let script = script.replace("ip route add ", "ip route del ");
    let commands: Vec<&str> = script.lines().filter(|line| !line.starts_with('#')).collect();
    commands.iter().try_for_each(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        demo.show(demo.router(), &words).map(drop)
    })
}
