//! A run: labs with a node for each chain, and the verbs, the chains taking turns.

use std::io::Write;
use std::path::PathBuf;
use std::process::ChildStdin;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use e2e::{Lab, Lines, NODE_MAP, Node, Running};
use serde_json::{Value, json};

use super::chain::{Chain, Whose, topology};
use super::pod::Pod;

/// The circumstances of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Circumstances {
    /// As in tables and on the command line.
    pub(crate) part: &'static str,
    /// IPv4 and IPv6, else IPv4 alone.
    pub(crate) dual: bool,
    /// Nodes in the map.
    pub(crate) nodes: usize,
    /// Pods that are there all the time.
    pub(crate) present: usize,
    /// Pods at once.
    pub(crate) width: usize,
}

/// One verb of one chain for one pod.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) part: &'static str,
    pub(crate) chain: &'static str,
    pub(crate) verb: &'static str,
    /// Each plugin and how long its process lived, milliseconds.
    pub(crate) plugins: Vec<(String, f64)>,
    /// User and system time of all processes, milliseconds; in a parallel run a
    /// pod's share.
    pub(crate) cpu: f64,
}

impl Sample {
    /// All its processes, one after the other, milliseconds.
    pub(crate) fn wall(&self) -> f64 {
        self.plugins.iter().map(|(_, wall)| wall).sum()
    }
}

/// All pods of a chain at once.
#[derive(Clone, Debug)]
pub(crate) struct Burst {
    pub(crate) chain: &'static str,
    pub(crate) verb: &'static str,
    pub(crate) pods: usize,
    /// From the first start to the last end, milliseconds.
    pub(crate) wall: f64,
}

/// Peak resident set of a plugin.
#[derive(Clone, Debug)]
pub(crate) struct Peak {
    pub(crate) part: &'static str,
    pub(crate) chain: &'static str,
    pub(crate) plugin: String,
    /// Of its process or of a child of it, over all verbs, bytes.
    pub(crate) bytes: u64,
}

/// All that was measured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Results {
    pub(crate) samples: Vec<Sample>,
    pub(crate) bursts: Vec<Burst>,
    pub(crate) peaks: Vec<Peak>,
}

/// Where executables are.
#[derive(Clone, Debug)]
pub(crate) struct Executables {
    pub(crate) ours: PathBuf,
    /// The same, linked with glibc; where a part asks for it.
    pub(crate) ours_glibc: Option<PathBuf>,
    pub(crate) reference: PathBuf,
    /// The baseline, and the directory that it is in.
    pub(crate) bare: PathBuf,
}

/// A node map younger than a second counts as changed (its time stamp proves
/// nothing), so that every ADD would compare all of it.
pub(crate) const MAP_SETTLES: Duration = Duration::from_millis(1100);
/// Runs of a plugin whose memory is looked at.
const MEMORY_RUNS: usize = 3;
/// How long a worker may take to answer; filling a node with pods takes minutes.
const ANSWER: Duration = Duration::from_secs(1800);
/// Threads that make the pods that are there all the time.
const FILL_WIDTH: usize = 4;

/// A worker process on its chain's node.
pub(crate) struct Runtime {
    chain: Chain,
    _process: Running,
    stdin: ChildStdin,
    stdout: Lines,
}

/// Measures `count` pods of each of `chains`.
pub(crate) fn run(
    at: Circumstances,
    chains: &[Chain],
    count: usize,
    executables: &Executables,
    results: &mut Results,
) -> Result<()> {
    let lab = Lab::start(topology(chains)?)?;
    let mut runtimes = Vec::new();
    for chain in chains {
        let node = lab.node(&chain.node())?;
        node.write_file(NODE_MAP, chain.node_map(at.nodes, at.dual).to_string())?;
        runtimes.push(Runtime::start(node, *chain, at.dual, executables)?);
    }
    thread::sleep(MAP_SETTLES);
    for runtime in &mut runtimes {
        // A first pod finds nothing made: forwarding, device, tables, directories.
        let first = [runtime.chain.pod(0, at.dual)];
        runtime.ask("ADD", &first, 1, false)?;
        runtime.ask("DEL", &first, 1, false)?;
        let present: Vec<Pod> = (1..=at.present).map(|n| runtime.chain.pod(n, at.dual)).collect();
        if !present.is_empty() {
            runtime.ask("ADD", &present, FILL_WIDTH, false)?;
        }
    }
    if at.width > 1 {
        for runtime in &mut runtimes {
            runtime.burst(at, count, results)?;
        }
        return Ok(());
    }
    for turn in 0..count {
        // No chain always comes after the same one.
        runtimes.rotate_left(1);
        for runtime in &mut runtimes {
            runtime.one(at, at.present + 1 + turn, results)?;
        }
    }
    for runtime in &mut runtimes {
        runtime.memory(at, at.present + 1 + count, results)?;
    }
    Ok(())
}

impl Runtime {
    /// Starts it on `node`.
    pub(crate) fn start(
        node: &Node,
        chain: Chain,
        dual: bool,
        executables: &Executables,
    ) -> Result<Self> {
        let own = std::env::current_exe()?;
        let worker = node.command(&[own.as_os_str(), "worker".as_ref()]);
        let mut process = worker.limit(ANSWER).spawn()?;
        let mut stdin = process.stdin()?;
        let stdout = process.lines()?;
        let setup = json!({
            "plugins": chain.plugins(dual), "dir": chain.dir(executables)?, "bare": executables.bare,
        });
        writeln!(stdin, "{setup}")?;
        Ok(Self { chain, _process: process, stdin, stdout })
    }

    fn ask(&mut self, verb: &str, pods: &[Pod], width: usize, memory: bool) -> Result<Value> {
        let pods: Vec<Value> = pods.iter().map(Pod::to_json).collect();
        self.request(&json!({"verb": verb, "pods": pods, "width": width, "memory": memory}))
    }

    /// A verb for one pod: each plugin and how long its process lived, milliseconds.
    pub(crate) fn verb(&mut self, verb: &str, pod: &Pod) -> Result<Vec<(String, f64)>> {
        let answer = self.ask(verb, std::slice::from_ref(pod), 1, false)?;
        Ok(plugins(&answer["pods"][0]))
    }

    /// What the worker answers to `request`.
    pub(crate) fn request(&mut self, request: &Value) -> Result<Value> {
        writeln!(self.stdin, "{request}")?;
        let line = self.stdout.next_line()?.unwrap_or_default();
        let answer: Value = serde_json::from_str(&line)
            .with_context(|| format!("{}: the worker said {line:?}", self.chain.name))?;
        match answer["error"].as_str() {
            Some(error) => bail!("{}: {error}", self.chain.name),
            None => Ok(answer),
        }
    }

    fn verbs(&self) -> &'static [&'static str] {
        if matches!(self.chain.whose, Whose::Ours | Whose::OursGlibc) {
            &["ADD", "CHECK", "DEL"]
        } else {
            &["ADD", "DEL"]
        }
    }

    /// A pod's life.
    fn one(&mut self, at: Circumstances, number: usize, results: &mut Results) -> Result<()> {
        let pod = [self.chain.pod(number, at.dual)];
        for verb in self.verbs() {
            let answer = self.ask(verb, &pod, 1, false)?;
            results.samples.extend(samples(at.part, self.chain.name, verb, &answer));
        }
        Ok(())
    }

    /// `count` pods made, then all removed, some at once.
    fn burst(&mut self, at: Circumstances, count: usize, results: &mut Results) -> Result<()> {
        let first = at.present + 1;
        let pods: Vec<Pod> =
            (first..first + count).map(|number| self.chain.pod(number, at.dual)).collect();
        for verb in ["ADD", "DEL"] {
            let answer = self.ask(verb, &pods, at.width, false)?;
            results.samples.extend(samples(at.part, self.chain.name, verb, &answer));
            let wall = milliseconds(&answer["wall"]);
            results.bursts.push(Burst { chain: self.chain.name, verb, pods: count, wall });
        }
        Ok(())
    }

    fn memory(&mut self, at: Circumstances, first: usize, results: &mut Results) -> Result<()> {
        for number in first..first + MEMORY_RUNS {
            let pod = [self.chain.pod(number, at.dual)];
            for verb in self.verbs() {
                let answer = self.ask(verb, &pod, 1, true)?;
                for run in answer["pods"][0].as_array().into_iter().flatten() {
                    let plugin = run["plugin"].as_str().unwrap_or_default();
                    let bytes = run["peak"].as_u64().unwrap_or_default();
                    results.note_peak(at.part, self.chain.name, plugin, bytes);
                }
            }
        }
        Ok(())
    }
}

impl Results {
    fn note_peak(&mut self, part: &'static str, chain: &'static str, plugin: &str, bytes: u64) {
        let same = |p: &&mut Peak| p.part == part && p.chain == chain && p.plugin == plugin;
        match self.peaks.iter_mut().find(same) {
            Some(peak) => peak.bytes = peak.bytes.max(bytes),
            None => self.peaks.push(Peak { part, chain, plugin: plugin.to_owned(), bytes }),
        }
    }
}

fn samples(
    part: &'static str,
    chain: &'static str,
    verb: &'static str,
    answer: &Value,
) -> Vec<Sample> {
    let pods = answer["pods"].as_array().map(Vec::as_slice).unwrap_or_default();
    let cpu = milliseconds(&answer["cpu"]) / pods.len().max(1) as f64;
    pods.iter().map(|pod| Sample { part, chain, verb, plugins: plugins(pod), cpu }).collect()
}

/// The plugins of a run, and how long each took, milliseconds.
fn plugins(runs: &Value) -> Vec<(String, f64)> {
    let run = |run: &Value| {
        (run["plugin"].as_str().unwrap_or_default().to_owned(), milliseconds(&run["wall"]))
    };
    runs.as_array().into_iter().flatten().map(run).collect()
}

/// Microseconds as milliseconds.
pub(crate) fn milliseconds(value: &Value) -> f64 {
    value.as_f64().unwrap_or_default() / 1000.0
}
