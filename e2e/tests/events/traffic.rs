//! Traffic that runs on through an event, and what came back when: pings, and TCP
//! connections that must not stall.

use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::process::ChildStdout;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::{Family, Place, Pod, Running};

use crate::stage::{DEADLINE, Stage, Trigger};

/// Time from one request to the next.
const INTERVAL: &str = "0.05";
/// Requests from one pod to another that are answered one by one.
pub(crate) struct Flow {
    /// The numbers of the two nodes.
    pub(crate) nodes: [usize; 2],
    to: IpAddr,
    replies: Arc<Replies>,
    _requests: Running,
}

#[derive(Default)]
struct Replies {
    times: Mutex<Vec<Instant>>,
    more: Condvar,
}

impl Replies {
    fn times(&self) -> MutexGuard<'_, Vec<Instant>> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All pings of a stage.
pub(crate) struct Traffic(pub(crate) Vec<Flow>);

impl Flow {
    pub(crate) fn ping(nodes: [usize; 2], from: &Place, to: IpAddr) -> Result<Flow> {
        let ping = from.spawn(&["ping", "-n", "-i", INTERVAL, &to.to_string()])?;
        Flow::start(nodes, to, ping, |line| line.contains("bytes from"))
    }

    /// Counts the lines of `requests` that are replies.
    fn start(
        nodes: [usize; 2],
        to: IpAddr,
        mut requests: Running,
        is_reply: fn(&str) -> bool,
    ) -> Result<Flow> {
        let stdout = requests.stdout()?;
        let replies = Arc::new(Replies::default());
        let shared = replies.clone();
        std::thread::spawn(move || collect(stdout, &shared, is_reply));
        Ok(Flow { nodes, to, replies, _requests: requests })
    }

    /// Waits for a reply that comes after `since`.
    fn wait(&self, since: Instant, end: Instant) -> Result<Instant> {
        let mut times = self.replies.times();
        loop {
            if let Some(time) = times.iter().find(|time| **time > since) {
                return Ok(*time);
            }
            let left = end.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "no reply from {} (nodes {:?})", self.to, self.nodes);
            let wait = self.replies.more.wait_timeout(times, left);
            times = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The longest time without a reply since `since`.
    fn longest_gap(&self, since: Instant) -> Duration {
        let times = self.replies.times();
        let times: Vec<Instant> = times.iter().copied().filter(|time| *time >= since).collect();
        let ends = std::iter::once(since).chain(times.iter().copied());
        let gaps = ends.zip(times.iter().copied().chain([Instant::now()]));
        gaps.map(|(from, to)| to.saturating_duration_since(from)).max().unwrap_or_default()
    }
}

fn collect(stdout: ChildStdout, replies: &Replies, is_reply: fn(&str) -> bool) {
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        if is_reply(&line) {
            replies.times().push(Instant::now());
            replies.more.notify_all();
        }
    }
}

impl Traffic {
    /// Waits until every flow had a reply after `since`; returns how long after it the
    /// last of them came.
    pub(crate) fn wait_all(&self, since: Instant, deadline: Duration) -> Result<Duration> {
        self.wait_for(since, deadline, |_| true)
    }

    /// The same for the flows between some nodes.
    pub(crate) fn wait_for(
        &self,
        since: Instant,
        deadline: Duration,
        concerns: impl Fn([usize; 2]) -> bool,
    ) -> Result<Duration> {
        let end = since + deadline;
        let mut last = since;
        for flow in self.0.iter().filter(|flow| concerns(flow.nodes)) {
            last = last.max(flow.wait(since, end)?);
        }
        Ok(last.saturating_duration_since(since))
    }

    /// The longest gap since `since` in the flows that `concerns` picks.
    pub(crate) fn longest_gap(
        &self,
        since: Instant,
        concerns: impl Fn([usize; 2]) -> bool,
    ) -> Duration {
        let flows = self.0.iter().filter(|flow| concerns(flow.nodes));
        flows.map(|flow| flow.longest_gap(since)).max().unwrap_or_default()
    }
}

/// TCP connections between two pods, one a family.
pub(crate) struct Streams(Vec<Stream>);

struct Stream {
    flow: Flow,
    ends: [Place; 2],
    /// `ss`'s expression for its sockets.
    filter: String,
    _server: Running,
}

/// State of the connections before an event.
pub(crate) struct Mark {
    time: Instant,
    /// Of each, segments sent again.
    counters: Vec<u64>,
}

/// What became of them since.
pub(crate) struct Calm {
    /// The longest time that an answer was waited for.
    pub(crate) stall: Duration,
    /// Segments sent again, of all connections.
    pub(crate) retransmissions: u64,
}

impl Streams {
    /// Opens them; when this returns each has had an answer.
    pub(crate) fn open(nodes: [usize; 2], from: &Pod, to: &Pod) -> Result<Streams> {
        let families = [Family::V4, Family::V6];
        let streams = families.into_iter().map(|family| Stream::open(nodes, from, to, family));
        Ok(Streams(streams.collect::<Result<_>>()?))
    }

    /// Their state now.
    pub(crate) fn mark(&self) -> Result<Mark> {
        let counters = self.0.iter().map(Stream::retransmissions).collect::<Result<_>>()?;
        Ok(Mark { time: Instant::now(), counters })
    }

    /// That no connection stalled since `mark` for more than one retransmission, by the
    /// kernel's own count: a retransmission that is not answered is followed by the next
    /// (RFC 6298, 5.5), and a stall without one is the processor's, not the network's.
    pub(crate) fn assert_calm(&self, mark: &Mark) -> Result<Calm> {
        let mut calm = Calm { stall: Duration::ZERO, retransmissions: 0 };
        for (stream, before) in self.0.iter().zip(&mark.counters) {
            let count = stream.retransmissions()?;
            let stall = stream.flow.longest_gap(mark.time);
            let again = count - before;
            let (nodes, to) = (stream.flow.nodes, stream.flow.to);
            ensure!(
                again <= 1,
                "a TCP connection to {to} (nodes {nodes:?}) stalled {stall:.0?} and sent {again} \
                 segments again"
            );
            calm.stall = calm.stall.max(stall);
            calm.retransmissions += again;
        }
        Ok(calm)
    }
}

impl Stream {
    fn open(nodes: [usize; 2], from: &Pod, to: &Pod, family: Family) -> Result<Stream> {
        let program = env!("CARGO_BIN_EXE_stream");
        let address = to.addr(family)?;
        let mut server = to.spawn(&[program, "serve", &address.to_string()])?;
        let port = server.lines()?.next_line()?;
        let port = port.with_context(|| format!("no server on {address}"))?;
        let client = from.spawn(&[program, "ask", &address.to_string(), &port])?;
        let flow = Flow::start(nodes, address, client, |_| true)?;
        flow.wait(Instant::now(), Instant::now() + DEADLINE)?;
        let filter = format!("sport = :{port} or dport = :{port}");
        let ends = [from, to].map(|pod| (**pod).clone());
        Ok(Stream { flow, ends, filter, _server: server })
    }

    /// Segments that both ends sent again so far.
    fn retransmissions(&self) -> Result<u64> {
        let mut retransmissions = 0;
        for end in &self.ends {
            let shown = end.run_ok(&["ss", "-tinH", "state", "established", &self.filter])?;
            let value = |key| shown.split_whitespace().find_map(|word| word.strip_prefix(key));
            ensure!(value("rto:").is_some(), "no established connection: {shown}");
            // "in flight/in all", and nothing where there was none.
            if let Some((_, count)) = value("retrans:").and_then(|both| both.split_once('/')) {
                retransmissions += count.parse::<u64>()?;
            }
        }
        Ok(retransmissions)
    }
}

/// That the assertion can fail: a node whose device is down for a second.
#[test]
fn a_stall_is_noticed() -> Result<()> {
    e2e::needs_lab!();
    let stage = Stage::new(serde_json::json!({}))?;
    let streams = stage.streams([0, 1])?;
    let mark = streams.mark()?;
    streams.assert_calm(&mark)?;
    stage.node(1).sh("ip link set weft.1 down; sleep 1")?;
    stage.trigger(1, Trigger::Sync)?;
    let Err(error) = streams.assert_calm(&mark) else { bail!("a second's stall is calm") };
    println!("{error}");
    Ok(())
}
