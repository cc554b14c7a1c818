//! From flannel to weft, node by node, by the commands of the documentation.
//!
//! The nodes have what flannel's backend vxlan gives them in the kernel and on the disk,
//! and pods of its bridge; flannel itself does not run.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::{Chain, Family, Lab, Node, PingOptions, Place, Pod, ping, run, weft_bin_dir};
use serde_json::{Value, json};

use crate::objects;
use crate::stage::{
    Scratch, Stream, Volume, attach, block, image, import, install, node_list, repository, runtime,
    with_own_opt,
};

const CLUSTER: &str = "10.0.0.0/16";

/// The MAC that flannel chose for a node, at random.
fn vtep(index: usize) -> String {
    format!("5e:3b:91:aa:0{index}:7c")
}

fn address(node: &Node) -> Result<String> {
    Ok(node.address(Family::V4)?.to_string())
}

/// The first address of the node's range, flannel.1's own.
fn network(node: &Node) -> Result<String> {
    Ok(node.pod_range(Family::V4)?.network().to_string())
}

/// The Nodes with what flannel notes on them.
fn noted(lab: &Lab) -> Result<Value> {
    let noted = |(index, node): (usize, &Node)| {
        let mut object = objects::of_host(node)?;
        let notes = &mut object["metadata"]["annotations"];
        let backend = json!({ "VNI": 1, "VtepMAC": vtep(index) }).to_string();
        notes["flannel.alpha.coreos.com/backend-data"] = json!(backend);
        notes["flannel.alpha.coreos.com/backend-type"] = json!("vxlan");
        notes["flannel.alpha.coreos.com/kube-subnet-manager"] = json!("true");
        notes["flannel.alpha.coreos.com/public-ip"] = json!(address(node)?);
        Ok(object)
    };
    Ok(objects::list(lab.nodes().iter().enumerate().map(noted).collect::<Result<_>>()?))
}

/// What flannel makes on a node.
fn make_flannel(lab: &Lab, index: usize) -> Result<()> {
    let node = &lab.nodes()[index];
    let (local, own) = (address(node)?, network(node)?);
    let mut script = format!(
        "echo 1 >/proc/sys/net/ipv4/ip_forward
        ip link add flannel.1 address {} type vxlan id 1 local {local} dev eth0 nolearning dstport 8472
        ip address add {own}/32 dev flannel.1
        ip link set flannel.1 up
        mkdir -p /run/flannel /var/lib/cni/flannel
        echo FLANNEL_MTU=1450 >/run/flannel/subnet.env
        echo '{{}}' >/var/lib/cni/flannel/0123456789abcdef
        iptables -t nat -N FLANNEL-POSTRTG
        iptables -t nat -A POSTROUTING -m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG
        iptables -t nat -A FLANNEL-POSTRTG -s {CLUSTER} -d {CLUSTER} -j RETURN
        iptables -t nat -A FLANNEL-POSTRTG -s {CLUSTER} ! -d 224.0.0.0/4 -j MASQUERADE --random-fully
        iptables -N FLANNEL-FWD
        iptables -A FORWARD -m comment --comment 'flanneld forward' -j FLANNEL-FWD
        iptables -A FLANNEL-FWD -s {CLUSTER} -j ACCEPT
        iptables -A FLANNEL-FWD -d {CLUSTER} -j ACCEPT\n",
        vtep(index)
    );
    for (number, peer) in lab.nodes().iter().enumerate().filter(|(number, _)| *number != index) {
        let (mac, end, range) = (vtep(number), address(peer)?, network(peer)?);
        script += &format!(
            "ip neighbour add {range} lladdr {mac} dev flannel.1 nud permanent
            bridge fdb append {mac} dev flannel.1 dst {end} self permanent
            ip route add {range}/24 via {range} dev flannel.1 onlink\n"
        );
    }
    node.sh(&script)?;
    let conflist = json!({
        "name": "cbr0", "cniVersion": "0.3.1",
        "plugins": [{ "type": "flannel", "delegate": { "isDefaultGateway": true } }],
    });
    node.write_file("/etc/cni/net.d/10-flannel.conflist", conflist.to_string())
}

/// The plugins that flannel's hands its pods on to.
fn flannels_delegate(node: &Node) -> Result<Chain> {
    let ipam = json!({
        "type": "host-local", "routes": [{ "dst": CLUSTER }],
        "ranges": [[{ "subnet": node.pod_range(Family::V4)?.to_string() }]],
    });
    let conflist = json!({
        "name": "cbr0", "cniVersion": "0.3.1",
        "plugins": [{
            "type": "bridge", "bridge": "cni0", "mtu": 1450, "isDefaultGateway": true,
            "hairpinMode": true, "ipMasq": false, "ipam": ipam
        }],
    });
    Ok(Chain::new(node, conflist, &[Path::new("/usr/lib/cni")]))
}

/// The map that the documentation's commands make of the Nodes.
fn documented_map(list: &Value) -> Result<String> {
    let scratch = Scratch::new("flannel")?;
    fs::write(scratch.path().join("nodelist.json"), list.to_string())?;
    let commands = block("flannel-map")?;
    for part in ["kubectl get nodes --output json", "conf/kubernetes"] {
        ensure!(commands.contains(part), "{commands}");
    }
    let commands = commands
        .replace("kubectl get nodes --output json", "cat nodelist.json")
        .replace("conf/kubernetes", &repository("conf/kubernetes").display().to_string());
    let path = format!("{}:{}", weft_bin_dir()?.display(), std::env::var("PATH")?);
    let mut shell = Command::new("sh");
    shell.args(["-ec", &commands]).current_dir(scratch.path()).env("PATH", path);
    run(&mut shell)?.ok()?;
    Ok(fs::read_to_string(scratch.path().join("nodes.json"))?)
}

fn assert_ping(from: &Place, pod: &Pod) -> Result<()> {
    let to = pod.addr(Family::V4)?;
    let result = ping(from, to, &PingOptions { wait: 5.0, ..PingOptions::default() })?;
    ensure!(result.all(), "{} to {}: {}", from.name(), pod.name(), result.output);
    Ok(())
}

/// Every pod and every node reaches every pod.
fn assert_reach(lab: &Lab, pods: &[(Chain, Pod)]) -> Result<()> {
    for (_, to) in pods {
        pods.iter().try_for_each(|(_, from)| assert_ping(from, to))?;
        lab.nodes().iter().try_for_each(|node| assert_ping(node, to))?;
    }
    Ok(())
}

/// Nothing that names flannel or its bridge, in the kernel or on the disk.
fn assert_clean(node: &Node) -> Result<()> {
    let left = node.sh("ip link; ip route; ip neighbour; iptables-save; ip6tables-save
        find /etc/cni /run/flannel /var/lib/cni 2>/dev/null || true")?;
    let left: Vec<&str> = left
        .lines()
        .filter(|line| {
            ["flannel", "FLANNEL", "cni0", "cbr0"].iter().any(|word| line.contains(word))
        })
        .collect();
    ensure!(left.is_empty(), "{left:#?}");
    Ok(())
}

/// A node that was not cleaned is told so, and goes on with flannel.
fn assert_refused(node: &Node, image: &Path) -> Result<()> {
    install(node, image, "early")?;
    let sync = node.run(&["/opt/cni/bin/weft", "sync"])?;
    ensure!(!sync.success() && sync.stderr.contains("flannel.1"), "{sync}");
    node.sh("rm /etc/cni/net.d/10-weft.conflist").map(drop)
}

/// Drains, cleans and switches a node; a new pod takes the old one's place.
fn migrate(node: &Node, image: &Path, map: &str, pod: &mut (Chain, Pod)) -> Result<()> {
    pod.0.del(&pod.1, "eth0")?;
    pod.1.delete()?;
    node.sh(&block("flannel-clean")?)?;
    assert_clean(node)?;
    Volume::new(node, "first")?.write(map)?;
    install(node, image, "first")?;
    let runtime = runtime(node)?;
    let new = attach(node, &runtime, "weft")?;
    *pod = (runtime, new);
    Ok(())
}

#[test]
fn nodes_go_from_flannel_to_weft_one_by_one() -> Result<()> {
    e2e::needs_lab!("busybox", "iptables", "/usr/lib/cni/bridge");
    let lab = Lab::lesson()?;
    let mut pods = Vec::new();
    for (index, node) in lab.nodes().iter().enumerate() {
        with_own_opt(node)?;
        node.sh("rm /etc/weft/nodes.d/nodes.json")?;
        make_flannel(&lab, index)?;
        let runtime = flannels_delegate(node)?;
        let pod = attach(node, &runtime, "flannel")?;
        pods.push((runtime, pod));
    }
    assert_reach(&lab, &pods).context("flannel")?;
    let map = documented_map(&noted(&lab)?)?;
    let image = image()?;
    Volume::new(&lab.nodes()[1], "early")?.write(&map)?;
    assert_refused(&lab.nodes()[1], image.path())?;
    assert_reach(&lab, &pods).context("flannel, after weft was refused")?;

    // Pods of the other nodes notice nothing.
    let stream = Stream::start(&pods[0].1, &pods[2].1)?;
    migrate(&lab.nodes()[1], image.path(), &map, &mut pods[1])?;
    assert_reach(&lab, &pods).context("one of three")?;
    stream.assert_no_loss()?;

    for index in [2, 0] {
        migrate(&lab.nodes()[index], image.path(), &map, &mut pods[index])?;
        assert_reach(&lab, &pods).with_context(|| lab.nodes()[index].name().to_owned())?;
    }
    // The CronJob's map, without flannel's MACs.
    let map = import(&lab.nodes()[0], &node_list(&lab)?)?;
    for node in lab.nodes() {
        Volume::new(node, "second")?.write(&map)?;
        install(node, image.path(), "second")?;
        node.run_ok(&["/opt/cni/bin/weft", "sync"])?;
    }
    assert_reach(&lab, &pods).context("with MACs of weft's own")
}
