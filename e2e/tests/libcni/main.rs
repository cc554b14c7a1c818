//! weft under a real caller: libcni itself, and what `weft install` puts where it looks.

mod chains;
mod client;
mod install;
mod lesson;
mod quick_start;
mod upgrade;

use anyhow::Result;
use e2e::{Family, Lab, Node, PingOptions, Pod, Snapshot, ping, weft_bin_dir};
use serde_json::Value;

use client::Libcni;

/// The conflist that nodes get.
const CONFLIST: &str = "/etc/cni/net.d/10-pods.conflist";

/// Gives a node an /opt of its own, and in /run/new and /run/old two versions of weft.
fn prepare(node: &Node) -> Result<()> {
    node.run_ok(&["mount", "-n", "-t", "tmpfs", "-o", "mode=755", "opt", "/opt"])?;
    // Without what is for debuggers it is a tenth of the size.
    let weft = weft_bin_dir()?.join("weft").display().to_string();
    node.sh(&format!(
        "mkdir -p /run/new /run/old; strip -o /run/new/weft {weft}
         cp /run/new/weft /run/old/weft
         # The loader does not mind what follows the last section.
         echo an older version >>/run/old/weft"
    ))
    .map(drop)
}

/// Installs weft and a conflist on a node, by `weft install`.
fn install(node: &Node, version: &str, conflist: &Value) -> Result<()> {
    node.write_file("/run/in/10-pods.conflist", format!("{conflist:#}\n"))?;
    let weft = format!("/run/{version}/weft");
    node.run_ok(&[weft.as_str(), "install", "--conf", "/run/in/10-pods.conflist"]).map(drop)
}

/// A lab with weft installed on every node.
fn installed(lab: Lab, conflist: &Value) -> Result<Lab> {
    lab.each_node(|node| prepare(node).and_then(|()| install(node, "new", conflist)))?;
    Ok(lab)
}

/// Makes a pod on a node and attaches it.
fn attached(cni: &Libcni, node: &Node, name: &str) -> Result<(Pod, Value)> {
    let pod = node.pod(name)?;
    pod.lo_up()?;
    let result = cni.add(&pod)?;
    Ok((pod, result))
}

/// Whether a pod's ping, with this many bytes of packet, comes back from another.
fn reaches(from: &Pod, to: &Pod, family: Family, packet: u32) -> Result<bool> {
    let to = to.addr(family)?;
    // On a machine that is busy with other things a reply may take its time.
    let options = PingOptions { wait: 5.0, ..PingOptions::exact(packet, to) };
    Ok(ping(from, to, &options)?.all())
}

/// Asserts that nothing of a pod is left on a node. Locks and caches, and the store's own
/// books, may differ; a lease or a cached result may not.
#[track_caller]
fn assert_as_before(before: &Snapshot, now: &Snapshot) {
    let diff = before.diff(now);
    let kept = |line: &&str| {
        let Some((_, path)) = line.split_once("Files: ") else { return false };
        let books = path.starts_with("/var/lib/cni/networks/")
            && !path.contains("/10.0.")
            && !path.contains("/fd10:");
        books || path.starts_with("/run/weft/")
    };
    let others: Vec<&str> = diff.lines().filter(|line| !kept(line)).collect();
    assert!(others.is_empty(), "left behind:\n{}", others.join("\n"));
}
