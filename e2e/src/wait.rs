//! Waiting for the kernel to say that something happened, with a deadline.

use std::io::{BufRead, BufReader};
use std::process::ChildStdout;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;

use crate::place::Place;
use crate::process::Running;

/// Where a monitor leaves its mark: a routing table that nothing looks into, a
/// documentation address (RFC 5737).
const MARK: &str = "unreachable 192.0.2.255 table 7439";

/// How long to wait for the mark before it is made again: `ip monitor` says nothing
/// when it begins to listen, and misses what happened before.
const MARK_WAIT: Duration = Duration::from_millis(20);

/// A running `ip monitor`.
#[derive(Debug)]
pub struct Monitor {
    lines: Receiver<String>,
    place: Place,
    _ip: Running,
}

impl Monitor {
    /// Starts to listen to every rtnetlink event of a place; none after this returns is missed.
    pub fn start(place: &Place) -> Result<Monitor> {
        let mut ip = place.spawn(&["ip", "monitor", "all"])?;
        let (sender, lines) = channel();
        let stdout = ip.stdout()?;
        thread::spawn(move || forward(stdout, &sender));
        let monitor = Monitor { lines, place: place.clone(), _ip: ip };
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            place.ip_batch(&format!("route add {MARK}\nroute del {MARK}\n"))?;
            if monitor
                .next(MARK_WAIT, |line| line.contains("Deleted") && line.contains("192.0.2.255"))
                .is_ok()
            {
                return Ok(monitor);
            }
            if Instant::now() > end {
                bail!("{}: ip monitor does not listen", place.name());
            }
        }
    }

    /// The next event that satisfies `wanted`, as `ip monitor` prints it, within `deadline`.
    pub fn next(&self, deadline: Duration, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let end = Instant::now() + deadline;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if wanted(&line) => return Ok(line),
                Ok(_) => {}
                Err(_) => bail!("{}: no such rtnetlink event in {deadline:?}", self.place.name()),
            }
        }
    }
}

impl Place {
    /// Waits until `condition` gives a value; it is asked at once, when listening has
    /// begun, and after every rtnetlink event. An error that says `what` was waited for after `deadline`.
    pub fn wait_until<T>(
        &self,
        what: &str,
        deadline: Duration,
        mut condition: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        let monitor = Monitor::start(self)?;
        let end = Instant::now() + deadline;
        loop {
            if let Some(value) = condition()? {
                return Ok(value);
            }
            let left = end.saturating_duration_since(Instant::now());
            if monitor.next(left, |_| true).is_err() {
                bail!("{}: {what}: not in {deadline:?}", self.name());
            }
        }
    }
}

/// How long the kernel may take to bring up a link both of whose ends are set up.
const CARRIER_WAIT: Duration = Duration::from_secs(20);

impl Place {
    /// Waits until every link that is set up has its carrier and passes packets. The
    /// kernel gives a veth its queue from a work item after the other end is set up
    /// (net/core/link_watch.c), and drops what is sent before.
    pub(crate) fn wait_links(&self) -> Result<()> {
        self.wait_links_where(|_| true)
    }

    /// The same for one link, whatever others there are (a VXLAN device never says that it
    /// has a carrier).
    pub fn wait_link(&self, name: &str) -> Result<()> {
        self.wait_links_where(|link| link == name)
    }

    fn wait_links_where(&self, concerns: impl Fn(&str) -> bool) -> Result<()> {
        self.wait_until("its links have a carrier", CARRIER_WAIT, || {
            let links = self.json(&["ip", "-j", "link", "show", "up"])?;
            // What the filter leaves out is printed too, as an empty object.
            let ready = |link: &Value| match link["ifname"].as_str() {
                None | Some("lo") => true,
                Some(name) if !concerns(name) => true,
                Some(_) => link["operstate"] == "UP" && link["qdisc"] != "noop",
            };
            let all = links.as_array().is_none_or(|links| links.iter().all(ready));
            Ok(all.then_some(()))
        })
    }
}

fn forward(stdout: ChildStdout, lines: &Sender<String>) {
    for line in BufReader::new(stdout).lines() {
        let Ok(line) = line else { return };
        if lines.send(line).is_err() {
            return;
        }
    }
}
