//! Nodes as a cluster's are, with a kubelet's directory and a place for executables.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use e2e::{Chain, Family, Lab, Node, Pod, Running, run, weft_bin_dir};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::objects;

/// kubelet's directory on a node.
pub(crate) const KUBELET_DIR: &str = "/run/kubelet";

/// A file of the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// A directory that ends with this value.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Result<Scratch> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("weft-{}-{name}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Scratch(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nobody reads it after this; what is left is in a directory for what is temporary.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs a script of the repository with the executable under test in place of a new one.
pub(crate) fn run_script(script: &str, words: &[&str]) -> Result<()> {
    let weft = weft_bin_dir()?.join("weft");
    run(Command::new(repository(script)).args(words).env("WEFT", weft))?.ok().map(drop)
}

/// What is in the image; in `applets` of it the commands of busybox and no others.
pub(crate) fn image() -> Result<Scratch> {
    let image = Scratch::new("image")?;
    run_script("hack/image.sh", &["--stage", &image.path().display().to_string()])?;
    let applets = image.path().join("applets");
    fs::create_dir(&applets)?;
    run(Command::new("busybox").args(["--install", "-s"]).arg(&applets))?.ok()?;
    Ok(image)
}

/// An empty `/opt/cni/bin` that is the node's own.
pub(crate) fn with_own_opt(node: &Node) -> Result<()> {
    node.sh("mount -n -t tmpfs -o mode=755 opt /opt; mkdir -p /opt/cni/bin").map(drop)
}

/// The lab's nodes as `kubectl get nodes --output json` lists them.
pub(crate) fn node_list(lab: &Lab) -> Result<Value> {
    Ok(objects::list(lab.nodes().iter().map(objects::of_host).collect::<Result<_>>()?))
}

/// The compact map of a document, as the CronJob makes it.
pub(crate) fn import(node: &Node, document: &Value) -> Result<String> {
    let weft = weft_bin_dir()?.join("weft").display().to_string();
    node.command(&[weft.as_str(), "nodes", "import", "-"]).stdin(document.to_string()).ok()
}

/// A runtime that finds plugins where the installer puts them.
pub(crate) fn runtime(node: &Node) -> Result<Chain> {
    let conflist: Value = node.read_file("/etc/cni/net.d/10-weft.conflist")?.parse()?;
    Ok(Chain::new(node, conflist, &[Path::new("/opt/cni/bin")]))
}

/// A pod attached by a runtime.
pub(crate) fn attach(node: &Node, runtime: &Chain, name: &str) -> Result<Pod> {
    let pod = node.pod(name)?;
    pod.lo_up()?;
    runtime.add(&pod, "eth0")?;
    Ok(pod)
}

/// Pings from one pod to another, fifty a second, until they are counted.
pub(crate) struct Stream(Running);

impl Stream {
    pub(crate) fn start(from: &Pod, to: &Pod) -> Result<Stream> {
        let to = to.addr(Family::V4)?.to_string();
        Ok(Stream(from.spawn(&["ping", "-n", "-q", "-i", "0.02", "-W", "5", &to])?))
    }

    /// Ends it; every request that was sent has to have its reply.
    pub(crate) fn assert_no_loss(mut self) -> Result<()> {
        self.0.signal(Signal::SIGINT)?;
        let said = self.0.lines()?.rest()?.join("\n");
        ensure!(said.contains(" 0% packet loss"), "{said}");
        Ok(())
    }
}

/// kubelet's copy of the ConfigMap weft-nodes for one pod of the DaemonSet.
pub(crate) struct Volume {
    pod: PathBuf,
    dir: PathBuf,
    writes: usize,
}

impl Volume {
    /// The empty volume of the pod with this UID.
    pub(crate) fn new(node: &Node, uid: &str) -> Result<Volume> {
        let pod = node.path(&format!("{KUBELET_DIR}/pods/{uid}"));
        let dir = pod.join("volumes/kubernetes.io~configmap/nodes");
        fs::create_dir_all(&dir)?;
        Ok(Volume { pod, dir, writes: 0 })
    }

    /// Writes the map the way kubelet does (its AtomicWriter): into a new hidden
    /// directory, which takes the old one's place by the rename of one link.
    pub(crate) fn write(&mut self, map: &str) -> Result<()> {
        self.writes += 1;
        let new = format!("..2026_11_23_08_15_30.{}", self.writes);
        fs::create_dir(self.dir.join(&new))?;
        fs::write(self.dir.join(&new).join("nodes.json"), map)?;
        let data = self.dir.join("..data");
        let old = fs::read_link(&data).ok();
        if old.is_none() {
            symlink("..data/nodes.json", self.dir.join("nodes.json"))?;
        }
        symlink(&new, self.dir.join("..data_tmp"))?;
        fs::rename(self.dir.join("..data_tmp"), data)?;
        old.map_or(Ok(()), |old| fs::remove_dir_all(self.dir.join(old)))?;
        Ok(())
    }

    /// What kubelet does when the pod is gone.
    pub(crate) fn remove(self) -> Result<()> {
        Ok(fs::remove_dir_all(self.pod)?)
    }
}

/// What the init container does on a node, with busybox's commands and the capability
/// that it has; the pod of the DaemonSet has this UID.
pub(crate) fn install(node: &Node, image: &Path, uid: &str) -> Result<()> {
    node.write_file("/run/config/10-weft.conflist", conflist()?)?;
    let confined =
        ["setpriv", "--no-new-privs", "--bounding-set", "-all,+dac_override", "--inh-caps", "-all"];
    let shown = image.display();
    let (path, shell) = (format!("PATH={shown}:{shown}/applets"), format!("{shown}/applets/sh"));
    let script = format!("{shown}/install-node.sh");
    // The node's PATH finds setpriv and env, the image's is for the script alone.
    let words = confined.into_iter().chain(["env", &path, &shell, &script]);
    node.command(&words.collect::<Vec<&str>>())
        .env("HOST", "")
        .env("CONFIG", "/run/config")
        .env("KUBELET_DIR", KUBELET_DIR)
        .env("POD_UID", uid)
        .ok()?;
    Ok(())
}

/// The conflist of the manifest.
pub(crate) fn conflist() -> Result<String> {
    let manifest = fs::read_to_string(repository("conf/kubernetes/weft.yaml"))?;
    let (_, rest) = manifest.split_once("10-weft.conflist: |\n").context("no conflist")?;
    let (text, _) = rest.split_once("\n---").context("no end")?;
    Ok(text.lines().map(|line| format!("{}\n", line.trim_start_matches("    "))).collect())
}

/// The shell commands of the documentation that follow this mark.
pub(crate) fn block(mark: &str) -> Result<String> {
    let text = fs::read_to_string(repository("docs/kubernetes.md"))?;
    let start = format!("<!-- run by a test: {mark} -->\n```sh\n");
    let (_, rest) = text.split_once(&start).with_context(|| format!("no block {mark}"))?;
    let (commands, _) = rest.split_once("```").with_context(|| format!("no end of {mark}"))?;
    Ok(commands.to_owned())
}
