//! weft on the nodes of a lab.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use e2e::{Chain, Family, Lab, Node, Output, PingOptions, PingResult, Place, Pod, Topology};
use e2e::{ping, weft_bin_dir};
use serde_json::{Value, json};

use crate::look;

/// A conflist whose `routing` has these keys.
pub(crate) fn conflist(routing: Value) -> Value {
    conflist_of(json!({}), routing)
}

/// A conflist whose `veth` and `routing` have these keys.
pub(crate) fn conflist_of(veth: Value, routing: Value) -> Value {
    let ipam = json!({ "type": "host-local" });
    let mut plugins =
        [json!({ "type": "veth", "ipam": ipam, "capabilities": { "ips": true } }), json!({})];
    plugins[1]["type"] = json!("routing");
    for (plugin, keys) in plugins.iter_mut().zip([veth, routing]) {
        for (key, value) in keys.as_object().into_iter().flatten() {
            plugin[key] = value.clone();
        }
    }
    json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": plugins })
}

/// A lab whose nodes all have one conflist in `/etc/cni/net.d`.
pub(crate) struct Cluster {
    pub(crate) lab: Lab,
    conflist: Value,
    bin_dir: PathBuf,
}

impl Cluster {
    /// Starts a lab and installs a conflist on its nodes.
    pub(crate) fn start(topology: Topology, conflist: &Value) -> Result<Cluster> {
        let lab = Lab::start(topology)?;
        let mut cluster = Cluster { lab, conflist: Value::Null, bin_dir: weft_bin_dir()? };
        cluster.set_conflist(conflist)?;
        Ok(cluster)
    }

    /// Sets IPv4's reverse path filtering on every host and on the router:
    /// 0 off, 1 strict, 2 loose (Documentation/networking/ip-sysctl.rst).
    pub(crate) fn set_rp_filter(&self, value: &str) -> Result<()> {
        let keys = ["all", "default", "eth0"].map(|dev| format!("net/ipv4/conf/{dev}/rp_filter"));
        let pairs: Vec<(&str, &str)> = keys.iter().map(|key| (key.as_str(), value)).collect();
        self.lab.router().set_sysctls(&pairs[..2])?;
        self.lab.each_node(|node| node.set_sysctls(&pairs))
    }

    /// No host dropped a packet for its source, by reverse path filtering.
    pub(crate) fn assert_no_source_was_refused(&self) -> Result<()> {
        let hosts = self.lab.nodes().iter().map(|node| &**node);
        for place in hosts.chain([self.lab.router()]) {
            assert_eq!(look::refused_sources(place)?, 0, "{}", place.name());
        }
        Ok(())
    }

    /// Replaces the conflist on every node; pods and kernel stay as they are.
    pub(crate) fn set_conflist(&mut self, conflist: &Value) -> Result<()> {
        self.conflist = conflist.clone();
        self.nodes().try_for_each(|node| self.chain(node).install())
    }

    /// The hosts that are nodes.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.lab.nodes().iter().filter(|node| !node.host().pod_ranges.is_empty())
    }

    /// A host by name.
    pub(crate) fn node(&self, name: &str) -> Result<&Node> {
        self.lab.node(name)
    }

    fn chain(&self, node: &Node) -> Chain {
        Chain::new(node, self.conflist.clone(), &[&self.bin_dir])
    }

    /// Attaches a new pod on a node.
    pub(crate) fn pod(&self, node: &str, name: &str) -> Result<Pod> {
        self.pod_at(node, name, &[])
    }

    /// Attaches a new pod with these addresses, or with those that are its turn.
    pub(crate) fn pod_at(&self, node: &str, name: &str, ips: &[&str]) -> Result<Pod> {
        let node = self.node(node)?;
        let mut chain = self.chain(node);
        if !ips.is_empty() {
            chain = chain.capability("ips", json!(ips));
        }
        let pod = node.pod(name)?;
        pod.lo_up()?;
        chain.add(&pod, "eth0")?;
        Ok(pod)
    }

    /// Runs `weft` on a node, whatever its exit status.
    pub(crate) fn weft(&self, node: &str, words: &[&str]) -> Result<Output> {
        let mut argv = vec![self.bin_dir.join("weft").display().to_string()];
        argv.extend(words.iter().map(ToString::to_string));
        self.node(node)?.run(&argv)
    }

    /// Runs `weft sync` on every node; each has to succeed.
    pub(crate) fn sync_all(&self) -> Result<()> {
        self.nodes().try_for_each(|node| self.weft(node.name(), &["sync"])?.ok().map(drop))
    }

    /// Gives the router the routes to a node's pod ranges that native routing needs.
    pub(crate) fn route_to(&self, node: &str) -> Result<()> {
        let node = self.node(node)?;
        let route = |range: &ipnetwork::IpNetwork| -> Result<String> {
            let via = node.address(Family::of(range.ip()))?;
            Ok(format!("route add {range} via {via}\n"))
        };
        let lines: Result<String> = node.host().pod_ranges.iter().map(route).collect();
        self.lab.router().ip_batch(&lines?)
    }

    /// [`Cluster::route_to`] every node.
    pub(crate) fn route_to_all(&self) -> Result<()> {
        self.nodes().try_for_each(|node| self.route_to(node.name()))
    }
}

/// The first address of a node's first pod range of a family: its VXLAN device's.
pub(crate) fn pod_network(node: &Node, family: Family) -> Result<IpAddr> {
    let mut ranges = node.host().pod_ranges.iter();
    let range = ranges.find(|range| Family::of(range.ip()) == family);
    Ok(range.with_context(|| format!("{} has no {family:?} range", node.name()))?.network())
}

/// Pings with a patience that a busy machine needs.
pub(crate) fn pinged(from: &Place, to: IpAddr, options: PingOptions) -> Result<PingResult> {
    ping(from, to, &PingOptions { wait: 10.0, ..options })
}

/// Pings; it has to be answered.
#[track_caller]
pub(crate) fn assert_ping(from: &Place, to: IpAddr, options: PingOptions) -> Result<()> {
    let result = pinged(from, to, options)?;
    assert!(result.all(), "{}", result.output);
    Ok(())
}
