//! The loads, and what each comes to.

use std::fs;

use anyhow::{Context, Result, bail};
use e2e::{Place, Running};
use serde_json::Value;

use super::super::stats::quantile;
use super::layout::Stage;
use super::peer;

/// How long a load goes on, seconds.
const SECONDS: &str = "2";

/// One kind of traffic from the first end to the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    /// TCP, as much as goes through.
    Tcp {
        /// Parallel streams.
        streams: u32,
    },
    /// UDP packets of 64 bytes payload, as many as go through.
    SmallUdp,
    /// One byte there and back, one after the other.
    Requests,
    /// A connection for each byte there and back.
    Connections,
}

pub(super) const LOADS: [Load; 5] = [
    Load::Tcp { streams: 1 },
    Load::Tcp { streams: 8 },
    Load::SmallUdp,
    Load::Requests,
    Load::Connections,
];

/// What one run of a load came to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// In the load's unit.
    pub(super) value: f64,
    /// CPU time for each: of the whole machine, seconds for a gigabit; of the sending process,
    /// microseconds for a packet, request or connection.
    pub(super) cpu: f64,
}

impl Load {
    /// The column's heading.
    pub(super) fn heading(self) -> String {
        match self {
            Self::Tcp { streams: 1 } => "TCP, 1 stream, Gbit/s (CPU s/Gbit)".to_owned(),
            Self::Tcp { streams } => format!("TCP, {streams} streams, Gbit/s (CPU s/Gbit)"),
            Self::SmallUdp => "UDP, 64 bytes, thousand packets/s (CPU µs each)".to_owned(),
            Self::Requests => "request and response, µs (CPU µs)".to_owned(),
            Self::Connections => "connections/s (CPU µs)".to_owned(),
        }
    }

    /// How often it runs in a round: the rate of TCP differs by a fifth and more from one run
    /// to the next, that of the others by a few hundredths.
    pub(super) fn runs_a_round(self) -> usize {
        if self.is_throughput() { 3 } else { 1 }
    }

    /// Whether more of it is bytes.
    pub(super) fn is_throughput(self) -> bool {
        matches!(self, Self::Tcp { .. })
    }

    /// The medians of a layout, and their share of the first layout's.
    pub(super) fn cell(self, samples: &[Sample], first: &[Sample]) -> String {
        let median = |samples: &[Sample], of: fn(&Sample) -> f64| {
            let values: Vec<f64> = samples.iter().map(of).collect();
            quantile(&values, 0.5).unwrap_or(f64::NAN)
        };
        let value = median(samples, |sample| sample.value);
        let share = value / median(first, |sample| sample.value);
        let cpu = median(samples, |sample| sample.cpu);
        match self {
            Self::Tcp { .. } => format!("{value:.2} [{share:.2}] ({cpu:.3})"),
            Self::SmallUdp => format!("{value:.0} [{share:.2}] ({cpu:.2})"),
            Self::Requests => format!("{value:.1} [{share:.2}] ({cpu:.1})"),
            Self::Connections => format!("{value:.0} [{share:.2}] ({cpu:.0})"),
        }
    }

    /// Runs it once between the ends of a stage.
    pub(super) fn run(self, stage: &Stage) -> Result<Sample> {
        match self {
            Self::Tcp { streams } => {
                let streams = streams.to_string();
                let (end, busy) = iperf3(stage, &["--parallel", &streams])?;
                let rate = number(&end["sum_received"]["bits_per_second"])? / 1e9;
                let gigabits = number(&end["sum_received"]["bytes"])? * 8.0 / 1e9;
                Ok(Sample { value: rate, cpu: busy / gigabits })
            }
            Self::SmallUdp => {
                let before = arrived(&stage.to)?;
                let sent = exchange(stage, "packets")?;
                let through = arrived(&stage.to)? - before;
                let value = through / sent.seconds / 1e3;
                Ok(Sample { value, cpu: sent.cpu / sent.done * 1e6 })
            }
            Self::Requests => {
                let Exchange { done, seconds, cpu } = exchange(stage, "requests")?;
                Ok(Sample { value: seconds / done * 1e6, cpu: cpu / done * 1e6 })
            }
            Self::Connections => {
                let Exchange { done, seconds, cpu } = exchange(stage, "connections")?;
                Ok(Sample { value: done / seconds, cpu: cpu / done * 1e6 })
            }
        }
    }
}

/// What the client of [`peer`] says: how many there were, in how many seconds, with how
/// many of its own CPU time. Where cables are veth pairs, that holds the whole way of a
/// packet to the receiver's socket, and nothing of other processes.
struct Exchange {
    done: f64,
    seconds: f64,
    cpu: f64,
}

/// UDP packets that came to a socket of this place so far, whether or not it had room
/// (the kernel's `Udp` line of `/proc/net/snmp`).
fn arrived(place: &Place) -> Result<f64> {
    let text = place.run_ok(&["cat", "/proc/net/snmp"])?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = lines.next().zip(lines.next()).context("/proc/net/snmp has no UDP")?;
    let both = names.split(' ').zip(values.split(' '));
    let counted = both.filter(|(name, _)| ["InDatagrams", "RcvbufErrors"].contains(name));
    Ok(counted.filter_map(|(_, value)| value.parse::<f64>().ok()).sum())
}

/// iperf3's closing figures, and CPU seconds.
fn iperf3(stage: &Stage, words: &[&str]) -> Result<(Value, f64)> {
    let address = stage.address.to_string();
    let server = ["iperf3", "--server", "--one-off", "--forceflush", "--bind", &address];
    let _server = listening(&stage.to, &server, "Server listening")?;
    let client = ["iperf3", "--client", &address, "--json", "--time", SECONDS];
    let before = busy()?;
    let report = stage.from.json(&[&client, words].concat())?;
    Ok((report["end"].clone(), busy()? - before))
}

fn exchange(stage: &Stage, kind: &str) -> Result<Exchange> {
    let this = std::env::current_exe()?;
    let this = this.to_string_lossy();
    let _server = listening(&stage.to, &[this.as_ref(), "peer", "serve"], "listening")?;
    let address = std::net::SocketAddr::new(stage.address, peer::PORT).to_string();
    let said = stage.from.run_ok(&[this.as_ref(), "peer", kind, &address, SECONDS])?;
    let figures = said.split_whitespace().map(str::parse).collect::<Result<Vec<f64>, _>>()?;
    let [done, seconds, cpu] = figures[..] else { bail!("the client says {said:?}") };
    Ok(Exchange { done, seconds, cpu })
}

/// Starts a server and returns when it has said that it listens.
fn listening(place: &Place, argv: &[&str], sign: &str) -> Result<Running> {
    let mut server = place.spawn(argv)?;
    server.lines()?.until(sign)?;
    Ok(server)
}

fn number(value: &Value) -> Result<f64> {
    value.as_f64().context("iperf3 lacks a figure")
}

/// Seconds of CPU time that were not idle since boot, of all cores (proc_stat(5)).
fn busy() -> Result<f64> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    // user nice system idle iowait irq softirq; 100 ticks a second (USER_HZ).
    let idle = ticks.get(3).zip(ticks.get(4)).map_or(0.0, |(idle, wait)| idle + wait);
    Ok((ticks.iter().take(7).sum::<f64>() - idle) / 100.0)
}
