//! The runtime of one chain, as a process inside its node: it starts the plugins
//! itself, so that nothing but a plugin's own life is measured, and of every chain
//! alike. One line of JSON a request and one an answer.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::unistd::pipe2;
use serde_json::{Value, json};

use super::batch;
use super::pod::Pod;

/// What a worker keeps between requests.
struct Worker {
    /// The conflist's plugins, without what a runtime adds.
    plugins: Vec<Value>,
    /// Where they are.
    dir: PathBuf,
    /// The wrapper that measures memory.
    bare: PathBuf,
    /// Results of ADD, by pod.
    results: Mutex<HashMap<String, Value>>,
}

/// Serves requests until the end of standard input. The first line sets it up.
pub(crate) fn run() -> Result<()> {
    let mut lines = io::stdin().lines();
    let setup: Value = serde_json::from_str(&lines.next().context("no setup")??)?;
    let text = |key: &str| setup[key].as_str().with_context(|| format!("setup: {key}"));
    let worker = Worker {
        plugins: setup["plugins"].as_array().context("setup: plugins")?.clone(),
        dir: text("dir")?.into(),
        bare: text("bare")?.into(),
        results: Mutex::default(),
    };
    for line in lines {
        let request: Value = serde_json::from_str(&line?)?;
        let answer = worker.serve(&request).unwrap_or_else(|e| json!({"error": format!("{e:#}")}));
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{answer}")?;
        stdout.flush()?;
    }
    Ok(())
}

impl Worker {
    fn serve(&self, request: &Value) -> Result<Value> {
        let verb = request["verb"].as_str().context("verb")?;
        match verb {
            "COMMAND" => return self.command(request),
            "BATCH" => return bare_batch(request),
            _ => {}
        }
        let measured = request["memory"] == true;
        let width = request["width"].as_u64().unwrap_or(1) as usize;
        let pods = request["pods"].as_array().context("pods")?;
        let pods: Vec<Pod> = pods.iter().map(Pod::from_json).collect::<Result<_>>()?;
        if verb == "ADD" {
            pods.iter().try_for_each(|pod| make_namespace(&pod.netns()))?;
        }
        let cpu = children_cpu()?;
        let start = Instant::now();
        let runs = self.all(verb, &pods, width, measured)?;
        let wall = start.elapsed();
        let cpu = children_cpu()? - cpu;
        Ok(json!({"wall": wall.as_micros() as u64, "cpu": cpu, "pods": runs}))
    }

    /// A run of the `weft` command: its words, and whether to look at its memory.
    fn command(&self, request: &Value) -> Result<Value> {
        let words = request["words"].as_array().context("words")?;
        let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
        let usage = "/run/usage-command";
        let measured = request["memory"] == true;
        let mut command = self.wrapped(&self.dir.join("weft"), measured.then_some(usage));
        let cpu = children_cpu()?;
        let start = Instant::now();
        let output = command.args(&words).output()?;
        let wall = start.elapsed().as_micros() as u64;
        let cpu = children_cpu()? - cpu;
        ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        let peak = if measured { fs::read_to_string(usage)?.parse()? } else { 0 };
        Ok(json!({"wall": wall, "cpu": cpu, "peak": peak}))
    }

    /// A command; where its memory is looked at, within the wrapper, which writes it to the
    /// file `usage`.
    fn wrapped(&self, executable: &Path, usage: Option<&str>) -> Command {
        let Some(usage) = usage else { return Command::new(executable) };
        let mut command = Command::new(&self.bare);
        command.arg("measure").arg(executable).env("USAGE", usage);
        command
    }

    /// The verb for each pod, `width` at a time; in the pods' order.
    fn all(&self, verb: &str, pods: &[Pod], width: usize, measured: bool) -> Result<Vec<Value>> {
        if let [pod] = pods {
            return Ok(vec![self.chain(verb, pod, measured)?]);
        }
        let next = Mutex::new(pods.iter().enumerate());
        let done = Mutex::new(vec![Value::Null; pods.len()]);
        let work = || -> Result<()> {
            loop {
                let Some((at, pod)) = next.lock().ok().and_then(|mut next| next.next()) else {
                    return Ok(());
                };
                let run = self.chain(verb, pod, measured)?;
                if let Some(place) = done.lock().ok().as_mut().and_then(|done| done.get_mut(at)) {
                    *place = run;
                }
            }
        };
        thread::scope(|scope| {
            let threads: Vec<_> = (0..width).map(|_| scope.spawn(work)).collect();
            threads.into_iter().try_for_each(|thread| match thread.join() {
                Ok(outcome) => outcome,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
        Ok(done.into_inner().unwrap_or_default())
    }

    /// The verb of every plugin, in the order that a runtime calls them in.
    fn chain(&self, verb: &str, pod: &Pod, measured: bool) -> Result<Value> {
        let mut previous = self.results.lock().ok().and_then(|r| r.get(&pod.id).cloned());
        let mut order: Vec<&Value> = self.plugins.iter().collect();
        if verb == "DEL" {
            order.reverse();
        }
        let mut runs = Vec::new();
        for plugin in order {
            let kind = plugin["type"].as_str().context("a plugin without type")?;
            let stdin = configuration(plugin, pod, previous.as_ref());
            let run = self.plugin(kind, verb, pod, &stdin, measured)?;
            if verb == "ADD" && !run.stdout.is_empty() {
                previous = Some(serde_json::from_slice(&run.stdout)?);
            }
            runs.push(json!({"plugin": kind, "wall": run.wall, "peak": run.peak}));
        }
        if let ("ADD", Some(result), Ok(mut results)) = (verb, previous, self.results.lock()) {
            results.insert(pod.id.clone(), result);
        }
        Ok(Value::Array(runs))
    }

    fn plugin(
        &self,
        kind: &str,
        verb: &str,
        pod: &Pod,
        stdin: &str,
        measured: bool,
    ) -> Result<Run> {
        let executable = self.dir.join(kind);
        let usage = format!("/run/usage-{}", pod.id);
        let mut command = self.wrapped(&executable, measured.then_some(&usage));
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &pod.id)
            .env("CNI_NETNS", pod.netns())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.dir)
            .env("CNI_ARGS", &pod.args)
            .stdin(filled_pipe(stdin)?)
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let start = Instant::now();
        let mut child = command.spawn().with_context(|| executable.display().to_string())?;
        let mut stdout = Vec::new();
        if let Some(mut pipe) = child.stdout.take() {
            pipe.read_to_end(&mut stdout)?;
        }
        let status = child.wait()?;
        let wall = start.elapsed().as_micros() as u64;
        if !status.success() {
            bail!("{kind} {verb} {}: {status}: {}", pod.id, String::from_utf8_lossy(&stdout));
        }
        let peak = if measured { fs::read_to_string(&usage)?.parse()? } else { 0 };
        Ok(Run { wall, peak, stdout })
    }
}

/// The kernel's share of a first sync.
fn bare_batch(request: &Value) -> Result<Value> {
    let device = request["device"].as_str().context("device")?;
    let peers = request["peers"].as_u64().context("peers")? as usize;
    let took = batch::run(device, peers, request["dual"] == true)?;
    Ok(json!({"wall": took.as_micros() as u64}))
}

/// What a plugin's process was.
struct Run {
    /// From its start to its end, microseconds.
    wall: u64,
    /// Peak resident set, bytes; 0 where it was not measured.
    peak: u64,
    stdout: Vec<u8>,
}

/// What libcni puts on a plugin's standard input.
fn configuration(plugin: &Value, pod: &Pod, previous: Option<&Value>) -> String {
    let mut config = plugin.clone();
    config["cniVersion"] = json!("1.0.0");
    config["name"] = json!("pods");
    if let Some(previous) = previous {
        config["prevResult"] = previous.clone();
    }
    if plugin["capabilities"]["portMappings"] == true {
        let mapping = json!({"hostPort": pod.port, "containerPort": 80, "protocol": "tcp"});
        config["runtimeConfig"] = json!({"portMappings": [mapping]});
    }
    config.to_string()
}

/// A pipe that holds `text` and ends: no thread has to feed the plugin meanwhile.
fn filled_pipe(text: &str) -> Result<OwnedFd> {
    // What a pipe holds (pipe(7)); more would block.
    ensure!(text.len() < 64 << 10, "a configuration of {} bytes", text.len());
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    File::from(writer).write_all(text.as_bytes())?;
    Ok(reader)
}

/// A fresh network namespace bound at `path`, `lo` down.
fn make_namespace(path: &str) -> Result<()> {
    File::create_new(path).with_context(|| path.to_owned())?;
    let make = || -> Result<()> {
        // This thread's alone, and it ends here.
        unshare(CloneFlags::CLONE_NEWNET)?;
        let own = Path::new("/proc/thread-self/ns/net");
        Ok(mount(Some(own), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
    };
    thread::scope(|scope| scope.spawn(make).join()).unwrap_or_else(|_| bail!("it panicked"))
}

/// CPU time of all children that ended so far, microseconds.
fn children_cpu() -> Result<i64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    Ok(usage.user_time().num_microseconds() + usage.system_time().num_microseconds())
}
