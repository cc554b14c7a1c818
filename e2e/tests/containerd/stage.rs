//! Two nodes with containerd, and what tests of it share.

use anyhow::{Result, ensure};
use e2e::{Cluster, Lab, Snapshot, conf};
use serde_json::Value;

use crate::control_group::ControlGroup;
use crate::cri::{Client, Pod};
use crate::daemon::Daemon;

/// The nodes that have containerd.
const NODES: [&str; 2] = ["worker1", "worker2"];

/// What containerd needs.
pub(crate) fn prerequisites() -> Result<(), String> {
    e2e::permitted()?;
    testing::machine_root()?;
    testing::programs(&["containerd", "containerd-shim-runc-v2", "ctr", "runc", "busybox"])
}

/// A cluster with containerd on two nodes. Fields go in this order: the control group
/// can be removed when no process of the lab is left.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) daemons: Vec<Daemon>,
    pub(crate) cluster: Cluster,
    before: Vec<Snapshot>,
    pub(crate) group: ControlGroup,
}

impl Stage {
    /// The lesson with one of its conflists.
    pub(crate) fn lesson(conflist: &str) -> Result<Stage> {
        let lab = || -> Result<Lab> {
            let lab = Lab::lesson()?;
            lab.write_node_map(&conf::NODES.parse()?)?;
            Ok(lab)
        };
        Stage::start(lab, &conflist.parse()?)
    }

    /// Any lab that has worker1 and worker2.
    pub(crate) fn start(lab: impl FnOnce() -> Result<Lab>, conflist: &Value) -> Result<Stage> {
        let group = ControlGroup::new()?;
        let cluster = Cluster::new(lab()?, conflist)?;
        let snapshot = |name: &&str| cluster.node(name)?.snapshot();
        let before = NODES.iter().map(snapshot).collect::<Result<_>>()?;
        let daemon = |name: &&str| Daemon::new(cluster.node(name)?, &group.path());
        let daemons = NODES.iter().map(daemon).collect::<Result<_>>()?;
        Ok(Stage { daemons, cluster, before, group })
    }

    /// Takes away what is between the nodes and asserts that links, routes, nf_tables,
    /// leases and files are as before containerd was there.
    pub(crate) fn assert_as_before(&self) -> Result<()> {
        for (daemon, before) in self.daemons.iter().zip(&self.before) {
            let node = daemon.node();
            self.cluster.weft(node.name(), &["teardown"])?.ok()?;
            let diff = before.diff(&node.snapshot()?);
            let left: Vec<&str> = diff.lines().filter(|line| !may_stay(line)).collect();
            ensure!(left.is_empty(), "{} is not as before:\n{}", node.name(), left.join("\n"));
        }
        Ok(())
    }
}

/// What stays by design: forwarding (and with it the kernel's view of redirects), the
/// lease store's own directory and files, libcni's directories.
fn may_stay(line: &str) -> bool {
    let sysctl = line.contains("Sysctls: ")
        && (line.contains("forward")
            || line.contains("all/accept_redirects")
            || line.contains("/accept_ra:"));
    let path = line.trim_start_matches("+ Files: ");
    let store = path.starts_with("/var/lib/cni/networks/pods/")
        && !path.contains("/10.0.")
        && !path.contains("/fd10:");
    let directory = path.starts_with("/var/lib/cni/") && path.ends_with('/');
    sysctl || store || directory
}

/// Answers HTTP in a pod, with a text that tells which one it is.
pub(crate) fn serve(client: &Client, pod: &Pod) -> Result<()> {
    let script = format!("mkdir /www && echo {} >/www/index.html && httpd -h /www", pod.id);
    client.exec(pod, &["sh", "-ec", &script]).map(drop)
}

/// Pings from a pod, and fetches what [`serve`] serves, at every address of another pod.
pub(crate) fn assert_reaches(client: &Client, from: &Pod, to: &Pod) -> Result<()> {
    ensure!(!to.addresses.is_empty());
    for address in &to.addresses {
        let text = address.to_string();
        client.exec(from, &["ping", "-c", "1", "-W", "5", &text])?;
        let host = if address.is_ipv6() { format!("[{text}]") } else { text };
        let url = format!("http://{host}/");
        let page = client.exec(from, &["wget", "-q", "-O", "-", &url])?;
        ensure!(page.trim() == to.id, "{url} answers {page:?}");
    }
    Ok(())
}

/// Whether long runs are wanted at full count.
pub(crate) fn soak() -> bool {
    std::env::var_os("WEFT_SOAK").is_some()
}
