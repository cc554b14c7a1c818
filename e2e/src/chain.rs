//! Runs a conflist's plugins exactly as libcni (containernetworking/cni, 1.3) does:
//! the version chosen, what is on standard input, all six environment variables, the
//! results cache, the order of plugins for each verb.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::place::Place;
use crate::pod::Pod;
use crate::process::Output;

/// Where libcni keeps the results of ADD, in the node's mount view.
pub const RESULTS: &str = "/var/lib/cni/results";

/// The version of the protocol that libcni 1.2 and 1.3 speak.
const OWN_VERSION: &str = "1.1.0";

/// What a plugin's failure says, or the caller's own refusal (`plugin` is then empty).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniError {
    /// The plugin's `type`.
    pub plugin: String,
    /// The verb.
    pub command: &'static str,
    /// `code` of the error object; 0 if there was no error object.
    pub code: u64,
    /// `msg` of the error object, or what was found instead of one.
    pub msg: String,
    /// `details` of the error object, empty if absent.
    pub details: String,
    /// What the plugin wrote to standard error.
    pub stderr: String,
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CniError { plugin, command, code, msg, details, stderr } = self;
        write!(f, "{plugin} {command}: code {code}: {msg}; {details}")?;
        if stderr.is_empty() { Ok(()) } else { write!(f, "\nstderr: {stderr}") }
    }
}

impl std::error::Error for CniError {}

/// One plugin run, as it was.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// The plugin's `type`.
    pub plugin: String,
    /// The verb.
    pub command: String,
    /// What was on its standard input.
    pub stdin: Value,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// From just before its start to its end; see [`Output::wall`].
    pub wall: Duration,
}

/// A conflist and the runtime that runs it on one node.
#[derive(Debug)]
pub struct Chain {
    node: Place,
    conflist: Value,
    cni_path: String,
    own_version: String,
    args: Vec<(String, String)>,
    capability_args: Map<String, Value>,
    log: Mutex<Vec<Invocation>>,
}

/// CNI_CONTAINERID, CNI_NETNS and CNI_IFNAME of one run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Runtime<'a> {
    /// CNI_CONTAINERID.
    pub container: &'a str,
    /// CNI_NETNS, empty where the namespace is gone.
    pub netns: &'a str,
    /// CNI_IFNAME.
    pub ifname: &'a str,
}

impl<'a> Runtime<'a> {
    /// The runtime's data for an interface of a pod.
    pub fn of(pod: &'a Pod, ifname: &'a str) -> Runtime<'a> {
        Runtime { container: pod.id(), netns: pod.netns(), ifname }
    }
}

impl Chain {
    /// A chain on a node, whose plugins are looked for in `bin_dirs` (CNI_PATH).
    pub fn new(node: &Place, conflist: Value, bin_dirs: &[&Path]) -> Chain {
        let dirs: Vec<_> = bin_dirs.iter().map(|dir| dir.to_string_lossy()).collect();
        Chain {
            node: node.clone(),
            conflist,
            cni_path: dirs.join(":"),
            own_version: OWN_VERSION.to_string(),
            args: Vec::new(),
            capability_args: Map::new(),
            log: Mutex::new(Vec::new()),
        }
    }

    /// The newest protocol version that this runtime speaks (an older libcni).
    pub fn own_version(mut self, version: &str) -> Chain {
        self.own_version = version.to_string();
        self
    }

    /// Adds to CNI_ARGS.
    pub fn arg(mut self, key: &str, value: &str) -> Chain {
        self.args.push((key.to_string(), value.to_string()));
        self
    }

    /// Sets a capability's argument, which reaches as `runtimeConfig` the plugins that
    /// opted in by `capabilities`.
    pub fn capability(mut self, key: &str, value: Value) -> Chain {
        self.capability_args.insert(key.to_string(), value);
        self
    }

    /// Replaces the conflist, as a runtime does whose configuration directory changed.
    pub fn set_conflist(&mut self, conflist: Value) {
        self.conflist = conflist;
    }

    /// The conflist.
    pub fn conflist(&self) -> &Value {
        &self.conflist
    }

    /// Writes the conflist to `/etc/cni/net.d/10-NAME.conflist` on the node.
    pub fn install(&self) -> anyhow::Result<()> {
        let path = format!("/etc/cni/net.d/10-{}.conflist", self.name());
        self.node.write_file(&path, format!("{:#}\n", self.conflist))
    }

    /// Takes the record of the plugin runs so far, oldest first.
    pub fn take_log(&self) -> Vec<Invocation> {
        std::mem::take(&mut *self.log.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// ADD of every plugin in order, each given the one before's result; caches and
    /// returns the last one's. On failure nothing is undone: that is the caller's DEL.
    pub fn add(&self, pod: &Pod, ifname: &str) -> Result<Value, CniError> {
        self.add_with(Runtime::of(pod, ifname))
    }

    /// [`Chain::add`] with the runtime's data spelled out.
    pub fn add_with(&self, runtime: Runtime) -> Result<Value, CniError> {
        let version = self.version()?;
        let mut result = None;
        for plugin in self.plugins()? {
            let stdin = self.stdin(&plugin, &version, result.as_ref());
            let text = self.exec(&plugin, "ADD", runtime, &stdin)?.stdout;
            result = Some(parse_result(&plugin, &version, &text)?);
        }
        let result = result.unwrap_or(Value::Null);
        self.cache(runtime, &result).map_err(|error| refusal("ADD", &error.to_string()))?;
        Ok(result)
    }

    /// DEL of every plugin in reverse order, each given the cached result of ADD (from
    /// 0.4.0 on); the first failure ends it and leaves the cache.
    pub fn del(&self, pod: &Pod, ifname: &str) -> Result<(), CniError> {
        self.del_with(Runtime::of(pod, ifname))
    }

    /// [`Chain::del`] with the runtime's data spelled out.
    pub fn del_with(&self, runtime: Runtime) -> Result<(), CniError> {
        let version = self.version()?;
        let cached = if at_least(&version, "0.4.0") { self.cached(runtime) } else { None };
        for plugin in self.plugins()?.iter().rev() {
            let stdin = self.stdin(plugin, &version, cached.as_ref());
            self.exec(plugin, "DEL", runtime, &stdin)?;
        }
        let _ = fs::remove_file(self.node.path(&self.cache_path(runtime)));
        Ok(())
    }

    /// CHECK of every plugin in order with the cached result; nothing where the
    /// conflist says `disableCheck`, an error before 0.4.0.
    pub fn check(&self, pod: &Pod, ifname: &str) -> Result<(), CniError> {
        let runtime = Runtime::of(pod, ifname);
        let version = self.version()?;
        if !at_least(&version, "0.4.0") {
            return Err(refusal("CHECK", &format!("version {version} has no CHECK")));
        }
        if self.flag("disableCheck") {
            return Ok(());
        }
        let cached = self.cached(runtime);
        for plugin in self.plugins()? {
            let stdin = self.stdin(&plugin, &version, cached.as_ref());
            self.exec(&plugin, "CHECK", runtime, &stdin)?;
        }
        Ok(())
    }

    /// GC with the attachments `(container, ifname)` that are still valid: DEL of every
    /// cached attachment of this network that is not among them, then, from 1.1.0 on,
    /// GC of every plugin with both names of the key. All errors are collected.
    pub fn gc(&self, valid: &[(&str, &str)]) -> Result<(), Vec<CniError>> {
        if self.flag("disableGC") {
            return Ok(());
        }
        let version = self.version().map_err(|error| vec![error])?;
        let mut errors = self.del_stale(valid);
        if at_least(&version, "1.1.0") {
            let attachment =
                |(id, ifname): &(&str, &str)| json!({"containerID": id, "ifname": ifname});
            let valid: Vec<Value> = valid.iter().map(attachment).collect();
            for plugin in self.plugins().map_err(|error| vec![error])? {
                let mut stdin = self.stdin(&plugin, &version, None);
                stdin["cni.dev/valid-attachments"] = json!(valid);
                stdin["cni.dev/attachments"] = json!(valid);
                errors.extend(self.exec(&plugin, "GC", Runtime::default(), &stdin).err());
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// STATUS of every plugin in order until one fails; nothing before 1.1.0.
    pub fn status(&self) -> Result<(), CniError> {
        let version = self.version()?;
        if !at_least(&version, "1.1.0") {
            return Ok(());
        }
        for plugin in self.plugins()? {
            let stdin = self.stdin(&plugin, &version, None);
            self.exec(&plugin, "STATUS", Runtime::default(), &stdin)?;
        }
        Ok(())
    }

    /// VERSION of every plugin, with the odd environment that libcni gives it.
    pub fn versions(&self) -> Result<Vec<Value>, CniError> {
        let stdin = json!({ "cniVersion": self.own_version });
        let ask = |plugin: &Value| {
            let runtime = Runtime { container: "", netns: "dummy", ifname: "dummy" };
            let output = self.exec(plugin, "VERSION", runtime, &stdin)?;
            parse_json(kind(plugin), "VERSION", &output.stdout)
        };
        self.plugins()?.iter().map(ask).collect()
    }

    /// The version used: the highest of `cniVersion` and `cniVersions` that this
    /// runtime speaks; one alone is used whatever it is, none is 0.1.0.
    pub fn version(&self) -> Result<String, CniError> {
        let one = self.conflist["cniVersion"].as_str();
        let more = self.conflist["cniVersions"].as_array().into_iter().flatten();
        let mut versions: Vec<&str> = more.filter_map(Value::as_str).chain(one).collect();
        versions.sort_by(|a, b| compare(a, b));
        versions.dedup();
        let spoken = |version: &&&str| compare(version, &self.own_version) != Ordering::Greater;
        match versions[..] {
            [] => Ok("0.1.0".to_string()),
            [only] => Ok(only.to_string()),
            _ => versions.iter().rev().find(spoken).map(ToString::to_string).ok_or_else(|| {
                refusal("", &format!("none of the CNI versions {versions:?} is supported"))
            }),
        }
    }

    fn name(&self) -> &str {
        self.conflist["name"].as_str().unwrap_or_default()
    }

    fn flag(&self, key: &str) -> bool {
        matches!(&self.conflist[key], Value::Bool(true))
            || self.conflist[key].as_str().is_some_and(|text| text.eq_ignore_ascii_case("true"))
    }

    fn plugins(&self) -> Result<Vec<Value>, CniError> {
        let plugins = self.conflist["plugins"].as_array().cloned().unwrap_or_default();
        if plugins.is_empty() {
            return Err(refusal("", "the conflist has no plugins"));
        }
        Ok(plugins)
    }

    /// A plugin's configuration as it gets it.
    fn stdin(&self, plugin: &Value, version: &str, previous: Option<&Value>) -> Value {
        let mut stdin = plugin.clone();
        stdin["name"] = json!(self.name());
        stdin["cniVersion"] = json!(version);
        if let Some(previous) = previous {
            stdin["prevResult"] = previous.clone();
        }
        let opted = |key: &String| plugin["capabilities"][key.as_str()] == Value::Bool(true);
        let wanted = self.capability_args.iter().filter(|(key, _)| opted(key));
        let config: Map<String, Value> =
            wanted.map(|(key, value)| (key.clone(), value.clone())).collect();
        if !config.is_empty() {
            stdin["runtimeConfig"] = Value::Object(config);
        }
        stdin
    }

    fn exec(
        &self,
        plugin: &Value,
        command: &'static str,
        runtime: Runtime,
        stdin: &Value,
    ) -> Result<Output, CniError> {
        let kind = kind(plugin);
        let fail = |msg: String| CniError { plugin: kind.to_string(), ..refusal(command, &msg) };
        let executable = self.find(kind).ok_or_else(|| {
            fail(format!("failed to find plugin {kind:?} in path [{}]", self.cni_path))
        })?;
        // VERSION gets a CNI_PATH as odd as its other variables (pkg/invoke/exec.go).
        let path = if command == "VERSION" { "dummy" } else { &self.cni_path };
        let args: Vec<String> = self.args.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let run = self
            .node
            .command(&[executable])
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", runtime.container)
            .env("CNI_NETNS", runtime.netns)
            .env("CNI_ARGS", args.join(";"))
            .env("CNI_IFNAME", runtime.ifname)
            .env("CNI_PATH", path)
            .stdin(stdin.to_string());
        let output = run.output().map_err(|error| fail(format!("{error:#}")))?;
        self.record(kind, command, stdin, &output);
        if output.success() { Ok(output) } else { Err(error_of(kind, command, &output)) }
    }

    fn record(&self, plugin: &str, command: &str, stdin: &Value, output: &Output) {
        let invocation = Invocation {
            plugin: plugin.to_string(),
            command: command.to_string(),
            stdin: stdin.clone(),
            stdout: output.stdout.clone(),
            stderr: output.stderr.clone(),
            wall: output.wall,
        };
        self.log.lock().unwrap_or_else(PoisonError::into_inner).push(invocation);
    }

    fn find(&self, kind: &str) -> Option<String> {
        if kind.is_empty() || kind.contains('/') {
            return None;
        }
        let candidates = self.cni_path.split(':').map(|dir| format!("{dir}/{kind}"));
        candidates.into_iter().find(|path| self.node.path(path).is_file())
    }

    fn cache_path(&self, runtime: Runtime) -> String {
        format!("{RESULTS}/{}-{}-{}", self.name(), runtime.container, runtime.ifname)
    }

    /// Writes the cache file. libcni adds the conflist's bytes, which it reads again
    /// only for callers that ask for them.
    fn cache(&self, runtime: Runtime, result: &Value) -> anyhow::Result<()> {
        let entry = json!({
            "kind": "cniCacheV1",
            "containerId": runtime.container,
            "ifName": runtime.ifname,
            "networkName": self.name(),
            "netns": runtime.netns,
            "cniArgs": self.args.iter().map(|(key, value)| json!([key, value])).collect::<Vec<_>>(),
            "capabilityArgs": self.capability_args,
            "result": result,
        });
        self.node.write_file(&self.cache_path(runtime), entry.to_string())
    }

    fn cached(&self, runtime: Runtime) -> Option<Value> {
        let text = fs::read(self.node.path(&self.cache_path(runtime))).ok()?;
        let entry: Value = serde_json::from_slice(&text).ok()?;
        entry.get("result").cloned()
    }

    /// DEL of the cached attachments of this network that are not valid any more.
    fn del_stale(&self, valid: &[(&str, &str)]) -> Vec<CniError> {
        let mut stale = BTreeMap::new();
        for entry in fs::read_dir(self.node.path(RESULTS)).into_iter().flatten().flatten() {
            let text = fs::read(entry.path()).unwrap_or_default();
            let cached: Value = serde_json::from_slice(&text).unwrap_or_default();
            let text = |key: &str| cached[key].as_str().unwrap_or_default().to_string();
            let (id, ifname) = (text("containerId"), text("ifName"));
            let is_valid = valid.contains(&(id.as_str(), ifname.as_str()));
            if text("networkName") == self.name() && !is_valid {
                stale.insert((id, ifname), text("netns"));
            }
        }
        let del = |((container, ifname), netns): (&(String, String), &String)| {
            self.del_with(Runtime { container, netns, ifname }).err()
        };
        stale.iter().filter_map(del).collect()
    }
}

fn kind(plugin: &Value) -> &str {
    plugin["type"].as_str().unwrap_or_default()
}

/// An error of the caller's own, before or after any plugin ran.
fn refusal(command: &'static str, msg: &str) -> CniError {
    CniError {
        plugin: String::new(),
        command,
        code: 0,
        msg: msg.to_string(),
        details: String::new(),
        stderr: String::new(),
    }
}

/// What a failed plugin said: the error object on standard output, else whatever is there.
fn error_of(plugin: &str, command: &'static str, output: &Output) -> CniError {
    let object: Value = serde_json::from_str(&output.stdout).unwrap_or_default();
    let text = |key: &str| object[key].as_str().unwrap_or_default().to_string();
    let msg = if object.is_object() {
        text("msg")
    } else {
        format!("{}, no error object on standard output: {:?}", output.status, output.stdout)
    };
    CniError {
        plugin: plugin.to_string(),
        command,
        code: object["code"].as_u64().unwrap_or(0),
        msg,
        details: text("details"),
        stderr: output.stderr.clone(),
    }
}

/// A result of ADD; one without `cniVersion` is taken to be of the conflist's.
fn parse_result(plugin: &Value, version: &str, text: &str) -> Result<Value, CniError> {
    let mut result = parse_json(kind(plugin), "ADD", text)?;
    if result["cniVersion"].as_str().unwrap_or_default().is_empty() {
        result["cniVersion"] = json!(version);
    }
    Ok(result)
}

/// Standard output as exactly one JSON object.
fn parse_json(plugin: &str, command: &'static str, text: &str) -> Result<Value, CniError> {
    let fail = |msg: String| CniError { plugin: plugin.to_string(), ..refusal(command, &msg) };
    let value: Value = serde_json::from_str(text).map_err(|error| {
        fail(format!("standard output is not one JSON value: {error}: {text:?}"))
    })?;
    if value.is_object() { Ok(value) } else { Err(fail(format!("not an object: {text:?}"))) }
}

fn at_least(version: &str, least: &str) -> bool {
    compare(version, least) != Ordering::Less
}

fn compare(a: &str, b: &str) -> Ordering {
    let numbers = |version: &str| -> Vec<u32> {
        version.split('.').map(|number| number.parse().unwrap_or(0)).collect()
    };
    numbers(a).cmp(&numbers(b))
}
