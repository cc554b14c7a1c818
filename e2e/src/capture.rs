//! Captures with tcpdump, in any place of the lab.

use std::io::Read;
use std::process::ChildStdout;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::packet::{Packet, read_pcap};
use crate::place::Place;
use crate::process::{LIMIT, Lines, Running};

/// How often a capture is started until its counts are exact.
const STARTS: usize = 20;
/// How often the counts are asked for before a capture is started again; what passes
/// meanwhile needs a moment to be written.
const COUNTS: usize = 10;

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    place: Place,
    interface: String,
    tcpdump: Running,
    /// tcpdump's process ID inside the lab.
    inside: String,
    stderr: Lines,
    file: Arc<File>,
}

/// What tcpdump has written so far.
#[derive(Debug, Default)]
struct File {
    written: Mutex<Written>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct Written {
    bytes: Vec<u8>,
    /// Whether tcpdump has closed its output.
    whole: bool,
}

impl Written {
    fn packets(&self) -> Result<Vec<Packet>> {
        if self.bytes.is_empty() { Ok(Vec::new()) } else { read_pcap(&self.bytes) }
    }
}

impl File {
    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `found` gives a value, which is asked for again whenever the file has
    /// grown; none after `deadline`.
    fn wait<T>(
        &self,
        deadline: Duration,
        found: impl Fn(&Written) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let end = Instant::now() + deadline;
        let mut written = self.written();
        loop {
            if let Some(value) = found(&written)? {
                return Ok(Some(value));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let wait = self.grown.wait_timeout(written, left);
            written = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Place {
    /// Captures on an interface what a tcpdump filter (`pcap-filter(7)`, empty for all)
    /// lets pass. Nothing sent after this returns is missed.
    pub fn capture(&self, interface: &str, filter: &str) -> Result<Capture> {
        for _ in 0..STARTS {
            let mut capture = self.start_capture(interface, filter)?;
            if capture.is_exact()? {
                return Ok(capture);
            }
        }
        bail!("{}: {interface} is too busy for a capture to start", self.name())
    }

    fn start_capture(&self, interface: &str, filter: &str) -> Result<Capture> {
        let words = ["-i", interface, "-nn", "-Z", "root", "-s", "0", "-U", "--immediate-mode"];
        let mut argv = vec!["sh", "-c", "echo $$ >&2; exec tcpdump \"$@\"", "sh"];
        argv.extend(words);
        argv.extend(["-w", "-"]);
        if !filter.is_empty() {
            argv.extend(["--", filter]);
        }
        let mut tcpdump = self.spawn(&argv)?;
        let mut stderr = tcpdump.stderr_lines()?;
        let Some(inside) = stderr.next_line()? else { bail!("tcpdump did not start") };
        stderr.until("listening on")?;
        let file = Arc::new(File::default());
        let (stdout, shared) = (tcpdump.stdout()?, file.clone());
        thread::spawn(move || collect(stdout, &shared));
        let (place, interface) = (self.clone(), interface.to_string());
        Ok(Capture { place, interface, tcpdump, inside, stderr, file })
    }
}

impl Capture {
    /// Waits until a captured packet satisfies `wanted` and returns it; an error when
    /// none has after `deadline`.
    pub fn wait_for(&self, deadline: Duration, wanted: impl Fn(&Packet) -> bool) -> Result<Packet> {
        let packet =
            self.file.wait(deadline, |written| Ok(written.packets()?.into_iter().find(&wanted)))?;
        let Some(packet) = packet else {
            bail!("{}: no such packet on {} within {deadline:?}", self.place.name(), self.interface)
        };
        Ok(packet)
    }

    /// Ends the capture and returns every packet that passed the filter until now, in
    /// the order of their arrival. An error if the kernel had to drop one.
    pub fn stop(mut self) -> Result<Vec<Packet>> {
        let (place, end) = (self.place.name().to_string(), Instant::now() + LIMIT);
        loop {
            let Counts { captured, received, dropped } = self.counts()?;
            ensure!(dropped == 0, "{place}: tcpdump missed {dropped} packets");
            if captured >= received {
                break;
            }
            let in_time = Instant::now() < end;
            ensure!(
                in_time,
                "{place}: tcpdump wrote {captured} of {received} packets in {LIMIT:?}"
            );
        }
        self.place.run_ok(&["kill", "-INT", &self.inside])?;
        self.tcpdump.wait()?;
        let whole = |written: &Written| Ok(written.whole.then(|| read_pcap(&written.bytes)));
        match self.file.wait(LIMIT, whole)? {
            Some(packets) => packets,
            None => bail!("{place}: tcpdump has ended, but not its output"),
        }
    }

    /// Whether all that the kernel has counted so far is written. What arrives after
    /// libpcap opened its socket and before it set the filter is counted whatever it
    /// is, and dropped later if it does not pass: then the counts never meet.
    fn is_exact(&mut self) -> Result<bool> {
        for _ in 0..COUNTS {
            let counts = self.counts()?;
            if counts.captured >= counts.received {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What tcpdump says of itself on SIGUSR1. Received: has passed the filter in the
    /// kernel; captured: written out.
    fn counts(&mut self) -> Result<Counts> {
        self.place.run_ok(&["kill", "-USR1", &self.inside])?;
        // "tcpdump: 3 packets captured, 3 packets received by filter, 0 packets dropped by kernel"
        let line = self.stderr.until(" captured")?;
        let numbers: Vec<u64> =
            line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        match numbers[..] {
            [captured, received, dropped, ..] => Ok(Counts { captured, received, dropped }),
            _ => bail!("tcpdump says {line:?}"),
        }
    }
}

struct Counts {
    captured: u64,
    received: u64,
    dropped: u64,
}

fn collect(mut stdout: ChildStdout, file: &File) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(count @ 1..) = stdout.read(&mut buffer) {
        file.written().bytes.extend_from_slice(&buffer[..count]);
        file.grown.notify_all();
    }
    file.written().whole = true;
    file.grown.notify_all();
}
