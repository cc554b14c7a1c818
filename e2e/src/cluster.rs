//! weft on the nodes of a lab: the conflist installed, pods attached, the command run.

use std::path::PathBuf;

use anyhow::{Context, Result};
use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use crate::bins::weft_bin_dir;
use crate::chain::Chain;
use crate::lab::{Lab, Node};
use crate::pod::Pod;
use crate::process::Output;
use crate::topology::{Family, Topology};

/// The lesson's conflists and its node map, as `conf/` has them.
pub mod conf {
    /// Everything through the tunnel.
    pub const TUNNEL: &str = include_str!("../../conf/tunnel.conflist");
    /// Everything by the physical network's own routes.
    pub const NATIVE: &str = include_str!("../../conf/native.conflist");
    /// The first two nodes natively, the third through the tunnel.
    pub const HYBRID: &str = include_str!("../../conf/hybrid.conflist");
    /// The three nodes.
    pub const NODES: &str = include_str!("../../conf/nodes.json");
}

/// A lab whose nodes all have the same conflist in `/etc/cni/net.d`.
#[derive(Debug)]
pub struct Cluster {
    lab: Lab,
    chains: Vec<Chain>,
    bin_dir: PathBuf,
}

impl Cluster {
    /// Starts a lab and installs a conflist on its nodes.
    pub fn start(topology: Topology, conflist: &Value) -> Result<Cluster> {
        Cluster::new(Lab::start(topology)?, conflist)
    }

    /// Installs a conflist on every host of a lab that is a node.
    pub fn new(lab: Lab, conflist: &Value) -> Result<Cluster> {
        let bin_dir = weft_bin_dir()?;
        let chain = |node: &Node| Chain::new(node, conflist.clone(), &[&bin_dir]);
        let chains: Vec<Chain> = lab.nodes().iter().map(chain).collect();
        let cluster = Cluster { lab, chains, bin_dir };
        cluster.install()?;
        Ok(cluster)
    }

    /// The lesson's three nodes with its node map and one of the conflists of [`conf`].
    pub fn lesson(conflist: &str) -> Result<Cluster> {
        let lab = Lab::lesson()?;
        lab.write_node_map(&conf::NODES.parse()?)?;
        Cluster::new(lab, &conflist.parse()?)
    }

    /// Replaces the conflist on every node; pods and kernel stay as they are.
    pub fn set_conflist(&mut self, conflist: &Value) -> Result<()> {
        self.chains.iter_mut().for_each(|chain| chain.set_conflist(conflist.clone()));
        self.install()
    }

    fn install(&self) -> Result<()> {
        self.nodes().try_for_each(|node| self.chain(node.name())?.install())
    }

    /// The hosts that are nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.lab.nodes().iter().filter(|node| !node.host().pod_ranges.is_empty())
    }

    /// The lab.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// A host by name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.lab.node(name)
    }

    /// The runtime of a node.
    pub fn chain(&self, node: &str) -> Result<&Chain> {
        let mut both = self.lab.nodes().iter().zip(&self.chains);
        let found = both.find(|(host, _)| host.name() == node);
        found.map(|(_, chain)| chain).with_context(|| format!("no node is called {node}"))
    }

    /// Makes a pod on a node, brings its `lo` up as runtimes do, and attaches it as `eth0`.
    pub fn pod(&self, node: &str, name: &str) -> Result<Pod> {
        self.pod_with_result(node, name).map(|(pod, _)| pod)
    }

    /// [`Cluster::pod`], with the result of ADD.
    pub fn pod_with_result(&self, node: &str, name: &str) -> Result<(Pod, Value)> {
        let pod = self.node(node)?.pod(name)?;
        pod.lo_up()?;
        let result = self.chain(node)?.add(&pod, "eth0")?;
        Ok((pod, result))
    }

    /// [`Cluster::pod`] with these addresses, by the runtime's capability `ips`.
    pub fn pod_at(&self, node: &str, name: &str, ips: &[&str]) -> Result<Pod> {
        let pod = self.node(node)?.pod(name)?;
        pod.lo_up()?;
        let conflist = self.chain(node)?.conflist().clone();
        let chain = Chain::new(self.node(node)?, conflist, &[&self.bin_dir]);
        chain.capability("ips", json!(ips)).add(&pod, "eth0")?;
        Ok(pod)
    }

    /// Detaches a pod and removes its namespace, as a runtime does.
    pub fn remove(&self, node: &str, pod: &Pod) -> Result<()> {
        self.chain(node)?.del(pod, "eth0")?;
        pod.delete()
    }

    /// Runs the `weft` command on a node, whatever its exit status.
    pub fn weft(&self, node: &str, words: &[&str]) -> Result<Output> {
        let mut argv = vec![self.bin_dir.join("weft").into_os_string()];
        argv.extend(words.iter().map(std::ffi::OsString::from));
        self.node(node)?.run(&argv)
    }

    /// PATH with the executables under test in front.
    pub fn search_path(&self) -> Result<std::ffi::OsString> {
        let old = std::env::var_os("PATH").unwrap_or_default();
        let dirs = std::iter::once(self.bin_dir.clone()).chain(std::env::split_paths(&old));
        std::env::join_paths(dirs).context("PATH")
    }

    /// Runs `weft sync` on every node; each has to succeed.
    pub fn sync_all(&self) -> Result<()> {
        self.nodes().try_for_each(|node| self.weft(node.name(), &["sync"])?.ok().map(drop))
    }

    /// Gives the router the routes to a node's pod ranges that native routing needs.
    pub fn route_to(&self, node: &str) -> Result<()> {
        let node = self.node(node)?;
        let route = |range: &IpNetwork| -> Result<String> {
            let via = node.address(Family::of(range.ip()))?;
            Ok(format!("route add {range} via {via}\n"))
        };
        let lines: Result<String> = node.host().pod_ranges.iter().map(route).collect();
        self.lab.router().ip_batch(&lines?)
    }

    /// [`Cluster::route_to`] every node.
    pub fn route_to_all(&self) -> Result<()> {
        self.nodes().try_for_each(|node| self.route_to(node.name()))
    }

    /// Sets IPv4's reverse path filtering on every host and on the router:
    /// 0 off, 1 strict, 2 loose (Documentation/networking/ip-sysctl.rst).
    pub fn set_rp_filter(&self, value: &str) -> Result<()> {
        let keys = ["all", "default", "eth0"].map(|dev| format!("net/ipv4/conf/{dev}/rp_filter"));
        let pairs: Vec<(&str, &str)> = keys.iter().map(|key| (key.as_str(), value)).collect();
        self.lab.router().set_sysctls(&pairs[..2])?;
        self.lab.each_node(|node| node.set_sysctls(&pairs))
    }
}

impl Node {
    /// Its first pod range of a family.
    pub fn pod_range(&self, family: Family) -> Result<IpNetwork> {
        let mut ranges = self.host().pod_ranges.iter();
        let range = ranges.find(|range| Family::of(range.ip()) == family);
        range.copied().with_context(|| format!("{} has no {family:?} pod range", self.name()))
    }
}

/// `conflist` with keys of its `routing` plugin set; `null` takes a key away.
pub fn with_routing_keys(conflist: &str, keys: &Value) -> Result<Value> {
    let mut conflist: Value = conflist.parse()?;
    let plugins = conflist["plugins"].as_array_mut().context("the conflist has no plugins")?;
    let routing = plugins.iter_mut().find(|plugin| plugin["type"] == json!("routing"));
    let routing = routing.and_then(Value::as_object_mut).context("no plugin is routing")?;
    for (key, value) in keys.as_object().into_iter().flatten() {
        if value.is_null() {
            routing.remove(key);
        } else {
            routing.insert(key.clone(), value.clone());
        }
    }
    Ok(conflist)
}
