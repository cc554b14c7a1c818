//! The caller: a small Go program on Debian's libcni, compiled here and now.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::{Node, Output, Pod, run_within};
use serde_json::Value;

/// Ours, then the reference plugins.
const CNI_PATH: &str = "/opt/cni/bin:/usr/lib/cni";

/// How long go may take: it compiles the standard library, too.
const BUILD: Duration = Duration::from_secs(600);

/// libcni on a node, with cnitool's verbs, for its network `pods`.
pub(crate) struct Libcni<'a> {
    node: &'a Node,
    executable: PathBuf,
    capabilities: String,
}

impl<'a> Libcni<'a> {
    pub(crate) fn new(node: &'a Node) -> Result<Self> {
        Ok(Self { node, executable: executable()?, capabilities: String::new() })
    }

    /// With capability arguments.
    pub(crate) fn capabilities(mut self, arguments: &Value) -> Self {
        self.capabilities = arguments.to_string();
        self
    }

    /// The words that start the client.
    fn words(&self, verb: &str, namespaces: &[&str]) -> Vec<String> {
        let executable = self.executable.display().to_string();
        let words = [&executable, verb, "pods"].into_iter().chain(namespaces.iter().copied());
        words.map(str::to_owned).collect()
    }

    /// Runs a verb, whatever comes of it.
    pub(crate) fn run(&self, verb: &str, namespaces: &[&str]) -> Result<Output> {
        let command = self.node.command(&self.words(verb, namespaces));
        command.env("CNI_PATH", CNI_PATH).env("CAP_ARGS", &self.capabilities).output()
    }

    /// A storm of pods in these namespaces, to the end of its standard input.
    pub(crate) fn storm(&self, namespaces: &[&str]) -> Result<e2e::Running> {
        self.node.command(&self.words("storm", namespaces)).env("CNI_PATH", CNI_PATH).spawn()
    }

    pub(crate) fn add(&self, pod: &Pod) -> Result<Value> {
        Ok(serde_json::from_str(&self.run("add", &[pod.netns()])?.ok()?)?)
    }

    pub(crate) fn check(&self, pod: &Pod) -> Result<()> {
        self.run("check", &[pod.netns()])?.ok().map(drop)
    }

    pub(crate) fn del(&self, pod: &Pod) -> Result<()> {
        self.run("del", &[pod.netns()])?.ok().map(drop)
    }

    /// What VERSION says, by plugin, of a list of plugins that libcni finds no fault with.
    pub(crate) fn versions(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.run("version", &[])?.ok()?)?)
    }
}

/// Debian's packages that the client is compiled from.
const GO_PATH: &str = "/usr/share/gocode";

/// What compiles it.
pub(crate) fn go() -> Result<(), String> {
    testing::program("go")?;
    let libcni = Path::new(GO_PATH).join("src/github.com/containernetworking/cni/libcni");
    match libcni.is_dir() {
        true => Ok(()),
        false => Err(format!("{} is missing", libcni.display())),
    }
}

/// The client, compiled once.
pub(crate) fn executable() -> Result<PathBuf> {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    static BUILDING: Mutex<()> = Mutex::new(());
    let _building = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(path) = BUILT.get() {
        return Ok(path.clone());
    }
    let path = build()?;
    Ok(BUILT.get_or_init(|| path).clone())
}

/// Compiles as Debian's own packages are, against the sources in [`GO_PATH`]; to a
/// name of this process's, then by rename.
fn build() -> Result<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = target.join("libcni-client");
    let temporary = target.join(format!("libcni-client.{}", std::process::id()));
    let mut build = Command::new("go");
    build
        .args(["build", "-o"])
        .arg(&temporary)
        .arg(".")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("libcni-client"))
        .env("GO111MODULE", "off")
        .env("GOPATH", GO_PATH)
        .env("GOCACHE", target.join("go-cache"))
        .env("CGO_ENABLED", "0");
    run_within(BUILD, &mut build)?.ok()?;
    fs::rename(&temporary, &path).with_context(|| path.display().to_string())?;
    Ok(path)
}
