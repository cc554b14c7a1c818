//! One plugin run, and what it must look like from outside.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{Cmd, Family, Node, Output, Place, Pod, Running, Snapshot, weft_bin_dir};
use serde_json::{Value, json};

/// Where Debian has the reference plugins (containernetworking-plugins).
pub(crate) const REFERENCE: &str = "/usr/lib/cni";

/// A run of a plugin, all of which can be set.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    plugin: String,
    env: Vec<(String, String)>,
    stdin: Vec<u8>,
    wrapper: Vec<String>,
}

/// The error object of a run that failed as it should.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) code: u64,
    pub(crate) msg: String,
    pub(crate) details: String,
}

impl Call {
    /// `verb` of `plugin` for interface `eth0` of `pod`, with `config` on standard input.
    pub(crate) fn new(plugin: &str, verb: &str, pod: &Pod, config: &Value) -> Result<Self> {
        let bins = weft_bin_dir()?;
        let mut call = Self {
            plugin: bins.join(plugin).display().to_string(),
            env: Vec::new(),
            stdin: config.to_string().into_bytes(),
            wrapper: Vec::new(),
        };
        let attachment = !matches!(verb, "GC" | "STATUS");
        let only = |text: &str| if attachment { text.to_owned() } else { String::new() };
        call.set("CNI_COMMAND", verb);
        call.set("CNI_CONTAINERID", &only(pod.id()));
        call.set("CNI_NETNS", &only(pod.netns()));
        call.set("CNI_IFNAME", &only("eth0"));
        call.set("CNI_ARGS", "");
        call.set("CNI_PATH", &bins.display().to_string());
        Ok(call)
    }

    /// Sets a variable; an empty one is an unset one.
    pub(crate) fn set(&mut self, key: &str, value: &str) {
        self.env.retain(|(k, _)| k != key);
        self.env.push((key.to_owned(), value.to_owned()));
    }

    /// Replaces standard input.
    pub(crate) fn stdin(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.stdin = bytes.as_ref().to_vec();
        self
    }

    /// Puts a command line before the plugin's.
    pub(crate) fn wrapper<S: AsRef<str>>(mut self, words: &[S]) -> Self {
        self.wrapper = words.iter().map(|word| word.as_ref().to_owned()).collect();
        self
    }

    /// Runs it on `place`, whatever comes of it.
    pub(crate) fn run(&self, place: &Place) -> Result<Output> {
        self.command(place, &self.argv()).output()
    }

    fn argv(&self) -> Vec<String> {
        self.wrapper.iter().chain([&self.plugin]).cloned().collect()
    }

    fn command<'a>(&self, place: &'a Place, argv: &[String]) -> Cmd<'a> {
        let command = place.command(argv).stdin(&self.stdin);
        self.env.iter().fold(command, |command, (key, value)| command.env(key, value))
    }

    /// Starts it.
    pub(crate) fn spawn(&self, place: &Place) -> Result<Running> {
        self.command(place, &self.argv()).spawn()
    }

    /// Runs it; it has to succeed. The result of ADD and VERSION, else null.
    pub(crate) fn ok(&self, place: &Place) -> Result<Value> {
        let output = self.run(place)?;
        ensure!(output.success(), "{output}");
        if output.stdout.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&output.stdout).with_context(|| output.to_string())
    }

    /// Runs it; it has to fail as the protocol asks.
    pub(crate) fn fails(&self, place: &Place) -> Result<Failure> {
        failure(&self.run(place)?)
    }
}

/// The error object of a failed run: exit status 1, one JSON object on standard
/// output, a version, a code and a message that a caller cannot misread.
pub(crate) fn failure(output: &Output) -> Result<Failure> {
    ensure!(output.status.code() == Some(1), "not exit status 1: {output}");
    let object: Value = serde_json::from_str(&output.stdout)
        .with_context(|| format!("not one JSON value: {output}"))?;
    let text = |key: &str| object[key].as_str().unwrap_or_default().to_owned();
    let failure = Failure {
        code: object["code"].as_u64().unwrap_or(0),
        msg: text("msg"),
        details: text("details"),
    };
    ensure!(failure.code != 0 && failure.code != 999, "no code, or a bug: {output}");
    ensure!(!failure.msg.is_empty(), "no message: {output}");
    ensure!(!text("cniVersion").is_empty(), "no version: {output}");
    ensure!(!output.stdout.contains("not found"), "containerd takes it for success: {output}");
    ensure!(!output.stderr.contains("panicked"), "{output}");
    Ok(failure)
}

/// A `veth` configuration that gives addresses from this node's ranges.
pub(crate) fn veth_config() -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "pods", "type": "veth", "ipam": { "type": "host-local" } })
}

/// What a refused run may leave: locks, its record, and the lease directory's own books.
const BOOKS: [&str; 6] = ["/run/weft/", ".lock", ".last", "/lock", "/.weft/", "/last_reserved_ip"];

/// What changed from `before` to `after` in kernel and store, books left out.
pub(crate) fn changes(before: &Snapshot, after: &Snapshot) -> String {
    let is_book = |line: &str| {
        let Some((_, file)) = line.split_once(" Files: ") else { return false };
        let name = file.split(": ").next().unwrap_or(file);
        let is_directory = name.ends_with('/');
        is_directory && (name.starts_with("/run/weft/") || name.starts_with("/var/lib/cni/"))
            || BOOKS.iter().skip(1).any(|book| name.contains(book))
    };
    // They follow from addresses, some time after them.
    let is_derived =
        |line: &str| line.contains(r#""protocol":"kernel""#) && line.contains(r#""table":"local""#);
    let diff = before.diff(after);
    let lines: Vec<&str> =
        diff.lines().filter(|line| !is_book(line) && !is_derived(line)).collect();
    lines.join("\n")
}

/// Waits until the kernel has put the node's IPv6 address to use.
pub(crate) fn settled(node: &Node) -> Result<()> {
    in_use(node, &node.address(Family::V6)?.to_string())
}

/// Waits until packets to an IPv6 address of `place` are delivered: its local route is
/// made by a work queue some time after the address, detection of duplicates or not
/// (`addrconf_dad_start`).
pub(crate) fn in_use(place: &Place, address: &str) -> Result<()> {
    place.wait_until("local route of the IPv6 address", Duration::from_secs(10), || {
        let routes = place.run_ok(&["ip", "-6", "route", "show", "table", "local"])?;
        Ok(routes.contains(address).then_some(()))
    })
}

/// Addresses leased in the network `pods` of a node, by the names of the files.
pub(crate) fn leases(place: &Place) -> Vec<String> {
    place.leases("pods").iter().map(ToString::to_string).collect()
}

/// Host ends of pods on a node.
pub(crate) fn host_ends(place: &Place) -> Result<Vec<String>> {
    let links = place.json(&["ip", "-j", "link", "show", "type", "veth"])?;
    let names = links.as_array().into_iter().flatten();
    let names = names.filter_map(|link| link["ifname"].as_str());
    Ok(names.filter(|name| name.starts_with("veth")).map(str::to_owned).collect())
}

/// A directory of executables of the test's own, gone with the value.
pub(crate) struct Programs(pub(crate) PathBuf);

impl Programs {
    /// `name` distinguishes tests that run at the same time; each program is a shell script.
    pub(crate) fn new(name: &str, programs: &[(&str, &str)]) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let dir = std::env::temp_dir().join(format!("weft-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        for (program, script) in programs {
            let path = dir.join(program);
            fs::write(&path, format!("#!/bin/sh\n{script}\n"))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        Ok(Self(dir))
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
