//! A pod: a network namespace with a path on a node, as a container runtime makes one.

use std::net::IpAddr;
use std::ops::Deref;

use anyhow::{Context, Result, ensure};

use crate::place::Place;
use crate::topology::Family;

/// A network namespace at `/run/netns/NAME` of a node's mount view. It stays until
/// [`Pod::delete`] or the end of the lab, whatever becomes of this value.
#[derive(Clone, Debug)]
pub struct Pod {
    place: Place,
    node: Place,
    id: String,
    netns: String,
}

impl Deref for Pod {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl Pod {
    pub(crate) fn create(node: &Place, name: &str) -> Result<Pod> {
        let netns = format!("/run/netns/{name}");
        std::fs::File::create_new(node.path(&netns))
            .with_context(|| format!("pod {name} on {}", node.name()))?;
        node.run_ok(&["unshare", &format!("--net={netns}"), "true"])?;
        let place = node.with_net(format!("{}/{name}", node.name()), &netns);
        Ok(Pod { place, node: node.clone(), id: name.to_string(), netns })
    }

    /// The container ID that [`crate::Chain`] gives to plugins: the pod's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// CNI_NETNS: the namespace's path in the node's mount view.
    pub fn netns(&self) -> &str {
        &self.netns
    }

    /// The node that it is on.
    pub fn node(&self) -> &Place {
        &self.node
    }

    /// Its first global address of a family, as the kernel has it.
    pub fn addr(&self, family: Family) -> Result<IpAddr> {
        let option = if family == Family::V4 { "-4" } else { "-6" };
        let links = self.json(&["ip", option, "-j", "address", "show", "scope", "global"])?;
        let links = links.as_array().map(Vec::as_slice).unwrap_or_default();
        let mut locals = links.iter().flat_map(|link| link["addr_info"].as_array()).flatten();
        let local = locals.find_map(|address| address["local"].as_str());
        let local = local.with_context(|| format!("{} has no {family:?} address", self.name()))?;
        Ok(local.parse()?)
    }

    /// Brings `lo` up, as runtimes that do so themselves.
    pub fn lo_up(&self) -> Result<()> {
        self.run_ok(&["ip", "link", "set", "lo", "up"]).map(drop)
    }

    /// Removes the namespace's path, as a runtime does after DEL, or before, to see whether
    /// DEL copes. Lazily, as runtimes do: a process that has the path open keeps the mount
    /// busy. The namespace itself goes with its last user.
    pub fn delete(&self) -> Result<()> {
        let output = self.node.run(&["umount", "-n", "-l", &self.netns])?;
        ensure!(output.success(), "{output}");
        std::fs::remove_file(self.node.path(&self.netns)).context("removing the pod's path")
    }
}
