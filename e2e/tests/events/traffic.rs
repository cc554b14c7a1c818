//! Pings that run on through an event, and what came back when.

use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::process::ChildStdout;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::{Place, Running};

/// Time from one request to the next.
const INTERVAL: &str = "0.05";

/// Pings from one pod to another.
pub(crate) struct Flow {
    /// The numbers of the two nodes.
    pub(crate) nodes: [usize; 2],
    to: IpAddr,
    replies: Arc<Replies>,
    _ping: Running,
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

/// All flows of a stage.
pub(crate) struct Traffic(pub(crate) Vec<Flow>);

impl Flow {
    pub(crate) fn start(nodes: [usize; 2], from: &Place, to: IpAddr) -> Result<Flow> {
        let mut ping = from.spawn(&["ping", "-n", "-i", INTERVAL, &to.to_string()])?;
        let stdout = ping.stdout()?;
        let replies = Arc::new(Replies::default());
        let shared = replies.clone();
        std::thread::spawn(move || collect(stdout, &shared));
        Ok(Flow { nodes, to, replies, _ping: ping })
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

fn collect(stdout: ChildStdout, replies: &Replies) {
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        if line.contains("bytes from") {
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
