//! Traffic between places: pings, and bulk data over TCP.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::place::Place;
use crate::process::Output;

/// How to ping.
#[derive(Clone, Debug)]
pub struct PingOptions {
    /// Echo requests to send.
    pub count: u32,
    /// Bytes of data in each; the IP packet is 28 (IPv4) or 48 (IPv6) longer.
    pub size: u32,
    /// Forbid fragmentation, on this host too (`-M do`).
    pub dont_fragment: bool,
    /// Source address or interface.
    pub source: Option<String>,
    /// Seconds to wait for the last reply.
    pub wait: f32,
    /// Time to live or hop limit, else the system's.
    pub ttl: Option<u8>,
}

impl Default for PingOptions {
    /// One request with the 56 bytes of an ordinary ping, and a second's patience.
    fn default() -> PingOptions {
        PingOptions { count: 1, size: 56, dont_fragment: false, source: None, wait: 1.0, ttl: None }
    }
}

impl PingOptions {
    /// One request that makes an IP packet of exactly `packet` bytes, never fragmented.
    pub fn exact(packet: u32, to: IpAddr) -> PingOptions {
        let headers = if to.is_ipv4() { 20 + 8 } else { 40 + 8 };
        PingOptions { size: packet - headers, dont_fragment: true, ..PingOptions::default() }
    }
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct PingResult {
    /// Requests sent.
    pub sent: u32,
    /// Replies received.
    pub received: u32,
    /// Shortest round trip, in milliseconds, if there was one.
    pub rtt_min: Option<f64>,
    /// What ping said.
    pub output: Output,
}

impl PingResult {
    /// Whether every request was answered.
    pub fn all(&self) -> bool {
        self.sent > 0 && self.received == self.sent
    }

    /// Whether the packet was refused for its size, on this host or on the way.
    pub fn too_big(&self) -> bool {
        self.too_big_here() || self.said("frag needed") || self.said("packet too big")
    }

    /// Whether this host refused the packet for its size.
    pub fn too_big_here(&self) -> bool {
        // "local error: message too long, mtu=…"; since iputils 20240905
        // "sendmsg: Message too long".
        self.said("message too long")
    }

    fn said(&self, text: &str) -> bool {
        [&self.output.stdout, &self.output.stderr]
            .iter()
            .any(|said| said.to_lowercase().contains(text))
    }
}

/// Pings an address from a place. An unanswered ping is a result, not an error.
pub fn ping(from: &Place, to: IpAddr, options: &PingOptions) -> Result<PingResult> {
    let text = |value: &dyn ToString| value.to_string();
    let mut argv = vec!["ping".to_string(), "-n".to_string()];
    argv.extend(["-c".to_string(), text(&options.count), "-s".to_string(), text(&options.size)]);
    argv.extend(["-i".to_string(), "0.01".to_string(), "-W".to_string(), text(&options.wait)]);
    if options.dont_fragment {
        argv.extend(["-M".to_string(), "do".to_string()]);
    }
    if let Some(source) = &options.source {
        argv.extend(["-I".to_string(), source.clone()]);
    }
    if let Some(ttl) = options.ttl {
        argv.extend(["-t".to_string(), text(&ttl)]);
    }
    argv.push(to.to_string());
    let output = from.run(&argv)?;
    let line = output.stdout.lines().find(|line| line.contains("packets transmitted"));
    let Some(line) = line else {
        // Without a route, or asked for the impossible, ping ends before its summary.
        return Ok(PingResult { sent: 0, received: 0, rtt_min: None, output });
    };
    // "1 packets transmitted, 1 received, 0% packet loss", or "…, 0 received, +1 errors, …"
    let mut numbers = line.split(", ").filter_map(|part| part.split(' ').next()?.parse().ok());
    let (sent, received) = numbers.next().zip(numbers.next()).context("ping's summary")?;
    let rtt = output.stdout.lines().find_map(|line| line.strip_prefix("rtt min/avg/max/mdev = "));
    let rtt_min = rtt.and_then(|rtt| rtt.split('/').next()?.parse().ok());
    Ok(PingResult { sent, received, rtt_min, output })
}

/// What [`tcp_bulk`] moved.
#[derive(Clone, Debug)]
pub struct Bulk {
    /// Bytes that the sender gave to its socket: at least what was asked for.
    pub sent: u64,
    /// Bytes that the receiver had read when it heard that the sender was done; what
    /// was still in its socket then is not counted.
    pub received: u64,
    /// Bits per second at the receiver.
    pub rate: f64,
    /// Segments sent again.
    pub retransmits: u64,
    /// iperf3's whole report.
    pub report: Value,
}

/// How long a transfer may take: a path that swallows packets has to be seen as such.
const TRANSFER: Duration = Duration::from_secs(60);

/// Sends `bytes` over one TCP connection by iperf3, from a place to an address of
/// another. An error when it takes a minute, as through a path that swallows packets.
pub fn tcp_bulk(from: &Place, to: &Place, address: IpAddr, bytes: u64) -> Result<Bulk> {
    iperf3(from, to, address, &["--bytes", &bytes.to_string()])
}

/// Likewise as much as goes through in so many seconds.
pub fn tcp_for(from: &Place, to: &Place, address: IpAddr, seconds: u32) -> Result<Bulk> {
    iperf3(from, to, address, &["--time", &seconds.to_string()])
}

fn iperf3(from: &Place, to: &Place, address: IpAddr, amount: &[&str]) -> Result<Bulk> {
    let address = address.to_string();
    let server = ["iperf3", "--server", "--one-off", "--forceflush", "--bind", &address];
    let mut server = to.spawn(&server)?;
    // Kept to the end: the server prints on.
    let mut said = server.lines()?;
    said.until("Server listening")?;
    let client = ["iperf3", "--client", &address, "--json"];
    let report = from.command(&[&client, amount].concat()).limit(TRANSFER).json()?;
    let end = &report["end"];
    Ok(Bulk {
        sent: end["sum_sent"]["bytes"].as_u64().context("iperf3 reports no bytes")?,
        received: end["sum_received"]["bytes"].as_u64().context("iperf3 reports no bytes")?,
        rate: end["sum_received"]["bits_per_second"].as_f64().context("iperf3 reports no rate")?,
        retransmits: end["sum_sent"]["retransmits"].as_u64().unwrap_or(0),
        report,
    })
}
