//! What the DaemonSet's init container and `hack/kind.sh` do on a node.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::{Chain, Family, Lab, Node, PingOptions, Pod, Section, conf, ping};
use serde_json::Value;

use crate::stage::{
    KUBELET_DIR, Scratch, Stream, Volume, attach, block, conflist, image, import, install,
    node_list, repository, run_script, runtime, with_own_opt,
};

/// Every pod reaches every other.
fn assert_reach(pods: &[(Chain, Pod)]) -> Result<()> {
    for (_, from) in pods {
        for (_, to) in pods {
            let to = to.addr(Family::V4)?;
            let result = ping(from, to, &PingOptions { wait: 5.0, ..PingOptions::default() })?;
            ensure!(result.all(), "{} to {to}: {}", from.name(), result.output);
        }
    }
    Ok(())
}

/// On each node a pod.
fn pods(lab: &Lab) -> Result<Vec<(Chain, Pod)>> {
    let pod = |node| {
        let runtime = runtime(node)?;
        let pod = attach(node, &runtime, "pod")?;
        Ok((runtime, pod))
    };
    lab.nodes().iter().map(pod).collect()
}

fn remove(pods: Vec<(Chain, Pod)>) -> Result<()> {
    for (runtime, pod) in pods {
        runtime.del(&pod, "eth0")?;
        pod.delete()?;
    }
    Ok(())
}

/// On each node a pod, which reach each other and go.
fn assert_serves(lab: &Lab) -> Result<()> {
    let pods = pods(lab)?;
    assert_reach(&pods)?;
    remove(pods)
}

#[test]
fn the_manifests_conflist_is_the_tunnels() -> Result<()> {
    let (manifest, file): (Value, Value) = (conflist()?.parse()?, conf::TUNNEL.parse()?);
    ensure!(manifest == file, "{manifest:#}");
    Ok(())
}

/// The scripts and manifests name the same volume, files and objects.
#[test]
fn the_scripts_and_manifests_agree() -> Result<()> {
    let read = |path: &str| fs::read_to_string(repository(path)).context(path.to_owned());
    let daemon_set = read("conf/kubernetes/weft.yaml")?;
    let job = read("conf/kubernetes/node-map.yaml")?;
    ensure!(
        daemon_set.contains("- name: nodes\n          configMap:\n            name: weft-nodes")
    );
    ensure!(daemon_set.contains("/usr/local/bin/install-node.sh"));
    // What the tests run the script with.
    ensure!(daemon_set.contains("add: [\"DAC_OVERRIDE\"]"));
    ensure!(job.contains("resourceNames: [\"weft-nodes\"]"));
    ensure!(job.contains("/work/write-node-map.sh"));
    let version = format!("weft:{}", env!("CARGO_PKG_VERSION"));
    for text in [&daemon_set, &job, &read("hack/kind.sh")?] {
        ensure!(text.contains(&version), "no {version} in {text}");
    }
    Ok(())
}

/// A node as the DaemonSet's pod with this UID leaves it.
fn install_with_map(node: &Node, image: &Path, map: &str, uid: &str) -> Result<()> {
    Volume::new(node, uid)?.write(map)?;
    install(node, image, uid)
}

#[test]
fn the_init_container_installs_a_node_and_replaces_what_it_installed() -> Result<()> {
    e2e::needs_lab!("busybox");
    let lab = Lab::lesson()?;
    let image = image()?;
    let map = import(&lab.nodes()[0], &node_list(&lab)?)?;
    for node in lab.nodes() {
        with_own_opt(node)?;
        node.sh("rm /etc/weft/nodes.d/nodes.json; echo other >/opt/cni/bin/host-local")?;
        install_with_map(node, image.path(), &map, "first")?;
        ensure!(node.read_file("/opt/cni/bin/host-local.before-weft")? == "other\n");
    }
    let pods = pods(&lab)?;
    assert_reach(&pods)?;
    // An upgrade, node by node: no packet is lost.
    let stream = Stream::start(&pods[1].1, &pods[2].1)?;
    let executable = |node: &Node| anyhow::Ok(fs::metadata(node.path("/opt/cni/bin/weft"))?.ino());
    for (node, (runtime, _)) in lab.nodes().iter().zip(&pods) {
        let before = executable(node)?;
        install_with_map(node, image.path(), &map, "second")?;
        ensure!(executable(node)? != before, "the executable was written in place");
        runtime.status()?;
    }
    stream.assert_no_loss()?;
    for node in lab.nodes() {
        let link = fs::read_link(node.path("/etc/weft/nodes.d/nodes.json"))?;
        ensure!(link.starts_with(format!("{KUBELET_DIR}/pods/second")), "{}", link.display());
        let left = node.sh("find /etc/weft /etc/cni /opt -name '.*' ! -name . -size +0")?;
        ensure!(left.is_empty(), "{left}");
    }
    assert_reach(&pods)?;
    remove(pods)?;
    assert_serves(&lab)
}

/// What `kind.sh install copy` copies to the nodes of a cluster, on the lab's.
#[test]
fn kind_installs_a_node() -> Result<()> {
    e2e::needs_lab!();
    let lab = Lab::lesson()?;
    let scratch = Scratch::new("kind")?;
    let (stage, list) = (scratch.path().join("stage"), scratch.path().join("nodelist.json"));
    fs::write(&list, node_list(&lab)?.to_string())?;
    let (stage, list) = (stage.display().to_string(), list.display().to_string());
    run_script("hack/kind.sh", &["stage", &stage, &list])?;
    for node in lab.nodes() {
        with_own_opt(node)?;
        node.sh("rm /etc/weft/nodes.d/nodes.json; echo other >/opt/cni/bin/loopback")?;
        node.run_ok(&["sh", &format!("{stage}/kind-node.sh")])?;
        node.run_ok(&["/opt/cni/bin/weft", "plan"])?;
    }
    assert_serves(&lab)
}

/// The documented removal leaves a node as it was before weft, forwarding apart.
#[test]
fn the_documented_removal_leaves_nothing() -> Result<()> {
    e2e::needs_lab!("busybox");
    let lab = Lab::lesson()?;
    let node = &lab.nodes()[0];
    with_own_opt(node)?;
    node.sh("rm -r /etc/weft; mkdir -p /var/lib/cni/networks /var/lib/cni/results
        echo other >/opt/cni/bin/host-local")?;
    let before = node.snapshot()?.without(&[Section::Sysctls]);
    Volume::new(node, "first")?.write(&import(node, &node_list(&lab)?)?)?;
    install(node, image()?.path(), "first")?;
    let runtime = runtime(node)?;
    let pod = attach(node, &runtime, "pod")?;
    runtime.del(&pod, "eth0")?;
    pod.delete()?;
    node.sh(&block("remove")?)?;
    before.assert_same(&node.snapshot()?.without(&[Section::Sysctls]));
    ensure!(node.sh("cd /opt/cni/bin; grep -r ''")? == "host-local:other\n");
    Ok(())
}
