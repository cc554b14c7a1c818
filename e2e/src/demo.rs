//! `lab demo`: the lesson, step by step, as a person would follow it. What is printed
//! are the commands run and what they said, and frames that the router forwarded; a step
//! that does not turn out as it is told is an error.

mod bgp;
mod figures;
mod mixed;
mod native;
mod tunnel;

use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{Capture, Cluster, Family, Frame, Icmp, Packet, Place, Pod, conf};

/// How long a frame that was sent may take to be seen.
const DEADLINE: Duration = Duration::from_secs(10);

/// Where a node's conflist is.
const CONFLIST: &str = "/etc/cni/net.d/10-pods.conflist";

/// One pod a node: the node, and the pod's name.
const PODS: [(&str, &str); 3] =
    [("worker1", "pod-a"), ("worker2", "pod-b"), ("control-plane", "pod-c")];

/// A part of the lesson that can be had alone.
struct Step {
    title: &'static str,
    /// What it shows and why, for people.
    shows: &'static str,
    /// The conflist that it begins with.
    conflist: &'static str,
    /// Does it and prints it.
    run: fn(&Demo) -> Result<()>,
}

const STEPS: [Step; 5] = [tunnel::STEP, native::SWITCH, native::ROUTES, mixed::STEP, figures::STEP];

/// Runs the lesson and prints all of it, or step `only` (from 1) alone.
pub(super) fn run(only: Option<usize>) -> Result<()> {
    let steps = (1..).zip(&STEPS).filter(|(number, _)| only.is_none_or(|only| only == *number));
    let steps: Vec<(usize, &Step)> = steps.collect();
    ensure!(!steps.is_empty(), "demo {}: there are steps 1 to {}", only.unwrap_or(0), STEPS.len());
    let demo = Demo::new()?;
    for (number, step) in steps {
        let title = format!("Step {number}: {}", step.title);
        println!("\n{title}\n{}\n\n{}\n", "=".repeat(title.len()), step.shows);
        demo.begin_with(step.conflist)?;
        (step.run)(&demo).with_context(|| title)?;
    }
    Ok(())
}

/// The lesson's nodes, and a pod on each.
struct Demo {
    cluster: Cluster,
    pods: Vec<Pod>,
    path: OsString,
}

/// A ping's first echo request and the reply to it, as one interface of the router's saw them.
struct Exchange {
    request: Frame,
    reply: Frame,
}

impl Demo {
    fn new() -> Result<Demo> {
        let cluster = Cluster::lesson(conf::TUNNEL)?;
        for node in cluster.lab().nodes() {
            node.write_file(e2e::NODE_MAP, conf::NODES)?;
        }
        let path = cluster.search_path()?;
        let mut demo = Demo { cluster, pods: Vec::new(), path };
        demo.configure(conf::TUNNEL)?;
        for (node, pod) in PODS {
            let pod = demo.cluster.pod(node, pod)?;
            demo.pods.push(pod);
        }
        Ok(demo)
    }

    /// Puts a conflist on every node, word by word.
    fn configure(&self, conflist: &str) -> Result<()> {
        let nodes = self.cluster.lab().nodes();
        nodes.iter().try_for_each(|node| node.write_file(CONFLIST, conflist))
    }

    /// Brings the lab to where a step begins, whatever the step before has left: every
    /// node has this conflist, and the router no routes but to its own links.
    fn begin_with(&self, conflist: &str) -> Result<()> {
        self.router().sh("ip route flush proto boot")?;
        self.configure(conflist)?;
        self.cluster.sync_all()
    }

    /// Changes the conflist on every node and applies it.
    fn switch(&self, conflist: &str) -> Result<()> {
        self.configure(conflist)?;
        say("The conflist is changed on every node:");
        let worker1 = self.cluster.node("worker1")?;
        self.show(worker1, &["cat", CONFLIST])?;
        say("`weft sync` applies it, as the next ADD of a pod would:");
        for node in self.cluster.lab().nodes() {
            self.show(node, &["weft", "sync"])?;
        }
        Ok(())
    }

    fn pod(&self, name: &str) -> Result<&Pod> {
        let pod = self.pods.iter().find(|pod| pod.id() == name);
        pod.with_context(|| format!("no pod is called {name}"))
    }

    fn router(&self) -> &Place {
        self.cluster.lab().router()
    }

    /// Runs a command, which has to succeed, and prints it with all that it says.
    fn show(&self, place: &Place, argv: &[&str]) -> Result<String> {
        let (success, stdout) = self.try_show(place, argv)?;
        ensure!(success, "{}: {} failed", place.name(), argv.join(" "));
        Ok(stdout)
    }

    /// Likewise whether it succeeds or not.
    fn try_show(&self, place: &Place, argv: &[&str]) -> Result<(bool, String)> {
        let output = place.command(argv).env("PATH", &self.path).output()?;
        let prompt = format!("{}# {}\n", place.name(), argv.join(" "));
        say(&indent(&format!("{prompt}{}{}", output.stdout, output.stderr)));
        Ok((output.success(), output.stdout))
    }

    /// Pings one pod from another, which has to be answered; the first request and its
    /// reply as the router's interface `on` saw them.
    fn reaches(&self, from: &str, to: &str, on: &str) -> Result<Exchange> {
        let (from, to) = (self.pod(from)?, self.pod(to)?);
        let capture = self.router().capture(on, "ip")?;
        let address = to.addr(Family::V4)?.to_string();
        let argv = ["ping", "-c", "2", "-i", "0.2", "-W", "5", &address];
        let (answered, _) = self.try_show(from, &argv)?;
        ensure!(answered, "{} does not reach {}", from.name(), to.name());
        let request = first(&capture, from, to, Icmp::is_request)?;
        Ok(Exchange { request, reply: first(&capture, to, from, Icmp::is_reply)? })
    }

    /// Pings one pod from another, which must not be answered; the first request as the
    /// router's interface `on` saw it.
    fn does_not_reach(&self, from: &str, to: &str, on: &str) -> Result<Frame> {
        let (from, to) = (self.pod(from)?, self.pod(to)?);
        let capture = self.router().capture(on, "ip")?;
        let address = to.addr(Family::V4)?.to_string();
        let (answered, _) =
            self.try_show(from, &["ping", "-c", "2", "-i", "0.2", "-W", "1", &address])?;
        ensure!(!answered, "{} reaches {}, though it must not", from.name(), to.name());
        first(&capture, from, to, Icmp::is_request)
    }

    /// Whether a node's kernel is as the node map and the conflist ask.
    fn nothing_left_to_do(&self, node: &str) -> Result<()> {
        self.show(self.cluster.node(node)?, &["weft", "plan"]).map(drop)
    }
}

/// The first ICMP message of a kind from one pod to another, with all that is around it.
fn first(capture: &Capture, from: &Pod, to: &Pod, kind: fn(&Icmp) -> bool) -> Result<Frame> {
    let (source, destination) = (from.addr(Family::V4)?, to.addr(Family::V4)?);
    let wanted = |packet: &Packet| {
        let frame = packet.frame().ok();
        let ip = frame.as_ref().and_then(|frame| frame.innermost().ip());
        ip.is_some_and(|ip| {
            ip.source == source && ip.destination == destination && ip.icmp().is_some_and(kind)
        })
    };
    capture.wait_for(DEADLINE, wanted)?.frame()
}

fn say(text: &str) {
    println!("{text}\n");
}

fn indent(text: &str) -> String {
    let lines: Vec<String> =
        text.trim_end().lines().map(|line| format!("    {line}").trim_end().to_string()).collect();
    lines.join("\n")
}

/// Whether a frame is a default ping's in the tunnel or without it, to the byte.
fn ensure_bytes(frame: &Frame, tunnel: bool) -> Result<()> {
    ensure!(frame.vxlan().is_some() == tunnel, "in the tunnel: {}\n{frame}", !tunnel);
    let bytes = if tunnel { 148 } else { 98 };
    ensure!(frame.length == bytes, "not {bytes} bytes, but {frame}");
    Ok(())
}
