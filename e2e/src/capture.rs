//! Captures with tcpdump, in any place of the lab.

use std::io::{BufRead, BufReader, Read};
use std::process::{ChildStderr, ChildStdout};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::packet::{Packet, read_pcap};
use crate::place::{Place, Running};

/// How often a capture is started until its counts are exact.
const STARTS: usize = 20;
/// How often the counts are asked for before a capture is started again; what passes
/// meanwhile needs a moment to be written.
const COUNTS: usize = 10;

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Running,
    /// tcpdump's process ID inside the lab.
    inside: String,
    stderr: BufReader<ChildStderr>,
    file: Arc<File>,
    reader: JoinHandle<()>,
}

/// What tcpdump has written so far.
#[derive(Debug, Default)]
struct File {
    bytes: Mutex<Vec<u8>>,
    grown: Condvar,
}

impl File {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
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
        let mut stderr = BufReader::new(tcpdump.stderr()?);
        let inside = next_line(&mut stderr)?.context("tcpdump did not start")?;
        read_until(&mut stderr, "listening on")?;
        let file = Arc::new(File::default());
        let (stdout, shared) = (tcpdump.stdout()?, file.clone());
        let reader = thread::spawn(move || collect(stdout, &shared));
        Ok(Capture { tcpdump, inside, stderr, file, reader })
    }
}

impl Capture {
    /// Waits until a captured packet satisfies `wanted` and returns it; an error when
    /// none has after `deadline`.
    pub fn wait_for(&self, deadline: Duration, wanted: impl Fn(&Packet) -> bool) -> Result<Packet> {
        let end = Instant::now() + deadline;
        let mut bytes = self.file.bytes();
        loop {
            let packets = if bytes.is_empty() { Vec::new() } else { read_pcap(&bytes)? };
            if let Some(packet) = packets.into_iter().find(&wanted) {
                return Ok(packet);
            }
            let left = end.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "no such packet was captured in {deadline:?}");
            let wait = self.file.grown.wait_timeout(bytes, left);
            bytes = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends the capture and returns every packet that passed the filter until now, in
    /// the order of their arrival. An error if the kernel had to drop one.
    pub fn stop(mut self) -> Result<Vec<Packet>> {
        loop {
            let counts = self.counts()?;
            ensure!(counts.dropped == 0, "tcpdump missed {} packets", counts.dropped);
            if counts.captured >= counts.received {
                break;
            }
        }
        self.tcpdump.place().clone().run_ok(&["kill", "-INT", &self.inside])?;
        self.tcpdump.wait()?;
        if let Err(panic) = self.reader.join() {
            std::panic::resume_unwind(panic);
        }
        read_pcap(&self.file.bytes())
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
        self.tcpdump.place().run_ok(&["kill", "-USR1", &self.inside])?;
        // "tcpdump: 3 packets captured, 3 packets received by filter, 0 packets dropped by kernel"
        let line = read_until(&mut self.stderr, " captured")?;
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
        file.bytes().extend_from_slice(&buffer[..count]);
        file.grown.notify_all();
    }
}

fn next_line(input: &mut impl BufRead) -> Result<Option<String>> {
    let mut line = String::new();
    let count = input.read_line(&mut line).context("reading from tcpdump")?;
    Ok((count > 0).then(|| line.trim_end().to_string()))
}

/// The next line that contains `text`; an error with all that was said if it ends before.
fn read_until(input: &mut impl BufRead, text: &str) -> Result<String> {
    let mut said = Vec::new();
    while let Some(line) = next_line(input)? {
        if line.contains(text) {
            return Ok(line);
        }
        said.push(line);
    }
    bail!("tcpdump ended: {}", said.join("\n"))
}
