//! Step 5.

use anyhow::{Context, Result, ensure};
use e2e::{Family, Icmp, PingOptions, conf, ping, tcp_for};

use super::{Demo, Step, ensure_bytes, first};

pub(super) const STEP: Step = Step {
    title: "what the tunnel costs",
    shows: "\
The two modes measured between the same two pods, pod-a on worker1 and pod-b on worker2.
Nodes and router share this machine's processors, and no wire limits them: times and
rates compare the work that the kernel does for a packet, and say nothing of a network.",
    conflist: conf::TUNNEL,
    run,
};

/// Round trips that the median is taken of.
const PINGS: u32 = 200;

/// How long TCP sends, in seconds.
const SENDING: u32 = 2;

/// What one mode shows.
struct Figures {
    /// Bytes of a default ping's frame at the router.
    wire: usize,
    /// Pod MTU in bytes.
    mtu: u64,
    /// Median round trip in milliseconds.
    rtt: f64,
    /// TCP throughput in bits per second.
    rate: f64,
}

fn run(demo: &Demo) -> Result<()> {
    let tunnel = measure(demo, true)?;
    demo.begin_with(conf::NATIVE)?;
    let routes = demo.cluster.weft("worker1", &["export", "router"])?.ok()?;
    demo.router().sh(&routes)?;
    let native = measure(demo, false)?;
    ensure!((tunnel.mtu, native.mtu) == (1450, 1500), "MTUs {} and {}", tunnel.mtu, native.mtu);
    println!("{}", table(&tunnel, &native));
    Ok(())
}

fn measure(demo: &Demo, tunnel: bool) -> Result<Figures> {
    let (from, to) = (demo.pod("pod-a")?, demo.pod("pod-b")?);
    let address = to.addr(Family::V4)?;
    let capture = demo.router().capture("net211", "ip")?;
    let patient = PingOptions { wait: 5.0, ..PingOptions::default() };
    ensure!(ping(from, address, &patient)?.all(), "{} does not reach {}", from.name(), to.name());
    let request = first(&capture, from, to, Icmp::is_request)?;
    ensure_bytes(&request, tunnel)?;
    capture.stop()?;
    let link = from.json(&["ip", "-j", "link", "show", "dev", "eth0"])?;
    let many = ping(from, address, &PingOptions { count: PINGS, ..patient })?;
    ensure!(many.all(), "{}", many.output);
    Ok(Figures {
        wire: request.length,
        mtu: link[0]["mtu"].as_u64().context("the pod's link has no MTU")?,
        rtt: median(&many.output.stdout).context("ping reports no round trips")?,
        rate: tcp_for(from, to, address, SENDING)?.rate,
    })
}

/// The median of the round trips that ping printed, in milliseconds.
fn median(said: &str) -> Option<f64> {
    let times = said.lines().filter_map(|line| line.split_once("time=")?.1.split(' ').next());
    let mut times: Vec<f64> = times.filter_map(|time| time.parse().ok()).collect();
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied()
}

fn table(tunnel: &Figures, native: &Figures) -> String {
    let line = |what: &str, figure: fn(&Figures) -> String| {
        format!("    {what:<40}{:>14}{:>14}\n", figure(tunnel), figure(native))
    };
    let gigabits = |mode: &Figures| format!("{:.2}", mode.rate / 1e9);
    [
        format!("    {:<40}{:>14}{:>14}\n", "", "tunnel", "native"),
        line("default ping, bytes on the wire", |mode| mode.wire.to_string()),
        line("pod MTU, bytes", |mode| mode.mtu.to_string()),
        line(&format!("round trip, median of {PINGS}, ms"), |mode| format!("{:.3}", mode.rtt)),
        line(&format!("TCP, one connection, {SENDING} s, Gbit/s"), gigabits),
    ]
    .concat()
}
