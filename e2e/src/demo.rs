//! `lab demo`: the lesson, step by step, as a person would follow it. What is printed
//! are the commands run and what they said, and frames that the router forwarded; a step
//! that does not turn out as it is told is an error.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::{Capture, Cluster, Family, Frame, Packet, Place, Pod, conf};

/// Does what a step does and prints it.
type Step = fn(&mut Demo) -> Result<()>;

/// How long a frame that was sent may take to be seen.
const DEADLINE: Duration = Duration::from_secs(10);

/// The steps in order; each begins where the one before ended.
const STEPS: [(&str, Step); 3] = [
    ("tunnel: the router knows nothing of pods", tunnel),
    ("native: the same pods without a tunnel", native),
    ("native, with routes on the router", routes),
];

/// Runs the lesson and prints all of it, or step `only` (from 1) alone.
pub(super) fn run(only: Option<usize>) -> Result<()> {
    let last = only.unwrap_or(STEPS.len());
    ensure!((1..=STEPS.len()).contains(&last), "step {last}: there are {}", STEPS.len());
    let mut demo = Demo::new()?;
    for (number, (title, step)) in (1..=last).zip(STEPS) {
        demo.shown = only.is_none_or(|only| only == number);
        let title = format!("Step {number}: {title}");
        demo.say(&format!("\n{title}\n{}\n", "=".repeat(title.len())));
        step(&mut demo).with_context(|| title)?;
    }
    Ok(())
}

/// The lesson's nodes, and a pod on each worker.
struct Demo {
    cluster: Cluster,
    pods: Option<(Pod, Pod)>,
    /// Whether the step that runs is to be printed.
    shown: bool,
}

fn tunnel(demo: &mut Demo) -> Result<()> {
    demo.say("Three nodes on three physical networks, and a router that forwards between them:\n");
    demo.say(&indent(&demo.cluster.lab().topology().to_string()));
    demo.say("Every node has the same two files, and nothing else is configured.\n");
    let worker1 = demo.cluster.node("worker1")?;
    demo.run(worker1, &["cat", CONFLIST])?;
    demo.run(worker1, &["cat", e2e::NODE_MAP])?;
    demo.say("A container runtime attaches a pod on each worker: ADD of veth, then of routing.\n");
    let (a, b) = (demo.cluster.pod("worker1", "pod-a")?, demo.cluster.pod("worker2", "pod-b")?);
    for pod in [&a, &b] {
        demo.run(pod, &["ip", "-br", "-4", "address", "show", "eth0"])?;
    }
    let to = b.addr(Family::V4)?;
    demo.pods = Some((a, b));
    demo.say("They reach each other at once:\n");
    let (answered, request) = demo.ping(to)?;
    ensure!(answered, "the ping through the tunnel was not answered");
    demo.say("The echo request as the router forwarded it, captured on its interface net211:\n");
    demo.say(&indent(&request.to_string()));
    ensure!(request.vxlan().is_some(), "what the router forwarded is no VXLAN");
    demo.say("The router's routes, in which there is no pod:\n");
    demo.run(demo.cluster.lab().router(), &["ip", "route"])?;
    demo.say("What weft put into worker1's kernel, and whether anything is left to do:\n");
    let worker1 = demo.cluster.node("worker1")?;
    demo.run(worker1, &["ip", "route", "show", "proto", "87"])?;
    demo.run(worker1, &["bridge", "fdb", "show", "dev", "weft.1"])?;
    demo.run(worker1, &["ip", "neighbour", "show", "dev", "weft.1"])?;
    ensure!(demo.run(worker1, &["weft", "plan"])?, "weft plan has something left to do");
    Ok(())
}

fn native(demo: &mut Demo) -> Result<()> {
    demo.configure(conf::NATIVE)?;
    demo.say("The conflist is changed on every node:\n");
    let worker1 = demo.cluster.node("worker1")?;
    demo.run(worker1, &["cat", CONFLIST])?;
    demo.say("`weft sync` applies it, as the next ADD of a pod would:\n");
    for node in demo.cluster.lab().nodes() {
        ensure!(demo.run(node, &["weft", "sync"])?, "weft sync failed on {}", node.name());
    }
    demo.say("The VXLAN device is gone, and no ping between nodes is answered:\n");
    demo.run(worker1, &["ip", "-br", "link", "show", "type", "vxlan"])?;
    let to = demo.pod_b()?.addr(Family::V4)?;
    let (answered, request) = demo.ping(to)?;
    ensure!(!answered, "the ping was answered, though the router has no route");
    demo.say("What reaches the router now, on net211, are the pods' own packets, and it has no route for them:\n");
    demo.say(&indent(&request.to_string()));
    ensure!(request.vxlan().is_none(), "there still is a tunnel");
    Ok(())
}

fn routes(demo: &mut Demo) -> Result<()> {
    demo.say("In native mode the physical network has to know where pods are: a route per node.\n");
    let router = demo.cluster.lab().router();
    for node in demo.cluster.lab().nodes() {
        let range = node.pod_range(Family::V4)?.to_string();
        let via = node.address(Family::V4)?.to_string();
        ensure!(demo.run(router, &["ip", "route", "add", &range, "via", &via])?, "the router");
    }
    demo.say("\nThe same pods, the same kernel on the nodes:\n");
    let to = demo.pod_b()?.addr(Family::V4)?;
    let (answered, request) = demo.ping(to)?;
    ensure!(answered, "the ping was not answered, though the router has routes");
    demo.say("And the request on net211, 50 bytes shorter than in the tunnel:\n");
    demo.say(&indent(&request.to_string()));
    let worker1 = demo.cluster.node("worker1")?;
    ensure!(demo.run(worker1, &["weft", "plan"])?, "weft plan has something left to do");
    Ok(())
}

/// Where a node's conflist is.
const CONFLIST: &str = "/etc/cni/net.d/10-pods.conflist";

impl Demo {
    fn new() -> Result<Demo> {
        let demo = Demo { cluster: Cluster::lesson(conf::TUNNEL)?, pods: None, shown: false };
        for node in demo.cluster.lab().nodes() {
            node.write_file(e2e::NODE_MAP, conf::NODES)?;
            node.write_file(CONFLIST, conf::TUNNEL)?;
        }
        Ok(demo)
    }

    /// Puts a conflist on every node, word by word.
    fn configure(&mut self, conflist: &str) -> Result<()> {
        self.cluster.set_conflist(&conflist.parse()?)?;
        let nodes = self.cluster.lab().nodes();
        nodes.iter().try_for_each(|node| node.write_file(CONFLIST, conflist))
    }

    fn pod_b(&self) -> Result<&Pod> {
        self.pods.as_ref().map(|(_, pod)| pod).context("no pod is there yet")
    }

    fn say(&self, text: &str) {
        if self.shown {
            println!("{text}");
        }
    }

    /// Runs a command and prints it with all that it says; whether it succeeded.
    fn run(&self, place: &Place, argv: &[&str]) -> Result<bool> {
        let output = place.command(argv).env("PATH", self.cluster.search_path()?).output()?;
        let prompt = format!("{}# {}\n", place.name(), argv.join(" "));
        self.say(&indent(&format!("{prompt}{}{}", output.stdout, output.stderr)));
        Ok(output.success())
    }

    /// Pings pod-b's address from pod-a; whether there was an answer, and the first echo
    /// request as it came in on the router's interface net211.
    fn ping(&self, to: IpAddr) -> Result<(bool, Frame)> {
        let Some((from, _)) = &self.pods else { bail!("no pod is there yet") };
        let capture = self.cluster.lab().router().capture("net211", "ip")?;
        let argv = ["ping", "-c", "2", "-i", "0.2", "-W", "1", &to.to_string()];
        let answered = self.run(from, &argv)?;
        Ok((answered, first_request(&capture, to)?))
    }
}

fn first_request(capture: &Capture, to: IpAddr) -> Result<Frame> {
    let is_request = |packet: &Packet| {
        let frame = packet.frame().ok();
        let ip = frame.as_ref().and_then(|frame| frame.innermost().ip());
        ip.is_some_and(|ip| ip.destination == to && ip.icmp().is_some_and(|icmp| icmp.is_request()))
    };
    capture.wait_for(DEADLINE, is_request)?.frame()
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}").trim_end().to_string() + "\n").collect()
}
