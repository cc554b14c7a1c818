//! The lesson's nodes with weft on them and a pod on each.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Chain, Families, Family, Lab, Node, Output, Pod, Topology, weft_bin_dir};
use serde_json::{Value, json};

use crate::traffic::{Flow, Streams, Traffic};
use crate::units;

/// What a test waits at most for something that takes milliseconds.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// What the STATUS of a chain takes at most (docs/convergence.md).
const STATUS_LIMIT: Duration = Duration::from_secs(1);

/// How the work of a daemon is set off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trigger {
    /// A pod's ADD.
    Add,
    /// STATUS, a runtime's tick.
    Status,
    /// `weft sync` by hand.
    Sync,
    /// What the systemd service starts, with the capabilities that it has.
    Unit,
}

/// All of them.
pub(crate) const TRIGGERS: [Trigger; 4] =
    [Trigger::Sync, Trigger::Unit, Trigger::Status, Trigger::Add];

/// A lab with weft on every node.
pub(crate) struct Stage {
    pub(crate) lab: Lab,
    pub(crate) bin: PathBuf,
    pub(crate) chains: Vec<Chain>,
    pub(crate) pods: Vec<Pod>,
}

/// A conflist whose `routing` has these keys beside its type.
pub(crate) fn conflist(keys: Value) -> Value {
    let mut routing = json!({ "type": "routing" });
    for (key, value) in keys.as_object().into_iter().flatten() {
        routing[key] = value.clone();
    }
    json!({
        "cniVersion": "1.1.0", "name": "pods",
        "plugins": [{ "type": "veth", "ipam": { "type": "host-local" } }, routing],
    })
}

impl Stage {
    /// The lesson's three nodes, pods with both families, each node synced with a pod.
    pub(crate) fn new(keys: Value) -> Result<Stage> {
        Stage::with_pods(Topology::lesson(Families::V4, Families::Both), keys)
    }

    /// The same with another topology.
    pub(crate) fn with_pods(topology: Topology, keys: Value) -> Result<Stage> {
        let mut stage = Stage::without_pods(topology, keys)?;
        for index in 0..stage.lab.nodes().len() {
            let pod = stage.pod(index, "pod")?;
            stage.pods.push(pod);
        }
        stage.settle()?;
        Ok(stage)
    }

    /// A lab with conflists installed, and nothing run yet.
    pub(crate) fn without_pods(topology: Topology, keys: Value) -> Result<Stage> {
        let lab = Lab::start(topology)?;
        let bin = weft_bin_dir()?;
        let chain = |node: &Node| Chain::new(node, conflist(keys.clone()), &[&bin]);
        let chains: Vec<Chain> = lab.nodes().iter().map(chain).collect();
        chains.iter().try_for_each(Chain::install)?;
        lab.each_node(|node| units::install(node, &bin))?;
        Ok(Stage { lab, bin, chains, pods: Vec::new() })
    }

    pub(crate) fn node(&self, index: usize) -> &Node {
        &self.lab.nodes()[index]
    }

    /// Replaces the conflist of a node.
    pub(crate) fn configure(&mut self, index: usize, keys: Value) -> Result<()> {
        self.chains[index].set_conflist(conflist(keys));
        self.chains[index].install()
    }

    /// A new pod on a node, attached.
    pub(crate) fn pod(&self, index: usize, name: &str) -> Result<Pod> {
        let pod = self.node(index).pod(name)?;
        pod.lo_up()?;
        self.chains[index].add(&pod, "eth0")?;
        Ok(pod)
    }

    /// Detaches a pod and removes it.
    pub(crate) fn remove(&self, index: usize, pod: &Pod) -> Result<()> {
        self.chains[index].del(pod, "eth0")?;
        pod.delete()
    }

    /// The `weft` command on a node, whatever its exit status.
    pub(crate) fn weft(&self, index: usize, words: &[&str]) -> Result<Output> {
        let mut argv = vec![self.bin.join("weft").into_os_string()];
        argv.extend(words.iter().map(std::ffi::OsString::from));
        self.node(index).run(&argv)
    }

    /// Whether `weft plan` has nothing to do on a node; an error where it cannot tell.
    pub(crate) fn is_converged(&self, index: usize) -> Result<bool> {
        let plan = self.weft(index, &["plan"])?;
        match plan.status.code() {
            Some(0) => Ok(true),
            Some(2) => Ok(false),
            _ => anyhow::bail!("{plan}"),
        }
    }

    /// Sets off the trigger on one node; it has to succeed. ADD's pod is removed.
    pub(crate) fn trigger(&self, index: usize, trigger: Trigger) -> Result<()> {
        let pod = self.set_off(index, trigger)?;
        pod.map_or(Ok(()), |pod| self.remove(index, &pod))
    }

    /// Sets off the trigger on one node; it has to succeed. Returns the pod of an ADD.
    pub(crate) fn set_off(&self, index: usize, trigger: Trigger) -> Result<Option<Pod>> {
        match trigger {
            Trigger::Sync => self.weft(index, &["sync"])?.ok().map(|_| None),
            Trigger::Unit => {
                let command = units::start_command(&units::kept_capabilities()?)?;
                self.node(index).run_ok(&command).map(|_| None)
            }
            Trigger::Status => {
                self.chains[index].status()?;
                Ok(None)
            }
            Trigger::Add => self.pod(index, "trigger").map(Some),
        }
    }

    /// STATUS on a node, which has to succeed in time; on a busy machine after [`e2e::go_first`].
    pub(crate) fn timely_status(&self, index: usize) -> Result<()> {
        let started = Instant::now();
        self.chains[index].status()?;
        let took = started.elapsed();
        ensure!(took <= STATUS_LIMIT, "STATUS took {took:?}");
        Ok(())
    }

    /// The same on all nodes.
    pub(crate) fn trigger_all(&self, trigger: Trigger) -> Result<()> {
        (0..self.chains.len()).try_for_each(|index| self.trigger(index, trigger))
    }

    /// Syncs every node until each has a stamp.
    pub(crate) fn settle(&self) -> Result<()> {
        self.settle_some(&(0..self.chains.len()).collect::<Vec<_>>(), 0)
    }

    /// Syncs some nodes until each has a stamp: none is written within a second of the
    /// map's change. Every sync has to end with this exit status.
    pub(crate) fn settle_some(&self, nodes: &[usize], status: i32) -> Result<()> {
        let end = Instant::now() + DEADLINE;
        for &index in nodes {
            loop {
                let sync = self.weft(index, &["sync"])?;
                ensure!(sync.status.code() == Some(status), "not exit status {status}: {sync}");
                if self.node(index).path("/run/weft/pods.stamp").exists() {
                    break;
                }
                ensure!(Instant::now() < end, "no stamp on {}", self.node(index).name());
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        Ok(())
    }

    /// Pings between the pods of each pair of nodes, both families.
    pub(crate) fn traffic(&self) -> Result<Traffic> {
        let traffic = Traffic(self.pings(|_| true)?);
        traffic.wait_all(Instant::now(), DEADLINE).context("before anything happened")?;
        Ok(traffic)
    }

    /// Starts those pings whose pair of nodes is wanted.
    pub(crate) fn pings(&self, wanted: impl Fn([usize; 2]) -> bool) -> Result<Vec<Flow>> {
        let mut flows = Vec::new();
        for (a, from) in self.pods.iter().enumerate() {
            for (b, to) in self.pods.iter().enumerate().skip(a + 1) {
                for family in [Family::V4, Family::V6] {
                    if wanted([a, b]) {
                        flows.push(Flow::ping([a, b], from, to.addr(family)?)?);
                    }
                }
            }
        }
        Ok(flows)
    }

    /// TCP connections between the pods of two nodes.
    pub(crate) fn streams(&self, [a, b]: [usize; 2]) -> Result<Streams> {
        Streams::open([a, b], &self.pods[a], &self.pods[b])
    }

    /// What the kernel of a node holds of weft's, as text that can be compared between
    /// nodes: no interface numbers, no counters.
    pub(crate) fn state(&self, index: usize, devices: &[&str]) -> Result<String> {
        let mut script = String::from(
            "ip -4 route show table all proto 87 | sort\nip -6 route show table all proto 87 | sort\n\
             ip nexthop show | sort\nfor table in weft_87_masquerade weft_87_tunnel weft_spoof; do\n\
             nft -s list table inet $table 2>/dev/null || true\ndone\n",
        );
        for device in devices {
            script.push_str(&format!(
                "ip -d -o link show {device} | sed 's/^[0-9]*: //; s/ promiscuity.*vxlan/ vxlan/'\n\
                 ip -o address show dev {device} | sed 's/^[0-9]*: //; s/\\\\.*//' | sort\n\
                 ip neighbour show dev {device} nud permanent | sort\n\
                 bridge fdb show dev {device} | sort\n\
                 cat /proc/sys/net/ipv6/conf/{device}/accept_ra\n\
                 cat /proc/sys/net/ipv6/conf/{device}/addr_gen_mode\n"
            ));
        }
        self.node(index).sh(&format!("{script}exit 0\n"))
    }
}

/// The lines in which two states differ.
pub(crate) fn difference(wanted: &str, found: &str) -> String {
    let lacks = |of: &str, line: &str| !of.lines().any(|other| other == line);
    let missing =
        wanted.lines().filter(|line| lacks(found, line)).map(|line| format!("- {line}\n"));
    let surplus =
        found.lines().filter(|line| lacks(wanted, line)).map(|line| format!("+ {line}\n"));
    missing.chain(surplus).collect()
}
