//! containerd on a node of the lab, as the documents configure it.

use std::os::unix::process::ExitStatusExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::{Node, Running, blocks, weft_bin_dir};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cri::Client;

/// Shell: directories of the node's own where containerd would use the machine's, and
/// the plugins where the documents say they are.
const SET_UP: &str = r#"
mount -n -t tmpfs opt /opt
mkdir -p /opt/cni/bin
ln -t /opt/cni/bin/ -s "$BIN"/*
rm -rf /etc/containerd /var/lib/containerd
"#;

/// What containerd says of itself, in the node's view.
const LOG: &str = "/run/containerd.log";

/// Plugins append the phases of their calls to it (WEFT_TRACE), in the node's view.
pub(crate) const TRACE: &str = "/run/calls";

/// How long containerd may take to start and to read what it had before.
const START: Duration = Duration::from_secs(60);

/// The image that the quick start makes, for pods and for what runs in them.
const IMAGE: &str = "localhost/busybox:latest";

/// A node's containerd.
#[derive(Debug)]
pub(crate) struct Daemon {
    node: Node,
    running: Running,
    cgroup_parent: String,
}

impl Daemon {
    /// Follows the quick start on a node, with containerd started once it is configured.
    pub(crate) fn new(node: &Node, cgroup_parent: &str) -> Result<Daemon> {
        node.command(&["sh", "-e"]).env("BIN", weft_bin_dir()?).stdin(SET_UP).ok()?;
        let quick_start = blocks("docs/runtimes.md", "## containerd")?;
        let (configuration, commands): (Vec<_>, Vec<_>) =
            quick_start.iter().partition(|block| matches!(block, e2e::Block::File { .. }));
        configuration.iter().try_for_each(|block| block.follow(node))?;
        let running = spawn(node)?;
        let mut daemon =
            Daemon { node: node.clone(), running, cgroup_parent: cgroup_parent.to_owned() };
        daemon.wait()?;
        commands.iter().try_for_each(|block| block.follow(node))?;
        Ok(daemon)
    }

    /// The node.
    pub(crate) fn node(&self) -> &Node {
        &self.node
    }

    /// A connection to its CRI socket.
    pub(crate) fn client(&self) -> Result<Client> {
        let socket = self.node.path("/run/containerd/containerd.sock");
        Client::connect(&socket, &self.cgroup_parent, IMAGE)
    }

    /// Ends it as `systemctl stop` does: pods and their shims stay (KillMode=process).
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let status = self.running.wait()?;
        ensure!(status.success(), "containerd ended by {status}: {}", self.log()?);
        Ok(())
    }

    /// Kills it and nothing that it started.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        let status = self.running.wait()?;
        ensure!(status.signal() == Some(9), "containerd ended by {status}: {}", self.log()?);
        Ok(())
    }

    /// Starts it again.
    pub(crate) fn start(&mut self) -> Result<()> {
        self.running = spawn(&self.node)?;
        self.wait()
    }

    /// Its log so far.
    pub(crate) fn log(&self) -> Result<String> {
        self.node.read_file(LOG)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.running.id() as i32), signal).context("containerd")
    }

    /// Waits until it answers. It says to nobody when it has read what it had before;
    /// kubelet, too, asks again until it does.
    fn wait(&mut self) -> Result<()> {
        let end = Instant::now() + START;
        loop {
            let Err(error) = self.client().and_then(|client| client.conditions()) else {
                return Ok(());
            };
            if let Some(status) = self.running.ended()? {
                bail!("containerd ended by {status}: {}", self.log()?);
            }
            ensure!(Instant::now() < end, "containerd does not answer: {error:#}");
            sleep(Duration::from_millis(20));
        }
    }
}

fn spawn(node: &Node) -> Result<Running> {
    let script = format!("exec containerd >>{LOG} 2>&1");
    node.command(&["sh", "-c", &script]).env("WEFT_TRACE", TRACE).spawn()
}
